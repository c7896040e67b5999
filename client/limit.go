package client

import (
	"context"
	"encoding/json"
	"iter"
	"time"
)

// Enforcement says what happens at a limit.
const (
	Soft = "soft" // it is shown
	Hard = "hard" // what would exceed it is refused
)

// LimitRef is a limit without its use.
type LimitRef struct {
	OrgID       string      `json:"org_id"` // the organization on which it is set
	Meter       string      `json:"meter"`
	Limit       json.Number `json:"limit"` // an exact decimal
	Enforcement string      `json:"enforcement"`
}

// Limit bounds what an organization and its descendants consume of a meter in
// a calendar month.
type Limit struct {
	LimitRef
	Used      *json.Number `json:"used"` // this month; nil if the key cannot see the organization
	UpdatedAt time.Time    `json:"updated_at"`
	Meta      `json:"-"`
}

// Limits lists the limits that bind an organization, its own and its
// ancestors', from the root down.
func (cl *Client) Limits(ctx context.Context, orgID string, opts ...CallOption) iter.Seq2[Limit, error] {
	return list[Limit](ctx, cl, newCall("GET", []string{"orgs", orgID, "limits"}, opts))
}

// Limit returns the limit that is set on an organization for a meter.
func (cl *Client) Limit(ctx context.Context, orgID, meter string, opts ...CallOption) (*Limit, error) {
	return get[Limit](ctx, cl, newCall("GET", []string{"orgs", orgID, "limits", meter}, opts))
}

// PutLimit sets the limit on an organization for a meter: limit is an exact
// decimal such as "1000000" or "0.5", enforcement is Soft or Hard.
func (cl *Client) PutLimit(ctx context.Context, orgID, meter, limit, enforcement string, opts ...CallOption) (*Limit, error) {
	return get[Limit](ctx, cl, newCall("PUT", []string{"orgs", orgID, "limits", meter}, opts).json(struct {
		Limit       string `json:"limit"`
		Enforcement string `json:"enforcement"`
	}{limit, enforcement}))
}

// DeleteLimit removes the limit that is set on an organization for a meter.
func (cl *Client) DeleteLimit(ctx context.Context, orgID, meter string, opts ...CallOption) error {
	_, _, err := cl.do(ctx, newCall("DELETE", []string{"orgs", orgID, "limits", meter}, opts))
	return err
}
