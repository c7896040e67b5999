package store

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
)

// Values of orgs.deletion_top, which is 0 for an organization that went with
// the one that a delete named.
const (
	topDeleted = `1`
	topPurging = `2`
)

// isPurging is the condition of the organization that was the top of a delete whose
// purge has begun. Of these there are few, and they have an index; what went with it
// are many, and the conditions on expressions keep the engines from reading these.
const isPurging = `deletion_top = ` + topPurging + ` AND root_id || '' = $1 AND deletion_id || '' = $2 AND deletion_id <> ''`

func (t *tx) Expired(before time.Time, limit int) ([]*org.Organization, error) {
	return t.tops(`deletion_top = `+topDeleted+` AND deleted_at < $2`, limit, micros(before))
}

func (t *tx) Purging(limit int) ([]*org.Organization, error) {
	return t.tops(`deletion_top = `+topPurging, limit)
}

func (t *tx) tops(condition string, limit int, args ...any) ([]*org.Organization, error) {
	var orgs []*org.Organization
	err := t.query(func(r row) error {
		o, _, err := scanOrg(r)
		orgs = append(orgs, o)
		return err
	}, `SELECT `+orgColumns+` FROM orgs WHERE `+condition+` ORDER BY deleted_at, id LIMIT $1`, append([]any{limit}, args...)...)
	return orgs, err
}

func (t *tx) PurgeBegun(rootID, deletionID string) (bool, error) {
	var id string
	err := t.queryRow(into(&id), `SELECT id FROM orgs WHERE `+isPurging, rootID, deletionID)
	if errors.Is(err, org.ErrAbsent) {
		return false, nil
	}
	return err == nil, err
}

// purgeMark is the mark with the time, in microseconds, of the last
// transaction that purged something.
const purgeMark = "purged_at"

func (t *tx) notePurge(at time.Time) error {
	_, err := t.exec(`INSERT INTO marks (name, value) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE marks.value < excluded.value`, purgeMark, strconv.FormatInt(micros(at), 10))
	return err
}

func (t *tx) BeginPurge(rootID, deletionID string, at time.Time) (bool, error) {
	clear(t.read)
	var path string
	var deletedAt int64
	err := t.queryRow(into(&path, &deletedAt), `SELECT path, deleted_at FROM orgs
		WHERE root_id = $1 AND deletion_id = $2 AND deletion_id <> '' AND deletion_top = `+topDeleted, rootID, deletionID)
	if errors.Is(err, org.ErrAbsent) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	above, err := encodeStrings(org.SplitPath(path))
	if err != nil {
		return false, err
	}
	var purging int
	err = t.queryRow(into(&purging), `SELECT count(*) FROM orgs
		WHERE id IN (SELECT value FROM json_each($1)) AND deletion_top = `+topPurging, above)
	if err != nil || purging > 0 {
		return false, err
	}
	if _, err := t.exec(`UPDATE orgs SET deletion_top = `+topPurging+` WHERE root_id = $1 AND path = $2 AND deletion_id = $3 AND deletion_top = `+topDeleted,
		rootID, path, deletionID); err != nil {
		return false, err
	}
	if err := t.notePurge(at); err != nil || path != rootID+"/" {
		return err == nil, err
	}
	_, err = t.exec(`UPDATE audit_heads SET closed_at = $2 WHERE root_id = $1 AND closed_at = 0`, rootID, deletedAt)
	return err == nil, err
}

// Bounds of one step of a purge, besides the number of rows.
const (
	// purgeOrgs is how many organizations it looks at.
	purgeOrgs = 500
	// purgeMonths is for how many organizations in how many months it looks up
	// what they consumed.
	purgeMonths = 6000
	// purgeKeys is how many keys it takes at a time.
	purgeKeys = 200
	// purgeTotals is of how many totals it changes the parent at a time, with
	// up to 31 days each.
	purgeTotals = 4
)

// purgeStatement removes or renames rows. They are looked up first and then
// changed by their primary keys, so that no engine can come to read all rows of
// a table.
type purgeStatement struct {
	// find selects primary keys, without the root. Its arguments are the root,
	// a limit and, if it is about some, organizations and a month.
	find string
	// change changes a row. Its arguments are the root, for a new name what is
	// added to the old one, and the key.
	change  string
	columns []string // of the key
	numbers []bool   // which of them hold numbers
	weight  int      // as how many rows each counts, since it is large
}

// ofOrgs selects the rows of organizations.
func ofOrgs(column string) string { return ` AND ` + column + ` IN (SELECT value FROM json_each($3))` }

func findRows(table, columns, condition string) string {
	return `SELECT ` + columns + ` FROM ` + table + ` WHERE root_id = $1` + condition + ` LIMIT $2`
}

// byKey is the condition that names a row; its columns are arguments from the
// nth on.
func byKey(columns []string, n int) string {
	text := ` WHERE root_id = $1`
	for i, c := range columns {
		text += ` AND ` + c + ` = ` + argument(n+i)
	}
	return text
}

func (t *Table) statement(condition, change string, weight int) purgeStatement {
	row := t.row()
	s := purgeStatement{find: findRows(t.Name, strings.Join(row, `, `), condition), change: change, columns: row, weight: weight}
	for _, c := range row {
		s.numbers = append(s.numbers, t.number(c))
	}
	return s
}

func (t *Table) remove(condition string, weight int) purgeStatement {
	return t.statement(condition, `DELETE FROM `+t.Name+byKey(t.row(), 2), weight)
}

// rename adds something to the names in a column of what ancestors' totals
// hold, and removes from it what is personal.
func (t *Table) rename(column, condition string) purgeStatement {
	set := ` SET ` + column + ` = ` + column + ` || $2`
	for _, c := range t.personal() {
		set += `, ` + c + ` = ''`
	}
	return t.statement(condition+ofOrgs(column), `UPDATE `+t.Name+set+byKey(t.row(), 3), 1)
}

var (
	// purgeOwned removes what nobody needs of organizations that are gone, and
	// purgeCounted gives what ancestors' totals hold of them names that no
	// organization will have: see metering.FormerMark.
	purgeOwned, purgeCounted = ofOrganizations()
	// purgeRoot removes what a root has, other than its organizations and their
	// keys, and purgeRootRow what there is once for it. Nothing is above it that
	// would count what it consumed.
	purgeRoot, purgeRootRow = ofRoots()

	purgeTotal   = tableOf("usage_totals").rename(`org_id`, ` AND month = $4`)
	purgeParent  = tableOf("usage_totals").rename(`parent_id`, ` AND month = $4`)
	purgeAnswers = `SELECT actor_id, idem_key FROM idempotency WHERE actor_id IN (SELECT value FROM json_each($1)) LIMIT $2`
)

func ofOrganizations() (owned, counted []purgeStatement) {
	for i := range tables {
		t := &tables[i]
		for _, p := range t.OfOrg {
			if p.Part != partRows {
				continue
			}
			for _, column := range p.By {
				if p.Do == Removes {
					owned = append(owned, t.remove(ofOrgs(column), p.Weight))
				} else {
					counted = append(counted, t.rename(column, ``))
				}
			}
		}
	}
	return owned, counted
}

func ofRoots() (rows []purgeStatement, row []string) {
	for i := range tables {
		t := &tables[i]
		switch p := t.OfRoot; {
		case p.Part != partRows:
		case p.Once:
			row = append(row, `DELETE FROM `+t.Name+` WHERE `+t.Root+` = $1`)
		default:
			rows = append(rows, t.remove(``, p.Weight))
		}
	}
	return rows, row
}

// purgeParts are what a step of a purge consists of, in their order. The registry
// of tables says which of them is for which table.
var purgeParts = []struct {
	name string
	run  func(*purgeStep) error
}{
	{partRows, (*purgeStep).rows},
	{partTotals, (*purgeStep).totals},
	{partKeys, (*purgeStep).keys},
	{partOrganizations, (*purgeStep).organizations},
}

// answerWeight is as how many rows the answer to a request counts.
const answerWeight = 10

// purgeStep is one step of a purge. While rows are left for it, whatever it has
// run has nothing more to do.
type purgeStep struct {
	*tx
	rootID string
	whole  bool // the root itself is purged
	orgs   []doomed
	ids    string   // of orgs, as JSON
	months []string // that the root knows
	suffix string   // of new names
	left   int
	gone   []string // organizations, once they are removed
}

// keysOf returns what a query finds: values of columns, which are numbers or
// texts.
func (p *purgeStep) keysOf(numbers []bool, text string, args ...any) (keys [][]any, err error) {
	err = p.query(func(r row) error {
		dest := make([]any, len(numbers))
		for i, number := range numbers {
			if number {
				dest[i] = new(int64)
			} else {
				dest[i] = new(string)
			}
		}
		if err := r.Scan(dest...); err != nil {
			return err
		}
		for i := range dest {
			switch v := dest[i].(type) {
			case *int64:
				dest[i] = *v
			case *string:
				dest[i] = *v
			}
		}
		keys = append(keys, dest)
		return nil
	}, text, args...)
	return keys, err
}

// run removes rows or, with something to add to names, renames them. more are
// further arguments of find.
func (p *purgeStep) run(s *purgeStatement, suffix string, more ...any) error {
	if p.left <= 0 {
		return nil
	}
	limit := max(1, p.left/s.weight)
	keys, err := p.keysOf(s.numbers, s.find, append([]any{p.rootID, limit}, more...)...)
	if err != nil || len(keys) == 0 {
		return err
	}
	args := []any{p.rootID}
	if suffix != "" {
		args = append(args, suffix)
	}
	err = p.execEach(s.change, len(keys), func(i int) []any { return slices.Concat(args, keys[i]) }, nil)
	if p.left -= len(keys) * s.weight; len(keys) == limit {
		p.left = 0
	}
	return err
}

// rows removes what the root or the organizations have, and gives what ancestors
// hold of these new names, as far as the registry says all that it takes.
func (p *purgeStep) rows() error {
	if p.whole {
		return p.root()
	}
	for i := range purgeOwned {
		if err := p.run(&purgeOwned[i], "", p.ids); err != nil {
			return err
		}
	}
	for i := range purgeCounted {
		if err := p.run(&purgeCounted[i], p.suffix, p.ids); err != nil {
			return err
		}
	}
	return nil
}

// totals gives what ancestors' totals hold of the organizations new names.
func (p *purgeStep) totals() error {
	if p.whole {
		return nil
	}
	for _, month := range p.months {
		if err := p.run(&purgeTotal, p.suffix, p.ids, month); err != nil {
			return err
		}
		if err := p.parents(month); err != nil {
			return err
		}
	}
	return nil
}

// parents gives the organizations new names where they are the parents of
// others, in a month and on its days.
func (p *purgeStep) parents(month string) error {
	if p.left <= 0 {
		return nil
	}
	limit := p.left
	found, err := p.keysOf(purgeParent.numbers, purgeParent.find, p.rootID, limit, p.ids, month)
	if err != nil {
		return err
	}
	for some := range slices.Chunk(found, purgeTotals) {
		// Whatever is counted on a day is in the total of its month.
		err := p.execEach(`UPDATE usage_days SET parent_id = parent_id || $2 WHERE root_id = $1 AND org_id = $4 AND day >= $3 || '-01' AND day <= $3 || '-31'
			AND parent_id = $5 AND meter = $6`, len(some), func(i int) []any { return slices.Concat([]any{p.rootID, p.suffix}, some[i]) },
			func(_ int, rows int64) error {
				p.left -= int(rows)
				return nil
			})
		if err == nil {
			err = p.execEach(purgeParent.change, len(some), func(i int) []any { return slices.Concat([]any{p.rootID, p.suffix}, some[i]) }, nil)
		}
		if p.left -= len(some); err != nil || p.left <= 0 {
			return err
		}
	}
	if len(found) == limit {
		p.left = 0
	}
	return nil
}

func (p *purgeStep) root() error {
	for i := range purgeRoot {
		if err := p.run(&purgeRoot[i], ""); err != nil {
			return err
		}
	}
	for _, text := range purgeRootRow {
		if _, err := p.exec(text, p.rootID); err != nil {
			return err
		}
	}
	return nil
}

// keys removes the keys of the organizations, with the answers that they got.
func (p *purgeStep) keys() error {
	for p.left > 0 {
		var keys []string
		err := p.query(func(r row) error {
			var id string
			err := r.Scan(&id)
			keys = append(keys, id)
			return err
		}, findRows(`api_keys`, `id`, ofOrgs(`org_id`)), p.rootID, min(p.left, purgeKeys), p.ids)
		if err != nil || len(keys) == 0 {
			return err
		}
		list, err := encodeStrings(keys)
		if err != nil {
			return err
		}
		limit := max(1, p.left/answerWeight)
		answers, err := p.keysOf(make([]bool, 2), purgeAnswers, list, limit)
		if err != nil {
			return err
		}
		if err := p.execEach(`DELETE FROM idempotency WHERE actor_id = $1 AND idem_key = $2`, len(answers),
			func(i int) []any { return answers[i] }, nil); err != nil {
			return err
		}
		if p.left -= len(answers) * answerWeight; len(answers) == limit || p.left <= 0 {
			p.left = 0
			return nil
		}
		if err := p.execEach(`DELETE FROM api_keys WHERE id = $1`, len(keys), func(i int) []any { return []any{keys[i]} }, nil); err != nil {
			return err
		}
		p.left -= len(keys)
	}
	return nil
}

// organizations removes the organizations, once they have nothing left.
func (p *purgeStep) organizations() error {
	if p.left <= 0 {
		return nil
	}
	var gone []string
	var tags [][]any
	for _, d := range p.orgs {
		gone = append(gone, d.id)
		for _, tag := range d.tags {
			tags = append(tags, []any{p.rootID, tag, d.id})
		}
	}
	if err := p.execEach(`DELETE FROM org_tags WHERE root_id = $1 AND tag = $2 AND org_id = $3`, len(tags),
		func(i int) []any { return tags[i] }, nil); err != nil {
		return err
	}
	if _, err := p.exec(`DELETE FROM orgs WHERE root_id = $1 AND id IN (SELECT value FROM json_each($2)) AND deleted_at <> 0`, p.rootID, p.ids); err != nil {
		return err
	}
	p.gone = gone
	return nil
}

// doomed is an organization that is about to go.
type doomed struct {
	id, path string
	tags     []string
}

// next returns the organizations whose turn it is: those at the end of the
// subtree at path, so that nothing outlives what it is below.
func (p *purgeStep) next(path string, limit int) ([]doomed, error) {
	err := p.query(func(r row) error {
		var month string
		err := r.Scan(&month)
		p.months = append(p.months, month)
		return err
	}, `SELECT month FROM usage_months WHERE root_id = $1 ORDER BY month`, p.rootID)
	if err != nil {
		return nil, err
	}
	var list []doomed
	err = p.query(func(r row) error {
		var d doomed
		var tags string
		if err := r.Scan(&d.id, &d.path, &tags); err != nil {
			return err
		}
		var err error
		d.tags, err = decodeStrings(tags)
		list = append(list, d)
		return err
		// Whatever lies below a deleted organization is deleted too, by the same
		// delete or by an earlier one, and a move takes all of it along.
	}, `SELECT id, path, tags FROM orgs WHERE root_id = $1 AND path >= $2 AND path < $3 AND deleted_at <> 0
		ORDER BY path DESC LIMIT $4 FOR UPDATE`, p.rootID, path, subtreeEnd(path), max(1, min(purgeOrgs, limit, purgeMonths/(len(p.months)+1))))
	rows := 0
	for i := range list {
		if rows += 1 + len(list[i].tags); rows > limit && i > 0 {
			return list[:i], err
		}
	}
	return list, err
}

func (t *tx) Purge(rootID, deletionID string, limit int, at time.Time) (gone []string, done bool, err error) {
	clear(t.read)
	t.noteLocked(rootID)
	var path string
	err = t.queryRow(into(&path), `SELECT path FROM orgs WHERE `+isPurging+` FOR UPDATE`, rootID, deletionID)
	if errors.Is(err, org.ErrAbsent) {
		return nil, true, nil
	} else if err != nil {
		return nil, false, err
	}
	if err := t.notePurge(at); err != nil {
		return nil, false, err
	}
	p := &purgeStep{tx: t, rootID: rootID, whole: path == rootID+"/", suffix: metering.FormerMark + deletionID, left: limit}
	// Until these rows are gone nothing is recorded for them: see bind.
	if p.orgs, err = p.next(path, limit); err != nil {
		return nil, false, err
	}
	ids := make([]string, len(p.orgs))
	for i, d := range p.orgs {
		ids[i] = d.id
	}
	if p.ids, err = encodeStrings(ids); err != nil {
		return nil, false, err
	}
	for _, part := range purgeParts {
		if err := part.run(p); err != nil {
			return nil, false, err
		}
	}
	return p.gone, len(p.gone) > 0 && p.orgs[len(p.orgs)-1].path == path, nil
}

// lateMargin is by how much the clocks of processes may differ, and how long a
// request may take until it is recorded.
const lateMargin = time.Minute

// bind returns the batch with what was recorded for organizations that have
// been purged since set apart from what those have that use their ids now.
// What they consumed stays in the totals of the ancestors that are still
// there, and their events are gone, as if the purge had found them. Only what
// was recorded before the last purge, as far as clocks can tell, is looked at.
func (t *tx) bind(b access.Batch) (access.Batch, error) {
	mark, err := t.Mark(purgeMark)
	if errors.Is(err, org.ErrAbsent) {
		return b, nil
	} else if err != nil {
		return b, err
	}
	purgedAt, err := strconv.ParseInt(mark, 10, 64)
	if err != nil {
		return b, err
	}
	until := fromMicros(purgedAt).Add(lateMargin)
	ids := map[string]bool{}
	for i := range b.Usage {
		if u := &b.Usage[i]; !u.At.After(until) {
			for _, id := range org.SplitPath(u.Path) {
				ids[id] = true
			}
		}
	}
	for i := range b.Events {
		if e := &b.Events[i]; !e.Timestamp.After(until) {
			ids[e.OrgID] = true
		}
	}
	if len(ids) == 0 {
		return b, nil
	}
	type incarnation struct {
		rootID    string
		createdAt int64
	}
	found := make(map[string]incarnation, len(ids))
	list := make([]string, 0, len(ids))
	for id := range ids {
		list = append(list, id)
	}
	slices.Sort(list)
	text, err := encodeStrings(list)
	if err != nil {
		return b, err
	}
	if err := t.query(func(r row) error {
		var id string
		var o incarnation
		err := r.Scan(&id, &o.rootID, &o.createdAt)
		found[id] = o
		return err
	}, `SELECT id, root_id, created_at FROM orgs WHERE id IN (SELECT value FROM json_each($1)) FOR KEY SHARE`, text); err != nil {
		return b, err
	}
	there := func(rootID, id string, at time.Time) bool {
		o, ok := found[id]
		return at.After(until) || ok && o.rootID == rootID && o.createdAt <= micros(at)
	}
	b.Events = slices.DeleteFunc(slices.Clone(b.Events), func(e access.Event) bool { return !there(e.RootID, e.OrgID, e.Timestamp) })
	b.Usage = slices.DeleteFunc(slices.Clone(b.Usage), func(u access.Usage) bool { return !there(u.RootID, u.RootID, u.At) })
	for i := range b.Usage {
		u := &b.Usage[i]
		names := org.SplitPath(u.Path)
		for n, id := range names {
			if !there(u.RootID, id, u.At) {
				names[n] = id + metering.FormerMark
			}
		}
		u.Path = strings.Join(names, "/") + "/"
	}
	return b, nil
}
