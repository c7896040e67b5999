package store

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/trail"
	"github.com/orgd/orgd/internal/usage"
)

// likeEscaper escapes the patterns of LIKE … ESCAPE '!'.
var likeEscaper = strings.NewReplacer("!", "!!", "%", "!%", "_", "!_")

// holding returns a condition on texts: one of them contains the needle, which
// is in lower case, whatever the case of ASCII letters in the text.
func (w *window) holding(needle string, texts ...string) string {
	pattern := w.arg("%" + likeEscaper.Replace(needle) + "%")
	condition := ""
	for i, text := range texts {
		if i > 0 {
			condition += ` OR `
		}
		condition += `lower(` + text + `) LIKE ` + pattern + ` ESCAPE '!'`
	}
	return `(` + condition + `)`
}

// Where an erasure looks for its subject. The ids of organizations and events are
// chosen by people.
var (
	keyTexts   = tableOf("api_keys").searched()
	orgTexts   = append([]string{`id`}, tableOf("orgs").searched()...)
	eventTexts = append([]string{`id`}, tableOf("access_events").searched()...)
)

func (t *tx) PutAuditValues(rootID string, records []audit.Record) error {
	if len(records) == 0 {
		return nil
	}
	head, err := t.Head(rootID, "", 0)
	if err != nil {
		return err
	}
	return t.execEach(`UPDATE audit_values SET content = $4 WHERE root_id = $1 AND epoch = $2 AND seq = $3`,
		len(records), func(i int) []any {
			r := &records[i]
			return []any{rootID, head.Ordinal + r.Epoch, r.Seq, string(r.Values)}
		}, oneRow)
}

func (t *tx) BlankReasons(adjustments []usage.Adjustment) error {
	return t.execEach(`UPDATE usage_adjustments SET reason = '' WHERE root_id = $1 AND org_id = $2 AND id = $3`,
		len(adjustments), func(i int) []any {
			a := &adjustments[i]
			return []any{a.RootID, a.OrgID, a.ID}
		}, nil)
}

func (t *tx) AccessEvent(rootID string, at time.Time, seq int64) (e access.Event, err error) {
	err = t.queryRow(func(r row) (err error) {
		e, err = scanEvent(r)
		return err
	}, `SELECT `+eventColumns+` FROM access_events WHERE root_id = $1 AND at = $2 AND seq = $3`, rootID, micros(at), seq)
	return e, err
}

func (t *tx) PutAccessEvents(events []access.Event) error {
	return t.execEach(`UPDATE access_events SET user_name = $4, ip = $5, user_agent = $6, path = $7, request_id = $8
		WHERE root_id = $1 AND at = $2 AND seq = $3`,
		len(events), func(i int) []any {
			e := &events[i]
			return []any{e.RootID, micros(e.Timestamp), e.Seq, e.User, e.IP, e.UserAgent, e.Path, e.RequestID}
		}, oneRow)
}

func (t *tx) PutKeyUse(keys []*key.Key) error {
	return t.execEach(`UPDATE api_keys SET last_used_ip = $2, old_last_used_ip = $3, name = $4 WHERE id = $1`,
		len(keys), func(i int) []any {
			k, oldIP := keys[i], ""
			if k.Old != nil {
				oldIP = k.Old.LastUsedIP
			}
			return []any{k.ID, k.LastUsedIP, oldIP, k.Name}
		}, oneRow)
}

// oneRow is for updates of rows that were read in the same transaction.
func oneRow(_ int, rows int64) error {
	if rows != 1 {
		return org.ErrStale
	}
	return nil
}

func (t *tx) KeysHolding(q trail.HoldingQuery) (keys []*key.Key, next []string, err error) {
	w := &window{columns: keyColumns, from: `api_keys AS k`, order: `org_id, id`, key: `org_id, id`, result: keyColumns, maxBytes: q.MaxBytes}
	w.bound(`root_id = ` + w.arg(q.RootID))
	if q.Self {
		w.bound(`org_id = ` + w.arg(q.OrgID))
	}
	if len(q.After) == 2 {
		w.bound(`(org_id, id) > (` + w.arg(q.After[0]) + `, ` + w.arg(q.After[1]) + `)`)
	}
	if !q.Self && q.Path != q.RootID+"/" {
		w.want(`EXISTS (SELECT 1 FROM orgs AS o WHERE o.root_id = e.root_id AND o.id = e.org_id
			AND o.path >= ` + w.arg(q.Path) + ` AND o.path < ` + w.arg(subtreeEnd(q.Path)) + `)`)
	}
	w.want(w.holding(q.Needle, keyTexts...))
	var orgID, id string
	more, err := t.page(w, q.Limit, func(r row) error {
		k, err := scanKey(r)
		if err != nil {
			return err
		}
		w.take(keySize(k))
		keys, orgID, id = append(keys, k), k.OrgID, k.ID
		return nil
	}, into(&orgID, &id))
	if more {
		next = []string{orgID, id}
	}
	return keys, next, err
}

func (t *tx) OrgsHolding(q trail.HoldingQuery) (orgs []*org.Organization, next []string, err error) {
	w := &window{columns: orgColumns, from: `orgs AS o`, order: `path`, key: `path`, result: orgColumns, maxBytes: q.MaxBytes, bytes: orgBytes}
	w.bound(`root_id = ` + w.arg(q.RootID))
	if q.Self {
		w.bound(`path = ` + w.arg(q.Path))
	} else {
		w.bound(`path >= ` + w.arg(q.Path) + ` AND path < ` + w.arg(subtreeEnd(q.Path)))
	}
	if len(q.After) == 1 {
		w.bound(`path > ` + w.arg(q.After[0]))
	}
	w.want(`deleted_at <> 1`)
	w.want(w.holding(q.Needle, orgTexts...))
	var path string
	more, err := t.page(w, q.Limit, func(r row) error {
		o, _, size, err := scanSized(r)
		if err != nil {
			return err
		}
		w.take(size)
		orgs, path = append(orgs, o), o.Path
		return nil
	}, into(&path))
	if more {
		next = []string{path}
	}
	return orgs, next, err
}

// scrubTimeout bounds how long Scrub waits for readers of old snapshots.
const scrubTimeout = 15 * time.Second

// scrubBusy is how long a checkpoint waits for readers, and writers for it.
const scrubBusy = 250 * time.Millisecond

// Scrub implements trail.Store.
func (s *Store) Scrub(ctx context.Context) error { return s.engine.scrub(ctx) }

// scrub copies the write-ahead log into the database and empties it: older
// versions of pages are in no file then. What rows and pages no longer hold is
// overwritten with zeros as they change (secure_delete).
func (e *sqliteEngine) scrub(ctx context.Context) error {
	e.closing.RLock()
	defer e.closing.RUnlock()
	if e.closed {
		return errClosed()
	}
	c, err := openSQLite(e.uri, false)
	if err != nil {
		return sqliteProblem(err)
	}
	defer c.close()
	ctx, cancel := context.WithTimeout(ctx, scrubTimeout)
	defer cancel()
	for {
		busy, err := e.emptyWAL(c)
		if err != nil {
			return sqliteProblem(err)
		}
		if !busy {
			return nil
		}
		select {
		case <-ctx.Done():
			return sqliteProblem(errors.Join(errBusyScrub, ctx.Err()))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (e *sqliteEngine) emptyWAL(c *sqliteConn) (busy bool, err error) {
	e.checkpoints.Lock()
	defer e.checkpoints.Unlock()
	if err := e.disk.sound(); err != nil {
		return false, err
	}
	return c.emptyWAL(scrubBusy)
}

var errBusyScrub = errors.New("the write-ahead log is in use and could not be emptied")

// scrub does nothing: old versions of rows and the write-ahead log are the
// database server's.
func (e *postgresEngine) scrub(context.Context) error { return nil }
