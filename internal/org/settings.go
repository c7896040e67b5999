package org

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/problem"
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
func ancestors(tx Tx, o *Organization) ([]*Organization, error) {
	ids := o.PathIDs()
	ids = ids[:len(ids)-1]
	if len(ids) == 0 {
		return nil, nil
	}
	found, err := tx.OrgsByID(ids)
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

func (c *change) ancestors(o *Organization) ([]*Organization, error) { return ancestors(c.Tx, o) }

// layers returns the settings of organizations, in their order.
func layers(orgs ...*Organization) []Layer {
	ls := make([]Layer, len(orgs))
	for i, o := range orgs {
		ls[i] = Layer{OrgID: o.ID, Values: o.Settings.Values, Locked: o.Settings.Locked}
	}
	return ls
}

// checkSettings checks new own settings of o against the locks of its
// ancestors and the schema of its root. above holds the ancestors' layers.
func (c *change) checkSettings(o *Organization, before string, after jsontext.Value, above []Layer) error {
	if p := CheckLocked(above, jsontext.Value(before), after); p != nil {
		return p
	}
	text, err := c.Schema(o.RootID)
	if errors.Is(err, ErrAbsent) {
		return nil
	} else if err != nil {
		return err
	}
	schema, p := CompileSchema(text)
	if p != nil {
		return p
	}
	if p := schema.Check(Effective(append(above, layers(o)...))); p != nil {
		return p
	}
	return nil
}

// Customizations returns an organization's settings; explain adds where each
// value comes from.
func (s *Service) Customizations(ctx context.Context, actor *key.Actor, id string, explain bool) (*Customizations, error) {
	// What was read is merged after the read: 33 organizations with 64 KiB each
	// take longer to merge than to read.
	var chain []*Organization
	err := s.store.ReadHeavy(ctx, func(tx Tx) error {
		o, err := tx.Org(id)
		if errors.Is(err, ErrAbsent) || err == nil && (o.DeletedAt != nil || !actor.Sees(o.Path)) {
			return NotFound()
		} else if err != nil {
			return err
		}
		parents, err := ancestors(tx, o)
		chain = append(parents, o)
		return err
	})
	if err != nil {
		return nil, err
	}
	out, err := customizationsOf(chain, explain)
	if err != nil {
		return nil, err
	}
	out.ETag = etag("customizations", chain)
	return out, nil
}

func customizations(tx Tx, o *Organization) (*Customizations, error) {
	parents, err := ancestors(tx, o)
	if err != nil {
		return nil, err
	}
	chain := append(parents, o)
	out, err := customizationsOf(chain, false)
	if err != nil {
		return nil, err
	}
	out.ETag = etag("customizations", chain)
	return out, nil
}

// customizationsOf returns the settings of the last organization of a path,
// root first.
func customizationsOf(chain []*Organization, explain bool) (*Customizations, error) {
	o := chain[len(chain)-1]
	out := &Customizations{OrgID: o.ID, Own: o.Settings.Values, Locked: o.Settings.Locked, UpdatedAt: o.Settings.UpdatedAt}
	if !explain {
		out.Effective = Effective(layers(chain...))
		return out, nil
	}
	var whole bool
	if out.Effective, out.Sources, whole = Explain(layers(chain...), maxSources); !whole {
		return nil, problem.New(problem.Conflict, "The JSON Pointers of all settings in effect take more than %d MiB.", maxSources>>20).
			WithFix("Leave out explain, and look at the settings of each organization above.")
	}
	return out, nil
}

// maxSources bounds what the sources of settings take in an answer, in bytes: a
// member far below long names has a long pointer.
const maxSources = 4 << 20

// SettingsPut replaces an organization's own settings. A nil Locked leaves
// the locks as they are.
type SettingsPut struct {
	Values jsontext.Value
	Locked *[]string
}

// PutCustomizations replaces an organization's own settings.
func (s *Service) PutCustomizations(ctx context.Context, call *Call, id string, in SettingsPut) (*Customizations, audit.Receipt, error) {
	values, p := CheckSettings("/customizations", in.Values)
	if p != nil {
		return nil, audit.Receipt{}, p
	}
	var locked []string
	if in.Locked != nil {
		if locked, p = CheckLocks("/locked", *in.Locked); p != nil {
			return nil, audit.Receipt{}, p
		}
	}
	var out *Customizations
	receipt, err := s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		before, err := c.target(id, key.CustomizationsWrite)
		if err != nil {
			return nil, nil, err
		}
		if out, err = customizations(c.Tx, before); err != nil {
			return nil, nil, err
		}
		if err := CheckMatch(call.IfMatch, out.ETag); err != nil {
			return nil, nil, err
		}
		after := *before
		after.Version++
		after.UpdatedAt, after.Settings.UpdatedAt = c.at, c.at
		changes := settingsDiff(before.Settings.Values, values)
		if len(changes) > 0 {
			after.Settings.Values = values
		}
		if in.Locked != nil {
			changes = replacedList(changes, "/locked", before.Settings.Locked, locked)
			after.Settings.Locked = locked
		}
		if len(changes) == 0 {
			return nil, nil, nil
		}
		parents, err := c.ancestors(before)
		if err != nil {
			return nil, nil, err
		}
		if err := c.checkSettings(&after, string(before.Settings.Values), after.Settings.Values, layers(parents...)); err != nil {
			return nil, nil, err
		}
		if err := c.UpdateOrg(&after); err != nil {
			return nil, nil, err
		}
		if out, err = customizations(c.Tx, &after); err != nil {
			return nil, nil, err
		}
		return out, []audit.Draft{c.orgEntry(&after, "organization.customized", changes)}, nil
	})
	return out, receipt, err
}

// Schema returns the JSON Schema of a root's customizations.
func (s *Service) Schema(ctx context.Context, actor *key.Actor, rootID string) ([]byte, error) {
	snap, err := s.Find(ctx, actor, rootID)
	if err != nil {
		return nil, err
	}
	if err := checkRoot(snap.Organization); err != nil {
		return nil, err
	}
	var schema []byte
	err = s.store.Read(ctx, func(tx Tx) (err error) {
		schema, err = tx.Schema(rootID)
		return err
	})
	if errors.Is(err, ErrAbsent) {
		return nil, noSchema(rootID)
	}
	return schema, err
}

func noSchema(rootID string) *problem.Error {
	return problem.New(problem.NotFound, "The root %s has no customization schema.", rootID)
}

// SchemaETag returns the strong entity tag of a customization schema.
func SchemaETag(schema []byte) string {
	h := sha256.Sum256(schema)
	return `"` + base64.RawURLEncoding.EncodeToString(h[:12]) + `"`
}

func checkRoot(o *Organization) error {
	if o.ParentID != "" {
		return problem.New(problem.Conflict, "Only a root organization has this; %s is not a root.", o.ID).
			WithFix("Use the root organization, %s.", o.RootID)
	}
	return nil
}

// schemaTarget finds the root whose schema is to be changed, and the schema as
// it is; nil if there is none.
func (c *change) schemaTarget(rootID string) (*Organization, []byte, error) {
	o, err := c.target(rootID, key.CustomizationsWrite)
	if err != nil {
		return nil, nil, err
	}
	if err := checkRoot(o); err != nil {
		return nil, nil, err
	}
	schema, err := c.Schema(rootID)
	if errors.Is(err, ErrAbsent) {
		return o, nil, matchNothing(c.call.IfMatch, noSchema(rootID))
	} else if err != nil {
		return nil, nil, err
	}
	return o, schema, CheckMatch(c.call.IfMatch, SchemaETag(schema))
}

// CheckSchema checks whether the actor may change the schema of a root, and
// whether it is as the call says.
func (s *Service) CheckSchema(ctx context.Context, call *Call, rootID string) error {
	return s.precheck(ctx, call, func(c *change) error {
		_, _, err := c.schemaTarget(rootID)
		return err
	})
}

// PutSchema sets the JSON Schema that the effective customizations in a
// root's tree must satisfy when they are written; nil removes it.
func (s *Service) PutSchema(ctx context.Context, call *Call, rootID string, schema []byte) (audit.Receipt, error) {
	if schema != nil {
		if _, p := CompileSchema(schema); p != nil {
			return audit.Receipt{}, p
		}
	}
	return s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		o, old, err := c.schemaTarget(rootID)
		if err != nil {
			return nil, nil, err
		}
		if old == nil && schema == nil {
			return nil, nil, noSchema(rootID)
		}
		if string(old) == string(schema) {
			return nil, nil, nil
		}
		if err := c.PutSchema(rootID, schema); err != nil {
			return nil, nil, err
		}
		action := "customization_schema.put"
		if schema == nil {
			action = "customization_schema.deleted"
		}
		return schema, []audit.Draft{c.entry(o, action, audit.Target{Type: "customization_schema", ID: rootID},
			[]audit.Change{{Pointer: "", Old: old, New: schema}})}, nil
	})
}

// maxDiff bounds what the changes of one audit entry may take, in bytes: an
// entry has at most 64 KiB.
const maxDiff = 16 << 10

// settingsDiff returns what differs between two states of own settings: value
// by value, or, if that would be too much for an audit entry, as a whole.
func settingsDiff(old, new jsontext.Value) []audit.Change {
	changes := Diff("/customizations", old, new)
	size := 0
	for _, c := range changes {
		size += 150 + 2*len(c.Pointer)
	}
	if size > maxDiff {
		return []audit.Change{{Pointer: "/customizations", Old: old, New: new}}
	}
	return changes
}
