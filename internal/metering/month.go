package metering

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
)

// DefaultMonthCloseAfter is how long after its end a month still takes late
// events unless the operator says otherwise.
const DefaultMonthCloseAfter = 72 * time.Hour

// RootMonth is a month of a root.
type RootMonth struct {
	RootID string
	Month  usage.Month
}

// HoldMonths is what Tx has for whoever counts something in a month.
type HoldMonths interface {
	// HoldMonth tells whether a month of a root is closed, and keeps anybody
	// from closing it until the transaction ends. ErrAbsent for one that is
	// not known. Months must be held in ascending order.
	HoldMonth(rootID string, month usage.Month) (closed bool, err error)
	// OpenMonth makes a month known unless it is.
	OpenMonth(rootID string, month usage.Month) error
}

// Book says of each of the months in which month what belongs to it is counted:
// itself or, if it is closed, the first later one that is not. It keeps those months
// from being closed until the transaction ends, and takes all in one order, in
// which two transactions cannot deadlock.
//
// over tells of a month that it takes nothing more, whether CloseMonth has closed
// it or not; see Service.over and NeverOver, between which the two kinds of what is
// counted differ.
func Book(tx HoldMonths, months map[RootMonth]usage.Month, over func(usage.Month) bool) error {
	order := slices.SortedFunc(maps.Keys(months), func(a, b RootMonth) int {
		return cmp.Or(cmp.Compare(a.RootID, b.RootID), cmp.Compare(a.Month, b.Month))
	})
	for _, m := range order {
		month, err := openMonth(tx, m, over)
		if err != nil {
			return err
		}
		months[m] = month
	}
	return nil
}

func openMonth(tx HoldMonths, m RootMonth, over func(usage.Month) bool) (usage.Month, error) {
	for month := m.Month; ; month = month.Next() {
		if over(month) {
			continue
		}
		closed, err := tx.HoldMonth(m.RootID, month)
		if errors.Is(err, org.ErrAbsent) {
			if err = tx.OpenMonth(m.RootID, month); err == nil {
				closed, err = tx.HoldMonth(m.RootID, month)
			}
		}
		if err != nil || !closed {
			return month, err
		}
	}
}

// over is for what is sent in, events and adjustments. Once its time has come a
// month takes nothing more of that, also while it waits to be closed: on PostgreSQL
// those that count and share a hold on the month could otherwise keep CloseMonth
// waiting for as long as they come, and whether a late event is one would depend on
// the spool of another server.
func (s *Service) over(now time.Time) func(usage.Month) bool {
	return func(m usage.Month) bool { return m.Closed(now, s.monthCloseAfter) }
}

// NeverOver is for requests that were recorded. A month waits for the spools that
// hold some of it, so it takes them for as long as it is not closed, however late
// they are stored: they become adjustments only if CloseMonth did not know of them.
func NeverOver(usage.Month) bool { return false }

// CloseMonth closes a month of a root for good: from then on nothing changes
// what was consumed in it. What belongs to it and comes later is an adjustment
// in a month that is open.
//
// It runs in one transaction, after every transaction that counts something in
// the month and before every one that finds it closed: what is read here, after
// Tx.CloseMonth, is final. The month's statement is written from it, and its
// hash is what the audit entry holds. Closing a closed month does nothing.
func (s *Service) CloseMonth(ctx context.Context, rootID string, month usage.Month) (audit.Receipt, error) {
	call := &org.Call{Actor: auth.System()}
	return s.closeIn(ctx, call, func(c *closing) (any, []audit.Draft, error) {
		o, err := c.Locked(rootID)
		if err != nil || o == nil {
			return nil, nil, err
		}
		closed, err := c.MonthsTx.CloseMonth(rootID, month, c.At)
		if err != nil || !closed {
			return nil, nil, err
		}
		entry, err := c.stateMonth(o, month)
		return nil, []audit.Draft{entry}, err
	})
}

const (
	// closeStep is how many months are looked up at a time.
	closeStep = 100
	// closeAtOnce is how many of them are closed at the same time.
	closeAtOnce = 8
)

// lastMonth returns the newest month that ended at least after ago.
func (s *Service) lastMonth(after time.Duration) usage.Month {
	m := usage.MonthOf(s.Now())
	for !m.Closed(s.Now(), after) {
		m = usage.MonthOf(m.Start().Add(-time.Hour))
	}
	return m
}

// NextClose returns when the next month will have to be closed.
func (s *Service) NextClose() time.Time {
	return s.lastMonth(s.monthCloseAfter).Next().Closes(s.monthCloseAfter)
}

// SpoolReport is what the database knows of a spool.
type SpoolReport struct {
	ID          string
	Place       string    // host and directory
	StoredUntil time.Time // what was recorded before is stored
}

// SpoolsBehindError says which spools months wait for.
type SpoolsBehindError struct {
	Month  usage.Month // the newest one that waits
	Spools []SpoolReport
}

func (e *SpoolsBehindError) Error() string {
	return fmt.Sprintf("the month %s is not closed: %d spools may hold requests of it", e.Month, len(e.Spools))
}

// maxBehind is how many spools an error names.
const maxBehind = 20

// reportSpool stores what this process has recorded, and reports it, if a month
// that ended at a time waits for that. A request that began before the end and is
// still under way will be recorded in that month: nothing is reported then.
func (s *Service) reportSpool(ctx context.Context, behind []SpoolReport, end time.Time) error {
	if len(behind) < maxBehind && !slices.ContainsFunc(behind, func(r SpoolReport) bool { return r.ID == s.spool.ID() }) {
		return nil
	}
	at := s.spool.Since()
	if at.Before(end) {
		return nil
	}
	if err := s.spool.Drain(ctx); err != nil {
		return err
	}
	return s.closing.Write(ctx, func(tx MonthsTx) error { return tx.ReportSpool(s.spool.ID(), s.spool.Run(), at, false) })
}

// EndSpool reports that this process ends with nothing left in its spool.
func (s *Service) EndSpool(ctx context.Context) error {
	return s.closing.Write(ctx, func(tx MonthsTx) error { return tx.ReportSpool(s.spool.ID(), s.spool.Run(), s.Now(), true) })
}

// spoolsBehind returns the spools that hold requests from before a time, or will
// hold some that are under way, once this process has stored what it has of them.
func (s *Service) spoolsBehind(ctx context.Context, end time.Time) (behind []SpoolReport, err error) {
	for range 2 {
		err := s.closing.Read(ctx, func(v MonthsView) (err error) {
			behind, err = v.SpoolsBehind(end, maxBehind)
			return err
		})
		if err != nil || len(behind) == 0 {
			return nil, err
		}
		if err := s.reportSpool(ctx, behind, end); err != nil {
			return nil, err
		}
	}
	return behind, nil
}

// GiveUpSpool lets months be closed without what a spool may hold of them, since
// it is lost. Should it be stored after all, it is an adjustment in a month that
// is open. It returns the last of these months, and what is known of the spool if
// it is among the first that months wait for.
func (s *Service) GiveUpSpool(ctx context.Context, id, reason string) (last usage.Month, known SpoolReport, err error) {
	last = s.lastMonth(s.monthCloseAfter)
	err = s.closing.Write(ctx, func(tx MonthsTx) error {
		behind, err := tx.SpoolsBehind(last.End(), maxBehind)
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(behind, func(r SpoolReport) bool { return r.ID == id }); i >= 0 {
			known = behind[i]
		}
		return tx.GiveUpSpool(id, last.End(), reason, s.Now())
	})
	if errors.Is(err, org.ErrAbsent) {
		err = problem.New(problem.NotFound, "No month waits for a spool %s.", id).
			WithFix("The server's log and /service_status name the spools that months wait for.")
	}
	return last, known, err
}

// CloseMonths closes all months whose time has come, and returns how many. It
// stops at the first error. A month waits until all that was recorded in it is
// stored, by this process and by all others that the database knows; the error is
// a *SpoolsBehindError then.
func (s *Service) CloseMonths(ctx context.Context) (int, error) {
	last := s.lastMonth(s.monthCloseAfter)
	behind, err := s.spoolsBehind(ctx, last.End())
	if err != nil {
		return 0, err
	}
	if len(behind) > 0 {
		return 0, &SpoolsBehindError{last, behind}
	}
	n := 0
	for after, known := "", true; ctx.Err() == nil; {
		var months []Month
		err := s.closing.Read(ctx, func(v MonthsView) (err error) {
			if known {
				if months, err = v.OpenMonths(last, closeStep); err != nil || len(months) > 0 {
					return err
				}
				known = false
			}
			// Roots that consumed nothing close their months too.
			roots, err := v.RootsWithout(last, after, closeStep)
			for _, rootID := range roots {
				months = append(months, Month{RootID: rootID, Month: last})
				after = rootID
			}
			return err
		})
		if err != nil || len(months) == 0 {
			return n, err
		}
		if err := s.closeAll(ctx, months); err != nil {
			return n, err
		}
		n += len(months)
	}
	return n, ctx.Err()
}

// closeAll closes months, several at a time: they share commits.
func (s *Service) closeAll(ctx context.Context, months []Month) error {
	errs := make([]error, len(months))
	tokens := make(chan struct{}, closeAtOnce)
	var wg sync.WaitGroup
	for i, m := range months {
		tokens <- struct{}{}
		wg.Go(func() {
			defer func() { <-tokens }()
			receipt, err := s.CloseMonth(ctx, m.RootID, m.Month)
			if err == nil && receipt.Origin == "" {
				// Another process has closed it, or its root has been purged,
				// and with it whoever could ask.
				err = s.closing.Write(ctx, func(tx MonthsTx) error {
					_, err := tx.HoldMonth(m.RootID, m.Month)
					if errors.Is(err, org.ErrAbsent) {
						return nil // the purge is complete: nothing of it comes back
					}
					if err == nil {
						_, err = tx.CloseMonth(m.RootID, m.Month, s.Now())
					}
					return err
				})
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

const (
	// pruneStep is how many events a step of PruneUsage looks at.
	pruneStep = 2000
	// pruneMargin is how long the identities of events are kept after the last
	// moment at which one of their month is taken: for requests under way, and
	// for the clocks of other processes.
	pruneMargin = time.Hour
)

// PruneUsage removes the events of months that take none any more, since their
// identities are not needed any longer. Totals, days and adjustments stay. It
// works in small steps, each a transaction of its own, and stops at the first
// error.
func (s *Service) PruneUsage(ctx context.Context) error {
	last := s.lastMonth(usage.Window + pruneMargin)
	for ctx.Err() == nil {
		var months []Month
		err := s.closing.Read(ctx, func(v MonthsView) (err error) {
			months, err = v.MonthsToPrune(last, closeStep)
			return err
		})
		if err != nil || len(months) == 0 {
			return err
		}
		for _, m := range months {
			if err := s.pruneMonth(ctx, m); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

func (s *Service) pruneMonth(ctx context.Context, m Month) error {
	for after := (&usage.EventKey{RootID: m.RootID}); after != nil; {
		var next *usage.EventKey
		err := s.closing.Write(ctx, func(tx MonthsTx) (err error) {
			next, err = tx.PruneEvents(m.RootID, m.Month.End(), *after, pruneStep)
			return err
		})
		if err != nil {
			return err
		}
		after = next
	}
	periods := []string{string(m.Month)}
	for _, day := range m.Month.Days(m.Month.End()) {
		periods = append(periods, string(day))
	}
	for _, period := range periods {
		if err := s.closing.Write(ctx, func(tx MonthsTx) error { return tx.PruneStates(m.RootID, period) }); err != nil {
			return err
		}
	}
	return s.closing.Write(ctx, func(tx MonthsTx) error { return tx.MarkPruned(m.RootID, m.Month, s.Now()) })
}
