package auth

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/problem"
)

var grantNow = time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)

func in(d time.Duration) *time.Time {
	at := grantNow.Add(d)
	return &at
}

func limitedActor() *Actor {
	return &Actor{Kind: KindKey, ID: "key_1", OrgID: "a", RootID: "a", Path: "a/", RateLimit: &key.RateLimit{Requests: 10, PeriodSeconds: 60},
		Grants: []Grant{{Path: "a/", Permissions: key.Permissions{key.KeysWrite, key.OrgsRead}, Reach: key.ReachSelf, Addresses: prefixes("10.0.0.0/8"), Until: in(time.Hour)}}}
}

func TestGrant(t *testing.T) {
	read, _ := key.ParsePermissions("", []string{"read"})
	far := in(1000 * time.Hour)
	for _, tt := range []struct {
		name    string
		creator *Actor
		req     Request
		want    Terms
	}{
		{"the operator's defaults are safe ones", Operator(), Request{Name: " CI "},
			Terms{Name: "CI", Permissions: read, Reach: key.ReachSubtree, AllowedCIDRs: []string{}}},
		{"the operator may grant anything", Operator(),
			Request{Name: "CI", Permissions: []string{"admin"}, Reach: key.ReachSelf, AllowedCIDRs: []string{"10.1.1.1"}, ExpiresAt: far, RateLimit: &key.RateLimit{Requests: 1_000_000, PeriodSeconds: 86400}},
			Terms{Name: "CI", Permissions: key.AllPermissions(), Reach: key.ReachSelf, AllowedCIDRs: []string{"10.1.1.1/32"}, ExpiresAt: far, RateLimit: &key.RateLimit{Requests: 1_000_000, PeriodSeconds: 86400}}},
		{"what a key leaves out is its own", limitedActor(), Request{Name: "CI"},
			Terms{Name: "CI", Permissions: key.Permissions{key.KeysWrite, key.OrgsRead}, Reach: key.ReachSelf, AllowedCIDRs: []string{"10.0.0.0/8"}, ExpiresAt: in(time.Hour), RateLimit: &key.RateLimit{Requests: 10, PeriodSeconds: 60}}},
		{"a key may grant less", limitedActor(),
			Request{Name: "CI", Permissions: []string{key.OrgsRead}, Reach: key.ReachSelf, AllowedCIDRs: []string{"10.1.0.0/16", "10.0.0.1"}, ExpiresAt: in(time.Minute)},
			Terms{Name: "CI", Permissions: key.Permissions{key.OrgsRead}, Reach: key.ReachSelf, AllowedCIDRs: []string{"10.0.0.1/32", "10.1.0.0/16"}, ExpiresAt: in(time.Minute), RateLimit: &key.RateLimit{Requests: 10, PeriodSeconds: 60}}},
		{"a time is cut to microseconds", Operator(), Request{Name: "CI", ExpiresAt: in(time.Hour + 1)},
			Terms{Name: "CI", Permissions: read, Reach: key.ReachSubtree, AllowedCIDRs: []string{}, ExpiresAt: in(time.Hour)}},
		{"256 characters of any script", Operator(), Request{Name: strings.Repeat("名", 256)},
			Terms{Name: strings.Repeat("名", 256), Permissions: read, Reach: key.ReachSubtree, AllowedCIDRs: []string{}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := TermsFor(tt.creator, "a/", tt.req, grantNow)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(&tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestGrantRefuses(t *testing.T) {
	unlimited := limitedActor()
	g := &unlimited.Grants[0]
	g.Reach, g.Addresses, g.Until = key.ReachSubtree, nil, nil
	for _, tt := range []struct {
		name     string
		creator  *Actor
		req      Request
		code     problem.Code
		pointers []string
	}{
		{"more permissions", unlimited, Request{Permissions: []string{key.OrgsRead, key.OrgsWrite}}, problem.PermissionDenied, []string{"/permissions"}},
		{"a product's permission that the creator lacks", unlimited, Request{Permissions: []string{"app:x"}}, problem.PermissionDenied, []string{"/permissions"}},
		{"a wider reach", limitedActor(), Request{Reach: key.ReachSubtree}, problem.PermissionDenied, []string{"/reach"}},
		{"more addresses", limitedActor(), Request{AllowedCIDRs: []string{"10.0.0.0/7"}}, problem.PermissionDenied, []string{"/allowed_cidrs"}},
		{"every address", limitedActor(), Request{AllowedCIDRs: []string{}}, problem.PermissionDenied, []string{"/allowed_cidrs"}},
		{"a longer life", limitedActor(), Request{ExpiresAt: in(time.Hour + time.Microsecond)}, problem.PermissionDenied, []string{"/expires_at"}},
		{"everything at once", limitedActor(),
			Request{Permissions: []string{"admin"}, Reach: key.ReachSubtree, AllowedCIDRs: []string{"::/0"}, ExpiresAt: in(9 * time.Hour)},
			problem.PermissionDenied, []string{"/permissions", "/reach", "/allowed_cidrs", "/expires_at"}},

		{"a blank name", Operator(), Request{Name: " \t"}, problem.InvalidBody, []string{"/name"}},
		{"a long name", Operator(), Request{Name: strings.Repeat("n", 257)}, problem.InvalidBody, []string{"/name"}},
		{"a control character in the name", Operator(), Request{Name: "a\x00b"}, problem.InvalidBody, []string{"/name"}},
		{"a name that is not UTF-8", Operator(), Request{Name: "a\xff"}, problem.InvalidBody, []string{"/name"}},
		{"no permissions", Operator(), Request{Permissions: []string{}}, problem.InvalidBody, []string{"/permissions"}},
		{"an unknown permission", Operator(), Request{Permissions: []string{"everything"}}, problem.InvalidBody, []string{"/permissions/0"}},
		{"an unknown reach", Operator(), Request{Reach: "global"}, problem.InvalidBody, []string{"/reach"}},
		{"a bad range", Operator(), Request{AllowedCIDRs: []string{"home"}}, problem.InvalidBody, []string{"/allowed_cidrs/0"}},
		{"an expiry now", Operator(), Request{ExpiresAt: in(0)}, problem.InvalidBody, []string{"/expires_at"}},
		{"an expiry that is now after it is cut", Operator(), Request{ExpiresAt: in(999)}, problem.InvalidBody, []string{"/expires_at"}},
		{"an expiry in five figures", Operator(), Request{ExpiresAt: new(time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("", -2*60*60)))}, problem.InvalidBody, []string{"/expires_at"}},
		{"no requests", Operator(), Request{RateLimit: &key.RateLimit{Requests: 0, PeriodSeconds: 1}}, problem.InvalidBody, []string{"/rate_limit/requests"}},
		{"too many requests", Operator(), Request{RateLimit: &key.RateLimit{Requests: 1_000_001, PeriodSeconds: 1}}, problem.InvalidBody, []string{"/rate_limit/requests"}},
		{"no period", Operator(), Request{RateLimit: &key.RateLimit{Requests: 1, PeriodSeconds: 0}}, problem.InvalidBody, []string{"/rate_limit/period_seconds"}},
		{"too long a period", Operator(), Request{RateLimit: &key.RateLimit{Requests: 1, PeriodSeconds: 86401}}, problem.InvalidBody, []string{"/rate_limit/period_seconds"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.req.Name == "" {
				tt.req.Name = "CI"
			}
			_, err := TermsFor(tt.creator, "a/", tt.req, grantNow)
			if err == nil {
				t.Fatal("granted")
			}
			var pointers []string
			for _, f := range err.Fields {
				pointers = append(pointers, f.Pointer)
			}
			if err.Code != tt.code || !slices.Equal(pointers, tt.pointers) {
				t.Errorf("%v at %q, want %s at %q", err, pointers, tt.code, tt.pointers)
			}
		})
	}
}

// However often keys create keys, none exceeds the first.
func TestGrantNeverEscalates(t *testing.T) {
	cidrs := []string{"0.0.0.0/0", "::/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "2001:db8::/32"}
	names := append(key.AllPermissions(), "read", "write", "admin", "app:a", "app:b")
	request := rapid.Custom(func(t *rapid.T) Request {
		req := Request{Name: "key", Reach: rapid.SampledFrom([]key.Reach{"", key.ReachSelf, key.ReachSubtree}).Draw(t, "reach")}
		if rapid.Bool().Draw(t, "with permissions") {
			req.Permissions = rapid.SliceOfN(rapid.SampledFrom(names), 1, 5).Draw(t, "permissions")
		}
		if rapid.Bool().Draw(t, "with ranges") {
			req.AllowedCIDRs = rapid.SliceOfN(rapid.SampledFrom(cidrs), 0, 3).Draw(t, "ranges")
		}
		if rapid.Bool().Draw(t, "with expiry") {
			req.ExpiresAt = in(time.Duration(rapid.IntRange(1, 100).Draw(t, "expiry in hours")) * time.Hour)
		}
		return req
	})
	addresses := []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.1.9.9"), netip.MustParseAddr("10.9.9.9"),
		netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("::1")}
	rapid.Check(t, func(t *rapid.T) {
		creator := Operator()
		for range 4 {
			terms, err := TermsFor(creator, "a/", request.Draw(t, "request"), grantNow)
			if err != nil {
				if err.Code != problem.PermissionDenied || creator.Everywhere() {
					t.Fatal(err)
				}
				continue
			}
			made, bad := ForKey(&key.Key{ID: "key_1", Permissions: terms.Permissions, Reach: terms.Reach, AllowedCIDRs: terms.AllowedCIDRs, ExpiresAt: terms.ExpiresAt}, "a/", "")
			if bad != nil {
				t.Fatal(bad)
			}
			if !creator.Everywhere() {
				got, had := made.Grants[0], creator.Grants[0]
				if missing := got.Permissions.SubsetOf(had.Permissions); missing != nil {
					t.Errorf("gained the permissions %v", missing)
				}
				if got.Reach == key.ReachSubtree && had.Reach == key.ReachSelf {
					t.Error("gained reach")
				}
				for _, ip := range addresses {
					if Contains(got.Addresses, ip) && !Contains(had.Addresses, ip) {
						t.Errorf("gained the address %s", ip)
					}
				}
				if had.Until != nil && (got.Until == nil || got.Until.After(*had.Until)) {
					t.Error("gained life")
				}
			}
			creator = made
		}
	})
}
