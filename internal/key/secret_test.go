package key

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"strings"
	"testing"

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
	} {
		if got := Redact(tt.in); got != tt.want {
			t.Errorf("Redact(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func BenchmarkParseToken(b *testing.B) {
	token, _, _ := NewSecret(rand.Reader, ident.New("key_"))
	b.ReportAllocs()
	for b.Loop() {
		ParseToken(token)
	}
}
