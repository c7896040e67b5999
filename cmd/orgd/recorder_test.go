//go:build unix

package main

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orgd/orgd/client"
	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// checkRecorded reads the whole access log of the root acme and its
// consumption: every answered request must be there, no request twice, and
// what the key did must be counted exactly as often as it is logged.
func checkRecorded(t *testing.T, c *client.Client, keyID string, answered map[string]bool) {
	t.Helper()
	logged := map[string]bool{}
	events := 0
	for e, err := range c.AccessLog(t.Context(), "acme", client.AccessQuery{Scope: "subtree", APIKeyID: keyID}) {
		if err != nil {
			t.Fatal(err)
		}
		if logged[e.RequestID] {
			t.Errorf("the request %s is logged twice", e.RequestID)
		}
		logged[e.RequestID] = true
		events++
	}
	missing := 0
	for id := range answered {
		if !logged[id] {
			missing++
		}
	}
	usage, err := c.Consumption(t.Context(), "acme", "")
	if err != nil {
		t.Fatal(err)
	}
	calls := usage.Meters["api_calls"]
	t.Logf("%d requests were answered, %d are logged, %s are counted", len(answered), events, calls.Own)
	if missing > 0 {
		t.Errorf("%d of %d answered requests are not logged", missing, len(answered))
	}
	if n := fmt.Sprint(events); calls.Own.String() != n || calls.Total.String() != n {
		t.Errorf("%d requests are logged; counted are %s own, %s in all", events, calls.Own, calls.Total)
	}
}

// reads makes GET requests with a key until stop says so, and notes which of
// them were answered with 200. Other statuses are passed on.
func reads(url, key, name string, answered map[string]bool, stop func(status int, err error) bool) {
	http := &http.Client{Transport: &http.Transport{}}
	defer http.CloseIdleConnections()
	for n := 0; ; n++ {
		id := fmt.Sprintf("%s-%d", name, n)
		status, err := get(http, url+"/orgs/team", key, id)
		if status == 200 && err == nil {
			answered[id] = true
		}
		if stop(status, err) {
			return
		}
	}
}

func get(c *http.Client, url, key, requestID string) (int, error) {
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("X-Request-Id", requestID)
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return resp.StatusCode, nil
}

// The process is killed again and again while clients read: every request
// that was answered is in the access log afterwards, and counted once.
func TestKill9WhileClientsRead(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			dir := t.TempDir()
			var args []string
			if engine == "postgres" {
				args = []string{"--database", testkit.Postgres(t)}
			}
			answered := map[string]bool{}
			var key *client.Key
			const clients, rounds = 6, 4
			for round := range rounds {
				p := startProcess(t, dir, args...)
				c := client.New(p.url, p.key)
				if round == 0 {
					var err error
					if _, err = c.CreateOrg(t.Context(), client.OrgCreate{ID: "acme", Name: "Acme"}); err != nil {
						t.Fatal(err)
					}
					if _, err = c.CreateOrg(t.Context(), client.OrgCreate{ID: "team", Name: "Team", ParentID: "acme"}); err != nil {
						t.Fatal(err)
					}
					if key, err = c.CreateKey(t.Context(), "acme", client.KeyCreate{Name: "reader", Permissions: []string{"read"}}); err != nil {
						t.Fatal(err)
					}
				}
				var wg sync.WaitGroup
				got := make([]map[string]bool, clients)
				for n := range clients {
					got[n] = map[string]bool{}
					wg.Go(func() {
						reads(p.url, key.Secret, fmt.Sprintf("r%d-c%d", round, n), got[n], func(_ int, err error) bool { return err != nil })
					})
				}
				time.Sleep(time.Duration(300+200*round) * time.Millisecond)
				p.cmd.Process.Kill()
				<-p.ended
				wg.Wait()
				for _, m := range got {
					for id := range m {
						answered[id] = true
					}
				}
			}
			if len(answered) < 100*rounds {
				t.Errorf("only %d requests were answered", len(answered))
			}
			p := startProcess(t, dir, args...)
			checkRecorded(t, client.New(p.url, p.key), key.ID, answered)
		})
	}
}

// While the database takes no events, requests are answered and recorded up to
// --spool-max, and then refused with 503. When the database is back, so are
// the answers, and everything that was answered is logged and counted once.
func TestTheDatabaseTakesNoEvents(t *testing.T) {
	url := testkit.Postgres(t)
	s := testkit.Start(t, "postgres", func(c *server.Config) {
		c.Database = url
		c.SpoolMaxBytes = 1 << 20
	})
	c := client.New(s.URL, s.OperatorKey, client.WithRetries(0))
	run(t, s, "org", "create", "Acme", "--id", "acme")
	run(t, s, "org", "create", "Team", "--id", "team", "--parent", "acme")
	key, err := c.CreateKey(t.Context(), "acme", client.KeyCreate{Name: "reader", Permissions: []string{"read"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	tx, err := conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, `LOCK TABLE access_heads IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}

	answered := map[string]bool{}
	begin, last := time.Now(), 0
	reads(s.URL, key.Secret, "away", answered, func(status int, err error) bool {
		last = status
		return status != 200 || err != nil || time.Since(begin) > time.Minute
	})
	_, waiting := s.Recorder.Lag()
	t.Logf("answered %d requests in %v, then %d; %d bytes wait", len(answered), time.Since(begin).Round(time.Millisecond), last, waiting)
	if last != http.StatusServiceUnavailable {
		t.Fatalf("the last status is %d", last)
	}
	if waiting < 700<<10 || waiting > 1<<20 {
		t.Errorf("%d bytes wait when requests are refused", waiting)
	}
	if a := s.Do("GET", "/orgs/team", key.Secret, ""); a.Status != 503 || a.Header.Get("Retry-After") == "" || a.String("code") != "unavailable" {
		t.Errorf("refused with %d %s", a.Status, a.Body)
	}
	if a := s.Do("GET", "/readyz", "", ""); a.Status != 503 {
		t.Errorf("/readyz says %d", a.Status)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	begin = time.Now()
	reads(s.URL, key.Secret, "back", answered, func(status int, err error) bool {
		if status != 200 {
			time.Sleep(50 * time.Millisecond)
		}
		return status == 200 || err != nil || time.Since(begin) > time.Minute
	})
	t.Logf("answered again after %v", time.Since(begin).Round(time.Millisecond))
	if !answered[lastOf(answered, "back")] {
		t.Fatal("requests are still refused")
	}
	checkRecorded(t, c, key.ID, answered)
}

// lastOf returns a key of m that starts with a prefix.
func lastOf(m map[string]bool, prefix string) string {
	for id := range m {
		if len(id) > len(prefix) && id[:len(prefix)] == prefix {
			return id
		}
	}
	return ""
}

// The process is killed again and again while clients send events, which they
// repeat until they are acknowledged: in the end each event is there once.
func TestKill9WhileEventsAreSent(t *testing.T) {
	dir := t.TempDir()
	const clients, batches, each = 4, 40, 25
	var url atomic.Pointer[string]
	var key string
	var wg sync.WaitGroup
	var acknowledged, repeated atomic.Int64
	p := startProcess(t, dir)
	if _, err := client.New(p.url, p.key).CreateOrg(t.Context(), client.OrgCreate{ID: "acme", Name: "Acme"}); err != nil {
		t.Fatal(err)
	}
	key = p.key
	url.Store(&p.url)
	for c := range clients {
		wg.Go(func() {
			for n := range batches {
				var events []client.NewAccessEvent
				for i := range each {
					events = append(events, client.NewAccessEvent{ID: fmt.Sprintf("%d-%d-%d", c, n, i), User: "jo", Action: "SENT", Status: "SUCCESS"})
				}
				for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
					got, err := client.New(*url.Load(), key, client.WithRetries(0)).SendAccessEvents(t.Context(), "acme", events)
					if err == nil {
						acknowledged.Add(got.Accepted + got.Duplicates)
						repeated.Add(got.Duplicates)
						break
					}
					if time.Now().After(deadline) {
						t.Errorf("batch %d of client %d is not acknowledged: %v", n, c, err)
						return
					}
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	sent := make(chan struct{})
	go func() { wg.Wait(); close(sent) }()
	kills := 0
	for more := true; more; {
		select {
		case <-sent:
			more = false
		case <-time.After(time.Duration(60+40*kills) * time.Millisecond):
			if kills == 8 {
				continue
			}
			kills++
			p.cmd.Process.Kill()
			<-p.ended
			p = startProcess(t, dir)
			url.Store(&p.url)
		}
	}
	stored := map[string]bool{}
	for e, err := range client.New(p.url, p.key).AccessLog(t.Context(), "acme", client.AccessQuery{Action: "SENT"}) {
		if err != nil {
			t.Fatal(err)
		}
		if stored[e.ID] {
			t.Errorf("the event %s is stored twice", e.ID)
		}
		stored[e.ID] = true
	}
	t.Logf("killed %d times; %d events stored, %d acknowledged, of which %d had been stored before a kill", kills, len(stored), acknowledged.Load(), repeated.Load())
	if n := clients * batches * each; len(stored) != n || acknowledged.Load() != int64(n) {
		t.Errorf("%d events are stored and %d acknowledged, want %d", len(stored), acknowledged.Load(), n)
	}
	if kills < 3 {
		t.Errorf("killed only %d times", kills)
	}
}
