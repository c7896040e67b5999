//go:build linux

package faults

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orgd/orgd/internal/testkit"
)

// Requests wait in the spool, and its file is cut off at any byte or has one
// that is another: what is before is there, nothing is there twice, what is
// counted is what is logged, and the server says what it could not read. The
// control counts what was behind the damage.
func TestDamagedSpool(t *testing.T) {
	n := rounds(t, 6)
	database := testkit.Postgres(t)
	dir := filepath.Join(t.TempDir(), "data")
	p := start(t, dir, "--database", database)
	w := makeWorld(t, p, 2, 8)
	time.Sleep(time.Second) // what made the world is stored
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := conn.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), `LOCK TABLE access_heads IN ACCESS EXCLUSIVE MODE`)
	}
	if err != nil {
		t.Fatal(err)
	}
	j := newJournal()
	w.kinds = []string{read}
	stop := w.load(j, p.at)
	time.Sleep(time.Second)
	p.kill()
	stop()
	conn.Close(t.Context())
	time.Sleep(300 * time.Millisecond) // the server's side of the killed process's connections ends
	answered := 0
	for _, r := range j.all() {
		if r.outcome == acknowledged {
			answered++
		}
	}

	r := row{fault: "waiting requests in a damaged spool: cut off at a byte, or with a flipped one", rounds: n}
	for i := range n + 1 {
		copied := filepath.Join(t.TempDir(), "data")
		copyFiles(t, dir, copied, "", 0)
		u, err := url.Parse(database)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("%s_%d", strings.TrimPrefix(u.Path, "/"), i)
		server := *u
		server.Path = "/postgres"
		execute(t, server.String(), "CREATE DATABASE "+name+" TEMPLATE "+strings.TrimPrefix(u.Path, "/"))
		t.Cleanup(func() { execute(t, server.String(), "DROP DATABASE "+name+" WITH (FORCE)") })
		u.Path = "/" + name
		what := "untouched"
		if i < n {
			what = damage(t, copied, i%2 == 0)
		}
		q, err := tryStart(t, copied, "--database", u.String())
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		got := w.check(j, q.url, everything())
		text := q.text()
		q.kill()
		t.Logf("%s: %d of %d requests are logged", what, answered-got.unlogged, answered)
		said := strings.Contains(text, "the spool is damaged") || strings.Contains(text, "cutting off a record")
		if got.unlogged > 0 && i%2 == 1 && !said {
			t.Errorf("%s: %d requests are missing, and the log does not say so:\n%s", what, got.unlogged, tail(text))
		}
		got.acknowledged = answered - got.unlogged
		if i < n {
			r.control.add(found{acknowledged: answered, lost: got.unlogged})
			got.unlogged = 0
		}
		r.found.add(got)
	}
	report(t, r)
}

// damage cuts the largest segment off at some byte, or flips one of its bytes.
func damage(t *testing.T, dir string, cut bool) string {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(dir, "spool", "*.spool"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("no segments: %v", err)
	}
	size := func(name string) int64 {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	name := slices.MaxFunc(segments, func(a, b string) int { return int(size(a) - size(b)) })
	was := size(name)
	at := was/4 + rand.N(was*3/4)
	if cut {
		if err := os.Truncate(name, at); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("cut off at %d of %d", at, was)
	}
	b, err := os.ReadFile(name)
	if err == nil {
		b[at] ^= 0x10
		err = os.WriteFile(name, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("flipped at %d of %d", at, was)
}
