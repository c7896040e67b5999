package tree

import (
	"context"
	"errors"
	"slices"

	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/org"
)

// List returns one page of the live organizations that q selects, within the
// actor's reach whatever q says.
func (s *Service) List(ctx context.Context, actor *auth.Actor, q org.OrgQuery) (org.OrgPage, error) {
	if !actor.Everywhere() {
		if q.RootsOnly && actor.ParentID != "" {
			return org.OrgPage{}, nil
		}
		place, ok := actor.Place()
		if !ok {
			return org.OrgPage{}, nil
		}
		if q.Path == "" {
			q.RootID, q.Path, q.WithSelf = actor.RootID, place.Path, true
		}
		if place.Self {
			return s.listSelf(ctx, actor, q)
		}
	}
	var page org.OrgPage
	err := s.store.ReadHeavy(ctx, func(v View) (err error) {
		page, err = v.Orgs(q)
		return err
	})
	page.Orgs = slices.DeleteFunc(page.Orgs, func(o *org.Organization) bool { return !actor.Sees(o.Path) })
	return page, err
}

// listSelf is List for a key that reaches one organization: it looks at that
// one, not at a subtree.
func (s *Service) listSelf(ctx context.Context, actor *auth.Actor, q org.OrgQuery) (org.OrgPage, error) {
	var page org.OrgPage
	if !q.WithSelf || q.ParentID != "" {
		return page, nil
	}
	err := s.store.Read(ctx, func(v View) error {
		o, err := v.Org(actor.OrgID)
		if errors.Is(err, org.ErrAbsent) {
			return nil
		} else if err != nil {
			return err
		}
		if o.DeletedAt == nil && q.Matches(o) {
			page.Orgs = []*org.Organization{o}
		}
		return nil
	})
	return page, err
}

// Ancestors returns those of an organization's ancestors that the actor can
// see, root first.
func (s *Service) Ancestors(ctx context.Context, actor *auth.Actor, id string) ([]*org.Organization, error) {
	snap, err := s.orgs.Find(ctx, actor, id)
	if err != nil {
		return nil, err
	}
	var visible []*org.Organization
	err = s.store.ReadHeavy(ctx, func(v View) error {
		visible = nil
		chain, err := org.Ancestors(v, snap.Organization)
		if err != nil {
			return err
		}
		for _, o := range chain {
			if actor.Sees(o.Path) {
				visible = append(visible, o)
			}
		}
		return nil
	})
	return visible, err
}
