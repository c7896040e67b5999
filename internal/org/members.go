package org

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/settings"
)

// Fold applies the changes of an entry to the organization itself.
func (o *Organization) Fold(e *audit.Entry) error {
	if slices.Contains(e.Erased, AllChanges) {
		for _, text := range []*string{&o.Name, &o.Description, &o.ExternalID} {
			*text = ErasedText
		}
		o.Tags, o.Settings.Locked, o.Settings.Values = ErasedList, ErasedList, ErasedValue
		if o.Type == "" {
			o.Type = ErasedText
		}
		return nil
	}
	var customized []settings.Change
	for _, c := range e.Changes {
		if rest, ok := strings.CutPrefix(c.Pointer, "/customizations"); ok {
			customized = append(customized, settings.Change{Pointer: rest, Old: c.Old, New: c.New})
			continue
		}
		var p any
		switch c.Pointer {
		case "/name":
			p = &o.Name
		case "/type":
			p = &o.Type
		case "/description":
			p = &o.Description
		case "/external_id":
			p = &o.ExternalID
		case "/parent_id":
			p = &o.ParentID
		case "/tags":
			o.Tags = nil
			p = &o.Tags
		case "/locked":
			o.Settings.Locked = nil
			p = &o.Settings.Locked
		default:
			return fmt.Errorf("unknown pointer %s", c.Pointer)
		}
		v := c.New
		if v == nil {
			v = jsontext.Value("null")
		}
		if list, ok := p.(*[]string); ok && settings.IsErased(v) {
			*list = ErasedList
			continue
		}
		if err := json.Unmarshal(v, p); err != nil {
			return err
		}
	}
	if len(customized) > 0 {
		values, err := settings.Apply(customized, o.Settings.Values)
		if err != nil {
			return err
		}
		o.Settings.Values = values
	}
	return nil
}

// ErasedText is the mark that stands for an erased value. No member of an
// organization can be this text; if a customization is, it is taken for erased.
const ErasedText = settings.ErasedText

// AllChanges is the slot of an entry with so many changes that they are one
// erasable value.
const AllChanges = "changes"

// What stands in the place of erased values that are no text.
var (
	ErasedValue = audit.Value(ErasedText)
	ErasedList  = []string{ErasedText}
)

// Marked returns the entry with the mark of an erased value in the place of
// each changed value that has been erased. It leaves e alone.
func Marked(e *audit.Entry) *audit.Entry {
	if len(e.Erased) == 0 {
		return e
	}
	out := *e
	out.Changes = slices.Clone(e.Changes)
	for _, slot := range e.Erased {
		rest, ok := strings.CutPrefix(slot, "changes/")
		number, which, _ := strings.Cut(rest, "/")
		i, err := strconv.Atoi(number)
		if !ok || err != nil || i >= len(out.Changes) {
			continue
		}
		if which == "new" {
			out.Changes[i].New = ErasedValue
		} else {
			out.Changes[i].Old = ErasedValue
		}
	}
	return &out
}

// OrgSize is about how many bytes an organization takes in an answer.
func OrgSize(o *Organization) int {
	n := 300 + len(o.Name) + len(o.Description) + len(o.ExternalID) + len(o.Path) + len(o.Settings.Values)
	for _, tag := range o.Tags {
		n += len(tag) + 3
	}
	return n
}

// Erased returns the JSON Pointers of the values of an organization, as it was
// rebuilt from the audit trail, that have been erased.
func (o *Organization) Erased() []string {
	var pointers []string
	for _, m := range []struct{ pointer, text string }{{"/type", string(o.Type)}, {"/name", o.Name}, {"/description", o.Description}, {"/external_id", o.ExternalID}} {
		if m.text == ErasedText {
			pointers = append(pointers, m.pointer)
		}
	}
	if slices.Equal(o.Tags, ErasedList) {
		pointers = append(pointers, "/tags")
	}
	return append(pointers, o.erasedValues()...)
}

// ErasedSettings returns the pointers of what has been erased of settings and
// locks.
func (o *Organization) ErasedSettings() []string {
	pointers := o.erasedValues()
	if slices.Equal(o.Settings.Locked, ErasedList) {
		pointers = append(pointers, "/locked")
	}
	return pointers
}

func (o *Organization) erasedValues() []string {
	return settings.Erased("/customizations", o.Settings.Values)
}

// WithoutErased returns the organization with nothing in the places of the
// values that have been erased; its type is then organization.
func (o *Organization) WithoutErased() *Organization {
	out := *o
	for _, text := range []*string{&out.Name, &out.Description, &out.ExternalID} {
		if *text == ErasedText {
			*text = ""
		}
	}
	if out.Type == ErasedText {
		out.Type = TypeOrganization
	}
	if slices.Equal(out.Tags, ErasedList) {
		out.Tags = nil
	}
	out.Settings.Values = settings.WithoutErased(out.Settings.Values)
	return &out
}
