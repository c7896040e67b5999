package client

import (
	"context"
	"time"
)

// Identity is who a key is and what it may do.
type Identity struct {
	Kind        string     `json:"kind"` // api_key or operator
	ID          string     `json:"id"`
	Name        string     `json:"name"`
	OrgID       string     `json:"org_id"` // empty for the operator
	RootID      string     `json:"root_id"`
	Permissions []string   `json:"permissions"`
	Reach       string     `json:"reach"` // subtree, self or, for the operator, all
	ExpiresAt   *time.Time `json:"expires_at"`
	Meta        `json:"-"`
}

// WhoAmI returns who the client's key is.
func (cl *Client) WhoAmI(ctx context.Context, opts ...CallOption) (*Identity, error) {
	return get[Identity](ctx, cl, newCall("GET", []string{"org"}, opts))
}

// Status says how a server is.
type Status struct {
	Status        string           `json:"status"` // ok or degraded
	Version       string           `json:"version"`
	Database      string           `json:"database"` // sqlite or postgres
	UptimeSeconds int64            `json:"uptime_seconds"`
	Checks        map[string]Check `json:"checks"`
	Meta          `json:"-"`
}

// Check is the state of one part of a server.
type Check struct {
	Status string `json:"status"` // ok or failed
	Detail string `json:"detail"`
}

// ServiceStatus returns how the server is. It needs no key.
func (cl *Client) ServiceStatus(ctx context.Context, opts ...CallOption) (*Status, error) {
	return get[Status](ctx, cl, newCall("GET", []string{"service_status"}, opts))
}
