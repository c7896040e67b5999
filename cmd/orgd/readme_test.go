package main

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/orgd/orgd/internal/testkit"
)

// The README's first session answers what the README says, on the demo's data.
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
		rest := string(out)
		for _, part := range strings.Split(want, "…") {
			part = strings.TrimSpace(part)
			at := strings.Index(rest, part)
			if at < 0 {
				t.Errorf("%s\nanswers %s\nwithout %s", line, out, part)
				break
			}
			rest = rest[at+len(part):]
		}
		checked++
	}
	if checked < 10 {
		t.Errorf("only %d commands were checked", checked)
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
