package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/testkit"
)

// told keeps what a store that is opened says.
type told struct {
	mu   sync.Mutex
	log  bytes.Buffer
	busy []string
}

func (w *told) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(b)
}

func (w *told) options() store.Options {
	return store.Options{Log: slog.New(slog.NewTextHandler(w, nil)), Busy: func(with string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.busy = append(w.busy, with)
	}}
}

func (w *told) said(t *testing.T, pattern string) {
	t.Helper()
	is := regexp.MustCompile(pattern)
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		w.mu.Lock()
		log, busy := w.log.String(), strings.Join(w.busy, "\n")
		w.mu.Unlock()
		if is.MatchString(log) || is.MatchString(busy) {
			return
		}
		if time.Since(begun) > 20*time.Second {
			t.Fatalf("nobody says %s, but\n%s\n%s", pattern, log, busy)
		}
	}
}

// What keeps the database from being brought up to date is named while it does:
// a migration elsewhere, and a transaction that has a table. Both waits end with
// the session that they are for.
func TestMigrationSaysForWhomItWaits(t *testing.T) {
	ctx := context.Background()
	for _, tt := range []struct {
		name, hold, says, busy string
	}{
		{"the lock of migrations", `SELECT pg_advisory_lock(4097083626)`,
			`another process migrates the database.* seconds=[34] holders="pid %d \(backup, from 127\.0\.0\.1, idle for \d+s\)"`, `another process migrates the database or holds the lock for that, for [34]s`},
		{"a table", `BEGIN; LOCK TABLE usage_totals IN ROW EXCLUSIVE MODE`,
			`the migration 00014_usage_children waits for a lock of others.* seconds=3 holders="pid %d \(backup, from 127\.0\.0\.1, idle in transaction for \d+s\)"`, `the migration 00014_usage_children waits for a lock of others, for 3s`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url := testkit.Postgres(t)
			versions := map[int64]bool{}
			for v := range int64(14) {
				versions[v] = true
			}
			if err := store.OldDatabase(ctx, "postgres", url, versions, func(func(string, ...any) error) error { return nil }); err != nil {
				t.Fatal(err)
			}
			other, err := pgx.Connect(ctx, url+"&application_name=backup")
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close(ctx)
			if _, err := other.Exec(ctx, tt.hold); err != nil {
				t.Fatal(err)
			}
			var w told
			opened := make(chan error, 1)
			go func() {
				s, err := store.OpenPostgres(ctx, url, w.options())
				if err == nil {
					err = s.Close()
				}
				opened <- err
			}()
			w.said(t, fmt.Sprintf(tt.says, other.PgConn().PID()))
			w.said(t, tt.busy)
			other.Close(ctx)
			if err := <-opened; err != nil {
				t.Fatal(err)
			}
		})
	}
}

// The session that holds the lock of migrations has keepalives: one of which the
// network has lost the other end gives the lock back.
func TestMigrationLockHasKeepalives(t *testing.T) {
	ctx := context.Background()
	conn, err := store.MigrationConn(ctx, testkit.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for name, want := range map[string]string{"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "4"} {
		var is string
		if err := conn.QueryRowContext(ctx, `SELECT current_setting($1)`, name).Scan(&is); err != nil || is != want {
			t.Errorf("%s is %s, want %s (%v)", name, is, want, err)
		}
	}
}

// What takes long says so every few seconds, on every engine.
func TestMigrationProgress(t *testing.T) {
	var w told
	if err := store.Watch(w.options(), "the migration 00099_slow", 7*time.Second); err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{`msg="the migration 00099_slow is under way" seconds=3`, `msg="the migration 00099_slow is under way" seconds=6`,
		`msg="the migration 00099_slow is done" seconds=7`, `(?m)^the migration 00099_slow is under way$`, `(?m)^the migration 00099_slow is under way, for 6s$`} {
		w.said(t, pattern)
	}
	if last := w.busy[len(w.busy)-1]; last != "" {
		t.Errorf("afterwards it is still busy: %s", last)
	}
}

// A database says from which schema on servers may serve it. The mark is never
// lowered, and who knows less than it says is told so.
func TestCompatibleFrom(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			ctx := context.Background()
			dir, url := t.TempDir(), ""
			if engine == "postgres" {
				url = testkit.Postgres(t)
			}
			open := func() *store.Store {
				t.Helper()
				var s *store.Store
				var err error
				if url != "" {
					s, err = store.OpenPostgres(ctx, url, store.Options{})
				} else {
					s, err = store.OpenSQLite(ctx, dir, store.Options{})
				}
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			s := open()
			defer func() { s.Close() }()
			if err := s.CheckSchema(ctx); err != nil {
				t.Errorf("a new database is not for its own server: %v", err)
			}
			if err := testkit.Whole(s).Write(ctx, func(tx testkit.Tx) error { return tx.ReplaceMark("compatible_from", "1000") }); err != nil {
				t.Fatal(err)
			}
			s.Close()
			s = open()
			foreign := new(store.SchemaError)
			if err := s.CheckSchema(ctx); !errors.As(err, &foreign) || foreign.From != 1000 || foreign.Known < 14 {
				t.Errorf("a database for servers that know the schema 1000: %v", err)
			}
		})
	}
}
