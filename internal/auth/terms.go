package auth

import (
	"net/netip"
	"strings"
	"time"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/problem"
)

// Bounds of what a key may be given.
const (
	maxRequests      = 1_000_000
	maxPeriodSeconds = 24 * 60 * 60
)

// Request is what somebody asks for when they create or change a key. What is
// left out (nil or empty; for AllowedCIDRs, nil) is taken from the creator.
type Request struct {
	Name         string
	Permissions  []string // permissions and bundles
	Reach        key.Reach
	AllowedCIDRs []string // not nil but empty asks for every address
	ExpiresAt    *time.Time
	RateLimit    *key.RateLimit
}

// Terms are what a key is granted.
type Terms struct {
	Name         string
	Permissions  key.Permissions
	Reach        key.Reach
	AllowedCIDRs []string // canonical; none means every address
	ExpiresAt    *time.Time
	RateLimit    *key.RateLimit
}

// TermsFor returns the terms of a key of the organization with this path, which
// creator sees, that creator asks for at the time now.
//
// A key never gets more than its creator has there by one grant: its permissions,
// its reach, its addresses and its life are within that, and so are those of every
// key that it creates in turn. The operator may grant anything; what the operator
// leaves out is the bundle read, the subtree, every address, no expiry and no rate
// limit. What others leave out is that of their grant.
//
// The error is an InvalidBody about a value that is not valid, or a
// PermissionDenied with one field for each member that exceeds the creator's.
func TermsFor(creator *Actor, path string, req Request, now time.Time) (*Terms, *problem.Error) {
	own := creator.grantAt(path, req.Permissions)
	t := &Terms{Permissions: own.Permissions, Reach: own.Reach, ExpiresAt: own.Until, RateLimit: creator.RateLimit}
	cidrs := own.Addresses
	var p *problem.Error
	if t.Name, p = key.CheckName("/name", req.Name); p != nil {
		return nil, p
	}
	if req.Permissions != nil {
		if t.Permissions, p = key.ParsePermissions("/permissions", req.Permissions); p != nil {
			return nil, p
		}
	}
	switch req.Reach {
	case "":
	case key.ReachSubtree, key.ReachSelf:
		t.Reach = req.Reach
	default:
		return nil, problem.Body("/reach", "must be subtree or self, not %q", key.Echo(string(req.Reach)))
	}
	if req.AllowedCIDRs != nil {
		if cidrs, p = ParseCIDRs("/allowed_cidrs", req.AllowedCIDRs); p != nil {
			return nil, p
		}
	}
	if req.ExpiresAt != nil {
		at := req.ExpiresAt.UTC().Truncate(time.Microsecond)
		if !at.After(now) {
			return nil, problem.Body("/expires_at", "is not in the future").WithFix("Choose a later time, or leave it out.")
		}
		if at.Year() > 9999 {
			return nil, problem.Body("/expires_at", "is after the year 9999").WithFix("Leave it out for a key that does not expire.")
		}
		t.ExpiresAt = &at
	}
	if rl := req.RateLimit; rl != nil {
		switch {
		case rl.Requests < 1 || rl.Requests > maxRequests:
			return nil, problem.Body("/rate_limit/requests", "must be from 1 to %d", maxRequests)
		case rl.PeriodSeconds < 1 || rl.PeriodSeconds > maxPeriodSeconds:
			return nil, problem.Body("/rate_limit/period_seconds", "must be from 1 to %d", maxPeriodSeconds)
		}
		t.RateLimit = &key.RateLimit{Requests: rl.Requests, PeriodSeconds: rl.PeriodSeconds}
	}
	t.AllowedCIDRs = cidrStrings(cidrs)
	if !creator.Everywhere() {
		if p := exceeds(own, t, cidrs); p != nil {
			return nil, p
		}
	}
	return t, nil
}

// grantAt returns the grant by which the actor gives a key of the organization with
// this path what it gets: of those that cover it, the one that lacks the fewest of
// the permissions. An actor of no grant there gives nothing.
func (a *Actor) grantAt(path string, permissions []string) Grant {
	if a.Everywhere() {
		return Grant{Permissions: key.Bundle(key.BundleRead), Reach: key.ReachSubtree}
	}
	best, fewest := Grant{Path: path, Reach: key.ReachSelf}, -1
	for i := range a.Grants {
		g := &a.Grants[i]
		if !g.covers(path) {
			continue
		}
		lacks := 0
		for _, p := range permissions {
			if !g.Permissions.Has(p) {
				lacks++
			}
		}
		if fewest < 0 || lacks < fewest {
			best, fewest = *g, lacks
		}
	}
	return best
}

// exceeds says where the terms go beyond what the creator has; nil if nowhere.
func exceeds(own Grant, t *Terms, cidrs []netip.Prefix) *problem.Error {
	var fields []problem.Field
	add := func(pointer, detail string) { fields = append(fields, problem.Field{Pointer: pointer, Detail: detail}) }
	missing := t.Permissions.SubsetOf(own.Permissions)
	if len(missing) > 0 {
		add("/permissions", "holds permissions that the creating key lacks: "+strings.Join(missing, ", "))
	}
	if t.Reach == key.ReachSubtree && own.Reach != key.ReachSubtree {
		add("/reach", "is subtree, but the creating key reaches its own organization only")
	}
	if beyond := Exceeding(cidrs, own.Addresses); len(beyond) > 0 {
		add("/allowed_cidrs", "holds addresses from which the creating key may not be used: "+strings.Join(cidrStrings(beyond), ", "))
	}
	if own.Until != nil && (t.ExpiresAt == nil || t.ExpiresAt.After(*own.Until)) {
		add("/expires_at", "is later than the creating key's own expiry, "+own.Until.UTC().Format(time.RFC3339Nano))
	}
	if len(fields) == 0 {
		return nil
	}
	details := make([]string, len(fields))
	for i, f := range fields {
		details[i] = f.Pointer[1:] + " " + f.Detail
	}
	e := problem.New(problem.PermissionDenied, "A key can only grant what it has itself: %s.", strings.Join(details, "; ")).
		WithFix("Ask for less, leave these members out to take them from the creating key, or use a key that has more.")
	e.Fields = fields
	if len(missing) > 0 {
		e = e.With("missing", missing)
	}
	return e
}

// Covers checks that a key of the organization with this path has no more power
// than the actor has there: who could change or rotate it would have that power
// too. The error is PermissionDenied and says what the key has more.
func Covers(a *Actor, path string, k *key.Key) *problem.Error {
	if a.Everywhere() {
		return nil
	}
	own := a.grantAt(path, k.Permissions)
	var more []string
	missing := k.Permissions.SubsetOf(own.Permissions)
	if len(missing) > 0 {
		more = append(more, "permissions ("+strings.Join(missing, ", ")+")")
	}
	if k.Reach == key.ReachSubtree && own.Reach != key.ReachSubtree {
		more = append(more, "reach")
	}
	var cidrs []netip.Prefix
	for _, s := range k.AllowedCIDRs {
		if p, ok := ParseCIDR(s); ok {
			cidrs = append(cidrs, p)
		}
	}
	if len(Exceeding(cidrs, own.Addresses)) > 0 {
		more = append(more, "addresses")
	}
	if own.Until != nil && (k.ExpiresAt == nil || k.ExpiresAt.After(*own.Until)) {
		more = append(more, "time before it expires")
	}
	if len(more) == 0 {
		return nil
	}
	e := problem.New(problem.PermissionDenied, "The key %s has more than this key: %s.", k.ID, strings.Join(more, ", ")).
		WithFix("Use a key that has as much, or revoke the key.")
	if len(missing) > 0 {
		e = e.With("missing", missing)
	}
	return e
}
