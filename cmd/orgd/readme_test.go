package main

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/orgd/orgd/internal/testkit"
)

// The README's first session answers what the README says, on the demo's data.
func TestReadmeFirstSession(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("the session needs curl")
		}
		t.Skip("the session needs curl")
	}
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
