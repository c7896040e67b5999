package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// A statement and its proof are taken from a server and checked without it.
func TestStatementCommand(t *testing.T) {
	var clock atomic.Int64
	clock.Store(time.Date(2026, 10, 14, 12, 0, 0, 0, time.UTC).UnixMicro())
	s := testkit.Start(t, "sqlite", func(c *server.Config) {
		c.Now = func() time.Time { return time.UnixMicro(clock.Load()).UTC() }
	})
	s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"acme","name":"Acme"}`)
	s.Must(200, "POST", "/orgs/acme/consumption/events", s.OperatorKey, `{"id":"1","source":"a","meter":"storage_used","quantity":1.5,"org_id":"acme"}`)
	clock.Store(time.Date(2026, 11, 5, 0, 0, 0, 0, time.UTC).UnixMicro())
	if _, err := s.Metering.CloseMonths(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ORGD_URL", s.URL)
	t.Setenv("ORGD_KEY", s.OperatorKey)
	dir := t.TempDir()
	run := func(args ...string) (string, error) {
		t.Helper()
		var out bytes.Buffer
		cmd := newRoot()
		cmd.SetArgs(args)
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	proof, statement, key := filepath.Join(dir, "proof"), filepath.Join(dir, "statement"), filepath.Join(dir, "key")
	text, err := run("audit", "statement", "acme", "--month", "2026-10", "--proof", proof)
	if err != nil || !strings.Contains(text, `"storage_used":{"own":"1.5","total":"1.5"}`) {
		t.Fatalf("%s, %v", text, err)
	}
	vkey, err := run("audit", "key", "acme")
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(key, vkey)
	write(statement, text)
	if out, err := run("audit", "verify", proof, "--key", key, "--statement", statement); err != nil || !strings.Contains(out, "1 statement found") {
		t.Errorf("%s, %v", out, err)
	}
	write(statement, strings.ReplaceAll(text, "1.5", "1.4"))
	if out, err := run("audit", "verify", proof, "--key", key, "--statement", statement); err == nil {
		t.Errorf("a forged statement was verified: %s", out)
	}
	if _, err := run("audit", "statement", "acme", "--month", "2026-11"); exitCode(err) != exitNotFound {
		t.Errorf("a month that is open: %v", err)
	}
	if _, err := run("audit", "statement", "acme"); exitCode(err) != exitUsage {
		t.Errorf("no month: %v", err)
	}
}
