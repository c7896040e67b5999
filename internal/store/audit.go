package store

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/evidence"
	"github.com/orgd/orgd/internal/org"
)

const headColumns = `root_id, epoch, log_epoch, log_id, size, root_hash, hashes`

func scanHead(h *audit.Head) func(row) error {
	return func(r row) error {
		var root, hashes []byte
		if err := r.Scan(&h.RootID, &h.Ordinal, &h.Epoch, &h.LogID, &h.Size, &root, &hashes); err != nil {
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

const (
	lockHead = `SELECT ` + headColumns + ` FROM audit_heads WHERE root_id = $1 AND closed_at = 0 FOR UPDATE`
	moveHead = `UPDATE audit_heads SET size = $3, root_hash = $4, hashes = $5 WHERE root_id = $1 AND epoch = $2 AND size = $6`
)

// groupHeads are the heads of the logs that changes of one transaction have
// appended to, by root. Many changes move the head of one log. On SQLite it is
// written for the first of them, which shows that it was not stale, and then not
// again until it has to be; on PostgreSQL, where it was read under the root's lock,
// once.
type groupHeads map[string]*groupHead

type groupHead struct {
	audit.Head
	stored int64 // the size in the database
}

// write writes the heads that are not as the database has them, and forgets
// all.
func (heads groupHeads) write(c conn) error {
	for _, h := range heads {
		if h.Size == h.stored {
			continue
		}
		err := c.later(statement{text: moveHead, must: true,
			args: []any{h.RootID, h.Ordinal, h.Size, h.Root[:], rangeBytes(h.Range), h.stored}})
		if errors.Is(err, org.ErrStale) {
			return fmt.Errorf("the head of the audit log of %s is not where its entries begin", h.RootID)
		}
		if err != nil {
			return err
		}
	}
	clear(heads)
	return nil
}

// settle writes the heads before a statement that looks at them. After one that
// writes to them, the transaction stores the heads that it moves itself: it may
// have closed a log, which nobody may lock any more. lockHead and moveHead are
// used here for roots that heads does not have.
func (t *tx) settle(text string, writes bool) error {
	if t.heads == nil || text == lockHead || text == moveHead || !strings.Contains(text, "audit_heads") {
		return nil
	}
	err := t.heads.write(t.conn)
	if writes {
		t.heads = nil
	}
	return err
}

func (t *tx) Lock(rootID string) (*audit.Head, error) {
	h := &audit.Head{}
	last := t.heads[rootID]
	if last != nil {
		*h = last.Head
	}
	if t.wanted != nil {
		if err := t.lockAhead(scanHead(h), rootID, last != nil); err != nil {
			return nil, err
		}
	} else if last == nil {
		if err := t.queryRow(scanHead(h), lockHead, rootID); err != nil {
			return nil, err
		}
	}
	// What was read before the lock may have changed since.
	clear(t.read)
	t.noteLocked(rootID)
	return h, nil
}

func (t *tx) LastAudit(rootID string) (time.Time, error) {
	var at int64
	err := t.queryRow(into(&at), `SELECT at FROM audit_entries WHERE root_id = $1 ORDER BY epoch DESC, seq DESC LIMIT 1`, rootID)
	return fromMicros(at), err
}

func (t *tx) NewLog(head *audit.Head) error {
	err := t.queryRow(into(&head.Ordinal), `SELECT coalesce(max(epoch), -1) + 1 FROM audit_heads WHERE root_id = $1`, head.RootID)
	if err != nil {
		return err
	}
	t.noteLocked(head.RootID)
	_, err = t.exec(`INSERT INTO audit_heads (`+headColumns+`, closed_at) VALUES ($1, $2, $3, $4, $5, $6, $7, 0)`,
		head.RootID, head.Ordinal, head.Epoch, head.LogID, head.Size, head.Root[:], rangeBytes(head.Range))
	return err
}

func (t *tx) CloseLog(head *audit.Head, at time.Time) error {
	n, err := t.exec(`UPDATE audit_heads SET closed_at = $3 WHERE root_id = $1 AND epoch = $2 AND closed_at = 0`,
		head.RootID, head.Ordinal, micros(at))
	if err == nil && n == 0 {
		err = org.ErrStale
	}
	return err
}

// AppendAudit also appends to a log that was closed in the same transaction:
// the purge of a root is its log's last entry.
func (t *tx) AppendAudit(head *audit.Head, records []audit.Record) error {
	defer t.leavesTree(t.writes)
	before := head.Size - int64(len(records))
	last := t.heads[head.RootID]
	if last == nil && t.heads != nil && t.d.sendsAhead {
		last = &groupHead{stored: before}
	} else if last == nil {
		err := t.execOne(moveHead, head.RootID, head.Ordinal, head.Size, head.Root[:], rangeBytes(head.Range), before)
		if err != nil {
			return err
		}
		last = &groupHead{stored: head.Size}
	} else if last.Ordinal != head.Ordinal || last.Size != before {
		return org.ErrStale
	}
	err := t.execEach(`INSERT INTO audit_entries (root_id, epoch, seq, id, at, org_id, path, action, actor_id, leaf, leaf_hash)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		len(records), func(i int) []any {
			r := &records[i]
			return []any{r.RootID, head.Ordinal, r.Seq, r.ID, micros(r.Timestamp), r.OrgID, r.Path, r.Action, r.ActorID, r.Leaf, r.LeafHash[:]}
		}, nil)
	if err != nil {
		return err
	}
	err = t.execEach(`INSERT INTO audit_values (root_id, epoch, seq, content) VALUES ($1, $2, $3, $4)`,
		len(records), func(i int) []any {
			r := &records[i]
			return []any{r.RootID, head.Ordinal, r.Seq, string(r.Values)}
		}, nil)
	if err != nil {
		return err
	}
	for i := range records {
		r := &records[i]
		err := t.execEach(`INSERT INTO audit_tiles (root_id, epoch, level, place, hash) VALUES ($1, $2, $3, $4, $5)`,
			len(r.Tiles), func(k int) []any {
				return []any{r.RootID, head.Ordinal, k + 1, r.Seq >> (audit.TileHeight * (k + 1)), r.Tiles[k][:]}
			}, nil)
		if err != nil {
			return err
		}
	}
	if t.heads != nil {
		last.Head = *head
		t.heads[head.RootID] = last
	}
	return nil
}

func (t *tx) Head(rootID, logID string, epoch int64) (*audit.Head, error) {
	text, args := `SELECT `+headColumns+` FROM audit_heads WHERE root_id = $1`, []any{rootID}
	if logID == "" {
		text += ` AND log_id = (SELECT log_id FROM audit_heads WHERE root_id = $1 AND closed_at = 0)`
	} else {
		args = append(args, logID)
		text += ` AND log_id = $2`
	}
	if epoch >= 0 {
		args = append(args, epoch)
		text += ` AND log_epoch = $` + strconv.Itoa(len(args))
	}
	h := &audit.Head{}
	return h, t.queryRow(scanHead(h), text+` ORDER BY epoch DESC LIMIT 1`, args...)
}

func (t *tx) LogHashes(head *audit.Head, level int, from, to int64) ([]audit.Hash, error) {
	text := `SELECT leaf_hash FROM audit_entries WHERE root_id = $1 AND epoch = $2 AND seq >= $3 AND seq < $4 ORDER BY seq`
	args := []any{head.RootID, head.Ordinal, from, to}
	if level > 0 {
		text = `SELECT hash FROM audit_tiles WHERE root_id = $1 AND epoch = $2 AND level = $5 AND place >= $3 AND place < $4 ORDER BY place`
		args = append(args, level)
	}
	hashes := make([]audit.Hash, 0, to-from)
	err := t.query(func(r row) error {
		var b []byte
		if err := r.Scan(&b); err != nil {
			return err
		}
		if len(b) != len(audit.Hash{}) {
			return fmt.Errorf("a hash of the audit log of %s is damaged", head.RootID)
		}
		hashes = append(hashes, audit.Hash(b))
		return nil
	}, text, args...)
	return hashes, err
}

func (t *tx) Leaves(head *audit.Head, from, to int64) ([][]byte, error) {
	var leaves [][]byte
	err := t.query(func(r row) error {
		var b []byte
		err := r.Scan(&b)
		leaves = append(leaves, b)
		return err
	}, `SELECT leaf FROM audit_entries WHERE root_id = $1 AND epoch = $2 AND seq >= $3 AND seq < $4 ORDER BY seq`,
		head.RootID, head.Ordinal, from, to)
	return leaves, err
}

func (t *tx) Signature(head *audit.Head) (*evidence.Signature, error) {
	s := &evidence.Signature{}
	var signedAt, oldUntil int64
	err := t.queryRow(into(&s.Size, &s.Checkpoint, &signedAt, &s.Keys.Now.Seed, &s.Keys.Now.Version,
		&s.Keys.Old.Seed, &s.Keys.Old.Version, &oldUntil),
		`SELECT size, content, signed_at, key_seed, key_version, old_seed, old_version, old_until
		FROM audit_checkpoints WHERE root_id = $1 AND epoch = $2`, head.RootID, head.Ordinal)
	if err != nil {
		return nil, err
	}
	s.SignedAt, s.Keys.OldUntil = fromMicros(signedAt), optionalUTC(oldUntil)
	return s, nil
}

// optionalUTC is the time that a column holds in which 0 stands for none.
func optionalUTC(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return fromMicros(n)
}

func (t *tx) PutSignature(head *audit.Head, s *evidence.Signature) error {
	until := int64(0)
	if !s.Keys.OldUntil.IsZero() {
		until = micros(s.Keys.OldUntil)
	}
	n, err := t.exec(`INSERT INTO audit_checkpoints
		(root_id, epoch, size, content, signed_at, key_seed, key_version, old_seed, old_version, old_until)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
		ON CONFLICT (root_id, epoch) DO UPDATE SET size = excluded.size, content = excluded.content, signed_at = excluded.signed_at
		WHERE audit_checkpoints.size < excluded.size
			AND audit_checkpoints.key_seed = excluded.key_seed AND audit_checkpoints.key_version = excluded.key_version`,
		head.RootID, head.Ordinal, s.Size, notNil(s.Checkpoint), micros(s.SignedAt),
		s.Keys.Now.Seed, s.Keys.Now.Version, s.Keys.Old.Seed, s.Keys.Old.Version, until)
	if err == nil && n == 0 {
		err = org.ErrStale
	}
	return err
}

func (t *tx) PutKeys(head *audit.Head, keys evidence.LogKeys) error {
	until := int64(0)
	if !keys.OldUntil.IsZero() {
		until = micros(keys.OldUntil)
	}
	n, err := t.exec(`UPDATE audit_checkpoints SET key_seed = $3, key_version = $4, old_seed = $5, old_version = $6, old_until = $7
		WHERE root_id = $1 AND epoch = $2`,
		head.RootID, head.Ordinal, keys.Now.Seed, keys.Now.Version, keys.Old.Seed, keys.Old.Version, until)
	if err == nil && n == 0 {
		err = org.ErrAbsent
	}
	return err
}

func (t *tx) PutCosignatures(head *audit.Head, size int64, checkpoint []byte) error {
	n, err := t.exec(`UPDATE audit_checkpoints SET content = $4 WHERE root_id = $1 AND epoch = $2 AND size = $3`,
		head.RootID, head.Ordinal, size, checkpoint)
	if err == nil && n == 0 {
		err = org.ErrStale
	}
	return err
}

func (t *tx) UnsignedHeads(rootID string, after *audit.Head, limit int) ([]*audit.Head, error) {
	text, args := `SELECT `+headColumns+` FROM audit_heads AS h WHERE `, []any{int64(limit)}
	if rootID != "" {
		args = append(args, rootID)
		text += `root_id = $2 AND `
	} else if after != nil {
		args = append(args, after.RootID, after.Ordinal)
		text += `(root_id, epoch) > ($2, $3) AND `
	}
	var heads []*audit.Head
	err := t.query(func(r row) error {
		h := &audit.Head{}
		heads = append(heads, h)
		return scanHead(h)(r)
	}, text+`size > coalesce((SELECT c.size FROM audit_checkpoints AS c WHERE c.root_id = h.root_id AND c.epoch = h.epoch), 0)
		AND NOT EXISTS (SELECT 1 FROM audit_heads AS n WHERE n.root_id = h.root_id AND n.epoch > h.epoch AND n.log_id = h.log_id)
		ORDER BY root_id, epoch LIMIT $1`, args...)
	return heads, err
}

const (
	recordColumns = recordPlace + `, leaf, leaf_hash`
	recordPlace   = `root_id, epoch, seq, id, at, org_id, path, action, actor_id`
	// recordLeaf is the rest of the entry e, of which a window has only the
	// place.
	recordLeaf = `(SELECT leaf` + ofEntry + `, (SELECT leaf_hash` + ofEntry
	ofEntry    = ` FROM audit_entries AS l WHERE l.root_id = e.root_id AND l.epoch = e.epoch AND l.seq = e.seq)`
)

func (t *tx) SignedHeads(since time.Time, limit int) ([]*audit.Head, error) {
	var heads []*audit.Head
	err := t.query(func(r row) error {
		h := &audit.Head{}
		heads = append(heads, h)
		return scanHead(h)(r)
	}, `SELECT h.root_id, h.epoch, h.log_epoch, h.log_id, h.size, h.root_hash, h.hashes
		FROM audit_checkpoints AS c JOIN audit_heads AS h ON h.root_id = c.root_id AND h.epoch = c.epoch
		WHERE c.signed_at >= $1 ORDER BY c.signed_at LIMIT $2`, micros(since), int64(limit))
	return heads, err
}

// recordValues is the expression for the values of the entry e.
const recordValues = `coalesce((SELECT content FROM audit_values AS v
	WHERE v.root_id = e.root_id AND v.epoch = e.epoch AND v.seq = e.seq), '')`

// valuesLength is the length of recordValues in bytes, which is known without
// reading them, and recordOverhead about what the rest of a record takes.
const (
	valuesLength = `coalesce((SELECT octet_length(content) FROM audit_values AS v
	WHERE v.root_id = e.root_id AND v.epoch = e.epoch AND v.seq = e.seq), 0)`
	recordOverhead = 300
)

// scanRecord scans recordColumns and recordValues. The first epoch of the log
// has the number first.
func scanRecord(rec *audit.Record, first int64) func(row) error {
	return func(r row) error {
		var at int64
		var hash []byte
		var values string
		err := r.Scan(&rec.RootID, &rec.Epoch, &rec.Seq, &rec.ID, &at, &rec.OrgID, &rec.Path, &rec.Action, &rec.ActorID,
			&rec.Leaf, &hash, &values)
		if err != nil {
			return err
		}
		rec.Epoch -= first
		rec.Timestamp = fromMicros(at)
		copy(rec.LeafHash[:], hash)
		if values != "" {
			rec.Values = []byte(values)
		}
		return nil
	}
}

func (t *tx) AuditEntry(rootID, id string) (*audit.Record, error) {
	head, err := t.Head(rootID, "", 0)
	if err != nil {
		return nil, err
	}
	rec := &audit.Record{}
	return rec, t.queryRow(scanRecord(rec, head.Ordinal), `SELECT `+recordColumns+`, `+recordValues+` FROM audit_entries AS e
		WHERE root_id = $1 AND id = $2 AND epoch >= $3`, rootID, id, head.Ordinal)
}

// epochs returns the ordinals of the first and the last epoch of a root's open
// log, -1 without one.
func (t *tx) epochs(rootID string) (first, last int64, err error) {
	err = t.queryRow(into(&first, &last), `SELECT coalesce(min(epoch), -1), coalesce(max(epoch), -1) FROM audit_heads
		WHERE root_id = $1 AND log_id = (SELECT log_id FROM audit_heads WHERE root_id = $1 AND closed_at = 0)`, rootID)
	return first, last, err
}

func (t *tx) AuditEntries(q org.AuditQuery) (org.AuditPage, error) {
	page := org.AuditPage{Next: -1}
	first, last, err := t.epochs(q.RootID)
	if err != nil || first < 0 {
		return page, err
	}
	split := func(position int64) (epoch, seq int64) {
		return first + position>>org.EpochBits, position & (1<<org.EpochBits - 1)
	}
	join := func(epoch, seq int64) int64 { return org.AuditPosition(epoch-first, seq) }

	w := &window{
		columns: recordColumns,
		from:    `audit_entries AS a`,
		order:   `epoch DESC, seq DESC`,
		key:     `epoch, seq`,

		maxBytes: q.MaxBytes,
		bytes:    `(octet_length(leaf) + ` + valuesLength + `)`,
	}
	if q.SmallValues > 0 {
		w.bytes = `octet_length(leaf)`
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
	if q.Noun != "" {
		// '/' follows '.'.
		w.want(`action >= ` + w.arg(q.Noun+".") + ` AND action < ` + w.arg(q.Noun+"/"))
	}
	if q.Actor != "" {
		w.want(`actor_id = ` + w.arg(q.Actor))
	}

	if q.Holding != "" {
		w.want(w.holding(q.Holding, `text_of(leaf)`, recordValues))
	}

	columns := recordColumns
	if len(w.filter) > 0 && q.Holding == "" && !t.d.sendsAhead {
		// SQLite would read the leaves of all entries that the filter looks at.
		w.columns, columns = recordPlace, recordPlace+`, `+recordLeaf
	}
	w.result = columns + `, ` + recordValues
	if q.SmallValues > 0 {
		w.result = columns + `, coalesce((SELECT CASE WHEN octet_length(content) <= ` + w.arg(int64(q.SmallValues)) + ` THEN content ELSE '' END
			FROM audit_values AS v WHERE v.root_id = e.root_id AND v.epoch = e.epoch AND v.seq = e.seq), '')`
	}

	var epoch, seq int64
	more, err := t.page(w, q.Limit, func(r row) error {
		var rec audit.Record
		if err := scanRecord(&rec, first)(r); err != nil {
			return err
		}
		w.take(recordOverhead + len(rec.Leaf) + len(rec.Values))
		page.Records = append(page.Records, rec)
		epoch, seq = first+rec.Epoch, rec.Seq
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
