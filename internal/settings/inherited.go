package settings

import (
	"context"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// Inherited is what an organization hands down to those below it, so that the
// settings of many are checked without merging what is above them for each. The
// zero value hands down nothing: no values, no locks and no schema. It is never
// altered, and safe for concurrent use.
type Inherited struct {
	values    jsontext.Value // in effect; nil unless a schema has to be checked
	locked    []Layer        // of those that lock anything, without their values, root first
	lockBytes int
	schema    *Schema // nil for none
	rootID    string
}

// Inherit returns what a root inherits: its schema, nil for none.
func Inherit(rootID string, schema *Schema) *Inherited {
	in := &Inherited{schema: schema, rootID: rootID}
	if schema != nil {
		in.values = jsontext.Value("{}")
	}
	return in
}

// Below returns what an organization hands down that inherits it.
func (in *Inherited) Below(own Layer) *Inherited {
	out := *in
	if in.schema != nil {
		out.values = in.merge(own)
	}
	if len(own.Locked) > 0 {
		out.locked = append(slices.Clip(in.locked), Layer{OrgID: own.OrgID, Locked: own.Locked})
		for _, pointer := range own.Locked {
			out.lockBytes += len(pointer)
		}
	}
	return &out
}

// merge returns the settings in effect of an organization that inherits in.
func (in *Inherited) merge(own Layer) jsontext.Value {
	// What is in effect above was there before any lock for what is below.
	chain := append([]Layer{{Values: in.values}}, in.locked...)
	return Effective(append(chain, own))
}

// Cost is how many bytes are merged to check own settings, or to hand them
// down.
func (in *Inherited) Cost(own jsontext.Value) int {
	if in.schema == nil {
		return in.lockBytes
	}
	return in.lockBytes + len(in.values) + len(own)
}

// Check checks the settings of a new organization that inherits in. The error is
// SettingLocked or one of Schema.Check.
func (in *Inherited) Check(ctx context.Context, own Layer) error {
	if p := CheckLocked(in.locked, jsontext.Value("{}"), own.Values); p != nil {
		return p
	}
	if in.schema == nil {
		return nil
	}
	return in.schema.Check(ctx, in.rootID, in.merge(own))
}
