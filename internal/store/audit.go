package store

import (
	"fmt"
	"strings"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
)

const headColumns = `root_id, epoch, log_id, size, root_hash, hashes`

func scanHead(h *audit.Head) func(row) error {
	return func(r row) error {
		var root, hashes []byte
		if err := r.Scan(&h.RootID, &h.Epoch, &h.LogID, &h.Size, &root, &hashes); err != nil {
			return err
		}
		if len(root) != len(h.Root) || len(hashes)%len(h.Root) != 0 {
			return fmt.Errorf("the head of the audit log of %s is damaged", h.RootID)
		}
		copy(h.Root[:], root)
		h.Range = make([]audit.Hash, len(hashes)/len(h.Root))
		for i := range h.Range {
			copy(h.Range[i][:], hashes[i*len(h.Root):])
		}
		return nil
	}
}

func rangeBytes(hashes []audit.Hash) []byte {
	b := make([]byte, 0, len(hashes)*len(audit.Hash{}))
	for i := range hashes {
		b = append(b, hashes[i][:]...)
	}
	return b
}

func (t *tx) Lock(rootID string) (*audit.Head, error) {
	h := &audit.Head{}
	err := t.queryRow(scanHead(h), `SELECT `+headColumns+` FROM audit_heads WHERE root_id = $1 AND closed_at = 0 FOR UPDATE`, rootID)
	if err != nil {
		return nil, err
	}
	// What was read before the lock may have changed since.
	clear(t.read)
	t.noteLocked(rootID)
	return h, nil
}

func (t *tx) NewLog(head *audit.Head) error {
	err := t.queryRow(into(&head.Epoch), `SELECT coalesce(max(epoch), -1) + 1 FROM audit_heads WHERE root_id = $1`, head.RootID)
	if err != nil {
		return err
	}
	t.noteLocked(head.RootID)
	_, err = t.exec(`INSERT INTO audit_heads (`+headColumns+`, closed_at) VALUES ($1, $2, $3, $4, $5, $6, 0)`,
		head.RootID, head.Epoch, head.LogID, head.Size, head.Root[:], rangeBytes(head.Range))
	return err
}

// AppendAudit also appends to a log that was closed in the same transaction:
// the purge of a root is its log's last entry.
func (t *tx) AppendAudit(head *audit.Head, records []audit.Record) error {
	n, err := t.exec(`UPDATE audit_heads SET size = $3, root_hash = $4, hashes = $5
		WHERE root_id = $1 AND epoch = $2 AND size = $6`,
		head.RootID, head.Epoch, head.Size, head.Root[:], rangeBytes(head.Range), head.Size-int64(len(records)))
	if err != nil {
		return err
	}
	if n == 0 {
		return org.ErrStale
	}
	err = t.execEach(`INSERT INTO audit_entries (root_id, epoch, seq, id, at, org_id, path, action, actor_id, leaf, leaf_hash)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		len(records), func(i int) []any {
			r := &records[i]
			return []any{r.RootID, r.Epoch, r.Seq, r.ID, micros(r.Timestamp), r.OrgID, r.Path, r.Action, r.ActorID, r.Leaf, r.LeafHash[:]}
		}, nil)
	if err != nil {
		return err
	}
	return t.execEach(`INSERT INTO audit_values (root_id, epoch, seq, content) VALUES ($1, $2, $3, $4)`,
		len(records), func(i int) []any {
			r := &records[i]
			return []any{r.RootID, r.Epoch, r.Seq, string(r.Values)}
		}, nil)
}

// epochBits is where an audit position holds the epoch, counted from the
// first one of the log. The position of an entry of a log with one epoch is
// thus its seq.
const epochBits = 40

func (t *tx) AuditEntries(q org.AuditQuery) (org.AuditPage, error) {
	page := org.AuditPage{Next: -1}
	var first, last int64
	err := t.queryRow(into(&first, &last), `SELECT coalesce(min(epoch), -1), coalesce(max(epoch), -1) FROM audit_heads
		WHERE root_id = $1 AND log_id = (SELECT log_id FROM audit_heads WHERE root_id = $1 AND closed_at = 0)`, q.RootID)
	if err != nil || first < 0 {
		return page, err
	}
	split := func(position int64) (epoch, seq int64) {
		return first + position>>epochBits, position & (1<<epochBits - 1)
	}
	join := func(epoch, seq int64) int64 { return (epoch-first)<<epochBits | seq }

	w := &window{
		columns: `root_id, epoch, seq, id, at, org_id, path, action, actor_id, leaf, leaf_hash`,
		from:    `audit_entries AS a`,
		order:   `epoch DESC, seq DESC`,
		key:     `epoch, seq`,
		result: `root_id, epoch, seq, id, at, org_id, path, action, actor_id, leaf, leaf_hash,
			coalesce((SELECT content FROM audit_values AS v WHERE v.root_id = e.root_id AND v.epoch = e.epoch AND v.seq = e.seq), '')`,
	}
	w.bound(`root_id = ` + w.arg(q.RootID))
	if q.Org != "" {
		w.bound(`org_id = ` + w.arg(q.Org))
	}
	if q.Scope == org.ScopeSelf {
		w.bound(`org_id = ` + w.arg(q.OrgID))
	}
	if q.Ascending {
		w.order = `epoch, seq`
		epoch, seq := split(q.After)
		w.bound(`(epoch, seq) >= (` + w.arg(epoch) + `, ` + w.arg(seq) + `) AND epoch <= ` + w.arg(last))
	} else {
		epoch, seq := last+1, int64(0)
		if q.Before > 0 {
			epoch, seq = split(q.Before)
		}
		w.bound(`(epoch, seq) < (` + w.arg(epoch) + `, ` + w.arg(seq) + `) AND epoch >= ` + w.arg(first))
	}

	whole := q.Path == q.RootID+"/" // of the root: every entry of the log
	switch q.Scope {
	case org.ScopeSelf:
	case org.ScopeChildren:
		slashes := strings.Count(q.Path, "/") + 1
		w.want(`path >= ` + w.arg(q.Path) + ` AND path < ` + w.arg(subtreeEnd(q.Path)) +
			` AND length(path) - length(replace(path, '/', '')) = ` + w.arg(slashes))
	case org.ScopeDescendants:
		w.want(`path > ` + w.arg(q.Path) + ` AND path < ` + w.arg(subtreeEnd(q.Path)))
	default:
		// What happened to the organization itself stays its own history
		// after a move, as with ScopeSelf.
		if !whole {
			w.want(`(path >= ` + w.arg(q.Path) + ` AND path < ` + w.arg(subtreeEnd(q.Path)) + ` OR org_id = ` + w.arg(q.OrgID) + `)`)
		}
	}
	if !q.From.IsZero() {
		w.want(`at >= ` + w.arg(micros(q.From)))
	}
	if !q.To.IsZero() {
		w.want(`at < ` + w.arg(micros(q.To)))
	}
	if q.Action != "" {
		w.want(`action = ` + w.arg(q.Action))
	}
	if q.Actor != "" {
		w.want(`actor_id = ` + w.arg(q.Actor))
	}

	var epoch, seq int64
	more, err := t.page(w, q.Limit, func(r row) error {
		var rec audit.Record
		var at int64
		var hash []byte
		var values string
		err := r.Scan(&rec.RootID, &rec.Epoch, &rec.Seq, &rec.ID, &at, &rec.OrgID, &rec.Path, &rec.Action, &rec.ActorID,
			&rec.Leaf, &hash, &values)
		if err != nil {
			return err
		}
		rec.Timestamp = fromMicros(at)
		copy(rec.LeafHash[:], hash)
		if values != "" {
			rec.Values = []byte(values)
		}
		page.Records = append(page.Records, rec)
		epoch, seq = rec.Epoch, rec.Seq
		return nil
	}, into(&epoch, &seq))
	switch {
	case err != nil || !more:
	case q.Ascending:
		page.Next = join(epoch, seq) + 1
	case join(epoch, seq) > 0: // nothing comes before position 0
		page.Next = join(epoch, seq)
	}
	return page, err
}
