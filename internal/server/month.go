package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/orgd/orgd/internal/background"
	"github.com/orgd/orgd/internal/metering"
)

const (
	// closeInterval is how late a month may be closed.
	closeInterval = time.Second
	// closeAgain is how often months are looked for that should have been
	// closed, and events whose time is over. It is also how often the log
	// repeats what a month waits for.
	closeAgain = time.Hour
)

// behind is what months wait for.
type behind struct {
	metering.SpoolsBehindError
	logged time.Time
}

// state is the error; nil if b is.
func (b *behind) state() error {
	if b == nil {
		return nil
	}
	return &b.SpoolsBehindError
}

// same reports whether b and c name the same spools.
func (b *behind) same(c *behind) bool {
	return b != nil && b.Month == c.Month && slices.EqualFunc(b.Spools, c.Spools, func(x, y metering.SpoolReport) bool { return x.ID == y.ID })
}

// behindAdvice says to operators what months wait for, and what to do.
func behindAdvice(b *behind) string {
	if b == nil {
		return ""
	}
	var names []string
	for _, spool := range b.Spools {
		names = append(names, spool.ID) // where it is, the log says
	}
	return fmt.Sprintf("The month %s is not closed: requests of it are under way, or may wait in the spool of a server that is not running: %s. "+
		"The server's log says where it is. Start that server again if it is not running, or give the spool up with 'orgd usage give-up-spool'.", b.Month, strings.Join(names, ", "))
}

// closingMonths closes the months whose time has come.
func (s *Server) closingMonths() background.Job {
	var next, again time.Time
	return background.Job{Name: "close_months", Every: closeInterval, Failing: "months could not be closed; it is tried again",
		Due: func() bool {
			now := s.config.Now()
			return !now.Before(next) || !now.Before(again)
		},
		Run: func(ctx context.Context) error {
			now := s.config.Now()
			next, again = s.Metering.NextClose(), now.Add(closeAgain)
			n, err := s.Metering.CloseMonths(ctx)
			if n > 0 {
				s.config.Log.Info("closed months", "months", n)
			}
			waits := s.noteBehind(err, now)
			if waits {
				err = nil
			}
			if err == nil {
				err = s.Metering.PruneUsage(ctx)
			}
			if err != nil || waits {
				next = now.Add(10 * closeInterval)
			}
			return err
		}}
}

// noteBehind notes what months wait for, if err says so, and logs it when that
// is new, and every hour.
func (s *Server) noteBehind(err error, now time.Time) bool {
	var e *metering.SpoolsBehindError
	if !errors.As(err, &e) {
		if err == nil {
			s.behind.Store(nil)
		}
		return false
	}
	b, before := &behind{SpoolsBehindError: *e, logged: now}, s.behind.Load()
	if before.same(b) && now.Sub(before.logged) < closeAgain {
		b.logged = before.logged
	} else {
		for _, spool := range b.Spools {
			s.config.Log.Warn("a month is not closed: requests of it are under way, or may wait in a spool; start the server that has it if it is not running, "+
				"or give it up: orgd usage give-up-spool "+spool.ID+" --reason …",
				"month", b.Month, "spool", spool.ID, "place", spool.Place, "stored_until", spool.StoredUntil)
		}
	}
	s.behind.Store(b)
	return true
}

// GiveUpSpool implements api.Status. No root's audit log has an entry of it, since
// a spool belongs to a server: the log's line and the reason beside the spool stay.
func (s *Server) GiveUpSpool(ctx context.Context, id, reason, requestID string) error {
	month, report, err := s.Metering.GiveUpSpool(ctx, id, reason)
	if err != nil {
		return err
	}
	s.config.Log.Warn("a spool was given up: months are closed without what it may hold of them", "spool", id, "place", report.Place,
		"stored_until", report.StoredUntil, "last_month", month, "reason", reason, "request_id", requestID)
	return nil
}

// closeSpool closes the spool, and reports that nothing is left in it.
func (s *Server) closeSpool(ctx context.Context) error {
	if err := s.Recorder.Close(ctx); err != nil {
		return err
	}
	if _, bytes := s.Recorder.Lag(); bytes > 0 {
		return nil
	}
	if err := s.Metering.EndSpool(ctx); err != nil {
		s.config.Log.Warn("the database does not know that the spool is empty; months wait until this server has run again", "spool", s.Recorder.ID(), "error", err)
	}
	return nil
}
