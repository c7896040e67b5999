//go:build linux

package faults

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orgd/orgd/internal/testkit"
)

// orgd is killed under the load of its clients.
func TestKill(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			n := rounds(t, 4)
			dir := filepath.Join(t.TempDir(), "data")
			var args []string
			if engine == "postgres" {
				args = []string{"--database", testkit.Postgres(t)}
			}
			j := newJournal()
			p := start(t, dir, args...)
			w := makeWorld(t, p, 2, 8)
			for range n {
				stop := w.load(j, p.at)
				time.Sleep(400*time.Millisecond + rand.N(200*time.Millisecond))
				p.kill()
				stop()
				p = start(t, dir, args...)
			}
			report(t, row{"kill -9 of orgd, " + engine, n, w.check(j, p.url, everything()), w.check(j.credulous(), p.url, everything())})
		})
	}
}

// The database server is killed under the load of orgd's clients.
func TestKillPostgres(t *testing.T) {
	n := rounds(t, 3)
	cluster := testkit.NewPostgresCluster(t)
	j := newJournal()
	p := start(t, filepath.Join(t.TempDir(), "data"), "--database", cluster.URL)
	w := makeWorld(t, p, 2, 8)
	for range n {
		stop := w.load(j, p.at)
		time.Sleep(500*time.Millisecond + rand.N(200*time.Millisecond))
		cluster.Kill()
		time.Sleep(300 * time.Millisecond)
		stop()
		if err := cluster.Start(); err != nil {
			t.Fatal(err)
		}
		waitReady(t, p.url)
	}
	report(t, row{"crash of PostgreSQL", n, w.check(j, p.url, everything()), w.check(j.credulous(), p.url, everything())})
}

func execute(t *testing.T, url, statement string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, statement); err != nil {
		t.Fatal(err)
	}
}

// waitReady returns when a server says that it can answer.
func waitReady(t *testing.T, url string) {
	t.Helper()
	for begin := time.Now(); ready(url) != 200; time.Sleep(20 * time.Millisecond) {
		if time.Since(begin) > time.Minute {
			t.Fatal("orgd does not get ready again")
		}
	}
}
