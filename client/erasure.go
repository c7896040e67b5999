package client

import (
	"context"
	"time"
)

// AsOf asks Org, Descendants or Customizations for the state at a moment in
// the past, rebuilt from the audit trail.
func AsOf(t time.Time) CallOption { return func(c *call) { c.setTime("as_of", t) } }

// AuditEntry returns one entry of those that ChildrenAudit lists.
func (cl *Client) AuditEntry(ctx context.Context, orgID, entryID string, opts ...CallOption) (*AuditEntry, error) {
	return get[AuditEntry](ctx, cl, newCall("GET", []string{"orgs", orgID, "children_audit", entryID}, opts))
}

// Erasure says what was erased of a subject, and what still holds it.
type Erasure struct {
	DryRun bool `json:"dry_run"`
	Erased struct {
		AuditEntries int64 `json:"audit_entries"`
		AuditValues  int64 `json:"audit_values"` // of these entries
		AccessEvents int64 `json:"access_events"`
		APIKeys      int64 `json:"api_keys"`
	} `json:"erased"`
	Remaining struct {
		Organizations        int64 `json:"organizations"`
		APIKeys              int64 `json:"api_keys"`
		CustomizationSchemas int64 `json:"customization_schemas"`
		AuditEntries         int64 `json:"audit_entries"`
		AccessEvents         int64 `json:"access_events"`
	} `json:"remaining"`
	Meta `json:"-"`
}

// EraseSubject erases what is kept about a subject, such as a mail address, in
// the past of an organization and of what is below it. The basis, on which
// ground that is done, is kept in the audit trail; the subject is not. With
// dryRun it only counts.
func (cl *Client) EraseSubject(ctx context.Context, orgID, subject, basis string, dryRun bool, opts ...CallOption) (*Erasure, error) {
	return get[Erasure](ctx, cl, newCall("POST", []string{"orgs", orgID, "audit_erasures"}, opts).setBool("dry_run", dryRun).
		json(map[string]string{"subject": subject, "basis": basis}))
}
