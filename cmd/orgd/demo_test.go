package main

import (
	"bytes"
	"context"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// printed keeps what a command prints, and calls done once it has printed all.
type printed struct {
	bytes.Buffer
	done func()
}

func (p *printed) Write(b []byte) (int, error) {
	n, err := p.Buffer.Write(b)
	if strings.Contains(p.String(), "The operator key") {
		p.done()
	}
	return n, err
}

// On PostgreSQL the second run of a demo finds what the first left, and a
// database of others is left as it is.
func TestDemoOnPostgres(t *testing.T) {
	demo := func(database, dir string) (key string, err error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out := &printed{done: cancel}
		cmd := newRoot()
		cmd.SetOut(out)
		cmd.SetArgs([]string{"demo", "--database", database, "--data-dir", dir, "--listen", "127.0.0.1:0"})
		err = cmd.ExecuteContext(ctx)
		if m := regexp.MustCompile(`ORGD_KEY=(\S+)`).FindStringSubmatch(out.String()); m != nil {
			key = m[1]
		}
		return key, err
	}
	database, dir := testkit.Postgres(t), filepath.Join(t.TempDir(), "demo")
	first, err := demo(database, dir)
	if err != nil || first == "" {
		t.Fatalf("the first run prints the key %q: %v", first, err)
	}
	if second, err := demo(database, dir); err != nil || second != first {
		t.Errorf("the second run prints another key: %v", err)
	}
	s := testkit.Start(t, "postgres")
	s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"acme","name":"Acme"}`)
	for _, dir := range []string{dir, filepath.Join(t.TempDir(), "new")} {
		if _, err := demo(s.Config.Database, dir); err == nil || !strings.Contains(err.Error(), "organizations that no demo has loaded: it is left as it is") {
			t.Errorf("on a server's database, with the directory %s: %v", dir, err)
		}
	}
	if roots := s.Must(200, "GET", "/orgs", s.OperatorKey, "").JSON().([]any); len(roots) != 1 {
		t.Errorf("it has %d roots now", len(roots))
	}
}
