package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
)

func testKeys(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/")
	expires, used := At(100), At(50)
	k := newKey("key_3", "r/a/")
	k.Permissions, k.Reach, k.AllowedCIDRs = key.Permissions{"orgs:read", "orgs:write"}, key.ReachSelf, split("10.0.0.0/8 ::1/128")
	k.RateLimit, k.ExpiresAt = &key.RateLimit{Requests: 5, PeriodSeconds: 60}, &expires
	k.Old = &key.OldSecret{Hash: []byte{1, 0, 2}, Hint: "wxyz", ValidUntil: At(60), LastUsedAt: &used, LastUsedIP: "::1"}
	Write(t, s, func(tx metering.Tx) error {
		return errors.Join(tx.InsertKey(k), tx.InsertKey(newKey("key_1", "r/a/")), tx.InsertKey(newKey("key_2", "r/a/")),
			tx.InsertKey(newKey("key_r", "r/")))
	})
	byID := func(id string) *key.Key {
		return Get(t, s, func(tx metering.Tx) (*key.Key, error) { return tx.Key(id) })
	}
	WantEqual(t, byID("key_3"), k)
	WantEqual(t, byID("key_1"), newKey("key_1", "r/a/"))
	WantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, err := tx.Key("absent"); return err }), org.ErrAbsent)

	WantEqual(t, Get(t, s, func(tx metering.Tx) (*key.Key, error) { return tx.KeyOf("a", "key_3") }), k)
	for _, tt := range [][2]string{{"r", "key_3"}, {"a", "key_r"}, {"absent", "key_3"}, {"a", "absent"}} {
		WantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, err := tx.KeyOf(tt[0], tt[1]); return err }), org.ErrAbsent)
	}
	Read(t, s, func(tx metering.Tx) error {
		for id, old := range map[string][]byte{"key_3": k.Old.Hash, "key_1": {}} {
			rootID, secret, before, err := tx.SecretHashes(id)
			if err != nil {
				return err
			}
			WantEqual(t, rootID, "r")
			WantEqual(t, secret, byID(id).SecretHash)
			WantEqual(t, before, old)
		}
		return nil
	})
	WantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, _, _, err := tx.SecretHashes("absent"); return err }), org.ErrAbsent)

	list := func(after string, limit int) []string {
		var found []string
		for _, k := range Get(t, s, func(tx metering.Tx) (keys []*key.Key, err error) {
			keys, _, err = tx.Keys("a", after, limit, 0)
			return keys, err
		}) {
			found = append(found, k.ID)
		}
		return found
	}
	WantEqual(t, list("", 10), split("key_1 key_2 key_3"))
	WantEqual(t, list("key_1", 1), split("key_2"))

	changed := newKey("key_2", "r/a/")
	changed.Name, changed.RevokedAt, changed.UpdatedAt, changed.Version = "new", &used, At(1), 2
	Write(t, s, func(tx metering.Tx) error { return tx.UpdateKey(changed) })
	WantEqual(t, byID("key_2"), changed)
	WantEqual(t, list("", 10), split("key_1 key_3"))
	WantErr(t, s.Metering().Write(t.Context(), func(tx metering.Tx) error { return tx.UpdateKey(changed) }), org.ErrStale)
}

func testKeyRotation(t *testing.T, s Store) {
	Plant(t, s, "r/")
	Write(t, s, func(tx metering.Tx) error { return tx.InsertKey(newKey("k", "r/")) })
	use := func(segment int64, old bool, seconds int) {
		t.Helper()
		flushUses(t, s, segment, keyUse("k", old, seconds))
	}
	use(1, false, 1)
	update := func(fn func(*key.Key)) {
		t.Helper()
		Write(t, s, func(tx metering.Tx) error {
			k, err := tx.Key("k")
			if err != nil {
				return err
			}
			fn(k)
			k.Version++
			return tx.UpdateKey(k)
		})
	}
	lastUse := func() (now, old *time.Time) {
		k := Get(t, s, func(tx metering.Tx) (*key.Key, error) { return tx.Key("k") })
		if k.Old == nil {
			return k.LastUsedAt, nil
		}
		return k.LastUsedAt, k.Old.LastUsedAt
	}
	// A rotation says when the secret that it replaces was last used.
	update(func(k *key.Key) {
		k.Old = &key.OldSecret{Hash: k.SecretHash, ValidUntil: At(100), LastUsedAt: k.LastUsedAt}
		k.SecretHash = []byte{2}
	})
	_, old := lastUse()
	WantEqual(t, *old, At(1))
	// An update that knows of an older use does not undo a newer one.
	var stale *key.Key
	Read(t, s, func(tx metering.Tx) (err error) { stale, err = tx.Key("k"); return err })
	use(2, true, 5)
	use(3, false, 6)
	stale.Name, stale.Version = "renamed", stale.Version+1
	Write(t, s, func(tx metering.Tx) error { return tx.UpdateKey(stale) })
	now, old := lastUse()
	WantEqual(t, []time.Time{*now, *old}, []time.Time{At(6), At(5)})
	update(func(k *key.Key) { k.Old = nil })
	if _, old := lastUse(); old != nil {
		t.Error("the old secret is still there")
	}
}
