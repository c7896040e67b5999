package metering

import (
	"fmt"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/usage"
)

// Fold is what the audit trail says of meters, limits, adjustments and closed months. It is
// made by adding all entries of a log in their order.
type Fold struct {
	Limits map[string]map[string]*usage.Limit // by organization and meter
	Meters map[string]map[string]*usage.Meter // by root and slug
	// Closed are the months of a root that are closed.
	Closed map[string][]usage.Month
	// Adjustments are those that somebody made, by organization.
	Adjustments map[string][]usage.Adjustment
	// ErasedUsage has the meters and adjustments of which a value was erased.
	ErasedUsage map[string]bool
}

// NewFold returns the state before the first entry.
func NewFold() *Fold {
	return &Fold{Limits: map[string]map[string]*usage.Limit{}, Meters: map[string]map[string]*usage.Meter{},
		Closed: map[string][]usage.Month{}, Adjustments: map[string][]usage.Adjustment{}, ErasedUsage: map[string]bool{}}
}

// Add applies an entry about an organization, as org.Marked returns it.
func (f *Fold) Add(o *org.Organization, e *audit.Entry) error {
	switch noun, verb, _ := strings.Cut(e.Action, "."); noun {
	case "limit":
		return f.foldLimit(o, verb, e)
	case "meter":
		return f.foldMeter(o, verb, e)
	case "consumption":
		if e.Action == audit.ActionMonthClosed {
			f.Closed[o.ID] = append(f.Closed[o.ID], usage.Month(e.Target.ID))
			return nil
		}
		return f.foldAdjustment(o, e)
	}
	return nil
}

// Forget forgets an organization that is gone for good.
func (f *Fold) Forget(orgID string) {
	delete(f.Limits, orgID)
	delete(f.Meters, orgID)
	delete(f.Adjustments, orgID)
}

func (f *Fold) foldLimit(o *org.Organization, verb string, e *audit.Entry) error {
	if verb == "deleted" {
		delete(f.Limits[o.ID], e.Target.ID)
		return nil
	}
	if f.Limits[o.ID] == nil {
		f.Limits[o.ID] = map[string]*usage.Limit{}
	}
	l := f.Limits[o.ID][e.Target.ID]
	if l == nil {
		l = &usage.Limit{RootID: o.RootID, OrgID: o.ID, Meter: e.Target.ID}
		f.Limits[o.ID][l.Meter] = l
	}
	l.UpdatedAt = e.Timestamp
	l.Version++
	for _, c := range e.Changes {
		var p any
		switch c.Pointer {
		case "/limit":
			p = &l.Amount
		case "/enforcement":
			p = &l.Enforcement
		default:
			return fmt.Errorf("unknown pointer %s", c.Pointer)
		}
		if err := json.Unmarshal(c.New, p); err != nil {
			return err
		}
	}
	return nil
}

func (f *Fold) foldMeter(o *org.Organization, verb string, e *audit.Entry) error {
	if verb == "deleted" {
		delete(f.Meters[o.ID], e.Target.ID)
		return nil
	}
	if f.Meters[o.ID] == nil {
		f.Meters[o.ID] = map[string]*usage.Meter{}
	}
	m := f.Meters[o.ID][e.Target.ID]
	if m == nil {
		m = &usage.Meter{Slug: e.Target.ID, CreatedAt: e.Timestamp}
		f.Meters[o.ID][m.Slug] = m
	}
	m.UpdatedAt = e.Timestamp
	m.Version++
	if e.AllErased() {
		f.ErasedUsage[m.Slug] = true
		return nil
	}
	return audit.SetMembers(e.Changes, map[string]any{"/unit": &m.Unit, "/aggregation": &m.Aggregation, "/description": &m.Description,
		"/event_type": &m.EventType, "/value": &m.Value})
}

func (f *Fold) foldAdjustment(o *org.Organization, e *audit.Entry) error {
	if e.AllErased() {
		f.ErasedUsage[e.Target.ID] = true
		return nil
	}
	a := usage.Adjustment{ID: e.Target.ID, RootID: o.RootID, OrgID: o.ID, Origin: usage.FromActor, CreatedBy: e.Actor.ID, CreatedAt: e.Timestamp}
	err := audit.SetMembers(e.Changes, map[string]any{"/month": &a.Month, "/for_month": &a.For, "/meter": &a.Meter,
		"/quantity": &a.Quantity, "/reason": &a.Reason})
	if a.Reason == org.ErasedText {
		a.Reason = "" // the adjustment has lost it too
	}
	f.Adjustments[o.ID] = append(f.Adjustments[o.ID], a)
	return err
}
