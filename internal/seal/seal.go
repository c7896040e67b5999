// Package seal makes texts that only their maker can read, and that nobody can
// alter: what a server hands out and takes back, or keeps where others can read it.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
)

// Purpose is what texts are sealed for. What was sealed for one purpose cannot be
// opened for another, also with the same secret. Texts of earlier versions are still
// out there, so a Purpose never changes.
type Purpose string

const (
	Cursors Purpose = "orgd cursor v1"      // positions in lists and streams
	Answers Purpose = "orgd idempotency v1" // answers that are kept for an Idempotency-Key
)

// Sealer seals and opens texts with one key. It is safe for concurrent use.
type Sealer struct{ aead cipher.AEAD }

// New returns a Sealer whose key is derived from a secret. The salt, which need not
// be secret and may be nil, gives the same secret another key.
func New(purpose Purpose, secret, salt []byte) (*Sealer, error) {
	k, err := hkdf.Key(sha256.New, secret, salt, string(purpose), 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	return &Sealer{aead}, err
}

// Seal returns text sealed: a random nonce, then AES-256-GCM's output. It is bound to
// scope, which is not part of it: only Open with the same scope gets the text back.
func (s *Sealer) Seal(text, scope []byte) []byte {
	nonce := make([]byte, s.aead.NonceSize(), s.aead.NonceSize()+len(text)+s.aead.Overhead())
	rand.Read(nonce)
	return s.aead.Seal(nonce, nonce, text, scope)
}

// The errors of Open.
var (
	ErrShort   = errors.New("it is too short to be a sealed text")
	ErrForeign = errors.New("it was altered, or sealed with another key or for another scope")
)

// Open returns the text that was sealed. The error is ErrShort or ErrForeign.
func (s *Sealer) Open(sealed, scope []byte) ([]byte, error) {
	n := s.aead.NonceSize()
	if len(sealed) < n {
		return nil, ErrShort
	}
	text, err := s.aead.Open(nil, sealed[:n], sealed[n:], scope)
	if err != nil {
		return nil, ErrForeign
	}
	return text, nil
}
