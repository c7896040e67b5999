package store

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
)

// MaxScan is the greatest number of rows that one page looks at, however few
// of them its filter lets through.
const MaxScan = 5000

// row is one row of a result.
type row interface {
	// Scan copies the columns into *string, *int64, *int and *[]byte.
	Scan(dest ...any) error
}

// conn is a connection to an engine within a transaction. The SQL texts are
// those of the dialect's doc comment. Arguments are strings, int64s, ints and
// non-nil []bytes.
type conn interface {
	// exec runs a statement and returns the number of rows that it changed.
	exec(text string, args ...any) (int64, error)
	// execEach runs a statement n times in turn, each time with the arguments
	// that args returns, and passes on how many rows each run changed. If nobody
	// wants to know, it is later for each of them.
	execEach(text string, n int, args func(i int) []any, changed func(i int, rows int64) error) error
	// later runs a statement now or with one of the next, at the latest with the
	// commit, which is not made if it fails.
	later(s statement) error
	// query calls scan for each row of the result.
	query(scan func(row) error, text string, args ...any) error
}

// statement is one whose answer is not needed at once.
type statement struct {
	text string
	args []any
	// must says that the statement has to change a row: org.ErrStale otherwise.
	must bool
	// answered gets the rows of a query; nil if the statement is none.
	answered func(row) error
}

// tx implements org.Tx. It is used by one goroutine.
type tx struct {
	conn conn
	d    *dialect
	err  error // the first error of the engine: it fails the transaction
	// ctx ends the transaction between rows once it is done; nil for never.
	ctx context.Context

	locked []string          // the roots whose trees this transaction may change
	rows   []string          // the organizations whose rows UpdateOrg has changed
	writes int               // statements that write
	light  int               // those of them that change no generation of a tree
	read   map[string]stored // organizations as they were read; nil outside Write
	heads  groupHeads        // nil where each change stores the heads that it moves
	// unchanged is TreeUnchanged for what others have changed; nil where that
	// is not known.
	unchanged func(rootID string, generation uint64) bool
	trace     func(text string) // nil for none; see Store.Trace
	wanted    *ahead            // what is to be read with the next Lock
	had       *ahead            // what was read with the last one
}

// stored is what is indexed of an organization, and the version it belongs to.
type stored struct {
	version             int64
	nameKey, externalID string
	tags                string // as JSON
}

var _ org.Tx = (*tx)(nil)

func (t *tx) fail(err error) error {
	if err != nil && t.err == nil {
		t.err = err
	}
	return err
}

func (t *tx) traces(text string) {
	if t.trace != nil {
		t.trace(text)
	}
}

func (t *tx) exec(text string, args ...any) (int64, error) {
	if t.err != nil {
		return 0, t.err
	}
	t.traces(text)
	if err := t.settle(text, true); err != nil {
		return 0, t.fail(err)
	}
	t.writes++
	t.had = nil
	n, err := t.conn.exec(text, args...)
	return n, t.fail(err)
}

func (t *tx) execEach(text string, n int, args func(i int) []any, changed func(i int, rows int64) error) error {
	if t.err != nil {
		return t.err
	}
	t.traces(text)
	if err := t.settle(text, true); err != nil {
		return t.fail(err)
	}
	t.writes++
	t.had = nil
	if changed == nil {
		return t.fail(t.conn.execEach(text, n, args, nil))
	}
	var own error // an error of changed is not one of the engine
	err := t.conn.execEach(text, n, args, func(i int, rows int64) error {
		if own == nil {
			own = changed(i, rows)
		}
		return own
	})
	if own != nil {
		return own
	}
	return t.fail(err)
}

// execOne is org.ErrStale, now or later, if the statement changes no row.
func (t *tx) execOne(text string, args ...any) error {
	if t.err != nil {
		return t.err
	}
	t.traces(text)
	if err := t.settle(text, true); err != nil {
		return t.fail(err)
	}
	t.writes++
	t.had = nil
	err := t.conn.later(statement{text: text, args: args, must: true})
	if errors.Is(err, org.ErrStale) {
		return err
	}
	return t.fail(err)
}

func (t *tx) query(scan func(row) error, text string, args ...any) error {
	if t.err != nil {
		return t.err
	}
	t.traces(text)
	if err := t.settle(text, false); err != nil {
		return t.fail(err)
	}
	var gone error // neither an error of the engine nor one of scan
	if t.ctx != nil {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		next := scan
		scan = func(r row) error {
			if gone = t.ctx.Err(); gone != nil {
				return errEnough
			}
			return next(r)
		}
	}
	err := t.conn.query(scan, text, args...)
	if err == errEnough {
		return gone
	}
	return t.fail(err)
}

// errEnough is what a scan function returns to see no further row.
var errEnough = errors.New("no further row is wanted")

// queryRow scans the only row of a result; org.ErrAbsent if there is none.
func (t *tx) queryRow(scan func(row) error, text string, args ...any) error {
	found := false
	err := t.query(func(r row) error {
		found = true
		return scan(r)
	}, text, args...)
	if err == nil && !found {
		return org.ErrAbsent
	}
	return err
}

func (t *tx) noteLocked(rootID string) {
	for _, id := range t.locked {
		if id == rootID {
			return
		}
	}
	t.locked = append(t.locked, rootID)
}

// ahead is what is read in the same round trip as a lock is taken, and after it.
type ahead struct {
	keyID string // empty for no key
	key   *key.Key
	ids   [2]string // of organizations
	orgs  map[string]*storedOrg
}

// storedOrg is an organization with its tags as they are stored.
type storedOrg struct {
	*org.Organization
	tags string
}

func (t *tx) Ahead(keyID string, orgIDs [2]string) {
	if t.d.sendsAhead {
		t.wanted = &ahead{keyID: keyID, ids: orgIDs}
	}
}

// lockAhead locks the head of a root's log, unless that is done, and reads what is
// wanted.
func (t *tx) lockAhead(scan func(row) error, rootID string, locked bool) (err error) {
	w := t.wanted
	t.wanted = nil
	found := locked
	if !locked {
		t.traces(lockHead)
		err = t.conn.later(statement{text: lockHead, args: []any{rootID}, answered: func(r row) error {
			found = true
			return scan(r)
		}})
	}
	if err == nil && w.keyID != "" {
		t.traces(keyByID)
		err = t.conn.later(statement{text: keyByID, args: []any{w.keyID}, answered: func(r row) (err error) {
			w.key, err = scanKey(r)
			return err
		}})
	}
	if err != nil {
		return t.fail(err)
	}
	w.orgs = map[string]*storedOrg{}
	err = t.query(func(r row) error {
		o, tags, err := scanOrg(r)
		if err == nil {
			w.orgs[o.ID] = &storedOrg{o, tags}
		}
		return err
	}, orgsAhead, w.ids[0], w.ids[1])
	if err == nil && !found {
		err = org.ErrAbsent
	}
	if err == nil {
		t.had = w
	}
	return err
}

// takeKey returns a key that was read ahead, once.
func (t *tx) takeKey(id string) (k *key.Key, known bool) {
	if t.had == nil || id == "" || t.had.keyID != id {
		return nil, false
	}
	k, t.had.keyID = t.had.key, ""
	return k, true
}

// takeOrg returns an organization that was read ahead, as often as it was asked
// for.
func (t *tx) takeOrg(id string) (o *storedOrg, known bool) {
	if t.had == nil || id == "" || !slices.Contains(t.had.ids[:], id) {
		return nil, false
	}
	t.had.ids[slices.Index(t.had.ids[:], id)] = ""
	if o = t.had.orgs[id]; o != nil {
		read := *o.Organization
		o = &storedOrg{&read, o.tags}
	}
	return o, true
}

func (t *tx) TreeUnchanged(rootID string, generation uint64) bool {
	return t.unchanged != nil && t.unchanged(rootID, generation) && !slices.Contains(t.touched().roots, rootID)
}

// leavesTree says, when deferred with t.writes as it is at the start of a method,
// that what the method writes is in no tree: see org.Store's Generation.
func (t *tx) leavesTree(before int) { t.light += t.writes - before }

// touched returns what the transaction changed. What is not known to leave the
// trees alone has changed all those that are locked.
func (t *tx) touched() touched {
	if t.writes != t.light {
		return touched{roots: t.locked}
	}
	return touched{orgs: t.rows}
}

// into returns a scan function for a single row with plain columns.
func into(dest ...any) func(row) error {
	return func(r row) error { return r.Scan(dest...) }
}

// micros is how a time is stored: microseconds since 1970.
func micros(t time.Time) int64 { return t.UnixMicro() }

// optionalMicros stores no time as 0.
func optionalMicros(t *time.Time) int64 {
	if t == nil {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(n int64) time.Time { return time.UnixMicro(n).UTC() }

func optionalTime(n int64) *time.Time {
	if n == 0 {
		return nil
	}
	t := fromMicros(n)
	return &t
}

// encodeStrings is how a list of strings is stored: as a JSON array.
func encodeStrings(list []string) (string, error) {
	if len(list) == 0 {
		return "[]", nil
	}
	b, err := json.Marshal(list)
	return string(b), err
}

func decodeStrings(text string) ([]string, error) {
	if text == "[]" {
		return nil, nil
	}
	var list []string
	err := json.Unmarshal([]byte(text), &list)
	return list, err
}

// subtreeEnd returns the first path after the subtree at path in the order of
// bytes: '0' follows '/'.
func subtreeEnd(path string) string { return strings.TrimSuffix(path, "/") + "0" }

// window is a query for one page of an ordered list. It looks at the first
// scan rows of the list that follow the page's position, and lets the
// filter choose from them.
type window struct {
	columns string // of a row of the list, as the filter sees them
	from    string
	order   string
	key     string   // the columns that make a position, in terms of from
	where   []string // what bounds the list itself
	filter  []string // what the page wants of it
	result  string   // the columns of a row of the page
	scan    int      // how many rows of the list to look at; 0 for MaxScan
	// maxBytes bounds the page: a row is of it if those before it have taken
	// fewer. 0 for no bound.
	maxBytes int
	taken    int // bytes, by the rows of the page so far
	// bytes is an expression for how many a row takes, in terms of the columns;
	// it may come to less than what take is told. With it a database server
	// sends nothing that the page has no room for. Empty where rows are small.
	bytes string

	args       []any
	windowArgs int // how many of args belong to where
}

// arg adds an argument and returns its placeholder.
func (w *window) arg(v any) string {
	w.args = append(w.args, v)
	return "$" + strconv.Itoa(len(w.args))
}

// bound adds a condition that bounds the list. All bounds come before the
// first filter.
func (w *window) bound(condition string) {
	w.where = append(w.where, condition)
	w.windowArgs = len(w.args)
}

func (w *window) want(condition string) { w.filter = append(w.filter, condition) }

// take says how many bytes a row of the page has.
func (w *window) take(n int) { w.taken += n }

func (w *window) full() bool { return w.maxBytes > 0 && w.taken >= w.maxBytes }

// page calls scan for at most limit rows, and for none once the page is full.
// It reports whether there may be more; if so, and if it is not for the limit
// or the bytes, last has been called with the position up to which the list was
// looked at.
func (t *tx) page(w *window, limit int, scan, last func(row) error) (more bool, err error) {
	list := "FROM " + w.from + where(w.where) + " ORDER BY " + w.order + " LIMIT "
	bound := w.args[:w.windowArgs:w.windowArgs]
	size := w.scan
	if size == 0 {
		size = MaxScan
	}
	rows := " FROM (SELECT " + w.columns + " " + list + strconv.Itoa(size) + ") AS e" + where(w.filter)
	if w.maxBytes > 0 && w.bytes != "" && t.d.sendsAhead {
		rows = " FROM (SELECT e.*, sum(" + w.bytes + ") OVER (ORDER BY " + w.order + " ROWS UNBOUNDED PRECEDING) - " + w.bytes + " AS ahead" +
			rows + ") AS e WHERE ahead < " + w.arg(int64(w.maxBytes))
	}
	text := "SELECT " + w.result + rows
	if t.d.ordersSubquery {
		text += " ORDER BY " + w.order
	}
	n := 0
	err = t.query(func(r row) error {
		if n == limit || w.full() {
			more = true
			return errEnough
		}
		n++
		return scan(r)
	}, text+" LIMIT "+w.arg(int64(limit)+1), w.args...)
	if more = more || w.full(); err != nil || more {
		return more, err
	}
	err = t.queryRow(last, "SELECT "+w.key+" "+list+"1 OFFSET "+strconv.Itoa(size-1), bound...)
	if err == org.ErrAbsent {
		return false, nil
	}
	return err == nil, err
}

func where(conditions []string) string {
	if len(conditions) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(conditions, " AND ")
}
