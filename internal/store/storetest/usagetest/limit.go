package usagetest

import (
	"cmp"
	"slices"
	"testing"

	"github.com/orgd/orgd/internal/store/storetest"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/usage"
)

func testLimits(t *testing.T, s storetest.Store) {
	storetest.Plant(t, s, "r/", "r/a/", "q/")
	limits := func(rootID string, ids ...string) []usage.Limit {
		t.Helper()
		list := storetest.Get(t, s, func(tx testkit.Tx) ([]usage.Limit, error) { return tx.Limits(rootID, ids) })
		slices.SortFunc(list, func(a, b usage.Limit) int {
			return cmp.Or(cmp.Compare(a.OrgID, b.OrgID), cmp.Compare(a.Meter, b.Meter))
		})
		return list
	}
	storetest.WantEqual(t, limits("r", "r", "a"), []usage.Limit{})
	of := func(rootID, id, meter string, amount usage.Decimal, e usage.Enforcement, version int64) usage.Limit {
		return usage.Limit{RootID: rootID, OrgID: id, Meter: meter, Amount: amount, Enforcement: e, UpdatedAt: storetest.At(int(version)), Version: version}
	}
	put := func(l usage.Limit) {
		t.Helper()
		storetest.Write(t, s, func(tx testkit.Tx) error { return tx.PutLimit(&l) })
	}
	whole, calls, storage, foreign := of("r", "r", "api_calls", usage.MaxDecimal, usage.Soft, 1), of("r", "a", "api_calls", 1, usage.Hard, 1),
		of("r", "a", "storage_used", 0, usage.Hard, 1), of("q", "q", "api_calls", 5, usage.Hard, 1)
	for _, l := range []usage.Limit{whole, calls, storage, foreign} {
		put(l)
	}
	storetest.WantEqual(t, limits("r", "r", "a", "q", "absent"), []usage.Limit{calls, storage, whole})
	storetest.WantEqual(t, limits("r", "r"), []usage.Limit{whole})
	storetest.WantEqual(t, limits("q", "q", "r"), []usage.Limit{foreign})
	storetest.WantEqual(t, limits("r"), []usage.Limit{})

	before := s.Generation("r")
	calls = of("r", "a", "api_calls", 2*usage.One, usage.Soft, 2)
	storetest.Write(t, s, func(tx testkit.Tx) error {
		if _, err := tx.Lock("r"); err != nil {
			return err
		}
		return tx.PutLimit(&calls)
	})
	storetest.WantEqual(t, limits("r", "a"), []usage.Limit{calls, storage})
	if s.Generation("r") == before {
		t.Error("a limit that has changed does not change the generation")
	}
	storetest.Write(t, s, func(tx testkit.Tx) error { return tx.DeleteLimit("r", "a", "api_calls") })
	storetest.Write(t, s, func(tx testkit.Tx) error { return tx.DeleteLimit("r", "a", "api_calls") })
	storetest.WantEqual(t, limits("r", "r", "a"), []usage.Limit{storage, whole})

	storetest.Write(t, s, func(tx testkit.Tx) error { _, err := tx.MarkDeleted("r", "r/a/", "del", storetest.At(3)); return err })
	storetest.WantEqual(t, limits("r", "a"), []usage.Limit{storage})
	storetest.Purge(t, s, "r", "del")
	storetest.WantEqual(t, limits("r", "r", "a"), []usage.Limit{whole})
}

// What a limit is compared with: a subtree's consumption of one month, under
// all parents it had, in one snapshot with the spool's position.
func testConsumed(t *testing.T, s storetest.Store) {
	storetest.Plant(t, s, "r/", "r/a/", "r/a/b/", "r/c/")
	consumed := func(id string, month usage.Month, meter string) usage.Decimal {
		t.Helper()
		return storetest.Get(t, s, func(tx testkit.Tx) (usage.Decimal, error) { return tx.Consumed("r", id, month, meter) })
	}
	position := func() access.Position {
		t.Helper()
		return storetest.Get(t, s, func(tx testkit.Tx) (access.Position, error) { return tx.SpoolPosition("spool") })
	}
	month := usage.MonthOf(storetest.Epoch)
	storetest.WantEqual(t, consumed("r", month, usage.APICalls), usage.Decimal(0))
	storetest.WantEqual(t, position(), access.Position{})
	storetest.FlushBatch(t, s, access.Batch{SpoolID: "spool", Position: access.Position{Segment: 1, Offset: 10},
		Usage: []access.Usage{storetest.Use("r/a/b/", 5), storetest.Use("r/a/", 7), storetest.Use("r/c/b/", 11)}})
	for id, want := range map[string]usage.Decimal{"r": 23, "a": 12, "b": 16, "c": 11, "absent": 0} {
		storetest.WantEqual(t, consumed(id, month, usage.APICalls), want)
	}
	storetest.WantEqual(t, consumed("r", month.Next(), usage.APICalls), usage.Decimal(0))
	storetest.WantEqual(t, consumed("r", month, usage.StorageUsed), usage.Decimal(0))
	storetest.WantEqual(t, position(), access.Position{Segment: 1, Offset: 10})
}
