package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"orgd": main})
}

// TestScripts runs the scripts in testdata/script, in which orgd is the real
// program. Besides the usual commands of testscript they have:
//
//	serve NAME
//
// starts 'orgd serve' with the data directory NAME on a free port, and sets
// ORGD_URL and ORGD_KEY to it and its operator key.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			return os.WriteFile(filepath.Join(env.WorkDir, "kubernetes-org.csv"), kubernetesOrg, 0o644)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){"serve": serveScript},
	})
}

var listening = regexp.MustCompile(`msg="orgd is listening" url=(\S+)`)

func serveScript(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: serve NAME")
	}
	bin, _, _ := strings.Cut(ts.Getenv("PATH"), string(os.PathListSeparator))
	dir := ts.MkAbs(args[0])
	cmd := exec.Command(filepath.Join(bin, "orgd"), "serve", "--data-dir", dir, "--listen", "127.0.0.1:0")
	cmd.Dir = ts.MkAbs(".")
	log, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	url, ended := make(chan string, 1), make(chan struct{})
	var lines strings.Builder
	go func() {
		defer close(ended)
		defer close(url)
		for in := bufio.NewScanner(log); in.Scan(); {
			fmt.Fprintln(&lines, in.Text())
			if m := listening.FindStringSubmatch(in.Text()); m != nil {
				url <- m[1]
			}
		}
	}()
	ts.Defer(func() {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			ts.Logf("orgd serve: %v", err)
		}
		<-ended
		if err := cmd.Wait(); err != nil {
			ts.Logf("orgd serve: %v\n%s", err, lines.String())
		}
	})
	u, ok := <-url
	if !ok {
		ts.Fatalf("orgd serve did not start:\n%s", lines.String())
	}
	key, err := os.ReadFile(filepath.Join(dir, "operator.key"))
	ts.Check(err)
	ts.Setenv("ORGD_URL", u)
	ts.Setenv("ORGD_KEY", strings.TrimSpace(string(key)))
}
