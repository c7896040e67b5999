package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/org"
)

// childrenAt reads all pages.
func childrenAt(t testing.TB, s Store, parentID string, at time.Time, limit int) (all []string, pages int) {
	t.Helper()
	after, more := "", true
	for more {
		read(t, s, func(tx org.Tx) (err error) {
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
		o.CreatedAt = at(seconds)
		return o
	}
	insert(t, s, grown("r/", 0), grown("r/a/", 1), grown("r/b/", 1), grown("r/a/m/", 2), grown("r/a/n/", 3), grown("r/a-m/", 4))
	move := func(id, to, oldPath, newPath string, seconds int) {
		t.Helper()
		write(t, s, func(tx org.Tx) error {
			_, err := tx.MoveSubtree("r", id, to, oldPath, newPath, 0, at(seconds))
			return err
		})
	}
	move("m", "b", "r/a/m/", "r/b/m/", 10)
	move("m", "a", "r/b/m/", "r/a/m/", 20)
	move("m", "b", "r/a/m/", "r/b/m/", 30)
	write(t, s, func(tx org.Tx) error {
		_, err := tx.MarkDeleted("r", "r/a/n/", "del", at(40))
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
			got, _ := childrenAt(t, s, test.parent, at(test.seconds), limit)
			if fmt.Sprint(got) != fmt.Sprint(split(test.want)) {
				t.Errorf("below %s at %d: %v, want %s", test.parent, test.seconds, got, test.want)
			}
		}
	}
	purge(t, s, "r", "del")
	got, _ := childrenAt(t, s, "a", at(25), 100)
	wantEqual(t, got, split("m"))
	insert(t, s, grown("r/b/n/", 60))
	got, _ = childrenAt(t, s, "b", at(60), 100)
	wantEqual(t, got, split("m n"))

	// A page looks at a bounded number of organizations that were there once.
	var many []*org.Organization
	for n := range 6000 {
		many = append(many, grown(fmt.Sprintf("r/b/x%04d/", n), 100))
	}
	insert(t, s, many...)
	got, pages := childrenAt(t, s, "b", at(90), 100)
	wantEqual(t, got, split("m n"))
	if pages < 2 {
		t.Errorf("%d pages: one looked at everything", pages)
	}
}
