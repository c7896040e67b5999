package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/testkit"
)

// allAudit reads all pages.
func allAudit(t testing.TB, s Store, q org.AuditQuery) []audit.Record {
	t.Helper()
	var all []audit.Record
	for {
		p := Get(t, s, func(tx testkit.Tx) (org.AuditPage, error) { return tx.AuditEntries(q) })
		if len(p.Records) > q.Limit {
			t.Fatalf("a page of %d, limit %d", len(p.Records), q.Limit)
		}
		all = append(all, p.Records...)
		switch {
		case p.Next == -1:
			return all
		case q.Ascending && p.Next <= q.After, !q.Ascending && q.Before != 0 && p.Next >= q.Before, p.Next == 0:
			t.Fatalf("no progress: next %d", p.Next)
		}
		q.Before, q.After = p.Next, p.Next
	}
}

func seqs(records []audit.Record) []int64 {
	var list []int64
	for _, r := range records {
		list = append(list, r.Seq)
	}
	return list
}

func testAudit(t *testing.T, s Store) {
	WantErr(t, s.Write(t.Context(), func(tx testkit.Tx) error { _, err := tx.Lock("r"); return err }), org.ErrAbsent)
	Plant(t, s, "r/", "q/")
	Write(t, s, func(tx testkit.Tx) error {
		head, err := tx.Lock("r")
		WantEqual(t, head, &audit.Head{RootID: "r", LogID: "log-r"})
		return err
	})
	Write(t, s, func(tx testkit.Tx) error {
		return errors.Join(appendAudit(tx, "r", "one", "r/", "r/a/"), appendAudit(tx, "r", "two", "r/a/"), appendAudit(tx, "q", "one", "q/"))
	})
	Write(t, s, func(tx testkit.Tx) error {
		head, err := tx.Lock("r")
		WantEqual(t, head, &audit.Head{RootID: "r", LogID: "log-r", Size: 3, Root: audit.Hash{2}, Range: []audit.Hash{{2}, {1, 2, 3}}})
		return err
	})
	Write(t, s, func(tx testkit.Tx) error {
		last, err := tx.LastAudit("r")
		WantEqual(t, last, At(2))
		_, none := tx.LastAudit("none")
		WantErr(t, none, org.ErrAbsent)
		return err
	})
	entries := allAudit(t, s, org.AuditQuery{RootID: "r", OrgID: "r", Path: "r/", Limit: 10})
	WantEqual(t, seqs(entries), []int64{2, 1, 0})
	WantEqual(t, entries[0], audit.Record{RootID: "r", Seq: 2, ID: "aud_0_2", Timestamp: At(2), OrgID: "a", Path: "r/a/",
		Action: "two", ActorID: "operator", Leaf: []byte(`{"seq":2}`), LeafHash: audit.Hash{2}, Values: []byte(`{"ip":"::1"}`)})

	t.Run("an append that does not follow the head is stale", func(t *testing.T) {
		WantErr(t, s.Write(t.Context(), func(tx testkit.Tx) error {
			return tx.AppendAudit(&audit.Head{RootID: "r", Size: 3}, []audit.Record{{RootID: "r", Seq: 2, Leaf: []byte{1}}})
		}), org.ErrStale)
	})
	t.Run("a failed change leaves no entry", func(t *testing.T) {
		failure := errors.New("no")
		WantErr(t, s.Write(t.Context(), func(tx testkit.Tx) error {
			return errors.Join(appendAudit(tx, "r", "lost", "r/"), failure)
		}), failure)
		WantEqual(t, len(allAudit(t, s, org.AuditQuery{RootID: "r", OrgID: "r", Path: "r/", Limit: 10})), 3)
	})
}

func testAuditMoves(t *testing.T, s Store) {
	Plant(t, s, "r/")
	Write(t, s, func(tx testkit.Tx) error {
		return appendAudit(tx, "r", "x",
			"r/", "r/a/", "r/a/m/", "r/a/m/k/", // m moves from a to b
			"r/b/", "r/b/m/", "r/b/m/k/", "r/a-b/")
	})
	for _, test := range []struct {
		query org.AuditQuery
		want  []int64
	}{
		{org.AuditQuery{OrgID: "r", Path: "r/", Scope: org.ScopeSubtree}, []int64{7, 6, 5, 4, 3, 2, 1, 0}},
		{org.AuditQuery{OrgID: "r", Path: "r/", Scope: org.ScopeSelf}, []int64{0}},
		{org.AuditQuery{OrgID: "r", Path: "r/", Scope: org.ScopeChildren}, []int64{7, 4, 1}},
		{org.AuditQuery{OrgID: "r", Path: "r/", Scope: org.ScopeDescendants}, []int64{7, 6, 5, 4, 3, 2, 1}},
		{org.AuditQuery{OrgID: "a", Path: "r/a/", Scope: org.ScopeSubtree}, []int64{3, 2, 1}},
		{org.AuditQuery{OrgID: "a", Path: "r/a/", Scope: org.ScopeDescendants}, []int64{3, 2}},
		{org.AuditQuery{OrgID: "a", Path: "r/a/", Scope: org.ScopeChildren}, []int64{2}},
		{org.AuditQuery{OrgID: "b", Path: "r/b/", Scope: org.ScopeSubtree}, []int64{6, 5, 4}},
		{org.AuditQuery{OrgID: "m", Path: "r/b/m/", Scope: org.ScopeSelf}, []int64{5, 2}},
		{org.AuditQuery{OrgID: "m", Path: "r/b/m/", Scope: org.ScopeSubtree}, []int64{6, 5, 2}},
		{org.AuditQuery{OrgID: "r", Path: "r/", Org: "k"}, []int64{6, 3}},
		{org.AuditQuery{OrgID: "b", Path: "r/b/", Org: "k"}, []int64{6}},
		{org.AuditQuery{OrgID: "r", Path: "r/", From: At(2), To: At(4)}, []int64{3, 2}},
		{org.AuditQuery{OrgID: "r", Path: "r/", Action: "y"}, nil},
		{org.AuditQuery{OrgID: "r", Path: "r/", Actor: "operator", From: At(7)}, []int64{7}},
		{org.AuditQuery{OrgID: "r", Path: "r/", Actor: "key"}, nil},
	} {
		for _, limit := range []int{1, 3, 100} {
			test.query.RootID, test.query.Limit = "r", limit
			t.Run(fmt.Sprintf("%s %s by %d", test.query.Scope, test.query.Path, limit), func(t *testing.T) {
				WantEqual(t, seqs(allAudit(t, s, test.query)), test.want)
				test.query.Ascending = true
				slices.Reverse(test.want)
				WantEqual(t, seqs(allAudit(t, s, test.query)), test.want)
				test.query.Ascending = false
				slices.Reverse(test.want)
			})
		}
	}
}

func testAuditPages(t *testing.T, s Store) {
	Plant(t, s, "r/")
	paths := split("r/ r/a/ r/a/b/ r/c/")
	var log []string
	rapid.Check(t, func(rt *rapid.T) {
		more := rapid.SliceOfN(rapid.SampledFrom(paths), 1, 5).Draw(rt, "append")
		Write(t, s, func(tx testkit.Tx) error { return appendAudit(tx, "r", "x", more...) })
		log = append(log, more...)
		path := rapid.SampledFrom(paths).Draw(rt, "path")
		ids := org.SplitPath(path)
		q := org.AuditQuery{RootID: "r", OrgID: ids[len(ids)-1], Path: path, Limit: rapid.IntRange(1, 50).Draw(rt, "limit"),
			Scope: org.ScopeSubtree, Ascending: rapid.Bool().Draw(rt, "ascending")}
		var want []int64
		for seq, p := range log {
			if strings.HasPrefix(p, path) {
				want = append(want, int64(seq))
			}
		}
		if !q.Ascending {
			slices.Reverse(want)
		}
		if got := seqs(allAudit(t, s, q)); !slices.Equal(got, want) {
			rt.Fatalf("%+v\n got %v\nwant %v", q, got, want)
		}
	})
}

func testAuditBounded(t *testing.T, s Store) {
	Plant(t, s, "r/")
	paths := []string{"r/rare/"}
	for range 6000 {
		paths = append(paths, "r/often/")
	}
	Write(t, s, func(tx testkit.Tx) error { return appendAudit(tx, "r", "x", append(paths, "r/rare/")...) })
	q := org.AuditQuery{RootID: "r", OrgID: "rare", Path: "r/rare/", Scope: org.ScopeSubtree, Limit: 5}
	p := Get(t, s, func(tx testkit.Tx) (org.AuditPage, error) { return tx.AuditEntries(q) })
	WantEqual(t, seqs(p.Records), []int64{6001})
	if p.Next <= 1 {
		t.Errorf("next %d: the page looked at everything", p.Next)
	}
	WantEqual(t, seqs(allAudit(t, s, q)), []int64{6001, 0})
	q.Scope = org.ScopeSelf // has its own index
	p = Get(t, s, func(tx testkit.Tx) (org.AuditPage, error) { return tx.AuditEntries(q) })
	WantEqual(t, seqs(p.Records), []int64{6001, 0})
	WantEqual(t, p.Next, int64(-1))
}

// testAuditConcurrent: seq has no gaps and no repeats, and whoever holds the
// lock sees all that was done before.
func testAuditConcurrent(t *testing.T, s Store) {
	Plant(t, s, "r/", "q/")
	const writers, each = 8, 25
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				err := s.Write(context.Background(), func(tx testkit.Tx) error {
					rootID := []string{"r", "q"}[w%2]
					if _, err := tx.Lock(rootID); err != nil {
						return err
					}
					o, err := tx.Org(rootID)
					if err != nil {
						return err
					}
					o.Version++
					o.Description = fmt.Sprint(w, i)
					return errors.Join(tx.UpdateOrg(o), appendAudit(tx, rootID, "x", rootID+"/"))
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, rootID := range split("r q") {
		var want []int64
		for i := range int64(writers / 2 * each) {
			want = append(want, i)
		}
		WantEqual(t, seqs(allAudit(t, s, org.AuditQuery{RootID: rootID, OrgID: rootID, Path: rootID + "/", Limit: 1000, Ascending: true})), want)
		o := Get(t, s, func(tx testkit.Tx) (*org.Organization, error) { return tx.Org(rootID) })
		WantEqual(t, o.Version, int64(writers/2*each+1))
	}
}
