package key

import (
	"crypto/sha256"
	"testing"
	"time"
)

func TestUsable(t *testing.T) {
	now := time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)
	before, after := now.Add(-time.Microsecond), now.Add(time.Microsecond)
	current, replaced, wrong := sha256.Sum256([]byte("current")), sha256.Sum256([]byte("replaced")), sha256.Sum256([]byte("wrong"))
	for _, tt := range []struct {
		name    string
		key     Key
		hash    [32]byte
		old, ok bool
	}{
		{"the current secret", Key{}, current, false, true},
		{"another secret", Key{}, wrong, false, false},
		{"before its expiry", Key{ExpiresAt: &after}, current, false, true},
		{"at its expiry", Key{ExpiresAt: &now}, current, false, false},
		{"after its expiry", Key{ExpiresAt: &before}, current, false, false},
		{"revoked", Key{RevokedAt: &before}, current, false, false},
		{"the current secret after a rotation", Key{Old: &OldSecret{Hash: replaced[:], ValidUntil: after}}, current, false, true},
		{"the old secret within the overlap", Key{Old: &OldSecret{Hash: replaced[:], ValidUntil: after}}, replaced, true, true},
		{"the old secret at the end of the overlap", Key{Old: &OldSecret{Hash: replaced[:], ValidUntil: now}}, replaced, false, false},
		{"the old secret of an expired key", Key{ExpiresAt: &now, Old: &OldSecret{Hash: replaced[:], ValidUntil: after}}, replaced, false, false},
		{"the old secret of a revoked key", Key{RevokedAt: &now, Old: &OldSecret{Hash: replaced[:], ValidUntil: after}}, replaced, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.key.SecretHash = current[:]
			if old, ok := tt.key.Usable(now, tt.hash); old != tt.old || ok != tt.ok {
				t.Errorf("old %t, ok %t; want %t, %t", old, ok, tt.old, tt.ok)
			}
		})
	}
}
