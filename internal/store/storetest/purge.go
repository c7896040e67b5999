package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
)

func testExpired(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/", "r/a/b/", "r/c/", "r/d/", "q/")
	Write(t, s, func(tx metering.Tx) error {
		_, err1 := tx.MarkDeleted("r", "r/c/", "del_c", At(3))
		_, err2 := tx.MarkDeleted("r", "r/a/", "del_a", At(1))
		_, err3 := tx.MarkDeleted("q", "q/", "del_q", At(2))
		return errors.Join(err1, err2, err3)
	})
	expired := func(before time.Time, limit int) []string {
		return ids(Get(t, s, func(tx metering.Tx) ([]*org.Organization, error) { return tx.Expired(before, limit) }))
	}
	WantEqual(t, expired(At(1), 10), []string(nil))
	WantEqual(t, expired(At(10), 10), split("a q c"))
	WantEqual(t, expired(At(3), 10), split("a q"))
	WantEqual(t, expired(At(10), 1), split("a"))
	Write(t, s, func(tx metering.Tx) error { _, err := tx.MarkRestored("r", "del_a"); return err })
	WantEqual(t, expired(At(10), 10), split("q c"))
}

func absentOrg(t testing.TB, s Store, id string) {
	t.Helper()
	WantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, err := tx.Org(id); return err }), org.ErrAbsent)
}

// Purge purges all of what one delete removed.
func Purge(t testing.TB, s Store, rootID, deletionID string) (gone []string) {
	t.Helper()
	Write(t, s, func(tx metering.Tx) error {
		gone = nil
		begun, err := tx.BeginPurge(rootID, deletionID, At(100))
		WantEqual(t, begun, true)
		for done := false; err == nil && !done; {
			var some []string
			some, done, err = tx.Purge(rootID, deletionID, 1000, At(100))
			gone = append(gone, some...)
		}
		return err
	})
	return gone
}

func testPurge(t *testing.T, s Store) {
	child := newOrg("r/a/b/")
	child.Tags = split("tag")
	insert(t, s, newOrg("r/"), newOrg("r/a/"), child, newOrg("r/a/b/c/"), newOrg("r/z/"))
	Write(t, s, func(tx metering.Tx) error {
		return errors.Join(tx.InsertKey(newKey("key_b", "r/a/b/")), tx.InsertKey(newKey("key_z", "r/z/")),
			tx.PutIdempotent("r", "key_b", "i", At(0), &org.Replay{CreatedAt: At(1)}),
			tx.PutIdempotent("z", "key_z", "i", At(0), &org.Replay{CreatedAt: At(1)}),
			appendAudit(tx, "r", "x", "r/a/b/", "r/z/"))
	})
	flush(t, s, 1, event("r", "b", 1), event("r", "z", 2))
	Write(t, s, func(tx metering.Tx) error {
		_, err1 := tx.MarkDeleted("r", "r/a/b/c/", "del_c", At(1))
		_, err2 := tx.MarkDeleted("r", "r/a/b/", "del_b", At(2))
		// Moved with its parent, while it is deleted.
		_, err3 := tx.MoveSubtree("r", "a", "z", "r/a/", "r/z/a/", 1, At(3))
		return errors.Join(err1, err2, err3)
	})
	for _, deletionID := range []string{"absent", ""} {
		Write(t, s, func(tx metering.Tx) error {
			begun, err1 := tx.BeginPurge("r", deletionID, At(4))
			gone, done, err2 := tx.Purge("r", deletionID, 10, At(4))
			WantEqual(t, begun, false)
			WantEqual(t, done, true)
			WantEqual(t, gone, []string(nil))
			return errors.Join(err1, err2)
		})
	}
	WantEqual(t, Purge(t, s, "r", "del_b"), split("c b")) // c was deleted earlier
	for _, deletionID := range split("del_b del_c") {
		Write(t, s, func(tx metering.Tx) error {
			begun, err := tx.BeginPurge("r", deletionID, At(4))
			WantEqual(t, begun, false)
			return err
		})
	}
	absentOrg(t, s, "b")
	absentOrg(t, s, "c")
	WantEqual(t, live(t, s, "r"), split("r z a"))
	WantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, err := tx.Key("key_b"); return err }), org.ErrAbsent)
	WantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, err := tx.Idempotent("key_b", "i", At(0)); return err }), org.ErrAbsent)
	Read(t, s, func(tx metering.Tx) error {
		_, err1 := tx.Key("key_z")
		_, err2 := tx.Idempotent("key_z", "i", At(0))
		return errors.Join(err1, err2)
	})
	WantEqual(t, eventIDs(allEvents(t, s, org.AccessQuery{RootID: "r", OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, Limit: 10})),
		[]string{event("r", "z", 2).ID})
	WantEqual(t, len(allAudit(t, s, org.AuditQuery{RootID: "r", OrgID: "r", Path: "r/", Limit: 10})), 2)
	Plant(t, s, "r/b/") // the id is free again
	tagged := org.OrgQuery{RootID: "r", Tag: "tag", Limit: 10}
	WantEqual(t, ids(Get(t, s, func(tx metering.Tx) (org.OrgPage, error) { return tx.Orgs(tagged) }).Orgs), []string(nil))
}

func testPurgeRoot(t *testing.T, s Store) {
	q := org.AuditQuery{RootID: "r", OrgID: "r", Path: "r/", Limit: 10}
	for round := range 3 {
		logID := fmt.Sprintf("log-%d", round)
		Write(t, s, func(tx metering.Tx) error {
			head := &audit.Head{RootID: "r", LogID: logID}
			if err := errors.Join(tx.InsertOrgs([]*org.Organization{newOrg("r/"), newOrg("r/a/")}), tx.NewLog(head)); err != nil {
				return err
			}
			WantEqual(t, head.Epoch, int64(0))
			WantEqual(t, head.Ordinal, int64(round))
			return errors.Join(tx.PutSchema("r", []byte(`{}`)), appendAudit(tx, "r", "created", "r/"))
		})
		entries := allAudit(t, s, q)
		if len(entries) != 1 || entries[0].Epoch != 0 || entries[0].Seq != 0 {
			t.Errorf("round %d: entries %v", round, entries)
		}
		Write(t, s, func(tx metering.Tx) error {
			if _, err := tx.MarkDeleted("r", "r/", "del", At(1)); err != nil {
				return err
			}
			head, err := tx.Lock("r")
			if err != nil {
				return err
			}
			if _, err := tx.BeginPurge("r", "del", At(2)); err != nil {
				return err
			}
			// The purge itself is the last entry of the log that it closes.
			head.Size++
			return tx.AppendAudit(head, []audit.Record{{RootID: "r", Epoch: head.Epoch, Seq: head.Size - 1, ID: "aud_last",
				OrgID: "r", Path: "r/", Action: "purged", Timestamp: At(2), Leaf: []byte("{}")}})
		})
		WantErr(t, s.Metering().Write(t.Context(), func(tx metering.Tx) error { _, err := tx.Lock("r"); return err }), org.ErrAbsent)
		Write(t, s, func(tx metering.Tx) error {
			gone, done, err := tx.Purge("r", "del", 1000, At(3))
			WantEqual(t, gone, split("a r"))
			WantEqual(t, done, true)
			return err
		})
		WantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, err := tx.Schema("r"); return err }), org.ErrAbsent)
		WantEqual(t, len(allAudit(t, s, q)), 0)
	}
}
