package api_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

const limitTree = "id,parent_id,name\nroot,,Root\na,root,A\nb,root,B\nleaf,a,Leaf\nother,,Other\n"

// on runs a test on both databases.
func on(t *testing.T, test func(t *testing.T, engine string)) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) { test(t, engine) })
	}
}

func startTree(t *testing.T, engine string, change ...func(*server.Config)) *testkit.Server {
	t.Helper()
	s := testkit.Start(t, engine, change...)
	s.Must(200, "POST", "/orgs/import", s.OperatorKey, limitTree, "Content-Type", "text/csv")
	return s
}

func TestLimits(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		s := startTree(t, engine)
		op := s.OperatorKey
		above, _ := s.NewKey("root", `"permissions":["consumption:read","consumption:write","orgs:write"]`)
		inside, _ := s.NewKey("a", `"permissions":["consumption:read","consumption:write"]`)

		first := s.Must(200, "PUT", "/orgs/root/limits/api_calls", op, `{"limit":1000.5,"enforcement":"soft"}`)
		if got := string(first.Body); !strings.HasPrefix(got, `{"org_id":"root","meter":"api_calls","limit":1000.5,"enforcement":"soft","used":0,"updated_at":"`) || first.Header.Get("Orgd-Audit-Receipt") == "" {
			t.Errorf("the new limit is %s, receipt %q", got, first.Header.Get("Orgd-Audit-Receipt"))
		}
		again := s.Must(200, "PUT", "/orgs/root/limits/api_calls", op, `{"limit":"1000.50","enforcement":"soft"}`)
		if string(again.Body) != string(first.Body) || again.Header.Get("Orgd-Audit-Receipt") != "" || again.Header.Get("Etag") != first.Header.Get("Etag") {
			t.Errorf("setting the same limit again changed something: %s", again.Body)
		}
		second := s.Must(200, "PUT", "/orgs/root/limits/api_calls", op, `{"limit":2000,"enforcement":"hard"}`, "If-Match", first.Header.Get("Etag"))
		s.Must(412, "PUT", "/orgs/root/limits/api_calls", op, `{"limit":3000,"enforcement":"hard"}`, "If-Match", first.Header.Get("Etag"))
		s.Must(412, "DELETE", "/orgs/root/limits/api_calls", op, "", "If-Match", first.Header.Get("Etag"))
		s.Must(412, "PUT", "/orgs/a/limits/api_calls", op, `{"limit":1,"enforcement":"hard"}`, "If-Match", "*")

		// Set from above: nobody lifts its own limit.
		s.Must(403, "PUT", "/orgs/root/limits/api_calls", above, `{"limit":1,"enforcement":"soft"}`)
		s.Must(403, "DELETE", "/orgs/root/limits/api_calls", above, "")
		s.Must(403, "PUT", "/orgs/a/limits/api_calls", inside, `{"limit":1,"enforcement":"soft"}`)
		s.Must(200, "PUT", "/orgs/a/limits/storage_used", above, `{"limit":7,"enforcement":"soft"}`)
		s.Must(200, "PUT", "/orgs/leaf/limits/api_calls", inside, `{"limit":0,"enforcement":"soft"}`)

		// What binds an organization, with the use of what the key can see.
		list := s.Must(200, "GET", "/orgs/leaf/limits", inside, "").Body
		var seen []string
		for _, l := range jsonList(t, list) {
			seen = append(seen, fmt.Sprint(l["org_id"], " ", l["meter"], " ", l["limit"], " ", l["used"] != nil))
		}
		if got := strings.Join(seen, ", "); got != "root api_calls 2000 false, a storage_used 7 true, leaf api_calls 0 true" {
			t.Errorf("the limits of leaf are %s", got)
		}
		page := s.Must(200, "GET", "/orgs/leaf/limits?limit=1", inside, "")
		for n := 1; ; n++ {
			if l := jsonList(t, page.Body); len(l) != 1 || fmt.Sprint(l[0]["org_id"], " ", l[0]["meter"]) != []string{"root api_calls", "a storage_used", "leaf api_calls"}[n-1] {
				t.Fatalf("page %d is %s", n, page.Body)
			}
			next := testkit.NextPage(page)
			if next == "" {
				if n != 3 {
					t.Errorf("%d pages", n)
				}
				break
			}
			page = s.Must(200, "GET", next, inside, "")
		}
		got := s.Must(200, "GET", "/orgs/root/limits/api_calls", op, "")
		if got.Header.Get("Etag") != second.Header.Get("Etag") {
			t.Errorf("the ETag of the limit changed with its use")
		}
		s.Must(404, "GET", "/orgs/a/limits/api_calls", inside, "")
		s.Must(404, "DELETE", "/orgs/leaf/limits/storage_used", inside, "")
		s.Must(404, "PUT", "/orgs/a/limits/unknown", above, `{"limit":1,"enforcement":"soft"}`)

		for _, tt := range []struct{ path, body string }{
			{"api_calls", ``}, {"api_calls", `{}`}, {"api_calls", `{"limit":1}`}, {"api_calls", `{"enforcement":"hard"}`}, {"api_calls", `{"limit":-1,"enforcement":"hard"}`},
			{"api_calls", `{"limit":1,"enforcement":"firm"}`}, {"api_calls", `{"limit":null,"enforcement":"hard"}`}, {"api_calls", `{"limit":0.0000001,"enforcement":"hard"}`},
			{"api_calls", `{"limit":9000000000001,"enforcement":"hard"}`}, {"api_calls", `{"limit":"x","enforcement":"hard"}`}, {"api_calls", `{"limit":1,"enforcement":"hard","note":""}`},
			{"API_CALLS", `{"limit":1,"enforcement":"hard"}`}, {"a%2Fb", `{"limit":1,"enforcement":"hard"}`}, {"api_calls?dry_run=true", `{"limit":1,"enforcement":"hard"}`},
		} {
			s.Must(400, "PUT", "/orgs/a/limits/"+tt.path, above, tt.body, "Content-Type", "application/json")
		}

		// A move takes the subtree out of one limit and into others.
		s.Must(200, "PUT", "/orgs/b/limits/api_calls", op, `{"limit":5,"enforcement":"hard"}`)
		preview := s.Must(200, "POST", "/orgs/leaf/move?dry_run=true", above, `{"parent_id":"b"}`)
		if gain, lose := fmt.Sprint(preview.JSON("limits", "gain")), fmt.Sprint(preview.JSON("limits", "lose")); gain != "[map[enforcement:hard limit:5 meter:api_calls org_id:b]]" || lose != "[map[enforcement:soft limit:7 meter:storage_used org_id:a]]" {
			t.Errorf("the move gains %s and loses %s", gain, lose)
		}
		s.Must(200, "DELETE", "/orgs/leaf/limits/api_calls", inside, "")
		s.Must(404, "DELETE", "/orgs/leaf/limits/api_calls", inside, "")
		s.Must(200, "DELETE", "/orgs/a?cascade=true", op, "")
		s.Must(404, "GET", "/orgs/a/limits", op, "")
		s.Must(200, "POST", "/orgs/a/restore", op, "")
		s.Must(200, "GET", "/orgs/a/limits/storage_used", op, "")
	})
}

// spend makes n requests to a product from conns connections and returns how
// many were let through. Every other one must have met a limit.
func spend(t *testing.T, s *testkit.Server, query, key string, conns, n int) (allowed int64) {
	t.Helper()
	var ok atomic.Int64
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for range conns {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				a, err := s.TryDo("GET", "/forward_auth?"+query, key, "")
				switch {
				case err != nil:
					t.Error(err)
				case a.Status == 200:
					ok.Add(1)
				case a.Status != 429 || a.String("code") != "limit_exceeded" || a.Header.Get("X-Orgd-Code") != "limit_exceeded" || a.Header.Get("Retry-After") == "":
					t.Errorf("status %d, Retry-After %q: %s", a.Status, a.Header.Get("Retry-After"), a.Body)
				}
			}
		})
	}
	wg.Wait()
	http.DefaultClient.CloseIdleConnections() // a server that ends waits for connections without a request
	return ok.Load()
}

// Under a hard limit exactly as much is let through as fits, whatever happens
// at the same time; the tightest limit on the way up decides.
func TestHardLimitIsExact(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		s := startTree(t, engine)
		op := s.OperatorKey
		keyA, _ := s.NewKey("a", `"permissions":["app:x"]`)
		keyB, _ := s.NewKey("b", `"permissions":["app:x"]`)
		keyLeaf, _ := s.NewKey("leaf", `"permissions":["app:x"]`)
		const query = "meter=api_calls&quantity=0.5"

		// Consumed before there was a limit.
		if n := spend(t, s, query, keyLeaf, 4, 10); n != 10 {
			t.Fatalf("%d of 10 were let through without a limit", n)
		}
		s.Must(200, "PUT", "/orgs/root/limits/api_calls", op, `{"limit":60,"enforcement":"hard"}`)
		s.Must(200, "PUT", "/orgs/a/limits/api_calls", op, `{"limit":20,"enforcement":"hard"}`)
		s.Must(200, "PUT", "/orgs/leaf/limits/api_calls", op, `{"limit":1,"enforcement":"soft"}`)

		var wg sync.WaitGroup
		var a, b, leaf int64
		wg.Go(func() { a = spend(t, s, query, keyA, 4, 60) })
		wg.Go(func() { leaf = spend(t, s, query, keyLeaf, 4, 60) })
		wg.Go(func() { b = spend(t, s, query, keyB, 4, 80) })
		wg.Wait()
		if a+leaf != 30 || b != 80 {
			t.Errorf("let through: %d at a and %d at leaf, want 30 together; %d at b, want 80", a, leaf, b)
		}
		refused := s.Must(429, "GET", "/forward_auth?"+query, keyLeaf, "")
		if refused.String("limit_org_id") != "root" && refused.String("limit_org_id") != "a" || refused.JSON("meter") != "api_calls" {
			t.Errorf("the refusal names no limit: %s", refused.Body)
		}
		if got := s.Must(200, "GET", "/orgs/root/limits/api_calls", op, "").JSON("used"); got != 60.0 {
			t.Errorf("root used %v", got)
		}
		s.Must(200, "GET", "/forward_auth?meter=api_calls&quantity=0", keyLeaf, "")
		s.Must(200, "GET", "/forward_auth?permission=app:x", keyLeaf, "")

		// More room is there at once, less as well.
		s.Must(200, "PUT", "/orgs/root/limits/api_calls", op, `{"limit":61,"enforcement":"hard"}`)
		if n := spend(t, s, query, keyB, 4, 10); n != 2 {
			t.Errorf("%d were let through, want 2", n)
		}
		s.Must(429, "GET", "/forward_auth?"+query, keyB, "")
		s.Must(200, "DELETE", "/orgs/root/limits/api_calls", op, "")
		s.Must(200, "GET", "/forward_auth?"+query, keyB, "")
		s.Must(429, "GET", "/forward_auth?"+query, keyA, "")

		// Calls of orgd's own API count, and are never refused.
		reader, _ := s.NewKey("a", `"permissions":["orgs:read"]`)
		s.Must(200, "GET", "/orgs/a", reader, "")
		s.Must(200, "PUT", "/orgs/a/limits/api_calls", op, `{"limit":22,"enforcement":"hard"}`)
		if n := spend(t, s, query, keyA, 4, 10); n != 2 {
			t.Errorf("%d were let through beside a call of the API, want 2", n)
		}

		// A move takes what comes after it along, not what was before.
		s.Must(200, "POST", "/orgs/leaf/move", op, `{"parent_id":"b"}`)
		s.Must(200, "GET", "/forward_auth?"+query, keyLeaf, "")
		s.Must(429, "GET", "/forward_auth?"+query, keyA, "")
		if got := s.Must(200, "GET", "/orgs/a/limits/api_calls", op, "").JSON("used"); got != 22.0 {
			t.Errorf("a used %v after leaf has left", got)
		}
	})
}

// One limit for all ways to count on a meter that a root has defined.
func TestHardLimitOfDefinedMeter(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		s := startTree(t, engine)
		op := s.OperatorKey
		key, _ := s.NewKey("leaf", `"permissions":["app:x"]`)
		s.Must(200, "PUT", "/orgs/root/meters/tokens", op, `{"unit":"tokens","aggregation":"sum"}`)
		s.Must(200, "PUT", "/orgs/root/meters/jobs", op, `{"unit":"jobs","aggregation":"count"}`)
		s.Must(404, "PUT", "/orgs/other/limits/tokens", op, `{"limit":10,"enforcement":"hard"}`)
		s.Must(200, "PUT", "/orgs/a/limits/tokens", op, `{"limit":10,"enforcement":"hard"}`)
		s.Must(200, "PUT", "/orgs/a/limits/jobs", op, `{"limit":2,"enforcement":"hard"}`)
		send := func(status int, id, meter, quantity string) {
			t.Helper()
			s.Must(status, "POST", "/orgs/leaf/consumption/events", op, fmt.Sprintf(`{"id":%q,"source":"test","meter":%q,"quantity":%s}`, id, meter, quantity))
		}
		verify := func(code, meter, quantity string) {
			t.Helper()
			if a := s.Must(200, "POST", "/verify", op, fmt.Sprintf(`{"key":%q,"meter":%q,"quantity":%s}`, key, meter, quantity)); a.String("code") != code {
				t.Errorf("verify: %s", a.Body)
			}
		}
		s.Must(200, "GET", "/forward_auth?meter=tokens&quantity=4", key, "")
		send(200, "1", "tokens", "4")
		verify("limit_exceeded", "tokens", "2.5")
		send(429, "2", "tokens", "2.5")
		s.Must(429, "GET", "/forward_auth?meter=tokens&quantity=2.5", key, "")
		send(200, "1", "tokens", "4") // a duplicate counts nothing
		verify("", "tokens", "1.5")
		send(200, "3", "tokens", "0.5")
		s.Must(429, "GET", "/forward_auth?meter=tokens&quantity=0.000001", key, "")
		verify("", "jobs", "17")
		send(200, "4", "jobs", "17")
		s.Must(429, "GET", "/forward_auth?meter=jobs&quantity=0.1", key, "")
		for meter, used := range map[string]float64{"tokens": 10, "jobs": 2} {
			if got := s.Must(200, "GET", "/orgs/a/limits/"+meter, op, "").JSON("used"); got != used {
				t.Errorf("a used %v %s, want %v", got, meter, used)
			}
			if got := s.Must(200, "GET", "/orgs/leaf/consumption", op, "").JSON("meters", meter, "limit"); got != used {
				t.Errorf("the limit on %s of leaf is %v, want %v", meter, got, used)
			}
		}
	})
}

// Events are held against a hard limit exactly, whatever else changes in the
// tree meanwhile.
func TestHardLimitOfEventsWhileTheTreeChanges(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		s := startTree(t, engine)
		op := s.OperatorKey
		s.Must(200, "PUT", "/orgs/root/meters/tokens", op, `{"unit":"tokens","aggregation":"sum"}`)
		s.Must(200, "PUT", "/orgs/a/limits/tokens", op, `{"limit":20,"enforcement":"hard"}`)
		ctx, cancel := context.WithCancel(t.Context())
		var changing, sending sync.WaitGroup
		for n := range 2 {
			changing.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					a, err := s.TryDo("POST", "/orgs/b/children", op, fmt.Sprintf(`{"id":"c%d-%d","name":"Child"}`, n, i))
					if err != nil || a.Status >= 300 {
						t.Errorf("%v %v", err, a)
						return
					}
				}
			})
		}
		var accepted atomic.Int64
		for c := range 4 {
			sending.Go(func() {
				for i := range 50 {
					a, err := s.TryDo("POST", "/orgs/a/consumption/events", op, fmt.Sprintf(`{"id":"%d","source":"%d","meter":"tokens","quantity":1,"org_id":"a"}`, i, c))
					switch {
					case err == nil && a.Status == 200:
						accepted.Add(1)
					case err != nil || a.Status != 429:
						t.Errorf("%v %v", err, a)
					}
				}
			})
		}
		sending.Wait()
		cancel()
		changing.Wait()
		if accepted.Load() != 20 {
			t.Errorf("%d were accepted, the limit is 20", accepted.Load())
		}
	})
}

// A server that has lost the connection on which it hears of changes reads the
// limits for each decision. It neither refuses what fits nor lets through what
// does not.
func TestHardLimitWithoutNotifications(t *testing.T) {
	url := testkit.Postgres(t)
	s := startTree(t, "", func(c *server.Config) { c.Database = url })
	key, _ := s.NewKey("leaf", `"permissions":["app:x"]`)
	s.Must(200, "PUT", "/orgs/a/limits/api_calls", s.OperatorKey, `{"limit":30,"enforcement":"hard"}`)
	s.Must(200, "PUT", "/orgs/a/limits/storage_used", s.OperatorKey, `{"limit":2,"enforcement":"hard"}`)
	admin, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			admin.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND (query ILIKE 'listen %' OR query = '-- ping')`)
			time.Sleep(20 * time.Millisecond)
		}
	})
	time.Sleep(100 * time.Millisecond)
	if n := spend(t, s, "meter=api_calls", key, 4, 40); n != 30 {
		t.Errorf("%d were let through, the limit is 30", n)
	}
	for i, status := range []int{200, 200, 429} {
		s.Must(status, "POST", "/orgs/leaf/consumption/events", s.OperatorKey, fmt.Sprintf(`{"id":"%d","source":"test","meter":"storage_used","quantity":%d}`, i, i+1))
	}
	cancel()
	wg.Wait()
}

// A server that starts knows what was let through before, stored or not.
func TestHardLimitSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	var key string
	for round := range 3 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			s := testkit.Start(t, "sqlite", func(c *server.Config) { c.DataDir = dir })
			if round == 0 {
				s.Must(200, "POST", "/orgs/import", s.OperatorKey, limitTree, "Content-Type", "text/csv")
				s.Must(200, "PUT", "/orgs/root/limits/api_calls", s.OperatorKey, `{"limit":25,"enforcement":"hard"}`)
				key, _ = s.NewKey("leaf", `"permissions":["app:x"]`)
			}
			if n := spend(t, s, "meter=api_calls", key, 8, 10); n != []int64{10, 10, 5}[round] {
				t.Errorf("%d were let through", n)
			}
		})
	}
}

// Servers on one database do not see what others have let through in about
// the last second. Together they exceed a limit by no more than that, none of
// them exceeds it alone, and then all of them refuse.
func TestHardLimitOnReplicas(t *testing.T) {
	url := testkit.Postgres(t)
	one := startTree(t, "", func(c *server.Config) { c.Database = url })
	two := testkit.Start(t, "", func(c *server.Config) { c.Database, c.OperatorKey = url, one.OperatorKey })
	key, _ := one.NewKey("leaf", `"permissions":["app:x"]`)
	const limit, perSecond, run = 160, 40, 5 * time.Second
	one.Must(200, "PUT", "/orgs/a/limits/api_calls", one.OperatorKey, fmt.Sprintf(`{"limit":%d,"enforcement":"hard"}`, limit))
	time.Sleep(1100 * time.Millisecond) // until the other server has heard of it

	var total atomic.Int64
	begin := time.Now()
	var wg sync.WaitGroup
	for _, s := range []*testkit.Server{one, two} {
		for range 4 {
			wg.Go(func() {
				tick := time.NewTicker(4 * time.Second / perSecond) // in each of 4 goroutines
				defer tick.Stop()
				for time.Since(begin) < run {
					<-tick.C
					a, err := s.TryDo("GET", "/forward_auth?meter=api_calls", key, "")
					if err != nil {
						t.Error(err)
						return
					}
					switch a.Status {
					case http.StatusOK:
						total.Add(1)
					case http.StatusTooManyRequests:
					default:
						t.Errorf("status %d: %s", a.Status, a.Body)
					}
				}
			})
		}
	}
	wg.Wait()
	over := total.Load() - limit
	t.Logf("overshoot %d of %d at %d a second on each of 2 servers", over, limit, perSecond)
	if over < 0 || over > 2*perSecond {
		t.Errorf("%d were let through under a limit of %d: more than what one server lets through in 2 s is beyond it", total.Load(), limit)
	}
	for _, s := range []*testkit.Server{one, two} {
		s.Must(429, "GET", "/forward_auth?meter=api_calls", key, "")
	}
	one.Must(200, "PUT", "/orgs/a/limits/api_calls", one.OperatorKey, fmt.Sprintf(`{"limit":%d,"enforcement":"hard"}`, total.Load()+1))
	one.Must(200, "GET", "/forward_auth?meter=api_calls", key, "")
}

func jsonList(t *testing.T, b []byte) []map[string]any {
	t.Helper()
	var list []map[string]any
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return list
}
