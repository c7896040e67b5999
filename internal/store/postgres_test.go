package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/store/storetest"
	"github.com/orgd/orgd/internal/store/storetest/usagetest"
	"github.com/orgd/orgd/internal/testkit"
)

func openPostgres(t testing.TB, url string) *store.Store { return openPooled(t, url, "") }

func TestPostgres(t *testing.T) {
	open := func(t testing.TB) *store.Store { return openPostgres(t, testkit.Postgres(t)) }
	storetest.Run(t, open)
	usagetest.Run(t, open)
}

// eventually waits for a condition for as long as the test may run.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !condition() {
		select {
		case <-ctx.Done():
			t.Fatalf("never: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func trusted(s *store.Store, rootID string) bool {
	first := s.Generation(rootID)
	return first == s.Generation(rootID)
}

func plantRoot(t testing.TB, s *store.Store, id string) {
	t.Helper()
	err := testkit.Whole(s).Write(t.Context(), func(tx testkit.Tx) error {
		o := &org.Organization{ID: id, RootID: id, Path: id + "/", Name: id, Type: org.TypeOrganization, Version: 1}
		return errors.Join(tx.InsertOrgs([]*org.Organization{o}), tx.NewLog(&audit.Head{RootID: id, LogID: id}))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPostgresReplicas: a replica hears of the others' changes.
func TestPostgresReplicas(t *testing.T) {
	url := testkit.Postgres(t)
	var wg sync.WaitGroup
	var one, two *store.Store
	wg.Go(func() { one = openPostgres(t, url) }) // both migrate at once
	wg.Go(func() { two = openPostgres(t, url) })
	wg.Wait()
	plantRoot(t, one, "r")
	plantRoot(t, one, "q")
	eventually(t, "trust", func() bool { return trusted(one, "r") && trusted(two, "r") })
	// The listener has heard of the roots once it has heard of a later one.
	before := two.Generation("last")
	plantRoot(t, one, "last")
	eventually(t, "the new root shows", func() bool { return two.Generation("last") != before })
	r, q, row := two.Generation("r"), two.Generation("q"), two.OrgGeneration("r", "r")
	if err := update(one, "r"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the change of an organization shows", func() bool { return two.OrgGeneration("r", "r") != row })
	if two.Generation("r") != r {
		t.Error("the change of an organization changed the generation of its tree")
	}
	if err := testkit.Whole(one).Write(t.Context(), func(tx testkit.Tx) error {
		_, err := tx.Lock("r")
		return errors.Join(err, tx.PutSchema("r", []byte("{}")))
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the change of a tree shows", func() bool { return two.Generation("r") != r })
	if two.Generation("q") != q {
		t.Error("the change of a tree changed the generation of another")
	}
}

// TestPostgresGone: while the server is away everything is Unavailable and
// nothing kept is believed; it comes back by itself.
func TestPostgresGone(t *testing.T) {
	cluster := testkit.NewPostgresCluster(t)
	s := openPostgres(t, cluster.URL)
	plantRoot(t, s, "r")
	eventually(t, "trust", func() bool { return trusted(s, "r") })
	before := s.Generation("r")

	cluster.Kill()
	eventually(t, "doubt", func() bool { return !trusted(s, "r") })
	wantUnavailable := func(err error) {
		t.Helper()
		if p := problem.From(err); err == nil || p.Code != problem.Unavailable || p.RetryAfter != time.Second {
			t.Errorf("error %v", err)
		}
	}
	wantUnavailable(update(s, "r"))
	wantUnavailable(testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Org("r"); return err }))
	wantUnavailable(s.Ping(t.Context()))

	if err := cluster.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "recovery", func() bool { return update(s, "r") == nil })
	eventually(t, "trust", func() bool { return trusted(s, "r") })
	if s.Generation("r") == before {
		t.Error("the generation from before the outage is back")
	}
	if _, err := store.OpenPostgres(t.Context(), "postgres://127.0.0.1:1/none?connect_timeout=1", store.Options{}); err == nil {
		t.Error("opened a database that is not there")
	}
}

// TestPostgresCrashes: whatever was acknowledged is there after the
// connections were cut at random moments, and nothing that failed with another
// code than OutcomeUnknown is.
func TestPostgresCutConnections(t *testing.T) {
	t.Run("alone", func(t *testing.T) { testCutConnections(t, update) })
	t.Run("together", func(t *testing.T) { testCutConnections(t, updateTogether) })
}

func testCutConnections(t *testing.T, update func(s *store.Store, rootID string) error) {
	url := testkit.Postgres(t)
	s := openPostgres(t, url)
	plantRoot(t, s, "r")
	admin, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())

	var acknowledged, unknown, refused atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				switch err := update(s, "r"); {
				case err == nil:
					acknowledged.Add(1)
				case problem.Is(err, problem.OutcomeUnknown):
					unknown.Add(1)
				case problem.Is(err, problem.Unavailable):
					refused.Add(1)
				default:
					t.Errorf("error %v", err)
				}
			}
		})
	}
	for range 30 {
		_, err := admin.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid()`)
		if err != nil {
			t.Fatal(err)
		}
		before := acknowledged.Load()
		eventually(t, "progress", func() bool { return acknowledged.Load() > before+3 })
	}
	close(stop)
	wg.Wait()
	var size int64
	err = testkit.Whole(s).Write(t.Context(), func(tx testkit.Tx) error {
		head, err := tx.Lock("r")
		if err == nil {
			size = head.Size
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if size < acknowledged.Load() || size > acknowledged.Load()+unknown.Load() {
		t.Errorf("%d changes; %d were acknowledged, %d have an unknown outcome, %d were refused",
			size, acknowledged.Load(), unknown.Load(), refused.Load())
	}
}

// TestPostgresConflict: a transaction that PostgreSQL gives up, here for a
// deadlock, runs again.
func TestPostgresConflict(t *testing.T) {
	s := openPostgres(t, testkit.Postgres(t))
	plantRoot(t, s, "a")
	plantRoot(t, s, "b")
	var met sync.WaitGroup // both hold their first lock
	met.Add(2)
	var runs atomic.Int64
	errs := make(chan error)
	for _, order := range [][]string{{"a", "b"}, {"b", "a"}} {
		go func() {
			first := true
			errs <- testkit.Whole(s).Write(context.Background(), func(tx testkit.Tx) error {
				runs.Add(1)
				if _, err := tx.Lock(order[0]); err != nil {
					return err
				}
				if first {
					first = false
					met.Done()
					met.Wait()
				}
				if _, err := tx.Lock(order[1]); err != nil {
					return fmt.Errorf("wrapped by the caller: %w", err)
				}
				return nil
			})
		}()
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if runs.Load() < 3 {
		t.Errorf("%d runs: there was no deadlock to recover from", runs.Load())
	}
}

// TestPostgresTogether: changes that wait for a root share a transaction, and
// whoever goes away while waiting changes nothing.
func TestPostgresTogether(t *testing.T) {
	url := testkit.Postgres(t)
	s := openPostgres(t, url)
	plantRoot(t, s, "r")
	admin, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	watcher, err := pgx.Connect(t.Context(), url) // a transaction sees the activity of its beginning
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close(context.Background())
	number := func(text string) (n int) {
		if err := watcher.QueryRow(t.Context(), text).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if _, err := admin.Exec(t.Context(), `BEGIN; SELECT 1 FROM audit_heads WHERE root_id = 'r' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	const changes = 30
	var wg sync.WaitGroup
	for range changes {
		wg.Go(func() {
			if err := updateTogether(s, "r"); err != nil {
				t.Error(err)
			}
		})
	}
	const waiting = `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`
	eventually(t, "as many transactions as there are leaders", func() bool { return number(waiting) == 2 })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = s.WriteTogether(ctx, "r", func(tx org.Tx) error { return change(tx.(testkit.Tx), "r") })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v of one that waits no longer", err)
	}
	if n := number(waiting); n != 2 {
		t.Errorf("%d transactions of one root wait for its lock", n)
	}
	if _, err := admin.Exec(t.Context(), `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if n := number(`SELECT count(*) FROM audit_entries WHERE root_id = 'r'`); n != changes {
		t.Errorf("%d entries of %d changes", n, changes)
	}
	if n := number(`SELECT count(DISTINCT xmin::text) FROM audit_entries WHERE root_id = 'r'`); n > changes/3 {
		t.Errorf("%d transactions for %d changes that waited", n, changes)
	}
}

// What is looked for among the rows of a root is looked up in the index, also before the
// server has counted the rows of a table: a purge would otherwise go through all of them
// with each of its steps.
func TestPostgresListsAreLookedUp(t *testing.T) {
	s := openPostgres(t, testkit.Postgres(t))
	if err := testkit.Whole(s).Write(t.Context(), func(tx testkit.Tx) error {
		return store.Exec(tx, `INSERT INTO org_places (root_id, parent_id, org_id, since, until)
			SELECT 'r', 'r', 'o' || n, 0, 0 FROM generate_series(1, 20000) AS n`)
	}); err != nil {
		t.Fatal(err)
	}
	if err := testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) error {
		plan, err := store.Select(tx, 1, `EXPLAIN SELECT since FROM org_places WHERE root_id = $1 AND org_id IN (SELECT value FROM json_each($2))`, "r", `["o1","o2"]`)
		if text := fmt.Sprint(plan); err == nil && !strings.Contains(text, "Index Cond: ((root_id = 'r'::text) AND (org_id = ANY") &&
			!strings.Contains(text, "Index Cond: ((root_id = $1) AND (org_id = ANY") {
			t.Errorf("the rows are looked for in another way:\n%s", strings.Join(slices.Concat(plan...), "\n"))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}
