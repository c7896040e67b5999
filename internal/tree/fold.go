package tree

import (
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/settings"
)

// Fold is the state of organizations, their keys and schemas rebuilt from the audit trail
// alone. Adding all entries of a log in their order gives the present state; the audit trail
// is complete exactly as far as that holds. What other packages own they fold themselves.
//
// Where a value has been erased, the state has the mark org.ErasedText in its
// place, until a later entry sets it again; a key of which a value has been
// erased is in ErasedKeys.
type Fold struct {
	Orgs       map[string]*org.Organization
	Keys       map[string]*key.Key // without secrets and use
	ErasedKeys map[string]bool
	Schemas    map[string]jsontext.Value
}

// NewFold returns the state before the first entry.
func NewFold() *Fold {
	return &Fold{Orgs: map[string]*org.Organization{}, Keys: map[string]*key.Key{}, ErasedKeys: map[string]bool{}, Schemas: map[string]jsontext.Value{}}
}

// Add applies an entry, as org.Marked returns it. It returns the organization that the entry
// is about, and the ids of those that are gone for good. It fails on an entry that cannot
// follow on the state.
func (f *Fold) Add(e *audit.Entry) (o *org.Organization, gone map[string]bool, err error) {
	o = f.Orgs[e.OrgID]
	if e.Action == "organization.created" {
		if o != nil {
			return nil, nil, fmt.Errorf("it exists already")
		}
		o = &org.Organization{ID: e.OrgID, RootID: e.Path[0], Path: strings.Join(e.Path, "/") + "/", Depth: len(e.Path) - 1,
			CreatedAt: e.Timestamp, UpdatedAt: e.Timestamp, Version: 1,
			Settings: org.Settings{Values: jsontext.Value("{}"), UpdatedAt: e.Timestamp}}
		if o.Depth > 0 {
			o.ParentID = e.Path[o.Depth-1]
		}
		f.Orgs[o.ID] = o
		return o, nil, o.Fold(e)
	}
	if o == nil {
		return nil, nil, fmt.Errorf("its organization does not exist")
	}
	switch noun, verb, _ := strings.Cut(e.Action, "."); noun {
	case "organization":
		gone, err = f.foldOrg(o, verb, e)
	case "api_key":
		err = f.foldKey(o, verb, e)
	case "customization_schema":
		switch {
		case verb == "deleted":
			delete(f.Schemas, o.ID)
		case e.AllErased():
			f.Schemas[o.ID] = org.ErasedValue
		default:
			f.Schemas[o.ID] = e.Changes[0].New
		}
	}
	return o, gone, err
}

func (f *Fold) foldOrg(o *org.Organization, verb string, e *audit.Entry) (gone map[string]bool, err error) {
	switch verb {
	case "updated", "customized":
		o.Version++
		o.UpdatedAt = e.Timestamp
		for _, c := range e.Changes {
			if org.IsSetting(c.Pointer) {
				o.Settings.UpdatedAt = e.Timestamp
			}
		}
		if e.AllErased() { // only settings are so large
			o.Settings.UpdatedAt = e.Timestamp
		}
		return nil, o.Fold(e)
	case "moved":
		newPath := strings.Join(e.Path, "/") + "/"
		oldPath, delta := o.Path, len(e.Path)-1-o.Depth
		for _, below := range f.Orgs {
			if strings.HasPrefix(below.Path, oldPath) {
				below.Path = newPath + below.Path[len(oldPath):]
				below.Depth += delta
			}
		}
		o.Version++
		o.UpdatedAt = e.Timestamp
		return nil, o.Fold(e)
	case "deleted":
		id, err := text(e.Changes[0].New)
		if err != nil {
			return nil, err
		}
		at := e.Timestamp
		for _, below := range f.Orgs {
			if below.DeletedAt == nil && strings.HasPrefix(below.Path, o.Path) {
				below.DeletedAt, below.DeletionID = &at, id
				below.Version++
			}
		}
	case "restored":
		id, err := text(e.Changes[0].Old)
		if err != nil {
			return nil, err
		}
		for _, below := range f.Orgs {
			if below.DeletionID == id {
				below.DeletedAt, below.DeletionID = nil, ""
				below.Version++
			}
		}
	case "purged":
		id, err := text(e.Changes[0].Old)
		if err != nil {
			return nil, err
		}
		gone = map[string]bool{}
		for _, below := range f.Orgs {
			if below.DeletionID == id || strings.HasPrefix(below.Path, o.Path) {
				gone[below.ID] = true
			}
		}
		for id := range gone {
			delete(f.Orgs, id)
			delete(f.Schemas, id)
		}
		for id, k := range f.Keys {
			if gone[k.OrgID] {
				delete(f.Keys, id)
			}
		}
	default:
		return nil, fmt.Errorf("unknown action")
	}
	return gone, nil
}

func text(v jsontext.Value) (s string, err error) {
	err = json.Unmarshal(v, &s)
	return s, err
}

func (f *Fold) foldKey(o *org.Organization, verb string, e *audit.Entry) error {
	k := f.Keys[e.Target.ID]
	if verb == "created" {
		k = &key.Key{ID: e.Target.ID, OrgID: o.ID, RootID: o.RootID, CreatedAt: e.Timestamp, CreatedBy: e.Actor.ID}
		f.Keys[k.ID] = k
	}
	if k == nil {
		return fmt.Errorf("the key does not exist")
	}
	k.UpdatedAt = e.Timestamp
	k.Version++
	if e.AllErased() {
		f.ErasedKeys[k.ID] = true
	}
	for _, c := range e.Changes {
		v := c.New
		if settings.IsErased(v) {
			f.ErasedKeys[k.ID] = true
			continue
		}
		if v == nil {
			v = jsontext.Value("null")
		}
		if slices.Contains(secretPointers, c.Pointer) {
			continue
		}
		i := slices.IndexFunc(keyMembers, func(m keyMember) bool { return m.pointer == c.Pointer })
		if i < 0 {
			return fmt.Errorf("unknown pointer %s", c.Pointer)
		}
		if err := json.Unmarshal(v, keyMembers[i].emptied(k)); err != nil {
			return err
		}
	}
	return nil
}

// Same reports how a folded organization differs from the stored one; empty
// if it does not.
func (f *Fold) Same(stored *org.Organization) string {
	o := f.Orgs[stored.ID]
	switch {
	case o == nil:
		return "the audit trail does not know it"
	case o.Path != stored.Path || o.ParentID != stored.ParentID || o.RootID != stored.RootID || o.Depth != stored.Depth:
		return fmt.Sprintf("its place is %s, by the audit trail %s", stored.Path, o.Path)
	case o.Differs(stored) != "":
		return o.Differs(stored)
	case o.DeletionID != stored.DeletionID || (o.DeletedAt == nil) != (stored.DeletedAt == nil):
		return fmt.Sprintf("its deletion is %q, by the audit trail %q", stored.DeletionID, o.DeletionID)
	case o.Version != stored.Version:
		return fmt.Sprintf("its version is %d, by the audit trail %d", stored.Version, o.Version)
	case !o.CreatedAt.Equal(stored.CreatedAt) || !o.UpdatedAt.Equal(stored.UpdatedAt):
		return "its times differ"
	}
	return ""
}
