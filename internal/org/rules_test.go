package org

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestCheckID(t *testing.T) {
	for id, ok := range map[string]bool{
		"org-123": true, "0": true, strings.Repeat("a", 64): true, "a.b_c-D": true,
		"": false, strings.Repeat("a", 65): false, "../x": false, ".": false, "a/b": false, "a%2Fb": false,
		"a\x00": false, "-a": false, "é": false,
	} {
		if err := CheckID("/id", id); (err == nil) != ok {
			t.Errorf("CheckID(%q) = %v, want ok %v", id, err, ok)
		}
	}
}

func TestCheckType(t *testing.T) {
	for typ, ok := range map[string]bool{"organization": true, "group": true, "user": true, "": false, "User": false, "team": false} {
		if _, err := CheckType("/type", typ); (err == nil) != ok {
			t.Errorf("CheckType(%q) = %v, want ok %v", typ, err, ok)
		}
	}
}

func TestCheckDescription(t *testing.T) {
	for _, tt := range []struct {
		in string
		ok bool
	}{
		{"", true}, {"two\nlines\tand a tab ", true}, {strings.Repeat("ü", 4096), true},
		{strings.Repeat("ü", 4097), false}, {"a\x00", false}, {"a\rb", false}, {"a\r\nb\r\n", true}, {"\x1b[31m", false}, {"\xff", false},
	} {
		got, err := CheckDescription("/description", tt.in)
		if (err == nil) != tt.ok || err == nil && got != tt.in {
			t.Errorf("CheckDescription(%.20q) = %.20q, %v; want it unchanged, ok %v", tt.in, got, err, tt.ok)
		}
	}
}

func TestCheckExternalID(t *testing.T) {
	for _, tt := range []struct {
		in string
		ok bool
	}{
		{"", true}, {"crm/42 Ä", true}, {strings.Repeat("x", 255), true},
		{strings.Repeat("x", 256), false}, {"a\tb", false}, {"a\u200bb", false}, {"\xff", false},
	} {
		got, err := CheckExternalID("/external_id", tt.in)
		if (err == nil) != tt.ok || err == nil && got != tt.in {
			t.Errorf("CheckExternalID(%.20q) = %.20q, %v; want it unchanged, ok %v", tt.in, got, err, tt.ok)
		}
	}
}

func TestCheckTags(t *testing.T) {
	in := []string{"b", "a:1", "b", "A.x_y-z"}
	got, err := CheckTags("/tags", in)
	if err != nil || !slices.Equal(got, []string{"A.x_y-z", "a:1", "b"}) {
		t.Errorf("CheckTags = %v, %v; want sorted without repeats", got, err)
	}
	if !slices.Equal(in, []string{"b", "a:1", "b", "A.x_y-z"}) {
		t.Errorf("CheckTags altered its argument: %v", in)
	}
	for _, bad := range []string{"", ":a", "-a", "a b", "a/b", "é", strings.Repeat("a", 65)} {
		if CheckTag(bad) == nil {
			t.Errorf("CheckTag accepts %q", bad)
		}
		if _, err := CheckTags("/tags", []string{"ok", bad}); err == nil || err.Fields[0].Pointer != "/tags/1" {
			t.Errorf("CheckTags with %q = %v, want an error at /tags/1", bad, err)
		}
	}
	if err := CheckTag(strings.Repeat("a", 64)); err != nil {
		t.Errorf("CheckTag refuses 64 characters: %v", err)
	}
	many := make([]string, 0, 102)
	for i := range 51 {
		many = append(many, "t"+strings.Repeat("x", i))
	}
	if _, err := CheckTags("/tags", many); err == nil {
		t.Error("CheckTags accepts 51 tags")
	}
	if got, err := CheckTags("/tags", append(many[:50], many[:50]...)); err != nil || len(got) != 50 {
		t.Errorf("CheckTags of 50 tags, each twice = %d tags, %v; want 50", len(got), err)
	}
}

func TestFoldName(t *testing.T) {
	for _, same := range [][]string{
		{"Acme", "ACME", "acme"},
		{"Straße", "STRAẞE"},
		{"ΣΊΣΥΦΟΣ", "σίσυφος"},
		{"\u212aelvin", "kelvin", "KELVIN"},
		{"ÉCOLE", "école"},
	} {
		for _, s := range same[1:] {
			if FoldName(s) != FoldName(same[0]) {
				t.Errorf("FoldName(%q) = %q, but FoldName(%q) = %q", s, FoldName(s), same[0], FoldName(same[0]))
			}
		}
	}
	if FoldName("Acme") == FoldName("Acmé") {
		t.Error("FoldName does not tell e from é")
	}
}

// A prefix of a name, cut between characters, folds to a prefix of the fold.
func TestFoldNameKeepsPrefixes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := []rune(rapid.StringN(0, 200, -1).Draw(t, "name"))
		prefix := name[:rapid.IntRange(0, len(name)).Draw(t, "cut")]
		folded := FoldName(string(name))
		if !strings.HasPrefix(folded, FoldName(string(prefix))) {
			t.Fatalf("FoldName(%q) is no prefix of %q", string(prefix), folded)
		}
		if FoldName(folded) != folded {
			t.Fatalf("FoldName is not idempotent on %q", string(name))
		}
		if utf8.RuneCountInString(folded) > MaxFoldLen {
			t.Fatalf("FoldName(%q) is longer than %d characters", string(name), MaxFoldLen)
		}
	})
}
