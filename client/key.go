package client

import (
	"context"
	"encoding/json"
	"iter"
	"time"
)

// Reaches of API keys.
const (
	ReachSubtree = "subtree" // the key's organization and all its descendants
	ReachSelf    = "self"    // the key's organization alone
)

// Key is an API key.
type Key struct {
	ID           string     `json:"id"`
	OrgID        string     `json:"org_id"`
	Name         string     `json:"name"`
	Permissions  []string   `json:"permissions"`
	Reach        string     `json:"reach"`
	AllowedCIDRs []string   `json:"allowed_cidrs"` // none means every address
	RateLimit    *RateLimit `json:"rate_limit"`
	Hint         string     `json:"hint"` // the last four characters of the secret
	CreatedAt    time.Time  `json:"created_at"`
	CreatedBy    string     `json:"created_by"`
	UpdatedAt    time.Time  `json:"updated_at"`
	ExpiresAt    *time.Time `json:"expires_at"`
	LastUsedAt   *time.Time `json:"last_used_at"`
	LastUsedIP   string     `json:"last_used_ip"`
	OldSecret    *OldSecret `json:"old_secret"` // the one that a rotation replaced, while it still works
	// Secret is the key itself. Only CreateKey and RotateKey return it, and
	// nothing can show it again.
	Secret string `json:"secret"`
	Meta   `json:"-"`
}

// RateLimit is a token bucket: Requests tokens, refilled evenly over
// PeriodSeconds.
type RateLimit struct {
	Requests      int `json:"requests"`
	PeriodSeconds int `json:"period_seconds"`
}

// OldSecret is a secret that a rotation replaced.
type OldSecret struct {
	Hint       string     `json:"hint"`
	ValidUntil time.Time  `json:"valid_until"`
	LastUsedAt *time.Time `json:"last_used_at"`
	LastUsedIP string     `json:"last_used_ip"`
}

// KeyCreate describes a new API key. What is left out is taken from the
// creating key.
type KeyCreate struct {
	Name         string     `json:"name"`
	Permissions  []string   `json:"permissions,omitempty"` // such as orgs:read, or the bundles read, write, admin
	Reach        string     `json:"reach,omitempty"`
	ExpiresAt    *time.Time `json:"expires_at,omitempty"`
	AllowedCIDRs []string   `json:"allowed_cidrs,omitempty"`
	RateLimit    *RateLimit `json:"rate_limit,omitempty"`
}

// Keys lists the API keys of an organization.
func (cl *Client) Keys(ctx context.Context, orgID string, opts ...CallOption) iter.Seq2[Key, error] {
	return list[Key](ctx, cl, newCall("GET", []string{"orgs", orgID, "api_keys"}, opts))
}

// Key returns an API key.
func (cl *Client) Key(ctx context.Context, orgID, keyID string, opts ...CallOption) (*Key, error) {
	return get[Key](ctx, cl, newCall("GET", []string{"orgs", orgID, "api_keys", keyID}, opts))
}

// CreateKey creates an API key and returns it with its Secret.
func (cl *Client) CreateKey(ctx context.Context, orgID string, in KeyCreate, opts ...CallOption) (*Key, error) {
	return get[Key](ctx, cl, newCall("POST", []string{"orgs", orgID, "api_keys"}, opts).json(in))
}

// UpdateKey changes an API key by a JSON Merge Patch of its name, permissions,
// reach, expires_at, allowed_cidrs and rate_limit.
func (cl *Client) UpdateKey(ctx context.Context, orgID, keyID string, patch json.RawMessage, opts ...CallOption) (*Key, error) {
	c := newCall("PATCH", []string{"orgs", orgID, "api_keys", keyID}, opts).json(patch)
	c.contentType = "application/merge-patch+json"
	return get[Key](ctx, cl, c)
}

// RotateKey gives an API key a new Secret. The old one works for overlap, in
// whole seconds and at most 30 days.
func (cl *Client) RotateKey(ctx context.Context, orgID, keyID string, overlap time.Duration, opts ...CallOption) (*Key, error) {
	return get[Key](ctx, cl, newCall("POST", []string{"orgs", orgID, "api_keys", keyID, "rotate"}, opts).json(struct {
		OverlapSeconds int64 `json:"overlap_seconds"`
	}{int64(overlap / time.Second)}))
}

// RevokeKey ends an API key at once and for good.
func (cl *Client) RevokeKey(ctx context.Context, orgID, keyID string, opts ...CallOption) error {
	_, _, err := cl.do(ctx, newCall("DELETE", []string{"orgs", orgID, "api_keys", keyID}, opts))
	return err
}
