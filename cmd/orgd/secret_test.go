package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/orgd/orgd/internal/testkit"
)

// fails runs the command line, which must fail, and returns all that it says.
func fails(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	cmd := newRoot()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.ExecuteContext(t.Context())
	if err == nil {
		t.Fatalf("orgd %s does not fail", strings.Join(args, " "))
	}
	return out.String() + err.Error()
}

// No part of a password is in an error, however malformed its URL is.
func TestPasswordsAreNotPrinted(t *testing.T) {
	dir := t.TempDir()
	for _, password := range []string{"se@cret", "@secret", "secret@", "se/cret", "se/@cret", "12/se@cret", "se?cret", "12?secret", "se#cret", "12#secret", "se:cret", "secr%et", "%zzsecret", "se cret", "se@cr@et", "secret"} {
		for _, url := range []string{"postgres://orgd:" + password + "@127.0.0.1:1/orgd", "postgres://orgd:" + password + "@/orgd?host=127.0.0.1&port=1",
			"postgresql://orgd:" + password + "@127.0.0.1:1", "mysql://orgd:" + password + "@127.0.0.1:1/orgd", "orgd:" + password + "@127.0.0.1"} {
			t.Setenv("ORGD_DATABASE", url)
			said := fails(t, "serve", "--data-dir", dir, "--listen", "127.0.0.1:0")
			for _, part := range []string{"secr", "cret", "se@", "se/", "se?", "se#", "12"} {
				if strings.Contains(strings.ReplaceAll(said, "127.0.0.1", ""), part) {
					t.Errorf("for the password %q of %q: %s", password, url, said)
					break
				}
			}
		}
		t.Setenv("ORGD_DATABASE", "")
		for _, url := range []string{"http://orgd:" + password + "@127.0.0.1:1", "ftp://orgd:" + password + "@127.0.0.1:1/x"} {
			said := fails(t, "org", "show", "acme", "--url", url, "--key", "x")
			for _, part := range []string{"secr", "cret", "se@", "se/", "se?", "se#", ":12"} {
				if strings.Contains(strings.ReplaceAll(said, "127.0.0.1", ""), part) {
					t.Errorf("for the password %q of %q: %s", password, url, said)
					break
				}
			}
		}
	}
}

// A secret may be in a file, for each variable that takes one. Two of them, or a
// file that cannot be read, is an error that names the variable.
func TestSecretsInFiles(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	file := filepath.Join(t.TempDir(), "secret")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, value := range map[string]string{"ORGD_OPERATOR_KEY": s.OperatorKey, "ORGD_AUDIT_KEY": strings.Repeat("5e", 32), "ORGD_DATABASE": "postgres://a@b/c", "ORGD_KEY": s.OperatorKey} {
		write(value + "\n")
		t.Setenv(name+"_FILE", file)
		if got, err := secretVariable(name); err != nil || got != value {
			t.Errorf("%s_FILE: %v", name, err)
		}
		command := []string{"serve", "--data-dir", t.TempDir(), "--listen", "127.0.0.1:0"}
		if name == "ORGD_KEY" {
			command = []string{"org", "list", "--url", s.URL}
			run := newRoot()
			run.SetArgs(command)
			run.SetOut(&bytes.Buffer{})
			if err := run.ExecuteContext(t.Context()); err != nil {
				t.Errorf("with the key in a file: %v", err)
			}
		}
		t.Setenv(name, value)
		if said := fails(t, command...); !strings.Contains(said, name+" and "+name+"_FILE are both set") || strings.Contains(said, value) {
			t.Errorf("both: %s", said)
		}
		t.Setenv(name, "")
		write(" \n")
		if said := fails(t, command...); !strings.Contains(said, name+"_FILE names is empty") {
			t.Errorf("an empty file: %s", said)
		}
		t.Setenv(name+"_FILE", file+".none")
		if said := fails(t, command...); !strings.Contains(said, name+"_FILE names cannot be read") {
			t.Errorf("no file: %s", said)
		}
		t.Setenv(name+"_FILE", "")
	}
	// The database of a file is the one that is used.
	write("postgres://orgd@127.0.0.1:1/orgd")
	t.Setenv("ORGD_DATABASE_FILE", file)
	if said := fails(t, "serve", "--data-dir", t.TempDir(), "--listen", "127.0.0.1:0"); !strings.Contains(said, "127.0.0.1:1") && !strings.Contains(said, "port 1") && !strings.Contains(said, "refused") {
		t.Errorf("the database of a file: %s", said)
	}
}

// Equal lines are events of their own: in one file, across a rotation, and of
// several hosts. Importing them again adds nothing, in whatever order and under
// whatever name.
func TestEqualLinesOfALog(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	run(t, s, "org", "create", "Acme", "--id", "acme")
	run(t, s, "access", "retention", "acme", "--days", "30000")
	const line = `192.0.2.1 - - [14/Nov/2026:12:00:00 +0000] "GET /a HTTP/1.1" 200 1 "-" "probe"` + "\n"
	const other = `192.0.2.1 - - [14/Nov/2026:12:00:01 +0000] "GET /b HTTP/1.1" 200 1 "-" "probe"` + "\n"
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	log, log1 := file("access.log", line+line+other), file("access.log.1", other+line+line)
	log2, log3 := file("access.log.2", line), file("access.log.3", line)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{log, log1}, "Imported 6 events; 0 were there already.\n"},
		{[]string{log1, log}, "Imported 0 events; 6 were there already.\n"},
		{[]string{log1}, "Imported 0 events; 3 were there already.\n"},
		{[]string{log, log1, log2, log3}, "Imported 2 events; 6 were there already.\n"},
		{[]string{log, "--source", "web-1"}, "Imported 3 events; 0 were there already.\n"},
		{[]string{log, "--source", "web-2"}, "Imported 3 events; 0 were there already.\n"},
		{[]string{log, log1, "--source", "web-2"}, "Imported 3 events; 3 were there already.\n"},
		{[]string{log, "--source", "web-1"}, "Imported 0 events; 3 were there already.\n"},
	} {
		if out := run(t, s, append([]string{"access", "import", "--org", "acme"}, c.args...)...); out != c.want {
			t.Errorf("%v: %q, want %q", c.args, out, c.want)
		}
	}
	if said := fails(t, "access", "import", "--org", "acme", "--url", s.URL, "--key", s.OperatorKey, log1, log, log1); !strings.Contains(said, "is given twice") {
		t.Errorf("one file twice: %s", said)
	}
}
