//go:build unix

package main

import (
	"bytes"
	"context"
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

// changeFactor is how many times as long as on an idle server a small change may
// take beside a writer, one of a hundred excepted.
const changeFactor = 3

// TestChangesBesideWriters: a small PATCH of one customer takes at most that many
// times as long as on an idle server, but for one of a hundred, while another sends
// 10,000 usage events again and again, imports organizations and has ten times as
// many rows purged. It prints what it measures. ORGD_TEST_CHANGES says how many
// organizations, such as 100000; without it the test is skipped. The server has the
// first core, and the test should have another: taskset -c 1 go test ….
func TestChangesBesideWriters(t *testing.T) {
	rows, err := strconv.Atoi(os.Getenv("ORGD_TEST_CHANGES"))
	if err != nil {
		t.Skip("ORGD_TEST_CHANGES does not say beside how many organizations")
	}
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) { changesBesideWriters(t, engine, rows) })
	}
}

func changesBesideWriters(t *testing.T, engine string, rows int) {
	taskset := testkit.Programs(t, "taskset")[0]
	dir := t.TempDir()
	var database []string
	if engine == "postgres" {
		database = []string{"--database", testkit.Postgres(t)}
	}
	start := func(args ...string) *process {
		args = slices.Concat([]string{"-c", "0", orgdProgram(t), "serve", "--data-dir", dir, "--listen", "127.0.0.1:0"}, database, args)
		return startCommand(t, dir, exec.Command(taskset, args...))
	}
	p := start()
	must := func(want int, method, path, body string, headers ...string) []byte {
		t.Helper()
		status, b, err := request(http.DefaultClient, p.url, p.key, method, path, body, headers...)
		if err != nil || status != want {
			t.Fatalf("%s %s: %d %.300s %v", method, path, status, b, err)
		}
		return b
	}
	for _, root := range []string{"good", "big"} {
		must(201, "POST", "/orgs", `{"id":"`+root+`","name":"Root"}`)
		must(201, "POST", "/orgs/"+root+"/children", `{"id":"`+root+`-team","name":"Team"}`)
	}
	must(201, "POST", "/orgs/big/children", `{"id":"many","name":"Many"}`)
	key := member(t, must(201, "POST", "/orgs/good/api_keys", `{"name":"all","permissions":["admin"]}`), "secret")

	var idle []time.Duration
	p99s := map[string]time.Duration{}
	// beside measures changes, each sent at its time whether or not those before it
	// are answered, while work runs.
	beside := func(what string, work func()) {
		t.Helper()
		var mu sync.Mutex
		var took []time.Duration
		ctx, cancel := context.WithCancel(t.Context())
		var clients sync.WaitGroup
		c := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
		defer c.CloseIdleConnections()
		clients.Go(func() {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for i := 0; ; i++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				clients.Go(func() {
					sent := time.Now()
					status, b, err := request(c, p.url, key, "PATCH", "/orgs/good-team", fmt.Sprintf(`{"description":"change %d"}`, i))
					d := time.Since(sent)
					if err != nil || status != 200 {
						t.Errorf("%s: %d %.200s %v", what, status, b, err)
					}
					mu.Lock()
					defer mu.Unlock()
					took = append(took, d)
				})
			}
		})
		began := time.Now()
		work()
		lasted := time.Since(began)
		cancel()
		clients.Wait()
		slices.Sort(took)
		n := len(took)
		if n < 100 {
			t.Fatalf("%s: only %d changes were measured", what, n)
		}
		p99 := took[n*99/100]
		t.Logf("%-10s %6.1fs  n=%-6d p50 %7.2f ms  p90 %7.2f ms  p99 %7.2f ms  max %7.2f ms", what, lasted.Seconds(), n,
			ms(took[n/2]), ms(took[n*9/10]), ms(p99), ms(took[n-1]))
		if what == "nothing" {
			idle = append(idle, took...)
		} else {
			p99s[what] = p99
		}
	}

	nothing := func() { beside("nothing", func() { time.Sleep(10 * time.Second) }) }
	nothing()
	var events []string
	for i := range 40 {
		var b bytes.Buffer
		for j := range 10_000 {
			fmt.Fprintf(&b, `{"id":"%d-%d","source":"test","meter":"api_calls","quantity":1,"org_id":"big-team"}`+"\n", i, j)
		}
		events = append(events, b.String())
	}
	beside("events", func() {
		for _, body := range events {
			must(200, "POST", "/orgs/big/consumption/events", body, "Content-Type", "application/x-ndjson")
		}
	})
	var list strings.Builder
	list.WriteString("id,name,tags\n")
	for i := range rows {
		fmt.Fprintf(&list, "o%x,x,a;b;c;d;e;f;g;h\n", i)
	}
	beside("import", func() {
		must(200, "POST", "/orgs/import?parent_id=many", list.String(), "Content-Type", "text/csv")
	})
	must(200, "DELETE", "/orgs/many?cascade=true", "")

	// The first purge is a minute after a start.
	p.cmd.Process.Kill()
	<-p.ended
	p = start("--restore-window", "0s")
	up := time.Now()
	nothing()
	time.Sleep(time.Until(up.Add(58 * time.Second)))
	beside("purge", func() {
		for begin := time.Now(); ; time.Sleep(200 * time.Millisecond) {
			// The id is free once nothing of what had it is left.
			status, b, err := p.do("POST", "/orgs", `{"id":"many","name":"Again"}`)
			if err == nil && status == 201 {
				return
			}
			if time.Since(begin) > 10*time.Minute {
				t.Fatalf("not purged: %d %s %v", status, b, err)
			}
		}
	})
	nothing()
	slices.Sort(idle)
	quiet := idle[len(idle)*99/100]
	for what, p99 := range p99s {
		t.Logf("%s: %.2f times %.2f ms", what, float64(p99)/float64(quiet), ms(quiet))
		if p99 > changeFactor*quiet {
			t.Errorf("%s: one of a hundred changes takes longer than %d times %v", what, changeFactor, quiet)
		}
	}
}
