package server_test

import (
	"bytes"
	"crypto/rand"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// The first start makes an operator key that only its owner can read; later
// starts take it. A key that is given takes its place and is written nowhere.
func TestOperatorKey(t *testing.T) {
	dir := t.TempDir()
	open := func(given string) (*server.Server, error) {
		return server.Open(t.Context(), server.Config{DataDir: dir, OperatorKey: given, Log: slog.New(slog.DiscardHandler)})
	}
	file := filepath.Join(dir, "operator.key")
	given, _, _ := key.NewSecret(rand.Reader, "operator")
	s, err := open(given + "\n")
	if err != nil || s.OperatorKey != given || s.NewOperatorKey != "" {
		t.Fatalf("with a given key: %v", err)
	}
	s.Close()
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("a given key was written: %v", err)
	}
	s, err = open("")
	if err != nil || s.NewOperatorKey != file || s.OperatorKey == given {
		t.Fatalf("a first start: %v", err)
	}
	made := s.OperatorKey
	s.Close()
	if info, err := os.Stat(file); err != nil || info.Mode() != fs.FileMode(0o600) {
		t.Errorf("%s: %v %v", file, info, err)
	}
	s, err = open("")
	if err != nil || s.NewOperatorKey != "" || s.OperatorKey != made {
		t.Fatalf("a second start: %v", err)
	}
	s.Close()
	// What is no operator key is refused, and not repeated in the message.
	other, _, _ := key.NewSecret(rand.Reader, "key_1")
	for _, bad := range []string{"secret", other, given[:len(given)-1], given + "x"} {
		if s, err := open(bad); err == nil {
			s.Close()
			t.Errorf("the operator key %q was taken", bad)
		} else if strings.Contains(err.Error(), bad) {
			t.Errorf("the message holds the key: %v", err)
		}
	}
	if err := os.WriteFile(file, []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := open(""); err == nil {
		s.Close()
		t.Error("a damaged operator key was taken")
	} else if !strings.Contains(err.Error(), file) {
		t.Errorf("the message does not name the file: %v", err)
	}
	// The operator's calls need no organization's key.
	running := testkit.Start(t, "sqlite", func(c *server.Config) { c.OperatorKey = given })
	running.Must(201, "POST", "/orgs", given, `{"name":"Root"}`)
	running.Must(401, "POST", "/orgs", made, `{"name":"Root"}`)
}

// Servers that share a database are told if they do not share the operator key,
// once for each change. The database does not have the key.
func TestOperatorKeysOfOneDatabase(t *testing.T) {
	database := testkit.Postgres(t)
	one, _, _ := key.NewSecret(rand.Reader, "operator")
	other, _, _ := key.NewSecret(rand.Reader, "operator")
	for i, start := range []struct {
		key  string
		warn bool
	}{{one, false}, {one, false}, {other, true}, {other, false}, {one, true}} {
		var log bytes.Buffer
		s, err := server.Open(t.Context(), server.Config{DataDir: t.TempDir(), Database: database, OperatorKey: start.key, AuditKey: strings.Repeat("5e", 32),
			SignInterval: -1, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		if warned := strings.Contains(log.String(), "level=WARN") && strings.Contains(log.String(), "ORGD_OPERATOR_KEY"); warned != start.warn {
			t.Errorf("start %d says %s", i, log.String())
		}
	}
}
