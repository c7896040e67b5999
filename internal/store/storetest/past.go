package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/trail"
	"github.com/orgd/orgd/internal/usage"
)

// childrenAt reads all pages.
func childrenAt(t testing.TB, s Store, parentID string, at time.Time, limit int) (all []string, pages int) {
	t.Helper()
	after, more := "", true
	for more {
		Read(t, s, func(tx testkit.Tx) (err error) {
			var page []string
			page, after, more, err = tx.ChildrenAt("r", parentID, at, after, limit)
			if len(page) > limit {
				t.Fatalf("a page of %d, limit %d", len(page), limit)
			}
			all = append(all, page...)
			return err
		})
		pages++
	}
	return all, pages
}

func testChildrenAt(t *testing.T, s Store) {
	grown := func(path string, seconds int) *org.Organization {
		o := newOrg(path)
		o.CreatedAt = At(seconds)
		return o
	}
	insert(t, s, grown("r/", 0), grown("r/a/", 1), grown("r/b/", 1), grown("r/a/m/", 2), grown("r/a/n/", 3), grown("r/a-m/", 4))
	move := func(id, to, oldPath, newPath string, seconds int) {
		t.Helper()
		Write(t, s, func(tx testkit.Tx) error {
			_, err := tx.MoveSubtree("r", id, to, oldPath, newPath, 0, At(seconds))
			return err
		})
	}
	move("m", "b", "r/a/m/", "r/b/m/", 10)
	move("m", "a", "r/b/m/", "r/a/m/", 20)
	move("m", "b", "r/a/m/", "r/b/m/", 30)
	Write(t, s, func(tx testkit.Tx) error {
		_, err := tx.MarkDeleted("r", "r/a/n/", "del", At(40))
		return err
	})
	for _, test := range []struct {
		parent  string
		seconds int
		want    string
	}{
		{"r", 0, ""}, {"r", 1, "a b"}, {"r", 5, "a a-m b"},
		{"a", 1, ""}, {"a", 2, "m"}, {"a", 9, "m n"}, {"a", 10, "n"}, {"a", 19, "n"}, {"a", 20, "m n"}, {"a", 30, "n"}, {"a", 50, "n"},
		{"b", 9, ""}, {"b", 10, "m"}, {"b", 19, "m"}, {"b", 20, ""}, {"b", 30, "m"}, {"b", 50, "m"},
		{"absent", 50, ""},
	} {
		for _, limit := range []int{1, 100} {
			got, _ := childrenAt(t, s, test.parent, At(test.seconds), limit)
			if fmt.Sprint(got) != fmt.Sprint(split(test.want)) {
				t.Errorf("below %s at %d: %v, want %s", test.parent, test.seconds, got, test.want)
			}
		}
	}
	Purge(t, s, "r", "del")
	got, _ := childrenAt(t, s, "a", At(25), 100)
	WantEqual(t, got, split("m"))
	insert(t, s, grown("r/b/n/", 60))
	got, _ = childrenAt(t, s, "b", At(60), 100)
	WantEqual(t, got, split("m n"))

	// A page looks at a bounded number of organizations that were there once.
	var many []*org.Organization
	for n := range 6000 {
		many = append(many, grown(fmt.Sprintf("r/b/x%04d/", n), 100))
	}
	insert(t, s, many...)
	got, pages := childrenAt(t, s, "b", At(90), 100)
	WantEqual(t, got, split("m n"))
	if pages < 2 {
		t.Errorf("%d pages: one looked at everything", pages)
	}
}

// What was recorded for an organization and arrives after its purge counts for
// its ancestors and not for who has its id, and no event of it shows.
func testLate(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/", "r/a/b/", "r/a/b/c/", "r/z/", "q/", "q/x/")
	Write(t, s, func(tx testkit.Tx) error {
		_, err1 := tx.MarkDeleted("r", "r/a/b/", "del_b", At(50))
		_, err2 := tx.MarkDeleted("q", "q/", "del_q", At(50))
		return errors.Join(err1, err2)
	})
	Purge(t, s, "r", "del_b")
	Purge(t, s, "q", "del_q")
	late := func(root, path string, seconds int) access.Usage {
		return access.Usage{RootID: root, Path: path, At: At(seconds), Meter: usage.APICalls, Quantity: usage.One}
	}
	// Between the purge and the next owner.
	FlushBatch(t, s, access.Batch{SpoolID: "spool", Position: access.Position{Segment: 1},
		Events: []access.Event{event("r", "b", 1), event("r", "a", 2), event("q", "q", 3)},
		Usage:  []access.Usage{late("r", "r/a/b/c/", 1), late("r", "r/a/", 2), late("q", "q/x/", 3)}})
	next := func(path string) *org.Organization {
		o := newOrg(path)
		o.CreatedAt = At(120)
		return o
	}
	insert(t, s, next("r/z/b/"), next("r/z/b/c/"), next("q/"), next("q/x/"))
	// And after it, together with what the next owner has used.
	FlushBatch(t, s, access.Batch{SpoolID: "spool", From: access.Position{Segment: 1}, Position: access.Position{Segment: 2},
		Events: []access.Event{event("r", "b", 4), event("r", "c", 5), event("q", "q", 6), event("r", "b", 130), event("r", "b", 300)},
		Usage: []access.Usage{late("r", "r/a/b/c/", 1), late("r", "r/a/b/", 2), late("q", "q/x/", 3), late("r", "r/z/b/", 130), late("r", "r/z/b/", 300),
			late("q", "q/x/", 130)}})
	var got []string
	for _, root := range split("r q") {
		list := Get(t, s, func(tx testkit.Tx) ([]usage.Total, error) {
			return tx.MonthTotals(root, usage.MonthOf(At(0)), usage.Total{}, 100)
		})
		for _, x := range list {
			got = append(got, x.OrgID+"<"+x.ParentID+" "+x.Own.String()+" "+x.Total.String())
		}
	}
	WantEqual(t, got, []string{"a<r 1 4", "b<z 2 2", "b!<a 1 3", "c!<b! 2 2", "r< 0 6", "z<r 0 2", "q< 0 1", "x<q 1 1"})
	events := func(rootID, orgID string) []string {
		return eventIDs(allEvents(t, s, trail.AccessQuery{RootID: rootID, OrgID: orgID, Scope: org.ScopeSelf, Limit: 10}))
	}
	WantEqual(t, events("r", "b"), []string{event("r", "b", 300).ID, event("r", "b", 130).ID})
	WantEqual(t, events("r", "a"), []string{event("r", "a", 2).ID})
	WantEqual(t, len(events("r", "c"))+len(events("q", "q")), 0)
}

// A purge that has begun is the only one of what it removes.
func testPurgeBegins(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/", "r/a/b/", "r/z/")
	Write(t, s, func(tx testkit.Tx) error {
		_, err1 := tx.MarkDeleted("r", "r/a/b/", "del_b", At(1))
		_, err2 := tx.MarkDeleted("r", "r/a/", "del_a", At(2))
		_, err3 := tx.MarkDeleted("r", "r/z/", "del_z", At(3))
		return errors.Join(err1, err2, err3)
	})
	begin := func(deletionID string) bool {
		var begun bool
		Write(t, s, func(tx testkit.Tx) (err error) {
			begun, err = tx.BeginPurge("r", deletionID, At(4))
			return err
		})
		return begun
	}
	of := func(fn func(tx testkit.Tx) ([]*org.Organization, error)) []string { return ids(Get(t, s, fn)) }
	purging := func(tx testkit.Tx) ([]*org.Organization, error) { return tx.Purging(10) }
	WantEqual(t, of(purging), []string(nil))
	WantEqual(t, []bool{begin("del_a"), begin("del_a"), begin("del_b"), begin("absent"), begin("")}, []bool{true, false, false, false, false})
	WantEqual(t, of(purging), split("a"))
	WantEqual(t, of(func(tx testkit.Tx) ([]*org.Organization, error) { return tx.Expired(At(10), 10) }), split("b z"))
	for deletionID, want := range map[string]bool{"del_a": true, "del_b": false, "del_z": false, "": false} {
		WantEqual(t, Get(t, s, func(tx testkit.Tx) (bool, error) { return tx.PurgeBegun("r", deletionID) }), want)
	}
	// It goes on wherever it is moved.
	Write(t, s, func(tx testkit.Tx) error {
		if _, err := tx.MarkRestored("r", "del_z"); err != nil {
			return err
		}
		_, err := tx.MoveSubtree("r", "a", "z", "r/a/", "r/z/a/", 1, At(5))
		return err
	})
	Write(t, s, func(tx testkit.Tx) error {
		gone, done, err := tx.Purge("r", "del_a", 1, At(6))
		WantEqual(t, len(gone), 0)
		WantEqual(t, done, false)
		return err
	})
	for done := false; !done; {
		Write(t, s, func(tx testkit.Tx) (err error) {
			_, done, err = tx.Purge("r", "del_a", 1, At(6))
			return err
		})
	}
	absentOrg(t, s, "a")
	absentOrg(t, s, "b")
	WantEqual(t, of(purging), []string(nil))
	WantEqual(t, live(t, s, "r"), split("r z"))
}
