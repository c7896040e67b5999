package org

import (
	"strings"

	"github.com/orgd/orgd/internal/audit"
)

// Fold is what the audit trail says of quotas. It is made by adding all entries of a log in
// their order.
type Fold struct {
	Quotas map[string]Quota // of those roots where one is set
}

// NewFold returns the state before the first entry.
func NewFold() *Fold { return &Fold{Quotas: map[string]Quota{}} }

// Add applies an entry about an organization, as Marked returns it.
func (f *Fold) Add(o *Organization, e *audit.Entry) error {
	noun, verb, _ := strings.Cut(e.Action, ".")
	if noun != "quota" {
		return nil
	}
	if verb == "deleted" {
		delete(f.Quotas, o.ID)
		return nil
	}
	q := f.Quotas[o.ID]
	members := map[string]any{}
	for _, m := range QuotaMembers() {
		members["/"+m.Name] = m.Of(&q)
	}
	err := audit.SetMembers(e.Changes, members)
	q.UpdatedAt = e.Timestamp
	q.Version++
	f.Quotas[o.ID] = q
	return err
}

// Forget forgets an organization that is gone for good.
func (f *Fold) Forget(orgID string) { delete(f.Quotas, orgID) }
