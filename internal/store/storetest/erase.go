package storetest

import (
	"testing"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/trail"
	"github.com/orgd/orgd/internal/usage"
)

// testHolding: what holds a text is found whatever the case of its letters,
// and the text is no pattern.
func testHolding(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/", "r/a/b/", "r/c/", "q/")
	named := newOrg("r/d_%/")
	named.ID, named.Path, named.Name = "d", "r/d/", "50%_Off!"
	insert(t, s, named)
	Write(t, s, func(tx testkit.Tx) error {
		for _, k := range []struct{ id, path, name, ip string }{
			{"k1", "r/a/", "Jane@Example.com", ""}, {"k2", "r/a/b/", "x", "192.0.2.7"}, {"k3", "r/c/", "JANE@example.com", ""}, {"k4", "q/", "jane@example.com", ""},
		} {
			key := newKey(k.id, k.path)
			key.Name = k.name
			if err := tx.InsertKey(key); err != nil {
				return err
			}
		}
		return appendAudit(tx, "r", "x", "r/", "r/a/", "r/c/")
	})
	flushUses(t, s, 1, access.KeyUse{KeyID: "k2", At: At(1), IP: "192.0.2.7"})

	keys := func(q trail.HoldingQuery) (found []string) {
		t.Helper()
		q.RootID = "r"
		for more := true; more; more = q.After != nil {
			Read(t, s, func(tx testkit.Tx) (err error) {
				var page []*key.Key
				page, q.After, err = tx.KeysHolding(q)
				for _, k := range page {
					found = append(found, k.ID)
				}
				return err
			})
		}
		return found
	}
	orgs := func(q trail.HoldingQuery) (found []string) {
		t.Helper()
		q.RootID = "r"
		for more := true; more; more = q.After != nil {
			Read(t, s, func(tx testkit.Tx) (err error) {
				var page []*org.Organization
				page, q.After, err = tx.OrgsHolding(q)
				found = append(found, ids(page)...)
				return err
			})
		}
		return found
	}
	for _, limit := range []int{1, 100} {
		WantEqual(t, keys(trail.HoldingQuery{OrgID: "r", Path: "r/", Needle: "jane@example.com", Limit: limit}), split("k1 k3"))
		WantEqual(t, keys(trail.HoldingQuery{OrgID: "a", Path: "r/a/", Needle: "jane@example.com", Limit: limit}), split("k1"))
		WantEqual(t, keys(trail.HoldingQuery{OrgID: "a", Path: "r/a/", Needle: "192.0.2.7", Limit: limit}), split("k2"))
		WantEqual(t, keys(trail.HoldingQuery{OrgID: "a", Path: "r/a/", Self: true, Needle: "192.0.2.7", Limit: limit}), []string{})
		WantEqual(t, keys(trail.HoldingQuery{OrgID: "r", Path: "r/", Limit: limit}), split("k1 k2 k3"))
		WantEqual(t, orgs(trail.HoldingQuery{OrgID: "r", Path: "r/", Needle: "%_off!", Limit: limit}), split("d"))
		WantEqual(t, orgs(trail.HoldingQuery{OrgID: "r", Path: "r/", Needle: "org_", Limit: limit}), []string{})
		WantEqual(t, orgs(trail.HoldingQuery{OrgID: "a", Path: "r/a/", Needle: "org b", Limit: limit}), split("b"))
		WantEqual(t, orgs(trail.HoldingQuery{OrgID: "a", Path: "r/a/", Self: true, Needle: "org ", Limit: limit}), split("a"))
	}
	WantEqual(t, seqs(allAudit(t, s, org.AuditQuery{RootID: "r", OrgID: "r", Path: "r/", Holding: "::1", Limit: 2})), []int64{2, 1, 0})
	WantEqual(t, seqs(allAudit(t, s, org.AuditQuery{RootID: "r", OrgID: "r", Path: "r/", Holding: `"seq":1`, Limit: 2})), []int64{1})
	WantEqual(t, seqs(allAudit(t, s, org.AuditQuery{RootID: "r", OrgID: "r", Path: "r/", Holding: "nobody", Limit: 2})), []int64{})
}

func testErase(t *testing.T, s Store) {
	Plant(t, s, "r/", "q/")
	Write(t, s, func(tx testkit.Tx) error {
		if err := tx.InsertKey(newKey("k", "r/")); err != nil {
			return err
		}
		old := newKey("old", "r/")
		old.Old = &key.OldSecret{Hash: old.SecretHash, Hint: "wxyz", ValidUntil: At(100)}
		if err := tx.InsertKey(old); err != nil {
			return err
		}
		return appendAudit(tx, "r", "x", "r/", "r/")
	})
	one, two := event("r", "r", 1), event("r", "r", 2)
	flush(t, s, 1, one, two)
	one.Seq, two.Seq = 1, 2
	flushUses(t, s, 2, keyUse("k", false, 3), keyUse("old", true, 4))

	adjustment := usage.Adjustment{RootID: "r", OrgID: "r", Month: "2026-11", ID: "adj_1", For: "2026-10", Meter: "api_calls", Quantity: 1,
		Reason: "why", Origin: usage.FromActor, CreatedBy: "operator", CreatedAt: At(5)}
	Write(t, s, func(tx testkit.Tx) error {
		other := adjustment
		other.ID = "adj_2"
		if err := tx.PutAdjustments([]usage.Adjustment{adjustment, other}); err != nil {
			return err
		}
		return tx.BlankReasons([]usage.Adjustment{{RootID: "r", OrgID: "r", ID: "adj_1"}, {RootID: "q", OrgID: "q", ID: "adj_2"}})
	})
	var reasons []string
	for _, a := range Get(t, s, func(tx testkit.Tx) (list []usage.Adjustment, err error) {
		list, _, err = tx.Adjustments(metering.AdjustmentQuery{RootID: "r", OrgID: "r", Limit: 10})
		return list, err
	}) {
		reasons = append(reasons, a.ID+" "+a.Reason)
	}
	WantEqual(t, sorted(reasons), []string{"adj_1 ", "adj_2 why"})

	WantErr(t, s.Write(t.Context(), func(tx testkit.Tx) error {
		return tx.PutAuditValues("r", []audit.Record{{Seq: 2, Values: []byte("{}")}})
	}), org.ErrStale)
	WantErr(t, s.Write(t.Context(), func(tx testkit.Tx) error {
		absent := one
		absent.Seq = 99
		return tx.PutAccessEvents([]access.Event{absent})
	}), org.ErrStale)
	Read(t, s, func(tx testkit.Tx) error {
		_, err := tx.AccessEvent("q", one.Timestamp, one.Seq)
		WantErr(t, err, org.ErrAbsent)
		return nil
	})
	Write(t, s, func(tx testkit.Tx) error {
		e, err := tx.AccessEvent("r", one.Timestamp, one.Seq)
		if err != nil {
			return err
		}
		WantEqual(t, e, one)
		one.User, one.IP, one.UserAgent, one.Path, one.RequestID = "", "", "", "", ""
		if err := tx.PutAccessEvents([]access.Event{one}); err != nil {
			return err
		}
		if err := tx.PutAuditValues("r", []audit.Record{{Seq: 1, Values: []byte("{}")}}); err != nil {
			return err
		}
		k, err := tx.Key("k")
		if err != nil {
			return err
		}
		old, err := tx.Key("old")
		if err != nil {
			return err
		}
		if k.LastUsedIP == "" || old.Old.LastUsedIP == "" {
			t.Error("the keys were not used")
		}
		k.LastUsedIP, old.Old.LastUsedIP, old.Name = "", "", ""
		return tx.PutKeyUse([]*key.Key{k, old})
	})
	if err := s.Scrub(t.Context()); err != nil {
		t.Fatal(err)
	}
	WantEqual(t, allEvents(t, s, trail.AccessQuery{RootID: "r", OrgID: "r", Path: "r/", Limit: 10}), []access.Event{two, one})
	entries := allAudit(t, s, org.AuditQuery{RootID: "r", OrgID: "r", Path: "r/", Limit: 10, Ascending: true})
	WantEqual(t, []string{string(entries[0].Values), string(entries[1].Values)}, []string{`{"ip":"::1"}`, "{}"})
	Read(t, s, func(tx testkit.Tx) error {
		k, err := tx.Key("k")
		if err != nil {
			return err
		}
		old, err := tx.Key("old")
		if err != nil {
			return err
		}
		WantEqual(t, []any{k.LastUsedIP, k.LastUsedAt != nil, k.Name, k.Version, old.Old.LastUsedIP, old.Name, old.Version},
			[]any{"", true, "Key k", int64(1), "", "", int64(1)})
		return nil
	})
}
