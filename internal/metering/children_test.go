package metering

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
)

// siblings is a store with an organization that has children. It counts what is
// read of them.
type siblings struct {
	Store
	View
	children []ChildTotal // by id
	reads    int
	rows     int
}

func newSiblings(n int, name string) *siblings {
	f := &siblings{}
	for i := range n {
		total := usage.Decimal(i * 7919 % 1000)
		f.children = append(f.children, ChildTotal{OrgID: fmt.Sprintf("c%06d", i), Name: name, Own: total / 3, Total: total})
	}
	return f
}

func (f *siblings) ReadHeavy(ctx context.Context, fn func(View) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.reads++
	return fn(f)
}

func (f *siblings) ChildTotals(q ChildQuery) (list []ChildTotal, more bool, err error) {
	start, _ := slices.BinarySearchFunc(f.children, q.After, func(c ChildTotal, id string) int { return strings.Compare(c.OrgID, id) })
	if q.After != "" {
		start++
	}
	end := min(start+q.Limit, len(f.children))
	f.rows += end - start
	return slices.Clone(f.children[start:end]), end < len(f.children), nil
}

// Children are read once for all of them, however many there are, and by id only
// as far as they are shown.
func TestChildrenAreReadOnce(t *testing.T) {
	const n = 100_000
	f := newSiblings(n, "Child")
	s := &Service{store: f}
	all, err := s.AllChildren(t.Context(), ChildrenQuery{ChildQuery: ChildQuery{Descending: true}, Sort: ByTotal})
	if err != nil || len(all) != n {
		t.Fatalf("%d children: %v", len(all), err)
	}
	if f.rows != n || f.reads > n/childrenStep+1 {
		t.Errorf("%d rows in %d reads", f.rows, f.reads)
	}
	if !slices.IsSortedFunc(all, func(a, b ChildTotal) int {
		if a.Total != b.Total {
			return int(b.Total - a.Total)
		}
		return strings.Compare(a.OrgID, b.OrgID)
	}) {
		t.Error("they are not in their order")
	}

	f.rows, f.reads = 0, 0
	if page, more, err := s.Children(t.Context(), ChildrenQuery{ChildQuery: ChildQuery{Limit: 500}, Sort: ByID, Position: &ChildPosition{OrgID: "c090000"}}); err != nil ||
		len(page) != 500 || !more || page[0].OrgID != "c090001" || f.rows > 501 || f.reads != 1 {
		t.Errorf("a page by id: %d children in %d reads of %d rows: %v", len(page), f.reads, f.rows, err)
	}
}

// Pages in each order make the whole order, whatever bounds them.
func TestChildrenPage(t *testing.T) {
	f := newSiblings(3*childrenStep/2, "Child")
	s := &Service{store: f}
	for _, sort := range []ChildSort{ByOwn, ByDescendants, ByTotal} {
		for _, descending := range []bool{false, true} {
			q := ChildrenQuery{ChildQuery: ChildQuery{Descending: descending, Limit: 701, MaxBytes: 100_000}, Sort: sort}
			all, err := s.AllChildren(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			var got []ChildTotal
			for more := true; more; {
				var page []ChildTotal
				if page, more, err = s.Children(t.Context(), q); err != nil {
					t.Fatal(err)
				}
				if len(page) > 500 { // of 200 bytes and more
					t.Fatalf("a page of %d", len(page))
				}
				got = append(got, page...)
				last := q.PositionOf(&page[len(page)-1])
				q.Position = &last
			}
			if !slices.Equal(got, all) {
				t.Errorf("by %s, descending %t: the pages have %d children in another order than all %d", sort, descending, len(got), len(all))
			}
		}
	}
}

// What there is no room to sort is refused, and a sort that nobody waits for
// ends.
func TestChildrenAreSortedWithinBounds(t *testing.T) {
	f := newSiblings(40_000, strings.Repeat("n", 1000))
	s := &Service{store: f}
	if _, err := s.AllChildren(t.Context(), ChildrenQuery{Sort: ByTotal}); !problem.Is(err, problem.Conflict) {
		t.Errorf("too many: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f.reads = 0
	if _, err := s.AllChildren(org.WithRecheck(ctx, func(context.Context) error { cancel(); return nil }), ChildrenQuery{Sort: ByOwn}); err == nil || f.reads > 1 {
		t.Errorf("after its client is gone: %v after %d reads", err, f.reads)
	}
}
