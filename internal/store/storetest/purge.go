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
	plant(t, s, "r/", "r/a/", "r/a/b/", "r/c/", "r/d/", "q/")
	write(t, s, func(tx metering.Tx) error {
		_, err1 := tx.MarkDeleted("r", "r/c/", "del_c", at(3))
		_, err2 := tx.MarkDeleted("r", "r/a/", "del_a", at(1))
		_, err3 := tx.MarkDeleted("q", "q/", "del_q", at(2))
		return errors.Join(err1, err2, err3)
	})
	expired := func(before time.Time, limit int) []string {
		return ids(get(t, s, func(tx metering.Tx) ([]*org.Organization, error) { return tx.Expired(before, limit) }))
	}
	wantEqual(t, expired(at(1), 10), []string(nil))
	wantEqual(t, expired(at(10), 10), split("a q c"))
	wantEqual(t, expired(at(3), 10), split("a q"))
	wantEqual(t, expired(at(10), 1), split("a"))
	write(t, s, func(tx metering.Tx) error { _, err := tx.MarkRestored("r", "del_a"); return err })
	wantEqual(t, expired(at(10), 10), split("q c"))
}

func absentOrg(t testing.TB, s Store, id string) {
	t.Helper()
	wantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, err := tx.Org(id); return err }), org.ErrAbsent)
}

// purge purges all of what one delete removed.
func purge(t testing.TB, s Store, rootID, deletionID string) (gone []string) {
	t.Helper()
	write(t, s, func(tx metering.Tx) error {
		gone = nil
		begun, err := tx.BeginPurge(rootID, deletionID, at(100))
		wantEqual(t, begun, true)
		for done := false; err == nil && !done; {
			var some []string
			some, done, err = tx.Purge(rootID, deletionID, 1000, at(100))
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
	write(t, s, func(tx metering.Tx) error {
		return errors.Join(tx.InsertKey(newKey("key_b", "r/a/b/")), tx.InsertKey(newKey("key_z", "r/z/")),
			tx.PutIdempotent("r", "key_b", "i", at(0), &org.Replay{CreatedAt: at(1)}),
			tx.PutIdempotent("z", "key_z", "i", at(0), &org.Replay{CreatedAt: at(1)}),
			appendAudit(tx, "r", "x", "r/a/b/", "r/z/"))
	})
	flush(t, s, 1, event("r", "b", 1), event("r", "z", 2))
	write(t, s, func(tx metering.Tx) error {
		_, err1 := tx.MarkDeleted("r", "r/a/b/c/", "del_c", at(1))
		_, err2 := tx.MarkDeleted("r", "r/a/b/", "del_b", at(2))
		// Moved with its parent, while it is deleted.
		_, err3 := tx.MoveSubtree("r", "a", "z", "r/a/", "r/z/a/", 1, at(3))
		return errors.Join(err1, err2, err3)
	})
	for _, deletionID := range []string{"absent", ""} {
		write(t, s, func(tx metering.Tx) error {
			begun, err1 := tx.BeginPurge("r", deletionID, at(4))
			gone, done, err2 := tx.Purge("r", deletionID, 10, at(4))
			wantEqual(t, begun, false)
			wantEqual(t, done, true)
			wantEqual(t, gone, []string(nil))
			return errors.Join(err1, err2)
		})
	}
	wantEqual(t, purge(t, s, "r", "del_b"), split("c b")) // c was deleted earlier
	for _, deletionID := range split("del_b del_c") {
		write(t, s, func(tx metering.Tx) error {
			begun, err := tx.BeginPurge("r", deletionID, at(4))
			wantEqual(t, begun, false)
			return err
		})
	}
	absentOrg(t, s, "b")
	absentOrg(t, s, "c")
	wantEqual(t, live(t, s, "r"), split("r z a"))
	wantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, err := tx.Key("key_b"); return err }), org.ErrAbsent)
	wantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, err := tx.Idempotent("key_b", "i", at(0)); return err }), org.ErrAbsent)
	read(t, s, func(tx metering.Tx) error {
		_, err1 := tx.Key("key_z")
		_, err2 := tx.Idempotent("key_z", "i", at(0))
		return errors.Join(err1, err2)
	})
	wantEqual(t, eventIDs(allEvents(t, s, org.AccessQuery{RootID: "r", OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, Limit: 10})),
		[]string{event("r", "z", 2).ID})
	wantEqual(t, len(allAudit(t, s, org.AuditQuery{RootID: "r", OrgID: "r", Path: "r/", Limit: 10})), 2)
	plant(t, s, "r/b/") // the id is free again
	tagged := org.OrgQuery{RootID: "r", Tag: "tag", Limit: 10}
	wantEqual(t, ids(get(t, s, func(tx metering.Tx) (org.OrgPage, error) { return tx.Orgs(tagged) }).Orgs), []string(nil))
}

func testPurgeRoot(t *testing.T, s Store) {
	q := org.AuditQuery{RootID: "r", OrgID: "r", Path: "r/", Limit: 10}
	for round := range 3 {
		logID := fmt.Sprintf("log-%d", round)
		write(t, s, func(tx metering.Tx) error {
			head := &audit.Head{RootID: "r", LogID: logID}
			if err := errors.Join(tx.InsertOrgs([]*org.Organization{newOrg("r/"), newOrg("r/a/")}), tx.NewLog(head)); err != nil {
				return err
			}
			wantEqual(t, head.Epoch, int64(0))
			wantEqual(t, head.Ordinal, int64(round))
			return errors.Join(tx.PutSchema("r", []byte(`{}`)), appendAudit(tx, "r", "created", "r/"))
		})
		entries := allAudit(t, s, q)
		if len(entries) != 1 || entries[0].Epoch != 0 || entries[0].Seq != 0 {
			t.Errorf("round %d: entries %v", round, entries)
		}
		write(t, s, func(tx metering.Tx) error {
			if _, err := tx.MarkDeleted("r", "r/", "del", at(1)); err != nil {
				return err
			}
			head, err := tx.Lock("r")
			if err != nil {
				return err
			}
			if _, err := tx.BeginPurge("r", "del", at(2)); err != nil {
				return err
			}
			// The purge itself is the last entry of the log that it closes.
			head.Size++
			return tx.AppendAudit(head, []audit.Record{{RootID: "r", Epoch: head.Epoch, Seq: head.Size - 1, ID: "aud_last",
				OrgID: "r", Path: "r/", Action: "purged", Timestamp: at(2), Leaf: []byte("{}")}})
		})
		wantErr(t, s.Metering().Write(t.Context(), func(tx metering.Tx) error { _, err := tx.Lock("r"); return err }), org.ErrAbsent)
		write(t, s, func(tx metering.Tx) error {
			gone, done, err := tx.Purge("r", "del", 1000, at(3))
			wantEqual(t, gone, split("a r"))
			wantEqual(t, done, true)
			return err
		})
		wantErr(t, s.Metering().Read(t.Context(), func(tx metering.Tx) error { _, err := tx.Schema("r"); return err }), org.ErrAbsent)
		wantEqual(t, len(allAudit(t, s, q)), 0)
	}
}
