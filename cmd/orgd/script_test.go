package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// programs are what the test program is when it is called by their names.
var programs = map[string]func(){"orgd": main}

func TestMain(m *testing.M) { testscript.Main(m, programs) }

// TestScripts runs the scripts in testdata/script, in which orgd is the real
// program. Besides the usual commands of testscript they have:
//
//	serve NAME
//
// starts 'orgd serve' with the data directory NAME on a free port, and sets
// ORGD_URL and ORGD_KEY to it and its operator key, and
//
//	code N PROGRAM ARGUMENTS...
//
// which is exec of a program that must end with the exit code N,
//
//	id ORG
//
// which sets ID to the id of the last API key of an organization, and
//
//	listens
//
// which sets ADDRESS to the address of the server.
//
//	now NAME
//
// sets a variable to the time.
//
//	demo ARGUMENTS...
//
// starts 'orgd demo' on a free port, after it has stopped the one before, and
// puts what it prints into the file demo.out and the lines to paste into
// paste.sh, where an answer that is an error ends curl with an error.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Values["demo"] = &running{stop: func() {}}
			return os.WriteFile(filepath.Join(env.WorkDir, "kubernetes-org.csv"), kubernetesOrg, 0o644)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){"serve": serveScript, "code": codeScript, "id": idScript, "listens": listensScript, "now": nowScript, "demo": demoScript},
	})
}

func codeScript(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N PROGRAM ARGUMENTS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var ended *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &ended) {
		got = ended.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("the exit code is %d", got)
	}
}

func idScript(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: id ORG")
	}
	ts.Check(ts.Exec("orgd", "key", "list", args[0], "-o", "json"))
	ids := regexp.MustCompile(`"id":"(key_[0-9a-z]+)"`).FindAllStringSubmatch(ts.ReadFile("stdout"), -1)
	if ids == nil {
		ts.Fatalf("%s has no API key", args[0])
	}
	ts.Setenv("ID", ids[len(ids)-1][1])
}

func listensScript(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: listens")
	}
	ts.Setenv("ADDRESS", strings.TrimPrefix(ts.Getenv("ORGD_URL"), "http://"))
}

func nowScript(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: now NAME")
	}
	ts.Setenv(args[0], time.Now().UTC().Format("2006-01-02T15:04:05.000000Z07:00"))
}

// program returns a command that runs this orgd in the script's directory and
// environment.
func program(ts *testscript.TestScript, args ...string) *exec.Cmd {
	bin, _, _ := strings.Cut(ts.Getenv("PATH"), string(os.PathListSeparator))
	cmd := exec.Command(filepath.Join(bin, "orgd"), args...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), "TMPDIR="+ts.MkAbs("tmp"))
	return cmd
}

// running is the demo of a script.
type running struct{ stop func() }

func demoScript(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("usage: demo ARGUMENTS...")
	}
	r := ts.Value("demo").(*running)
	r.stop()
	ts.Check(os.MkdirAll(ts.MkAbs("tmp"), 0o700))
	cmd := program(ts, append([]string{"demo", "--listen", "127.0.0.1:0"}, args...)...)
	var log strings.Builder
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	r.stop = func() {
		r.stop = func() {}
		ts.Check(cmd.Process.Signal(os.Interrupt))
		if err := cmd.Wait(); err != nil {
			ts.Fatalf("orgd demo: %v\n%s", err, log.String())
		}
	}
	ts.Defer(func() { r.stop() })
	var printed, paste strings.Builder
	pasting := false
	for in := bufio.NewScanner(out); in.Scan(); {
		line := in.Text()
		fmt.Fprintln(&printed, line)
		if name, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "="); ok && strings.HasPrefix(line, "export ORGD_") {
			ts.Setenv(name, value)
		}
		pasting = (pasting || strings.HasPrefix(line, "export ")) && !strings.HasPrefix(line, "The operator key")
		if pasting {
			fmt.Fprintln(&paste, strings.Replace(line, "curl -s ", "curl -s -f -w '\\n' ", 1))
		}
		if strings.HasPrefix(line, "The operator key") {
			break
		}
	}
	if paste.Len() == 0 {
		cmd.Process.Kill()
		cmd.Wait()
		r.stop = func() {}
		ts.Fatalf("orgd demo prints nothing to paste:\n%s%s", printed.String(), log.String())
	}
	ts.Check(os.WriteFile(ts.MkAbs("demo.out"), []byte(printed.String()), 0o644))
	ts.Check(os.WriteFile(ts.MkAbs("paste.sh"), []byte("set -e\n"+paste.String()), 0o644))
}

var listening = regexp.MustCompile(`msg="orgd is listening" url=(\S+)`)

func serveScript(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: serve NAME")
	}
	dir := ts.MkAbs(args[0])
	cmd := program(ts, "serve", "--data-dir", dir, "--listen", "127.0.0.1:0")
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
