package storetest

import (
	"crypto/rand"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/evidence"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/testkit"
)

// grow appends n real entries to the log of a root.
func grow(t testing.TB, s Store, rootID string, n int) *audit.Head {
	t.Helper()
	var head *audit.Head
	Write(t, s, func(tx testkit.Tx) (err error) {
		if head, err = tx.Lock(rootID); err != nil {
			return err
		}
		var records []audit.Record
		for range n {
			d := audit.Draft{ID: fmt.Sprintf("aud_%s_%d_%d", head.LogID, head.Epoch, head.Size), Timestamp: At(int(head.Size)), OrgID: rootID,
				Path: rootID + "/", Action: "x", Actor: audit.Actor{Type: "operator", ID: "operator"}, Target: audit.Target{Type: "organization", ID: rootID}}
			r, err := head.Append(&d, rand.Reader)
			if err != nil {
				return err
			}
			records = append(records, r)
		}
		return tx.AppendAudit(head, records)
	})
	return head
}

// newLog inserts a root with a log of a real id.
func newLog(t testing.TB, s Store, rootID string) {
	t.Helper()
	Write(t, s, func(tx testkit.Tx) error {
		return errors.Join(tx.InsertOrgs([]*org.Organization{newOrg(rootID + "/")}), tx.NewLog(audit.NewHead(rootID, audit.NewLogID(rand.Reader))))
	})
}

// testLogHashes: what is stored suffices for every proof.
func testLogHashes(t *testing.T, s Store) {
	newLog(t, s, "r")
	newLog(t, s, "q")
	var heads []*audit.Head
	for _, n := range []int{1, 254, 1, 1, 300, 65536 - 557, 3} {
		heads = append(heads, grow(t, s, "r", n))
	}
	grow(t, s, "q", 2)
	last := heads[len(heads)-1]
	Read(t, s, func(tx testkit.Tx) error {
		hashes := audit.HashSource(func(level int, from, to int64) ([]audit.Hash, error) { return tx.LogHashes(last, level, from, to) })
		for _, h := range heads {
			proof, err := audit.ProveConsistency(h.Size, last.Size, hashes)
			if err != nil {
				return err
			}
			if err := audit.VerifyConsistency(h.Checkpoint(), last.Checkpoint(), proof); err != nil {
				t.Errorf("size %d: %v", h.Size, err)
			}
			seq := h.Size - 1
			rec, err := tx.AuditEntry("r", fmt.Sprintf("aud_%s_0_%d", last.LogID, seq))
			if err != nil {
				return err
			}
			inclusion, err := tlog.ProveRecord(last.Size, seq, hashes)
			if err != nil {
				return err
			}
			if err := tlog.CheckRecord(inclusion, last.Size, tlog.Hash(last.Root), seq, tlog.Hash(rec.LeafHash)); err != nil {
				t.Errorf("entry %d: %v", seq, err)
			}
		}
		top, err := tx.LogHashes(last, 2, 0, 256)
		WantEqual(t, len(top), 1)
		leaves, err2 := tx.Leaves(last, 254, 258)
		WantEqual(t, len(leaves), 4)
		_, err3 := tx.AuditEntry("q", fmt.Sprintf("aud_%s_0_%d", last.LogID, 0))
		WantErr(t, err3, org.ErrAbsent)
		return errors.Join(err, err2)
	})
}

func testSignatures(t *testing.T, s Store) {
	newLog(t, s, "r")
	newLog(t, s, "q")
	unsigned := func(rootID string, after *audit.Head, limit int) []string {
		var list []string
		for _, h := range Get(t, s, func(tx testkit.Tx) ([]*audit.Head, error) { return tx.UnsignedHeads(rootID, after, limit) }) {
			list = append(list, fmt.Sprintf("%s %d %d", h.RootID, h.Epoch, h.Size))
		}
		return list
	}
	WantEqual(t, unsigned("", nil, 10), []string(nil)) // an empty log needs no signature
	q, r := grow(t, s, "q", 2), grow(t, s, "r", 3)
	WantEqual(t, unsigned("", nil, 10), []string{"q 0 2", "r 0 3"})
	WantEqual(t, unsigned("", nil, 1), []string{"q 0 2"})
	WantEqual(t, unsigned("", q, 10), []string{"r 0 3"})
	WantEqual(t, unsigned("r", nil, 10), []string{"r 0 3"})
	WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Signature(r); return err }), org.ErrAbsent)

	put := func(h *audit.Head, sig evidence.Signature) error {
		return s.Write(t.Context(), func(tx testkit.Tx) error { return tx.PutSignature(h, &sig) })
	}
	keys := evidence.LogKeys{Now: evidence.KeyName{Seed: "a", Version: 1}}
	first := evidence.Signature{Size: 3, Checkpoint: []byte("three"), SignedAt: At(1), Keys: keys}
	WantErr(t, put(r, first), nil)
	WantEqual(t, Get(t, s, func(tx testkit.Tx) (*evidence.Signature, error) { return tx.Signature(r) }), &first)
	WantEqual(t, unsigned("", nil, 10), []string{"q 0 2"})
	signed := func(since int) []*audit.Head {
		return Get(t, s, func(tx testkit.Tx) ([]*audit.Head, error) { return tx.SignedHeads(At(since), 10) })
	}
	WantEqual(t, signed(1), []*audit.Head{r})
	WantEqual(t, signed(2), []*audit.Head(nil))

	for name, sig := range map[string]evidence.Signature{
		"of the same size":   {Size: 3, Checkpoint: []byte("another"), SignedAt: At(2), Keys: keys},
		"of a smaller size":  {Size: 2, Checkpoint: []byte("another"), SignedAt: At(2), Keys: keys},
		"by another seed":    {Size: 4, Checkpoint: []byte("another"), SignedAt: At(2), Keys: evidence.LogKeys{Now: evidence.KeyName{Seed: "b", Version: 1}}},
		"by another version": {Size: 4, Checkpoint: []byte("another"), SignedAt: At(2), Keys: evidence.LogKeys{Now: evidence.KeyName{Seed: "a", Version: 2}}},
	} {
		t.Run(name, func(t *testing.T) {
			WantErr(t, put(r, sig), org.ErrStale)
			WantEqual(t, Get(t, s, func(tx testkit.Tx) (*evidence.Signature, error) { return tx.Signature(r) }), &first)
		})
	}
	Write(t, s, func(tx testkit.Tx) error { return tx.PutCosignatures(r, 3, []byte("three, cosigned")) })
	WantErr(t, s.Write(t.Context(), func(tx testkit.Tx) error { return tx.PutCosignatures(r, 2, []byte("no")) }), org.ErrStale)

	rotated := evidence.LogKeys{Now: evidence.KeyName{Seed: "b", Version: 2}, Old: keys.Now, OldUntil: At(9)}
	Write(t, s, func(tx testkit.Tx) error { return tx.PutKeys(r, rotated) })
	WantErr(t, s.Write(t.Context(), func(tx testkit.Tx) error { return tx.PutKeys(q, rotated) }), org.ErrAbsent)
	r = grow(t, s, "r", 1)
	WantErr(t, put(r, evidence.Signature{Size: 4, Checkpoint: []byte("four"), SignedAt: At(3), Keys: keys}), org.ErrStale)
	second := evidence.Signature{Size: 4, Checkpoint: []byte("four"), SignedAt: At(3), Keys: rotated}
	WantErr(t, put(r, second), nil)
	WantEqual(t, Get(t, s, func(tx testkit.Tx) (*evidence.Signature, error) { return tx.Signature(r) }), &second)
}

func testEpochs(t *testing.T, s Store) {
	newLog(t, s, "r")
	old := grow(t, s, "r", 3)
	next := audit.NewHead("r", old.LogID)
	next.Epoch = 1
	Write(t, s, func(tx testkit.Tx) error { return errors.Join(tx.CloseLog(old, At(5)), tx.NewLog(next)) })
	WantErr(t, s.Write(t.Context(), func(tx testkit.Tx) error { return tx.CloseLog(old, At(5)) }), org.ErrStale)
	WantEqual(t, Get(t, s, func(tx testkit.Tx) ([]*audit.Head, error) { return tx.UnsignedHeads("", nil, 10) }), []*audit.Head(nil))
	last := grow(t, s, "r", 2)
	WantEqual(t, last.Epoch, int64(1))

	var places []string
	for _, r := range allAudit(t, s, org.AuditQuery{RootID: "r", OrgID: "r", Path: "r/", Ascending: true, Limit: 2}) {
		places = append(places, fmt.Sprintf("%d/%d", r.Epoch, r.Seq))
	}
	WantEqual(t, places, split("0/0 0/1 0/2 1/0 1/1"))
	for id, want := range map[string]*audit.Head{"": last, old.LogID: last} {
		WantEqual(t, Get(t, s, func(tx testkit.Tx) (*audit.Head, error) { return tx.Head("r", id, -1) }), want)
		WantEqual(t, Get(t, s, func(tx testkit.Tx) (*audit.Head, error) { return tx.Head("r", id, 0) }), old)
		WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Head("r", id, 2); return err }), org.ErrAbsent)
	}
	WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Head("r", "other", -1); return err }), org.ErrAbsent)
	rec := Get(t, s, func(tx testkit.Tx) (*audit.Record, error) {
		return tx.AuditEntry("r", fmt.Sprintf("aud_%s_1_1", old.LogID))
	})
	WantEqual(t, []int64{rec.Epoch, rec.Seq}, []int64{1, 1})

	// The log of a purged root gets its last signature.
	Write(t, s, func(tx testkit.Tx) error {
		_, err := tx.MarkDeleted("r", "r/", "del", At(6))
		return err
	})
	Purge(t, s, "r", "del")
	WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Head("r", "", -1); return err }), org.ErrAbsent)
	WantEqual(t, Get(t, s, func(tx testkit.Tx) ([]*audit.Head, error) { return tx.UnsignedHeads("r", nil, 10) }), []*audit.Head{last})
}

func testSigningSeeds(t *testing.T, s Store) {
	seeds := func(now int) []string {
		return Get(t, s, func(tx testkit.Tx) ([]string, error) { return tx.SigningSeeds(At(now)) })
	}
	sign := func(h *audit.Head, keys evidence.LogKeys) {
		Write(t, s, func(tx testkit.Tx) error {
			return tx.PutSignature(h, &evidence.Signature{Size: h.Size, SignedAt: At(1), Keys: keys})
		})
	}
	key := func(seed string) evidence.KeyName { return evidence.KeyName{Seed: seed, Version: 1} }
	newLog(t, s, "q")
	newLog(t, s, "r")
	q, r := grow(t, s, "q", 1), grow(t, s, "r", 1)
	WantEqual(t, seeds(0), []string(nil))
	sign(q, evidence.LogKeys{Now: key("b")})
	sign(r, evidence.LogKeys{Now: key("b"), Old: key("a"), OldUntil: At(9)})
	WantEqual(t, seeds(8), []string{"a", "b"})
	WantEqual(t, seeds(9), []string{"b"})
	// The Epoch before the last one is signed no more; the log of a root that
	// was purged may have to be.
	next := audit.NewHead("q", q.LogID)
	next.Epoch = 1
	Write(t, s, func(tx testkit.Tx) error { return errors.Join(tx.CloseLog(q, At(5)), tx.NewLog(next)) })
	sign(next, evidence.LogKeys{Now: key("c")})
	Write(t, s, func(tx testkit.Tx) error { return tx.PutKeys(r, evidence.LogKeys{Now: key("d")}) })
	Write(t, s, func(tx testkit.Tx) error {
		_, err := tx.MarkDeleted("r", "r/", "del", At(6))
		return err
	})
	Purge(t, s, "r", "del")
	WantEqual(t, seeds(0), []string{"c", "d"})
}

func testMarks(t *testing.T, s Store) {
	mark := func(tx testkit.Tx) (string, error) { return tx.Mark("x") }
	WantErr(t, s.Read(t.Context(), func(tx testkit.Tx) error { _, err := mark(tx); return err }), org.ErrAbsent)
	done := make(chan error)
	for i := range 8 {
		go func() {
			done <- s.Write(t.Context(), func(tx testkit.Tx) error { return tx.PutMark("x", fmt.Sprint(i)) })
		}()
	}
	won := 0
	for range 8 {
		if err := <-done; err == nil {
			won++
		} else {
			WantErr(t, err, org.ErrStale)
		}
	}
	WantEqual(t, won, 1)
	first := Get(t, s, mark)
	WantErr(t, s.Write(t.Context(), func(tx testkit.Tx) error { return tx.PutMark("x", "another") }), org.ErrStale)
	WantEqual(t, Get(t, s, mark), first)
	Write(t, s, func(tx testkit.Tx) error { return tx.PutMark("y", "") })
	WantEqual(t, Get(t, s, func(tx testkit.Tx) (string, error) { return tx.Mark("y") }), "")
	for _, name := range []string{"y", "z"} {
		Write(t, s, func(tx testkit.Tx) error { return tx.ReplaceMark(name, "new") })
		WantEqual(t, Get(t, s, func(tx testkit.Tx) (string, error) { return tx.Mark(name) }), "new")
	}
	WantEqual(t, Get(t, s, mark), first)
}
