package client

import (
	"context"
	"net/http"
	"time"
)

// Quota is what all keys of a root may use of the server at the same time.
type Quota struct {
	OrgID     string           `json:"org_id"`
	Set       QuotaMembers     `json:"quota"`     // what the operator has set
	Defaults  QuotaMembers     `json:"defaults"`  // what a root has by default while it is alone
	Effective QuotaMembers     `json:"effective"` // what holds
	Used      map[string]int64 `json:"used"`      // what the root uses now
	UpdatedAt *time.Time       `json:"updated_at"`
	Meta      `json:"-"`
}

// QuotaMembers are the members of a quota by their names, such as
// requests_in_flight. What is nil is not set, or not bounded.
type QuotaMembers map[string]*int64

// Quota returns the quota of a root.
func (cl *Client) Quota(ctx context.Context, rootID string, opts ...CallOption) (*Quota, error) {
	return get[Quota](ctx, cl, newCall(http.MethodGet, []string{"orgs", rootID, "quota"}, opts))
}

// PutQuota replaces the quota of a root: what members do not name has its
// default. It takes the operator key.
func (cl *Client) PutQuota(ctx context.Context, rootID string, members QuotaMembers, opts ...CallOption) (*Quota, error) {
	if members == nil {
		members = QuotaMembers{}
	}
	return get[Quota](ctx, cl, newCall(http.MethodPut, []string{"orgs", rootID, "quota"}, opts).json(members))
}

// DeleteQuota gives a root the defaults again. It takes the operator key.
func (cl *Client) DeleteQuota(ctx context.Context, rootID string, opts ...CallOption) (*Quota, error) {
	return get[Quota](ctx, cl, newCall(http.MethodDelete, []string{"orgs", rootID, "quota"}, opts))
}
