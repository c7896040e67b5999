package org

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/settings"
)

// TextMember is a member of an organization that is one text.
//
// All that is done with members follows from this table and that of Lists: how they are
// checked when an organization is created, changed or imported, what the audit trail says
// of them and how the past is made of that, what an erasure takes out of it, and what it
// counts of the present.
type TextMember struct {
	Name string // in the API and in imports, and after a slash in the audit trail
	Of   func(*Organization) *string
	// Check returns a text in its final form. pointer names the member in the error.
	Check func(pointer, text string) (string, *problem.Error)
	// Required members are never empty. Those with a Default have that where nothing else
	// is said.
	Required bool
	Default  string
	// Fixed members cannot be changed.
	Fixed bool
	// Personal members may say something of people: an erasure takes them out of the past
	// and counts them in the present.
	Personal bool
	// Structural members say nothing of people, and without them no state could be rebuilt:
	// an erasure leaves them.
	Structural bool
}

// ListMember is a member of an organization that is a list of texts. Its texts are never
// empty and hold no NUL.
type ListMember struct {
	Name  string
	Of    func(*Organization) *[]string
	Check func(pointer string, list []string) ([]string, *problem.Error)
	// Permission is what it takes to set the member, on top of key.OrgsWrite.
	Permission string
	// Setting says that the member belongs to the customizations. It is changed with them,
	// and not in an import in CSV.
	Setting  bool
	Personal bool
}

// Pointer returns the JSON Pointer of the member in the audit trail.
func (m *TextMember) Pointer() string { return "/" + m.Name }

// Pointer returns the JSON Pointer of the member in the audit trail.
func (m *ListMember) Pointer() string { return "/" + m.Name }

// Texts are the members of an organization that are one text, but for what is its place in
// the tree, in the order in which they are recorded.
var Texts = [...]TextMember{
	{Name: "name", Of: func(o *Organization) *string { return &o.Name }, Check: key.CheckName, Required: true, Personal: true},
	{Name: "type", Of: func(o *Organization) *string { return (*string)(&o.Type) }, Check: CheckType, Required: true, Default: string(TypeOrganization), Fixed: true, Structural: true},
	{Name: "description", Of: func(o *Organization) *string { return &o.Description }, Check: CheckDescription, Personal: true},
	{Name: "external_id", Of: func(o *Organization) *string { return &o.ExternalID }, Check: CheckExternalID, Personal: true},
}

// Lists are the members that are lists, in the order in which they are recorded: the
// settings come after the customizations themselves.
var Lists = [...]ListMember{
	{Name: "tags", Of: func(o *Organization) *[]string { return &o.Tags }, Check: CheckTags, Permission: key.TagsWrite, Personal: true},
	{Name: "locked", Of: func(o *Organization) *[]string { return &o.Settings.Locked }, Check: settings.CheckLocks, Permission: key.CustomizationsWrite, Setting: true, Personal: true},
}

// The members that are neither: the customizations, which the audit trail has value by
// value, and the place.
const (
	customizationsPointer = "/customizations"
	parentPointer         = "/parent_id"
)

// IsSetting reports whether a pointer of the audit trail leads to the customizations, or
// to a member that belongs to them.
func IsSetting(pointer string) bool {
	if strings.HasPrefix(pointer, customizationsPointer) {
		return true
	}
	for i := range Lists {
		if m := &Lists[i]; m.Setting && pointer == m.Pointer() {
			return true
		}
	}
	return false
}

// IsStructural reports whether a pointer of the audit trail leads to the place of an
// organization, or to a member that is structural.
func IsStructural(pointer string) bool {
	if pointer == parentPointer {
		return true
	}
	for i := range Texts {
		if m := &Texts[i]; m.Structural && pointer == m.Pointer() {
			return true
		}
	}
	return false
}

// Created returns the changes that make o out of nothing, given those that make its
// customizations.
func (o *Organization) Created(customizations []audit.Change) []audit.Change {
	var cs []audit.Change
	for i := range Texts {
		m := &Texts[i]
		text := *m.Of(o)
		cs = audit.Added(cs, m.Pointer(), text, text == "" && !m.Required)
		if m.Structural { // the place comes with what is structural
			cs = audit.Added(cs, parentPointer, o.ParentID, o.ParentID == "")
		}
	}
	for _, setting := range []bool{false, true} {
		if setting {
			cs = append(cs, customizations...)
		}
		for i := range Lists {
			if m := &Lists[i]; m.Setting == setting {
				cs = audit.Added(cs, m.Pointer(), *m.Of(o), len(*m.Of(o)) == 0)
			}
		}
	}
	return cs
}

// PersonalTexts returns all texts of an organization that may say something of people, but
// for its customizations.
func (o *Organization) PersonalTexts() []string {
	var texts []string
	for i := range Texts {
		if m := &Texts[i]; m.Personal {
			texts = append(texts, *m.Of(o))
		}
	}
	for i := range Lists {
		if m := &Lists[i]; m.Personal {
			texts = append(texts, *m.Of(o)...)
		}
	}
	return texts
}

// Fold applies the changes of an entry to the organization itself.
func (o *Organization) Fold(e *audit.Entry) error {
	if e.AllErased() {
		o.Erase()
		return nil
	}
	var customized []settings.Change
	for i := range e.Changes {
		c := &e.Changes[i]
		if rest, ok := strings.CutPrefix(c.Pointer, customizationsPointer); ok {
			customized = append(customized, settings.Change{Pointer: rest, Old: c.Old, New: c.New})
			continue
		}
		if err := o.foldMember(c); err != nil {
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

func (o *Organization) foldMember(c *audit.Change) error {
	v := c.New
	if v == nil {
		v = jsontext.Value("null")
	}
	if c.Pointer == parentPointer {
		return json.Unmarshal(v, &o.ParentID)
	}
	for i := range Texts {
		if m := &Texts[i]; c.Pointer == m.Pointer() {
			return json.Unmarshal(v, m.Of(o))
		}
	}
	for i := range Lists {
		m := &Lists[i]
		if c.Pointer != m.Pointer() {
			continue
		}
		list := m.Of(o)
		if *list = nil; settings.IsErased(v) {
			*list = ErasedList
			return nil
		}
		return json.Unmarshal(v, list)
	}
	return fmt.Errorf("unknown pointer %s", c.Pointer)
}

// Erase puts the mark of an erased value in the place of all members but those that are
// structural and known.
func (o *Organization) Erase() {
	for i := range Texts {
		if m := &Texts[i]; !m.Structural || *m.Of(o) == "" {
			*m.Of(o) = ErasedText
		}
	}
	for i := range Lists {
		*Lists[i].Of(o) = ErasedList
	}
	o.Settings.Values = ErasedValue
}

// Differs reports whether the members of two states of an organization differ, in words;
// empty if they do not. What has been erased of o counts as the same.
func (o *Organization) Differs(other *Organization) string {
	for i := range Texts {
		m := &Texts[i]
		if text, its := *m.Of(o), *m.Of(other); text != its && text != ErasedText {
			return fmt.Sprintf("its %s is %q, and not %q", m.Name, its, text)
		}
	}
	for i := range Lists {
		m := &Lists[i]
		if list, its := *m.Of(o), *m.Of(other); !slices.Equal(list, its) && !slices.Equal(list, ErasedList) {
			return fmt.Sprintf("its %s are %q, and not %q", m.Name, its, list)
		}
	}
	if !settings.EqualButErased(o.Settings.Values, other.Settings.Values) {
		return fmt.Sprintf("its customizations are %s, and not %s", other.Settings.Values, o.Settings.Values)
	}
	return ""
}

// ErasedText is the mark that stands for an erased value. No member of an
// organization can be this text; if a customization is, it is taken for erased.
const ErasedText = settings.ErasedText

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
	n := 300 + len(o.Path) + len(o.Settings.Values)
	for i := range Texts {
		if m := &Texts[i]; m.Personal {
			n += len(*m.Of(o))
		}
	}
	for i := range Lists {
		m := &Lists[i]
		for _, text := range *m.Of(o) {
			if !m.Setting {
				n += len(text) + 3
			}
		}
	}
	return n
}

// Erased returns the JSON Pointers of the values of an organization, as it was
// rebuilt from the audit trail, that have been erased.
func (o *Organization) Erased() []string {
	var pointers []string
	for _, structural := range []bool{true, false} {
		for i := range Texts {
			if m := &Texts[i]; m.Structural == structural && *m.Of(o) == ErasedText {
				pointers = append(pointers, m.Pointer())
			}
		}
	}
	return append(append(pointers, o.erasedLists(false)...), o.erasedValues()...)
}

// ErasedSettings returns the pointers of what has been erased of settings and
// locks.
func (o *Organization) ErasedSettings() []string {
	return append(o.erasedValues(), o.erasedLists(true)...)
}

func (o *Organization) erasedLists(setting bool) (pointers []string) {
	for i := range Lists {
		if m := &Lists[i]; m.Setting == setting && slices.Equal(*m.Of(o), ErasedList) {
			pointers = append(pointers, m.Pointer())
		}
	}
	return pointers
}

func (o *Organization) erasedValues() []string {
	return settings.Erased(customizationsPointer, o.Settings.Values)
}

// WithoutErased returns the organization with nothing in the places of the
// values that have been erased, or with what stands there by default.
func (o *Organization) WithoutErased() *Organization {
	out := *o
	for i := range Texts {
		if m := &Texts[i]; *m.Of(&out) == ErasedText {
			*m.Of(&out) = m.Default
		}
	}
	for i := range Lists {
		if m := &Lists[i]; !m.Setting && slices.Equal(*m.Of(&out), ErasedList) {
			*m.Of(&out) = nil
		}
	}
	out.Settings.Values = settings.WithoutErased(out.Settings.Values)
	return &out
}
