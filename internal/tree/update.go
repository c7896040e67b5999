package tree

import (
	"context"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/settings"
)

// OrgUpdate is a change of an organization.
type OrgUpdate struct {
	// Members names those members, of org.Texts and org.Lists, that get the value that they
	// have in To. All others stay.
	Members        []string
	To             org.Organization
	Customizations jsontext.Value // a merge patch (RFC 7396); nil for none
}

// permissions returns what the update takes on top of orgs:write.
func (u *OrgUpdate) permissions() (permissions []string) {
	if u.Customizations != nil {
		permissions = append(permissions, key.CustomizationsWrite)
	}
	for i := range org.Lists {
		if m := &org.Lists[i]; slices.Contains(u.Members, m.Name) && !slices.Contains(permissions, m.Permission) {
			permissions = append(permissions, m.Permission)
		}
	}
	slices.Sort(permissions)
	return permissions
}

// Update changes an organization. Without any difference nothing is written
// and the receipt is zero.
func (s *Service) Update(ctx context.Context, call *org.Call, id string, u OrgUpdate) (*org.Organization, audit.Receipt, error) {
	members := u.permissions()
	if err := s.demand(ctx, call, id, members); err != nil {
		return nil, audit.Receipt{}, err
	}
	always := func(a *auth.Actor, o *org.Organization) (OrgUpdate, error) {
		return u, a.Demand(o.Path, members...)
	}
	if u.Customizations == nil {
		return s.update(ctx, call, id, key.OrgsWrite, nil, always)
	}
	var after *org.Organization
	var receipt audit.Receipt
	var rootID string
	err := s.settled(ctx, func() string { return rootID }, func() error {
		merge, err := s.mergeSettings(ctx, call, id, &u)
		if err != nil {
			return err
		}
		rootID = merge.from.org.RootID
		after, receipt, err = s.update(ctx, call, id, key.OrgsWrite, merge, always)
		return err
	})
	return after, receipt, err
}

// settingsMerge is a merge into an organization's own settings that has been
// worked out and checked.
type settingsMerge struct {
	from   *basis
	values jsontext.Value // the own settings then
	diff   []audit.Change // nil if they stay as they are
}

// mergeSettings works out what u makes of the organization's settings, and
// checks it.
func (s *Service) mergeSettings(ctx context.Context, call *org.Call, id string, u *OrgUpdate) (*settingsMerge, error) {
	var from *basis
	err := s.precheck(ctx, call, func(c *check) error {
		o, err := c.Target(id, key.OrgsWrite)
		if err != nil {
			return err
		}
		if err := org.CheckMatch(call.IfMatch, o.ETag()); err != nil {
			return err
		}
		from, err = c.basis(o)
		return err
	})
	if err != nil {
		return nil, err
	}
	after, _, err := u.apply(from.org, nil)
	if err != nil {
		return nil, err
	}
	before := from.org.Settings.Values
	m := &settingsMerge{from: from, values: before, diff: org.SettingsDiff(before, after.Settings.Values)}
	if len(m.diff) > 0 {
		m.values = after.Settings.Values
		_, err = settings.Check(ctx, org.Layers(from.above...), org.Layers(after)[0], before, from.schema)
	}
	return m, err
}

// update changes an organization as is right for how it is now. merge is nil if
// the update leaves the settings alone.
func (s *Service) update(ctx context.Context, call *org.Call, id, permission string, merge *settingsMerge, updateOf func(*auth.Actor, *org.Organization) (OrgUpdate, error)) (*org.Organization, audit.Receipt, error) {
	rootID, generation := s.orgs.Generation(id)
	var after *org.Organization
	receipt, err := s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		before, err := c.Target(id, permission)
		if err != nil {
			return nil, nil, err
		}
		if err := org.CheckMatch(call.IfMatch, before.ETag()); err != nil {
			return nil, nil, err
		}
		if merge != nil {
			if err := c.confirm(merge.from, before); err != nil {
				return nil, nil, err
			}
		}
		u, err := updateOf(c.Call.Actor, before)
		if err != nil {
			return nil, nil, err
		}
		var changes []audit.Change
		after, changes, err = u.apply(before, merge)
		if err != nil {
			return nil, nil, err
		}
		if len(changes) == 0 {
			after = before
			return nil, nil, nil
		}
		after.UpdatedAt = c.At
		if merge != nil && len(merge.diff) > 0 {
			after.Settings.UpdatedAt = c.At
		}
		if err := c.UpdateOrg(after); err != nil {
			return nil, nil, err
		}
		return after, []audit.Draft{c.OrgEntry(after, "organization.updated", changes)}, nil
	})
	if err == nil && receipt.Origin != "" && after.RootID == rootID {
		s.orgs.Remember(after, generation+1)
	}
	return after, receipt, err
}

// apply returns o as it is after the update, and what changed. What merge has
// worked out already is taken from it. It is pure; o is left alone.
func (u *OrgUpdate) apply(o *org.Organization, merge *settingsMerge) (*org.Organization, []audit.Change, error) {
	after := *o
	after.Version++
	var changes []audit.Change
	for i := range org.Texts {
		m := &org.Texts[i]
		if m.Fixed || !slices.Contains(u.Members, m.Name) {
			continue
		}
		text, p := m.Check(m.Pointer(), *m.Of(&u.To))
		if p != nil {
			return nil, nil, p
		}
		*m.Of(&after) = text
		changes = audit.Replaced(changes, m.Pointer(), *m.Of(o), text)
	}
	for i := range org.Lists {
		m := &org.Lists[i]
		if m.Setting || !slices.Contains(u.Members, m.Name) {
			continue
		}
		list, p := m.Check(m.Pointer(), *m.Of(&u.To))
		if p != nil {
			return nil, nil, p
		}
		*m.Of(&after) = list
		changes = audit.ReplacedList(changes, m.Pointer(), *m.Of(o), list)
	}
	switch {
	case merge != nil:
		after.Settings.Values = merge.values
		changes = append(changes, merge.diff...)
	case u.Customizations != nil:
		merged, err := settings.MergePatch(o.Settings.Values, u.Customizations)
		if err != nil {
			return nil, nil, problem.Body("/customizations", "cannot be merged: %v", err)
		}
		var p *problem.Error
		if after.Settings.Values, p = settings.CheckValues("/customizations", merged); p != nil {
			return nil, nil, p
		}
	}
	return &after, changes, nil
}

// PutTag adds a tag; adding one that is there changes nothing.
func (s *Service) PutTag(ctx context.Context, call *org.Call, id, tag string) (*org.Organization, audit.Receipt, error) {
	if p := org.CheckTag(tag); p != nil {
		return nil, audit.Receipt{}, p
	}
	return s.updateTags(ctx, call, id, func(tags []string) ([]string, error) {
		return append(tags, tag), nil
	})
}

// DeleteTag removes a tag. NotFound if the organization does not have it.
func (s *Service) DeleteTag(ctx context.Context, call *org.Call, id, tag string) (*org.Organization, audit.Receipt, error) {
	return s.updateTags(ctx, call, id, func(tags []string) ([]string, error) {
		var rest []string
		for _, t := range tags {
			if t != tag {
				rest = append(rest, t)
			}
		}
		if len(rest) == len(tags) {
			return nil, problem.New(problem.NotFound, "The organization does not have this tag.")
		}
		return rest, nil
	})
}

func (s *Service) updateTags(ctx context.Context, call *org.Call, id string, change func(tags []string) ([]string, error)) (*org.Organization, audit.Receipt, error) {
	return s.update(ctx, call, id, key.TagsWrite, nil, func(_ *auth.Actor, before *org.Organization) (OrgUpdate, error) {
		tags, err := change(slices.Clone(before.Tags))
		return OrgUpdate{Members: []string{"tags"}, To: org.Organization{Tags: tags}}, err
	})
}
