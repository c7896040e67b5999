package key

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/problem"
)

func TestParsePermissions(t *testing.T) {
	read := Permissions{AccessLogRead, AuditRead, ConsumptionRead, CustomizationsRead, KeysRead, OrgsRead}
	for _, tt := range []struct {
		name string
		in   []string
		want Permissions
	}{
		{"one", []string{OrgsRead}, Permissions{OrgsRead}},
		{"sorted, without repeats", []string{TagsWrite, AuditRead, TagsWrite}, Permissions{AuditRead, TagsWrite}},
		{"the bundle read", []string{"read"}, read},
		{"a bundle and what is in it", []string{OrgsRead, "read"}, read},
		{"the bundle write neither deletes organizations nor verifies keys", []string{"write"}, Permissions{
			AccessLogRead, AccessLogWrite, AuditRead, ConsumptionRead, ConsumptionWrite, CustomizationsRead, CustomizationsWrite,
			KeysRead, KeysWrite, OrgsRead, OrgsWrite, TagsWrite}},
		{"the bundle admin", []string{"admin"}, AllPermissions()},
		{"a product's own", []string{"app:invoices.approve", OrgsRead}, Permissions{"app:invoices.approve", OrgsRead}},
		{"the longest of a product's own", []string{"app:" + strings.Repeat("x", 128)}, Permissions{"app:" + strings.Repeat("x", 128)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParsePermissions("/permissions", tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestParsePermissionsRefuses(t *testing.T) {
	for _, tt := range []struct {
		name     string
		in       []string
		pointers []string
	}{
		{"none", []string{}, []string{"/permissions"}},
		{"each one that is unknown", []string{"orgs:erase", OrgsRead, "Read"}, []string{"/permissions/0", "/permissions/2"}},
		{"an empty name", []string{""}, []string{"/permissions/0"}},
		{"app: alone", []string{"app:"}, []string{"/permissions/0"}},
		{"too long", []string{"app:" + strings.Repeat("x", 129)}, []string{"/permissions/0"}},
		{"space", []string{"app:a b"}, []string{"/permissions/0"}},
		{"comma", []string{"app:a,b"}, []string{"/permissions/0"}},
		{"not ASCII", []string{"app:é"}, []string{"/permissions/0"}},
		{"more than 100", slices.Repeat([]string{OrgsRead}, 101), []string{"/permissions"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParsePermissions("/permissions", tt.in)
			if err == nil {
				t.Fatal("accepted")
			}
			var pointers []string
			for _, f := range err.Fields {
				pointers = append(pointers, f.Pointer)
			}
			if err.Code != problem.InvalidBody || !slices.Equal(pointers, tt.pointers) {
				t.Errorf("%s at %q, want invalid_body at %q", err.Code, pointers, tt.pointers)
			}
		})
	}
	if _, err := ParsePermissions("/permissions", []string{"orgs:erase"}); !strings.Contains(err.Fix, OrgsDelete) {
		t.Errorf("the fix does not list what is allowed: %s", err.Fix)
	}
}

func TestEveryPermissionIsInAdminAndSorted(t *testing.T) {
	if !slices.IsSorted(all) {
		t.Errorf("Has needs sorted permissions: %v", all)
	}
	for _, b := range bundles {
		if missing := b.SubsetOf(AllPermissions()); missing != nil {
			t.Errorf("a bundle holds unknown permissions: %v", missing)
		}
	}
}

func permissions(t *rapid.T, label string) Permissions {
	names := rapid.SliceOfN(rapid.SampledFrom(append(AllPermissions(), "app:a", "app:b", "read", "write")), 1, 8).Draw(t, label)
	ps, err := ParsePermissions("/permissions", names)
	if err != nil {
		t.Fatal(err)
	}
	return ps
}

func TestSubsetOf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := permissions(t, "a"), permissions(t, "b")
		var want []string
		for _, p := range a {
			if !slices.Contains(b, p) {
				want = append(want, p)
			}
		}
		if d := cmp.Diff(want, a.SubsetOf(b)); d != "" {
			t.Error(d)
		}
	})
}
