// Package ident makes and checks the identifiers that orgd hands out.
package ident

import (
	"encoding/base32"
	"strings"

	"github.com/google/uuid"
)

// MaxLen is the length of the longest identifier, in bytes.
const MaxLen = 64

// Source makes a new identifier that starts with prefix. It is safe for
// concurrent use.
type Source func(prefix string) string

var encoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// Identifiers are not secrets: their random bits may wait in memory.
func init() { uuid.EnableRandPool() }

// New returns prefix followed by 26 characters that encode a UUIDv7 (RFC
// 9562): identifiers made later sort later, to the millisecond. The alphabet
// is Crockford's base 32 in lower case.
func New(prefix string) string {
	id := uuid.Must(uuid.NewV7())
	var buf [26]byte
	encoding.Encode(buf[:], id[:])
	return prefix + string(buf[:])
}

// Valid reports whether s is 1 to 64 characters from A-Z a-z 0-9 . _ - and
// starts with a letter or a digit.
func Valid(s string) bool {
	if len(s) == 0 || len(s) > MaxLen || strings.IndexByte("._-", s[0]) >= 0 {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// Rule says in words what Valid accepts, for error messages.
const Rule = "must be 1 to 64 characters from A-Z a-z 0-9 . _ - and start with a letter or a digit"
