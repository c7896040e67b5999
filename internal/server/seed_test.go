package server_test

import (
	"bytes"
	"database/sql"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// seedID returns the id of a seed.
func seedID(t *testing.T, seed string) string {
	t.Helper()
	k, err := audit.ParseKeyring(seed)
	if err != nil {
		t.Fatal(err)
	}
	return k.Newest()
}

// mustRefuseToStart checks that no server starts with the configuration, that
// its error has all of the texts, and that it makes no key.
func mustRefuseToStart(t *testing.T, c server.Config, texts ...string) {
	t.Helper()
	s, err := server.Open(t.Context(), c)
	if err == nil {
		s.Close()
		t.Fatal("the server starts")
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("the error does not say %q: %v", text, err)
		}
	}
	if _, err := os.Stat(filepath.Join(c.DataDir, "audit.key")); !os.IsNotExist(err) {
		t.Errorf("audit.key: %v", err)
	}
}

// The first start on a new database makes a seed, says so, and gives no server
// that lacks it another one.
func TestMissingSeed(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		seed, another, third := strings.Repeat("01", audit.SeedSize), strings.Repeat("02", audit.SeedSize), strings.Repeat("03", audit.SeedSize)
		tr := newTrail(t, testkit.Open(t, engine, func(c *server.Config) { c.AuditKey = seed }))
		tr.Must(http.StatusOK, "POST", "/orgs/other/audit_log/rotate_key", tr.OperatorKey, `{"overlap_seconds":0}`)
		tr.Stop()
		lacking := tr.Config
		lacking.AuditKey = ""
		if engine == "postgres" {
			lacking.DataDir = t.TempDir() // of a second server
		}
		mustRefuseToStart(t, lacking, "the seed "+seedID(t, seed), filepath.Join(lacking.DataDir, "audit.key"), "ORGD_AUDIT_KEY", "orgd audit new-epoch")
		if _, err := os.Stat(filepath.Join(lacking.DataDir, "operator.key")); engine == "postgres" && !os.IsNotExist(err) {
			t.Errorf("operator.key: %v", err)
		}

		// A server with more seeds than are used starts, and signs as before.
		tr.Config.AuditKey = seed + " " + another
		tr.again(t, func(*sql.DB) {})
		tr.grow(t, 1)
		old := tr.vkey
		if tr.keep(t); tr.vkey != old {
			t.Error("another key signs")
		}
		if status := tr.Must(http.StatusOK, "GET", "/service_status", "", ""); status.String("status") != "ok" {
			t.Errorf("/service_status says %s", status.Body)
		}
		// Of a log that has gone over to a newer seed, the newer one is missing,
		// and during the overlap the old one too.
		tr.Must(http.StatusOK, "POST", "/orgs/acme/audit_log/rotate_key", tr.OperatorKey, `{"overlap_seconds":1}`)
		tr.Must(http.StatusOK, "POST", "/orgs/other/audit_log/rotate_key", tr.OperatorKey, `{"overlap_seconds":0}`)
		tr.keep(t)
		tr.Stop()
		mustRefuseToStart(t, lacking, seedID(t, another))
		time.Sleep(time.Second)
		mustRefuseToStart(t, lacking, "the seed "+seedID(t, another)+",")
		// The old one is needed no longer.
		tr.Config.AuditKey = another + "," + third
		tr.again(t, func(*sql.DB) {})
		tr.grow(t, 1)
		if tr.keep(t); tr.vkey == old {
			t.Error("the old key signs")
		}
		testkit.CheckSystem(t, tr.Store)
		tr.Stop()
	})
}

// The first start without a seed makes one and says so; the next one takes it.
// While nothing is signed with it, it can be made again.
func TestFirstSeed(t *testing.T) {
	var log bytes.Buffer
	c := server.Config{DataDir: t.TempDir(), Log: slog.New(slog.NewTextHandler(&log, nil)), SignInterval: -1}
	path := filepath.Join(c.DataDir, "audit.key")
	start := func() string {
		t.Helper()
		log.Reset()
		s, err := server.Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	seed := start()
	if text := log.String(); !strings.Contains(text, "level=INFO") || !strings.Contains(text, "made the seed of the audit log keys") ||
		!strings.Contains(text, path) || !strings.Contains(text, seedID(t, seed)) || strings.Contains(text, strings.TrimSpace(seed)) {
		t.Errorf("the first start says %s", text)
	}
	if start() != seed || strings.Contains(log.String(), "made the seed") {
		t.Errorf("the second start makes another seed: %s", log.String())
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if start() == seed {
		t.Error("the seed is back")
	}
}

// Of servers that begin on one empty database at the same moment, without a
// seed, one makes it, and the others do not start; nor do later ones, though
// nothing is signed yet, and whether the first had made it or was given it.
func TestServersShareTheFirstSeed(t *testing.T) {
	url := testkit.Postgres(t)
	open := func(url, seed string) (*server.Server, string, error) {
		dir := t.TempDir()
		s, err := server.Open(t.Context(), server.Config{DataDir: dir, Database: url, AuditKey: seed, SignInterval: -1, Log: slog.New(slog.DiscardHandler)})
		return s, filepath.Join(dir, "audit.key"), err
	}
	refused := func(path string, err error) {
		if !strings.Contains(err.Error(), "another server of this database has begun with the seed ") || !strings.Contains(err.Error(), "ORGD_AUDIT_KEY") {
			t.Error(err)
		}
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	var first string
	for range 4 {
		all.Go(func() {
			s, path, err := open(url, "")
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				refused(path, err)
				return
			}
			s.Close()
			b, err := os.ReadFile(path)
			if err != nil || first != "" {
				t.Errorf("a second seed is made: %v", err)
			}
			first = strings.TrimSpace(string(b))
		})
	}
	all.Wait()
	if first == "" {
		t.Fatal("nobody has made a seed")
	}
	if s, path, err := open(url, ""); err == nil {
		s.Close()
		t.Error("a later server makes a seed of its own")
	} else {
		refused(path, err)
		if !strings.Contains(err.Error(), seedID(t, first)) {
			t.Error(err)
		}
	}
	given := testkit.Postgres(t)
	for _, seed := range []string{first, first, ""} {
		s, path, err := open(given, seed)
		switch {
		case err == nil:
			s.Close()
		case seed != "":
			t.Errorf("with the seed: %v", err)
		default:
			refused(path, err)
		}
		if err == nil && seed == "" {
			t.Error("a server makes a seed beside the one that another was given")
		}
	}
}
