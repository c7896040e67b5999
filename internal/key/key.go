// Package key holds API keys and actors: who somebody is and what they may do.
// It is pure: no storage, no HTTP.
package key

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Reach says how far down the tree a key works.
type Reach string

const (
	ReachSubtree Reach = "subtree" // the key's organization and all its descendants
	ReachSelf    Reach = "self"    // the key's organization alone
)

// Permissions is a set of permissions: sorted, without repeats, bundles
// expanded.
type Permissions []string

// RateLimit is a token bucket: Requests tokens, refilled evenly over
// PeriodSeconds.
type RateLimit struct {
	Requests      int `json:"requests"`
	PeriodSeconds int `json:"period_seconds"`
}

// Key is an API key as it is stored. It never holds the secret itself.
type Key struct {
	ID           string // "key_…"
	OrgID        string
	RootID       string
	Name         string
	Permissions  Permissions
	Reach        Reach
	AllowedCIDRs []string // canonical prefixes; none means every address
	RateLimit    *RateLimit
	Hint         string // the last four characters of the secret
	CreatedAt    time.Time
	CreatedBy    string // the id of the creating actor
	UpdatedAt    time.Time
	ExpiresAt    *time.Time
	RevokedAt    *time.Time
	LastUsedAt   *time.Time
	LastUsedIP   string
	SecretHash   []byte // SHA-256 of the secret
	Old          *OldSecret
	Version      int64 // grows by one with every change of the key, not with its use
}

// OldSecret is the secret that a rotation replaced, which works until
// ValidUntil.
type OldSecret struct {
	Hash       []byte
	Hint       string
	ValidUntil time.Time
	LastUsedAt *time.Time
	LastUsedIP string
}

// Usable reports whether a secret with this hash opens the key at the time
// now: ok for the current secret, and for the one that a rotation replaced
// until its overlap has passed, which old then tells. A key that is revoked or
// expired is not usable.
func (k *Key) Usable(now time.Time, hash [32]byte) (old, ok bool) {
	if k.RevokedAt != nil || k.ExpiresAt != nil && !now.Before(*k.ExpiresAt) {
		return false, false
	}
	if Match(k.SecretHash, hash) {
		return false, true
	}
	if k.Old != nil && now.Before(k.Old.ValidUntil) && Match(k.Old.Hash, hash) {
		return true, true
	}
	return false, false
}

// ActorKind says what kind of actor did something.
type ActorKind string

const (
	KindOperator ActorKind = "operator"
	KindKey      ActorKind = "api_key"
	KindSystem   ActorKind = "system" // orgd itself, such as the purge
)

// Actor is who makes a request: an authenticated API key, the operator, or
// orgd itself. It is immutable once made.
type Actor struct {
	Kind        ActorKind
	ID          string // the key's id, "operator" or "system"
	Name        string
	OrgID       string // empty for the operator and the system
	RootID      string
	Path        string // of OrgID: "root/child/", see org.Organization.Path
	ParentID    string // of OrgID; empty for a root
	Permissions Permissions
	Reach       Reach
	CIDRs       []netip.Prefix
	ExpiresAt   *time.Time
	RateLimit   *RateLimit
	CreatedAt   time.Time // of the key
}

// Sees reports whether the organization with this path lies within the
// actor's reach.
func (a *Actor) Sees(path string) bool {
	switch {
	case a.Kind != KindKey:
		return true
	case a.Reach == ReachSelf:
		return path == a.Path
	default:
		return strings.HasPrefix(path, a.Path)
	}
}

// SeesBelow reports whether the descendants of the organization with this
// path lie within the actor's reach.
func (a *Actor) SeesBelow(path string) bool {
	return a.Kind != KindKey || a.Reach != ReachSelf && strings.HasPrefix(path, a.Path)
}

// May reports whether the actor holds the permission.
func (a *Actor) May(permission string) bool {
	return a.Kind != KindKey || a.Permissions.Has(permission)
}

// Spans reports whether the actor reaches every root: the operator and the
// system.
func (a *Actor) Spans() bool { return a.Kind != KindKey }

// NewActor returns the actor that a key makes. orgPath is the path of the
// key's organization (see Actor.Path), parentID its parent, empty for a root.
// It fails if what is stored of the key is damaged.
func NewActor(k *Key, orgPath, parentID string) (*Actor, error) {
	a := &Actor{Kind: KindKey, ID: k.ID, Name: k.Name, OrgID: k.OrgID, RootID: k.RootID, Path: orgPath, ParentID: parentID,
		Permissions: k.Permissions, Reach: k.Reach, ExpiresAt: k.ExpiresAt, RateLimit: k.RateLimit, CreatedAt: k.CreatedAt}
	for _, s := range k.AllowedCIDRs {
		p, ok := ParseCIDR(s)
		if !ok {
			return nil, fmt.Errorf("key %s: stored address range %q is not valid", k.ID, s)
		}
		a.CIDRs = append(a.CIDRs, p)
	}
	return a, nil
}

// Operator returns the actor of the operator key.
func Operator() *Actor {
	return &Actor{Kind: KindOperator, ID: operatorID, Name: operatorID, Permissions: AllPermissions(), Reach: ReachSubtree}
}

// System returns the actor of what orgd does by itself.
func System() *Actor {
	return &Actor{Kind: KindSystem, ID: "system", Name: "system", Permissions: AllPermissions(), Reach: ReachSubtree}
}
