package client

import (
	"context"
	"encoding/json"
	"iter"
	"time"
)

// AuditEntry is one change that happened.
type AuditEntry struct {
	ID        string    `json:"id"`
	Timestamp time.Time `json:"timestamp"`
	OrgID     string    `json:"org_id"`
	Path      []string  `json:"path"`   // ids from the root down, at the time
	Action    string    `json:"action"` // organization.updated, api_key.created, …
	Actor     Actor     `json:"actor"`
	Target    Target    `json:"target"`
	Changes   []Change  `json:"changes"`
	RequestID string    `json:"request_id"`
	IP        string    `json:"ip"`
	UserAgent string    `json:"user_agent"`
	Epoch     int64     `json:"epoch"`
	Seq       int64     `json:"seq"`       // 0-based place in the root's log
	LeafHash  string    `json:"leaf_hash"` // hexadecimal
	Erased    []string  `json:"erased"`    // slots whose values have been erased
	Meta      `json:"-"`
}

// Actor is who made a change.
type Actor struct {
	Type string `json:"type"` // operator, api_key or system
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Target is what was changed.
type Target struct {
	Type string `json:"type"`
	ID   string `json:"id"`
}

// Change is one value that changed. Old is nil where there was nothing
// before, New is nil where there is nothing now.
type Change struct {
	Pointer string          `json:"pointer"`
	Old     json.RawMessage `json:"old"`
	New     json.RawMessage `json:"new"`
}

// AuditQuery selects audit entries. Empty members select all.
type AuditQuery struct {
	From, To time.Time // From is inclusive, To is exclusive
	Action   string
	Actor    string
	Org      string // id of the organization that changed
	Scope    string // "subtree" (default), "self", "children" or "descendants"
}

// ChildrenAudit lists audit entries of an organization and what is below it,
// newest first.
func (cl *Client) ChildrenAudit(ctx context.Context, orgID string, q AuditQuery, opts ...CallOption) iter.Seq2[AuditEntry, error] {
	return list[AuditEntry](ctx, cl, newCall("GET", []string{"orgs", orgID, "children_audit"}, opts).setTime("from", q.From).setTime("to", q.To).
		set("action", q.Action).set("actor", q.Actor).set("org", q.Org).set("scope", q.Scope))
}
