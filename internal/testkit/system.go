// Package testkit holds what tests of several packages share: a private
// PostgreSQL, a real server, and the check of the whole system that follows
// every scenario.
package testkit

import (
	"context"
	"crypto/sha256"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/settings"
	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/trail"
)

// CheckSystem checks what must hold of a store at every moment: its tree is a
// tree, folding the audit trail reproduces its state, every log's head follows
// from its leaves without a gap, and consumption is exact, as checkUsage says.
func CheckSystem(t testing.TB, s *store.Store) {
	t.Helper()
	// On one snapshot: the server may close a month meanwhile.
	if err := Whole(s).Read(context.Background(), func(tx Tx) error {
		checkSystem(t, snapshot{tx})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// database is what is checked.
type database interface {
	Read(ctx context.Context, fn func(Tx) error) error
}

// snapshot is a store as one transaction sees it.
type snapshot struct{ tx Tx }

func (s snapshot) Read(_ context.Context, fn func(Tx) error) error { return fn(s.tx) }

func checkSystem(t testing.TB, s database) {
	t.Helper()
	ctx := context.Background()
	live := map[string]*org.Organization{}
	if err := s.Read(ctx, func(tx Tx) error {
		q := org.OrgQuery{Limit: 1000}
		for {
			page, err := tx.Orgs(q)
			if err != nil {
				return err
			}
			for _, o := range page.Orgs {
				if live[o.ID] != nil {
					t.Errorf("the list of all organizations repeats %s", o.ID)
				}
				live[o.ID] = o
			}
			if page.Next == nil {
				return nil
			}
			q.After = page.Next
		}
	}); err != nil {
		t.Fatal(err)
	}
	roots := map[string]bool{}
	for _, o := range live {
		roots[o.RootID] = true
		checkPlace(t, o, live)
	}
	for rootID := range roots {
		fold, seen := checkLog(t, s, rootID)
		for id, o := range live {
			if o.RootID == rootID {
				if diff := fold.Same(o); diff != "" {
					t.Errorf("organization %s: %s", id, diff)
				}
			}
		}
		checkFold(t, s, fold)
		checkUsage(t, s, rootID, seen, fold)
		checkAccess(t, s, rootID)
	}
}

func checkPlace(t testing.TB, o *org.Organization, live map[string]*org.Organization) {
	t.Helper()
	if o.ParentID == "" {
		if o.Path != o.ID+"/" || o.Depth != 0 || o.RootID != o.ID {
			t.Errorf("the root %s has path %s, depth %d, root %s", o.ID, o.Path, o.Depth, o.RootID)
		}
		return
	}
	p := live[o.ParentID]
	if p == nil {
		t.Errorf("the live organization %s has no live parent %s", o.ID, o.ParentID)
		return
	}
	if o.Path != p.Path+o.ID+"/" || o.Depth != p.Depth+1 || o.RootID != p.RootID || o.Depth > org.MaxDepth || p.Type == org.TypeUser {
		t.Errorf("organization %s has path %s, depth %d, root %s below %s with path %s", o.ID, o.Path, o.Depth, o.RootID, p.ID, p.Path)
	}
}

// checkLog recomputes the log of a root from its leaves and folds its entries.
// It also returns how many organizations have had each id.
func checkLog(t testing.TB, s database, rootID string) (fold *Fold, seen map[string]int) {
	t.Helper()
	ctx := context.Background()
	fold, seen = NewFold(), map[string]int{}
	tree := newMerkleTree()
	var epoch int64
	q := org.AuditQuery{RootID: rootID, OrgID: rootID, Path: rootID + "/", Scope: org.ScopeSubtree, Ascending: true, Limit: 1000}
	for {
		var page org.AuditPage
		if err := s.Read(ctx, func(tx Tx) (err error) {
			page, err = tx.AuditEntries(q)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		for i := range page.Records {
			r := &page.Records[i]
			if r.Epoch == epoch+1 && r.Seq == 0 {
				tree.check(t, s, rootID, epoch)
				tree, epoch = newMerkleTree(), r.Epoch
			}
			if r.Epoch != epoch || uint64(r.Seq) != tree.End() {
				t.Errorf("the log of %s has seq %d of epoch %d where %d of epoch %d should be", rootID, r.Seq, r.Epoch, tree.End(), epoch)
			}
			if h := sha256.Sum256(append([]byte{0}, r.Leaf...)); audit.Hash(h) != r.LeafHash {
				t.Errorf("entry %d of %s does not match its leaf hash", r.Seq, rootID)
			}
			tree.add(t, r.LeafHash)
			e, err := r.Entry()
			if err != nil {
				t.Errorf("entry %d of %s cannot be read: %v", r.Seq, rootID, err)
				continue
			}
			if strings.Contains(string(r.Leaf)+string(r.Values), "orgd_") {
				t.Errorf("entry %d of %s looks as if it held a secret", r.Seq, rootID)
			}
			if err := fold.Add(e); err != nil {
				t.Error(err)
			}
			if e.Action == "organization.created" {
				seen[e.OrgID]++
			}
		}
		if page.Next < 0 {
			break
		}
		q.After = page.Next
	}
	tree.check(t, s, rootID, epoch)
	return fold, seen
}

// checkFold looks the folded state up in the store.
func checkFold(t testing.TB, s database, fold *Fold) {
	t.Helper()
	if err := s.Read(context.Background(), func(tx Tx) error {
		for id := range fold.Orgs {
			stored, err := tx.Org(id)
			if err != nil {
				t.Errorf("organization %s is in the audit trail, but: %v", id, err)
				continue
			}
			if diff := fold.Same(stored); diff != "" {
				t.Errorf("organization %s: %s", id, diff)
			}
			limits, err := tx.Limits(stored.RootID, []string{id})
			if err != nil {
				return err
			}
			if len(limits) != len(fold.Metering.Limits[id]) {
				t.Errorf("organization %s has %d limits, by the audit trail %d", id, len(limits), len(fold.Metering.Limits[id]))
			}
			for _, l := range limits {
				if l.UpdatedAt = l.UpdatedAt.UTC(); fold.Metering.Limits[id][l.Meter] == nil || *fold.Metering.Limits[id][l.Meter] != l {
					t.Errorf("a limit of %s is %+v, by the audit trail %+v", id, l, fold.Metering.Limits[id][l.Meter])
				}
			}
		}
		for id, k := range fold.Keys {
			stored, err := tx.Key(id)
			if err != nil {
				t.Errorf("key %s is in the audit trail, but: %v", id, err)
				continue
			}
			if !fold.ErasedKeys[id] && !sameKey(k, stored) {
				t.Errorf("key %s is\n%+v, by the audit trail\n%+v", id, stored, k)
			}
		}
		for id, schema := range fold.Schemas {
			stored, err := tx.Schema(id)
			if err != nil || string(stored) != string(schema) && !settings.IsErased(schema) {
				t.Errorf("the schema of %s is %s, by the audit trail %s (%v)", id, stored, schema, err)
			}
		}
		for id, days := range fold.Trail.AccessRetentions {
			stored, err := tx.AccessRetention(id)
			if err != nil || stored.Days != days {
				t.Errorf("the retention of the access log of %s is %+v, by the audit trail %d days (%v)", id, stored, days, err)
			}
		}
		for id := range fold.Orgs {
			if stored, err := tx.Quota(id); err == nil {
				if q, ok := fold.Own.Quotas[id]; !ok || q.Members() != stored.Members() || q.Version != stored.Version || !q.UpdatedAt.Equal(stored.UpdatedAt) {
					t.Errorf("the quota of %s is %+v, by the audit trail %+v", id, stored, q)
				}
			} else if _, ok := fold.Own.Quotas[id]; ok {
				t.Errorf("the quota of %s is in the audit trail, but: %v", id, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// checkAccess checks that following the access log of a root from its start
// and paging through it give the same events, each once.
func checkAccess(t testing.TB, s database, rootID string) {
	t.Helper()
	q := trail.AccessQuery{RootID: rootID, OrgID: rootID, Path: rootID + "/", Scope: org.ScopeSubtree, Limit: 1000}
	followed := map[int64]string{}
	made := map[string]bool{} // ids that orgd gave; those of products are one sender's each
	if err := s.Read(context.Background(), func(tx Tx) error {
		var position int64
		for more := true; more; {
			feed, err := tx.AccessFeed(q, position)
			if err != nil {
				return err
			}
			for _, e := range feed.Events {
				if e.Seq <= position || made[e.ID] {
					t.Errorf("the access log of %s has the event %s, number %d, twice or out of order", rootID, e.ID, e.Seq)
				}
				position, followed[e.Seq] = e.Seq, e.ID
				if strings.HasPrefix(e.ID, "evt_") {
					made[e.ID] = true
				}
			}
			position, more = feed.Position, feed.More
		}
		for n := 0; ; {
			page, err := tx.AccessEvents(q)
			if err != nil {
				return err
			}
			for _, e := range page.Events {
				if n++; followed[e.Seq] != e.ID {
					t.Errorf("following the access log of %s does not give the event %s", rootID, e.ID)
				}
			}
			if page.Next == nil {
				if n != len(followed) {
					t.Errorf("the access log of %s has %d events, following it gives %d", rootID, n, len(followed))
				}
				return nil
			}
			q.Before = *page.Next
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func sameKey(a, b *key.Key) bool {
	sameTime := func(x, y *time.Time) bool { return x == nil && y == nil || x != nil && y != nil && x.Equal(*y) }
	return a.OrgID == b.OrgID && a.RootID == b.RootID && a.Name == b.Name && slices.Equal(a.Permissions, b.Permissions) &&
		a.Reach == b.Reach && slices.Equal(a.AllowedCIDRs, b.AllowedCIDRs) && (a.RateLimit == nil) == (b.RateLimit == nil) &&
		(a.RateLimit == nil || *a.RateLimit == *b.RateLimit) && sameTime(a.ExpiresAt, b.ExpiresAt) &&
		sameTime(a.RevokedAt, b.RevokedAt) && a.CreatedAt.Equal(b.CreatedAt) && a.CreatedBy == b.CreatedBy && a.Version == b.Version
}
