package org

import (
	"context"
	"errors"
	"slices"

	"github.com/orgd/orgd/internal/auth"
)

// List returns one page of the live organizations that q selects, within the
// actor's reach whatever q says.
func (s *Service) List(ctx context.Context, actor *auth.Actor, q OrgQuery) (OrgPage, error) {
	if !actor.Everywhere() {
		if q.RootsOnly && actor.ParentID != "" {
			return OrgPage{}, nil
		}
		place, ok := actor.Place()
		if !ok {
			return OrgPage{}, nil
		}
		if q.Path == "" {
			q.RootID, q.Path, q.WithSelf = actor.RootID, place.Path, true
		}
		if place.Self {
			return s.listSelf(ctx, actor, q)
		}
	}
	var page OrgPage
	err := s.store.ReadHeavy(ctx, func(tx Tx) (err error) {
		page, err = tx.Orgs(q)
		return err
	})
	page.Orgs = slices.DeleteFunc(page.Orgs, func(o *Organization) bool { return !actor.Sees(o.Path) })
	return page, err
}

// listSelf is List for a key that reaches one organization: it looks at that
// one, not at a subtree.
func (s *Service) listSelf(ctx context.Context, actor *auth.Actor, q OrgQuery) (OrgPage, error) {
	var page OrgPage
	if !q.WithSelf || q.ParentID != "" {
		return page, nil
	}
	err := s.store.Read(ctx, func(tx Tx) error {
		o, err := tx.Org(actor.OrgID)
		if errors.Is(err, ErrAbsent) {
			return nil
		} else if err != nil {
			return err
		}
		if o.DeletedAt == nil && q.Matches(o) {
			page.Orgs = []*Organization{o}
		}
		return nil
	})
	return page, err
}

// Ancestors returns those of an organization's ancestors that the actor can
// see, root first.
func (s *Service) Ancestors(ctx context.Context, actor *auth.Actor, id string) ([]*Organization, error) {
	snap, err := s.Find(ctx, actor, id)
	if err != nil {
		return nil, err
	}
	var visible []*Organization
	err = s.store.ReadHeavy(ctx, func(tx Tx) error {
		visible = nil
		chain, err := ancestors(tx, snap.Organization)
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
