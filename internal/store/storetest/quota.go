package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/testkit"
)

func testQuotas(t *testing.T, s Store) {
	Plant(t, s, "r/", "q/")
	of := func(rootID string) *org.Quota {
		t.Helper()
		return Get(t, s, func(tx testkit.Tx) (*org.Quota, error) {
			q, err := tx.Quota(rootID)
			if errors.Is(err, org.ErrAbsent) {
				return nil, nil
			}
			return q, err
		})
	}
	if q := of("r"); q != nil {
		t.Errorf("a root has the quota %+v before one was set", q)
	}
	some := &org.Quota{RequestsInFlight: 3, IdempotencyBytes: 1 << 40, UpdatedAt: At(1), Version: 1}
	all := &org.Quota{UpdatedAt: At(2), Version: 2}
	for i, m := range org.QuotaMembers() {
		*m.Of(all) = m.Max - int64(i)%m.Min
	}
	for _, want := range []*org.Quota{some, all} {
		before := s.Generation("r")
		Write(t, s, func(tx testkit.Tx) error {
			if _, err := tx.Lock("r"); err != nil {
				return err
			}
			return tx.PutQuota("r", want)
		})
		WantEqual(t, of("r"), want)
		if s.Generation("r") == before {
			t.Error("a quota was set, and the generation of its root is the same")
		}
	}
	Write(t, s, func(tx testkit.Tx) error { return tx.PutQuota("q", some) })
	Write(t, s, func(tx testkit.Tx) error { return tx.DeleteQuota("r") })
	if q := of("r"); q != nil {
		t.Errorf("a root has the quota %+v after it was deleted", q)
	}
	WantEqual(t, of("q"), some)
}

// What is kept is known by root and by the hour, whoever of the root sent it,
// and old answers go in steps.
func testAnswersKept(t *testing.T, s Store) {
	put := func(rootID, actor, key string, size int, created time.Time) {
		t.Helper()
		Write(t, s, func(tx testkit.Tx) error {
			return tx.PutIdempotent(rootID, actor, key, created.Add(-24*time.Hour),
				&org.Replay{RequestHash: []byte{1, 2}, Answer: make([]byte, size), CreatedAt: created})
		})
	}
	kept := func(rootID string, since time.Time, bytes int64, first time.Time) {
		t.Helper()
		Read(t, s, func(tx testkit.Tx) error {
			n, at, err := tx.AnswersKept(rootID, since)
			if n != bytes || !at.Equal(first) {
				t.Errorf("%d bytes are kept for %q since %s, the first at %s; want %d and %s", n, rootID, since, at, bytes, first)
			}
			return err
		})
	}
	const each = org.ReplayOverhead + 2 + 3
	noon := At(0).Truncate(time.Hour)
	kept("r", noon, 0, time.Time{})
	put("r", "key_a", "one", 1000, noon.Add(time.Minute))
	put("r", "key_b", "one", 2000, noon.Add(59*time.Minute))
	put("q", "key_c", "one", 5, noon)
	put("", "operator", "one", 7, noon)
	put("r", "key_a", "two", 0, noon.Add(time.Hour))
	kept("r", noon, 3000+3*each, noon)
	kept("r", noon.Add(30*time.Minute), 3000+3*each, noon)
	kept("r", noon.Add(time.Hour), each, noon.Add(time.Hour))
	kept("q", noon, 5+each, noon)
	kept("", noon, 7+each, noon)

	expire := func(before time.Time, want int64) {
		t.Helper()
		Write(t, s, func(tx testkit.Tx) error {
			n, err := tx.ExpireIdempotent(before, 3)
			if n != want {
				t.Errorf("a step removed %d answers, want %d", n, want)
			}
			return err
		})
	}
	expire(noon.Add(time.Hour), 3)
	expire(noon.Add(time.Hour), 1)
	expire(noon.Add(time.Hour), 0)
	kept("r", noon, each, noon.Add(time.Hour))
	kept("q", noon, 0, time.Time{})
	Read(t, s, func(tx testkit.Tx) error {
		if _, err := tx.Idempotent("key_a", "two", noon); err != nil {
			t.Errorf("an answer that can be replayed was removed: %v", err)
		}
		return nil
	})
}
