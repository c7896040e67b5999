package trail

import (
	"encoding/json"
	"strings"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
)

// Fold is what the audit trail says of the access log. It is made by adding all entries of a
// log in their order.
type Fold struct {
	// AccessRetentions has the days of those roots where they were set.
	AccessRetentions map[string]int
}

// NewFold returns the state before the first entry.
func NewFold() *Fold { return &Fold{AccessRetentions: map[string]int{}} }

// Add applies an entry about an organization, as org.Marked returns it.
func (f *Fold) Add(o *org.Organization, e *audit.Entry) error {
	if noun, _, _ := strings.Cut(e.Action, "."); noun != "access_log_retention" {
		return nil
	}
	if e.AllErased() {
		f.Forget(o.ID)
		return nil
	}
	var days int
	if err := json.Unmarshal(e.Changes[0].New, &days); err != nil {
		return err
	}
	f.AccessRetentions[o.ID] = days
	return nil
}

// Forget forgets an organization that is gone for good.
func (f *Fold) Forget(orgID string) { delete(f.AccessRetentions, orgID) }
