package seal_test

import (
	"bytes"
	"testing"

	"github.com/orgd/orgd/internal/seal"
)

func sealer(t *testing.T, purpose seal.Purpose, secret, salt string) *seal.Sealer {
	t.Helper()
	s, err := seal.New(purpose, []byte(secret), []byte(salt))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSealedTextsOpenOnlyForWhatTheyWereSealed(t *testing.T) {
	text, scope := []byte(`["acme/prod/"]`), []byte("/orgs/acme")
	s := sealer(t, seal.Cursors, "secret", "salt")
	sealed := s.Seal(text, scope)
	if bytes.Contains(sealed, []byte("prod")) {
		t.Error("the text can be read")
	}
	if bytes.Equal(sealed, s.Seal(text, scope)) {
		t.Error("the same text is sealed the same twice")
	}
	if got, err := s.Open(sealed, scope); err != nil || !bytes.Equal(got, text) {
		t.Errorf("opened: %q, %v", got, err)
	}
	for name, other := range map[string]*seal.Sealer{
		"purpose": sealer(t, seal.Answers, "secret", "salt"),
		"secret":  sealer(t, seal.Cursors, "another", "salt"),
		"salt":    sealer(t, seal.Cursors, "secret", "another"),
	} {
		if got, err := other.Open(sealed, scope); err != seal.ErrForeign || got != nil {
			t.Errorf("another %s opens it: %q, %v", name, got, err)
		}
	}
	if _, err := s.Open(sealed, []byte("/orgs/other")); err != seal.ErrForeign {
		t.Errorf("another scope opens it: %v", err)
	}
	for i := range sealed {
		altered := bytes.Clone(sealed)
		altered[i] ^= 1
		if _, err := s.Open(altered, scope); err != seal.ErrForeign {
			t.Errorf("with byte %d altered: %v", i, err)
		}
	}
	for n := range len(sealed) {
		want := seal.ErrForeign
		if n < 12 {
			want = seal.ErrShort
		}
		if _, err := s.Open(sealed[:n], scope); err != want {
			t.Errorf("the first %d bytes: %v", n, err)
		}
	}
}
