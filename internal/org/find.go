package org

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/orgd/orgd/internal/auth"
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
func (s *Service) Find(ctx context.Context, actor *auth.Actor, id string) (*Snapshot, error) {
	if actor.Everywhere() {
		snap, err := s.live(ctx, id)
		if err == nil && snap == nil {
			err = NotFound()
		}
		return snap, err
	}
	if !ident.Valid(id) {
		return nil, NotFound()
	}
	if snap, ok := s.orgs.GetIfPresent(id); ok && actor.Sees(snap.Path) && snap.generation == s.store.OrgGeneration(snap.RootID, id) {
		return snap, nil
	}
	// What the actor does not see is looked for in the store, each time, by one
	// and the same statement: what is remembered of it must not make the answer
	// come sooner. The generation is read before the row; what the actor sees
	// lies in its root.
	generation := s.store.OrgGeneration(actor.RootID, id)
	var o *Organization
	err := s.store.Read(ctx, func(v View) (err error) {
		o, err = Seen(v, actor, id)
		return err
	})
	if errors.Is(err, ErrAbsent) {
		return nil, NotFound()
	} else if err != nil {
		return nil, err
	}
	snap := &Snapshot{Organization: o, ETag: o.ETag(), generation: generation}
	s.orgs.Set(id, snap)
	return snap, nil
}

// seen returns a live organization that the actor sees; ErrAbsent otherwise.
func Seen(v OrgView, actor *auth.Actor, id string) (*Organization, error) {
	o, err := Reached(v, actor, id)
	if err == nil && o.DeletedAt != nil {
		return nil, ErrAbsent
	}
	return o, err
}

// reached returns an organization, live or deleted, that lies or lay within
// the reach of the actor; ErrAbsent otherwise. It takes the same time for an
// organization elsewhere and for none.
func Reached(v OrgView, actor *auth.Actor, id string) (*Organization, error) {
	if actor.Everywhere() {
		return v.Org(id)
	}
	place, ok := actor.Place()
	if !ok {
		return nil, ErrAbsent
	}
	o, err := v.OrgWithin(id, place.Path, place.Self)
	if err == nil && !actor.Sees(o.Path) {
		return nil, ErrAbsent
	}
	return o, err
}

// Generation returns the root that an organization was last seen in, "" if that is not
// known, and its generation there; see Store.OrgGeneration.
func (s *Service) Generation(id string) (rootID string, generation uint64) {
	rootID = s.rootOf(id)
	return rootID, s.store.OrgGeneration(rootID, id)
}

// Remember keeps an organization, which nobody may change any more, as it is under a
// generation; see Store.OrgGeneration.
func (s *Service) Remember(o *Organization, generation uint64) {
	s.orgs.Set(o.ID, &Snapshot{Organization: o, ETag: o.ETag(), generation: generation})
}

// Exists reports whether a live organization has the id, whoever may see it.
// It tells a denied access from one to nowhere, for the access log only. It runs
// before the answer is sent, and does the same whatever it finds.
func (s *Service) Exists(ctx context.Context, id string) bool {
	if !ident.Valid(id) {
		return false
	}
	var places map[string]Place
	err := s.store.Read(ctx, func(v View) (err error) {
		places, err = v.Places([]string{id})
		return err
	})
	_, ok := places[id]
	return err == nil && ok
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
		err := s.store.Read(ctx, func(v View) (err error) {
			o, err = v.Org(id)
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
	actor      *auth.Actor
	orgLive    bool
	quota      *Quota // of its root
	generation uint64
}

// holds reports whether the hash is that of the key's secret, or of the one
// that a rotation replaced.
func (k *keySnapshot) holds(hash [32]byte) bool {
	return key.Match(k.SecretHash, hash) || k.Old != nil && key.Match(k.Old.Hash, hash)
}

// keyOf returns the key with this id, and its organization, if it has a secret
// with this hash; nil otherwise. Who has no secret of a key does not learn
// whether there is one with the id: the store is asked the same, each time,
// whatever is remembered.
func (s *Service) keyOf(ctx context.Context, id string, hash [32]byte) (*keySnapshot, error) {
	if snap, ok := s.keys.GetIfPresent(id); ok && snap.holds(hash) {
		if snap.generation == s.store.Generation(snap.RootID) {
			return snap, nil
		}
		return s.keyHolding(ctx, id, snap.RootID, hash) // a key never changes its root
	}
	rootID, err := s.rootOfKey(ctx, id, hash)
	if rootID == "" {
		return nil, err
	}
	return s.keyHolding(ctx, id, rootID, hash)
}

// rootOfKey returns the root of the key with this id and secret; "" if there is
// none.
func (s *Service) rootOfKey(ctx context.Context, id string, hash [32]byte) (rootID string, err error) {
	var secret, old []byte
	err = s.store.Read(ctx, func(v View) (err error) {
		rootID, secret, old, err = v.SecretHashes(id)
		return err
	})
	if err != nil && !errors.Is(err, ErrAbsent) {
		return "", err
	}
	if now, before := key.Match(secret, hash), key.Match(old, hash); !now && !before {
		return "", nil
	}
	return rootID, nil
}

// keyHolding is keySnapshot, nil unless the key has this secret.
func (s *Service) keyHolding(ctx context.Context, id, rootID string, hash [32]byte) (*keySnapshot, error) {
	snap, err := s.keySnapshot(ctx, id, rootID)
	if snap == nil || !snap.holds(hash) {
		return nil, err
	}
	return snap, err
}

// keySnapshot reads a key of a root with its organization and the root's quota,
// and remembers it; nil if there is none.
func (s *Service) keySnapshot(ctx context.Context, id, rootID string) (*keySnapshot, error) {
	generation := s.store.Generation(rootID)
	var snap *keySnapshot
	err := s.store.Read(ctx, func(v View) (err error) {
		if snap, err = readKey(v, id); err != nil {
			return err
		}
		snap.quota, err = s.quotaIn(v, rootID, generation)
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
func readKey(v View, id string) (*keySnapshot, error) {
	k, err := v.Key(id)
	if err != nil {
		return nil, err
	}
	return snapshotOf(v, k)
}

// snapshotOf adds its organization to a key.
func snapshotOf(v View, k *key.Key) (*keySnapshot, error) {
	o, err := v.Org(k.OrgID)
	if err != nil {
		return nil, err
	}
	a, err := auth.ForKey(k, o.Path, o.ParentID)
	return &keySnapshot{Key: k, actor: a, orgLive: o.DeletedAt == nil}, err
}
