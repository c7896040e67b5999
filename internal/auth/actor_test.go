package auth

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/problem"
)

func TestActorSeesAndCan(t *testing.T) {
	of := func(reach key.Reach) *Actor {
		a, err := ForKey(&key.Key{ID: "key_1", OrgID: "b", RootID: "a", Permissions: key.Permissions{key.OrgsRead}, Reach: reach}, "a/b/", "a")
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	subtree, self := of(key.ReachSubtree), of(key.ReachSelf)
	for _, tt := range []struct {
		path               string
		bySubtree, bySelf_ bool
	}{
		{"a/", false, false},
		{"a/b/", true, true},
		{"a/b/c/", true, false},
		{"a/bc/", false, false},
		{"x/", false, false},
		{"", false, false},
	} {
		if subtree.Sees(tt.path) != tt.bySubtree || self.Sees(tt.path) != tt.bySelf_ {
			t.Errorf("%s: seen by subtree reach %t, by self reach %t", tt.path, subtree.Sees(tt.path), self.Sees(tt.path))
		}
		if subtree.SeesBelow(tt.path) != tt.bySubtree || self.SeesBelow(tt.path) {
			t.Errorf("%s: seen below by subtree reach %t, by self reach %t", tt.path, subtree.SeesBelow(tt.path), self.SeesBelow(tt.path))
		}
		if subtree.Can(key.OrgsRead, tt.path) != tt.bySubtree || self.Can(key.OrgsRead, tt.path) != tt.bySelf_ || subtree.Can(key.OrgsWrite, tt.path) {
			t.Errorf("%s: what a key can do there is not what it was granted", tt.path)
		}
		for _, a := range []*Actor{Operator(), System()} {
			if !a.Sees(tt.path) || !a.SeesBelow(tt.path) || !a.Can(key.OrgsWrite, tt.path) {
				t.Errorf("%s: closed to the %s", tt.path, a.Kind)
			}
		}
	}
	if subtree.Everywhere() || !Operator().Everywhere() || !System().Everywhere() {
		t.Error("only the operator and the system are everywhere")
	}
	if _, err := ForKey(&key.Key{AllowedCIDRs: []string{"damaged"}}, "a/", ""); err == nil {
		t.Error("a damaged address range is taken for none, which is every address")
	}
}

// A kind of actor that nothing here knows may do what it was granted and nothing
// else; without grants, nothing at all.
func TestUnknownKindFindsEveryDoorClosed(t *testing.T) {
	robot := &Actor{Kind: "robot", ID: "rob_1", Name: "operator", OrgID: "a", RootID: "a", Path: "a/"}
	for _, path := range []string{"", "a/", "a/b/", "x/"} {
		if robot.Sees(path) || robot.SeesBelow(path) {
			t.Errorf("%q is seen", path)
		}
		for _, p := range key.AllPermissions() {
			if robot.Can(p, path) || !problem.Is(robot.Demand(path, p), problem.PermissionDenied) {
				t.Errorf("%s at %q", p, path)
			}
		}
		if len(robot.Holds(path)) > 0 {
			t.Errorf("it holds %v at %q", robot.Holds(path), path)
		}
		if _, err := TermsFor(robot, path, Request{Name: "CI", Permissions: []string{"orgs:read"}}, grantNow); err == nil {
			t.Errorf("it makes keys at %q", path)
		}
		if Covers(robot, path, &key.Key{Permissions: key.Permissions{key.OrgsRead}}) == nil {
			t.Errorf("it changes keys at %q", path)
		}
	}
	if robot.Everywhere() || robot.DemandOperator() == nil {
		t.Error("it is taken for the operator")
	}
	if _, ok := robot.Place(); ok {
		t.Error("it has a place")
	}
	robot.Grants = []Grant{{Path: "a/b/", Reach: key.ReachSelf, Permissions: key.Permissions{key.TagsWrite}}}
	if !robot.Can(key.TagsWrite, "a/b/") || robot.Can(key.TagsWrite, "a/") || robot.Can(key.TagsWrite, "a/b/c/") || robot.Can(key.OrgsRead, "a/b/") {
		t.Error("it cannot do what it was granted, or more")
	}
	// A grant without a path is one at no organization, and not at all of them.
	for _, reach := range []key.Reach{key.ReachSubtree, key.ReachSelf} {
		nowhere := &Actor{Kind: "robot", Grants: []Grant{{Reach: reach, Permissions: key.AllPermissions()}}}
		for _, path := range []string{"", "a/", "a/b/"} {
			if nowhere.Sees(path) || nowhere.SeesBelow(path) || nowhere.Can(key.OrgsRead, path) || len(nowhere.Holds(path)) > 0 {
				t.Errorf("%q lies within a grant of reach %s at no organization", path, reach)
			}
		}
	}
	// A reach that nobody knows is no more than the organization itself.
	robot.Grants[0].Reach = "galaxy"
	if robot.Sees("a/b/c/") || robot.SeesBelow("a/b/") || !robot.Sees("a/b/") {
		t.Error("an unknown reach reaches further than its organization")
	}
}

// Several grants together allow what one of them does, and never what takes the
// place of one and the permission of another.
func TestGrantsAddUp(t *testing.T) {
	paths := []string{"a/", "a/b/", "a/b/c/", "a/d/", "a/d/e/", "a/bb/"}
	permissions := []string{key.OrgsRead, key.OrgsWrite, key.TagsWrite}
	now, here, there := grantNow, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.0.2.1")
	grant := rapid.Custom(func(t *rapid.T) Grant {
		g := Grant{Path: rapid.SampledFrom(paths).Draw(t, "path"), Reach: rapid.SampledFrom([]key.Reach{key.ReachSelf, key.ReachSubtree}).Draw(t, "reach"),
			Permissions: slices.Compact(slices.Sorted(slices.Values(rapid.SliceOfN(rapid.SampledFrom(permissions), 1, 3).Draw(t, "permissions"))))}
		if rapid.Bool().Draw(t, "only here") {
			g.Addresses = prefixes("10.0.0.0/8")
		}
		if rapid.Bool().Draw(t, "for a while") {
			g.Until = new(now.Add(time.Hour))
		}
		return g
	})
	rapid.Check(t, func(t *rapid.T) {
		all := &Actor{Kind: KindKey, RootID: "a", Path: "a/", Grants: rapid.SliceOfN(grant, 0, 4).Draw(t, "grants")}
		for _, ip := range []netip.Addr{here, there} {
			a, err := all.From(ip)
			if err != nil {
				if slices.ContainsFunc(all.Grants, func(g Grant) bool { return Contains(g.Addresses, ip) }) {
					t.Fatal(err)
				}
				continue
			}
			place, placed := a.Place()
			for _, path := range paths {
				sees, can := false, map[string]bool{}
				for _, g := range all.Grants {
					one := &Actor{Kind: KindKey, Grants: []Grant{g}}
					if !one.Sees(path) || !Contains(g.Addresses, ip) {
						continue
					}
					sees = true
					for _, p := range g.Permissions {
						can[p] = true
					}
				}
				if a.Sees(path) != sees {
					t.Errorf("%s from %s: seen %t, want %t", path, ip, a.Sees(path), sees)
				}
				within := &Actor{Kind: KindKey, Grants: []Grant{{Path: place.Path, Reach: map[bool]key.Reach{true: key.ReachSelf, false: key.ReachSubtree}[place.Self]}}}
				if sees && (!placed || !within.Sees(path)) {
					t.Errorf("%s is seen and not in the place %v", path, place)
				}
				for _, p := range permissions {
					if a.Can(p, path) != can[p] || a.Holds(path).Has(p) != can[p] {
						t.Errorf("%s at %s from %s: %t, want %t", p, path, ip, a.Can(p, path), can[p])
					}
					// What it gives is what one of its grants has.
					k := &key.Key{ID: "key_2", Permissions: key.Permissions{p}, Reach: key.ReachSubtree}
					covered := slices.ContainsFunc(a.Grants, func(g Grant) bool {
						return g.coversBelow(path) && g.Permissions.Has(p) && g.Addresses == nil && g.Until == nil
					})
					if Covers(a, path, k) == nil && !covered {
						t.Errorf("%v gives more at %s than one grant has: %v", a.Grants, path, k)
					}
				}
			}
		}
	})
}
