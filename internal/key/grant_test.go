package key

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/problem"
)

var grantNow = time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)

func in(d time.Duration) *time.Time {
	at := grantNow.Add(d)
	return &at
}

func limitedActor() *Actor {
	return &Actor{Kind: KindKey, ID: "key_1", OrgID: "a", RootID: "a", Path: "a/", Permissions: Permissions{KeysWrite, OrgsRead},
		Reach: ReachSelf, CIDRs: prefixes("10.0.0.0/8"), ExpiresAt: in(time.Hour), RateLimit: &RateLimit{10, 60}}
}

func TestGrant(t *testing.T) {
	read, _ := ParsePermissions("", []string{"read"})
	far := in(1000 * time.Hour)
	for _, tt := range []struct {
		name    string
		creator *Actor
		req     Request
		want    Terms
	}{
		{"the operator's defaults are safe ones", Operator(), Request{Name: " CI "},
			Terms{Name: "CI", Permissions: read, Reach: ReachSubtree, AllowedCIDRs: []string{}}},
		{"the operator may grant anything", Operator(),
			Request{Name: "CI", Permissions: []string{"admin"}, Reach: ReachSelf, AllowedCIDRs: []string{"10.1.1.1"}, ExpiresAt: far, RateLimit: &RateLimit{1_000_000, 86400}},
			Terms{Name: "CI", Permissions: AllPermissions(), Reach: ReachSelf, AllowedCIDRs: []string{"10.1.1.1/32"}, ExpiresAt: far, RateLimit: &RateLimit{1_000_000, 86400}}},
		{"what a key leaves out is its own", limitedActor(), Request{Name: "CI"},
			Terms{Name: "CI", Permissions: Permissions{KeysWrite, OrgsRead}, Reach: ReachSelf, AllowedCIDRs: []string{"10.0.0.0/8"}, ExpiresAt: in(time.Hour), RateLimit: &RateLimit{10, 60}}},
		{"a key may grant less", limitedActor(),
			Request{Name: "CI", Permissions: []string{OrgsRead}, Reach: ReachSelf, AllowedCIDRs: []string{"10.1.0.0/16", "10.0.0.1"}, ExpiresAt: in(time.Minute)},
			Terms{Name: "CI", Permissions: Permissions{OrgsRead}, Reach: ReachSelf, AllowedCIDRs: []string{"10.0.0.1/32", "10.1.0.0/16"}, ExpiresAt: in(time.Minute), RateLimit: &RateLimit{10, 60}}},
		{"a time is cut to microseconds", Operator(), Request{Name: "CI", ExpiresAt: in(time.Hour + 1)},
			Terms{Name: "CI", Permissions: read, Reach: ReachSubtree, AllowedCIDRs: []string{}, ExpiresAt: in(time.Hour)}},
		{"256 characters of any script", Operator(), Request{Name: strings.Repeat("名", 256)},
			Terms{Name: strings.Repeat("名", 256), Permissions: read, Reach: ReachSubtree, AllowedCIDRs: []string{}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Grant(tt.creator, tt.req, grantNow)
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
	unlimited.Reach, unlimited.CIDRs, unlimited.ExpiresAt = ReachSubtree, nil, nil
	for _, tt := range []struct {
		name     string
		creator  *Actor
		req      Request
		code     problem.Code
		pointers []string
	}{
		{"more permissions", unlimited, Request{Permissions: []string{OrgsRead, OrgsWrite}}, problem.PermissionDenied, []string{"/permissions"}},
		{"a product's permission that the creator lacks", unlimited, Request{Permissions: []string{"app:x"}}, problem.PermissionDenied, []string{"/permissions"}},
		{"a wider reach", limitedActor(), Request{Reach: ReachSubtree}, problem.PermissionDenied, []string{"/reach"}},
		{"more addresses", limitedActor(), Request{AllowedCIDRs: []string{"10.0.0.0/7"}}, problem.PermissionDenied, []string{"/allowed_cidrs"}},
		{"every address", limitedActor(), Request{AllowedCIDRs: []string{}}, problem.PermissionDenied, []string{"/allowed_cidrs"}},
		{"a longer life", limitedActor(), Request{ExpiresAt: in(time.Hour + time.Microsecond)}, problem.PermissionDenied, []string{"/expires_at"}},
		{"everything at once", limitedActor(),
			Request{Permissions: []string{"admin"}, Reach: ReachSubtree, AllowedCIDRs: []string{"::/0"}, ExpiresAt: in(9 * time.Hour)},
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
		{"no requests", Operator(), Request{RateLimit: &RateLimit{0, 1}}, problem.InvalidBody, []string{"/rate_limit/requests"}},
		{"too many requests", Operator(), Request{RateLimit: &RateLimit{1_000_001, 1}}, problem.InvalidBody, []string{"/rate_limit/requests"}},
		{"no period", Operator(), Request{RateLimit: &RateLimit{1, 0}}, problem.InvalidBody, []string{"/rate_limit/period_seconds"}},
		{"too long a period", Operator(), Request{RateLimit: &RateLimit{1, 86401}}, problem.InvalidBody, []string{"/rate_limit/period_seconds"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.req.Name == "" {
				tt.req.Name = "CI"
			}
			_, err := Grant(tt.creator, tt.req, grantNow)
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
	names := append(AllPermissions(), "read", "write", "admin", "app:a", "app:b")
	request := rapid.Custom(func(t *rapid.T) Request {
		req := Request{Name: "key", Reach: rapid.SampledFrom([]Reach{"", ReachSelf, ReachSubtree}).Draw(t, "reach")}
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
			terms, err := Grant(creator, request.Draw(t, "request"), grantNow)
			if err != nil {
				if err.Code != problem.PermissionDenied || creator.Spans() {
					t.Fatal(err)
				}
				continue
			}
			made, bad := NewActor(&Key{ID: "key_1", Permissions: terms.Permissions, Reach: terms.Reach, AllowedCIDRs: terms.AllowedCIDRs, ExpiresAt: terms.ExpiresAt}, "a/", "")
			if bad != nil {
				t.Fatal(bad)
			}
			if !creator.Spans() {
				if missing := made.Permissions.SubsetOf(creator.Permissions); missing != nil {
					t.Errorf("gained the permissions %v", missing)
				}
				if made.Reach == ReachSubtree && creator.Reach == ReachSelf {
					t.Error("gained reach")
				}
				for _, ip := range addresses {
					if Contains(made.CIDRs, ip) && !Contains(creator.CIDRs, ip) {
						t.Errorf("gained the address %s", ip)
					}
				}
				if creator.ExpiresAt != nil && (made.ExpiresAt == nil || made.ExpiresAt.After(*creator.ExpiresAt)) {
					t.Error("gained life")
				}
			}
			creator = made
		}
	})
}

func TestCheckName(t *testing.T) {
	for _, tt := range []struct {
		in, want string
		ok       bool
	}{
		{"Acme", "Acme", true},
		{" \t\u00a0Acme Inc.\u2003\n", "Acme Inc.", true},
		{"株式会社アクメ", "株式会社アクメ", true},
		{"שלום \u200fAcme", "שלום \u200fAcme", true},
		{strings.Repeat("é", 256), strings.Repeat("é", 256), true},
		{strings.Repeat("é", 257), "", false},
		{"", "", false},
		{" \u3000 ", "", false},
		{"\u200b", "", false},
		{"\ufeff\u00ad", "", false},
		{"🙂", "🙂", true},
		{"42", "42", true},
		{"a\x00b", "", false},
		{"a\nb", "", false},
		{"a\u0085b", "", false},
		{"a\u2028b", "", false},
		{"a\u2029b", "", false},
		{"abc\u202egnp.exe", "", false},
		{"a\u2066b", "", false},
		{"a\xffb", "", false},

		// Nothing of these can be seen.
		{"\u3164", "", false},
		{"\u2800", "", false},
		{"\u115f\u1160", "", false},
		{"\uffa0", "", false},
		{"\u00ad", "", false},
		{"\u034f", "", false},
		{"\ufe0f", "", false},
		{"\u180b", "", false},
		{"\U000e0100", "", false},
		{"\U000e0041\U000e0042", "", false},
		{"\u2063\u2064", "", false},
		{"\u17b4\u17b5", "", false},
		{"\ufffc", "", false},
		{"\U00013441", "", false},
		{"\U0001d159", "", false},
		{"\u3164 \u2800\u00ad", "", false},

		// Nobody sees these in a name, which looks like another.
		{"Ac\u3164me", "", false},
		{"Acme\u3164", "", false},
		{"Ac\u2800me", "", false},
		{"\ufeffAcme", "", false},
		{"Ac\ufeffme", "", false},
		{"Ac\u00adme", "", false},
		{"Ac\u200bme", "", false},
		{"Ac\u2060me", "", false},
		{"Ac\u034fme", "", false},
		{"Ac\u200dme", "", false},
		{"Ac\u200cme", "", false},
		{"А\u200dкме", "", false},
		{"株\u200c式", "", false},
		{"\u200dAcme", "", false},
		{"Acme\U000e0001\U000e0065\U000e006e", "", false},
		{"Acme \U0001f3f4\U000e0068\U000e0069\U000e0064\U000e0065\U000e007f", "", false},
		{"Acme \U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067", "", false},
		{"Acme\ufe0f\ufe0e\ufe0f", "", false},
		{"Acme \ufe0f", "", false},
		{"Acme\ufe0f", "", false},
		{"Acme 1\ufe0f", "", false},
		{"‼\ufe0f ℹ\ufe0f ©\ufe0f", "‼\ufe0f ℹ\ufe0f ©\ufe0f", true},
		{"Acme\u200e", "", false},
		{"Ac\u200fme", "", false},
		{"Ac\u061cme", "", false},
		{"של\u202eום", "", false},
		{"Acme\ufff9x", "", false},
		{"Acme\U0001bca0", "", false},
		{"Acme\U000e0180", "", false},
		{"नमस्\u200d\u200d\u200dते", "", false},
		{"🙂\u200d", "", false},
		{"orgd_01h2x_07ELSZgnu18FMTahov29GNUbipw3AHOV2E4DrO", "", false},
		{"CI of https://ann:s3cret@git.example", "", false},

		// Names as people write them.
		{"می\u200cخواهم", "می\u200cخواهم", true},         // Persian
		{"شرکت خانه\u200cها", "شرکت خانه\u200cها", true}, // Persian
		{"क्\u200dष", "क्\u200dष", true},                 // Devanagari
		{"ಕ್\u200cಷ", "ಕ್\u200cಷ", true},                 // Kannada
		{"ශ්\u200dරී ලංකා", "ශ්\u200dරී ලංකා", true},     // Sinhala
		{"അവന്\u200d", "അവന്\u200d", true},               // Malayalam, at the end of a word
		{"র\u200d্যাব", "র\u200d্যাব", true},             // Bengali
		{"שָׁ\u034fּ", "שָׁ\u034fּ", true},               // Hebrew
		{"ᠰᠠᠶᠢᠨ ᠴᠠᠭ\u180eᠠ", "ᠰᠠᠶᠢᠨ ᠴᠠᠭ\u180eᠠ", true},   // Mongolian
		{"ᠡᠷᠡ\u180bᠭ", "ᠡᠷᠡ\u180bᠭ", true},               // Mongolian, a variant
		{"ភាសា\u200bខ្មែរ", "ភាសា\u200bខ្មែរ", true},     // Khmer
		{"葛\U000e0100城市", "葛\U000e0100城市", true},         // Japanese, a variant
		{"ⵣ Amaziɣ", "ⵣ Amaziɣ", true},
		{"Ἀκαδημία", "Ἀκαδημία", true},
		{"الشركة \u200e(ACME)\u200e", "الشركة \u200e(ACME)\u200e", true}, // Arabic with Latin
		{"عربي \u061cACME", "عربي \u061cACME", true},
		{"۞\u0600١٢", "۞\u0600١٢", true}, // a number sign, which is drawn
		{"⠁⠉⠍⠑\u2800⠊⠝⠉", "⠁⠉⠍⠑\u2800⠊⠝⠉", true},
		{"👩\u200d💻 Tools", "👩\u200d💻 Tools", true},
		{"👩🏽\u200d💻", "👩🏽\u200d💻", true},
		{"🏳\ufe0f\u200d🌈", "🏳\ufe0f\u200d🌈", true},
		{"👩\u200d❤\ufe0f\u200d👨", "👩\u200d❤\ufe0f\u200d👨", true},
		{"1\ufe0f\u20e3 Team", "1\ufe0f\u20e3 Team", true},
		{"🇩🇪 GmbH", "🇩🇪 GmbH", true},
		{"🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f FA", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f FA", true},
		{"🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", true},
		{"🏴 Pirates", "🏴 Pirates", true},
	} {
		got, err := CheckName("/name", tt.in)
		if (err == nil) != tt.ok || got != tt.want {
			t.Errorf("CheckName(%q) = %q, %v; want %q, ok %v", tt.in, got, err, tt.want, tt.ok)
		}
		if err != nil && (len(err.Fields) != 1 || err.Fields[0].Pointer != "/name") {
			t.Errorf("CheckName(%q) blames %v, want /name", tt.in, err.Fields)
		}
	}
	for _, tt := range []struct{ name, what string }{
		{"Ac\ufeffme", "U+FEFF at character 3"}, {"a\u202eb", "U+202E at character 2"}, {"Acme\U000e0041", "U+E0041 at character 5"},
	} {
		if _, err := CheckName("/name", tt.name); err == nil || !strings.Contains(err.Fields[0].Detail, tt.what) {
			t.Errorf("CheckName(%q) = %v, want one that names %s", tt.name, err, tt.what)
		}
	}
}
