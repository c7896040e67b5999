package testkit

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Standby starts a server that follows c over the address from, which leads to
// it, under a name. It ends with the test.
func (c *PostgresCluster) Standby(t testing.TB, name, from string) *PostgresCluster {
	t.Helper()
	return c.standbyAt(t, loopback, name, from)
}

func (c *PostgresCluster) standbyAt(t testing.TB, where site, name, from string) *PostgresCluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "orgd-postgres-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := chownToServer(dir); err != nil {
		t.Fatal(err)
	}
	s := &PostgresCluster{bin: c.bin, dir: dir, site: where, port: 5432}
	if where.host == loopback.host {
		_, s.port = splitAddress(t, FreeAddress(t))
	}
	host, port := splitAddress(t, from)
	backup := exec.Command(filepath.Join(c.bin, "pg_basebackup"), "--pgdata", s.data(), "--write-recovery-conf", "--wal-method", "stream",
		"--checkpoint", "fast", "--no-sync", "--dbname", fmt.Sprintf("host=%s port=%d user=postgres application_name=%s", host, port, name))
	asServer(backup)
	backup.Dir = dir
	var out bytes.Buffer
	backup.Stdout, backup.Stderr = &out, &out
	if err = s.launch(backup); err == nil {
		err = backup.Wait()
	}
	if err != nil {
		t.Fatalf("pg_basebackup: %v\n%s", err, out.String())
	}
	s.URL = fmt.Sprintf("postgres://postgres@%s:%d/postgres?sslmode=disable", s.host, s.port)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	return s
}

// WaitFor makes every commit on c wait until the standby of a name has it, and
// returns when the standby has all there is.
func (c *PostgresCluster) WaitFor(t testing.TB, name string) {
	t.Helper()
	for _, statement := range []string{`ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (` + name + `)'`, `SELECT pg_reload_conf()`} {
		if err := administer(c.URL, statement); err != nil {
			t.Fatal(err)
		}
	}
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if c.ask(t, `SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'`) == 1 {
			return
		}
		if time.Since(begin) > 30*time.Second {
			t.Fatal("the standby does not follow")
		}
	}
}

// Promote makes a standby the primary, and returns when it takes writes.
func (c *PostgresCluster) Promote(t testing.TB) {
	t.Helper()
	if err := administer(c.URL, `SELECT pg_promote(true, 30)`); err != nil {
		t.Fatal(err)
	}
}

// Address is where the server listens.
func (c *PostgresCluster) Address() string {
	u, err := url.Parse(c.URL)
	if err != nil {
		panic(err)
	}
	return u.Host
}

func (c *PostgresCluster) ask(t testing.TB, query string) (n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.URL)
	if err == nil {
		defer conn.Close(ctx)
		err = conn.QueryRow(ctx, query).Scan(&n)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}
