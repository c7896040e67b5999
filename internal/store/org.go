package store

import (
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/org"
)

const orgColumns = `root_id, id, parent_id, path, depth, name, type, description, external_id,
	tags, settings, locked, settings_at, created_at, updated_at, version, deleted_at, deletion_id`

// scanOrg reads orgColumns and then extra columns.
func scanOrg(r row, extra ...any) (*org.Organization, string, error) {
	o, tags, _, err := scanSized(r, extra...)
	return o, tags, err
}

// scanSized is scanOrg that also tells how many bytes the row has.
func scanSized(r row, extra ...any) (*org.Organization, string, int, error) {
	o := &org.Organization{}
	var tags, values, locked string
	var settingsAt, createdAt, updatedAt, deletedAt int64
	dest := append([]any{&o.RootID, &o.ID, &o.ParentID, &o.Path, &o.Depth, &o.Name, (*string)(&o.Type), &o.Description,
		&o.ExternalID, &tags, &values, &locked, &settingsAt, &createdAt, &updatedAt, &o.Version, &deletedAt, &o.DeletionID}, extra...)
	if err := r.Scan(dest...); err != nil {
		return nil, "", 0, err
	}
	size := orgOverhead + len(values) + len(locked) + len(tags) + len(o.Name) + len(o.Description) + len(o.ExternalID) + len(o.Path)
	var err1, err2 error
	o.Tags, err1 = decodeStrings(tags)
	o.Settings.Locked, err2 = decodeStrings(locked)
	o.Settings.Values = jsontext.Value(values)
	o.Settings.UpdatedAt = fromMicros(settingsAt)
	o.CreatedAt, o.UpdatedAt = fromMicros(createdAt), fromMicros(updatedAt)
	o.DeletedAt = optionalTime(deletedAt)
	return o, tags, size, errors.Join(err1, err2)
}

// orgOverhead is about what the rest of an organization takes in an answer, and
// orgBytes at most what scanSized makes of a row.
const (
	orgOverhead = 300
	orgBytes    = `(octet_length(settings) + octet_length(locked) + octet_length(description))`
)

// orgsAhead is Org for two organizations at once.
const orgsAhead = `SELECT ` + orgColumns + ` FROM orgs WHERE id IN ($1, $2) AND deleted_at <> 1`

func (t *tx) Org(id string) (o *org.Organization, err error) {
	var tags string
	switch s, known := t.takeOrg(id); {
	case s != nil:
		t.read[id] = stored{version: s.Version, nameKey: org.FoldName(s.Name), externalID: s.ExternalID, tags: s.tags}
		return s.Organization, nil
	case known:
		return nil, org.ErrAbsent
	}
	err = t.queryRow(func(r row) error {
		o, tags, err = scanOrg(r)
		return err
	}, `SELECT `+orgColumns+` FROM orgs WHERE id = $1 AND deleted_at <> 1`, id)
	if err == nil && t.read != nil {
		t.read[id] = stored{version: o.Version, nameKey: org.FoldName(o.Name), externalID: o.ExternalID, tags: tags}
	}
	return o, err
}

func (t *tx) OrgWithin(id, path string, self bool) (o *org.Organization, err error) {
	within := `substr(path, 1, $3) = $2`
	if self {
		within = `path = $2 AND $3 > 0`
	}
	var tags string
	err = t.queryRow(func(r row) error {
		o, tags, err = scanOrg(r)
		return err
	}, `SELECT `+orgColumns+` FROM orgs WHERE id = $1 AND `+within, id, path, len(path))
	if err == nil && t.read != nil {
		t.read[id] = stored{version: o.Version, nameKey: org.FoldName(o.Name), externalID: o.ExternalID, tags: tags}
	}
	return o, err
}

func (t *tx) OrgsByID(ids []string) ([]*org.Organization, error) {
	list, err := encodeStrings(ids)
	if err != nil {
		return nil, err
	}
	var orgs []*org.Organization
	err = t.query(func(r row) error {
		o, _, err := scanOrg(r)
		orgs = append(orgs, o)
		return err
	}, `SELECT `+orgColumns+` FROM orgs WHERE id IN (SELECT value FROM json_each($1)) AND deleted_at <> 1`, list)
	return orgs, err
}

func (t *tx) Versions(ids []string) (map[string]org.Version, error) {
	list, err := encodeStrings(ids)
	if err != nil {
		return nil, err
	}
	versions := make(map[string]org.Version, len(ids))
	err = t.query(func(r row) error {
		var id string
		var v org.Version
		var createdAt int64
		err := r.Scan(&id, &createdAt, &v.Version)
		v.CreatedAt = fromMicros(createdAt)
		versions[id] = v
		return err
	}, `SELECT id, created_at, version FROM orgs WHERE id IN (SELECT value FROM json_each($1))`, list)
	return versions, err
}

func (t *tx) InsertOrgs(orgs []*org.Organization) error {
	if err := t.insertOrgs(orgs, 0, ""); err != nil {
		return err
	}
	return t.insertOwned(orgs)
}

// insertOrgs inserts the rows of organizations.
func (t *tx) insertOrgs(orgs []*org.Organization, deletedAt int64, deletionID string) error {
	args := make([][]any, len(orgs))
	for i, o := range orgs {
		tags, err1 := encodeStrings(o.Tags)
		locked, err2 := encodeStrings(o.Settings.Locked)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		args[i] = []any{o.RootID, o.ID, o.ParentID, o.Path, o.Depth, o.Name, org.FoldName(o.Name), string(o.Type), o.Description,
			o.ExternalID, tags, settings(o), locked, micros(o.Settings.UpdatedAt), micros(o.CreatedAt), micros(o.UpdatedAt), o.Version,
			deletedAt, deletionID}
	}
	return t.execEach(`INSERT INTO orgs (root_id, id, parent_id, path, depth, name, name_key, type, description,
			external_id, tags, settings, locked, settings_at, created_at, updated_at, version,
			deleted_at, deletion_id, deletion_top)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, 0)
		ON CONFLICT DO NOTHING`,
		len(orgs), func(i int) []any { return args[i] },
		func(i int, rows int64) error {
			if rows == 0 {
				return &org.TakenError{ID: orgs[i].ID}
			}
			return nil
		})
}

// insertOwned inserts the tags and the places of new organizations.
func (t *tx) insertOwned(orgs []*org.Organization) error {
	var tags [][]any
	for _, o := range orgs {
		for _, tag := range o.Tags {
			tags = append(tags, []any{o.RootID, tag, o.ID})
		}
	}
	if err := t.execEach(insertTag, len(tags), func(i int) []any { return tags[i] }, nil); err != nil {
		return err
	}
	return t.insertPlaces(orgs)
}

// settings never stores an empty text, which would be no JSON.
func settings(o *org.Organization) string {
	if len(o.Settings.Values) == 0 {
		return "{}"
	}
	return string(o.Settings.Values)
}

const insertTag = `INSERT INTO org_tags (root_id, tag, org_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`

func (t *tx) insertTags(rootID, id string, tags []string) error {
	if len(tags) == 0 {
		return nil
	}
	return t.execEach(insertTag, len(tags), func(i int) []any { return []any{rootID, tags[i], id} }, nil)
}

func (t *tx) UpdateOrg(o *org.Organization) error {
	defer t.leavesTree(t.writes)
	t.rows = append(t.rows, o.ID)
	before, ok := t.read[o.ID]
	if !ok || before.version != o.Version-1 {
		if _, err := t.Org(o.ID); errors.Is(err, org.ErrAbsent) {
			return org.ErrStale
		} else if err != nil {
			return err
		}
		if before = t.read[o.ID]; before.version != o.Version-1 {
			return org.ErrStale
		}
	}
	tags, err1 := encodeStrings(o.Tags)
	locked, err2 := encodeStrings(o.Settings.Locked)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	after := stored{version: o.Version, nameKey: org.FoldName(o.Name), externalID: o.ExternalID, tags: tags}
	text := `UPDATE orgs SET name = $4, type = $5, description = $6, tags = $7, settings = $8, locked = $9,
			settings_at = $10, updated_at = $11, version = $3 + 1`
	args := []any{o.RootID, o.ID, o.Version - 1, o.Name, string(o.Type), o.Description, tags, settings(o), locked,
		micros(o.Settings.UpdatedAt), micros(o.UpdatedAt)}
	// Naming an indexed column costs a write to each of its indexes, even if
	// the value stays the same.
	if after.nameKey != before.nameKey || after.externalID != before.externalID {
		text += `, name_key = $12, external_id = $13`
		args = append(args, after.nameKey, after.externalID)
	}
	if err := t.execOne(text+` WHERE root_id = $1 AND id = $2 AND version = $3`, args...); err != nil {
		return err
	}
	t.read[o.ID] = after
	if before.tags == after.tags {
		return nil
	}
	old, err := decodeStrings(before.tags)
	if err != nil {
		return err
	}
	if gone := without(old, o.Tags); len(gone) > 0 {
		err := t.execEach(`DELETE FROM org_tags WHERE root_id = $1 AND tag = $2 AND org_id = $3`,
			len(gone), func(i int) []any { return []any{o.RootID, gone[i], o.ID} }, nil)
		if err != nil {
			return err
		}
	}
	return t.insertTags(o.RootID, o.ID, without(o.Tags, old))
}

// without returns the strings of list that are not in other.
func without(list, other []string) []string {
	in := make(map[string]bool, len(other))
	for _, s := range other {
		in[s] = true
	}
	var rest []string
	for _, s := range list {
		if !in[s] {
			rest = append(rest, s)
		}
	}
	return rest
}

func (t *tx) MoveSubtree(rootID, id, newParentID, oldPath, newPath string, depthDelta int, at time.Time) (int64, error) {
	clear(t.read)
	counts, err := t.CountSubtree(rootID, oldPath)
	if err != nil {
		return 0, err
	}
	n, err := t.exec(`UPDATE orgs SET parent_id = $3, updated_at = $4, version = version + 1
		WHERE root_id = $1 AND id = $2`, rootID, id, newParentID, micros(at))
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, org.ErrAbsent
	}
	above := org.SplitPath(oldPath)
	if err := t.movePlace(rootID, id, above[len(above)-2], newParentID, at); err != nil {
		return 0, err
	}
	_, err = t.exec(`UPDATE orgs SET path = $4 || substr(path, $5), depth = depth + $6
		WHERE root_id = $1 AND path >= $2 AND path < $3`,
		rootID, oldPath, subtreeEnd(oldPath), newPath, len(oldPath)+1, depthDelta)
	return counts.Organizations, err
}

func (t *tx) CountSubtree(rootID, path string) (c org.Counts, err error) {
	err = t.queryRow(into(&c.Organizations),
		`SELECT count(*) FROM orgs WHERE root_id = $1 AND path >= $2 AND path < $3 AND deleted_at = 0`, rootID, path, subtreeEnd(path))
	if err == nil {
		c.APIKeys, err = t.keysBelow(rootID, path)
	}
	return c, err
}

// keysBelow counts the active keys of the live organizations at and below path.
func (t *tx) keysBelow(rootID, path string) (n int64, err error) {
	err = t.queryRow(into(&n), `SELECT count(*) FROM orgs o CROSS JOIN api_keys k
		WHERE o.root_id = $1 AND o.path >= $2 AND o.path < $3 AND o.deleted_at = 0
		AND k.root_id = o.root_id AND k.org_id = o.id AND k.revoked_at = 0`, rootID, path, subtreeEnd(path))
	return n, err
}

func (t *tx) DeepestBelow(rootID, path string) (depth int, err error) {
	err = t.queryRow(into(&depth), `SELECT coalesce(max(depth), 0) FROM orgs
		WHERE root_id = $1 AND path >= $2 AND path < $3 AND deleted_at <> 1`, rootID, path, subtreeEnd(path))
	return depth, err
}

func (t *tx) MarkDeleted(rootID, path, deletionID string, at time.Time) (c org.Counts, err error) {
	clear(t.read)
	if c.APIKeys, err = t.keysBelow(rootID, path); err != nil {
		return c, err
	}
	c.Organizations, err = t.exec(`UPDATE orgs SET deleted_at = $4, deletion_id = $5,
			deletion_top = CASE WHEN path = $2 THEN 1 ELSE 0 END, version = version + 1
		WHERE root_id = $1 AND path >= $2 AND path < $3 AND deleted_at = 0`,
		rootID, path, subtreeEnd(path), micros(at), deletionID)
	return c, err
}

func (t *tx) MarkRestored(rootID, deletionID string) (c org.Counts, err error) {
	clear(t.read)
	err = t.queryRow(into(&c.APIKeys), `SELECT count(*) FROM orgs o CROSS JOIN api_keys k
		WHERE o.root_id = $1 AND o.deletion_id = $2 AND o.deletion_id <> '' AND o.deleted_at <> 1
		AND k.root_id = o.root_id AND k.org_id = o.id AND k.revoked_at = 0`, rootID, deletionID)
	if err != nil {
		return c, err
	}
	c.Organizations, err = t.exec(`UPDATE orgs SET deleted_at = 0, deletion_id = '', deletion_top = 0, version = version + 1
		WHERE root_id = $1 AND deletion_id = $2 AND deletion_id <> '' AND deleted_at <> 1`, rootID, deletionID)
	return c, err
}

func (t *tx) Schema(rootID string) ([]byte, error) {
	var content string
	err := t.queryRow(into(&content), `SELECT content FROM customization_schemas WHERE root_id = $1`, rootID)
	if err != nil {
		return nil, err
	}
	return []byte(content), nil
}

func (t *tx) PutSchema(rootID string, schema []byte) error {
	if schema == nil {
		_, err := t.exec(`DELETE FROM customization_schemas WHERE root_id = $1`, rootID)
		return err
	}
	_, err := t.exec(`INSERT INTO customization_schemas (root_id, content) VALUES ($1, $2)
		ON CONFLICT (root_id) DO UPDATE SET content = excluded.content`, rootID, string(schema))
	return err
}

func (t *tx) Orgs(q org.OrgQuery) (org.OrgPage, error) {
	w := &window{columns: orgColumns + `, name_key`, from: `orgs AS o`, result: orgColumns + `, name_key`, maxBytes: q.MaxBytes, bytes: orgBytes}
	if q.RootID == "" && q.Path != "" {
		q.RootID = org.SplitPath(q.Path)[0]
	}
	if q.RootID == "" && q.ParentID != "" {
		parent, err := t.Org(q.ParentID)
		if errors.Is(err, org.ErrAbsent) {
			return org.OrgPage{}, nil
		} else if err != nil {
			return org.OrgPage{}, err
		}
		q.RootID = parent.RootID
	}
	position := func(o *org.Organization, nameKey string) []string { return []string{o.ID} }
	prefix := org.FoldName(q.NamePrefix)
	rooted := func(column string) {
		if q.RootID != "" {
			w.bound(column + ` = ` + w.arg(q.RootID))
		}
	}
	after := func(column string) {
		if len(q.After) == 1 {
			w.bound(column + ` > ` + w.arg(q.After[0]))
		}
	}

	// The list that the window moves over, in the order of one index.
	switch {
	case q.ExternalID != "":
		w.order, w.key = `id`, `id`
		rooted(`root_id`)
		w.bound(`external_id = ` + w.arg(q.ExternalID) + ` AND external_id <> '' AND deleted_at = 0`)
		after(`id`)
	case q.Tag != "":
		w.from = `org_tags AS t CROSS JOIN orgs AS o`
		w.columns, w.order, w.key = `o.*, t.org_id`, `org_id`, `org_id`
		rooted(`t.root_id`)
		w.bound(`t.tag = ` + w.arg(q.Tag) + ` AND o.root_id = t.root_id AND o.id = t.org_id`)
		after(`t.org_id`)
		w.want(`deleted_at = 0`)
	case q.NamePrefix != "":
		w.order, w.key = `name_key, id`, `name_key, id`
		position = func(o *org.Organization, nameKey string) []string { return []string{nameKey, o.ID} }
		rooted(`root_id`)
		w.bound(`name_key >= ` + w.arg(prefix) + ` AND deleted_at = 0`)
		if end := prefixEnd(prefix); end != "" {
			w.bound(`name_key < ` + w.arg(end))
		}
		if len(q.After) == 2 {
			w.bound(`(name_key, id) > (` + w.arg(q.After[0]) + `, ` + w.arg(q.After[1]) + `)`)
		}
	case q.ParentID != "":
		w.order, w.key = `id`, `id`
		rooted(`root_id`)
		w.bound(`parent_id = ` + w.arg(q.ParentID) + ` AND deleted_at = 0`)
		after(`id`)
	case q.RootsOnly:
		w.order, w.key = `path`, `path`
		position = func(o *org.Organization, nameKey string) []string { return []string{o.Path} }
		w.bound(`parent_id = '' AND deleted_at = 0`)
		after(`path`)
	default:
		w.order, w.key = `path`, `path`
		position = func(o *org.Organization, nameKey string) []string { return []string{o.Path} }
		rooted(`root_id`)
		if q.RootID != "" {
			after(`path`)
		} else if w.order = `root_id, path`; len(q.After) == 1 {
			w.bound(`(root_id, path) > (` + w.arg(org.SplitPath(q.After[0])[0]) + `, ` + w.arg(q.After[0]) + `)`)
		}
		if q.Path != "" {
			w.bound(`path >= ` + w.arg(q.Path) + ` AND path < ` + w.arg(subtreeEnd(q.Path)))
		}
		w.want(`deleted_at = 0`)
	}

	if q.Path != "" {
		w.want(`path >= ` + w.arg(q.Path) + ` AND path < ` + w.arg(subtreeEnd(q.Path)))
		if !q.WithSelf {
			w.want(`path <> ` + w.arg(q.Path))
		}
	}
	if q.RootID != "" && q.RootsOnly {
		w.want(`root_id = ` + w.arg(q.RootID))
	}
	if q.ParentID != "" {
		w.want(`parent_id = ` + w.arg(q.ParentID))
	}
	if q.RootsOnly {
		w.want(`parent_id = ''`)
	}
	if q.MaxDepth > 0 {
		w.want(`depth <= ` + w.arg(q.MaxDepth))
	}
	if q.NamePrefix != "" {
		w.want(`name_key >= ` + w.arg(prefix))
		if end := prefixEnd(prefix); end != "" {
			w.want(`name_key < ` + w.arg(end))
		}
	}
	if q.Tag != "" && q.ExternalID != "" {
		w.want(`EXISTS (SELECT 1 FROM org_tags AS t WHERE t.root_id = e.root_id AND t.tag = ` + w.arg(q.Tag) + ` AND t.org_id = e.id)`)
	}

	var p org.OrgPage
	var next []string
	more, err := t.page(w, q.Limit, func(r row) error {
		var nameKey string
		o, _, size, err := scanSized(r, &nameKey)
		if err != nil {
			return err
		}
		w.take(size)
		p.Orgs = append(p.Orgs, o)
		next = position(o, nameKey)
		return nil
	}, func(r row) error {
		next = make([]string, strings.Count(w.key, ",")+1)
		dest := make([]any, len(next))
		for i := range next {
			dest[i] = &next[i]
		}
		return r.Scan(dest...)
	})
	if more {
		p.Next = next
	}
	return p, err
}

// prefixEnd returns the first string after all those that start with prefix,
// empty if there is none. UTF-8 sorts by bytes as by code points.
func prefixEnd(prefix string) string {
	for prefix != "" {
		r, size := utf8.DecodeLastRuneInString(prefix)
		prefix = prefix[:len(prefix)-size]
		switch {
		case r == utf8.MaxRune:
		case r == 0xD7FF: // the surrogates follow
			return prefix + "\uE000"
		default:
			return prefix + string(r+1)
		}
	}
	return ""
}
