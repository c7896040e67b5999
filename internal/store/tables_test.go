package store_test

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/testkit"
)

const registry = "internal/store/tables.go"

// dbColumn is a column as the database describes it.
type dbColumn struct {
	name, kind string
	key        int // its place in the primary key from 1 on, 0 if it is not in it
}

// numeric reports whether a column holds numbers. What is not known to hold
// some is taken for text.
func (c dbColumn) numeric() bool {
	return slices.Contains([]string{"integer", "bigint", "boolean"}, strings.ToLower(c.kind))
}

func (c dbColumn) bytes() bool {
	return slices.Contains([]string{"blob", "bytea"}, strings.ToLower(c.kind))
}

// Partitions are parts of their tables. What only SQLite itself uses has names
// of its own.
var catalogs = map[string]string{
	store.SQLite: `SELECT m.name, p.name, p.type, CAST(p.pk AS TEXT) FROM sqlite_master AS m, pragma_table_info(m.name) AS p
		WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite!_%' ESCAPE '!' ORDER BY m.name, p.cid`,
	store.Postgres: `SELECT c.relname::text, a.attname::text, format_type(a.atttypid, NULL), coalesce((SELECT k.place
			FROM pg_index AS i, unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attribute, place)
			WHERE i.indrelid = c.oid AND i.indisprimary AND k.attribute = a.attnum), 0)::text
		FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_attribute AS a ON a.attrelid = c.oid
		WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
			AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg!_%' ESCAPE '!' ORDER BY c.relname, a.attnum`,
}

// database returns all tables of a database and their columns.
func database(t testing.TB, s *store.Store) map[string][]dbColumn {
	t.Helper()
	tables := map[string][]dbColumn{}
	look(t, s, func(tx testkit.Tx) error {
		rows, err := store.Select(tx, 4, catalogs[s.Kind()])
		for _, r := range rows {
			place, _ := strconv.Atoi(r[3])
			tables[r[0]] = append(tables[r[0]], dbColumn{r[1], r[2], place})
		}
		return err
	})
	return tables
}

func look(t testing.TB, s *store.Store, fn func(testkit.Tx) error) {
	t.Helper()
	if err := testkit.Whole(s).ReadHeavy(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func alter(t testing.TB, s *store.Store, fn func(testkit.Tx) error) {
	t.Helper()
	if err := testkit.Whole(s).Write(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// lacking returns what is to be done so that the registry says of each table of
// a database what there is.
func lacking(tables map[string][]dbColumn, known []store.Table) (todo []string) {
	say := func(format string, args ...any) { todo = append(todo, fmt.Sprintf(format, args...)) }
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		at := slices.IndexFunc(known, func(k store.Table) bool { return k.Name == name })
		if at < 0 {
			say("the table %s is not registered: add it to tables in %s, with its key, its owner, what its columns hold, and what a purge does with it", name, registry)
			continue
		}
		table := known[at]
		key := make([]string, len(table.Key))
		keyed := 0
		for _, c := range tables[name] {
			if c.key > 0 {
				if keyed++; c.key <= len(key) {
					key[c.key-1] = c.name
				}
			}
			of := slices.IndexFunc(table.Columns, func(k store.Column) bool { return k.Name == c.name })
			switch {
			case of < 0 && !c.numeric():
				say("the column %s.%s (%s) is not registered: add it to the Columns of its table in %s as an identifier, as personal with what an erasure does, or as neither with the reason",
					name, c.name, c.kind, registry)
			case of >= 0 && c.numeric():
				say("the column %s.%s holds numbers: remove it from the Columns of its table in %s", name, c.name, registry)
			}
		}
		if keyed != len(key) || !slices.Equal(key, table.Key) {
			say("the key of %s in %s is %q, and that of the database has %d columns, of them %q", name, registry, table.Key, keyed, key)
		}
		for _, c := range table.Columns {
			if !slices.ContainsFunc(tables[name], func(d dbColumn) bool { return d.name == c.Name }) {
				say("there is no column %s.%s: remove it from %s", name, c.Name, registry)
			}
		}
	}
	for _, k := range known {
		if tables[k.Name] == nil {
			say("there is no table %s: remove it from %s", k.Name, registry)
		}
	}
	return todo
}

// onEngines runs a test on a new database of each kind.
func onEngines(t *testing.T, test func(t *testing.T, s *store.Store)) {
	for _, kind := range []string{store.SQLite, store.Postgres} {
		t.Run(kind, func(t *testing.T) {
			if kind == store.SQLite {
				test(t, openSQLite(t, t.TempDir(), store.Options{}))
			} else {
				test(t, openPostgres(t, testkit.Postgres(t)))
			}
		})
	}
}

// Every table that the migrations make is in the registry with its key, and
// every column of text or bytes; and the registry names nothing else.
func TestTablesAreRegistered(t *testing.T) {
	onEngines(t, func(t *testing.T, s *store.Store) {
		if _, err := s.Partition(t.Context(), time.Now(), time.Now().AddDate(-1, 0, 0)); err != nil {
			t.Fatal(err)
		}
		for _, todo := range lacking(database(t, s), store.Tables()) {
			t.Error(todo)
		}
	})
}

// A table, a column and a key that are new are noticed, and what is in the
// registry alone.
func TestTablesNoticed(t *testing.T) {
	onEngines(t, func(t *testing.T, s *store.Store) {
		for _, statement := range []string{
			`CREATE TABLE surprises (id TEXT NOT NULL PRIMARY KEY, amount INTEGER NOT NULL)`,
			`ALTER TABLE meters ADD COLUMN remark TEXT NOT NULL DEFAULT ''`,
			`ALTER TABLE meters ADD COLUMN amount INTEGER NOT NULL DEFAULT 0`,
		} {
			alter(t, s, func(tx testkit.Tx) error { return store.Exec(tx, statement) })
		}
		known := store.Tables()
		for i := range known {
			switch k := &known[i]; k.Name {
			case "quotas":
				k.Key = []string{"root_id", "version"}
			case "marks":
				k.Columns = append(slices.Clone(k.Columns), store.Column{Name: "former", Class: store.Identifier})
			case "imports":
				k.Columns = append(slices.Clone(k.Columns), store.Column{Name: "chunks", Class: store.Identifier})
			}
		}
		known = append(known, store.Table{Name: "former"})
		got := lacking(database(t, s), known)
		for _, want := range []string{"the table surprises is not registered: add it to tables in " + registry,
			"the column meters.remark ", "the key of quotas ", "no column marks.former", "the column imports.chunks holds numbers", "no table former"} {
			at := slices.IndexFunc(got, func(s string) bool { return strings.Contains(s, want) && strings.Contains(s, registry) })
			if at < 0 {
				t.Errorf("nothing says that %s: %q", want, got)
				continue
			}
			got = slices.Delete(got, at, at+1)
		}
		if len(got) > 0 {
			t.Errorf("what is as the registry says was noticed too: %q", got)
		}
	})
}

// What the registry says of a table is whole: what refers to columns refers to
// those that are there, a purge has a part for all that it does and does it with
// all that is somebody's, and whatever is an exception has its reason.
func TestTablesAreWhole(t *testing.T) {
	all := store.Tables()
	var used []string
	for i, table := range all {
		fail := func(format string, args ...any) { t.Errorf(table.Name+": "+format, args...) }
		if slices.ContainsFunc(all[:i], func(o store.Table) bool { return o.Name == table.Name }) {
			fail("it is there twice")
		}
		is := func(name string) bool {
			return slices.ContainsFunc(table.Columns, func(c store.Column) bool { return c.Name == name && c.Class == store.Identifier })
		}
		refers := slices.Clone(table.Orgs)
		for _, m := range table.Mentions {
			if refers = append(refers, m.Column); m.Why == "" || slices.Contains(table.Orgs, m.Column) {
				fail("the column %s is its owner, or there is no reason for it to stay", m.Column)
			}
		}
		if table.Root != "" {
			refers = append(refers, table.Root)
		}
		for _, name := range refers {
			if !is(name) {
				fail("the column %s, which says whose it is, is no identifier", name)
			}
		}
		for n, c := range table.Columns {
			if slices.ContainsFunc(table.Columns[:n], func(o store.Column) bool { return o.Name == c.Name }) {
				fail("the column %s is there twice", c.Name)
			}
			switch c.Class {
			case store.Identifier:
			case store.Personal:
				reason := !slices.Contains([]store.Erasure{store.Erased, store.Counted}, c.Erasure)
				if reason && c.Why == "" || !slices.Contains([]store.Erasure{store.Erased, store.Counted, store.Follows, store.Passes, store.Stays}, c.Erasure) {
					fail("of the personal column %s it is not said what an erasure does, or why nothing", c.Name)
				}
			case store.Neither:
				if c.Why == "" {
					fail("of the column %s it is not said what it is", c.Name)
				}
			default:
				fail("the column %s has the class %q", c.Name, c.Class)
			}
		}
		if via := table.Via; via.Table != "" {
			at := slices.IndexFunc(all, func(o store.Table) bool { return o.Name == via.Table })
			if at < 0 || len(all[at].Orgs) == 0 || len(via.Columns) == 0 || len(via.Columns) != len(via.To) {
				fail("the way to its owner leads nowhere")
			}
		}
		switch {
		case table.Owner == store.OwnedByOrg && len(table.Orgs) == 0 && table.Via.Table == "",
			table.Owner == store.OwnedByRoot && (table.Root == "" || len(table.Orgs) > 0),
			table.Owner == store.OwnedByNone && (table.Root != "" || len(table.Orgs) > 0),
			!slices.Contains([]store.Owner{store.OwnedByOrg, store.OwnedByRoot, store.OwnedByNone}, table.Owner):
			fail("it is of an %q, and does not say of which, or says so of none", table.Owner)
		}
		var reached []string
		for _, p := range append([]store.Purge{table.OfRoot}, table.OfOrg...) {
			reached = append(reached, p.By...)
			switch p.Do {
			case store.Removes, store.Renames:
				if used = append(used, p.Part); !slices.Contains(store.PurgeParts(), p.Part) {
					fail("a purge has no part %q", p.Part)
				}
				if p.Part == store.PartRows && p.Once == (p.Weight > 0) {
					fail("a purge that removes rows does so at once, or each has a weight")
				}
				if table.Owner == store.OwnedByNone {
					fail("a purge takes what is nobody's")
				}
			case store.Keeps:
				if p.Why == "" {
					fail("it is not said why a purge keeps it")
				}
			default:
				fail("a purge does %q", p.Do)
			}
		}
		if table.OfRoot.Do == store.Renames || len(table.OfRoot.By) > 0 {
			fail("nothing is above a root that would count what it consumed")
		}
		slices.Sort(reached)
		switch {
		case len(table.OfOrg) == 0:
			fail("it is not said what the purge of an organization does")
		case table.OfOrg[0].Do == store.Keeps && len(table.OfOrg) > 1, table.OfOrg[0].Do != store.Keeps && !slices.Equal(reached, slices.Sorted(slices.Values(table.Orgs))):
			fail("a purge goes by the columns %q, and it is owned by %q", reached, table.Orgs)
		}
	}
	for _, part := range store.PurgeParts() {
		if !slices.Contains(used, part) {
			t.Errorf("the part %s of a purge is for no table", part)
		}
	}
}

// holding returns in how many values of each column, as "table.column", a text is
// found.
func holding(t testing.TB, s *store.Store, found func(text string) bool) map[string]int {
	t.Helper()
	held := map[string]int{}
	for name, columns := range database(t, s) {
		var names, selected []string
		for _, c := range columns {
			switch {
			case c.numeric():
				continue
			case c.bytes() && s.Kind() == store.Postgres:
				selected = append(selected, `encode(`+c.name+`, 'escape')`)
			default:
				selected = append(selected, `CAST(`+c.name+` AS TEXT)`)
			}
			names = append(names, name+"."+c.name)
		}
		if len(names) == 0 {
			continue
		}
		look(t, s, func(tx testkit.Tx) error {
			rows, err := store.Select(tx, len(names), `SELECT `+strings.Join(selected, `, `)+` FROM `+name)
			for _, r := range rows {
				for i, text := range r {
					if found(text) {
						held[names[i]]++
					}
				}
			}
			return err
		})
	}
	return held
}

// named finds an id where it is one, alone, in a path or in a text: what a purge
// has renamed is another one.
func named(id string) func(string) bool {
	return regexp.MustCompile(`(^|[^a-z0-9_-])` + regexp.QuoteMeta(id) + `($|[^a-z0-9_!-])`).MatchString
}

// planter fills every table that is somebody's, as far as the registry says whose.
type planter struct {
	t      *testing.T
	s      *store.Store
	tables map[string][]dbColumn
	n      int
	rows   map[string][]map[string]any // by their tables
}

// row inserts a row with values in some columns, and whatever will do in others.
func (p *planter) row(table string, values map[string]any) {
	p.n++
	row := map[string]any{}
	var names, places []string
	var args []any
	for i, c := range p.tables[table] {
		v, ok := values[c.name]
		switch {
		case ok:
		case c.name == "month":
			v = "2026-11"
		case c.name == "day":
			v = "2026-11-07"
		case c.name == "meter":
			v = "m"
		case c.numeric():
			v = int64(p.n)
		case c.bytes():
			v = []byte("x")
		default:
			v = fmt.Sprint("x", p.n)
		}
		row[c.name] = v
		names, places, args = append(names, c.name), append(places, "$"+strconv.Itoa(i+1)), append(args, v)
	}
	alter(p.t, p.s, func(tx testkit.Tx) error {
		return store.Exec(tx, `INSERT INTO `+table+` (`+strings.Join(names, `, `)+`) VALUES (`+strings.Join(places, `, `)+`)`, args...)
	})
	p.rows[table] = append(p.rows[table], row)
}

// plant gives a root and organizations of it rows in every table, for each column
// that may say that a row is theirs or mention them in a row of another one.
func (p *planter) plant(rootID, other string, ids ...string) {
	for _, via := range []bool{false, true} {
		for _, table := range store.Tables() {
			if table.Owner == store.OwnedByNone || via != (table.Via.Table != "") || slices.Contains([]string{"orgs", "org_tags", "audit_heads"}, table.Name) {
				continue // or InsertOrgs and NewLog fill it
			}
			root := map[string]any{}
			if table.Root != "" {
				root[table.Root] = rootID
			}
			if via {
				for _, owner := range p.rows[table.Via.Table] {
					values := maps.Clone(root)
					for i, c := range table.Via.Columns {
						values[c] = owner[table.Via.To[i]]
					}
					if root := owner["root_id"]; root == rootID {
						p.row(table.Name, values)
					}
				}
				continue
			}
			if len(table.Orgs) == 0 {
				p.row(table.Name, root)
			}
			for _, id := range ids {
				for _, c := range table.Orgs {
					values := maps.Clone(root)
					for _, o := range table.Orgs {
						values[o] = "beside-" + id // the same in totals and in the days that they are of
					}
					values[c] = id
					p.row(table.Name, values)
				}
				for _, m := range table.Mentions {
					values := maps.Clone(root)
					values[table.Orgs[0]], values[m.Column] = other, id
					p.row(table.Name, values)
				}
			}
		}
	}
}

// After a purge nothing of an id is left in any column of the database, apart
// from what the registry says is kept and why; what it says is renamed has the
// other name, and what is of others is as it was.
func TestTablesArePurged(t *testing.T) {
	for _, top := range []string{"top", "theroot"} {
		t.Run(top, func(t *testing.T) {
			onEngines(t, func(t *testing.T, s *store.Store) { testTablesArePurged(t, s, top) })
		})
	}
}

func testTablesArePurged(t *testing.T, s *store.Store, top string) {
	begin := time.Date(2026, 11, 7, 0, 0, 0, 0, time.UTC)
	alter(t, s, func(tx testkit.Tx) error {
		var orgs []*org.Organization
		for _, path := range []string{"theroot/", "theroot/remains/", "theroot/top/", "theroot/top/below/", "foreign/", "foreign/theirs/"} {
			ids := org.SplitPath(path)
			o := &org.Organization{ID: ids[len(ids)-1], RootID: ids[0], Path: path, Depth: len(ids) - 1, Name: "O", Type: org.TypeOrganization, Tags: []string{"tag"},
				CreatedAt: begin, UpdatedAt: begin, Version: 1, Settings: org.Settings{Values: []byte("{}"), UpdatedAt: begin}}
			if len(ids) > 1 {
				o.ParentID = ids[len(ids)-2]
			}
			orgs = append(orgs, o)
		}
		return errors.Join(tx.InsertOrgs(orgs), tx.NewLog(&audit.Head{RootID: "theroot", LogID: "log1"}), tx.NewLog(&audit.Head{RootID: "foreign", LogID: "log2"}))
	})
	p := &planter{t: t, s: s, tables: database(t, s), rows: map[string][]map[string]any{}}
	p.plant("theroot", "remains", "theroot", "remains", "top", "below")
	p.plant("foreign", "foreign", "theirs")

	// Keys have ids that begin with x.
	path, purged, others := "theroot/top/", []string{"top", "below"}, []string{"remains", "foreign", "theirs"}
	if top == "theroot" {
		path, purged, others = "theroot/", []string{"theroot", "remains", "top", "below"}, []string{"foreign", "theirs"}
	}
	for _, row := range p.rows["api_keys"] {
		if id := row["id"].(string); slices.Contains(purged, row["org_id"].(string)) {
			purged = append(purged, id)
		} else {
			others = append(others, id)
		}
	}
	before := map[string]map[string]int{}
	for _, id := range slices.Concat(purged, others) {
		before[id] = holding(t, s, named(id))
	}
	alter(t, s, func(tx testkit.Tx) error {
		_, err := tx.MarkDeleted("theroot", path, "del_1", begin)
		if err == nil {
			_, err = tx.BeginPurge("theroot", "del_1", begin)
		}
		return err
	})
	for done, steps := false, 0; !done; steps++ {
		if steps > 1000 {
			t.Fatal("the purge does not end")
		}
		alter(t, s, func(tx testkit.Tx) (err error) {
			_, done, err = tx.Purge("theroot", "del_1", 7, begin)
			return err
		})
	}

	whole := top == "theroot"
	for _, id := range purged {
		after := holding(t, s, named(id))
		renamed := holding(t, s, func(text string) bool { return text == id+metering.FormerMark+"del_1" })
		for _, table := range store.Tables() {
			does := table.OfOrg
			if whole {
				does = []store.Purge{table.OfRoot}
			}
			for _, c := range table.Columns {
				column := table.Name + "." + c.Name
				had, has := before[id][column], after[column]
				delete(after, column)
				stays := table.Owner != store.OwnedByNone && does[0].Do == store.Keeps || !whole && slices.ContainsFunc(table.Mentions, func(m store.Mention) bool { return m.Column == c.Name })
				switch {
				case table.Owner == store.OwnedByNone:
				case stays && has != had:
					t.Errorf("%s held %s in %d rows, and the registry says that they stay; now it does in %d", column, id, had, has)
				case !stays && has > 0:
					t.Errorf("%s still holds %s in %d of %d rows", column, id, has, had)
				}
				isKey := strings.HasPrefix(id, "x")
				if had == 0 && (id == "theroot" && c.Name == table.Root || isKey && table.Via.Table == "api_keys" && slices.Contains(table.Via.Columns, c.Name)) {
					t.Errorf("this test has planted nothing of %s in %s", id, column)
				}
				for _, does := range table.OfOrg {
					owns := slices.Contains(does.By, c.Name) && !isKey && id != "theroot"
					if owns && had == 0 {
						t.Errorf("this test has planted nothing of %s in %s", id, column)
					}
					if owns && !whole && does.Do == store.Renames && renamed[column] != had {
						t.Errorf("%s held %s in %d rows, of which %d have the new name", column, id, had, renamed[column])
					}
				}
			}
		}
		for column, n := range after {
			t.Errorf("%s holds %s in %d rows, and the registry does not know of it", column, id, n)
		}
	}
	for _, id := range others {
		if after := holding(t, s, named(id)); !maps.Equal(after, before[id]) {
			t.Errorf("%s was held by %v, now it is by %v", id, before[id], after)
		}
	}
}

// After an erasure no column that the registry says is erased holds the subject,
// and no column at all of which it does not say that the subject may be in it.
func TestTablesAreErased(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			const subject = "Ann.Erasure-Subject"
			s := testkit.Start(t, engine)
			op := s.OperatorKey
			s.Must(201, "POST", "/orgs", op, `{"id":"acme","name":"Acme"}`)
			s.Must(201, "POST", "/orgs/acme/children", op, `{"id":"eu","name":"EU","description":"of `+subject+`","tags":["`+strings.ToLower(subject)+`"]}`)
			left := s.Must(201, "POST", "/orgs/eu/api_keys", op, `{"name":"`+subject+`","permissions":["admin"]}`)
			s.Must(200, "GET", "/orgs/eu", left.String("secret"), "")
			s.Must(200, "DELETE", "/orgs/eu/api_keys/"+left.String("id"), op, "")
			_, stays := s.NewKey("eu", `"permissions":["admin"]`)
			s.Must(200, "POST", "/orgs/eu/api_keys/"+stays+"/rotate", op, `{"overlap_seconds":3600}`)
			s.Must(200, "POST", "/orgs/eu/consumption/adjustments", op, `{"meter":"api_calls","quantity":1,"reason":"asked by `+subject+`"}`)
			if err := s.Recorder.Drain(t.Context()); err != nil {
				t.Fatal(err)
			}

			holds := func(text string) bool { return strings.Contains(strings.ToLower(text), strings.ToLower(subject)) }
			// Where the calls above have not brought the subject, it is put.
			before := holding(t, s.Store, holds)
			for _, table := range store.Tables() {
				for _, c := range table.Columns {
					if c.Erasure != store.Erased || before[table.Name+"."+c.Name] > 0 {
						continue
					}
					where := ``
					if strings.HasPrefix(c.Name, "old_") { // of secrets that have been replaced
						where = ` WHERE length(old_hash) > 0`
					}
					alter(t, s.Store, func(tx testkit.Tx) error {
						return store.Exec(tx, `UPDATE `+table.Name+` SET `+c.Name+` = $1`+where, subject)
					})
				}
			}
			before = holding(t, s.Store, holds)
			a := s.Must(200, "POST", "/orgs/acme/audit_erasures", op, `{"subject":"`+subject+`","basis":"Request 1"}`)
			if a.JSON("remaining", "organizations") != 1.0 {
				t.Errorf("the organization whose description holds the subject is not counted: %s", a.Body)
			}
			after := holding(t, s.Store, holds)
			for _, table := range store.Tables() {
				for _, c := range table.Columns {
					column := table.Name + "." + c.Name
					switch {
					case c.Erasure == store.Erased && before[column] == 0:
						t.Errorf("this test has not planted the subject in %s", column)
					case c.Erasure == store.Erased && after[column] > 0:
						t.Errorf("%s still holds the subject in %d of %d rows", column, after[column], before[column])
					case c.Class != store.Personal && after[column] > 0:
						t.Errorf("%s holds the subject in %d rows, and is not personal", column, after[column])
					}
				}
			}
			if after["orgs.description"] != 1 || after["org_tags.tag"] != 1 {
				t.Errorf("what is in force has changed: %v", after)
			}
		})
	}
}
