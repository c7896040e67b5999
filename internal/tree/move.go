package tree

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/settings"
	"github.com/orgd/orgd/internal/usage"
)

// MovePreview says what a move would change.
type MovePreview struct {
	OldPath, NewPath []string
	Organizations    int64          // live organizations that move
	Settings         []audit.Change // effective settings of the moved organization
	Gain, Lose       []*key.Key     // keys whose reach would grow or shrink by the subtree
	// GainLimits and LoseLimits are limits that would begin or cease to bind
	// the subtree.
	GainLimits, LoseLimits []usage.Limit
}

// maxPreviewKeys bounds the keys that a preview lists on each side.
const maxPreviewKeys = 1000

// Move moves a subtree below a new parent in the same root.
func (s *Service) Move(ctx context.Context, call *org.Call, id, newParentID string) (*org.Organization, audit.Receipt, error) {
	var o *org.Organization
	receipt, err := s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		m, err := c.check().planMove(id, newParentID)
		if err != nil {
			return nil, nil, err
		}
		o = m.org
		if m.from.ID == m.to.ID {
			return nil, nil, nil
		}
		if err := c.undisturbed(o); err != nil {
			return nil, nil, err
		}
		changes := []audit.Change{{Pointer: "/parent_id", Old: audit.Value(m.from.ID), New: audit.Value(m.to.ID)}}
		if _, err := c.MoveSubtree(o.RootID, o.ID, m.to.ID, o.Path, m.newPath, m.to.Depth-m.from.Depth, c.At); err != nil {
			return nil, nil, err
		}
		if o, err = c.Org(id); err != nil {
			return nil, nil, err
		}
		return o, []audit.Draft{c.OrgEntry(o, "organization.moved", changes)}, nil
	})
	return o, receipt, err
}

// move is a move that obeys the rules.
type move struct {
	org, from, to *org.Organization
	newPath       string
}

// PermitMove checks that the actor, who sees o, reaches the parent that o would
// leave. A root has none, and cannot move.
func PermitMove(a *auth.Actor, o *org.Organization) error {
	if o.ParentID == "" || a.Sees(strings.TrimSuffix(o.Path, o.ID+"/")) {
		return nil
	}
	return problem.New(problem.PermissionDenied, "This key does not reach the organization's present parent.").
		WithFix("Use a key of an ancestor of both the old and the new parent.")
}

// planMove checks that the actor may move the organization and that the tree
// stays a tree. It locks the root, so that two moves that together would make
// a cycle cannot both pass.
func (c *check) planMove(id, newParentID string) (move, error) {
	o, err := c.Target(id, key.OrgsWrite)
	if err != nil {
		return move{}, err
	}
	if err := PermitMove(c.Call.Actor, o); err != nil {
		return move{}, err
	}
	if err := org.CheckMatch(c.Call.IfMatch, o.ETag()); err != nil {
		return move{}, err
	}
	if o.ParentID == "" {
		return move{}, problem.New(problem.MoveInvalid, "%s is a root; a root cannot move.", id)
	}
	from, err := c.Org(o.ParentID)
	if err != nil {
		return move{}, err
	}
	to, err := org.Seen(c, c.Call.Actor, newParentID)
	if errors.Is(err, org.ErrAbsent) {
		return move{}, org.NotFound().With("parameter", "parent_id")
	} else if err != nil {
		return move{}, err
	}
	if to.RootID != o.RootID {
		return move{}, problem.New(problem.MoveInvalid, "%s lies below another root; organizations move only within their root.", to.ID)
	}
	if strings.HasPrefix(to.Path, o.Path) {
		return move{}, problem.New(problem.MoveInvalid, "%s lies below %s; an organization cannot move under itself.", to.ID, o.ID).
			WithFix("Choose a parent that is not below it.")
	}
	if to.Type == org.TypeUser {
		return move{}, problem.New(problem.Conflict, "%s is of type user, which holds no children.", to.ID).
			WithFix("Choose a parent of type organization or group.")
	}
	deepest, err := c.DeepestBelow(o.RootID, o.Path)
	if err != nil {
		return move{}, err
	}
	if deepest+to.Depth-from.Depth > org.MaxDepth {
		return move{}, tooDeep().WithFix("Choose a parent that is nearer to the root. What was deleted below the organization and can be restored moves too, and counts.")
	}
	return move{org: o, from: from, to: to, newPath: to.Path + o.ID + "/"}, nil
}

// PreviewMove says what Move would change, and changes nothing.
func (s *Service) PreviewMove(ctx context.Context, call *org.Call, id, newParentID string) (*MovePreview, error) {
	var p *MovePreview
	err := s.precheck(ctx, call, func(c *check) error {
		m, err := c.planMove(id, newParentID)
		if err != nil {
			return err
		}
		p = &MovePreview{OldPath: m.org.PathIDs(), NewPath: org.SplitPath(m.newPath)}
		counts, err := c.CountSubtree(m.org.RootID, m.org.Path)
		if err != nil {
			return err
		}
		p.Organizations = counts.Organizations
		before, err := c.ancestors(m.org)
		if err != nil {
			return err
		}
		after, err := c.ancestors(m.to)
		if err != nil {
			return err
		}
		after = append(after, m.to)
		p.Settings = org.AuditChanges(settings.Diff("", settings.Effective(org.Layers(append(before, m.org)...)), settings.Effective(org.Layers(append(after, m.org)...))))
		if p.Lose, err = c.reaching(before, after); err != nil {
			return err
		}
		if p.Gain, err = c.reaching(after, before); err != nil {
			return err
		}
		if p.LoseLimits, err = c.binding(before, after); err != nil {
			return err
		}
		p.GainLimits, err = c.binding(after, before)
		return err
	})
	return p, err
}

// binding returns the limits on the organizations of one chain that are not in
// the other, from the root down and then by meter.
func (c *check) binding(chain, other []*org.Organization) ([]usage.Limit, error) {
	above := chain[len(chain)-1]
	limits, err := org.ChainLimits(c, above.RootID, above.Path)
	return slices.DeleteFunc(limits, func(l usage.Limit) bool {
		return slices.ContainsFunc(other, func(o *org.Organization) bool { return o.ID == l.OrgID })
	}), err
}

// reaching returns the keys that reach down from the organizations of one
// chain that are not in the other.
func (c *check) reaching(chain, other []*org.Organization) ([]*key.Key, error) {
	in := map[string]bool{}
	for _, o := range other {
		in[o.ID] = true
	}
	var found []*key.Key
	for _, o := range chain {
		if in[o.ID] || !c.Call.Actor.Sees(o.Path) {
			continue
		}
		keys, _, err := c.Keys(o.ID, "", maxPreviewKeys, 0)
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			if k.Reach == key.ReachSubtree && len(found) < maxPreviewKeys {
				found = append(found, k)
			}
		}
	}
	return found, nil
}
