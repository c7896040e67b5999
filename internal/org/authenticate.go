package org

import (
	"context"
	"net/netip"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/problem"
)

// Login is the outcome of an authentication.
type Login struct {
	// Actor is who the credentials name. It is set even when they are no
	// longer valid (expired, revoked, of a deleted organization), so that the
	// attempt can be recorded; the error then says so.
	Actor *key.Actor
	// OldSecret says that the secret is one that a rotation replaced.
	OldSecret bool
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
	login := Login{Actor: k.actor}
	old, ok := k.Usable(s.now(), hash)
	if !ok || !k.orgLive {
		return login, Unauthorized()
	}
	login.OldSecret = old
	if len(k.actor.CIDRs) > 0 && !key.Contains(k.actor.CIDRs, ip) {
		return login, problem.New(problem.PermissionDenied, "This key may not be used from this address.").
			WithFix("Use it from an address in its allowed_cidrs.")
	}
	return login, nil
}

const operatorKeyID = "operator"

var operator = key.Operator()
