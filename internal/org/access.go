package org

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/problem"
)

// AccessRetention is how long the access events of a root are kept.
type AccessRetention struct {
	RootID    string
	Days      int
	UpdatedAt time.Time // zero for the default
}

// Bounds of a retention, in days.
const (
	DefaultAccessRetention = 400
	maxAccessRetention     = 36_500
)

// since returns the time from which on events are kept.
func (r *AccessRetention) since(now time.Time) time.Time { return now.AddDate(0, 0, -r.Days) }

// ETag returns the strong entity tag of the retention.
func (r *AccessRetention) ETag() string {
	return ETag("access retention", Stamp{Path: r.RootID, Version: int64(r.Days), At: r.UpdatedAt})
}

func accessRetention(tx Tx, rootID string) (*AccessRetention, error) {
	r, err := tx.AccessRetention(rootID)
	if errors.Is(err, ErrAbsent) {
		return &AccessRetention{RootID: rootID, Days: DefaultAccessRetention}, nil
	}
	return r, err
}

// AccessRetention returns how long the access events of a root are kept.
func (s *Service) AccessRetention(ctx context.Context, actor *auth.Actor, rootID string) (*AccessRetention, error) {
	snap, err := s.Find(ctx, actor, rootID)
	if err != nil {
		return nil, err
	}
	if err := checkRoot(snap.Organization); err != nil {
		return nil, err
	}
	var r *AccessRetention
	err = s.store.Read(ctx, func(tx Tx) (err error) {
		r, err = accessRetention(tx, rootID)
		return err
	})
	return r, err
}

// retentionTarget finds the root whose retention is to be changed, and the
// retention as it is.
func (c *Change) retentionTarget(rootID string) (*Organization, *AccessRetention, error) {
	o, err := c.Target(rootID, key.AccessLogWrite)
	if err != nil {
		return nil, nil, err
	}
	if err := checkRoot(o); err != nil {
		return nil, nil, err
	}
	r, err := accessRetention(c.Tx, rootID)
	if err != nil {
		return nil, nil, err
	}
	return o, r, CheckMatch(c.Call.IfMatch, r.ETag())
}

// CheckAccessRetention checks whether the actor may change the retention of a
// root, and whether it is as the call says.
func (s *Service) CheckAccessRetention(ctx context.Context, call *Call, rootID string) error {
	return s.Precheck(ctx, call, func(c *Change) error {
		_, _, err := c.retentionTarget(rootID)
		return err
	})
}

// PutAccessRetention sets how long the access events of a root are kept. What
// is older than that is gone for readers when it returns.
func (s *Service) PutAccessRetention(ctx context.Context, call *Call, rootID string, days int) (*AccessRetention, audit.Receipt, error) {
	if days < 1 || days > maxAccessRetention {
		return nil, audit.Receipt{}, problem.Body("/days", "must be a whole number from 1 to %d", maxAccessRetention)
	}
	var out *AccessRetention
	receipt, err := s.Change(ctx, call, func(c *Change) (any, []audit.Draft, error) {
		o, before, err := c.retentionTarget(rootID)
		if err != nil {
			return nil, nil, err
		}
		if out = before; before.Days == days {
			return nil, nil, nil
		}
		out = &AccessRetention{RootID: rootID, Days: days, UpdatedAt: c.At}
		if err := c.PutAccessRetention(out); err != nil {
			return nil, nil, err
		}
		return out, []audit.Draft{c.Entry(o, "access_log_retention.put", audit.Target{Type: "access_log_retention", ID: rootID},
			[]audit.Change{{Pointer: "/days", Old: audit.Value(before.Days), New: audit.Value(days)}})}, nil
	})
	return out, receipt, err
}

// AccessEvents returns one page of access events, of those that are kept.
func (s *Service) AccessEvents(ctx context.Context, q AccessQuery) (AccessPage, error) {
	var page AccessPage
	err := s.store.ReadHeavy(ctx, func(tx Tx) error {
		r, err := accessRetention(tx, q.RootID)
		if err != nil {
			return err
		}
		q.From = later(q.From, r.since(s.Now()))
		page, err = tx.AccessEvents(q)
		return err
	})
	return page, err
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// AccessFeed returns the access events that became visible after a position,
// of those that are kept.
func (s *Service) AccessFeed(ctx context.Context, q AccessQuery, after int64) (AccessFeed, error) {
	last, err := s.AccessHead(ctx, q.RootID)
	if err != nil || last <= after {
		return AccessFeed{Position: after}, err
	}
	var feed AccessFeed
	err = s.store.ReadHeavy(ctx, func(tx Tx) error {
		r, err := accessRetention(tx, q.RootID)
		if err != nil {
			return err
		}
		q.From = later(q.From, r.since(s.Now()))
		feed, err = tx.AccessFeed(q, after)
		return err
	})
	return feed, err
}

// AccessNews tells of the roots in which access events became visible by this
// service, or by a sink of the news.
func (s *Service) AccessNews() *News { return s.visible }

// AccessHead returns the position after the access events of a root that are
// visible now.
func (s *Service) AccessHead(ctx context.Context, rootID string) (int64, error) {
	var last int64
	err := s.store.Read(ctx, func(tx Tx) (err error) {
		last, err = tx.AccessHead(rootID)
		return err
	})
	return last, err
}

// IncomingEvent is an access event that a product sends.
type IncomingEvent struct {
	access.Event
	Line  int  // of the request body, 1-based; 0 if it has no lines
	Named bool // the product gave the event its id
}

// maxAhead is how far in the future the time of an event may lie: clocks
// differ.
const maxAhead = 5 * time.Minute

// Ingested is what became of the events of a request.
type Ingested struct {
	Accepted   int64
	Duplicates int64
}

// IngestAccess stores access events of an organization and of those below it
// that the actor can see, all of them or none. An event with an id that the same
// sender has given before in the same root, to an event that is still kept, is
// left out: see SenderOf.
// The error EventInvalid names the bad ones. An event without an organization
// is the target's, and one without a time of now.
func (s *Service) IngestAccess(ctx context.Context, call *Call, orgID string, events []IncomingEvent) (*Ingested, error) {
	leave, err := s.BulkTurn(ctx, call, len(events))
	if err != nil {
		return nil, err
	}
	defer leave()
	var out *Ingested
	var rootID string
	err = s.Deliver(ctx, call, key.AccessLogWrite, func(tx Tx, call *Call) (any, string, error) {
		now := s.Now()
		target, err := tx.Org(orgID)
		if errors.Is(err, ErrAbsent) || err == nil && (target.DeletedAt != nil || !call.Actor.Sees(target.Path)) {
			return nil, "", NotFound()
		} else if err != nil {
			return nil, "", err
		}
		if err := call.Actor.Demand(target.Path, key.AccessLogWrite); err != nil {
			return nil, "", err
		}
		retention, err := accessRetention(tx, target.RootID)
		if err != nil {
			return nil, "", err
		}
		places, err := placesBelow(tx, call.Actor, target, events)
		if err != nil {
			return nil, "", err
		}
		var bad EventErrors
		ready := slices.Clone(events)
		for i := range ready {
			e := &ready[i]
			e.RootID = target.RootID
			if e.OrgID == "" {
				e.OrgID = target.ID
			}
			if e.Timestamp.IsZero() {
				e.Timestamp = now
			}
			if !e.Named {
				e.ID = s.newID("evt_")
			}
			switch {
			case !places[e.OrgID]:
				bad.Add(i, e.Line, problem.Body("/org_id", "is not an organization at or below %s that this key can see", orgID))
			case e.Timestamp.After(now.Add(maxAhead)):
				bad.Add(i, e.Line, problem.Body("/timestamp", "is more than 5 minutes in the future"))
			case e.Timestamp.Before(retention.since(now)):
				bad.Add(i, e.Line, problem.Body("/timestamp", "is older than the %d days for which %s keeps its access log", retention.Days, target.RootID))
			}
		}
		if err := bad.Err(); err != nil {
			return nil, "", err
		}
		rootID = target.RootID
		duplicates, err := tx.InsertAccessEvents(rootID, SenderOf(call.Actor), ready)
		if err != nil {
			return nil, "", err
		}
		out = &Ingested{Accepted: int64(len(ready)) - duplicates, Duplicates: duplicates}
		return out, target.Path, nil
	})
	if rootID != "" {
		s.visible.Tell(rootID) // also if the outcome is unknown
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// placesBelow returns which of the organizations that the events name are live,
// at or below the target, and visible.
func placesBelow(tx Tx, actor *auth.Actor, target *Organization, events []IncomingEvent) (map[string]bool, error) {
	places := map[string]bool{target.ID: true}
	var ids []string
	for i := range events {
		if id := events[i].OrgID; id != "" {
			if _, ok := places[id]; !ok {
				places[id] = false
				ids = append(ids, id)
			}
		}
	}
	if len(ids) == 0 {
		return places, nil
	}
	found, err := tx.Places(ids)
	for id, place := range found {
		places[id] = strings.HasPrefix(place.Path, target.Path) && actor.Can(key.AccessLogWrite, place.Path)
	}
	return places, err
}

// EventErrors collects what is wrong with the events of a batch.
type EventErrors struct{ rows problem.Rows }

// Add adds the error of one event: its index in the batch, and its line if the
// batch has lines.
func (e *EventErrors) Add(index, line int, p *problem.Error) {
	e.rows.Add(problem.Field{Index: &index, Line: line}, p)
}

// Err returns the errors as one; nil if there are none.
func (e *EventErrors) Err() error {
	if e.rows.Count() == 0 {
		return nil
	}
	detail := "One event is invalid: "
	if e.rows.Count() > 1 {
		detail = fmt.Sprintf("%d events are invalid, of which the first is ", e.rows.Count())
	}
	fields := e.rows.Fields()
	detail += fmt.Sprintf("event %d: %s", *fields[0].Index, e.rows.First())
	return &problem.Error{Code: problem.EventInvalid, Detail: detail, Fields: fields,
		Fix: "Correct the events that errors names and send all of them again: none was stored."}
}

// expireStep is how many rows one transaction of the background removes.
const expireStep = 1000

// ExpireAccess removes access events that are older than their root keeps
// them, in small steps, with a pause after each, so that others can write in
// between. It returns how many rows it removed.
func (s *Service) ExpireAccess(ctx context.Context, pause time.Duration) (removed int64, err error) {
	now := s.Now()
	retentions := map[string]*AccessRetention{}
	var roots []string
	longest := now
	for after := ""; ; {
		var page []string
		err := s.store.Read(ctx, func(tx Tx) error {
			var err error
			if page, err = tx.AccessRoots(after, expireStep); err != nil {
				return err
			}
			for _, rootID := range page {
				r, err := accessRetention(tx, rootID)
				if err != nil {
					return err
				}
				retentions[rootID] = r
				if r.since(now).Before(longest) {
					longest = r.since(now)
				}
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
		roots = append(roots, page...)
		if len(page) < expireStep {
			break
		}
		after = page[len(page)-1]
	}
	if len(roots) == 0 {
		longest = now.AddDate(0, 0, -DefaultAccessRetention)
	}
	floor, failed := s.store.Partition(ctx, now, longest)
	if failed != nil {
		floor = longest
	}
	for _, rootID := range roots {
		claims := retentions[rootID].since(now)
		events := claims
		if events.Equal(longest) {
			events = floor
		}
		for {
			var n int64
			err := s.store.Write(ctx, func(tx Tx) (err error) {
				n, err = tx.ExpireAccess(rootID, events, claims, expireStep)
				return err
			})
			if err != nil {
				return removed, errors.Join(failed, err)
			}
			if removed += n; n < expireStep {
				break
			}
			select {
			case <-ctx.Done():
				return removed, ctx.Err()
			case <-time.After(pause):
			}
		}
	}
	return removed, failed
}

// Bounds of the members of an incoming event, in bytes.
const (
	maxEventID        = 128
	maxEventUser      = 256
	maxEventAction    = 64
	maxEventUserAgent = 512
	maxEventMethod    = 32
	maxEventPath      = 2048
	maxEventRequestID = 128
)

// Check checks the members that a product gives an event, apart from its place
// and its time, and brings them into their final form.
func (e *IncomingEvent) Check() *problem.Error {
	for _, m := range []struct {
		name, value string
		most        int
		required    bool
	}{
		{"id", e.ID, maxEventID, false}, {"user", e.User, maxEventUser, true}, {"action", e.Action, maxEventAction, true},
		{"status", e.Status, maxEventAction, true}, {"user_agent", e.UserAgent, maxEventUserAgent, false},
		{"method", e.Method, maxEventMethod, false}, {"path", e.Path, maxEventPath, false}, {"request_id", e.RequestID, maxEventRequestID, false},
	} {
		switch {
		case m.required && m.value == "":
			return problem.Body("/"+m.name, "is missing")
		case len(m.value) > m.most:
			return problem.Body("/"+m.name, "is longer than %d bytes", m.most)
		case strings.ContainsFunc(m.value, unicode.IsControl):
			return problem.Body("/"+m.name, "holds a control character")
		}
	}
	if key.Holds(e.ID) {
		return problem.Body("/id", key.SecretInID)
	}
	for _, text := range []*string{&e.User, &e.Action, &e.UserAgent, &e.Method, &e.Path, &e.RequestID} {
		*text = key.Redact(*text)
	}
	if e.OrgID != "" {
		if p := CheckID("/org_id", e.OrgID); p != nil {
			return p
		}
	}
	switch e.Status {
	case access.Success, access.Failure, access.Denied:
	default:
		return problem.Body("/status", "must be SUCCESS, FAILURE or DENIED")
	}
	if e.IP != "" {
		ip, err := netip.ParseAddr(e.IP)
		if err != nil || ip.Zone() != "" {
			return problem.Body("/ip", "must be an IPv4 or IPv6 address")
		}
		e.IP = ip.Unmap().String()
	}
	return nil
}

// SenderOf returns in whose namespace the ids are that the actor gives to
// events: that of the key's own organization, whichever of its keys it uses, and
// in each root one of the operator, which is no organization's id.
func SenderOf(a *auth.Actor) string {
	if a.OrgID == "" {
		return "/operator"
	}
	return a.OrgID
}
