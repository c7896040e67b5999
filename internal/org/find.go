package org

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/problem"
)

// Snapshot is an organization as it was read, for as long as its root does
// not change. It is shared: nobody may change it.
type Snapshot struct {
	*Organization
	ETag       string
	generation uint64
	rendered   atomic.Pointer[[]byte]
}

// Rendered returns the representation of the snapshot that render makes,
// which is kept with it.
func (s *Snapshot) Rendered(render func(*Organization) []byte) []byte {
	if b := s.rendered.Load(); b != nil {
		return *b
	}
	b := render(s.Organization)
	s.rendered.Store(&b)
	return b
}

// Find returns a live organization that the actor can see. NotFound is the
// same for one that is absent, deleted or out of the actor's reach.
func (s *Service) Find(ctx context.Context, actor *key.Actor, id string) (*Snapshot, error) {
	snap, err := s.live(ctx, id)
	if err != nil {
		return nil, err
	}
	if snap == nil || !actor.Sees(snap.Path) {
		return nil, NotFound()
	}
	return snap, nil
}

// Exists reports whether a live organization has the id, whoever may see it.
// It tells a denied access from one to nowhere, for the access log only.
func (s *Service) Exists(ctx context.Context, id string) bool {
	snap, err := s.live(ctx, id)
	return err == nil && snap != nil
}

// live returns a live organization, nil if there is none.
func (s *Service) live(ctx context.Context, id string) (*Snapshot, error) {
	if !ident.Valid(id) {
		return nil, nil
	}
	// The generation must be read before the row. Its root is known only after
	// a first read, unless an earlier one is remembered.
	var rootID string
	if snap, ok := s.orgs.GetIfPresent(id); ok {
		if snap.generation == s.store.OrgGeneration(snap.RootID, id) {
			return snap, nil
		}
		rootID = snap.RootID
	}
	for range 3 {
		var generation uint64
		if rootID != "" {
			generation = s.store.OrgGeneration(rootID, id)
		}
		var o *Organization
		err := s.store.Read(ctx, func(tx Tx) (err error) {
			o, err = tx.Org(id)
			return err
		})
		switch {
		case errors.Is(err, ErrAbsent):
			return nil, nil
		case err != nil:
			return nil, err
		case o.RootID != rootID:
			rootID = o.RootID
			continue
		case o.DeletedAt != nil:
			return nil, nil
		}
		snap := &Snapshot{Organization: o, ETag: o.ETag(), generation: generation}
		s.orgs.Set(id, snap)
		return snap, nil
	}
	return nil, problem.New(problem.Unavailable, "The organization was replaced while it was being read.").WithFix("Try again.")
}

// rootOf returns the root that an organization was last seen in, "" if that is
// not known. It may be out of date.
func (s *Service) rootOf(id string) string {
	if snap, ok := s.orgs.GetIfPresent(id); ok {
		return snap.RootID
	}
	return ""
}

// keySnapshot is a key and its actor as they were read.
type keySnapshot struct {
	*key.Key
	actor      *key.Actor
	orgLive    bool
	generation uint64
}

// keyByID returns a key with its organization; nil if there is none.
func (s *Service) keyByID(ctx context.Context, id string) (*keySnapshot, error) {
	var rootID string
	if snap, ok := s.keys.GetIfPresent(id); ok {
		if snap.generation == s.store.Generation(snap.RootID) {
			return snap, nil
		}
		rootID = snap.RootID // a key never changes its root
	} else {
		var k *key.Key
		err := s.store.Read(ctx, func(tx Tx) (err error) {
			k, err = tx.Key(id)
			return err
		})
		if errors.Is(err, ErrAbsent) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		rootID = k.RootID
	}
	generation := s.store.Generation(rootID)
	var snap *keySnapshot
	err := s.store.Read(ctx, func(tx Tx) (err error) {
		snap, err = readKey(tx, id)
		return err
	})
	if errors.Is(err, ErrAbsent) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	snap.generation = generation
	s.keys.Set(id, snap)
	return snap, nil
}

// readKey reads a key and its organization.
func readKey(tx Tx, id string) (*keySnapshot, error) {
	k, err := tx.Key(id)
	if err != nil {
		return nil, err
	}
	o, err := tx.Org(k.OrgID)
	if err != nil {
		return nil, err
	}
	a, err := key.NewActor(k, o.Path, o.ParentID)
	return &keySnapshot{Key: k, actor: a, orgLive: o.DeletedAt == nil}, err
}

// Visible returns a live organization that the actor can see.
func (s *Service) Visible(ctx context.Context, actor *key.Actor, id string) (*Organization, error) {
	snap, err := s.Find(ctx, actor, id)
	if err != nil {
		return nil, err
	}
	return snap.Organization, nil
}
