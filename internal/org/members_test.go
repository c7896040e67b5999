package org

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/audit"
)

// Whatever an organization has is its place, says when it was made or changed, or is a
// member that the tables know: with those it is recorded, rebuilt and erased.
func TestMembersAreAllThere(t *testing.T) {
	var o Organization
	known := map[uintptr]string{}
	for i := range Texts {
		known[reflect.ValueOf(Texts[i].Of(&o)).Pointer()] = Texts[i].Name
	}
	for i := range Lists {
		known[reflect.ValueOf(Lists[i].Of(&o)).Pointer()] = Lists[i].Name
	}
	others := []string{"ID", "RootID", "ParentID", "Path", "Depth", "CreatedAt", "UpdatedAt", "Version", "DeletedAt", "DeletionID",
		"Settings", "Settings.Values", "Settings.UpdatedAt"}
	found := 0
	var look func(prefix string, v reflect.Value)
	look = func(prefix string, v reflect.Value) {
		for i := range v.NumField() {
			name, field := prefix+v.Type().Field(i).Name, v.Field(i)
			if name == "Settings" {
				look("Settings.", field)
			}
			if known[field.Addr().Pointer()] != "" && (field.Kind() == reflect.String || field.Kind() == reflect.Slice) {
				found++
			} else if !slices.Contains(others, name) {
				t.Errorf("Organization.%s is in none of the tables Texts and Lists, and not among what is no member", name)
			}
		}
	}
	look("", reflect.ValueOf(&o).Elem())
	if found != len(Texts)+len(Lists) {
		t.Errorf("%d fields are members, and the tables have %d", found, len(Texts)+len(Lists))
	}
}

// A member says something of people, or nothing and holds the state together; whoever adds
// one decides.
func TestMembersArePersonalOrNot(t *testing.T) {
	for i := range Texts {
		if m := &Texts[i]; m.Personal == m.Structural {
			t.Errorf("%s is personal %v and structural %v", m.Name, m.Personal, m.Structural)
		}
	}
	for i := range Lists {
		if m := &Lists[i]; !m.Personal || m.Permission == "" {
			t.Errorf("%s is not personal, or anybody may set it", m.Name)
		}
	}
}

// What the audit trail says of a new organization makes the same one again; without what
// has been erased all that is personal is gone.
func TestMembersAreRecorded(t *testing.T) {
	var o Organization
	for i := range Texts {
		*Texts[i].Of(&o) = "value of " + Texts[i].Name
	}
	for i := range Lists {
		*Lists[i].Of(&o) = []string{"a " + Lists[i].Name, "b"}
	}
	o.ParentID = "above"
	o.Settings.Values = []byte(`{}`)
	e := &audit.Entry{Timestamp: time.Now(), Changes: o.Created(nil)}
	folded := Organization{Settings: Settings{Values: []byte(`{}`)}}
	if err := folded.Fold(e); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(folded, o) || folded.Differs(&o) != "" {
		t.Errorf("the trail makes %+v of %+v", folded, o)
	}
	if o.Type = "other"; folded.Differs(&o) == "" {
		t.Error("another type makes no difference")
	}
	e.Erased = []string{"changes"}
	if err := folded.Fold(e); err != nil {
		t.Fatal(err)
	}
	for _, text := range folded.PersonalTexts() {
		if text != ErasedText {
			t.Errorf("%q is left of what was erased", text)
		}
	}
	if len(folded.Erased())+len(folded.ErasedSettings()) < len(Texts)+len(Lists)-1 {
		t.Errorf("only %q and %q are said to be erased", folded.Erased(), folded.ErasedSettings())
	}
}
