package server_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// logBuffer is a log that tests read while servers write it.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A start says what the data directory lacks, and a first start, or one of a whole
// directory, says nothing.
func TestWhatIsMissingIsSaid(t *testing.T) {
	const spool, anchor = "its spool is gone", "the audit anchor is gone"
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			log := &logBuffer{}
			quiet := func(c *server.Config) {
				c.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn}))
			}
			s := testkit.Open(t, engine, quiet)
			s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"r","name":"Root"}`)
			config := s.Config
			for _, c := range []struct {
				name, path string
				want       []string
			}{
				{"nothing", "", nil},
				{"the spool", "spool", []string{spool}},
				{"the anchor", "audit.anchor", []string{anchor}},
				{"the spool's id", "spool/spool.id", []string{"its segments tell the id"}},
			} {
				before := len(log.String())
				if c.name == "nothing" && before > 0 {
					t.Errorf("the first start: %s", log.String())
				}
				s.Stop()
				if c.path != "" {
					if err := os.RemoveAll(filepath.Join(config.DataDir, c.path)); err != nil {
						t.Fatal(err)
					}
				}
				s = testkit.Open(t, engine, func(c *server.Config) { *c = config })
				s.Must(200, "GET", "/orgs/r", s.OperatorKey, "")
				said := log.String()[before:]
				for _, text := range []string{spool, anchor, "its segments tell the id"} {
					if want := len(c.want) > 0 && c.want[0] == text; strings.Contains(said, text) != want {
						t.Errorf("without %s the log says %q", c.name, said)
					}
				}
			}
		})
	}
}

// A damaged audit.key is restored, and not made anew.
func TestADamagedAuditKey(t *testing.T) {
	s := testkit.Open(t, "sqlite")
	s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"r","name":"Root"}`)
	if err := s.SignAuditLogs(t.Context()); err != nil {
		t.Fatal(err)
	}
	config := s.Config
	s.Stop()
	name := filepath.Join(config.DataDir, "audit.key")
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{good[:20], {}, append([]byte("z"), good[1:]...)} {
		if err := os.WriteFile(name, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := server.Open(t.Context(), config)
		if err == nil || strings.Contains(err.Error(), "keygen") || !strings.Contains(err.Error(), "restore it from a copy") || strings.Contains(err.Error(), string(good[:16])) {
			t.Errorf("with %d bytes of a seed: %v", len(bad), err)
		}
	}
}

// Probes are in the log when they fail, and when they work again.
func TestProbesDoNotFillTheLog(t *testing.T) {
	log := &logBuffer{}
	s := testkit.Start(t, "sqlite", func(c *server.Config) { c.Log = slog.New(slog.NewTextHandler(log, nil)) })
	lines := func(operation string) int { return strings.Count(log.String(), "operation="+operation+" ") }
	for range 20 {
		s.Must(200, "GET", "/healthz", "", "")
		s.Must(200, "GET", "/readyz", "", "")
		s.Must(200, "GET", "/metrics", s.OperatorKey, "")
	}
	s.Must(200, "GET", "/org", s.OperatorKey, "")
	for _, operation := range []string{"healthz", "readyz", "metrics"} {
		if n := lines(operation); n != 0 {
			t.Errorf("%d lines of %s", n, operation)
		}
	}
	if lines("whoAmI") == 0 {
		t.Errorf("other requests are not logged:\n%s", log)
	}
}
