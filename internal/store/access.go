package store

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/trail"
	"github.com/orgd/orgd/internal/usage"
)

const eventColumns = `root_id, at, seq, id, org_id, user_name, action, status, ip, user_agent, method, path, request_id, api_key_id`

func scanEvent(r row) (e access.Event, err error) {
	var at int64
	err = r.Scan(&e.RootID, &at, &e.Seq, &e.ID, &e.OrgID, &e.User, &e.Action, &e.Status, &e.IP, &e.UserAgent, &e.Method, &e.Path,
		&e.RequestID, &e.APIKeyID)
	e.Timestamp = fromMicros(at)
	return e, err
}

// eventSize is about what an event takes in an answer, in bytes.
func eventSize(e *access.Event) int {
	return 300 + len(e.ID) + len(e.OrgID) + len(e.User) + len(e.Action) + len(e.UserAgent) + len(e.Method) + len(e.Path) + len(e.RequestID)
}

func (t *tx) AccessEvents(q trail.AccessQuery) (trail.AccessPage, error) {
	w := &window{columns: eventColumns, result: eventColumns, from: `access_events AS a`, order: `at DESC, seq DESC`, key: `at, seq`, maxBytes: q.MaxBytes}
	w.bound(`root_id = ` + w.arg(q.RootID))
	if q.Scope == org.ScopeSelf {
		w.bound(`org_id = ` + w.arg(q.OrgID))
	}
	if !q.From.IsZero() {
		w.bound(`at >= ` + w.arg(micros(q.From)))
	}
	if !q.To.IsZero() {
		w.bound(`at < ` + w.arg(micros(q.To)))
	}
	if q.Before != (trail.AccessPosition{}) {
		w.bound(`(at, seq) < (` + w.arg(micros(q.Before.At)) + `, ` + w.arg(q.Before.Seq) + `)`)
	}
	w.wantEvents(&q)
	switch {
	case len(w.filter) == 0:
	case q.Scope == org.ScopeSelf:
		w.scan = MaxScan / 5 // the rows of one organization lie apart in the table
	case q.Path != q.RootID+"/":
		w.scan = MaxScan / 2 // each row's organization is looked up
	}
	var page trail.AccessPage
	var at, seq int64
	more, err := t.page(w, q.Limit, func(r row) error {
		e, err := scanEvent(r)
		w.take(eventSize(&e))
		page.Events = append(page.Events, e)
		at, seq = micros(e.Timestamp), e.Seq
		return err
	}, into(&at, &seq))
	if more && err == nil {
		page.Next = &trail.AccessPosition{At: fromMicros(at), Seq: seq}
	}
	return page, err
}

// wantEvents lets through the events that q wants, whatever order and bounds
// the list of them has.
func (w *window) wantEvents(q *trail.AccessQuery) {
	if q.Scope != org.ScopeSelf && q.Path != q.RootID+"/" {
		w.want(`EXISTS (SELECT 1 FROM orgs AS o WHERE o.root_id = e.root_id AND o.id = e.org_id
			AND o.path >= ` + w.arg(q.Path) + ` AND o.path < ` + w.arg(subtreeEnd(q.Path)) + `)`)
	}
	for _, f := range []struct{ column, value string }{
		{`user_name`, q.User}, {`action`, q.Action}, {`status`, q.Status}, {`ip`, q.IP}, {`api_key_id`, q.APIKeyID},
	} {
		if f.value != "" {
			w.want(f.column + ` = ` + w.arg(f.value))
		}
	}
	if q.Holding != "" {
		w.want(w.holding(q.Holding, eventTexts...))
	}
}

func (t *tx) AccessFeed(q trail.AccessQuery, after int64) (trail.AccessFeed, error) {
	feed := trail.AccessFeed{Position: after}
	last, err := t.AccessHead(q.RootID)
	if err != nil || last <= after {
		return feed, err
	}
	w := &window{columns: eventColumns, result: eventColumns, from: `access_events AS a`, order: `seq`, key: `seq`, maxBytes: q.MaxBytes}
	w.bound(`root_id = ` + w.arg(q.RootID))
	w.bound(`seq > ` + w.arg(after))
	if q.Scope == org.ScopeSelf {
		w.want(`org_id = ` + w.arg(q.OrgID))
	}
	if !q.From.IsZero() {
		w.want(`at >= ` + w.arg(micros(q.From)))
	}
	w.wantEvents(&q)
	feed.More, err = t.page(w, q.Limit, func(r row) error {
		e, err := scanEvent(r)
		w.take(eventSize(&e))
		feed.Events = append(feed.Events, e)
		feed.Position = e.Seq
		return err
	}, into(&feed.Position))
	if !feed.More {
		feed.Position = last
	}
	return feed, err
}

func (t *tx) AccessHead(rootID string) (last int64, err error) {
	err = t.queryRow(into(&last), `SELECT last FROM access_heads WHERE root_id = $1`, rootID)
	if errors.Is(err, org.ErrAbsent) {
		err = nil
	}
	return last, err
}

// nextEvents reserves n numbers for a root's events and returns the last
// number before them. Until the transaction ends no other one gets past here
// for the same root: a transaction that gets greater numbers commits later,
// and nobody sees its events without having been able to see these. That is
// why a reader who goes by the numbers misses nothing.
func (t *tx) nextEvents(rootID string, n int) (before int64, err error) {
	if _, err := t.exec(`INSERT INTO access_heads (root_id, last) VALUES ($1, $2)
		ON CONFLICT (root_id) DO UPDATE SET last = access_heads.last + excluded.last`, rootID, n); err != nil {
		return 0, err
	}
	last, err := t.AccessHead(rootID)
	return last - int64(n), err
}

// Flush implements access.Sink: it stores a batch's events, its usage in the
// totals of the organizations and all their ancestors, the use of the keys,
// and its position. A key's version and the generations stay as they are. Text that the engines could not store,
// invalid UTF-8 and NUL, is replaced by U+FFFD, so that no client can make a
// batch impossible to store. Errors are those of Write.
func (s *Store) Flush(ctx context.Context, b access.Batch) error {
	for {
		var last time.Time
		for i := range b.Usage {
			if at := b.Usage[i].At; at.After(last) {
				last = at
			}
		}
		err := s.flush(ctx, b, last)
		var beyond *usage.RangeError
		if !errors.As(err, &beyond) {
			return err
		}
		// A quantity that no total can hold must not keep the rest from being
		// stored.
		before := len(b.Usage)
		b.Usage = slices.DeleteFunc(slices.Clone(b.Usage), func(u access.Usage) bool {
			return u.Meter == beyond.Meter && strings.Contains("/"+u.Path, "/"+beyond.OrgID+"/")
		})
		s.log.Error("requests were not counted: a total would leave its range", "requests", before-len(b.Usage),
			"org", beyond.OrgID, "meter", beyond.Meter, "month", beyond.Month)
	}
}

func (s *Store) flush(ctx context.Context, b access.Batch, at time.Time) error {
	return s.write(ctx, func(t *tx) error {
		stored, err := t.moveSpool(&b)
		if err != nil || stored {
			return err
		}
		b, err := t.bind(b)
		if err != nil {
			return err
		}
		if err := t.insertEvents(b.Events); err != nil {
			return err
		}
		entries, err := t.recordedEntries(b.Usage)
		if err != nil {
			return err
		}
		if err := t.AddUsage(entries, at); err != nil {
			return err
		}
		return t.touchKeys(b.Uses)
	})
}

// insertEvents stores events. Their roots are taken in the order of their
// ids, so that two transactions cannot deadlock.
func (t *tx) insertEvents(events []access.Event) error {
	count := map[string]int{}
	for i := range events {
		count[events[i].RootID]++
	}
	next := make(map[string]int64, len(count))
	for _, rootID := range slices.Sorted(maps.Keys(count)) {
		before, err := t.nextEvents(rootID, count[rootID])
		if err != nil {
			return err
		}
		next[rootID] = before
	}
	return t.putEvents(len(events), func(i int) (*access.Event, int64) {
		e := &events[i]
		next[e.RootID]++
		return e, next[e.RootID]
	})
}

// putEvents inserts n events with the numbers that event returns.
func (t *tx) putEvents(n int, event func(i int) (*access.Event, int64)) error {
	return t.execEach(`INSERT INTO access_events (`+eventColumns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
		n, func(i int) []any {
			e, seq := event(i)
			return []any{e.RootID, micros(e.Timestamp), seq, e.ID, e.OrgID, storable(e.User), storable(e.Action), storable(e.Status),
				storable(e.IP), storable(e.UserAgent), storable(e.Method), storable(e.Path), storable(e.RequestID), storable(e.APIKeyID)}
		}, nil)
}

// Claims from before senders were kept may be anybody's: see insertUsage.
const (
	insertClaim      = `INSERT INTO access_claims (root_id, sender, id, at) `
	insertNewClaim   = insertClaim + `VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`
	insertMoreClaims = insertClaim + `SELECT $1, $2, $3, $4 WHERE NOT EXISTS (SELECT 1 FROM access_claims AS c
		WHERE c.root_id = $1 AND c.sender = '' AND c.id = $3 AND c.org_id = $5) ON CONFLICT DO NOTHING`
)

func (t *tx) InsertAccessEvents(rootID, sender string, events []trail.IncomingEvent) (duplicates int64, err error) {
	// Taken first, the root's number also keeps two transactions from waiting
	// for each other's claims.
	seq, err := t.nextEvents(rootID, len(events))
	if err != nil {
		return 0, err
	}
	var named, fresh []int
	for i := range events {
		if events[i].Named {
			named = append(named, i)
		} else {
			fresh = append(fresh, i)
		}
	}
	text, args := insertNewClaim, 4
	switch err := t.queryRow(into(new(string)), `SELECT id FROM access_claims WHERE root_id = $1 AND sender = '' LIMIT 1`, rootID); {
	case err == nil:
		text, args = insertMoreClaims, 5
	case !errors.Is(err, org.ErrAbsent):
		return 0, err
	}
	err = t.execEach(text, len(named), func(i int) []any {
		e := &events[named[i]]
		return []any{rootID, sender, e.ID, micros(e.Timestamp), e.OrgID}[:args]
	}, func(i int, rows int64) error {
		if rows > 0 {
			fresh = append(fresh, named[i])
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	slices.Sort(fresh)
	return int64(len(events) - len(fresh)), t.putEvents(len(fresh), func(i int) (*access.Event, int64) {
		e := &events[fresh[i]].Event
		e.RootID = rootID
		return e, seq + int64(i) + 1
	})
}

func (t *tx) AccessRetention(rootID string) (*trail.AccessRetention, error) {
	r := trail.AccessRetention{RootID: rootID}
	var at int64
	err := t.queryRow(into(&r.Days, &at), `SELECT days, updated_at FROM access_retentions WHERE root_id = $1`, rootID)
	if err != nil {
		return nil, err
	}
	r.UpdatedAt = fromMicros(at)
	return &r, nil
}

func (t *tx) PutAccessRetention(r *trail.AccessRetention) error {
	_, err := t.exec(`INSERT INTO access_retentions (root_id, days, updated_at) VALUES ($1, $2, $3)
		ON CONFLICT (root_id) DO UPDATE SET days = excluded.days, updated_at = excluded.updated_at`, r.RootID, r.Days, micros(r.UpdatedAt))
	return err
}

func (t *tx) AccessRoots(after string, limit int) ([]string, error) {
	var ids []string
	err := t.query(func(r row) error {
		var id string
		err := r.Scan(&id)
		ids = append(ids, id)
		return err
	}, `SELECT root_id FROM access_heads WHERE root_id > $1 ORDER BY root_id LIMIT $2`, after, limit)
	return ids, err
}

func (t *tx) ExpireAccess(rootID string, events, claims time.Time, limit int) (int64, error) {
	n, err := expire[int64](t, `access_events`, `at, seq`, rootID, events, limit)
	if err != nil {
		return 0, err
	}
	c, err := expire[string](t, `access_claims`, `at, id`, rootID, claims, limit)
	return max(n, c), err
}

// expire removes the first limit rows of a root before a time, in the order of
// a key of a time and something of the type K. They are a stretch of an index,
// whose end is looked up first: the engines have no DELETE with a LIMIT.
func expire[K any](t *tx, table, key, rootID string, before time.Time, limit int) (int64, error) {
	var at int64
	var last K
	err := t.queryRow(into(&at, &last), `SELECT `+key+` FROM `+table+` WHERE root_id = $1 AND at < $2
		ORDER BY `+key+` LIMIT 1 OFFSET $3`, rootID, micros(before), limit-1)
	if errors.Is(err, org.ErrAbsent) {
		return t.exec(`DELETE FROM `+table+` WHERE root_id = $1 AND at < $2`, rootID, micros(before))
	} else if err != nil {
		return 0, err
	}
	return t.exec(`DELETE FROM `+table+` WHERE root_id = $1 AND at <= $2 AND (`+key+`) <= ($2, $3)`, rootID, at, last)
}

func storable(s string) string {
	for i := 0; i < len(s); i++ {
		if s[i] == 0 || s[i] >= 0x80 {
			return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
		}
	}
	return s
}

// touchKeys keeps the last use of each secret. Keys are touched in the order
// of their ids, so that two transactions rarely deadlock.
func (t *tx) touchKeys(uses []access.KeyUse) error {
	last := map[string]access.KeyUse{}
	lastOld := map[string]access.KeyUse{}
	for _, u := range uses {
		m := last
		if u.Old {
			m = lastOld
		}
		if have, ok := m[u.KeyID]; !ok || !u.At.Before(have.At) {
			m[u.KeyID] = u
		}
	}
	for _, side := range []struct {
		uses map[string]access.KeyUse
		text string
	}{
		{last, `UPDATE api_keys SET last_used_at = $2, last_used_ip = $3 WHERE id = $1 AND last_used_at < $2`},
		{lastOld, `UPDATE api_keys SET old_last_used_at = $2, old_last_used_ip = $3
			WHERE id = $1 AND old_last_used_at < $2 AND length(old_hash) > 0`},
	} {
		ids := make([]string, 0, len(side.uses))
		for id := range side.uses {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		err := t.execEach(side.text, len(ids), func(i int) []any {
			u := side.uses[ids[i]]
			return []any{u.KeyID, micros(u.At), storable(u.IP)}
		}, nil)
		if err != nil {
			return err
		}
	}
	return nil
}
