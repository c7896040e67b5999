package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
)

func testTransactions(t *testing.T, s Store) {
	Plant(t, s, "r/")

	t.Run("a failed write keeps nothing", func(t *testing.T) {
		failure := errors.New("no")
		err := s.Metering().Write(t.Context(), func(tx metering.Tx) error {
			if err := tx.InsertOrgs([]*org.Organization{newOrg("r/a/")}); err != nil {
				return err
			}
			return failure
		})
		WantErr(t, err, failure)
		WantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, err := tx.Org("a"); return err }), org.ErrAbsent)
	})
	t.Run("a write sees its own changes", func(t *testing.T) {
		Write(t, s, func(tx metering.Tx) error {
			if err := tx.InsertOrgs([]*org.Organization{newOrg("r/b/")}); err != nil {
				return err
			}
			_, err := tx.Org("b")
			return err
		})
	})
	t.Run("a read cannot write", func(t *testing.T) {
		err := s.Metering().Read(t.Context(), func(tx metering.Tx) error { return tx.InsertOrgs([]*org.Organization{newOrg("r/c/")}) })
		if err == nil {
			t.Error("a read wrote")
		}
		WantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, err := tx.Org("c"); return err }), org.ErrAbsent)
	})
	t.Run("a read is one snapshot", func(t *testing.T) {
		Read(t, s, func(tx metering.Tx) error {
			before, err := tx.Org("b")
			if err != nil {
				return err
			}
			Write(t, s, func(tx metering.Tx) error {
				o, err := tx.Org("b")
				if err != nil {
					return err
				}
				o.Name, o.Version = "changed meanwhile", o.Version+1
				return tx.UpdateOrg(o)
			})
			after, err := tx.Org("b")
			WantEqual(t, after, before)
			return err
		})
	})
	t.Run("a cancelled context starts nothing", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := s.Metering().Write(ctx, func(tx metering.Tx) error { return tx.InsertOrgs([]*org.Organization{newOrg("r/d/")}) })
		if err == nil {
			t.Error("no error")
		}
		WantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, err := tx.Org("d"); return err }), org.ErrAbsent)
	})
	t.Run("a write that has started is not cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		err := s.Metering().Write(ctx, func(tx metering.Tx) error {
			cancel()
			return tx.InsertOrgs([]*org.Organization{newOrg("r/e/")})
		})
		if err != nil {
			t.Fatal(err)
		}
		Read(t, s, func(tx metering.Tx) error { _, err := tx.Org("e"); return err })
	})
	t.Run("a panic is an error and keeps nothing", func(t *testing.T) {
		err := s.Metering().Write(t.Context(), func(tx metering.Tx) error {
			if err := tx.InsertOrgs([]*org.Organization{newOrg("r/f/")}); err != nil {
				return err
			}
			panic("oh")
		})
		if err == nil || !strings.Contains(err.Error(), "oh") {
			t.Errorf("error %v", err)
		}
		WantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, err := tx.Org("f"); return err }), org.ErrAbsent)
	})
}

func testOrgs(t *testing.T, s Store) {
	root, child := newOrg("r/"), newOrg("r/Child-1/")
	child.Name, child.Type, child.Description = "Ünïcode 名前 🙂", org.TypeGroup, "line\nbreak"
	child.ExternalID, child.Tags = "ext/1", split("a b.c d:e")
	child.Settings = org.Settings{Values: []byte(`{"a":{"b":[1,null,"x"]}}`), Locked: []string{"/a/b", "/c"}, UpdatedAt: At(3)}
	child.UpdatedAt = At(5)
	insert(t, s, root, child)

	got := Get(t, s, func(tx metering.Tx) (*org.Organization, error) { return tx.Org("Child-1") })
	WantEqual(t, got, child)
	WantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, err := tx.Org("child-1"); return err }), org.ErrAbsent)

	within := func(id, path string, self bool) (*org.Organization, error) {
		var o *org.Organization
		err := s.Metering().Read(t.Context(), func(tx metering.Tx) (err error) { o, err = tx.OrgWithin(id, path, self); return err })
		return o, err
	}
	for _, path := range split("r/ r/Child-1/") {
		o, err := within("Child-1", path, false)
		WantErr(t, err, nil)
		WantEqual(t, o, child)
	}
	o, err := within("Child-1", "r/Child-1/", true)
	WantErr(t, err, nil)
	WantEqual(t, o, child)
	for _, tt := range []struct {
		id, path string
		self     bool
	}{{"Child-1", "q/", false}, {"Child-1", "r/Child-1/x/", false}, {"Child-1", "r/child-1/", false}, {"Child-1", "%", false},
		{"r", "r/Child-1/", false}, {"Child-1", "r/", true}, {"absent", "r/", false}, {"absent", "r/absent/", true}} {
		_, err := within(tt.id, tt.path, tt.self)
		WantErr(t, err, org.ErrAbsent)
	}

	found := Get(t, s, func(tx metering.Tx) ([]*org.Organization, error) { return tx.OrgsByID(split("Child-1 absent r")) })
	WantEqual(t, sorted(ids(found)), split("Child-1 r"))
	found = Get(t, s, func(tx metering.Tx) ([]*org.Organization, error) { return tx.OrgsByID(nil) })
	WantEqual(t, ids(found), []string(nil))

	versions := Get(t, s, func(tx metering.Tx) (map[string]org.Version, error) { return tx.Versions(split("Child-1 absent r")) })
	WantEqual(t, versions, map[string]org.Version{"r": {CreatedAt: root.CreatedAt, Version: root.Version}, "Child-1": {CreatedAt: child.CreatedAt, Version: child.Version}})
	Write(t, s, func(tx metering.Tx) error {
		o, err := tx.Org("Child-1")
		if err != nil {
			return err
		}
		o.Version++
		return tx.UpdateOrg(o)
	})
	versions = Get(t, s, func(tx metering.Tx) (map[string]org.Version, error) { return tx.Versions(split("Child-1")) })
	WantEqual(t, versions, map[string]org.Version{"Child-1": {CreatedAt: child.CreatedAt, Version: child.Version + 1}})

	t.Run("an id is taken, even in another root or by a deleted organization", func(t *testing.T) {
		Plant(t, s, "q/", "q/gone/")
		Write(t, s, func(tx metering.Tx) error { _, err := tx.MarkDeleted("q", "q/gone/", "del", At(1)); return err })
		for _, path := range split("r/r/ q/Child-1/ r/gone/ Child-1/") {
			err := s.Metering().Write(t.Context(), func(tx metering.Tx) error {
				return tx.InsertOrgs([]*org.Organization{newOrg("r/new/"), newOrg(path)})
			})
			var taken *org.TakenError
			if !errors.As(err, &taken) || taken.ID != newOrg(path).ID {
				t.Errorf("%s: error %v", path, err)
			}
			WantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, err := tx.Org("new"); return err }), org.ErrAbsent)
		}
	})
	t.Run("a taken id leaves the transaction usable", func(t *testing.T) {
		Write(t, s, func(tx metering.Tx) error {
			var taken *org.TakenError
			if err := tx.InsertOrgs([]*org.Organization{newOrg("r/r/")}); !errors.As(err, &taken) {
				t.Errorf("error %v", err)
			}
			return tx.InsertOrgs([]*org.Organization{newOrg("r/usable/")})
		})
		Read(t, s, func(tx metering.Tx) error { _, err := tx.Org("usable"); return err })
	})
	t.Run("the same id inserted at once succeeds once", func(t *testing.T) {
		var wg sync.WaitGroup
		results := make(chan error, 10)
		for range cap(results) {
			wg.Go(func() {
				results <- s.Metering().Write(context.Background(), func(tx metering.Tx) error {
					return tx.InsertOrgs([]*org.Organization{newOrg("r/race/")})
				})
			})
		}
		wg.Wait()
		close(results)
		won := 0
		for err := range results {
			var taken *org.TakenError
			if err == nil {
				won++
			} else if !errors.As(err, &taken) {
				t.Error(err)
			}
		}
		if won != 1 {
			t.Errorf("%d succeeded", won)
		}
	})
}

func testUpdateOrg(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/")
	byTag := func(tag string) []string {
		return ids(Get(t, s, func(tx metering.Tx) (org.OrgPage, error) {
			return tx.Orgs(org.OrgQuery{RootID: "r", Tag: tag, Limit: 10})
		}).Orgs)
	}
	want := newOrg("r/a/")
	want.Name, want.Description, want.Type, want.ExternalID = "New", "d", org.TypeGroup, "x"
	want.Tags, want.Settings = split("one two"), org.Settings{Values: []byte(`{"k":1}`), Locked: split("/k"), UpdatedAt: At(1)}
	want.UpdatedAt, want.Version = At(1), 2
	Write(t, s, func(tx metering.Tx) error { return tx.UpdateOrg(want) })
	WantEqual(t, Get(t, s, func(tx metering.Tx) (*org.Organization, error) { return tx.Org("a") }), want)
	WantEqual(t, byTag("one"), split("a"))

	WantErr(t, s.Metering().Write(t.Context(), func(tx metering.Tx) error { return tx.UpdateOrg(want) }), org.ErrStale)
	absent := newOrg("r/absent/")
	absent.Version = 2
	WantErr(t, s.Metering().Write(t.Context(), func(tx metering.Tx) error { return tx.UpdateOrg(absent) }), org.ErrStale)

	t.Run("the indexes follow, also twice in one transaction", func(t *testing.T) {
		Write(t, s, func(tx metering.Tx) error {
			o, err := tx.Org("a")
			if err != nil {
				return err
			}
			o.Tags, o.Version = split("three two"), 3
			if err := tx.UpdateOrg(o); err != nil {
				return err
			}
			o.Name, o.ExternalID, o.Tags, o.Version = "Newer", "", split("three"), 4
			return tx.UpdateOrg(o)
		})
		for tag, want := range map[string][]string{"one": nil, "two": nil, "three": split("a")} {
			WantEqual(t, byTag(tag), want)
		}
		for _, q := range []org.OrgQuery{{NamePrefix: "NEWER"}, {Tag: "three"}} {
			q.RootID, q.Limit = "r", 10
			WantEqual(t, ids(Get(t, s, func(tx metering.Tx) (org.OrgPage, error) { return tx.Orgs(q) }).Orgs), split("a"))
		}
		gone := org.OrgQuery{RootID: "r", ExternalID: "x", Limit: 10}
		WantEqual(t, ids(Get(t, s, func(tx metering.Tx) (org.OrgPage, error) { return tx.Orgs(gone) }).Orgs), []string(nil))
	})
	t.Run("of two updates of one version one wins", func(t *testing.T) {
		for round := range 10 {
			var wg sync.WaitGroup
			errs := make([]error, 4)
			for i := range errs {
				wg.Go(func() {
					errs[i] = s.Metering().Write(context.Background(), func(tx metering.Tx) error {
						o := newOrg("r/a/")
						o.Name, o.Version = fmt.Sprint(round, i), int64(5+round)
						return tx.UpdateOrg(o)
					})
				})
			}
			wg.Wait()
			won := 0
			for _, err := range errs {
				if err == nil {
					won++
				} else {
					WantErr(t, err, org.ErrStale)
				}
			}
			if won != 1 {
				t.Errorf("%d won", won)
			}
		}
	})
}

func testMove(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/", "r/a/x/", "r/a/x/y/", "r/a/x/z/", "r/a/xx/", "r/b/", "r/b/c/")
	Write(t, s, func(tx metering.Tx) error { _, err := tx.MarkDeleted("r", "r/a/x/z/", "del", At(1)); return err })
	Write(t, s, func(tx metering.Tx) error {
		n, err := tx.MoveSubtree("r", "x", "c", "r/a/x/", "r/b/c/x/", 1, At(2))
		WantEqual(t, n, int64(2))
		return err
	})
	for id, want := range map[string]string{"x": "r/b/c/x/", "y": "r/b/c/x/y/", "z": "r/b/c/x/z/", "xx": "r/a/xx/"} {
		o := Get(t, s, func(tx metering.Tx) (*org.Organization, error) { return tx.Org(id) })
		if o.Path != want || o.Depth != len(o.PathIDs())-1 {
			t.Errorf("%s: path %s, depth %d", id, o.Path, o.Depth)
		}
		moved := id == "x"
		if moved != (o.Version == 2) && id != "z" || moved != o.UpdatedAt.Equal(At(2)) || moved != (o.ParentID == "c") {
			t.Errorf("%s: version %d, updated at %v, parent %s", id, o.Version, o.UpdatedAt, o.ParentID)
		}
	}
	deepest := func(path string) int {
		return Get(t, s, func(tx metering.Tx) (int, error) { return tx.DeepestBelow("r", path) })
	}
	WantEqual(t, []int{deepest("r/"), deepest("r/a/"), deepest("r/b/c/x/y/")}, []int{4, 2, 4})
	children := Get(t, s, func(tx metering.Tx) (org.OrgPage, error) {
		return tx.Orgs(org.OrgQuery{RootID: "r", ParentID: "c", Limit: 10})
	})
	WantEqual(t, ids(children.Orgs), split("x"))
	err := s.Metering().Write(t.Context(), func(tx metering.Tx) error {
		_, err := tx.MoveSubtree("r", "absent", "c", "r/absent/", "r/c/absent/", 1, At(2))
		return err
	})
	WantErr(t, err, org.ErrAbsent)
}

func live(t testing.TB, s Store, rootID string) []string {
	t.Helper()
	q := org.OrgQuery{RootID: rootID, Limit: 1000}
	return ids(Get(t, s, func(tx metering.Tx) (org.OrgPage, error) { return tx.Orgs(q) }).Orgs)
}

func testDeleteRestore(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/", "r/a/b/", "r/a/b/c/", "r/ab/")
	revoked := newKey("key_revoked", "r/a/b/")
	revoked.RevokedAt = &revoked.CreatedAt
	Write(t, s, func(tx metering.Tx) error {
		return errors.Join(tx.InsertKey(newKey("key_1", "r/a/")), tx.InsertKey(newKey("key_2", "r/a/b/c/")),
			tx.InsertKey(newKey("key_3", "r/ab/")), tx.InsertKey(revoked))
	})
	count := func(path string) org.Counts {
		return Get(t, s, func(tx metering.Tx) (org.Counts, error) { return tx.CountSubtree("r", path) })
	}
	WantEqual(t, count("r/"), org.Counts{Organizations: 5, APIKeys: 3})
	WantEqual(t, count("r/a/"), org.Counts{Organizations: 3, APIKeys: 2})

	mark := func(path, deletionID string, seconds int, want org.Counts) {
		t.Helper()
		Write(t, s, func(tx metering.Tx) error {
			c, err := tx.MarkDeleted("r", path, deletionID, At(seconds))
			WantEqual(t, c, want)
			return err
		})
	}
	restore := func(deletionID string, want org.Counts) {
		t.Helper()
		Write(t, s, func(tx metering.Tx) error {
			c, err := tx.MarkRestored("r", deletionID)
			WantEqual(t, c, want)
			return err
		})
	}
	mark("r/a/b/c/", "del_1", 1, org.Counts{Organizations: 1, APIKeys: 1})
	mark("r/a/", "del_2", 2, org.Counts{Organizations: 2, APIKeys: 1})
	WantEqual(t, live(t, s, "r"), split("r ab"))
	WantEqual(t, count("r/"), org.Counts{Organizations: 2, APIKeys: 1})
	o := Get(t, s, func(tx metering.Tx) (*org.Organization, error) { return tx.Org("b") })
	if o.DeletedAt == nil || !o.DeletedAt.Equal(At(2)) || o.DeletionID != "del_2" || o.Version != 2 {
		t.Errorf("deleted at %v by %q, version %d", o.DeletedAt, o.DeletionID, o.Version)
	}
	restore("del_2", org.Counts{Organizations: 2, APIKeys: 1})
	WantEqual(t, live(t, s, "r"), split("r a b ab"))
	restore("del_2", org.Counts{})
	restore("", org.Counts{})
	restore("del_1", org.Counts{Organizations: 1, APIKeys: 1})
	WantEqual(t, count("r/"), org.Counts{Organizations: 5, APIKeys: 3})
	o = Get(t, s, func(tx metering.Tx) (*org.Organization, error) { return tx.Org("b") })
	if o.DeletedAt != nil || o.DeletionID != "" || !o.UpdatedAt.Equal(Epoch) {
		t.Errorf("restored: deleted at %v by %q, updated at %v", o.DeletedAt, o.DeletionID, o.UpdatedAt)
	}
}

func testSchema(t *testing.T, s Store) {
	Plant(t, s, "r/")
	WantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, err := tx.Schema("r"); return err }), org.ErrAbsent)
	for _, schema := range split(`{"a":1} {"b":2}`) {
		Write(t, s, func(tx metering.Tx) error { return tx.PutSchema("r", []byte(schema)) })
		WantEqual(t, string(Get(t, s, func(tx metering.Tx) ([]byte, error) { return tx.Schema("r") })), schema)
	}
	Write(t, s, func(tx metering.Tx) error { return tx.PutSchema("r", nil) })
	WantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, err := tx.Schema("r"); return err }), org.ErrAbsent)
}

func testOrgQueries(t *testing.T, s Store) {
	acme := newOrg("r/a/b/")
	acme.Name, acme.Tags, acme.ExternalID = "ACME Éclair", split("blue red"), "E-1"
	other := newOrg("q/k/")
	other.Name, other.Tags, other.ExternalID = "acme two", split("red"), "E-1"
	insert(t, s, newOrg("r/"), newOrg("r/a/"), acme, newOrg("r/a/b/c/"), newOrg("r/a-b/"), newOrg("r/a0/"), newOrg("r/gone/"),
		newOrg("q/"), other, newOrg("q-1/"))
	Write(t, s, func(tx metering.Tx) error { _, err := tx.MarkDeleted("r", "r/gone/", "del", At(1)); return err })

	for _, test := range []struct {
		name  string
		query org.OrgQuery
		want  string
	}{
		{"a root, depth first", org.OrgQuery{RootID: "r"}, "r a-b a b c a0"},
		{"everything", org.OrgQuery{}, "q k q-1 r a-b a b c a0"},
		{"below a path", org.OrgQuery{RootID: "r", Path: "r/a/"}, "b c"},
		{"at and below a path", org.OrgQuery{RootID: "r", Path: "r/a/", WithSelf: true}, "a b c"},
		{"a path says its root", org.OrgQuery{Path: "r/a/"}, "b c"},
		{"to a depth", org.OrgQuery{RootID: "r", Path: "r/", MaxDepth: 1}, "a-b a a0"},
		{"children", org.OrgQuery{RootID: "r", ParentID: "r"}, "a a-b a0"},
		{"children of an organization in any root", org.OrgQuery{ParentID: "r"}, "a a-b a0"},
		{"children of nobody", org.OrgQuery{ParentID: "absent"}, ""},
		{"roots", org.OrgQuery{RootsOnly: true}, "q-1 q r"},
		{"a name", org.OrgQuery{NamePrefix: "acME"}, "k b"},
		{"a name in a root", org.OrgQuery{RootID: "r", NamePrefix: "aCme é"}, "b"},
		{"a name below a path", org.OrgQuery{RootID: "r", Path: "r/a/b/", NamePrefix: "acme"}, ""},
		{"a name of roots", org.OrgQuery{NamePrefix: "org q", RootsOnly: true}, "q q-1"},
		{"a name to a depth", org.OrgQuery{NamePrefix: "org", RootID: "r", MaxDepth: 1}, "a a-b a0 r"},
		{"a tag", org.OrgQuery{Tag: "red"}, "b k"},
		{"a tag in a root", org.OrgQuery{RootID: "q", Tag: "red"}, "k"},
		{"a tag and a name", org.OrgQuery{Tag: "red", NamePrefix: "acme t"}, "k"},
		{"part of a tag", org.OrgQuery{Tag: "re"}, ""},
		{"an external id", org.OrgQuery{ExternalID: "E-1"}, "b k"},
		{"an external id in a root", org.OrgQuery{RootID: "q", ExternalID: "E-1"}, "k"},
		{"an external id and a tag", org.OrgQuery{ExternalID: "E-1", Tag: "blue"}, "b"},
		{"another case of an external id", org.OrgQuery{ExternalID: "e-1"}, ""},
	} {
		for _, limit := range []int{1, 2, 100} {
			t.Run(fmt.Sprintf("%s by %d", test.name, limit), func(t *testing.T) {
				test.query.Limit = limit
				WantEqual(t, ids(allOrgs(t, s, test.query)), split(test.want))
			})
		}
	}
}

// allOrgs reads all pages.
func allOrgs(t testing.TB, s Store, q org.OrgQuery) []*org.Organization {
	t.Helper()
	var all []*org.Organization
	for pages := 0; ; pages++ {
		p := Get(t, s, func(tx metering.Tx) (org.OrgPage, error) { return tx.Orgs(q) })
		if len(p.Orgs) > q.Limit {
			t.Fatalf("a page of %d, limit %d", len(p.Orgs), q.Limit)
		}
		all = append(all, p.Orgs...)
		if p.Next == nil {
			return all
		}
		if slices.Equal(p.Next, q.After) {
			t.Fatalf("no progress after %v", q.After)
		}
		q.After = p.Next
	}
}

func testOrgQueriesBounded(t *testing.T, s Store) {
	orgs := []*org.Organization{newOrg("r/")}
	for i := range 6000 {
		o := newOrg(fmt.Sprintf("r/o%05d/", i))
		o.Tags = split("many")
		orgs = append(orgs, o)
	}
	last := newOrg("r/o05999/below/")
	last.Name, last.Tags = "Org o05999 below", split("many")
	insert(t, s, append(orgs, last)...)
	for name, q := range map[string]org.OrgQuery{
		"path": {RootID: "r", Path: "r/o05999/", MaxDepth: 9, NamePrefix: "org", Limit: 10},
		"tag":  {RootID: "r", Path: "r/o05999/", Tag: "many", Limit: 10},
		"all":  {Path: "r/o05999/", Tag: "many", Limit: 10},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "tag" || name == "all" {
				last := Get(t, s, func(tx metering.Tx) (org.OrgPage, error) { return tx.Orgs(q) })
				if len(last.Orgs) == 0 && last.Next == nil {
					t.Error("an empty page that is not the last has no next")
				}
			}
			WantEqual(t, ids(allOrgs(t, s, q)), split("below"))
		})
	}
	q := org.OrgQuery{RootID: "r", NamePrefix: "org", Path: "r/o05999/", Limit: 10}
	p := Get(t, s, func(tx metering.Tx) (org.OrgPage, error) { return tx.Orgs(q) })
	if len(p.Orgs) != 0 || p.Next == nil {
		t.Errorf("a sparse page has %d rows and next %v; it looked at too much or lost its place", len(p.Orgs), p.Next)
	}
	WantEqual(t, len(allOrgs(t, s, org.OrgQuery{RootID: "r", Limit: 1000})), 6002)
}
