package org

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/problem"
)

// Login is the outcome of an authentication.
type Login struct {
	// Actor is who the credentials name. It is set even when they are no
	// longer valid (expired, revoked, of a deleted organization), so that the
	// attempt can be recorded; the error then says so.
	Actor *auth.Actor
	// OldSecret says that the secret is one that a rotation replaced.
	OldSecret bool
	// Quota is what is set for the root of a key; nil for the operator. Nobody
	// may change it.
	Quota *Quota

	key *keySnapshot // nil for the operator, and without an actor
}

// Unauthorized is the one error for every bad key, so that nothing can be
// learned from it.
func Unauthorized() *problem.Error {
	return problem.New(problem.Unauthorized, "The request has no valid API key.").
		WithFix("Send a valid key in the header Authorization: Bearer orgd_…")
}

// Authenticate finds out who presents a token from the address ip. The error
// is Unauthorized, the same for every kind of bad token, or PermissionDenied
// when the key may not be used from this address.
func (s *Service) Authenticate(ctx context.Context, token string, ip netip.Addr) (Login, error) {
	keyID, hash, ok := key.ParseToken(token)
	if !ok {
		return Login{}, Unauthorized()
	}
	if keyID == operatorKeyID {
		if !key.Match(s.operatorHash[:], hash) {
			return Login{}, Unauthorized()
		}
		return Login{Actor: operator}, nil
	}
	k, err := s.keyOf(ctx, keyID, hash)
	if err != nil {
		return Login{}, err
	}
	if k == nil {
		return Login{}, Unauthorized()
	}
	login := Login{Actor: k.actor, Quota: k.quota, key: k}
	return login.admit(s.now(), hash, ip)
}

// Again is Authenticate for the token and the address of an earlier login. It
// costs next to nothing while nothing has changed in the tree of the key.
func (s *Service) Again(ctx context.Context, login Login, token string, ip netip.Addr) (Login, error) {
	k := login.key
	if k == nil || k.generation != s.store.Generation(k.RootID) {
		return s.Authenticate(ctx, token, ip)
	}
	return login.admit(s.now(), key.HashToken(token), ip)
}

// admit returns the login of whoever has a secret with this hash and comes from
// this address now. With an error it still says whose key it was.
func (l Login) admit(now time.Time, hash [32]byte, ip netip.Addr) (Login, error) {
	actor, old, err := l.key.admits(now, hash, ip)
	if l.OldSecret = old; actor != nil {
		l.Actor = actor
	}
	return l, err
}

// admits checks that a secret with this hash may be used from this address
// now. It returns the actor as it is there, and says whether the secret is one that
// a rotation replaced. Its errors are those of Service.Authenticate.
func (k *keySnapshot) admits(now time.Time, hash [32]byte, ip netip.Addr) (actor *auth.Actor, old bool, err error) {
	old, ok := k.Usable(now, hash)
	if !ok || !k.orgLive {
		return nil, false, Unauthorized()
	}
	actor, err = k.actor.From(ip)
	return actor, old, err
}

// present returns the actor of a call as it is in a transaction, or the error
// that Authenticate would now return. A request takes time: its key may have
// been revoked, narrowed or moved, or have expired, since it came.
//
// In a transaction that holds the lock of the actor's root nobody can change
// the actor any more until the transaction ends.
func (s *Service) present(v View, call *Call) (*auth.Actor, error) {
	return s.presentAs(v, call, v.Key)
}

// presentAs is present with a way to read the key.
func (s *Service) presentAs(v View, call *Call, read func(id string) (*key.Key, error)) (*auth.Actor, error) {
	if call.Actor.Kind != auth.KindKey {
		return call.Actor, nil
	}
	snap, ok := s.keys.GetIfPresent(call.Actor.ID)
	if !ok || !v.TreeUnchanged(snap.RootID, snap.generation) {
		k, err := read(call.Actor.ID)
		if err == nil {
			snap, err = snapshotOf(v, k)
		}
		if errors.Is(err, ErrAbsent) {
			return nil, Unauthorized()
		} else if err != nil {
			return nil, err
		}
	}
	actor, _, err := snap.admits(s.now(), call.Secret, call.Address)
	return actor, err
}

// stays fails unless the actor of a call may still do what a transaction has
// done for it at the organization with this path, and holds its key as it is until the transaction ends. It is
// for transactions that do not hold the lock of the actor's root, and comes
// last in them: nobody waits long for the key, and, as in Store.Flush, what
// counts is locked before keys are.
func (s *Service) stays(tx Tx, call *Call, permission, path string) error {
	actor, err := s.presentAs(tx, call, tx.HoldKey)
	if err != nil {
		return err
	}
	if !actor.SameReach(call.Actor) {
		return problem.New(problem.Conflict, "What this key reaches was changed while the request was answered.").
			WithFix("Repeat the request.")
	}
	return actor.Demand(path, permission)
}

// presentNow is present outside of a transaction: what it says may be over at
// once.
func (s *Service) presentNow(ctx context.Context, call *Call) (*auth.Actor, error) {
	a := call.Actor
	if a.Kind != auth.KindKey {
		return a, nil
	}
	k, ok := s.keys.GetIfPresent(a.ID)
	if !ok || k.generation != s.store.Generation(k.RootID) {
		var err error
		if k, err = s.keySnapshot(ctx, a.ID, a.RootID); err != nil {
			return nil, err
		}
		if k == nil {
			return nil, Unauthorized()
		}
	}
	actor, _, err := k.admits(s.now(), call.Secret, call.Address)
	return actor, err
}

// presentCall returns the call with its actor as it is in a transaction.
func (s *Service) presentCall(v View, call *Call) (*Call, error) {
	own := *call
	var err error
	if own.Actor, err = s.present(v, call); err != nil {
		return nil, err
	}
	return &own, nil
}

const operatorKeyID = "operator"

var operator = auth.Operator()
