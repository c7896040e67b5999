package trail

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/settings"
	"github.com/orgd/orgd/internal/usage"
)

// Fold is the state of organizations rebuilt from their audit trail alone.
// Adding all entries of a log in their order gives the present state; the
// audit trail is complete exactly as far as that holds.
//
// Where a value has been erased, the state has the mark ErasedText in its
// place, until a later entry sets it again; a key of which a value has been
// erased is in ErasedKeys.
type Fold struct {
	Orgs       map[string]*org.Organization
	Keys       map[string]*key.Key // without secrets and use
	ErasedKeys map[string]bool
	Schemas    map[string]jsontext.Value
	Limits     map[string]map[string]*usage.Limit // by organization and meter
	// AccessRetentions has the days of those roots where they were set.
	AccessRetentions map[string]int
	Quotas           map[string]org.Quota               // of those roots where one is set
	Meters           map[string]map[string]*usage.Meter // by root and slug
	// Closed are the months of a root that are closed.
	Closed map[string][]usage.Month
	// Adjustments are those that somebody made, by organization.
	Adjustments map[string][]usage.Adjustment
	// ErasedUsage has the meters and adjustments of which a value was erased.
	ErasedUsage map[string]bool
}

// NewFold returns the state before the first entry.
func NewFold() *Fold {
	return &Fold{Orgs: map[string]*org.Organization{}, Keys: map[string]*key.Key{}, ErasedKeys: map[string]bool{},
		Schemas: map[string]jsontext.Value{}, Limits: map[string]map[string]*usage.Limit{},
		AccessRetentions: map[string]int{}, Quotas: map[string]org.Quota{},
		Meters: map[string]map[string]*usage.Meter{}, Closed: map[string][]usage.Month{}, Adjustments: map[string][]usage.Adjustment{},
		ErasedUsage: map[string]bool{}}
}

// Add applies one entry. It fails on an entry that cannot follow on the state.
func (f *Fold) Add(e *audit.Entry) error {
	err := f.add(e)
	if err != nil {
		return fmt.Errorf("audit entry %d (%s of %s): %w", e.Seq, e.Action, e.Target.ID, err)
	}
	return nil
}

func (f *Fold) add(e *audit.Entry) error {
	e = org.Marked(e)
	o := f.Orgs[e.OrgID]
	if e.Action == "organization.created" {
		if o != nil {
			return fmt.Errorf("it exists already")
		}
		o = &org.Organization{ID: e.OrgID, RootID: e.Path[0], Path: strings.Join(e.Path, "/") + "/", Depth: len(e.Path) - 1,
			CreatedAt: e.Timestamp, UpdatedAt: e.Timestamp, Version: 1,
			Settings: org.Settings{Values: jsontext.Value("{}"), UpdatedAt: e.Timestamp}}
		if o.Depth > 0 {
			o.ParentID = e.Path[o.Depth-1]
		}
		f.Orgs[o.ID] = o
		return o.Fold(e)
	}
	if o == nil {
		return fmt.Errorf("its organization does not exist")
	}
	switch noun, verb, _ := strings.Cut(e.Action, "."); noun {
	case "organization":
		return f.foldOrg(o, verb, e)
	case "api_key":
		return f.foldKey(o, verb, e)
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
	case "access_log_retention":
		if slices.Contains(e.Erased, org.AllChanges) {
			delete(f.AccessRetentions, o.ID)
			return nil
		}
		var days int
		if err := json.Unmarshal(e.Changes[0].New, &days); err != nil {
			return err
		}
		f.AccessRetentions[o.ID] = days
	case "quota":
		return f.foldQuota(o, e)
	case "customization_schema":
		switch {
		case verb == "deleted":
			delete(f.Schemas, o.ID)
		case slices.Contains(e.Erased, org.AllChanges):
			f.Schemas[o.ID] = org.ErasedValue
		default:
			f.Schemas[o.ID] = e.Changes[0].New
		}
	}
	return nil
}

func (f *Fold) foldOrg(o *org.Organization, verb string, e *audit.Entry) error {
	switch verb {
	case "updated", "customized":
		o.Version++
		o.UpdatedAt = e.Timestamp
		for _, c := range e.Changes {
			if strings.HasPrefix(c.Pointer, "/customizations") || c.Pointer == "/locked" {
				o.Settings.UpdatedAt = e.Timestamp
			}
		}
		if slices.Contains(e.Erased, org.AllChanges) { // only settings are so large
			o.Settings.UpdatedAt = e.Timestamp
		}
		return o.Fold(e)
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
		return o.Fold(e)
	case "deleted":
		id, err := text(e.Changes[0].New)
		if err != nil {
			return err
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
			return err
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
			return err
		}
		gone := map[string]bool{}
		for _, below := range f.Orgs {
			if below.DeletionID == id || strings.HasPrefix(below.Path, o.Path) {
				gone[below.ID] = true
			}
		}
		for id := range gone {
			delete(f.Orgs, id)
			delete(f.Schemas, id)
			delete(f.Limits, id)
			delete(f.AccessRetentions, id)
			delete(f.Quotas, id)
			delete(f.Meters, id)
			delete(f.Adjustments, id)
		}
		for id, k := range f.Keys {
			if gone[k.OrgID] {
				delete(f.Keys, id)
			}
		}
	default:
		return fmt.Errorf("unknown action")
	}
	return nil
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
	if slices.Contains(e.Erased, org.AllChanges) {
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
		var p any
		switch c.Pointer {
		case "/name":
			p = &k.Name
		case "/permissions":
			k.Permissions = nil
			p = &k.Permissions
		case "/reach":
			p = &k.Reach
		case "/expires_at":
			k.ExpiresAt = nil
			p = &k.ExpiresAt
		case "/allowed_cidrs":
			k.AllowedCIDRs = nil
			p = &k.AllowedCIDRs
		case "/rate_limit":
			k.RateLimit = nil
			p = &k.RateLimit
		case "/revoked_at":
			k.RevokedAt = new(time.Time)
			p = k.RevokedAt
		case "/hint", "/old_secret/valid_until":
			continue
		default:
			return fmt.Errorf("unknown pointer %s", c.Pointer)
		}
		if err := json.Unmarshal(v, p); err != nil {
			return err
		}
	}
	return nil
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

func (f *Fold) foldQuota(o *org.Organization, e *audit.Entry) error {
	if e.Action == "quota.deleted" {
		delete(f.Quotas, o.ID)
		return nil
	}
	q := f.Quotas[o.ID]
	members := map[string]any{}
	for _, m := range org.QuotaMembers() {
		members["/"+m.Name] = m.Of(&q)
	}
	err := foldChanges(e.Changes, members)
	q.UpdatedAt = e.Timestamp
	q.Version++
	f.Quotas[o.ID] = q
	return err
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
	if slices.Contains(e.Erased, org.AllChanges) {
		f.ErasedUsage[m.Slug] = true
		return nil
	}
	return foldChanges(e.Changes, map[string]any{"/unit": &m.Unit, "/aggregation": &m.Aggregation, "/description": &m.Description,
		"/event_type": &m.EventType, "/value": &m.Value})
}

func (f *Fold) foldAdjustment(o *org.Organization, e *audit.Entry) error {
	if slices.Contains(e.Erased, org.AllChanges) {
		f.ErasedUsage[e.Target.ID] = true
		return nil
	}
	a := usage.Adjustment{ID: e.Target.ID, RootID: o.RootID, OrgID: o.ID, Origin: usage.FromActor, CreatedBy: e.Actor.ID, CreatedAt: e.Timestamp}
	err := foldChanges(e.Changes, map[string]any{"/month": &a.Month, "/for_month": &a.For, "/meter": &a.Meter,
		"/quantity": &a.Quantity, "/reason": &a.Reason})
	if a.Reason == org.ErasedText {
		a.Reason = "" // the adjustment has lost it too
	}
	f.Adjustments[o.ID] = append(f.Adjustments[o.ID], a)
	return err
}

// foldChanges sets the members that changes name, to their zero value where
// there is nothing new.
func foldChanges(changes []audit.Change, members map[string]any) error {
	for _, c := range changes {
		p, ok := members[c.Pointer]
		if !ok {
			return fmt.Errorf("unknown pointer %s", c.Pointer)
		}
		v := c.New
		if v == nil {
			v = jsontext.Value("null")
		}
		if err := json.Unmarshal(v, p); err != nil {
			return err
		}
	}
	return nil
}

// Same reports how a folded organization differs from the stored one; empty
// if it does not.
func (f *Fold) Same(stored *org.Organization) string {
	o := f.Orgs[stored.ID]
	same := func(folded, stored string) bool { return folded == stored || folded == org.ErasedText }
	sameList := func(folded, stored []string) bool {
		return slices.Equal(folded, stored) || slices.Equal(folded, org.ErasedList)
	}
	switch {
	case o == nil:
		return "the audit trail does not know it"
	case o.Path != stored.Path || o.ParentID != stored.ParentID || o.RootID != stored.RootID || o.Depth != stored.Depth:
		return fmt.Sprintf("its place is %s, by the audit trail %s", stored.Path, o.Path)
	case !same(o.Name, stored.Name) || !same(string(o.Type), string(stored.Type)) || !same(o.Description, stored.Description) || !same(o.ExternalID, stored.ExternalID):
		return "its members differ"
	case !sameList(o.Tags, stored.Tags):
		return fmt.Sprintf("its tags are %q, by the audit trail %q", stored.Tags, o.Tags)
	case !settings.EqualButErased(o.Settings.Values, stored.Settings.Values) || !sameList(o.Settings.Locked, stored.Settings.Locked):
		return fmt.Sprintf("its customizations are %s, by the audit trail %s", stored.Settings.Values, o.Settings.Values)
	case o.DeletionID != stored.DeletionID || (o.DeletedAt == nil) != (stored.DeletedAt == nil):
		return fmt.Sprintf("its deletion is %q, by the audit trail %q", stored.DeletionID, o.DeletionID)
	case o.Version != stored.Version:
		return fmt.Sprintf("its version is %d, by the audit trail %d", stored.Version, o.Version)
	case !o.CreatedAt.Equal(stored.CreatedAt) || !o.UpdatedAt.Equal(stored.UpdatedAt):
		return "its times differ"
	}
	return ""
}
