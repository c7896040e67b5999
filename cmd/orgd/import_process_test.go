//go:build unix

package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// The process is killed in the middle of an import: after its next start there
// is nothing of it, or, if any of it was ever seen, all.
func TestKill9DuringAnImport(t *testing.T) {
	dir := t.TempDir()
	const n = 5000
	outcomes := map[string]int{}
	for round := range 4 {
		p := startProcess(t, dir)
		if round == 0 {
			if status, b, err := p.do("POST", "/orgs", `{"id":"r","name":"Root"}`); status != 201 {
				t.Fatalf("%d %s %v", status, b, err)
			}
		}
		prefix := fmt.Sprintf("k%d-", round)
		var rows strings.Builder
		rows.WriteString("id,parent_id,name\n")
		for i := range n {
			parent := "r"
			if i > 0 {
				parent = fmt.Sprint(prefix, (i-1)/5)
			}
			fmt.Fprintf(&rows, "%s%d,%s,N\n", prefix, i, parent)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			req, err := http.NewRequest("POST", p.url+"/orgs/import", strings.NewReader(rows.String()))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Authorization", "Bearer "+p.key)
			req.Header.Set("Content-Type", "text/csv")
			if resp, err := http.DefaultClient.Do(req); err == nil {
				resp.Body.Close()
			}
		}()
		seen := false
		if round%2 == 0 { // as soon as the first of it is there
			for deadline := time.Now().Add(time.Minute); !seen && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				status, _, err := p.do("GET", "/orgs/"+prefix+"0", "")
				seen = status == 200 && err == nil
			}
		} else { // while it is checked, or its rows are staged
			time.Sleep(time.Duration(round) * 50 * time.Millisecond)
		}
		p.cmd.Process.Kill()
		<-p.ended
		<-ended

		p = startProcess(t, dir)
		// The last of its ids: taken by what waits, then by the organization
		// itself, or free again.
		last := fmt.Sprint(prefix, n-1)
		outcome := ""
		for deadline := time.Now().Add(2 * time.Minute); outcome == "" && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if status, _, _ := p.do("GET", "/orgs/"+last, ""); status == 200 {
				outcome = "all"
			} else if status, _, _ := p.do("POST", "/orgs/r/children", `{"id":"`+last+`","name":"Another"}`); status == 201 {
				outcome = "none"
			}
		}
		status, b, err := p.do("DELETE", "/orgs/r?dry_run=true", "")
		if status != 200 || err != nil {
			t.Fatalf("%d %s %v", status, b, err)
		}
		outcomes[outcome]++
		if want := fmt.Sprintf(`"organizations":%d,`, 1+n*outcomes["all"]+outcomes["none"]); outcome == "" || !strings.Contains(string(b), want) || seen && outcome != "all" {
			t.Errorf("round %d: %q of the import is there, seen before %v: %s, want %s", round, outcome, seen, b, want)
		}
		p.cmd.Process.Kill()
		<-p.ended
	}
	t.Logf("outcomes %v", outcomes)
	if outcomes["all"] == 0 {
		t.Error("no import was completed")
	}
	s, err := server.Open(t.Context(), server.Config{DataDir: dir, RestoreWindow: time.Hour, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Recorder.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.CheckSystem(t, s.Store)
}
