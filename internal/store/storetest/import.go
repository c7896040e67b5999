package storetest

import (
	"errors"
	"testing"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/trail"
	"github.com/orgd/orgd/internal/tree"
)

func pendingImport(id string) *tree.PendingImport {
	return &tree.PendingImport{ID: id, Actor: audit.Actor{Type: "api_key", ID: "key_1", Name: "Key"}, RequestID: "req_1",
		IP: "192.0.2.1", UserAgent: "test", Chunks: 3}
}

// An import goes on from the step that is stored, and from no other.
func testImports(t *testing.T, s Store) {
	for _, id := range []string{"imp_b", "imp_a", "imp_c"} {
		Write(t, s, func(tx testkit.Tx) error { return tx.BeginImport(pendingImport(id)) })
	}
	list := func(after string, limit int) []tree.PendingImport {
		return Get(t, s, func(tx testkit.Tx) ([]tree.PendingImport, error) { return tx.Imports(after, limit) })
	}
	WantEqual(t, list("", 2), []tree.PendingImport{*pendingImport("imp_a"), *pendingImport("imp_b")})
	WantEqual(t, list("imp_b", 2), []tree.PendingImport{*pendingImport("imp_c")})

	step := pendingImport("imp_a")
	step.Revealed = 2
	Write(t, s, func(tx testkit.Tx) error { return tx.StepImport(step) })
	WantErr(t, s.Write(t.Context(), func(tx testkit.Tx) error { return tx.StepImport(step) }), org.ErrStale)
	step.Step = 1
	WantEqual(t, *Get(t, s, func(tx testkit.Tx) (*tree.PendingImport, error) { return tx.Import("imp_a") }), *step)
	Write(t, s, func(tx testkit.Tx) error { return tx.EndImport("imp_a") })
	WantErr(t, s.Write(t.Context(), func(tx testkit.Tx) error { return tx.StepImport(step) }), org.ErrStale)
	WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error {
		_, err := tx.Import("imp_a")
		return err
	}), org.ErrAbsent)
	WantEqual(t, list("", 10), []tree.PendingImport{*pendingImport("imp_b"), *pendingImport("imp_c")})
}

// What is staged takes its ids and does not exist.
func testStaged(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/", "r/b/")
	withTag := func(path string) *org.Organization {
		o := newOrg(path)
		o.Tags, o.ExternalID = []string{"t"}, "e"
		return o
	}
	stage := func(importID string, chunk int, paths ...string) error {
		return s.Write(t.Context(), func(tx testkit.Tx) error {
			var orgs []*org.Organization
			for _, path := range paths {
				orgs = append(orgs, withTag(path))
			}
			return tx.StageOrgs(importID, chunk, orgs)
		})
	}
	Write(t, s, func(tx testkit.Tx) error { return tx.BeginImport(pendingImport("imp_1")) })
	Write(t, s, func(tx testkit.Tx) error { return tx.BeginImport(pendingImport("imp_10")) })
	for _, err := range []error{stage("imp_1", 0, "r/a/y/", "r/a/x/"), stage("imp_1", 1, "r/a/x/deep/", "r/a/x/deep/er/"), stage("imp_10", 0, "r/b/other/")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"r/a/x/", "r/b/x/", "x/", "r/a/b/"} {
		var taken *org.TakenError
		if err := stage("imp_10", 1, path); !errors.As(err, &taken) {
			t.Errorf("%s is staged though its id is in use: %v", path, err)
		}
		if err := s.Write(t.Context(), func(tx testkit.Tx) error { return tx.InsertOrgs([]*org.Organization{newOrg(path)}) }); !errors.As(err, &taken) {
			t.Errorf("%s is inserted though its id is in use: %v", path, err)
		}
	}
	Read(t, s, func(tx testkit.Tx) error {
		_, err := tx.Org("x")
		WantErr(t, err, org.ErrAbsent)
		found, err := tx.OrgsByID(split("x deep a"))
		WantEqual(t, ids(found), split("a"))
		states, err2 := tx.OrgStates(split("x deep a"))
		if len(states) != 1 || states["a"].Path != "r/a/" {
			t.Errorf("states %v", states)
		}
		taken, err3 := tx.TakenIDs(split("x deep a free"))
		WantEqual(t, sorted(taken), split("a deep x"))
		counts, err4 := tx.CountSubtree("r", "r/a/")
		WantEqual(t, counts, org.Counts{Organizations: 1})
		deepest, err5 := tx.DeepestBelow("r", "r/a/")
		WantEqual(t, deepest, 1)
		children, _, _, err6 := tx.ChildrenAt("r", "a", At(100), "", 10)
		WantEqual(t, children, []string(nil))
		holding, _, err7 := tx.OrgsHolding(trail.HoldingQuery{RootID: "r", OrgID: "r", Path: "r/", Needle: "deep", Limit: 10})
		WantEqual(t, ids(holding), []string(nil))
		for _, q := range []org.OrgQuery{{RootID: "r"}, {RootID: "r", ParentID: "a"}, {RootID: "r", Tag: "t"}, {ExternalID: "e"}, {RootID: "r", NamePrefix: "org x"}} {
			q.Limit = 10
			page, err := tx.Orgs(q)
			for _, o := range page.Orgs {
				if o.ID != "r" && o.ID != "a" && o.ID != "b" {
					t.Errorf("%+v finds %s", q, o.ID)
				}
			}
			if err != nil {
				return err
			}
		}
		expired, err8 := tx.Expired(At(1000), 10)
		WantEqual(t, ids(expired), []string(nil))
		return errors.Join(err, err2, err3, err4, err5, err6, err7, err8)
	})
	Write(t, s, func(tx testkit.Tx) error {
		counts, err := tx.MarkRestored("r", "imp_1.000000")
		counts2, err2 := tx.MarkRestored("r", "")
		WantEqual(t, counts.Organizations+counts2.Organizations, int64(0))
		return errors.Join(err, err2)
	})
	awaited := func(path string) bool {
		return Get(t, s, func(tx testkit.Tx) (bool, error) { return tx.Awaited("r", path) })
	}
	if awaited("r/") {
		t.Error("an import that is not decided is awaited")
	}

	// The decided import is awaited at and above what it stages, the other not.
	decided := pendingImport("imp_1")
	decided.Revealed = 1
	Write(t, s, func(tx testkit.Tx) error { return tx.StepImport(decided) })
	for path, want := range map[string]bool{"r/": true, "r/a/": true, "r/a/x/": true, "r/a/x/deep/": true, "r/b/": false, "r/a/y/": true} {
		if awaited(path) != want {
			t.Errorf("awaited at %s: %v", path, !want)
		}
	}
	// A move takes what is staged along.
	Write(t, s, func(tx testkit.Tx) error {
		if _, err := tx.Lock("r"); err != nil {
			return err
		}
		_, err := tx.MoveSubtree("r", "a", "b", "r/a/", "r/b/a/", 1, At(5))
		return err
	})
	staged := Get(t, s, func(tx testkit.Tx) ([]*org.Organization, error) { return tx.StagedOrgs("imp_1", 0) })
	WantEqual(t, ids(staged), split("x y"))
	if staged[0].Path != "r/b/a/x/" || staged[0].Depth != 3 || staged[0].DeletedAt != nil || staged[0].DeletionID != "" {
		t.Errorf("staged %+v", staged[0])
	}
	Write(t, s, func(tx testkit.Tx) error {
		_, err := tx.MoveSubtree("r", "a", "r", "r/b/a/", "r/a/", -1, At(6))
		return err
	})
	reveal := func(chunk, seconds int) error {
		return s.Write(t.Context(), func(tx testkit.Tx) error {
			if _, err := tx.Lock("r"); err != nil {
				return err
			}
			orgs, err := tx.StagedOrgs("imp_1", chunk)
			if err != nil {
				return err
			}
			for _, o := range orgs {
				o.CreatedAt, o.UpdatedAt, o.Settings.UpdatedAt = At(seconds), At(seconds), At(seconds)
			}
			return tx.RevealOrgs(orgs)
		})
	}
	if err := reveal(0, 10); err != nil {
		t.Fatal(err)
	}
	if awaited("r/a/y/") || !awaited("r/a/x/") {
		t.Error("what is revealed is awaited still, or what waits is not")
	}
	x := Get(t, s, func(tx testkit.Tx) (*org.Organization, error) { return tx.Org("x") })
	want := withTag("r/a/x/")
	want.CreatedAt, want.UpdatedAt, want.Settings.UpdatedAt = At(10), At(10), At(10)
	WantEqual(t, x, want)
	for _, q := range []org.OrgQuery{{RootID: "r", ParentID: "a"}, {RootID: "r", Tag: "t"}, {ExternalID: "e"}} {
		q.Limit = 10
		page := Get(t, s, func(tx testkit.Tx) (org.OrgPage, error) { return tx.Orgs(q) })
		WantEqual(t, sorted(ids(page.Orgs)), split("x y"))
	}
	childrenAt := func(seconds int) []string {
		var list []string
		Read(t, s, func(tx testkit.Tx) (err error) {
			list, _, _, err = tx.ChildrenAt("r", "a", At(seconds), "", 10)
			return err
		})
		return list
	}
	WantEqual(t, childrenAt(9), []string(nil))
	WantEqual(t, childrenAt(10), split("x y"))
	WantErr(t, s.Write(t.Context(), func(tx testkit.Tx) error { return tx.RevealOrgs([]*org.Organization{x}) }), org.ErrStale)

	// What is removed frees its ids; others and what is revealed stay.
	var removed []int64
	for range 3 {
		Write(t, s, func(tx testkit.Tx) error {
			n, err := tx.UnstageOrgs("imp_1", 1)
			removed = append(removed, n)
			return err
		})
	}
	WantEqual(t, removed, []int64{1, 1, 0})
	WantEqual(t, live(t, s, "r"), split("r a x y b"))
	WantEqual(t, ids(Get(t, s, func(tx testkit.Tx) ([]*org.Organization, error) { return tx.StagedOrgs("imp_10", 0) })), split("other"))
	insert(t, s, newOrg("r/a/deep/"))
}
