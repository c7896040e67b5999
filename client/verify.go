package client

import (
	"context"
	"encoding/json"
	"time"
)

// Request is a request that somebody made to your product, and what you demand
// of it. Empty members are left out.
type Request struct {
	Key         string      `json:"key"`                   // the API key that it carries
	Permissions []string    `json:"permissions,omitempty"` // the key must have all of these
	OrgID       string      `json:"org_id,omitempty"`      // the key must reach this organization; its own if empty
	Meter       string      `json:"meter,omitempty"`       // on which the request counts if it is allowed; none if empty
	Quantity    json.Number `json:"quantity,omitempty"`    // how much it counts, an exact decimal; 1 if empty
	IP          string      `json:"ip,omitempty"`          // where it comes from; a key with allowed networks is denied without it

	// For the access log.
	Action    string `json:"action,omitempty"` // VERIFY if empty
	Method    string `json:"method,omitempty"`
	Path      string `json:"path,omitempty"` // without the query
	UserAgent string `json:"user_agent,omitempty"`
	RequestID string `json:"-"` // one that is no valid id is replaced
}

// Verdict is the decision about a Request.
type Verdict struct {
	Valid  bool   `json:"valid"`  // whether it may be made
	Code   string `json:"code"`   // why not: unauthorized, permission_denied, rate_limited or limit_exceeded; from a Guard also invalid_request
	Detail string `json:"detail"` // the same in words

	// Whose request it is. Empty for unauthorized; without the organization if
	// the key cannot see the one that the request is about.
	KeyID       string   `json:"key_id"`
	Name        string   `json:"name"` // of the key
	OrgID       string   `json:"org_id"`
	RootID      string   `json:"root_id"`
	Path        []string `json:"path"`        // ids from the root down to the organization
	Permissions []string `json:"permissions"` // all that the key has

	RateLimit         *RateLimitState `json:"rate_limit"` // nil if the key has none
	Limits            []Limit         `json:"limits"`     // on the meter
	LimitOrgID        string          `json:"limit_org_id"`
	RetryAfterSeconds int64           `json:"retry_after_seconds"` // 0 if waiting does not help
	Meta              `json:"-"`
}

// RateLimitState is the rate limit of a key and what is left of it.
type RateLimitState struct {
	RateLimit
	Remaining    int `json:"remaining"`
	ResetSeconds int `json:"reset_seconds"` // until all is back
}

// RetryAfter is how long to wait before the request may be allowed; 0 if
// waiting does not help.
func (v *Verdict) RetryAfter() time.Duration { return time.Duration(v.RetryAfterSeconds) * time.Second }

// Verify decides about a request to your product. If it is allowed it counts;
// either way it is an event in the access log of its organization. It takes a
// key with the permission keys:verify, and decides about the keys of the
// organizations that this key reaches.
//
// It is repeated only when the server certainly did nothing. After another
// error the request may have been counted.
func (cl *Client) Verify(ctx context.Context, r Request) (*Verdict, error) {
	c := newCall("POST", []string{"verify"}, nil).json(r)
	c.once = true
	c.header("X-Request-Id", r.RequestID)
	return get[Verdict](ctx, cl, c)
}
