package store

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/org"
)

// Values of orgs.deletion_top, which is 0 for an organization that went with
// the one that a delete named.
const (
	topDeleted = `1`
	topPurging = `2`
)

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
	err := t.queryRow(into(&id), `SELECT id FROM orgs
		WHERE root_id = $1 AND deletion_id = $2 AND deletion_id <> '' AND deletion_top = `+topPurging, rootID, deletionID)
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
	if _, err := t.exec(`UPDATE orgs SET deletion_top = `+topPurging+` WHERE root_id = $1 AND deletion_id = $2 AND deletion_top = `+topDeleted,
		rootID, deletionID); err != nil {
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
)

// purgeStatement removes or renames rows, at most as many as its last argument
// says. Rows that are large count as several.
type purgeStatement struct {
	text   string
	weight int
}

// removeBy returns a statement that removes rows of a table. The columns name
// a row within its root; the condition selects rows.
func removeBy(table, columns, condition, limit string, weight int) purgeStatement {
	return purgeStatement{`DELETE FROM ` + table + ` WHERE root_id = $1 AND (` + columns + `) IN (SELECT ` + columns + ` FROM ` + table +
		` WHERE root_id = $1` + condition + ` LIMIT ` + limit + `)`, weight}
}

// ofOrgs selects the rows of organizations.
func ofOrgs(column string) string { return ` AND ` + column + ` IN (SELECT value FROM json_each($2))` }

// eachMonth joins the totals of all months that the root knows, whose column
// names one of the organizations, and something more.
func eachMonth(column, more string) string {
	return ` FROM usage_months AS m CROSS JOIN json_each($2) AS o CROSS JOIN usage_totals AS t` + more + `
		WHERE m.root_id = $1 AND t.root_id = $1 AND t.month = m.month AND t.` + column + ` = o.value`
}

var (
	// purgeOwned removes what nobody needs of an organization that is gone.
	// Arguments are the root, the organizations and the limit.
	purgeOwned = []purgeStatement{
		removeBy(`access_events`, `at, seq`, ofOrgs(`org_id`), `$3`, 1),
		removeBy(`org_places`, `parent_id, org_id, since`, ofOrgs(`org_id`), `$3`, 1),
		removeBy(`org_places`, `parent_id, org_id, since`, ofOrgs(`parent_id`), `$3`, 1),
		removeBy(`usage_limits`, `org_id, meter`, ofOrgs(`org_id`), `$3`, 1),
		removeBy(`usage_states`, `period, org_id, meter`, ofOrgs(`org_id`), `$3`, 1),
	}
	// purgeCounted gives what the totals of ancestors hold a name that no
	// organization will have: see org.FormerMark. Further arguments are as for
	// purgeOwned, and what is added to the names. The days of former children
	// are found by their totals, so these come last.
	purgeCounted = []purgeStatement{
		{`UPDATE usage_adjustments SET org_id = org_id || $3, reason = '' WHERE root_id = $1 AND (org_id, month, id) IN (
			SELECT org_id, month, id FROM usage_adjustments WHERE root_id = $1` + ofOrgs(`org_id`) + ` LIMIT $4)`, 1},
		{`UPDATE usage_days SET org_id = org_id || $3 WHERE root_id = $1 AND (org_id, day, parent_id, meter) IN (
			SELECT org_id, day, parent_id, meter FROM usage_days WHERE root_id = $1` + ofOrgs(`org_id`) + ` LIMIT $4)`, 1},
		{`UPDATE usage_totals SET org_id = org_id || $3 WHERE root_id = $1 AND (month, org_id, parent_id, meter) IN (
			SELECT t.month, t.org_id, t.parent_id, t.meter` + eachMonth(`org_id`, ``) + ` LIMIT $4)`, 1},
		{`UPDATE usage_days SET parent_id = parent_id || $3 WHERE root_id = $1 AND (org_id, day, parent_id, meter) IN (
			SELECT d.org_id, d.day, d.parent_id, d.meter` + eachMonth(`parent_id`, ` CROSS JOIN usage_days AS d`) + `
			AND d.root_id = $1 AND d.org_id = t.org_id AND d.day >= t.month || '-01' AND d.day <= t.month || '-31'
			AND d.parent_id = t.parent_id AND d.meter = t.meter LIMIT $4)`, 1},
		{`UPDATE usage_totals SET parent_id = parent_id || $3 WHERE root_id = $1 AND (month, org_id, parent_id, meter) IN (
			SELECT t.month, t.org_id, t.parent_id, t.meter` + eachMonth(`parent_id`, ``) + ` LIMIT $4)`, 1},
	}
	// purgeRoot removes what a root has, other than its organizations and their
	// keys. Nothing is above it that would count what it consumed. The number
	// of its last access event stays: nobody who follows them later must find
	// it smaller. Arguments are the root and the limit.
	purgeRoot = []purgeStatement{
		removeBy(`access_events`, `at, seq`, ``, `$2`, 1),
		removeBy(`access_claims`, `id`, ``, `$2`, 1),
		removeBy(`access_retentions`, `root_id`, ``, `$2`, 1),
		removeBy(`org_places`, `parent_id, org_id, since`, ``, `$2`, 1),
		removeBy(`customization_schemas`, `root_id`, ``, `$2`, 1),
		removeBy(`usage_limits`, `org_id, meter`, ``, `$2`, 1),
		removeBy(`usage_totals`, `month, org_id, parent_id, meter`, ``, `$2`, 1),
		removeBy(`usage_days`, `org_id, day, parent_id, meter`, ``, `$2`, 1),
		removeBy(`usage_adjustments`, `org_id, month, id`, ``, `$2`, 1),
		removeBy(`usage_events`, `source, id, part`, ``, `$2`, 1),
		removeBy(`usage_states`, `period, org_id, meter`, ``, `$2`, 1),
		removeBy(`usage_statement_parts`, `month, part`, ``, `$2`, 100),
		removeBy(`usage_statements`, `month`, ``, `$2`, 1),
		removeBy(`usage_months`, `month`, ``, `$2`, 1),
		removeBy(`meters`, `slug`, ``, `$2`, 1),
	}
	// purgeAnswers removes what keys were answered. Arguments are the keys and
	// the limit.
	purgeAnswers = purgeStatement{`DELETE FROM idempotency WHERE (actor_id, idem_key) IN (SELECT actor_id, idem_key FROM idempotency
		WHERE actor_id IN (SELECT value FROM json_each($1)) LIMIT $2)`, 20}
)

// purgeStep is one step of a purge. While rows are left for it, whatever it has
// run has nothing more to do.
type purgeStep struct {
	*tx
	rootID string
	left   int
}

func (p *purgeStep) run(s *purgeStatement, args ...any) error {
	if p.left <= 0 {
		return nil
	}
	limit := max(1, p.left/s.weight)
	n, err := p.exec(s.text, append(args, limit)...)
	if p.left -= int(n) * s.weight; int(n) == limit {
		p.left = 0
	}
	return err
}

func (p *purgeStep) runAll(list []purgeStatement, args ...any) error {
	for i := range list {
		if err := p.run(&list[i], args...); err != nil {
			return err
		}
	}
	return nil
}

// keys removes the keys of organizations, with the answers that they got.
func (p *purgeStep) keys(ids string) error {
	for p.left > 0 {
		var keys []string
		err := p.query(func(r row) error {
			var id string
			err := r.Scan(&id)
			keys = append(keys, id)
			return err
		}, `SELECT id FROM api_keys WHERE root_id = $1`+ofOrgs(`org_id`)+` LIMIT $3`, p.rootID, ids, min(p.left, purgeKeys))
		if err != nil || len(keys) == 0 {
			return err
		}
		list, err := encodeStrings(keys)
		if err != nil {
			return err
		}
		if err := p.run(&purgeAnswers, list); err != nil || p.left <= 0 {
			return err
		}
		n, err := p.exec(`DELETE FROM api_keys WHERE id IN (SELECT value FROM json_each($1))`, list)
		if err != nil {
			return err
		}
		p.left -= int(n)
	}
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
	var months int
	if err := p.queryRow(into(&months), `SELECT count(*) FROM usage_months WHERE root_id = $1`, p.rootID); err != nil {
		return nil, err
	}
	var list []doomed
	err := p.query(func(r row) error {
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
		ORDER BY path DESC LIMIT $4 FOR UPDATE`, p.rootID, path, subtreeEnd(path), max(1, min(purgeOrgs, limit, purgeMonths/(months+1))))
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
	err = t.queryRow(into(&path), `SELECT path FROM orgs WHERE root_id = $1 AND deletion_id = $2 AND deletion_id <> '' AND deletion_top = `+
		topPurging+` FOR UPDATE`, rootID, deletionID)
	if errors.Is(err, org.ErrAbsent) {
		return nil, true, nil
	} else if err != nil {
		return nil, false, err
	}
	if err := t.notePurge(at); err != nil {
		return nil, false, err
	}
	p := &purgeStep{tx: t, rootID: rootID, left: limit}
	// Until these rows are gone nothing is recorded for them: see bind.
	orgs, err := p.next(path, limit)
	if err != nil {
		return nil, false, err
	}
	var tags [][]any
	for _, d := range orgs {
		gone = append(gone, d.id)
		for _, tag := range d.tags {
			tags = append(tags, []any{rootID, tag, d.id})
		}
	}
	ids, err := encodeStrings(gone)
	if err != nil {
		return nil, false, err
	}
	if path == rootID+"/" {
		err = p.runAll(purgeRoot, rootID)
	} else if err = p.runAll(purgeOwned, rootID, ids); err == nil {
		err = p.runAll(purgeCounted, rootID, ids, org.FormerMark+deletionID)
	}
	if err == nil {
		err = p.keys(ids)
	}
	if err != nil {
		return nil, false, err
	}
	if p.left <= 0 {
		return nil, false, nil
	}
	if err := t.execEach(`DELETE FROM org_tags WHERE root_id = $1 AND tag = $2 AND org_id = $3`, len(tags),
		func(i int) []any { return tags[i] }, nil); err != nil {
		return nil, false, err
	}
	_, err = t.exec(`DELETE FROM orgs WHERE root_id = $1 AND id IN (SELECT value FROM json_each($2)) AND deleted_at <> 0`, rootID, ids)
	return gone, err == nil && orgs[len(orgs)-1].path == path, err
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
				names[n] = id + org.FormerMark
			}
		}
		u.Path = strings.Join(names, "/") + "/"
	}
	return b, nil
}
