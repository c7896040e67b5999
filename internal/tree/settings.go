package tree

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/settings"
)

func (c *check) ancestors(o *org.Organization) ([]*org.Organization, error) {
	return org.Ancestors(c, o)
}

// schemaText returns the schema of a root, nil if there is none.
func schemaText(v interface {
	Schema(rootID string) ([]byte, error)
}, rootID string) ([]byte, error) {
	text, err := v.Schema(rootID)
	if errors.Is(err, org.ErrAbsent) {
		return nil, nil
	}
	return text, err
}

// basis is what the check of new settings rests on: the settings and locks of
// the organizations from the root down, and the root's schema. Checking may
// take long and is done before the transaction, which only looks whether all of
// this is still so.
type basis struct {
	above  []*org.Organization // root first
	org    *org.Organization   // the last of the chain
	schema []byte              // nil for none
}

// basis reads what settings below or of o are checked against.
func (c *check) basis(o *org.Organization) (*basis, error) {
	above, err := c.ancestors(o)
	if err != nil {
		return nil, err
	}
	schema, err := schemaText(c, o.RootID)
	return &basis{above, o, schema}, err
}

// errBasisChanged says that a change was worked out from what is no longer so.
var errBasisChanged = errors.New("what the settings were checked against has changed")

// confirm checks under the lock that b is still so. o is the last organization
// of b as it is now. It is errBasisChanged if not.
func (c *change) confirm(b *basis, o *org.Organization) error {
	if o.Path != b.org.Path || string(o.Settings.Values) != string(b.org.Settings.Values) || !slices.Equal(o.Settings.Locked, b.org.Settings.Locked) {
		return errBasisChanged
	}
	if len(b.above) > 0 {
		ids := make([]string, len(b.above))
		for i, a := range b.above {
			ids[i] = a.ID
		}
		now, err := c.Versions(ids)
		if err != nil {
			return err
		}
		for _, a := range b.above {
			if now[a.ID] != (org.Version{CreatedAt: a.CreatedAt, Version: a.Version}) {
				return errBasisChanged
			}
		}
	}
	schema, err := schemaText(c, o.RootID)
	if err != nil {
		return err
	}
	if (schema == nil) != (b.schema == nil) || !bytes.Equal(schema, b.schema) {
		return errBasisChanged
	}
	return nil
}

// maxAttempts is how often a change is worked out anew because others change
// what it rests on, after the first time.
const maxAttempts = 8

// settled makes a change that is worked out before its transaction: attempt
// does both and returns errBasisChanged if something came between. Then it is
// repeated, now one at a time for each root in this process, so that those that
// change the same settings come through one after the other.
func (s *Service) settled(ctx context.Context, rootOf func() string, attempt func() error) error {
	err := attempt()
	if !errors.Is(err, errBasisChanged) {
		return err
	}
	leave, err := s.orgs.SettleTurn(ctx, rootOf())
	if err != nil {
		return err
	}
	defer leave()
	for range maxAttempts {
		if err = attempt(); !errors.Is(err, errBasisChanged) {
			return err
		}
	}
	return busy("The settings above this organization, its own or the schema of its root change all the time; nothing was changed.")
}

func busy(detail string) *problem.Error {
	p := problem.New(problem.Unavailable, "%s", detail).WithFix("Send the request again.")
	p.RetryAfter = time.Second
	return p
}

// Customizations returns an organization's settings; explain adds where each
// value comes from.
func (s *Service) Customizations(ctx context.Context, actor *auth.Actor, id string, explain bool) (*org.Customizations, error) {
	// What was read is merged after the read: 33 organizations with 64 KiB each
	// take longer to merge than to read.
	var chain []*org.Organization
	err := s.store.ReadHeavy(ctx, func(v View) error {
		o, err := v.Org(id)
		if errors.Is(err, org.ErrAbsent) || err == nil && (o.DeletedAt != nil || !actor.Sees(o.Path)) {
			return org.NotFound()
		} else if err != nil {
			return err
		}
		parents, err := org.Ancestors(v, o)
		chain = append(parents, o)
		return err
	})
	if err != nil {
		return nil, err
	}
	out, err := org.CustomizationsOf(chain, explain)
	if err != nil {
		return nil, err
	}
	out.ETag = org.CustomizationsTag(chain)
	return out, nil
}

// CheckCustomizations checks whether the actor may change the settings of an
// organization, and whether they are as the call says.
func (s *Service) CheckCustomizations(ctx context.Context, call *org.Call, id string) error {
	return s.precheck(ctx, call, func(c *check) error {
		o, err := c.Target(id, key.CustomizationsWrite)
		if err != nil {
			return err
		}
		above, err := c.ancestors(o)
		if err != nil {
			return err
		}
		return org.CheckMatch(call.IfMatch, org.CustomizationsTag(append(above, o)))
	})
}

// SettingsPut replaces an organization's own settings. A nil Locked leaves
// the locks as they are.
type SettingsPut struct {
	Values jsontext.Value
	Locked *[]string
}

// PutCustomizations replaces an organization's own settings.
func (s *Service) PutCustomizations(ctx context.Context, call *org.Call, id string, in SettingsPut) (*org.Customizations, audit.Receipt, error) {
	values, p := settings.CheckValues("/customizations", in.Values)
	if p != nil {
		return nil, audit.Receipt{}, p
	}
	var locked []string
	if in.Locked != nil {
		if locked, p = settings.CheckLocks("/locked", *in.Locked); p != nil {
			return nil, audit.Receipt{}, p
		}
	}
	var out *org.Customizations
	var receipt audit.Receipt
	var rootID string
	err := s.settled(ctx, func() string { return rootID }, func() error {
		var from *basis
		err := s.precheck(ctx, call, func(c *check) error {
			o, err := c.Target(id, key.CustomizationsWrite)
			if err != nil {
				return err
			}
			if from, err = c.basis(o); err != nil {
				return err
			}
			rootID = o.RootID
			return org.CheckMatch(call.IfMatch, org.CustomizationsTag(append(slices.Clone(from.above), o)))
		})
		if err != nil {
			return err
		}
		var after org.Organization
		var changes []audit.Change
		if after, changes, out, err = in.apply(ctx, from, values, locked); err != nil {
			return err
		}
		receipt, err = s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
			before, err := c.Target(id, key.CustomizationsWrite)
			if err != nil {
				return nil, nil, err
			}
			if err := c.confirm(from, before); err != nil {
				return nil, nil, err
			}
			out.ETag = org.CustomizationsTag(append(slices.Clone(from.above), before))
			if err := org.CheckMatch(call.IfMatch, out.ETag); err != nil {
				return nil, nil, err
			}
			if len(changes) == 0 {
				return nil, nil, nil
			}
			now := *before
			now.Version++
			now.Settings = after.Settings
			now.UpdatedAt, now.Settings.UpdatedAt = c.At, c.At
			if err := c.UpdateOrg(&now); err != nil {
				return nil, nil, err
			}
			out.ETag, out.UpdatedAt = org.CustomizationsTag(append(slices.Clone(from.above), &now)), c.At
			return out, []audit.Draft{c.OrgEntry(&now, "organization.customized", slices.Clone(changes))}, nil
		})
		return err
	})
	return out, receipt, err
}

// apply returns the organization that from ends with as it is after in, what
// changed, and its customizations then.
func (in *SettingsPut) apply(ctx context.Context, from *basis, values jsontext.Value, locked []string) (org.Organization, []audit.Change, *org.Customizations, error) {
	before, after := from.org, *from.org
	changes := org.SettingsDiff(before.Settings.Values, values)
	if len(changes) > 0 {
		after.Settings.Values = values
	}
	if in.Locked != nil {
		changes = audit.ReplacedList(changes, "/locked", before.Settings.Locked, locked)
		after.Settings.Locked = locked
	}
	if len(changes) == 0 {
		out, err := org.CustomizationsOf(append(slices.Clone(from.above), before), false)
		return after, nil, out, err
	}
	effective, err := settings.Check(ctx, org.Layers(from.above...), org.Layers(&after)[0], before.Settings.Values, from.schema)
	if err != nil {
		return after, nil, nil, err
	}
	return after, changes, &org.Customizations{OrgID: after.ID, Own: after.Settings.Values, Locked: after.Settings.Locked, Effective: effective}, nil
}

// Schema returns the JSON Schema of a root's customizations.
func (s *Service) Schema(ctx context.Context, actor *auth.Actor, rootID string) ([]byte, error) {
	snap, err := s.orgs.Find(ctx, actor, rootID)
	if err != nil {
		return nil, err
	}
	if err := org.CheckRoot(snap.Organization); err != nil {
		return nil, err
	}
	var schema []byte
	err = s.store.Read(ctx, func(v View) (err error) {
		schema, err = v.Schema(rootID)
		return err
	})
	if errors.Is(err, org.ErrAbsent) {
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

// schemaTarget finds the root whose schema is to be changed, and the schema as
// it is; nil if there is none.
func (c *check) schemaTarget(rootID string) (*org.Organization, []byte, error) {
	o, err := c.Target(rootID, key.CustomizationsWrite)
	if err != nil {
		return nil, nil, err
	}
	if err := org.CheckRoot(o); err != nil {
		return nil, nil, err
	}
	schema, err := c.Schema(rootID)
	if errors.Is(err, org.ErrAbsent) {
		return o, nil, org.MatchNothing(c.Call.IfMatch, noSchema(rootID))
	} else if err != nil {
		return nil, nil, err
	}
	return o, schema, org.CheckMatch(c.Call.IfMatch, SchemaETag(schema))
}

// CheckSchema checks whether the actor may change the schema of a root, and
// whether it is as the call says.
func (s *Service) CheckSchema(ctx context.Context, call *org.Call, rootID string) error {
	return s.precheck(ctx, call, func(c *check) error {
		_, _, err := c.schemaTarget(rootID)
		return err
	})
}

// PutSchema sets the JSON Schema that the effective customizations in a
// root's tree must satisfy when they are written; nil removes it.
func (s *Service) PutSchema(ctx context.Context, call *org.Call, rootID string, schema []byte) (audit.Receipt, error) {
	if schema != nil {
		if _, p := settings.CompileSchema(schema); p != nil {
			return audit.Receipt{}, p
		}
	}
	return s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		o, old, err := c.check().schemaTarget(rootID)
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
		return schema, []audit.Draft{c.Entry(o, action, audit.Target{Type: "customization_schema", ID: rootID},
			[]audit.Change{{Pointer: "", Old: old, New: schema}})}, nil
	})
}
