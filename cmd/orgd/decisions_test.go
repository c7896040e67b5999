//go:build unix

package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// decisionAtMost is how long a decision may take beside a writer.
const decisionAtMost = 50 * time.Millisecond

// TestDecisionsBesideWriters: on SQLite decisions and reads of one customer take no
// longer than that, but for one of a hundred at most, while another's organizations
// are imported, deleted, restored and purged. It prints the worst. ORGD_TEST_DECISIONS says how many organizations, such as 100000; without
// it the test is skipped. The server has the first core, and the test should have
// another: taskset -c 1 go test …. What the machine itself adds shows in the first
// line, of a time in which nothing is written.
func TestDecisionsBesideWriters(t *testing.T) {
	rows, err := strconv.Atoi(os.Getenv("ORGD_TEST_DECISIONS"))
	if err != nil {
		t.Skip("ORGD_TEST_DECISIONS does not say beside how many organizations")
	}
	taskset := testkit.Programs(t, "taskset")[0]
	dir := t.TempDir()
	start := func(args ...string) *process {
		return startCommand(t, dir, exec.Command(taskset, append([]string{"-c", "0", orgdProgram(t), "serve", "--data-dir", dir, "--listen", "127.0.0.1:0"}, args...)...))
	}
	p := start()
	must := func(want int, method, path, body string, headers ...string) {
		t.Helper()
		status, b, err := request(http.DefaultClient, p.url, p.key, method, path, body, headers...)
		if err != nil || status != want {
			t.Fatalf("%s %s: %d %.300s %v", method, path, status, b, err)
		}
	}
	must(201, "POST", "/orgs", `{"id":"good","name":"Root"}`)
	must(201, "POST", "/orgs/good/children", `{"id":"team","name":"Team"}`)
	must(201, "POST", "/orgs", `{"id":"big","name":"Root"}`)
	must(201, "POST", "/orgs/big/children", `{"id":"many","name":"Many"}`)
	status, b, err := p.do("POST", "/orgs/good/api_keys", `{"name":"all","permissions":["admin"]}`)
	if status != 201 {
		t.Fatalf("%d %s %v", status, b, err)
	}
	key := member(t, b, "secret")
	beside := func(what string, work func()) {
		t.Helper()
		began := time.Now()
		over := make(chan struct{})
		var clients sync.WaitGroup
		kinds := []string{"/forward_auth?permission=orgs:read&meter=api_calls", "/orgs/team"}
		took := make([][]time.Duration, len(kinds))
		late := make([][]string, len(kinds)) // when, in seconds since it began, and how long in ms
		for i, path := range kinds {
			clients.Go(func() {
				c := &http.Client{Transport: &http.Transport{}}
				defer c.CloseIdleConnections()
				tick := time.NewTicker(4 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-over:
						return
					case <-tick.C:
					}
					sent := time.Now()
					status, b, err := request(c, p.url, key, "GET", path, "")
					d := time.Since(sent)
					took[i] = append(took[i], d)
					if d > decisionAtMost {
						late[i] = append(late[i], fmt.Sprintf("%.1fs %.0fms", sent.Sub(began).Seconds(), ms(d)))
					}
					if err != nil || status != 200 {
						t.Errorf("%s: %s: %d %.200s %v", what, path, status, b, err)
					}
				}
			})
		}
		stop := sync.OnceFunc(func() { close(over); clients.Wait() })
		defer stop()
		work()
		lasted := time.Since(began)
		stop()
		for i, path := range kinds {
			slices.Sort(took[i])
			n := len(took[i])
			if n == 0 {
				t.Fatal("nothing was measured")
			}
			path, _, _ = strings.Cut(path, "?")
			worst, p99 := took[i][n-1], took[i][n*99/100]
			t.Logf("%-22s %6.1fs %-13s n=%-6d p50 %7.2f ms  p99 %7.2f ms  max %7.2f ms  over %v: %d %v", what, lasted.Seconds(), path, n,
				ms(took[i][n/2]), ms(p99), ms(worst), decisionAtMost, len(late[i]), late[i])
			if p99 > decisionAtMost {
				t.Errorf("%s: one of a hundred requests to %s takes longer than %v", what, path, decisionAtMost)
			}
		}
	}

	beside("nothing", func() { time.Sleep(5 * time.Second) })
	beside("import", func() {
		must(200, "POST", "/orgs/import?parent_id=many", shortRows("o", rows, ""), "Content-Type", "text/csv")
	})
	beside("delete", func() { must(200, "DELETE", "/orgs/many?cascade=true", "") })
	beside("restore", func() { must(200, "POST", "/orgs/many/restore", "") })
	beside("delete", func() { must(200, "DELETE", "/orgs/many?cascade=true", "") })

	// The first purge is a minute after a start.
	p.cmd.Process.Kill()
	<-p.ended
	p = start("--restore-window", "0s")
	time.Sleep(55 * time.Second)
	beside("purge", func() {
		for begin := time.Now(); ; time.Sleep(200 * time.Millisecond) {
			// The id is free once nothing of what had it is left.
			status, b, err := p.do("POST", "/orgs", `{"id":"many","name":"Again"}`)
			if err == nil && status == 201 {
				return
			}
			if time.Since(begin) > 5*time.Minute {
				t.Fatalf("not purged: %d %s %v", status, b, err)
			}
		}
	})
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// member returns a member of a JSON object that is a text.
func member(t *testing.T, object []byte, name string) string {
	t.Helper()
	_, after, ok := strings.Cut(string(object), fmt.Sprintf("%q:\"", name))
	if !ok {
		t.Fatalf("%s has no %s", object, name)
	}
	text, _, _ := strings.Cut(after, `"`)
	return text
}
