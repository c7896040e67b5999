package key

import (
	"net/netip"
	"strings"
	"time"

	"github.com/orgd/orgd/internal/problem"
)

// Bounds of what a key may be given.
const (
	MaxNameLen       = 256 // characters
	maxRequests      = 1_000_000
	maxPeriodSeconds = 24 * 60 * 60
)

// Request is what somebody asks for when they create or change a key. What is
// left out (nil or empty; for AllowedCIDRs, nil) is taken from the creator.
type Request struct {
	Name         string
	Permissions  []string // permissions and bundles
	Reach        Reach
	AllowedCIDRs []string // not nil but empty asks for every address
	ExpiresAt    *time.Time
	RateLimit    *RateLimit
}

// Terms are what a key is granted.
type Terms struct {
	Name         string
	Permissions  Permissions
	Reach        Reach
	AllowedCIDRs []string // canonical; none means every address
	ExpiresAt    *time.Time
	RateLimit    *RateLimit
}

// Grant returns the terms of a key that creator asks for at the time now.
//
// A key never gets more than its creator has: its permissions, its reach, its
// addresses and its life are within the creator's, and so are those of every
// key that it creates in turn. The operator may grant anything; what the
// operator leaves out is the bundle read, the subtree, every address, no
// expiry and no rate limit.
//
// The error is an InvalidBody about a value that is not valid, or a
// PermissionDenied with one field for each member that exceeds the creator's.
func Grant(creator *Actor, req Request, now time.Time) (*Terms, *problem.Error) {
	t := &Terms{Permissions: creator.Permissions, Reach: creator.Reach, ExpiresAt: creator.ExpiresAt, RateLimit: creator.RateLimit}
	cidrs := creator.CIDRs
	if creator.Spans() {
		t = &Terms{Permissions: bundles[BundleRead], Reach: ReachSubtree}
		cidrs = nil
	}
	var p *problem.Error
	if t.Name, p = CheckName("/name", req.Name); p != nil {
		return nil, p
	}
	if req.Permissions != nil {
		if t.Permissions, p = ParsePermissions("/permissions", req.Permissions); p != nil {
			return nil, p
		}
	}
	switch req.Reach {
	case "":
	case ReachSubtree, ReachSelf:
		t.Reach = req.Reach
	default:
		return nil, problem.Body("/reach", "must be subtree or self, not %q", echo(string(req.Reach)))
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
		t.RateLimit = &RateLimit{rl.Requests, rl.PeriodSeconds}
	}
	t.AllowedCIDRs = cidrStrings(cidrs)
	if !creator.Spans() {
		if p := exceeds(creator, t, cidrs); p != nil {
			return nil, p
		}
	}
	return t, nil
}

// exceeds says where the terms go beyond what the creator has; nil if nowhere.
func exceeds(creator *Actor, t *Terms, cidrs []netip.Prefix) *problem.Error {
	var fields []problem.Field
	add := func(pointer, detail string) { fields = append(fields, problem.Field{Pointer: pointer, Detail: detail}) }
	missing := t.Permissions.SubsetOf(creator.Permissions)
	if len(missing) > 0 {
		add("/permissions", "holds permissions that the creating key lacks: "+strings.Join(missing, ", "))
	}
	if t.Reach == ReachSubtree && creator.Reach == ReachSelf {
		add("/reach", "is subtree, but the creating key reaches its own organization only")
	}
	if beyond := Exceeding(cidrs, creator.CIDRs); len(beyond) > 0 {
		add("/allowed_cidrs", "holds addresses from which the creating key may not be used: "+strings.Join(cidrStrings(beyond), ", "))
	}
	if creator.ExpiresAt != nil && t.ExpiresAt.After(*creator.ExpiresAt) {
		add("/expires_at", "is later than the creating key's own expiry, "+creator.ExpiresAt.UTC().Format(time.RFC3339Nano))
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

// Within checks that a key has no more power than the actor has: who could
// change or rotate it would have that power too. The error is
// PermissionDenied and says what the key has more.
func Within(a *Actor, k *Key) *problem.Error {
	if a.Spans() {
		return nil
	}
	var more []string
	missing := k.Permissions.SubsetOf(a.Permissions)
	if len(missing) > 0 {
		more = append(more, "permissions ("+strings.Join(missing, ", ")+")")
	}
	if k.Reach == ReachSubtree && a.Reach == ReachSelf {
		more = append(more, "reach")
	}
	var cidrs []netip.Prefix
	for _, s := range k.AllowedCIDRs {
		if p, ok := ParseCIDR(s); ok {
			cidrs = append(cidrs, p)
		}
	}
	if len(Exceeding(cidrs, a.CIDRs)) > 0 {
		more = append(more, "addresses")
	}
	if a.ExpiresAt != nil && (k.ExpiresAt == nil || k.ExpiresAt.After(*a.ExpiresAt)) {
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
