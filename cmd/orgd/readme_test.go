package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/orgd/orgd/internal/testkit"
)

// The README's first session answers what the README says, on the demo's data,
// and so does the command line after it.
func TestReadmeFirstSession(t *testing.T) {
	testkit.Programs(t, "curl")
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)<!-- first session[^\n]*-->\n```sh\n(.*?)```").FindSubmatch(readme)
	if block == nil {
		t.Fatal("the README has no first session")
	}
	dir := t.TempDir()
	s := testkit.Start(t, "sqlite")
	token, err := loadDemo(t.Context(), s.Server, dir)
	if err != nil {
		t.Fatal(err)
	}
	setup := ""
	checked := 0
	lines := strings.Split(string(block[1]), "\n")
	for i, line := range lines {
		if !strings.HasPrefix(line, "curl ") {
			if strings.Contains(line, "=") && !strings.HasPrefix(line, "#") {
				setup += line + "\n"
			}
			continue
		}
		cmd := exec.Command("sh", "-c", setup+line)
		cmd.Env = append(os.Environ(), "ORGD_URL="+s.URL, "ORGD_KEY="+token)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
		want, ok := strings.CutPrefix(lines[i+1], "#> ")
		if !ok {
			t.Fatalf("the README does not say what this answers: %s", line)
		}
		checkAnswer(t, line, string(out), want)
		checked++
	}
	if checked < 10 {
		t.Errorf("only %d commands were checked", checked)
	}

	block = regexp.MustCompile("(?s)<!-- command line[^\n]*-->\n```sh\n(.*?)```").FindSubmatch(readme)
	if block == nil {
		t.Fatal("the README has no session of the command line")
	}
	lines = strings.Split(strings.TrimSpace(string(block[1])), "\n")
	if lines[0] != "go install ./cmd/orgd" || len(lines) != 9 {
		t.Fatalf("the README's command line begins with %q and has %d lines", lines[0], len(lines))
	}
	for i := 1; i < len(lines); i += 2 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "sh", "-c", "exec "+lines[i])
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "ORGD_URL="+s.URL, "ORGD_KEY="+token)
		var out, errors strings.Builder
		cmd.Stderr = &errors
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		endless := strings.Contains(lines[i], " tail ")
		for in := bufio.NewScanner(stdout); in.Scan(); {
			fmt.Fprintln(&out, in.Text())
			if endless {
				cmd.Process.Signal(os.Interrupt)
				endless = false
			}
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%s: %v: %s", lines[i], err, errors.String())
		}
		want, ok := strings.CutPrefix(lines[i+1], "#> ")
		if !ok {
			t.Fatalf("the README does not say what this prints: %s", lines[i])
		}
		checkAnswer(t, lines[i], errors.String()+out.String(), want)
	}
}

// checkAnswer checks that what a line of the README prints has the parts of
// what the README says of it, which … separates, in their order.
func checkAnswer(t *testing.T, line, out, want string) {
	t.Helper()
	rest := out
	for part := range strings.SplitSeq(want, "…") {
		part = strings.TrimSpace(part)
		at := strings.Index(rest, part)
		if at < 0 {
			t.Errorf("%s\nanswers %s\nwithout %s", line, out, part)
			return
		}
		rest = rest[at+len(part):]
	}
}

// The README's table has every flag of the server, with its variable and its
// default, and no other.
func TestReadmeFlags(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{}
	for line := range strings.Lines(string(readme)) {
		if !strings.HasPrefix(line, "| `--") || strings.Contains(line, "(commands)") {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows[strings.Trim(cells[0], "`")] = cells
	}
	cmd := serveCommand()
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		cells := rows["--"+f.Name]
		delete(rows, "--"+f.Name)
		if len(cells) != 4 {
			t.Errorf("the README does not list --%s", f.Name)
			return
		}
		if want := "`ORGD_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_")) + "`"; cells[1] != want {
			t.Errorf("--%s has the variable %s in the README, and is %s", f.Name, cells[1], want)
		}
		written := strings.Trim(cells[2], "`")
		switch f.DefValue {
		case written, "", "[]": // no default, or one in words
		default:
			d, err := time.ParseDuration(written)
			if err != nil || d.String() != f.DefValue {
				t.Errorf("--%s has the default %s in the README, and is %s", f.Name, written, f.DefValue)
			}
		}
		if f.Usage == "" || cells[3] == "" {
			t.Errorf("--%s is not explained", f.Name)
		}
	})
	for name := range rows {
		t.Errorf("the README lists %s, which the server does not take", name)
	}
}
