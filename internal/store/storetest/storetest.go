// Package storetest is the conformance suite that every store must pass. It
// says, test by test, what the sides of the store that packages declare, and access.Sink,
// promise.
package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/testkit"
)

// Store is what the suite tests.
type Store = testkit.Database

// Run runs the suite. Each call of open returns a new, empty store, which is
// closed by the test's cleanup.
func Run(t *testing.T, open func(testing.TB) *store.Store) {
	Each(t, open, map[string]func(*testing.T, Store){
		"Transactions":       testTransactions,
		"Together":           testTogether,
		"Orgs":               testOrgs,
		"UpdateOrg":          testUpdateOrg,
		"Move":               testMove,
		"DeleteRestore":      testDeleteRestore,
		"Expired":            testExpired,
		"Purge":              testPurge,
		"PurgeRoot":          testPurgeRoot,
		"PurgeBegins":        testPurgeBegins,
		"Late":               testLate,
		"Schema":             testSchema,
		"Keys":               testKeys,
		"KeyRotation":        testKeyRotation,
		"Imports":            testImports,
		"Staged":             testStaged,
		"OrgQueries":         testOrgQueries,
		"OrgQueriesBounded":  testOrgQueriesBounded,
		"OrgModel":           testOrgModel,
		"Audit":              testAudit,
		"AuditMoves":         testAuditMoves,
		"AuditPages":         testAuditPages,
		"AuditBounded":       testAuditBounded,
		"AuditConcurrent":    testAuditConcurrent,
		"PagesBounded":       testPagesBounded,
		"LogHashes":          testLogHashes,
		"Signatures":         testSignatures,
		"Epochs":             testEpochs,
		"SigningSeeds":       testSigningSeeds,
		"Marks":              testMarks,
		"AccessEvents":       testAccessEvents,
		"AccessPages":        testAccessPages,
		"AccessBounded":      testAccessBounded,
		"AccessFeed":         testAccessFeed,
		"AccessFeedBounded":  testAccessFeedBounded,
		"ChildrenAt":         testChildrenAt,
		"Holding":            testHolding,
		"Erase":              testErase,
		"AccessIngest":       testAccessIngest,
		"AccessIngestRace":   testAccessIngestRace,
		"AccessSenders":      testAccessSenders,
		"AccessExpiry":       testAccessExpiry,
		"AccessRetention":    testAccessRetention,
		"Partition":          testPartition,
		"Idempotency":        testIdempotency,
		"IdempotencyRace":    testIdempotencyRace,
		"AnswersKept":        testAnswersKept,
		"Quotas":             testQuotas,
		"Flush":              testFlush,
		"SpoolRuns":          testSpoolRuns,
		"SpoolReports":       testSpoolReports,
		"FlushKeyUse":        testFlushKeyUse,
		"FlushText":          testFlushText,
		"FlushConcurrent":    testFlushConcurrent,
		"FlushRace":          testFlushRace,
		"UsageModel":         testUsageModel,
		"Generation":         testGeneration,
		"GenerationReadsNew": testGenerationReadsNew,
	})
}

// Each runs tests, each on a store of its own.
func Each(t *testing.T, open func(testing.TB) *store.Store, tests map[string]func(*testing.T, Store)) {
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			test(t, testkit.Whole(open(t)))
		})
	}
}

// Epoch is the time at which the suite's clock stands.
var Epoch = time.Date(2026, 11, 23, 12, 0, 0, 123456000, time.UTC)

// At returns a time so many seconds after Epoch.
func At(seconds int) time.Time { return Epoch.Add(time.Duration(seconds) * time.Second) }

// Write runs a write that must succeed.
func Write(t testing.TB, s Store, fn func(testkit.Tx) error) {
	t.Helper()
	if err := s.Write(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// Read runs a read that must succeed.
func Read(t testing.TB, s Store, fn func(testkit.Tx) error) {
	t.Helper()
	if err := s.Read(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// Get returns what one read method returns.
func Get[T any](t testing.TB, s Store, fn func(testkit.Tx) (T, error)) T {
	t.Helper()
	var v T
	Read(t, s, func(tx testkit.Tx) (err error) {
		v, err = fn(tx)
		return err
	})
	return v
}

// WantErr fails the test unless err is want.
func WantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v, want %v", err, want)
	}
}

// WantEqual fails the test unless got equals want, an empty list or map being one that is nil.
func WantEqual(t testing.TB, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// newOrg returns an organization at the end of a path such as "r/a/b/".
func newOrg(path string) *org.Organization {
	ids := org.SplitPath(path)
	o := &org.Organization{ID: ids[len(ids)-1], RootID: ids[0], Path: path, Depth: len(ids) - 1, Name: "Org " + ids[len(ids)-1],
		Type: org.TypeOrganization, CreatedAt: Epoch, UpdatedAt: Epoch, Version: 1,
		Settings: org.Settings{Values: []byte("{}"), UpdatedAt: Epoch}}
	if len(ids) > 1 {
		o.ParentID = ids[len(ids)-2]
	}
	return o
}

// insert inserts organizations, and starts the logs of the roots among them.
func insert(t testing.TB, s Store, orgs ...*org.Organization) {
	t.Helper()
	Write(t, s, func(tx testkit.Tx) error {
		if err := tx.InsertOrgs(orgs); err != nil {
			return err
		}
		for _, o := range orgs {
			if o.ParentID == "" {
				if err := tx.NewLog(&audit.Head{RootID: o.ID, LogID: "log-" + o.ID}); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// Plant inserts a tree with the given paths.
func Plant(t testing.TB, s Store, paths ...string) {
	t.Helper()
	var orgs []*org.Organization
	for _, p := range paths {
		orgs = append(orgs, newOrg(p))
	}
	insert(t, s, orgs...)
}

func newKey(id, path string) *key.Key {
	o := newOrg(path)
	return &key.Key{ID: id, OrgID: o.ID, RootID: o.RootID, Name: "Key " + id, Reach: key.ReachSubtree,
		Permissions: key.Permissions{"orgs:read"}, Hint: "abcd", CreatedAt: Epoch, CreatedBy: "operator", UpdatedAt: Epoch,
		SecretHash: bytes.Repeat([]byte{7}, 32), Version: 1}
}

// appendAudit appends one entry for each path to the log of a root.
func appendAudit(tx testkit.Tx, rootID, action string, paths ...string) error {
	head, err := tx.Lock(rootID)
	if err != nil {
		return err
	}
	var records []audit.Record
	for _, path := range paths {
		ids := org.SplitPath(path)
		r := audit.Record{RootID: rootID, Epoch: head.Epoch, Seq: head.Size, ID: fmt.Sprintf("aud_%d_%d", head.Epoch, head.Size),
			Timestamp: At(int(head.Size)), OrgID: ids[len(ids)-1], Path: path, Action: action, ActorID: "operator",
			Leaf: []byte(fmt.Sprintf(`{"seq":%d}`, head.Size)), Values: []byte(`{"ip":"::1"}`)}
		r.LeafHash[0] = byte(head.Size)
		head.Size++
		head.Root = r.LeafHash
		head.Range = []audit.Hash{r.LeafHash, {1, 2, 3}}
		records = append(records, r)
	}
	return tx.AppendAudit(head, records)
}

func ids(orgs []*org.Organization) []string {
	var list []string
	for _, o := range orgs {
		list = append(list, o.ID)
	}
	return list
}

func split(s string) []string { return strings.Fields(s) }

func sorted(list []string) []string {
	slices.Sort(list)
	return list
}
