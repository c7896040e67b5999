// Package key holds API keys: their secrets, permissions and names. It is pure: no
// storage, no HTTP.
package key

import "time"

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
