package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/orgd/orgd/internal/testkit"
)

// Every command of docs/verify.md does what the page says.
func TestVerifyItYourself(t *testing.T) {
	testkit.Programs(t, "curl", "openssl", "sha256sum", "base64")
	page, err := os.ReadFile("../../docs/verify.md")
	if err != nil {
		t.Fatal(err)
	}
	// The page as a script: all its commands in one shell, in which each
	// answers into a file of its own.
	shell := "set -u\n"
	var checks strings.Builder
	n := 0
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		for line := range strings.Lines(block[1]) {
			line = strings.TrimSuffix(line, "\n")
			if want, ok := strings.CutPrefix(line, "#> "); ok {
				fmt.Fprintf(&checks, "grep %s out%d\n", regexpQuote(want), n)
			} else if code, ok := strings.CutPrefix(line, "#! "); ok {
				fmt.Fprintf(&checks, "grep '^%s$' code%d\n", code, n)
			} else if line != "" {
				n++
				shell += fmt.Sprintf("{ %s\n} > out%d 2>&1; echo $? > code%d\n", line, n, n)
				if !strings.Contains(block[1], line+"\n#! ") {
					fmt.Fprintf(&checks, "grep '^0$' code%d\n", n)
				}
			}
		}
	}
	if n < 20 {
		t.Fatalf("the page has %d commands", n)
	}
	script := `serve data
exec orgd org create Acme --id acme
exec orgd org create Sales --id sales --parent acme
exec orgd org update sales --description 'Ask jane.roe@example.com'
exec sh page.sh
` + checks.String() + "-- page.sh --\n" + shell
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "page.txtar"), []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{Dir: dir, RequireExplicitExec: true,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){"serve": serveScript}})
}

func regexpQuote(s string) string {
	return "'" + strings.ReplaceAll(regexp.QuoteMeta(s), "'", "''") + "'"
}
