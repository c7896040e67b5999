package testkit

import (
	"fmt"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/trail"
	"github.com/orgd/orgd/internal/tree"
)

// Fold is the state that an audit trail alone leads to: what each package makes of the
// entries that it writes.
type Fold struct {
	*tree.Fold
	Own      *org.Fold
	Trail    *trail.Fold
	Metering *metering.Fold
}

// NewFold returns the state before the first entry.
func NewFold() *Fold {
	return &Fold{tree.NewFold(), org.NewFold(), trail.NewFold(), metering.NewFold()}
}

// Add applies one entry. It fails on an entry that cannot follow on the state.
func (f *Fold) Add(e *audit.Entry) error {
	err := f.add(org.Marked(e))
	if err != nil {
		return fmt.Errorf("audit entry %d (%s of %s): %w", e.Seq, e.Action, e.Target.ID, err)
	}
	return nil
}

func (f *Fold) add(e *audit.Entry) error {
	o, gone, err := f.Fold.Add(e)
	for _, part := range []interface {
		Add(o *org.Organization, e *audit.Entry) error
		Forget(orgID string)
	}{f.Own, f.Trail, f.Metering} {
		if err == nil {
			err = part.Add(o, e)
		}
		for id := range gone {
			part.Forget(id)
		}
	}
	return err
}
