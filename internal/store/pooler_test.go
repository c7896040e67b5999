package store_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/store/storetest"
	"github.com/orgd/orgd/internal/testkit"
)

func openPooled(t testing.TB, pooler, direct string) *store.Store {
	t.Helper()
	s, err := store.OpenPostgres(t.Context(), pooler, store.Options{Direct: direct})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Behind a pooler that gives each transaction another session everything holds
// that holds without one, if there is a way past it too.
func TestPoolerOfTransactions(t *testing.T) {
	storetest.Run(t, func(t testing.TB) storetest.Store {
		direct := testkit.Postgres(t)
		return openPooled(t, testkit.PgBouncer(t, direct, "transaction"), direct)
	})
}

// A pooler that cannot work is named before anything is done, one that keeps
// sessions works like none.
func TestPoolers(t *testing.T) {
	direct := testkit.Postgres(t)
	for _, mode := range []string{"transaction", "statement"} {
		_, err := store.OpenPostgres(t.Context(), testkit.PgBouncer(t, direct, mode), store.Options{})
		if mode == "statement" {
			if err == nil {
				t.Error("a pooler without transactions was accepted")
			}
			continue
		}
		if named := (*store.PoolerError)(nil); !errors.As(err, &named) {
			t.Errorf("pool_mode=%s: %v", mode, err)
		}
	}
	conn, err := pgx.Connect(t.Context(), direct)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var tables int
	if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`).Scan(&tables); err != nil || tables != 0 {
		t.Errorf("%d tables were made, %v", tables, err)
	}
	s := openPostgres(t, testkit.PgBouncer(t, direct, "session"))
	plantRoot(t, s, "r")
	eventually(t, "trust", func() bool { return trusted(s, "r") })
}

// Whichever way two processes come to a database, each sees what the other
// changes within a second, although nobody has told it.
func TestChangesAreSeenWithoutBeingTold(t *testing.T) {
	direct := testkit.Postgres(t)
	pooler := testkit.PgBouncer(t, direct, "transaction")
	for name, open := range map[string]func() *store.Store{
		"direct": func() *store.Store { return openPostgres(t, direct) },
		"pooled": func() *store.Store { return openPooled(t, pooler, direct) },
	} {
		t.Run(name, func(t *testing.T) {
			s := open()
			root := "root-" + name
			plantRoot(t, s, root)
			plantRoot(t, s, root+"-other")
			eventually(t, "trust", func() bool { return trusted(s, root) })
			conn, err := pgx.Connect(t.Context(), direct)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(context.Background())
			// A process that ends right after its commit says nothing more.
			for i := range 5 {
				time.Sleep(400 * time.Millisecond)
				tree, other, row := s.Generation(root), s.Generation(root+"-other"), s.OrgGeneration(root, root)
				tx, err := conn.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				changed := [2]string{root, ""}
				if i%2 == 1 {
					changed = [2]string{"", root}
				}
				if _, err := tx.Exec(t.Context(), `INSERT INTO changes (tx, process, root_id, org_id) VALUES (pg_current_xact_id()::text::bigint, 'gone', $1, $2)`, changed[0], changed[1]); err != nil {
					t.Fatal(err)
				}
				// It is committed after transactions that began later.
				for range 3 {
					if err := update(s, root+"-other"); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(700 * time.Millisecond)
				if s.Generation(root) != tree || s.OrgGeneration(root, root) != row {
					t.Error("something changed before the commit")
				}
				if err := tx.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				eventually(t, "the change shows", func() bool { return s.OrgGeneration(root, root) != row })
				if took := time.Since(begin); took > time.Second {
					t.Errorf("it took %v", took)
				}
				if (s.Generation(root) != tree) != (i%2 == 0) || s.Generation(root+"-other") != other {
					t.Error("the wrong generation has changed")
				}
			}
		})
	}
}

// What a process of a version before the log of changes does is noted for it.
func TestChangesOfOlderProcessesAreSeen(t *testing.T) {
	direct := testkit.Postgres(t)
	s := openPostgres(t, direct)
	plantRoot(t, s, "r")
	config, err := pgx.ParseConfig(direct)
	if err != nil {
		t.Fatal(err)
	}
	config.RuntimeParams["application_name"] = "orgd"
	older, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer older.Close(context.Background())
	if _, err := older.Exec(t.Context(), `LISTEN orgd`); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	eventually(t, "trust", func() bool { return trusted(s, "r") })
	before := s.Generation("r")
	if _, err := older.Exec(t.Context(), `UPDATE audit_heads SET size = size WHERE root_id = 'r'`); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	eventually(t, "the older process' change shows", func() bool { return s.Generation("r") != before })
	if took := time.Since(begin); took > time.Second {
		t.Errorf("it took %v", took)
	}
	// And it is told of what this one does, in the transaction itself.
	if err := update(s, "r"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if n, err := older.WaitForNotification(ctx); err != nil || len(n.Payload) < 6 || n.Payload[:6] != "org r " && n.Payload[:7] != "tree r " {
		t.Errorf("notification %v, error %v", n, err)
	}
}

// Settings of the role do not change what orgd promises or how long it works.
func TestRoleSettings(t *testing.T) {
	direct := testkit.Postgres(t)
	conn, err := pgx.Connect(t.Context(), direct)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	role := fmt.Sprintf("role_%d", time.Now().UnixNano())
	for _, statement := range []string{
		`CREATE ROLE ` + role + ` LOGIN SUPERUSER`,
		`ALTER ROLE ` + role + ` SET statement_timeout = '50ms'`,
		`ALTER ROLE ` + role + ` SET lock_timeout = '20ms'`,
		`ALTER ROLE ` + role + ` SET idle_in_transaction_session_timeout = '20ms'`,
		`ALTER ROLE ` + role + ` SET idle_session_timeout = '200ms'`,
		`ALTER ROLE ` + role + ` SET synchronous_commit = 'off'`,
	} {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		conn, err := pgx.Connect(context.Background(), direct)
		if err == nil {
			_, err = conn.Exec(context.Background(), `DROP OWNED BY `+role+`; DROP ROLE `+role)
			conn.Close(context.Background())
		}
		if err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	for name, s := range map[string]*store.Store{
		"direct": openPostgres(t, u.String()),
		"pooled": openPooled(t, testkit.PgBouncer(t, u.String(), "transaction"), u.String()),
	} {
		root := "of-" + name
		plantRoot(t, s, root)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				err := s.Write(t.Context(), func(tx org.Tx) error {
					_, err := tx.Lock(root)
					time.Sleep(100 * time.Millisecond) // idle in the transaction, while others wait for the lock
					return err
				})
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
		wg.Wait()
		time.Sleep(300 * time.Millisecond)
		if err := update(s, root); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
