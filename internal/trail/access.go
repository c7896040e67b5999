package trail

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

// AccessRetention is how long the access events of a root are kept.
type AccessRetention struct {
	RootID    string
	Days      int
	UpdatedAt time.Time // zero for the default
}

// IncomingEvent is an access event that a product sends.
type IncomingEvent struct {
	access.Event
	Line  int  // of the request body, 1-based; 0 if it has no lines
	Named bool // the product gave the event its id
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
	return org.ETag("access retention", org.Stamp{Path: r.RootID, Version: int64(r.Days), At: r.UpdatedAt})
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
		if p := org.CheckID("/org_id", e.OrgID); p != nil {
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

func accessRetention(v View, rootID string) (*AccessRetention, error) {
	r, err := v.AccessRetention(rootID)
	if errors.Is(err, org.ErrAbsent) {
		return &AccessRetention{RootID: rootID, Days: DefaultAccessRetention}, nil
	}
	return r, err
}

// AccessRetention returns how long the access events of a root are kept.
func (s *Service) AccessRetention(ctx context.Context, actor *auth.Actor, rootID string) (*AccessRetention, error) {
	snap, err := s.orgs.Find(ctx, actor, rootID)
	if err != nil {
		return nil, err
	}
	if err := org.CheckRoot(snap.Organization); err != nil {
		return nil, err
	}
	var r *AccessRetention
	err = s.store.Read(ctx, func(v View) (err error) {
		r, err = accessRetention(v, rootID)
		return err
	})
	return r, err
}

// retentionTarget finds the root whose retention is to be changed, and the
// retention as it is.
func (c *check) retentionTarget(rootID string) (*org.Organization, *AccessRetention, error) {
	o, err := c.Target(rootID, key.AccessLogWrite)
	if err != nil {
		return nil, nil, err
	}
	if err := org.CheckRoot(o); err != nil {
		return nil, nil, err
	}
	r, err := accessRetention(c, rootID)
	if err != nil {
		return nil, nil, err
	}
	return o, r, org.CheckMatch(c.Call.IfMatch, r.ETag())
}

// CheckAccessRetention checks whether the actor may change the retention of a
// root, and whether it is as the call says.
func (s *Service) CheckAccessRetention(ctx context.Context, call *org.Call, rootID string) error {
	return s.orgs.Precheck(ctx, call, func(c *org.Check) error {
		_, _, err := (&check{c, s.store.ViewOf(c.View)}).retentionTarget(rootID)
		return err
	})
}

// PutAccessRetention sets how long the access events of a root are kept. What
// is older than that is gone for readers when it returns.
func (s *Service) PutAccessRetention(ctx context.Context, call *org.Call, rootID string, days int) (*AccessRetention, audit.Receipt, error) {
	if days < 1 || days > maxAccessRetention {
		return nil, audit.Receipt{}, problem.Body("/days", "must be a whole number from 1 to %d", maxAccessRetention)
	}
	var out *AccessRetention
	receipt, err := s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		o, before, err := (&check{&c.Change.Check, c.Tx}).retentionTarget(rootID)
		if err != nil {
			return nil, nil, err
		}
		if out = before; before.Days == days {
			return nil, nil, nil
		}
		out = &AccessRetention{RootID: rootID, Days: days, UpdatedAt: c.At}
		if err := c.Tx.PutAccessRetention(out); err != nil {
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
	err := s.store.ReadHeavy(ctx, func(v View) error {
		r, err := accessRetention(v, q.RootID)
		if err != nil {
			return err
		}
		q.From = org.Later(q.From, r.since(s.orgs.Now()))
		page, err = v.AccessEvents(q)
		return err
	})
	return page, err
}

// AccessFeed returns the access events that became visible after a position,
// of those that are kept.
func (s *Service) AccessFeed(ctx context.Context, q AccessQuery, after int64) (AccessFeed, error) {
	last, err := s.AccessHead(ctx, q.RootID)
	if err != nil || last <= after {
		return AccessFeed{Position: after}, err
	}
	var feed AccessFeed
	err = s.store.ReadHeavy(ctx, func(v View) error {
		r, err := accessRetention(v, q.RootID)
		if err != nil {
			return err
		}
		q.From = org.Later(q.From, r.since(s.orgs.Now()))
		feed, err = v.AccessFeed(q, after)
		return err
	})
	return feed, err
}

// AccessHead returns the position after the access events of a root that are
// visible now.
func (s *Service) AccessHead(ctx context.Context, rootID string) (int64, error) {
	var last int64
	err := s.store.Read(ctx, func(v View) (err error) {
		last, err = v.AccessHead(rootID)
		return err
	})
	return last, err
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
func (s *Service) IngestAccess(ctx context.Context, call *org.Call, orgID string, events []IncomingEvent) (*Ingested, error) {
	leave, err := s.orgs.BulkTurn(ctx, call, len(events))
	if err != nil {
		return nil, err
	}
	defer leave()
	now := s.orgs.Now()
	batch := s.accessBatch(orgID, events, now)
	var out *Ingested
	var rootID string
	err = s.orgs.Deliver(ctx, call, key.AccessLogWrite, func(began org.Tx, call *org.Call) (any, string, error) {
		tx := s.store.TxOf(began)
		target, err := tx.Org(orgID)
		if errors.Is(err, org.ErrAbsent) || err == nil && (target.DeletedAt != nil || !call.Actor.Sees(target.Path)) {
			return nil, "", org.NotFound()
		} else if err != nil {
			return nil, "", err
		}
		if err := call.Actor.Demand(target.Path, key.AccessLogWrite); err != nil {
			return nil, "", err
		}
		if batch.retention, err = accessRetention(tx, target.RootID); err != nil {
			return nil, "", err
		}
		if batch.places, err = placesBelow(tx, call.Actor, target, batch.orgIDs); err != nil {
			return nil, "", err
		}
		if !batch.fits(now) {
			return nil, "", errEventsBad
		}
		rootID = target.RootID
		duplicates, err := tx.InsertAccessEvents(rootID, org.SenderOf(call.Actor), batch.events)
		if err != nil {
			return nil, "", err
		}
		out = &Ingested{Accepted: int64(len(batch.events)) - duplicates, Duplicates: duplicates}
		return out, target.Path, nil
	})
	if rootID != "" {
		s.visible.Tell(rootID) // also if the outcome is unknown
	}
	if err == errEventsBad {
		err = batch.err(orgID, now)
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// errEventsBad says that something is wrong with events; batch.err says what.
var errEventsBad = errors.New("events are invalid")

// accessBatch is access events on their way into the store, with what the
// transaction is to know of all of them together.
type accessBatch struct {
	events           []IncomingEvent
	orgIDs           []string // that they name, each once
	earliest, latest time.Time

	// These are as the last transaction has read them.
	retention *AccessRetention
	places    map[string]bool // see placesBelow
}

// accessBatch gives events what they lack: an organization, a time and an id.
func (s *Service) accessBatch(orgID string, events []IncomingEvent, now time.Time) *accessBatch {
	b := &accessBatch{events: slices.Clone(events), earliest: now, latest: now}
	seen := map[string]bool{orgID: true}
	for i := range b.events {
		e := &b.events[i]
		if e.OrgID == "" {
			e.OrgID = orgID
		}
		if !seen[e.OrgID] {
			seen[e.OrgID] = true
			b.orgIDs = append(b.orgIDs, e.OrgID)
		}
		if e.Timestamp.IsZero() {
			e.Timestamp = now
		}
		if e.Timestamp.Before(b.earliest) {
			b.earliest = e.Timestamp
		}
		b.latest = org.Later(b.latest, e.Timestamp)
		if !e.Named {
			e.ID = s.newID("evt_")
		}
	}
	return b
}

// fits reports whether nothing is wrong with the events.
func (b *accessBatch) fits(now time.Time) bool {
	for _, there := range b.places {
		if !there {
			return false
		}
	}
	return !b.latest.After(now.Add(maxAhead)) && !b.earliest.Before(b.retention.since(now))
}

// err says what is wrong with the events.
func (b *accessBatch) err(orgID string, now time.Time) error {
	var bad org.EventErrors
	for i := range b.events {
		e := &b.events[i]
		switch {
		case !b.places[e.OrgID]:
			bad.Add(i, e.Line, problem.Body("/org_id", "is not an organization at or below %s that this key can see", orgID))
		case e.Timestamp.After(now.Add(maxAhead)):
			bad.Add(i, e.Line, problem.Body("/timestamp", "is more than 5 minutes in the future"))
		case e.Timestamp.Before(b.retention.since(now)):
			bad.Add(i, e.Line, problem.Body("/timestamp", "is older than the %d days for which %s keeps its access log", b.retention.Days, b.retention.RootID))
		}
	}
	return bad.Err()
}

// placesBelow returns which organizations, the target and those with the ids, are
// live, at or below the target, and visible.
func placesBelow(v View, actor *auth.Actor, target *org.Organization, ids []string) (map[string]bool, error) {
	places := map[string]bool{target.ID: true}
	if len(ids) == 0 {
		return places, nil
	}
	found, err := v.Places(ids)
	for _, id := range ids {
		place, ok := found[id]
		places[id] = ok && strings.HasPrefix(place.Path, target.Path) && actor.Can(key.AccessLogWrite, place.Path)
	}
	return places, err
}

// expireStep is how many rows one transaction of the background removes.
const expireStep = 1000

// ExpireAccess removes access events that are older than their root keeps
// them, in small steps, with a pause after each, so that others can write in
// between. It returns how many rows it removed.
func (s *Service) ExpireAccess(ctx context.Context, pause time.Duration) (removed int64, err error) {
	now := s.orgs.Now()
	retentions := map[string]*AccessRetention{}
	var roots []string
	longest := now
	for after := ""; ; {
		var page []string
		err := s.store.Read(ctx, func(v View) error {
			var err error
			if page, err = v.AccessRoots(after, expireStep); err != nil {
				return err
			}
			for _, rootID := range page {
				r, err := accessRetention(v, rootID)
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

// AccessNews tells of the roots in which access events became visible by this
// service, or by a sink of the news.
func (s *Service) AccessNews() *org.News { return s.visible }
