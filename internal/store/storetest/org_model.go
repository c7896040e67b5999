package storetest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
)

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
				Write(t, s, func(tx metering.Tx) error { return tx.UpdateOrg(o) })
			},
			"move": func(rt *rapid.T) {
				o, to := m.pick(rt, "org", true), m.pick(rt, "to", true)
				if o.ParentID == "" || strings.HasPrefix(to.Path, o.Path) {
					rt.Skip("not a move")
				}
				oldPath, newPath, delta := o.Path, to.Path+o.ID+"/", to.Depth+1-o.Depth
				Write(t, s, func(tx metering.Tx) error {
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
				Write(t, s, func(tx metering.Tx) error { _, err := tx.MarkDeleted(rootID, o.Path, deletionID, when); return err })
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
				Write(t, s, func(tx metering.Tx) error { _, err := tx.MarkRestored(rootID, deletionID); return err })
				for _, x := range m.orgs {
					if x.DeletionID == deletionID {
						x.DeletedAt, x.DeletionID, x.Version = nil, "", x.Version+1
					}
				}
			},
			"": func(rt *rapid.T) {
				for id, want := range m.orgs {
					WantEqual(t, Get(t, s, func(tx metering.Tx) (*org.Organization, error) { return tx.Org(id) }), want)
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
