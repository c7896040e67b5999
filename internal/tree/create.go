package tree

import (
	"context"
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

// check returns a new organization without its place in the tree, as in describes it: with
// its id, members and settings, and what is empty by default. An id is made up if there is
// none.
func (s *Service) check(in *org.Organization) (*org.Organization, error) {
	o := &org.Organization{ID: in.ID, Version: 1}
	var p *problem.Error
	if o.ID == "" {
		o.ID = s.newID("org_")
	} else if p = org.CheckID("/id", o.ID); p != nil {
		return nil, p
	}
	for i := range org.Texts {
		m := &org.Texts[i]
		text := *m.Of(in)
		if text == "" && m.Default != "" {
			text = m.Default
		} else if text, p = m.Check(m.Pointer(), text); p != nil {
			return nil, p
		}
		*m.Of(o) = text
	}
	if p := checkLists(o, in, false); p != nil {
		return nil, p
	}
	o.Settings.Values = jsontext.Value("{}")
	if in.Settings.Values != nil {
		if o.Settings.Values, p = settings.CheckValues("/customizations", in.Settings.Values); p != nil {
			return nil, p
		}
	}
	if p := checkLists(o, in, true); p != nil {
		return nil, p
	}
	return o, nil
}

// checkLists gives o the lists of in in their final form, those that are settings or the
// others.
func checkLists(o, in *org.Organization, settings bool) (p *problem.Error) {
	for i := range org.Lists {
		m := &org.Lists[i]
		list := *m.Of(in)
		if m.Setting != settings || list == nil {
			continue
		}
		if *m.Of(o), p = m.Check(m.Pointer(), list); p != nil {
			return p
		}
	}
	return nil
}

// place puts o below its parent, or makes it a root if parent is nil.
func place(o, parent *org.Organization) error {
	if parent == nil {
		o.RootID, o.Path, o.Depth = o.ID, o.ID+"/", 0
		return nil
	}
	if parent.Type == org.TypeUser {
		return problem.New(problem.Conflict, "%s is of type user, which holds no children.", parent.ID).
			WithFix("Choose a parent of type organization or group.")
	}
	if parent.Depth+1 > org.MaxDepth {
		return tooDeep()
	}
	o.RootID, o.ParentID = parent.RootID, parent.ID
	o.Path, o.Depth = parent.Path+o.ID+"/", parent.Depth+1
	return nil
}

func tooDeep() *problem.Error {
	return problem.New(problem.DepthExceeded, "The tree is at most %d levels deep below its root.", org.MaxDepth).
		WithFix("Choose a parent that is nearer to the root.")
}

// created returns the changes that make o out of nothing.
func created(o *org.Organization) []audit.Change { return o.Created(settingsCreated(o)) }

// settingsCreated returns the changes that make the settings of o out of none.
// It takes as long as they are large.
func settingsCreated(o *org.Organization) []audit.Change {
	if string(o.Settings.Values) == "{}" {
		return nil
	}
	return org.SettingsDiff(jsontext.Value("{}"), o.Settings.Values)
}

func stamp(o *org.Organization, at time.Time) {
	o.CreatedAt, o.UpdatedAt, o.Settings.UpdatedAt = at, at, at
}

// CreateRoot creates a root organization. Only the operator may.
func (s *Service) CreateRoot(ctx context.Context, call *org.Call, in org.Organization) (*org.Organization, audit.Receipt, error) {
	if !call.Actor.Everywhere() {
		return nil, audit.Receipt{}, errOperatorOnly("create a root organization").
			WithFix("Give the parent_id of an organization that this key can see, or use the operator key.")
	}
	if err := org.MatchNothing(call.IfMatch, problem.New(problem.NotFound, "A new root has no parent.")); err != nil {
		return nil, audit.Receipt{}, err
	}
	o, err := s.check(&in)
	if err != nil {
		return nil, audit.Receipt{}, err
	}
	settings := settingsCreated(o)
	receipt, err := s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		if err := place(o, nil); err != nil {
			return nil, nil, err
		}
		stamp(o, c.At)
		if err := c.insert([]*org.Organization{o}); err != nil {
			return nil, nil, err
		}
		if err := c.StartLog(audit.NewHead(o.ID, audit.NewLogID(s.rand))); err != nil {
			return nil, nil, err
		}
		return o, []audit.Draft{c.OrgEntry(o, "organization.created", o.Created(settings))}, nil
	})
	return o, receipt, err
}

func errOperatorOnly(what string) *problem.Error {
	return problem.New(problem.PermissionDenied, "Only the operator may %s.", what)
}

// insert inserts organizations; an id that is in use is a problem of the
// caller.
func (c *change) insert(orgs []*org.Organization) error { return taken(c.InsertOrgs(orgs)) }

func taken(err error) error {
	var taken *org.TakenError
	if errors.As(err, &taken) {
		return problem.New(problem.IDTaken, "The id %s is in use.", taken.ID).
			WithFix("Choose another id. The id of a deleted organization is free again once it has been purged, up to an hour after it can no longer be restored.").With("id", taken.ID)
	}
	return err
}

// PermitBelow checks that the actor may put organizations below the one with this
// path, which it sees. A key that reaches only its own organization may not: what it made
// would be out of its reach.
func PermitBelow(a *auth.Actor, path string) error {
	if a.SeesBelow(path) {
		return nil
	}
	return problem.New(problem.PermissionDenied, "This key reaches only its own organization, %s, and nothing below it.", a.OrgID).
		WithFix("Use a key with the reach subtree.")
}

// demand checks, before a change is prepared, that its actor holds the permissions
// at an organization. Under the lock it is asked again.
func (s *Service) demand(ctx context.Context, call *org.Call, id string, permissions []string) error {
	if len(permissions) == 0 {
		return nil
	}
	snap, err := s.orgs.Find(ctx, call.Actor, id)
	if err != nil {
		return err
	}
	return call.Actor.Demand(snap.Path, permissions...)
}

// CreateChild creates an organization below parentID. Its precondition is about
// the parent.
func (s *Service) CreateChild(ctx context.Context, call *org.Call, parentID string, in org.Organization) (*org.Organization, audit.Receipt, error) {
	if err := s.demand(ctx, call, parentID, memberPermissions(&in, in.Settings.Values != nil)); err != nil {
		return nil, audit.Receipt{}, err
	}
	o, err := s.check(&in)
	if err != nil {
		return nil, audit.Receipt{}, err
	}
	if string(o.Settings.Values) == "{}" {
		receipt, err := s.createChild(ctx, call, parentID, o, nil, nil)
		return o, receipt, err
	}
	diff := settingsCreated(o)
	var receipt audit.Receipt
	var rootID string
	err = s.settled(ctx, func() string { return rootID }, func() error {
		var from *basis
		placed := *o
		err := s.precheck(ctx, call, func(c *check) error {
			parent, err := c.placeBelow(parentID, &placed)
			if err != nil {
				return err
			}
			rootID = parent.RootID
			from, err = c.basis(parent)
			return err
		})
		if err != nil {
			return err
		}
		above := org.Layers(append(slices.Clone(from.above), from.org)...)
		if _, err := settings.Check(ctx, above, org.Layers(&placed)[0], jsontext.Value("{}"), from.schema); err != nil {
			return err
		}
		receipt, err = s.createChild(ctx, call, parentID, o, diff, from)
		return err
	})
	return o, receipt, err
}

// placeBelow checks that the actor may put o below the organization parentID,
// which it returns, and gives o its place.
func (c *check) placeBelow(parentID string, o *org.Organization) (*org.Organization, error) {
	parent, err := c.Target(parentID, key.OrgsWrite)
	if err != nil {
		return nil, err
	}
	if err := PermitBelow(c.Call.Actor, parent.Path); err != nil {
		return nil, err
	}
	if err := c.Call.Actor.Demand(parent.Path, memberPermissions(o, string(o.Settings.Values) != "{}")...); err != nil {
		return nil, err
	}
	if err := org.CheckMatch(c.Call.IfMatch, parent.ETag()); err != nil {
		return nil, err
	}
	return parent, place(o, parent)
}

// createChild creates o. Its settings, if it has any, have been checked against
// from.
func (s *Service) createChild(ctx context.Context, call *org.Call, parentID string, o *org.Organization, settings []audit.Change, from *basis) (audit.Receipt, error) {
	return s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		parent, err := c.check().placeBelow(parentID, o)
		if err != nil {
			return nil, nil, err
		}
		stamp(o, c.At)
		if from != nil {
			if err := c.confirm(from, parent); err != nil {
				return nil, nil, err
			}
		}
		if err := c.insert([]*org.Organization{o}); err != nil {
			return nil, nil, err
		}
		return o, []audit.Draft{c.OrgEntry(o, "organization.created", o.Created(settings))}, nil
	})
}

// memberPermissions returns the permissions that it takes, on top of orgs:write, to make an
// organization with the lists that o has, and with customizations or without.
func memberPermissions(o *org.Organization, customized bool) (permissions []string) {
	if customized {
		permissions = append(permissions, key.CustomizationsWrite)
	}
	for i := range org.Lists {
		if m := &org.Lists[i]; len(*m.Of(o)) > 0 && !slices.Contains(permissions, m.Permission) {
			permissions = append(permissions, m.Permission)
		}
	}
	slices.Sort(permissions)
	return permissions
}
