package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/trail"
)

func testTransactions(t *testing.T, s Store) {
	Plant(t, s, "r/")

	t.Run("a failed write keeps nothing", func(t *testing.T) {
		failure := errors.New("no")
		err := s.Write(t.Context(), func(tx testkit.Tx) error {
			if err := tx.InsertOrgs([]*org.Organization{newOrg("r/a/")}); err != nil {
				return err
			}
			return failure
		})
		WantErr(t, err, failure)
		WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Org("a"); return err }), org.ErrAbsent)
	})
	t.Run("a write sees its own changes", func(t *testing.T) {
		Write(t, s, func(tx testkit.Tx) error {
			if err := tx.InsertOrgs([]*org.Organization{newOrg("r/b/")}); err != nil {
				return err
			}
			_, err := tx.Org("b")
			return err
		})
	})
	t.Run("a read cannot write", func(t *testing.T) {
		err := s.Read(t.Context(), func(tx testkit.Tx) error { return tx.InsertOrgs([]*org.Organization{newOrg("r/c/")}) })
		if err == nil {
			t.Error("a read wrote")
		}
		WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Org("c"); return err }), org.ErrAbsent)
	})
	t.Run("a read is one snapshot", func(t *testing.T) {
		Read(t, s, func(tx testkit.Tx) error {
			before, err := tx.Org("b")
			if err != nil {
				return err
			}
			Write(t, s, func(tx testkit.Tx) error {
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
		err := s.Write(ctx, func(tx testkit.Tx) error { return tx.InsertOrgs([]*org.Organization{newOrg("r/d/")}) })
		if err == nil {
			t.Error("no error")
		}
		WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Org("d"); return err }), org.ErrAbsent)
	})
	t.Run("a write that has started is not cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		err := s.Write(ctx, func(tx testkit.Tx) error {
			cancel()
			return tx.InsertOrgs([]*org.Organization{newOrg("r/e/")})
		})
		if err != nil {
			t.Fatal(err)
		}
		Read(t, s, func(tx testkit.Tx) error { _, err := tx.Org("e"); return err })
	})
	t.Run("a panic is an error and keeps nothing", func(t *testing.T) {
		err := s.Write(t.Context(), func(tx testkit.Tx) error {
			if err := tx.InsertOrgs([]*org.Organization{newOrg("r/f/")}); err != nil {
				return err
			}
			panic("oh")
		})
		if err == nil || !strings.Contains(err.Error(), "oh") {
			t.Errorf("error %v", err)
		}
		WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Org("f"); return err }), org.ErrAbsent)
	})
}

func testOrgs(t *testing.T, s Store) {
	root, child := newOrg("r/"), newOrg("r/Child-1/")
	child.Name, child.Type, child.Description = "Ünïcode 名前 🙂", org.TypeGroup, "line\nbreak"
	child.ExternalID, child.Tags = "ext/1", split("a b.c d:e")
	child.Settings = org.Settings{Values: []byte(`{"a":{"b":[1,null,"x"]}}`), Locked: []string{"/a/b", "/c"}, UpdatedAt: At(3)}
	child.UpdatedAt = At(5)
	insert(t, s, root, child)

	got := Get(t, s, func(tx testkit.Tx) (*org.Organization, error) { return tx.Org("Child-1") })
	WantEqual(t, got, child)
	WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Org("child-1"); return err }), org.ErrAbsent)

	within := func(id, path string, self bool) (*org.Organization, error) {
		var o *org.Organization
		err := s.Read(t.Context(), func(tx testkit.Tx) (err error) { o, err = tx.OrgWithin(id, path, self); return err })
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

	found := Get(t, s, func(tx testkit.Tx) ([]*org.Organization, error) { return tx.OrgsByID(split("Child-1 absent r")) })
	WantEqual(t, sorted(ids(found)), split("Child-1 r"))
	found = Get(t, s, func(tx testkit.Tx) ([]*org.Organization, error) { return tx.OrgsByID(nil) })
	WantEqual(t, ids(found), []string(nil))

	versions := Get(t, s, func(tx testkit.Tx) (map[string]org.Version, error) { return tx.Versions(split("Child-1 absent r")) })
	WantEqual(t, versions, map[string]org.Version{"r": {CreatedAt: root.CreatedAt, Version: root.Version}, "Child-1": {CreatedAt: child.CreatedAt, Version: child.Version}})
	Write(t, s, func(tx testkit.Tx) error {
		o, err := tx.Org("Child-1")
		if err != nil {
			return err
		}
		o.Version++
		return tx.UpdateOrg(o)
	})
	versions = Get(t, s, func(tx testkit.Tx) (map[string]org.Version, error) { return tx.Versions(split("Child-1")) })
	WantEqual(t, versions, map[string]org.Version{"Child-1": {CreatedAt: child.CreatedAt, Version: child.Version + 1}})

	t.Run("an id is taken, even in another root or by a deleted organization", func(t *testing.T) {
		Plant(t, s, "q/", "q/gone/")
		Write(t, s, func(tx testkit.Tx) error { _, err := tx.MarkDeleted("q", "q/gone/", "del", At(1)); return err })
		for _, path := range split("r/r/ q/Child-1/ r/gone/ Child-1/") {
			err := s.Write(t.Context(), func(tx testkit.Tx) error {
				return tx.InsertOrgs([]*org.Organization{newOrg("r/new/"), newOrg(path)})
			})
			var taken *org.TakenError
			if !errors.As(err, &taken) || taken.ID != newOrg(path).ID {
				t.Errorf("%s: error %v", path, err)
			}
			WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Org("new"); return err }), org.ErrAbsent)
		}
	})
	t.Run("a taken id leaves the transaction usable", func(t *testing.T) {
		Write(t, s, func(tx testkit.Tx) error {
			var taken *org.TakenError
			if err := tx.InsertOrgs([]*org.Organization{newOrg("r/r/")}); !errors.As(err, &taken) {
				t.Errorf("error %v", err)
			}
			return tx.InsertOrgs([]*org.Organization{newOrg("r/usable/")})
		})
		Read(t, s, func(tx testkit.Tx) error { _, err := tx.Org("usable"); return err })
	})
	t.Run("the same id inserted at once succeeds once", func(t *testing.T) {
		var wg sync.WaitGroup
		results := make(chan error, 10)
		for range cap(results) {
			wg.Go(func() {
				results <- s.Write(context.Background(), func(tx testkit.Tx) error {
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
		return ids(Get(t, s, func(tx testkit.Tx) (org.OrgPage, error) {
			return tx.Orgs(org.OrgQuery{RootID: "r", Tag: tag, Limit: 10})
		}).Orgs)
	}
	want := newOrg("r/a/")
	want.Name, want.Description, want.Type, want.ExternalID = "New", "d", org.TypeGroup, "x"
	want.Tags, want.Settings = split("one two"), org.Settings{Values: []byte(`{"k":1}`), Locked: split("/k"), UpdatedAt: At(1)}
	want.UpdatedAt, want.Version = At(1), 2
	Write(t, s, func(tx testkit.Tx) error { return tx.UpdateOrg(want) })
	WantEqual(t, Get(t, s, func(tx testkit.Tx) (*org.Organization, error) { return tx.Org("a") }), want)
	WantEqual(t, byTag("one"), split("a"))

	WantErr(t, s.Write(t.Context(), func(tx testkit.Tx) error { return tx.UpdateOrg(want) }), org.ErrStale)
	absent := newOrg("r/absent/")
	absent.Version = 2
	WantErr(t, s.Write(t.Context(), func(tx testkit.Tx) error { return tx.UpdateOrg(absent) }), org.ErrStale)

	t.Run("the indexes follow, also twice in one transaction", func(t *testing.T) {
		Write(t, s, func(tx testkit.Tx) error {
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
			WantEqual(t, ids(Get(t, s, func(tx testkit.Tx) (org.OrgPage, error) { return tx.Orgs(q) }).Orgs), split("a"))
		}
		gone := org.OrgQuery{RootID: "r", ExternalID: "x", Limit: 10}
		WantEqual(t, ids(Get(t, s, func(tx testkit.Tx) (org.OrgPage, error) { return tx.Orgs(gone) }).Orgs), []string(nil))
	})
	t.Run("of two updates of one version one wins", func(t *testing.T) {
		for round := range 10 {
			var wg sync.WaitGroup
			errs := make([]error, 4)
			for i := range errs {
				wg.Go(func() {
					errs[i] = s.Write(context.Background(), func(tx testkit.Tx) error {
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
	Write(t, s, func(tx testkit.Tx) error { _, err := tx.MarkDeleted("r", "r/a/x/z/", "del", At(1)); return err })
	Write(t, s, func(tx testkit.Tx) error {
		n, err := tx.MoveSubtree("r", "x", "c", "r/a/x/", "r/b/c/x/", 1, At(2))
		WantEqual(t, n, int64(2))
		return err
	})
	for id, want := range map[string]string{"x": "r/b/c/x/", "y": "r/b/c/x/y/", "z": "r/b/c/x/z/", "xx": "r/a/xx/"} {
		o := Get(t, s, func(tx testkit.Tx) (*org.Organization, error) { return tx.Org(id) })
		if o.Path != want || o.Depth != len(o.PathIDs())-1 {
			t.Errorf("%s: path %s, depth %d", id, o.Path, o.Depth)
		}
		moved := id == "x"
		if moved != (o.Version == 2) && id != "z" || moved != o.UpdatedAt.Equal(At(2)) || moved != (o.ParentID == "c") {
			t.Errorf("%s: version %d, updated at %v, parent %s", id, o.Version, o.UpdatedAt, o.ParentID)
		}
	}
	deepest := func(path string) int {
		return Get(t, s, func(tx testkit.Tx) (int, error) { return tx.DeepestBelow("r", path) })
	}
	WantEqual(t, []int{deepest("r/"), deepest("r/a/"), deepest("r/b/c/x/y/")}, []int{4, 2, 4})
	children := Get(t, s, func(tx testkit.Tx) (org.OrgPage, error) {
		return tx.Orgs(org.OrgQuery{RootID: "r", ParentID: "c", Limit: 10})
	})
	WantEqual(t, ids(children.Orgs), split("x"))
	err := s.Write(t.Context(), func(tx testkit.Tx) error {
		_, err := tx.MoveSubtree("r", "absent", "c", "r/absent/", "r/c/absent/", 1, At(2))
		return err
	})
	WantErr(t, err, org.ErrAbsent)
}

func live(t testing.TB, s Store, rootID string) []string {
	t.Helper()
	q := org.OrgQuery{RootID: rootID, Limit: 1000}
	return ids(Get(t, s, func(tx testkit.Tx) (org.OrgPage, error) { return tx.Orgs(q) }).Orgs)
}

func testDeleteRestore(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/", "r/a/b/", "r/a/b/c/", "r/ab/")
	revoked := newKey("key_revoked", "r/a/b/")
	revoked.RevokedAt = &revoked.CreatedAt
	Write(t, s, func(tx testkit.Tx) error {
		return errors.Join(tx.InsertKey(newKey("key_1", "r/a/")), tx.InsertKey(newKey("key_2", "r/a/b/c/")),
			tx.InsertKey(newKey("key_3", "r/ab/")), tx.InsertKey(revoked))
	})
	count := func(path string) org.Counts {
		return Get(t, s, func(tx testkit.Tx) (org.Counts, error) { return tx.CountSubtree("r", path) })
	}
	WantEqual(t, count("r/"), org.Counts{Organizations: 5, APIKeys: 3})
	WantEqual(t, count("r/a/"), org.Counts{Organizations: 3, APIKeys: 2})

	mark := func(path, deletionID string, seconds int, want org.Counts) {
		t.Helper()
		Write(t, s, func(tx testkit.Tx) error {
			c, err := tx.MarkDeleted("r", path, deletionID, At(seconds))
			WantEqual(t, c, want)
			return err
		})
	}
	restore := func(deletionID string, want org.Counts) {
		t.Helper()
		Write(t, s, func(tx testkit.Tx) error {
			c, err := tx.MarkRestored("r", deletionID)
			WantEqual(t, c, want)
			return err
		})
	}
	mark("r/a/b/c/", "del_1", 1, org.Counts{Organizations: 1, APIKeys: 1})
	mark("r/a/", "del_2", 2, org.Counts{Organizations: 2, APIKeys: 1})
	WantEqual(t, live(t, s, "r"), split("r ab"))
	WantEqual(t, count("r/"), org.Counts{Organizations: 2, APIKeys: 1})
	o := Get(t, s, func(tx testkit.Tx) (*org.Organization, error) { return tx.Org("b") })
	if o.DeletedAt == nil || !o.DeletedAt.Equal(At(2)) || o.DeletionID != "del_2" || o.Version != 2 {
		t.Errorf("deleted at %v by %q, version %d", o.DeletedAt, o.DeletionID, o.Version)
	}
	restore("del_2", org.Counts{Organizations: 2, APIKeys: 1})
	WantEqual(t, live(t, s, "r"), split("r a b ab"))
	restore("del_2", org.Counts{})
	restore("", org.Counts{})
	restore("del_1", org.Counts{Organizations: 1, APIKeys: 1})
	WantEqual(t, count("r/"), org.Counts{Organizations: 5, APIKeys: 3})
	o = Get(t, s, func(tx testkit.Tx) (*org.Organization, error) { return tx.Org("b") })
	if o.DeletedAt != nil || o.DeletionID != "" || !o.UpdatedAt.Equal(Epoch) {
		t.Errorf("restored: deleted at %v by %q, updated at %v", o.DeletedAt, o.DeletionID, o.UpdatedAt)
	}
}

func testExpired(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/", "r/a/b/", "r/c/", "r/d/", "q/")
	Write(t, s, func(tx testkit.Tx) error {
		_, err1 := tx.MarkDeleted("r", "r/c/", "del_c", At(3))
		_, err2 := tx.MarkDeleted("r", "r/a/", "del_a", At(1))
		_, err3 := tx.MarkDeleted("q", "q/", "del_q", At(2))
		return errors.Join(err1, err2, err3)
	})
	expired := func(before time.Time, limit int) []string {
		return ids(Get(t, s, func(tx testkit.Tx) ([]*org.Organization, error) { return tx.Expired(before, limit) }))
	}
	WantEqual(t, expired(At(1), 10), []string(nil))
	WantEqual(t, expired(At(10), 10), split("a q c"))
	WantEqual(t, expired(At(3), 10), split("a q"))
	WantEqual(t, expired(At(10), 1), split("a"))
	Write(t, s, func(tx testkit.Tx) error { _, err := tx.MarkRestored("r", "del_a"); return err })
	WantEqual(t, expired(At(10), 10), split("q c"))
}

func absentOrg(t testing.TB, s Store, id string) {
	t.Helper()
	WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Org(id); return err }), org.ErrAbsent)
}

// Purge purges all of what one delete removed.
func Purge(t testing.TB, s Store, rootID, deletionID string) (gone []string) {
	t.Helper()
	Write(t, s, func(tx testkit.Tx) error {
		gone = nil
		begun, err := tx.BeginPurge(rootID, deletionID, At(100))
		WantEqual(t, begun, true)
		for done := false; err == nil && !done; {
			var some []string
			some, done, err = tx.Purge(rootID, deletionID, 1000, At(100))
			gone = append(gone, some...)
		}
		return err
	})
	return gone
}

func testPurge(t *testing.T, s Store) {
	child := newOrg("r/a/b/")
	child.Tags = split("tag")
	insert(t, s, newOrg("r/"), newOrg("r/a/"), child, newOrg("r/a/b/c/"), newOrg("r/z/"))
	Write(t, s, func(tx testkit.Tx) error {
		return errors.Join(tx.InsertKey(newKey("key_b", "r/a/b/")), tx.InsertKey(newKey("key_z", "r/z/")),
			tx.PutIdempotent("r", "key_b", "i", At(0), &org.Replay{CreatedAt: At(1)}),
			tx.PutIdempotent("z", "key_z", "i", At(0), &org.Replay{CreatedAt: At(1)}),
			appendAudit(tx, "r", "x", "r/a/b/", "r/z/"))
	})
	flush(t, s, 1, event("r", "b", 1), event("r", "z", 2))
	Write(t, s, func(tx testkit.Tx) error {
		_, err1 := tx.MarkDeleted("r", "r/a/b/c/", "del_c", At(1))
		_, err2 := tx.MarkDeleted("r", "r/a/b/", "del_b", At(2))
		// Moved with its parent, while it is deleted.
		_, err3 := tx.MoveSubtree("r", "a", "z", "r/a/", "r/z/a/", 1, At(3))
		return errors.Join(err1, err2, err3)
	})
	for _, deletionID := range []string{"absent", ""} {
		Write(t, s, func(tx testkit.Tx) error {
			begun, err1 := tx.BeginPurge("r", deletionID, At(4))
			gone, done, err2 := tx.Purge("r", deletionID, 10, At(4))
			WantEqual(t, begun, false)
			WantEqual(t, done, true)
			WantEqual(t, gone, []string(nil))
			return errors.Join(err1, err2)
		})
	}
	WantEqual(t, Purge(t, s, "r", "del_b"), split("c b")) // c was deleted earlier
	for _, deletionID := range split("del_b del_c") {
		Write(t, s, func(tx testkit.Tx) error {
			begun, err := tx.BeginPurge("r", deletionID, At(4))
			WantEqual(t, begun, false)
			return err
		})
	}
	absentOrg(t, s, "b")
	absentOrg(t, s, "c")
	WantEqual(t, live(t, s, "r"), split("r z a"))
	WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Key("key_b"); return err }), org.ErrAbsent)
	WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Idempotent("key_b", "i", At(0)); return err }), org.ErrAbsent)
	Read(t, s, func(tx testkit.Tx) error {
		_, err1 := tx.Key("key_z")
		_, err2 := tx.Idempotent("key_z", "i", At(0))
		return errors.Join(err1, err2)
	})
	WantEqual(t, eventIDs(allEvents(t, s, trail.AccessQuery{RootID: "r", OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, Limit: 10})),
		[]string{event("r", "z", 2).ID})
	WantEqual(t, len(allAudit(t, s, org.AuditQuery{RootID: "r", OrgID: "r", Path: "r/", Limit: 10})), 2)
	Plant(t, s, "r/b/") // the id is free again
	tagged := org.OrgQuery{RootID: "r", Tag: "tag", Limit: 10}
	WantEqual(t, ids(Get(t, s, func(tx testkit.Tx) (org.OrgPage, error) { return tx.Orgs(tagged) }).Orgs), []string(nil))
}

func testPurgeRoot(t *testing.T, s Store) {
	q := org.AuditQuery{RootID: "r", OrgID: "r", Path: "r/", Limit: 10}
	for round := range 3 {
		logID := fmt.Sprintf("log-%d", round)
		Write(t, s, func(tx testkit.Tx) error {
			head := &audit.Head{RootID: "r", LogID: logID}
			if err := errors.Join(tx.InsertOrgs([]*org.Organization{newOrg("r/"), newOrg("r/a/")}), tx.NewLog(head)); err != nil {
				return err
			}
			WantEqual(t, head.Epoch, int64(0))
			WantEqual(t, head.Ordinal, int64(round))
			return errors.Join(tx.PutSchema("r", []byte(`{}`)), appendAudit(tx, "r", "created", "r/"))
		})
		entries := allAudit(t, s, q)
		if len(entries) != 1 || entries[0].Epoch != 0 || entries[0].Seq != 0 {
			t.Errorf("round %d: entries %v", round, entries)
		}
		Write(t, s, func(tx testkit.Tx) error {
			if _, err := tx.MarkDeleted("r", "r/", "del", At(1)); err != nil {
				return err
			}
			head, err := tx.Lock("r")
			if err != nil {
				return err
			}
			if _, err := tx.BeginPurge("r", "del", At(2)); err != nil {
				return err
			}
			// The purge itself is the last entry of the log that it closes.
			head.Size++
			return tx.AppendAudit(head, []audit.Record{{RootID: "r", Epoch: head.Epoch, Seq: head.Size - 1, ID: "aud_last",
				OrgID: "r", Path: "r/", Action: "purged", Timestamp: At(2), Leaf: []byte("{}")}})
		})
		WantErr(t, s.Write(t.Context(), func(tx testkit.Tx) error { _, err := tx.Lock("r"); return err }), org.ErrAbsent)
		Write(t, s, func(tx testkit.Tx) error {
			gone, done, err := tx.Purge("r", "del", 1000, At(3))
			WantEqual(t, gone, split("a r"))
			WantEqual(t, done, true)
			return err
		})
		WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Schema("r"); return err }), org.ErrAbsent)
		WantEqual(t, len(allAudit(t, s, q)), 0)
	}
}

func testSchema(t *testing.T, s Store) {
	Plant(t, s, "r/")
	WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Schema("r"); return err }), org.ErrAbsent)
	for _, schema := range split(`{"a":1} {"b":2}`) {
		Write(t, s, func(tx testkit.Tx) error { return tx.PutSchema("r", []byte(schema)) })
		WantEqual(t, string(Get(t, s, func(tx testkit.Tx) ([]byte, error) { return tx.Schema("r") })), schema)
	}
	Write(t, s, func(tx testkit.Tx) error { return tx.PutSchema("r", nil) })
	WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Schema("r"); return err }), org.ErrAbsent)
}

func testOrgQueries(t *testing.T, s Store) {
	acme := newOrg("r/a/b/")
	acme.Name, acme.Tags, acme.ExternalID = "ACME Éclair", split("blue red"), "E-1"
	other := newOrg("q/k/")
	other.Name, other.Tags, other.ExternalID = "acme two", split("red"), "E-1"
	insert(t, s, newOrg("r/"), newOrg("r/a/"), acme, newOrg("r/a/b/c/"), newOrg("r/a-b/"), newOrg("r/a0/"), newOrg("r/gone/"),
		newOrg("q/"), other, newOrg("q-1/"))
	Write(t, s, func(tx testkit.Tx) error { _, err := tx.MarkDeleted("r", "r/gone/", "del", At(1)); return err })

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
		p := Get(t, s, func(tx testkit.Tx) (org.OrgPage, error) { return tx.Orgs(q) })
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
				last := Get(t, s, func(tx testkit.Tx) (org.OrgPage, error) { return tx.Orgs(q) })
				if len(last.Orgs) == 0 && last.Next == nil {
					t.Error("an empty page that is not the last has no next")
				}
			}
			WantEqual(t, ids(allOrgs(t, s, q)), split("below"))
		})
	}
	q := org.OrgQuery{RootID: "r", NamePrefix: "org", Path: "r/o05999/", Limit: 10}
	p := Get(t, s, func(tx testkit.Tx) (org.OrgPage, error) { return tx.Orgs(q) })
	if len(p.Orgs) != 0 || p.Next == nil {
		t.Errorf("a sparse page has %d rows and next %v; it looked at too much or lost its place", len(p.Orgs), p.Next)
	}
	WantEqual(t, len(allOrgs(t, s, org.OrgQuery{RootID: "r", Limit: 1000})), 6002)
}

// model is what a tree should be.
type model struct {
	orgs      map[string]*org.Organization
	deletions int
}

func (m *model) below(path string) []*org.Organization {
	var list []*org.Organization
	for _, o := range m.orgs {
		if strings.HasPrefix(o.Path, path) {
			list = append(list, o)
		}
	}
	return list
}

func (m *model) pick(rt *rapid.T, label string, live bool) *org.Organization {
	var candidates []string
	for id, o := range m.orgs {
		if live == (o.DeletedAt == nil) {
			candidates = append(candidates, id)
		}
	}
	if len(candidates) == 0 {
		rt.Skip("nothing to pick")
	}
	return m.orgs[rapid.SampledFrom(sorted(candidates)).Draw(rt, label)]
}

// testOrgModel applies random changes to a store and to a model of it, and
// compares all that can be asked, page by page.
func testOrgModel(t *testing.T, s Store) {
	run := 0
	names := rapid.SampledFrom(split("alpha Alpha ALP beta éa"))
	tags := rapid.SliceOfNDistinct(rapid.SampledFrom(split("red green blue")), 0, 3, rapid.ID)
	rapid.Check(t, func(rt *rapid.T) {
		run++
		rootID := fmt.Sprintf("r%d", run)
		m := &model{orgs: map[string]*org.Organization{rootID: newOrg(rootID + "/")}}
		insert(t, s, m.orgs[rootID])
		rt.Repeat(map[string]func(*rapid.T){
			"insert": func(rt *rapid.T) {
				parent := m.pick(rt, "parent", true)
				o := newOrg(fmt.Sprintf("%s%s-%d/", parent.Path, rootID, len(m.orgs)))
				o.Name, o.Tags = names.Draw(rt, "name"), sorted(tags.Draw(rt, "tags"))
				insert(t, s, o)
				m.orgs[o.ID] = o
			},
			"update": func(rt *rapid.T) {
				o := m.pick(rt, "org", true)
				o.Name, o.Tags = names.Draw(rt, "name"), sorted(tags.Draw(rt, "tags"))
				o.ExternalID = rapid.SampledFrom([]string{"", "x", "y"}).Draw(rt, "external id")
				o.Version++
				Write(t, s, func(tx testkit.Tx) error { return tx.UpdateOrg(o) })
			},
			"move": func(rt *rapid.T) {
				o, to := m.pick(rt, "org", true), m.pick(rt, "to", true)
				if o.ParentID == "" || strings.HasPrefix(to.Path, o.Path) {
					rt.Skip("not a move")
				}
				oldPath, newPath, delta := o.Path, to.Path+o.ID+"/", to.Depth+1-o.Depth
				Write(t, s, func(tx testkit.Tx) error {
					_, err := tx.MoveSubtree(rootID, o.ID, to.ID, oldPath, newPath, delta, At(1))
					return err
				})
				for _, x := range m.below(oldPath) {
					x.Path, x.Depth = newPath+x.Path[len(oldPath):], x.Depth+delta
				}
				o.ParentID, o.UpdatedAt, o.Version = to.ID, At(1), o.Version+1
			},
			"delete": func(rt *rapid.T) {
				o := m.pick(rt, "org", true)
				m.deletions++
				deletionID, when := fmt.Sprintf("%s-del-%d", rootID, m.deletions), At(m.deletions)
				Write(t, s, func(tx testkit.Tx) error { _, err := tx.MarkDeleted(rootID, o.Path, deletionID, when); return err })
				for _, x := range m.below(o.Path) {
					if x.DeletedAt == nil {
						x.DeletedAt, x.DeletionID, x.Version = &when, deletionID, x.Version+1
					}
				}
			},
			"restore": func(rt *rapid.T) {
				o := m.pick(rt, "org", false)
				for _, x := range m.below(rootID + "/") {
					if x.DeletionID == o.DeletionID && x.ParentID != "" {
						if p := m.orgs[x.ParentID]; p.DeletedAt != nil && p.DeletionID != o.DeletionID {
							rt.Skip("its parent is deleted")
						}
					}
				}
				deletionID := o.DeletionID
				Write(t, s, func(tx testkit.Tx) error { _, err := tx.MarkRestored(rootID, deletionID); return err })
				for _, x := range m.orgs {
					if x.DeletionID == deletionID {
						x.DeletedAt, x.DeletionID, x.Version = nil, "", x.Version+1
					}
				}
			},
			"": func(rt *rapid.T) {
				for id, want := range m.orgs {
					WantEqual(t, Get(t, s, func(tx testkit.Tx) (*org.Organization, error) { return tx.Org(id) }), want)
				}
				q := org.OrgQuery{RootID: rootID, Limit: rapid.IntRange(1, 4).Draw(rt, "limit")}
				byPath := func(a, b *org.Organization) int { return strings.Compare(a.Path, b.Path) }
				byID := func(a, b *org.Organization) int { return strings.Compare(a.ID, b.ID) }
				order, matches := byPath, func(o *org.Organization) bool { return true }
				switch rapid.IntRange(0, 4).Draw(rt, "query") {
				case 1:
					q.Path = rapid.SampledFrom(sorted(slices.Collect(maps.Keys(m.orgs)))).Draw(rt, "below")
					q.Path = m.orgs[q.Path].Path
					q.WithSelf, q.MaxDepth = rapid.Bool().Draw(rt, "with self"), rapid.IntRange(0, 3).Draw(rt, "max depth")
					matches = func(o *org.Organization) bool {
						return strings.HasPrefix(o.Path, q.Path) && (q.WithSelf || o.Path != q.Path) && (q.MaxDepth == 0 || o.Depth <= q.MaxDepth)
					}
				case 2:
					q.NamePrefix = rapid.SampledFrom(split("a AL beta é org")).Draw(rt, "name prefix")
					matches = func(o *org.Organization) bool {
						return strings.HasPrefix(org.FoldName(o.Name), org.FoldName(q.NamePrefix))
					}
					order = func(a, b *org.Organization) int {
						if c := strings.Compare(org.FoldName(a.Name), org.FoldName(b.Name)); c != 0 {
							return c
						}
						return byID(a, b)
					}
				case 3:
					q.Tag, order = rapid.SampledFrom(split("red green")).Draw(rt, "tag"), byID
					matches = func(o *org.Organization) bool { return slices.Contains(o.Tags, q.Tag) }
				case 4:
					q.ExternalID, order = "x", byID
					matches = func(o *org.Organization) bool { return o.ExternalID == "x" }
				}
				var want []*org.Organization
				for _, o := range m.orgs {
					if o.DeletedAt == nil && matches(o) {
						want = append(want, o)
					}
				}
				slices.SortFunc(want, order)
				if got := ids(allOrgs(t, s, q)); !slices.Equal(got, ids(want)) {
					rt.Fatalf("%+v\n got %v\nwant %v", q, got, ids(want))
				}
			},
		})
	})
}

func testKeys(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/")
	expires, used := At(100), At(50)
	k := newKey("key_3", "r/a/")
	k.Permissions, k.Reach, k.AllowedCIDRs = key.Permissions{"orgs:read", "orgs:write"}, key.ReachSelf, split("10.0.0.0/8 ::1/128")
	k.RateLimit, k.ExpiresAt = &key.RateLimit{Requests: 5, PeriodSeconds: 60}, &expires
	k.Old = &key.OldSecret{Hash: []byte{1, 0, 2}, Hint: "wxyz", ValidUntil: At(60), LastUsedAt: &used, LastUsedIP: "::1"}
	Write(t, s, func(tx testkit.Tx) error {
		return errors.Join(tx.InsertKey(k), tx.InsertKey(newKey("key_1", "r/a/")), tx.InsertKey(newKey("key_2", "r/a/")),
			tx.InsertKey(newKey("key_r", "r/")))
	})
	byID := func(id string) *key.Key {
		return Get(t, s, func(tx testkit.Tx) (*key.Key, error) { return tx.Key(id) })
	}
	WantEqual(t, byID("key_3"), k)
	WantEqual(t, byID("key_1"), newKey("key_1", "r/a/"))
	WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Key("absent"); return err }), org.ErrAbsent)

	WantEqual(t, Get(t, s, func(tx testkit.Tx) (*key.Key, error) { return tx.KeyOf("a", "key_3") }), k)
	for _, tt := range [][2]string{{"r", "key_3"}, {"a", "key_r"}, {"absent", "key_3"}, {"a", "absent"}} {
		WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.KeyOf(tt[0], tt[1]); return err }), org.ErrAbsent)
	}
	Read(t, s, func(tx testkit.Tx) error {
		for id, old := range map[string][]byte{"key_3": k.Old.Hash, "key_1": {}} {
			rootID, secret, before, err := tx.SecretHashes(id)
			if err != nil {
				return err
			}
			WantEqual(t, rootID, "r")
			WantEqual(t, secret, byID(id).SecretHash)
			WantEqual(t, before, old)
		}
		return nil
	})
	WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, _, _, err := tx.SecretHashes("absent"); return err }), org.ErrAbsent)

	list := func(after string, limit int) []string {
		var found []string
		for _, k := range Get(t, s, func(tx testkit.Tx) (keys []*key.Key, err error) {
			keys, _, err = tx.Keys("a", after, limit, 0)
			return keys, err
		}) {
			found = append(found, k.ID)
		}
		return found
	}
	WantEqual(t, list("", 10), split("key_1 key_2 key_3"))
	WantEqual(t, list("key_1", 1), split("key_2"))

	changed := newKey("key_2", "r/a/")
	changed.Name, changed.RevokedAt, changed.UpdatedAt, changed.Version = "new", &used, At(1), 2
	Write(t, s, func(tx testkit.Tx) error { return tx.UpdateKey(changed) })
	WantEqual(t, byID("key_2"), changed)
	WantEqual(t, list("", 10), split("key_1 key_3"))
	WantErr(t, s.Write(t.Context(), func(tx testkit.Tx) error { return tx.UpdateKey(changed) }), org.ErrStale)
}

func testKeyRotation(t *testing.T, s Store) {
	Plant(t, s, "r/")
	Write(t, s, func(tx testkit.Tx) error { return tx.InsertKey(newKey("k", "r/")) })
	use := func(segment int64, old bool, seconds int) {
		t.Helper()
		flushUses(t, s, segment, keyUse("k", old, seconds))
	}
	use(1, false, 1)
	update := func(fn func(*key.Key)) {
		t.Helper()
		Write(t, s, func(tx testkit.Tx) error {
			k, err := tx.Key("k")
			if err != nil {
				return err
			}
			fn(k)
			k.Version++
			return tx.UpdateKey(k)
		})
	}
	lastUse := func() (now, old *time.Time) {
		k := Get(t, s, func(tx testkit.Tx) (*key.Key, error) { return tx.Key("k") })
		if k.Old == nil {
			return k.LastUsedAt, nil
		}
		return k.LastUsedAt, k.Old.LastUsedAt
	}
	// A rotation says when the secret that it replaces was last used.
	update(func(k *key.Key) {
		k.Old = &key.OldSecret{Hash: k.SecretHash, ValidUntil: At(100), LastUsedAt: k.LastUsedAt}
		k.SecretHash = []byte{2}
	})
	_, old := lastUse()
	WantEqual(t, *old, At(1))
	// An update that knows of an older use does not undo a newer one.
	var stale *key.Key
	Read(t, s, func(tx testkit.Tx) (err error) { stale, err = tx.Key("k"); return err })
	use(2, true, 5)
	use(3, false, 6)
	stale.Name, stale.Version = "renamed", stale.Version+1
	Write(t, s, func(tx testkit.Tx) error { return tx.UpdateKey(stale) })
	now, old := lastUse()
	WantEqual(t, []time.Time{*now, *old}, []time.Time{At(6), At(5)})
	update(func(k *key.Key) { k.Old = nil })
	if _, old := lastUse(); old != nil {
		t.Error("the old secret is still there")
	}
}
