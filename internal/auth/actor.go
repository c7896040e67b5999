// Package auth decides who may do what, and where. It is pure: no storage, no
// HTTP.
//
// An actor holds grants, each at one organization. Actor.Sees and Actor.Can are
// the two questions that decide everything; what is not granted is refused, to
// actors of every kind. The kinds that are let through everywhere are named in
// Actor.Everywhere and nowhere else.
package auth

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/problem"
)

// Kind says what kind of actor did something.
type Kind string

const (
	KindOperator Kind = "operator"
	KindKey      Kind = "api_key"
	KindSystem   Kind = "system" // orgd itself, such as the purge
)

// A Grant lets an actor use permissions at one organization, and below it if it
// reaches so far.
type Grant struct {
	Path        string // of the organization: "root/child/", see org.Organization.Path
	Reach       key.Reach
	Permissions key.Permissions
	Addresses   []netip.Prefix // from which it holds; none for every one
	Until       *time.Time     // nil for no end
}

// covers reports whether the organization with this path lies within the grant. A
// grant without a path is at no organization and covers none: every path begins
// with that.
func (g *Grant) covers(path string) bool {
	if g.Reach == key.ReachSubtree {
		return g.Path != "" && strings.HasPrefix(path, g.Path)
	}
	return g.Path != "" && path == g.Path
}

// coversBelow reports whether all descendants of the organization lie within it.
func (g *Grant) coversBelow(path string) bool { return g.Reach == key.ReachSubtree && g.covers(path) }

// Actor is who makes a request: somebody with grants, the operator, or orgd
// itself. It is immutable once made.
type Actor struct {
	Kind      Kind
	ID        string // the key's id, "operator" or "system"
	Name      string
	OrgID     string // that the actor belongs to; empty for the operator and the system
	RootID    string
	Path      string // of OrgID
	ParentID  string // of OrgID; empty for a root
	Grants    []Grant
	RateLimit *key.RateLimit
	CreatedAt time.Time // of the key
}

// Everywhere reports whether the actor may do everything in all trees: the operator
// and the system may.
func (a *Actor) Everywhere() bool {
	switch a.Kind {
	case KindOperator, KindSystem:
		return true
	default:
		return false
	}
}

// Sees reports whether the organization with this path lies within what the actor
// reaches.
func (a *Actor) Sees(path string) bool {
	for i := range a.Grants {
		if a.Grants[i].covers(path) {
			return true
		}
	}
	return a.Everywhere()
}

// SeesBelow reports whether all descendants of the organization with this path lie
// within what the actor reaches.
func (a *Actor) SeesBelow(path string) bool {
	for i := range a.Grants {
		if a.Grants[i].coversBelow(path) {
			return true
		}
	}
	return a.Everywhere()
}

// Can reports whether the actor holds the permission at the organization with this
// path.
func (a *Actor) Can(permission, path string) bool {
	for i := range a.Grants {
		if g := &a.Grants[i]; g.covers(path) && g.Permissions.Has(permission) {
			return true
		}
	}
	return a.Everywhere()
}

// Holds returns the permissions that the actor has at the organization with this
// path.
func (a *Actor) Holds(path string) key.Permissions {
	if a.Everywhere() {
		return key.AllPermissions()
	}
	var all key.Permissions
	for i := range a.Grants {
		switch g := &a.Grants[i]; {
		case !g.covers(path):
		case all == nil:
			all = g.Permissions
		default:
			all = slices.Concat(all, g.Permissions)
		}
	}
	if !slices.IsSorted(all) {
		all = slices.Sorted(slices.Values(all))
	}
	return slices.Compact(all)
}

// Until returns when the last of the actor's grants ends; nil for never.
func (a *Actor) Until() (end *time.Time) {
	for i := range a.Grants {
		g := &a.Grants[i]
		if g.Until == nil {
			return nil
		}
		if end == nil || g.Until.After(*end) {
			end = g.Until
		}
	}
	return end
}

// Demand checks that the actor holds all permissions at the organization with this
// path. The error is PermissionDenied and names the first that is missing.
func (a *Actor) Demand(path string, permissions ...string) error {
	for _, p := range permissions {
		if !a.Can(p, path) {
			return problem.New(problem.PermissionDenied, "This needs the permission %s.", p).
				WithFix("Use a key that has %s.", p).With("permission", p)
		}
	}
	return nil
}

// DemandOperator checks that the actor may do what is nobody's but the operator's.
func (a *Actor) DemandOperator() error {
	if !a.Everywhere() {
		return problem.New(problem.PermissionDenied, "Only the operator may do this.")
	}
	return nil
}

// Place is the smallest part of a tree that holds all that an actor sees: an
// organization with all below it, or if Self is true the organization alone.
type Place struct {
	Path string
	Self bool
}

// Place returns where all lies that the actor sees. It is for actors that are not
// Everywhere; without any grant it is no place.
func (a *Actor) Place() (p Place, ok bool) {
	for i := range a.Grants {
		g := &a.Grants[i]
		if i == 0 {
			p = Place{g.Path, g.Reach != key.ReachSubtree}
			continue
		}
		if g.Path != p.Path {
			p = Place{common(p.Path, g.Path), false}
		} else if g.Reach == key.ReachSubtree {
			p.Self = false
		}
	}
	return p, len(a.Grants) > 0
}

// common returns the path of the nearest organization that is at or above both.
func common(a, b string) string {
	end := 0
	for i := 0; i < len(a) && i < len(b) && a[i] == b[i]; i++ {
		if a[i] == '/' {
			end = i + 1
		}
	}
	return a[:end]
}

// SameReach reports whether both see the same organizations by the same grants.
func (a *Actor) SameReach(b *Actor) bool {
	return a.Kind == b.Kind && slices.EqualFunc(a.Grants, b.Grants, func(g, h Grant) bool { return g.Path == h.Path && g.Reach == h.Reach })
}

// From returns the actor as it is for whoever comes from this address: with the
// grants that hold there. The error is PermissionDenied if there are none.
func (a *Actor) From(ip netip.Addr) (*Actor, error) {
	elsewhere := func(g Grant) bool { return !Contains(g.Addresses, ip) }
	if a.Everywhere() || !slices.ContainsFunc(a.Grants, elsewhere) {
		return a, nil
	}
	here := *a
	if here.Grants = slices.DeleteFunc(slices.Clone(a.Grants), elsewhere); len(here.Grants) == 0 {
		return nil, problem.New(problem.PermissionDenied, "This key may not be used from this address.").
			WithFix("Use it from an address in its allowed_cidrs.")
	}
	return &here, nil
}

// ForKey returns the actor that a key makes. orgPath is the path of the key's
// organization, parentID its parent, empty for a root. It fails if what is stored
// of the key is damaged.
func ForKey(k *key.Key, orgPath, parentID string) (*Actor, error) {
	g := Grant{Path: orgPath, Reach: k.Reach, Permissions: k.Permissions, Until: k.ExpiresAt}
	for _, s := range k.AllowedCIDRs {
		p, ok := ParseCIDR(s)
		if !ok {
			return nil, fmt.Errorf("key %s: stored address range %q is not valid", k.ID, s)
		}
		g.Addresses = append(g.Addresses, p)
	}
	return &Actor{Kind: KindKey, ID: k.ID, Name: k.Name, OrgID: k.OrgID, RootID: k.RootID, Path: orgPath, ParentID: parentID,
		Grants: []Grant{g}, RateLimit: k.RateLimit, CreatedAt: k.CreatedAt}, nil
}

// Operator returns the actor of the operator key.
func Operator() *Actor { return &Actor{Kind: KindOperator, ID: "operator", Name: "operator"} }

// System returns the actor of what orgd does by itself.
func System() *Actor { return &Actor{Kind: KindSystem, ID: "system", Name: "system"} }
