package key

import (
	"crypto/sha256"
	"crypto/subtle"
	"hash/crc32"
	"io"
	"strings"
)

// A token is what a caller presents: orgd_<id>_<secret><checksum>, where id is
// the key's id without "key_", secret is 32 random base 62 characters (190
// bits), and checksum is the CRC-32 (IEEE) of all that stands before it, as 6
// base 62 characters. The checksum tells a typo from a key without a look-up;
// it protects nothing.
const (
	tokenPrefix    = "orgd_"
	idPrefix       = "key_"
	secretLen      = 32
	checksumLen    = 6
	hintLen        = 4
	tokenIDMaxLen  = 60
	operatorID     = "operator"
	base62         = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	base62Unbiased = 256 - 256%len(base62) // bytes below it fall evenly on base62
)

// NewSecret makes a token for the key with this id ("key_…", or "operator" for
// the operator key). It returns what is stored of it: the SHA-256 hash of the
// whole token, and the hint, its last four characters. random must be
// cryptographically secure; NewSecret panics if it fails.
func NewSecret(random io.Reader, keyID string) (token string, hash []byte, hint string) {
	id := strings.TrimPrefix(keyID, idPrefix)
	b := make([]byte, 0, len(tokenPrefix)+len(id)+1+secretLen+checksumLen)
	b = append(b, tokenPrefix...)
	b = append(b, id...)
	b = append(b, '_')
	var buf [secretLen]byte
	for n := 0; n < secretLen; {
		if _, err := io.ReadFull(random, buf[:]); err != nil {
			panic("key: no random bits: " + err.Error())
		}
		for _, c := range buf {
			if int(c) < base62Unbiased && n < secretLen {
				b = append(b, base62[int(c)%len(base62)])
				n++
			}
		}
	}
	sum := checksum(b)
	token = string(append(b, sum[:]...))
	h := sha256.Sum256([]byte(token))
	return token, h[:], token[len(token)-hintLen:]
}

func checksum(b []byte) (sum [checksumLen]byte) {
	n := crc32.ChecksumIEEE(b)
	for i := checksumLen - 1; i >= 0; i-- {
		sum[i] = base62[n%uint32(len(base62))]
		n /= uint32(len(base62))
	}
	return sum
}

// HashToken returns the hash of a token, as ParseToken does.
func HashToken(token string) [32]byte { return sha256.Sum256([]byte(token)) }

// ParseToken takes a token apart: the id of the key that it claims to be of,
// "operator" for the operator key, and its SHA-256 hash. ok is false unless
// form and checksum are right. It tells nothing about whether the key exists.
func ParseToken(token string) (keyID string, hash [32]byte, ok bool) {
	idEnd := len(token) - checksumLen - secretLen - 1
	if idEnd <= len(tokenPrefix) || idEnd > len(tokenPrefix)+tokenIDMaxLen || token[:len(tokenPrefix)] != tokenPrefix || token[idEnd] != '_' {
		return "", hash, false
	}
	id := token[len(tokenPrefix):idEnd]
	for i := 0; i < len(id); i++ {
		if !alphanumeric(id[i]) {
			return "", hash, false
		}
	}
	for i := idEnd + 1; i < len(token); i++ {
		if !alphanumeric(token[i]) {
			return "", hash, false
		}
	}
	var buf [len(tokenPrefix) + tokenIDMaxLen + 1 + secretLen + checksumLen]byte
	b := buf[:copy(buf[:], token)]
	sumStart := len(b) - checksumLen
	if sum := checksum(b[:sumStart]); string(sum[:]) != token[sumStart:] {
		return "", hash, false
	}
	if id == operatorID {
		keyID = operatorID
	} else {
		keyID = idPrefix + id
	}
	return keyID, sha256.Sum256(b), true
}

func alphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
}

// Match reports in constant time whether hash is the stored one.
func Match(stored []byte, hash [32]byte) bool {
	return subtle.ConstantTimeCompare(stored, hash[:]) == 1
}
