package server_test

import (
	"errors"
	"log/slog"
	"os"
	"testing"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// A demo does not open a database with organizations that no demo has made, and
// makes nothing beside it. Its own it opens again.
func TestDemo(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		s := testkit.Open(t, engine)
		s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"acme","name":"Acme"}`)
		s.Stop()
		c := s.Config
		c.Demo = true
		if engine == "postgres" {
			c.DataDir, c.AuditKey = t.TempDir(), ""
		}
		if s, err := server.Open(t.Context(), c); !errors.Is(err, server.ErrNotDemo) {
			if err == nil {
				s.Close()
			}
			t.Errorf("a server's database: %v", err)
		}
		if files, err := os.ReadDir(c.DataDir); engine == "postgres" && (err != nil || len(files) > 0) {
			t.Errorf("it has made %v (%v)", files, err)
		}

		own := server.Config{DataDir: t.TempDir(), Demo: true, Log: slog.New(slog.DiscardHandler)}
		if engine == "postgres" {
			own.Database = testkit.Postgres(t)
		}
		for range 2 {
			d := testkit.Open(t, "", func(c *server.Config) { *c = own })
			if d.Do("GET", "/orgs/acme", d.OperatorKey, "").Status == 404 {
				d.Must(201, "POST", "/orgs", d.OperatorKey, `{"id":"acme","name":"Acme"}`)
			}
			d.Stop()
		}
	})
}
