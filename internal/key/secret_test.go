package key

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/ident"
)

func TestNewSecret(t *testing.T) {
	for _, id := range []string{ident.New("key_"), "operator"} {
		token, hash, hint := NewSecret(rand.Reader, id)
		if want := "orgd_" + strings.TrimPrefix(id, "key_") + "_"; !strings.HasPrefix(token, want) || len(token) != len(want)+38 {
			t.Errorf("token %s of %s has the wrong form", token, id)
		}
		keyID, got, ok := ParseToken(token)
		if !ok || keyID != id {
			t.Errorf("ParseToken = %q, %t; want %q", keyID, ok, id)
		}
		if sum := sha256.Sum256([]byte(token)); got != sum || !Match(hash, got) {
			t.Error("the hash is not the SHA-256 of the whole token")
		}
		if hint != token[len(token)-4:] {
			t.Errorf("hint %s of %s", hint, token)
		}
	}
}

// The tokens that are out there must stay valid.
func TestTokenFormatIsFixed(t *testing.T) {
	random := make([]byte, 32)
	for i := range random {
		random[i] = byte(i * 7)
	}
	const want = "orgd_01h2x_07ELSZgnu18FMTahov29GNUbipw3AHOV2E4DrO"
	token, _, _ := NewSecret(bytes.NewReader(random), "key_01h2x")
	if token != want {
		t.Errorf("token is %s, want %s", token, want)
	}
}

// Bytes of which base 62 characters cannot be made evenly are thrown away.
func TestNewSecretIsUnbiased(t *testing.T) {
	random := bytes.NewReader(append(bytes.Repeat([]byte{248, 255}, 16), make([]byte, 32)...))
	token, _, _ := NewSecret(random, "key_a")
	if got := token[len("orgd_a_") : len(token)-6]; got != strings.Repeat("0", 32) {
		t.Errorf("secret %s was made of bytes that do not fall evenly", got)
	}
}

func TestNewSecretPanicsWithoutRandomness(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a secret was made without random bits")
		}
	}()
	NewSecret(bytes.NewReader(nil), "key_a")
}

// One wrong character, wherever it is, is found without a look-up.
func TestParseTokenFindsTypos(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		token, _, _ := NewSecret(rand.Reader, ident.New("key_"))
		i := rapid.IntRange(0, len(token)-1).Draw(t, "position")
		c := rapid.Byte().Filter(func(c byte) bool { return c != token[i] }).Draw(t, "character")
		typo := token[:i] + string([]byte{c}) + token[i+1:]
		if _, _, ok := ParseToken(typo); ok {
			t.Errorf("%q passes as %q", typo, token)
		}
	})
}

func TestParseTokenRefusesOtherForms(t *testing.T) {
	token, _, _ := NewSecret(rand.Reader, "key_a")
	noID, _, _ := NewSecret(rand.Reader, "key_")
	longID, _, _ := NewSecret(rand.Reader, "key_"+strings.Repeat("a", 61))
	oddID, _, _ := NewSecret(rand.Reader, "key_a/b")
	for _, s := range []string{"", "orgd_", "orgd__", token[1:], token + "0", token[:len(token)-1], token + "\n", " " + token, noID, longID, oddID, strings.Repeat("a", 1<<20)} {
		if _, _, ok := ParseToken(s); ok {
			t.Errorf("%.80q passes", s)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	token, _, _ := NewSecret(rand.Reader, "key_a")
	f.Add(token)
	f.Add("orgd_operator_")
	f.Add("orgd_" + strings.Repeat("_", 40))
	f.Fuzz(func(t *testing.T, s string) {
		id, hash, ok := ParseToken(s)
		switch {
		case !ok && id != "":
			t.Errorf("%q: no token, but the id %q", s, id)
		case ok && hash != sha256.Sum256([]byte(s)):
			t.Errorf("%q: wrong hash", s)
		case ok && id != "operator" && !ident.Valid(id):
			t.Errorf("%q: the id %q is not one", s, id)
		case ok && strings.Contains(Redact(s), s):
			t.Errorf("%q is not redacted", s)
		}
	})
}

func TestMatch(t *testing.T) {
	hash := sha256.Sum256([]byte("a"))
	other := sha256.Sum256([]byte("b"))
	if !Match(hash[:], hash) {
		t.Error("a hash does not match itself")
	}
	for _, stored := range [][]byte{nil, {}, other[:], hash[:31]} {
		if Match(stored, hash) {
			t.Errorf("%x matches %x", stored, hash)
		}
	}
}

func TestRedact(t *testing.T) {
	token, _, hint := NewSecret(rand.Reader, "key_a")
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"orgd_requests_total{status=\"200\"}", "orgd_requests_total{status=\"200\"}"},
		{token, "orgd_…" + hint},
		{"Bearer " + token + ".", "Bearer orgd_…" + hint + "."},
		{"key=" + token + "&key=" + token, "key=orgd_…" + hint + "&key=orgd_…" + hint},
		{token[:len(token)-4], "orgd_…" + token[len(token)-8:len(token)-4]},

		// In percent-encoding, of whatever and however often.
		{"/x/" + strings.ReplaceAll(token, "_", "%5F") + "/y", "/x/orgd_…" + hint + "/y"},
		{"/x/" + strings.ReplaceAll(token, "_", "%5f"), "/x/orgd_…" + hint},
		{"/x/" + strings.ReplaceAll(token, "_", "%255F"), "/x/orgd_…" + hint},
		{"/x/" + strings.ReplaceAll(token, "_", "%25255f"), "/x/orgd_…" + hint},
		{"/x/" + strings.ReplaceAll(token, "_", "%%35f"), "/x/orgd_…" + hint},
		{"/x/%6Frgd_" + token[5:], "/x/orgd_…" + hint},
		{"/x/%6f%72%67%64%5f" + token[5:], "/x/orgd_…" + hint},
		{"/x/" + percent(token, 1) + "?q=%2F", "/x/orgd_…" + hint + "?q=%2F"},
		{"/x/" + percent(token, 3), "/x/orgd_…" + hint},
		{"/x/" + token[:len(token)-10] + percent(token[len(token)-10:], 1), "/x/orgd_…" + hint},
		{percent(token, 1) + "&" + token, "orgd_…" + hint + "&orgd_…" + hint},
		{"%5", "%5"}, {"100%", "100%"}, {"%zz/%5F/%", "%zz/%5F/%"}, {"/a%20b%2Fc", "/a%20b%2Fc"},

		// What stands before the host of a URL.
		{"https://ann:s3cret@example.com/x", "https://…@example.com/x"},
		{"postgres://orgd:p%40ss@db:5432/orgd?sslmode=disable", "postgres://…@db:5432/orgd?sslmode=disable"},
		{"https://ghp_0123456789@github.com/x.git", "https://…@github.com/x.git"},
		{"/proxy/https://ann:s3cret@example.com/x", "/proxy/https://…@example.com/x"},
		{"/proxy/https:/ann:s3cret@example.com/x", "/proxy/https:/…@example.com/x"},
		{"//ann:s3cret@example.com/x", "//…@example.com/x"},
		{"https://ann:p@ss@example.com", "https://…@example.com"},
		{"Mozilla/5.0 (+https://ann:s3cret@example.com/bot)", "Mozilla/5.0 (+https://…@example.com/bot)"},
		{"/go?to=https%3A%2F%2Fann%3As3cret%40example.com%2Fx&a=b", "/go?to=https%3A%2F%2F…%40example.com%2Fx&a=b"},
		{"/go?to=https%3A%2F%2Fann%3As3%252Fcret%40example.com", "/go?to=https%3A%2F%2F…%40example.com"},
		{"/go?to=https%253A%252F%252Fann%253As3cret%2540example.com", "/go?to=https%253A%252F%252F…%2540example.com"},
		{"ftp://a:b@x ftp://c:d@y", "ftp://…@x ftp://…@y"},
		{"https://" + token + "@example.com/" + token, "https://…@example.com/orgd_…" + hint},
		{"https://" + token + ":x@example.com", "https://…@example.com"},

		// No secrets.
		{"https://example.com/@ann", "https://example.com/@ann"},
		{"https://example.com/?q=ann@example.com", "https://example.com/?q=ann@example.com"},
		{"ann@example.com", "ann@example.com"},
		{"mailto:ann@example.com", "mailto:ann@example.com"},
		{"/npm/@scope/pkg", "/npm/@scope/pkg"},
		{"//cdn/@scope/pkg", "//cdn/@scope/pkg"},
		{"https://@example.com", "https://@example.com"},
		{"Mozilla/5.0 (ann@example.com)", "Mozilla/5.0 (ann@example.com)"},
	} {
		if got := Redact(tt.in); got != tt.want {
			t.Errorf("Redact(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

// percent encodes every byte of s, n times.
func percent(s string, n int) string {
	for range n {
		var b strings.Builder
		for i := range len(s) {
			fmt.Fprintf(&b, "%%%02X", s[i])
		}
		s = b.String()
	}
	return s
}

// However a token is encoded, nothing is left of its secret but the hint, and
// the rest of the text stays.
func TestRedactFindsEveryEncoding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		token, _, hint := NewSecret(rand.Reader, ident.New("key_"))
		var b strings.Builder
		for i := range len(token) {
			b.WriteString(percent(token[i:i+1], rapid.IntRange(0, 3).Draw(t, "times")))
		}
		before := rapid.StringMatching(`/[a-z%0-9]{0,9}/`).Draw(t, "before")
		if got, want := Redact(before+b.String()+"/after"), before+"orgd_…"+hint+"/after"; got != want {
			t.Fatalf("Redact(%q) = %q, want %q", before+b.String()+"/after", got, want)
		}
	})
}

// What a caller sends takes time that grows with its length only.
func TestRedactIsQuick(t *testing.T) {
	const n = 1 << 16
	for name, s := range map[string]string{
		"escapes of escapes":  "%" + strings.Repeat("25", n/2),
		"half escapes":        strings.Repeat("%2", n/2),
		"slashes":             strings.Repeat("/", n) + "@",
		"schemes":             strings.Repeat("a://", n/4) + "@",
		"encoded slashes":     "//" + strings.Repeat("%2F", n/3) + "@",
		"no end of a URL":     strings.Repeat("a:b@", n/4) + "//" + strings.Repeat("a:b@", n/4),
		"prefixes of a token": strings.Repeat("orgd_", n/5),
	} {
		start := time.Now()
		for range 10 {
			Redact(s)
		}
		if took := time.Since(start) / 10; took > 200*time.Millisecond {
			t.Errorf("%s: %v for %d bytes", name, took, len(s))
		}
	}
}

func BenchmarkRedact(b *testing.B) {
	for _, path := range []string{"/orgs/kubernetes/children", "/orgs/kubernetes/children?cursor=a%3Db"} {
		b.Run(path, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Redact(path)
			}
		})
	}
}

func BenchmarkParseToken(b *testing.B) {
	token, _, _ := NewSecret(rand.Reader, ident.New("key_"))
	b.ReportAllocs()
	for b.Loop() {
		ParseToken(token)
	}
}
