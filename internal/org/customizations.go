package org

import (
	"errors"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/settings"
)

// Customizations are an organization's own settings and what is in effect
// after inheritance.
type Customizations struct {
	OrgID     string
	Own       jsontext.Value
	Locked    []string
	Effective jsontext.Value
	Sources   map[string]string // JSON Pointer → id of the organization it comes from
	UpdatedAt time.Time         // of the own settings
	ETag      string
}

// ancestors returns the organizations above o, root first.
func Ancestors(v OrgView, o *Organization) ([]*Organization, error) {
	ids := o.PathIDs()
	ids = ids[:len(ids)-1]
	if len(ids) == 0 {
		return nil, nil
	}
	found, err := v.OrgsByID(ids)
	if err != nil {
		return nil, err
	}
	byID := make(map[string]*Organization, len(found))
	for _, a := range found {
		byID[a.ID] = a
	}
	ordered := make([]*Organization, len(ids))
	for i, id := range ids {
		if ordered[i] = byID[id]; ordered[i] == nil {
			return nil, errors.New("organization " + o.ID + " has no ancestor " + id)
		}
	}
	return ordered, nil
}

// layers returns the settings of organizations, in their order.
func Layers(orgs ...*Organization) []settings.Layer {
	ls := make([]settings.Layer, len(orgs))
	for i, o := range orgs {
		ls[i] = settings.Layer{OrgID: o.ID, Values: o.Settings.Values, Locked: o.Settings.Locked}
	}
	return ls
}

// customizationsOf returns the settings of the last organization of a path,
// root first.
func CustomizationsOf(chain []*Organization, explain bool) (*Customizations, error) {
	o := chain[len(chain)-1]
	out := &Customizations{OrgID: o.ID, Own: o.Settings.Values, Locked: o.Settings.Locked, UpdatedAt: o.Settings.UpdatedAt}
	if !explain {
		out.Effective = settings.Effective(Layers(chain...))
		return out, nil
	}
	var whole bool
	if out.Effective, out.Sources, whole = settings.Explain(Layers(chain...), settings.MaxSources); !whole {
		return nil, problem.New(problem.Conflict, "The JSON Pointers of all settings in effect take more than %d MiB.", settings.MaxSources>>20).
			WithFix("Leave out explain, and look at the settings of each organization above.")
	}
	return out, nil
}

func CheckRoot(o *Organization) error {
	if o.ParentID != "" {
		return problem.New(problem.Conflict, "Only a root organization has this; %s is not a root.", o.ID).
			WithFix("Use the root organization, %s.", o.RootID)
	}
	return nil
}

// maxDiff bounds what the changes of one audit entry may take, in bytes: an
// entry has at most 64 KiB.
const maxDiff = 16 << 10

// settingsDiff returns what differs between two states of own settings: value
// by value, or, if that would be too much for an audit entry, as a whole.
func SettingsDiff(old, new jsontext.Value) []audit.Change {
	if changes, ok := settings.DiffWithin(maxDiff, "/customizations", old, new); ok {
		return AuditChanges(changes)
	}
	return []audit.Change{{Pointer: "/customizations", Old: old, New: new}}
}

// auditChanges returns changes of settings as those of an audit entry.
func AuditChanges(changes []settings.Change) []audit.Change {
	var out []audit.Change
	for _, c := range changes {
		out = append(out, audit.Change(c))
	}
	return out
}

// customizationsTag returns the entity tag of what is effective at the last of a
// chain of organizations.
func CustomizationsTag(chain []*Organization) string {
	list := make([]Stamp, len(chain))
	for i, o := range chain {
		list[i] = o.Stamp()
	}
	return ETag("customizations", list...)
}
