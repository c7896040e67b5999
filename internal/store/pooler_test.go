package store_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/store/storetest"
	"github.com/orgd/orgd/internal/store/storetest/usagetest"
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
	open := func(t testing.TB) *store.Store {
		direct := testkit.Postgres(t)
		return openPooled(t, testkit.PgBouncer(t, direct, "transaction"), direct)
	}
	storetest.Run(t, open)
	usagetest.Run(t, open)
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
				err := testkit.Whole(s).Write(t.Context(), func(tx testkit.Tx) error {
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

// silence is a way to a server that can fall silent: what goes over it then is
// swallowed, and nothing is reset.
type silence struct {
	address string
	mu      sync.Mutex
	silent  *bool // of the connections from now on
}

func newSilence(t testing.TB, server string) *silence {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s := &silence{address: l.Addr().String(), silent: new(bool)}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			silent := s.silent
			s.mu.Unlock()
			go func() {
				defer in.Close()
				out, err := net.Dial("tcp", server)
				if err != nil {
					return
				}
				defer out.Close()
				forward := func(to, from net.Conn) {
					buf := make([]byte, 32<<10)
					for {
						n, err := from.Read(buf)
						if err != nil {
							to.Close()
							return
						}
						s.mu.Lock()
						swallow := *silent
						s.mu.Unlock()
						if !swallow {
							_, _ = to.Write(buf[:n])
						}
					}
				}
				go forward(in, out)
				forward(out, in)
			}()
		}
	}()
	return s
}

// fall makes all connections silent that there are. New ones work, unless all is
// true.
func (s *silence) fall(all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*s.silent = true
	if !all {
		s.silent = new(bool)
	}
}

func (s *silence) rise() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = new(bool)
}

func through(t testing.TB, databaseURL string, addresses ...string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = strings.Join(addresses, ",")
	return u.String()
}

func hostOf(t testing.TB, databaseURL string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

// A server that falls silent, without a sign from the network, is given up soon,
// and with it all that waits for it; what comes then works.
func TestSilentServer(t *testing.T) {
	direct := testkit.Postgres(t)
	way := newSilence(t, hostOf(t, direct))
	s := openPostgres(t, through(t, direct, way.address))
	plantRoot(t, s, "r")
	eventually(t, "trust", func() bool { return trusted(s, "r") })
	var waiting sync.WaitGroup
	for range 4 {
		waiting.Go(func() {
			_ = testkit.Whole(s).Write(t.Context(), func(tx testkit.Tx) error {
				_, err := tx.Lock("r")
				time.Sleep(200 * time.Millisecond)
				return err
			})
		})
	}
	time.Sleep(100 * time.Millisecond)
	begin := time.Now()
	way.fall(false)
	eventually(t, "changes", func() bool { return update(s, "r") == nil })
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("changes work again after %v", took)
	}
	ended := make(chan struct{})
	go func() { waiting.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(15 * time.Second):
		t.Error("what waited for the silent server still does")
	}

	// While nothing answers nothing is believed, and requests get their answer.
	eventually(t, "trust", func() bool { return trusted(s, "r") })
	way.fall(true)
	eventually(t, "doubt", func() bool { return !trusted(s, "r") })
	time.Sleep(5 * time.Second)
	begin = time.Now()
	err := testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Org("r"); return err })
	if p := problem.From(err); err == nil || p.Code != problem.Unavailable || p.RetryAfter == 0 {
		t.Errorf("error %v", err)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("a read takes %v to fail", took)
	}
	if s.Ping(t.Context()) == nil {
		t.Error("it says that it is ready")
	}
	way.rise()
	begin = time.Now()
	eventually(t, "recovery", func() bool { return update(s, "r") == nil && trusted(s, "r") && s.Ping(t.Context()) == nil })
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it comes back after %v", took)
	}
}

// One of several servers that hangs keeps nobody waiting.
func TestHangingHost(t *testing.T) {
	direct := testkit.Postgres(t)
	hanging, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer hanging.Close()
	begin := time.Now()
	s := openPostgres(t, through(t, direct, hanging.Addr().String(), hostOf(t, direct)))
	plantRoot(t, s, "r")
	eventually(t, "trust", func() bool { return trusted(s, "r") })
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A database that takes no changes is named at the start, and one that ceases to
// take them is not believed.
func TestReadOnlyDatabase(t *testing.T) {
	direct := testkit.Postgres(t)
	conn, err := pgx.Connect(t.Context(), direct)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	name := strings.TrimPrefix(mustParse(t, direct).Path, "/")
	readOnly := func(on bool) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), fmt.Sprintf(`ALTER DATABASE %s SET default_transaction_read_only = %v`, name, on)); err != nil {
			t.Fatal(err)
		}
	}
	readOnly(true)
	if _, err := store.OpenPostgres(t.Context(), direct, store.Options{}); err == nil || !strings.Contains(err.Error(), "takes no changes") {
		t.Errorf("error %v", err)
	}
	readOnly(false)
	s := openPooled(t, testkit.PgBouncer(t, direct, "transaction"), direct)
	plantRoot(t, s, "r")
	eventually(t, "trust", func() bool { return trusted(s, "r") })
	// The sessions behind the pooler change; those in front of it stay.
	readOnly(true)
	if _, err := conn.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "doubt", func() bool { return !trusted(s, "r") })
	eventually(t, "the reason", func() bool { return s.Ping(t.Context()) != nil })
	eventually(t, "no reads of what may be old", func() bool {
		err := testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Org("r"); return err })
		return problem.Is(err, problem.Unavailable)
	})
	readOnly(false)
	if _, err := conn.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "recovery", func() bool { return update(s, "r") == nil && trusted(s, "r") })
}

func mustParse(t testing.TB, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// What somebody else cancels, or a lock that takes too long, is an error that
// says so, and never the driver's.
func TestCancelledStatement(t *testing.T) {
	direct := testkit.Postgres(t)
	s := openPostgres(t, direct)
	plantRoot(t, s, "r")
	conn, err := pgx.Connect(t.Context(), direct)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	admin, err := pgx.Connect(t.Context(), direct)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT 1 FROM audit_heads WHERE root_id = 'r' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() { failed <- update(s, "r") }()
	eventually(t, "the change waits for the lock and is cancelled", func() bool {
		var cancelled int
		err := admin.QueryRow(t.Context(), `SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&cancelled)
		if err != nil {
			t.Fatal(err)
		}
		return cancelled > 0
	})
	if p := problem.From(<-failed); p.Code != problem.Unavailable || p.RetryAfter == 0 || strings.Contains(p.Detail, "SQLSTATE") {
		t.Errorf("error %v", p)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := update(s, "r"); err != nil {
		t.Error(err)
	}
}

// What is swept away every process has seen: the change of a transaction that was
// open for long shows too, however often was swept meanwhile, and what all have
// seen goes.
func TestSweptChangesWereSeen(t *testing.T) {
	direct := testkit.Postgres(t)
	var both [2]*store.Store
	for i := range both {
		s, err := store.OpenPostgres(t.Context(), direct, store.Options{}.Sweeping(time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		both[i] = s
	}
	plantRoot(t, both[0], "r")
	plantRoot(t, both[0], "q")
	eventually(t, "trust", func() bool { return trusted(both[0], "r") && trusted(both[1], "r") })
	conn, err := pgx.Connect(t.Context(), direct)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for range 4 {
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), `INSERT INTO changes (tx, process, root_id, org_id) VALUES (pg_current_xact_id()::text::bigint, 'slow', 'r', '')`); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if err := update(both[0], "q"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(200 * time.Millisecond)
		}
		before := [2]uint64{both[0].Generation("r"), both[1].Generation("r")}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "both see the change", func() bool {
			return both[0].Generation("r") != before[0] && both[1].Generation("r") != before[1]
		})
	}
	eventually(t, "what was seen is gone", func() bool {
		var n int
		if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM changes`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n == 0
	})
}
