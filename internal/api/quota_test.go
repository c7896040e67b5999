package api_test

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/budget"
	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// narrow is a budget of which everything can be reached.
func narrow() *budget.Budget {
	return budget.New(budget.Limits{budget.Requests: 32, budget.Bytes: 64 << 20, budget.Expensive: 2, budget.Streams: 20,
		budget.RequestsPerSecond: 100_000, budget.ChangesPerSecond: 100_000})
}

// bounded starts a server with a narrow budget and two customers, root and
// other, each with an admin key.
func bounded(t *testing.T, engine string) (s *testkit.Server, b *budget.Budget, root, other string) {
	t.Helper()
	b = narrow()
	s = startTree(t, engine, func(c *server.Config) { c.Budget = b })
	root, _ = s.NewKey("root", `"permissions":["admin"]`)
	other, _ = s.NewKey("other", `"permissions":["admin"]`)
	return s, b, root, other
}

// refused checks an answer for what a budget refuses.
func refused(t *testing.T, a *testkit.Answer, status int, budget, setBy string) {
	t.Helper()
	code := map[int]string{429: "quota_exceeded", 503: "unavailable"}[status]
	if a.Status != status || a.String("code") != code || a.String("budget") != budget || a.String("set_by") != setBy || a.String("fix") == "" {
		t.Errorf("the answer is %d %s, want %d %s about %s, set by %s", a.Status, a.Body, status, code, budget, setBy)
	}
	if n, err := strconv.Atoi(a.Header.Get("Retry-After")); err != nil || n < 1 {
		t.Errorf("Retry-After is %q", a.Header.Get("Retry-After"))
	}
}

// unharmed checks that nobody else is kept out: not another customer, not the
// operator, and nobody who asks whether the server is well.
func unharmed(t *testing.T, s *testkit.Server, other string) {
	t.Helper()
	for range 2 {
		s.Must(200, "GET", "/orgs/other", other, "")
		s.Must(200, "PATCH", "/orgs/other", other, `{"name":"Other"}`)
		s.Must(200, "GET", "/forward_auth?org=other", other, "")
		s.Must(200, "GET", "/orgs/root", s.OperatorKey, "")
		s.Must(200, "GET", "/orgs/root/quota", s.OperatorKey, "")
		for _, path := range []string{"/healthz", "/readyz", "/metrics", "/service_status"} {
			s.Must(200, "GET", path, "", "")
		}
	}
}

func TestQuota(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		s, b, root, other := bounded(t, engine)
		op := s.OperatorKey
		reads, _ := s.NewKey("root", `"permissions":["orgs:read"]`)
		first := s.Must(200, "GET", "/orgs/root/quota", reads, "")
		member := func(a *testkit.Answer, of, name string) any {
			return a.JSON().(map[string]any)[of].(map[string]any)[name]
		}
		for _, r := range budget.Resources() {
			name := r.String()
			if got := member(first, "quota", name); got != nil {
				t.Errorf("without a quota %s is %v", name, got)
			}
			if want := float64(b.Default()[r]); member(first, "defaults", name) != want || member(first, "effective", name) != want {
				t.Errorf("%s is %v by default and %v in effect, want %v", name, member(first, "defaults", name), member(first, "effective", name), want)
			}
		}
		if n := member(first, "used", "requests_in_flight"); n != 1.0 {
			t.Errorf("while it asks a root uses %v requests", n)
		}

		// The operator sets it; a customer reads it, whatever its key may.
		for _, method := range []string{"PUT", "DELETE"} {
			s.Must(403, method, "/orgs/root/quota", root, map[string]string{"PUT": `{"streams":1000}`}[method])
			s.Must(404, method, "/orgs/root/quota", other, map[string]string{"PUT": `{"streams":1000}`}[method])
			s.Must(409, method, "/orgs/a/quota", op, map[string]string{"PUT": `{"streams":1000}`}[method])
		}
		s.Must(409, "GET", "/orgs/a/quota", root, "")
		put := s.Must(200, "PUT", "/orgs/root/quota", op, `{"streams":3,"requests_in_flight":7,"page_rows":null}`, "If-Match", first.Header.Get("Etag"))
		if put.Header.Get("Orgd-Audit-Receipt") == "" || member(put, "effective", "streams") != 3.0 || member(put, "quota", "requests_in_flight") != 7.0 ||
			member(put, "quota", "page_rows") != nil || put.String("updated_at") == "" {
			t.Errorf("what was put is %s", put.Body)
		}
		s.Must(412, "PUT", "/orgs/root/quota", op, `{}`, "If-Match", first.Header.Get("Etag"))
		s.Must(412, "DELETE", "/orgs/root/quota", op, "", "If-Match", first.Header.Get("Etag"))
		again := s.Must(200, "PUT", "/orgs/root/quota", op, `{"requests_in_flight":7,"streams":3}`, "If-Match", put.Header.Get("Etag"))
		if again.Header.Get("Orgd-Audit-Receipt") != "" || again.Header.Get("Etag") != put.Header.Get("Etag") {
			t.Error("putting the same quota again is a change")
		}
		for _, bad := range []string{`{"streams":0}`, `{"streams":-1}`, `{"streams":1.5}`, `{"streams":"3"}`, `{"page_rows":1001}`, `{"bytes_in_flight":1000}`,
			`{"stream":3}`, `{"streams":3,"streams":4}`, `[]`, `null`} {
			s.Must(400, "PUT", "/orgs/root/quota", op, bad)
		}
		// It replaces: what it does not name is the default again.
		if put := s.Must(200, "PUT", "/orgs/root/quota", op, `{"idempotency_bytes":1048576}`); member(put, "quota", "streams") != nil || member(put, "effective", "idempotency_bytes") != 1048576.0 {
			t.Errorf("what was put is %s", put.Body)
		}
		gone := s.Must(200, "DELETE", "/orgs/root/quota", op, "")
		if gone.Header.Get("Orgd-Audit-Receipt") == "" || member(gone, "quota", "idempotency_bytes") != nil || gone.JSON().(map[string]any)["updated_at"] != nil {
			t.Errorf("without a quota a root has %s", gone.Body)
		}
		if gone := s.Must(200, "DELETE", "/orgs/root/quota", op, ""); gone.Header.Get("Orgd-Audit-Receipt") != "" {
			t.Error("taking away no quota is a change")
		}
		entries := s.Must(200, "GET", "/orgs/root/children_audit?scope=self", root, "").JSON().([]any)
		var actions []string
		for _, e := range entries {
			if action := e.(map[string]any)["action"].(string); strings.HasPrefix(action, "quota.") {
				actions = append(actions, action)
			}
		}
		if got := strings.Join(actions, " "); got != "quota.deleted quota.put quota.put" {
			t.Errorf("the audit trail has %s", got)
		}
		s.Must(200, "PUT", "/orgs/root/quota", op, `{"streams":5}`) // for the check of the audit trail
	})
}

// A quota binds at once, and other processes within a second.
func TestQuotaOnTwoServers(t *testing.T) {
	s := startTree(t, "postgres")
	second := testkit.Open(t, "sqlite", func(c *server.Config) {
		c.Database, c.OperatorKey, c.AuditKey = s.Config.Database, s.OperatorKey, s.Config.AuditKey
	})
	secret, _ := s.NewKey("root", `"permissions":["orgs:read"]`)
	for _, one := range []*testkit.Server{s, second} {
		one.Must(200, "GET", "/orgs/root", secret, "")
	}
	s.Must(200, "PUT", "/orgs/root/quota", s.OperatorKey, `{"requests_per_second":1}`)
	over := func(s *testkit.Server) bool {
		for range 4 {
			if s.Do("GET", "/orgs/root", secret, "").Status == 429 {
				return true
			}
		}
		return false
	}
	if !over(s) {
		t.Error("a quota does not bind the next requests")
	}
	for end := time.Now().Add(3 * time.Second); !over(second); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("another process does not know of a quota")
		}
	}
}

// Whoever gets the id of a purged root does not get its quota.
func TestQuotaEndsWithItsRoot(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		c := &clock{}
		s := startTree(t, engine, c.use)
		op := s.OperatorKey
		s.Must(200, "PUT", "/orgs/other/quota", op, `{"streams":1}`)
		s.Must(200, "DELETE", "/orgs/other", op, "")
		c.forward(31 * 24 * time.Hour)
		if _, err := s.Tree.PurgeExpired(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.Must(201, "POST", "/orgs", op, `{"id":"other","name":"Somebody else"}`)
		if a := s.Must(200, "GET", "/orgs/other/quota", op, ""); a.JSON().(map[string]any)["quota"].(map[string]any)["streams"] != nil {
			t.Errorf("a new root has the quota of the one that had its id before: %s", a.Body)
		}
	})
}

// Requests that wait for a body hold their places, those of their customer. What
// is refused is not counted as consumption.
func TestRequestsInFlight(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		s, b, root, other := bounded(t, engine)
		most := b.Default()[budget.Requests]
		var hung []*io.PipeWriter
		for range most {
			body, w := io.Pipe()
			hung = append(hung, w)
			req, err := http.NewRequest("PATCH", s.URL+"/orgs/root", body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+root)
			req.Header.Set("Content-Type", "application/json")
			go func() {
				if resp, err := http.DefaultClient.Do(req); err == nil {
					resp.Body.Close()
				}
			}()
		}
		waitFor(t, func() bool { return b.UsedBy("root", time.Now())[budget.Requests] == most })
		const tries = 30
		for range tries {
			refused(t, s.Do("GET", "/orgs/root", root, ""), 429, "requests_in_flight", "default")
			refused(t, s.Do("PATCH", "/orgs/a", root, `{"name":"A"}`), 429, "requests_in_flight", "default")
			refused(t, s.Do("GET", "/forward_auth?org=root", root, ""), 429, "requests_in_flight", "default")
		}
		unharmed(t, s, other)
		metrics := string(s.Must(200, "GET", "/metrics", "", "").Body)
		for _, line := range []string{fmt.Sprintf(`orgd_budget_refusals_total{budget="requests_in_flight"} %d`, 3*tries),
			fmt.Sprintf(`orgd_budget_used{budget="requests_in_flight"} %d`, most), `orgd_budget_capacity{budget="requests_in_flight"} 32`} {
			if !strings.Contains(metrics, line+"\n") {
				t.Errorf("the metrics do not have %s", line)
			}
		}
		for _, w := range hung {
			w.CloseWithError(io.ErrUnexpectedEOF)
		}
		waitFor(t, func() bool { return b.Used(time.Now())[budget.Requests] == 0 })
		calls := func() string {
			a := s.Must(200, "GET", "/orgs/root/consumption", s.OperatorKey, "")
			return fmt.Sprint(a.JSON().(map[string]any)["meters"].(map[string]any)["api_calls"].(map[string]any)["total"])
		}
		before := calls()
		s.Must(200, "GET", "/orgs/root", root, "")
		waitFor(t, func() bool { return calls() != before })
		if n, _ := strconv.Atoi(calls()); n > int(most)+1 {
			t.Errorf("of %d requests that were answered, %d are counted", most+1, n)
		}
	})
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}

// A body is charged to its customer before it is read, four times for what it is
// decoded to: by the length that it announces, and otherwise as it grows.
func TestBytesInFlight(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		s, b, root, other := bounded(t, engine)
		s.Must(200, "PUT", "/orgs/root/quota", s.OperatorKey, `{"bytes_in_flight":8388608}`)
		send := func(length int64) (end func()) {
			body, w := io.Pipe()
			req, err := http.NewRequest("PATCH", s.URL+"/orgs/root", body)
			if err != nil {
				t.Fatal(err)
			}
			req.ContentLength = length
			req.Header.Set("Authorization", "Bearer "+root)
			req.Header.Set("Content-Type", "application/json")
			done := make(chan struct{})
			go func() {
				defer close(done)
				if resp, err := http.DefaultClient.Do(req); err == nil {
					resp.Body.Close()
				}
			}()
			if length < 0 {
				w.Write(make([]byte, 900<<10))
			} else {
				w.Write([]byte(`{`))
			}
			return func() {
				w.CloseWithError(io.ErrUnexpectedEOF)
				<-done
			}
		}
		used := func() int64 { return b.UsedBy("root", time.Now())[budget.Bytes] }
		announced := send(1 << 20)
		waitFor(t, func() bool { return used() == 4<<20 })
		growing := send(-1)
		waitFor(t, func() bool { return used() >= 4<<20+4*900<<10 && used() <= 8<<20 })

		large := `{"name":"` + strings.Repeat("x", 200<<10) + `"}`
		refused(t, s.Do("PATCH", "/orgs/root", root, large), 429, "bytes_in_flight", "operator")
		refused(t, s.Do("POST", "/orgs/root/access_log", root, large), 429, "bytes_in_flight", "operator")
		refused(t, s.Do("GET", "/orgs/root/descendants", root, ""), 429, "bytes_in_flight", "operator")
		s.Must(200, "PATCH", "/orgs/root", root, `{"name":"Small"}`) // places bound those
		s.Must(413, "POST", "/orgs/import", root, strings.Repeat("x", 3<<20), "Content-Type", "text/csv")
		unharmed(t, s, other)
		s.Must(200, "GET", "/orgs/other/descendants", other, "")
		announced()
		growing()
		waitFor(t, func() bool { return used() == 0 })
		s.Must(400, "PATCH", "/orgs/root", root, large)
		if used() != 0 {
			t.Errorf("%d bytes are used by nobody", used())
		}
	})
}

// A customer has places for streams; those of a stream come free when it ends,
// and one that is open is no request in flight.
func TestStreamsInFlight(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		s, b, root, other := bounded(t, engine)
		most := int(b.Default()[budget.Streams])
		var open []*testkit.Feed
		for range most {
			open = append(open, s.Follow("/orgs/root/children_audit?follow=true", root, ""))
		}
		refused(t, s.Do("GET", "/orgs/root/children_audit?follow=true", root, ""), 429, "streams", "default")
		refused(t, s.Do("GET", "/orgs/root/access_log?follow=true", root, ""), 429, "streams", "default")
		refused(t, s.Do("GET", "/orgs/root/access_log?format=ndjson", root, ""), 429, "streams", "default")
		if n := b.UsedBy("root", time.Now())[budget.Requests]; n != 0 {
			t.Errorf("streams hold %d places of requests", n)
		}
		s.Must(200, "GET", "/orgs/root", root, "")
		unharmed(t, s, other)
		theirs := s.Follow("/orgs/other/access_log?follow=true", other, "")
		s.Must(200, "PUT", "/orgs/other/quota", s.OperatorKey, `{"streams":1}`)
		refused(t, s.Do("GET", "/orgs/other/access_log?follow=true", other, ""), 429, "streams", "operator")
		theirs.Close()
		for _, f := range open {
			f.Close()
		}
		waitFor(t, func() bool { return b.Used(time.Now())[budget.Streams] == 0 })
		s.Must(200, "GET", "/orgs/root/access_log?format=ndjson", root, "")
	})
}

// Of expensive work one customer gets a part of the places; what does not get
// one waits for a moment and is refused. Other requests need none.
func TestExpensiveInFlight(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		s, b, root, other := bounded(t, engine)
		var busy budget.Ticket
		if b.Enter(&busy, "root", nil, false, time.Now()) != nil || busy.Begin(t.Context()) != nil {
			t.Fatal("a root that is alone gets no place")
		}
		at := time.Now().UTC().Format(time.RFC3339Nano)
		expensive := []struct{ method, path, body string }{
			{"GET", "/orgs/root?as_of=" + at, ""},
			{"GET", "/orgs/root?as%5Fof=" + at, ""},
			{"GET", "/orgs/root/children?as_of=" + at, ""},
			{"GET", "/orgs/root/customizations?explain=true", ""},
			{"GET", "/orgs/root/audit_log/export", ""},
			{"GET", "/orgs/root/children_audit?format=csv", ""},
			{"GET", "/orgs/root/consumption/children", ""},
			{"POST", "/orgs/import?dry_run=true", "id,name\nx,X\n"},
			{"POST", "/orgs/root/audit_erasures", `{"subject":"jane@example.com","basis":"Request 7","dry_run":true}`},
		}
		answers := make(chan *testkit.Answer, len(expensive))
		started := time.Now()
		for _, x := range expensive[:8] {
			go func() {
				contentType := "application/json"
				if strings.Contains(x.path, "import") {
					contentType = "text/csv"
				}
				a, err := s.TryDo(x.method, x.path, root, x.body, "Content-Type", contentType)
				if err != nil {
					t.Error(err)
				}
				answers <- a
			}()
		}
		time.Sleep(300 * time.Millisecond)
		refused(t, s.Do(expensive[8].method, expensive[8].path, root, expensive[8].body), 429, "expensive_in_flight", "default")
		if took := time.Since(started); took > time.Second {
			t.Errorf("behind a full queue a request waits %s", took)
		}
		s.Must(200, "GET", "/orgs/root", root, "")
		s.Must(200, "GET", "/orgs/root/children_audit", root, "")
		unharmed(t, s, other)
		s.Must(200, "GET", "/orgs/other/customizations?explain=true", other, "")
		s.Must(200, "GET", "/orgs/root/audit_log/export", s.OperatorKey, "")
		for range 8 {
			refused(t, <-answers, 429, "expensive_in_flight", "default")
		}
		if took := time.Since(started); took > 8*time.Second {
			t.Errorf("a request waits %s for a place", took)
		}
		go func() {
			time.Sleep(200 * time.Millisecond)
			busy.Leave()
		}()
		s.Must(200, "GET", "/orgs/root/audit_log/export", root, "")
		s.Must(200, "GET", "/orgs/root/children_audit?format=csv", root, "")
		waitFor(t, func() bool { return b.Used(time.Now())[budget.Expensive] == 0 })

		// Without places for anybody it is the server's fault, and says so.
		var all [2]budget.Ticket
		for i := range all {
			b.Enter(&all[i], fmt.Sprint(i), nil, false, time.Now())
			all[i].Begin(t.Context())
		}
		refused(t, s.Do("GET", "/orgs/root?as_of="+at, root, ""), 503, "expensive_in_flight", "default")
		for i := range all {
			all[i].Leave()
		}
	})
}

func TestRatesOfARoot(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		s, _, root, other := bounded(t, engine)
		inside, _ := s.NewKey("leaf", `"permissions":["admin"]`)
		s.Must(200, "PUT", "/orgs/root/quota", s.OperatorKey, `{"requests_per_second":20,"changes_per_second":3}`)
		// All keys of a root share its rate, whatever limit a key has.
		statuses := map[int]int{}
		var last *testkit.Answer
		for i := range 60 {
			a := s.Do("PATCH", "/orgs/leaf", []string{root, inside}[i%2], `{"name":"Leaf"}`)
			if statuses[a.Status]++; a.Status == 429 && (last == nil || a.String("budget") == "changes_per_second") {
				last = a
			}
		}
		if statuses[429] == 0 || statuses[200] == 0 || statuses[200]+statuses[429] != 60 {
			t.Fatalf("60 changes at 3 a second are answered with %v", statuses)
		}
		refused(t, last, 429, "changes_per_second", "operator")
		for i := 0; last.String("budget") != "requests_per_second"; i++ {
			if i == 1000 {
				t.Fatal("1000 requests are all answered at 20 a second")
			}
			if a := s.Do("GET", "/orgs/leaf", root, ""); a.Status == 429 {
				last = a
			}
		}
		refused(t, last, 429, "requests_per_second", "operator")
		unharmed(t, s, other)
	})
}

// What is kept for Idempotency-Keys is bounded, whether or not the requests
// change anything; over it a request with a new key does nothing.
func TestIdempotencyBytes(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		c := &clock{}
		s := startTree(t, engine, c.use)
		root, _ := s.NewKey("root", `"permissions":["admin"]`)
		other, _ := s.NewKey("other", `"permissions":["admin"]`)
		s.Must(200, "PUT", "/orgs/root/quota", s.OperatorKey, `{"idempotency_bytes":1048576}`)
		s.Must(200, "PUT", "/orgs/a/customizations", root, `{"customizations":{"text":"`+strings.Repeat("x", 60<<10)+`"}}`)
		kept := func() float64 {
			return s.Must(200, "GET", "/orgs/root/quota", root, "").JSON().(map[string]any)["used"].(map[string]any)["idempotency_bytes"].(float64)
		}
		var over *testkit.Answer
		n := 0
		for ; over == nil && n < 100; n++ {
			// To where it is already: nothing changes, and the answer is large.
			if a := s.Do("POST", "/orgs/a/move", root, `{"parent_id":"root"}`, "Idempotency-Key", fmt.Sprint("k", n)); a.Status == 429 {
				over = a
			}
		}
		if over == nil {
			t.Fatalf("%d answers of 60 KiB are kept in 1 MiB", n)
		}
		refused(t, over, 429, "idempotency_bytes", "operator")
		if got := kept(); got < 1<<20 || got > 1<<20+100<<10 {
			t.Errorf("%v bytes are kept, of 1 MiB that may be", got)
		}
		if wait, _ := strconv.Atoi(over.Header.Get("Retry-After")); wait < 23*60*60 || wait > 26*60*60 {
			t.Errorf("Retry-After is %d seconds, for answers that are kept for a day", wait)
		}
		create := `{"id":"new","name":"New"}`
		refused(t, s.Do("POST", "/orgs/root/children", root, create, "Idempotency-Key", "create"), 429, "idempotency_bytes", "operator")
		s.Must(404, "GET", "/orgs/new", root, "")
		s.Must(200, "POST", "/orgs/a/move", root, `{"parent_id":"root"}`, "Idempotency-Key", "k0") // is replayed
		s.Must(201, "POST", "/orgs/root/children", root, create)
		s.Must(201, "POST", "/orgs/other/children", other, `{"id":"theirs","name":"New"}`, "Idempotency-Key", "create")
		s.Must(201, "POST", "/orgs/root/children", s.OperatorKey, `{"id":"new2","name":"New"}`, "Idempotency-Key", "create")

		// A day later there is room, and what can be replayed no more is removed.
		c.forward(26 * time.Hour)
		s.Must(201, "POST", "/orgs/root/children", root, `{"id":"later","name":"New"}`, "Idempotency-Key", "later")
		removed, err := s.Service.ExpireAnswers(t.Context(), 0)
		if err != nil || removed < 10 {
			t.Errorf("%d answers of yesterday were removed, %v", removed, err)
		}
		if got := kept(); got > 10_000 {
			t.Errorf("a day later %v bytes are kept", got)
		}
	})
}

// Without a budget nothing of all this is bounded.
func TestNoBudget(t *testing.T) {
	s := startTree(t, "sqlite", func(c *server.Config) { c.NoBudget = true })
	root, _ := s.NewKey("root", `"permissions":["admin"]`)
	s.Must(200, "PUT", "/orgs/root/quota", s.OperatorKey, `{"requests_per_second":1,"streams":1,"idempotency_bytes":1048576}`)
	for i := range 10 {
		s.Must(200, "GET", "/orgs/root", root, "")
		s.Must(201, "POST", "/orgs/root/children", root, `{"name":"New"}`, "Idempotency-Key", fmt.Sprint(i))
	}
	if a := s.Must(200, "GET", "/orgs/root/quota", root, ""); a.JSON().(map[string]any)["defaults"].(map[string]any)["streams"] != nil {
		t.Errorf("without a budget there are defaults: %s", a.Body)
	}
}

// A quota bounds pages and imports of its root, and of no other.
func TestQuotaOfPagesAndImports(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		keys := map[string]string{}
		for _, root := range []string{"bound", "free"} {
			s.Must(201, "POST", "/orgs", op, `{"id":"`+root+`","name":"Root"}`)
			keys[root], _ = s.NewKey(root, `"permissions":["admin"]`)
			for i := range 8 {
				s.Must(201, "POST", "/orgs/"+root+"/children", op, fmt.Sprintf(`{"id":"%s-%d","name":"Child","customizations":{"text":"%s"}}`, root, i, strings.Repeat("x", 30<<10)))
			}
		}
		s.Must(200, "PUT", "/orgs/bound/quota", op, `{"page_rows":5,"page_bytes":65536,"import_rows":3}`)
		pages := func(root, path string) (sizes []int) {
			for seen := map[string]bool{}; path != ""; {
				a := s.Must(200, "GET", path, keys[root], "")
				for _, o := range a.JSON().([]any) {
					id := o.(map[string]any)["id"].(string)
					if seen[id] {
						t.Errorf("%s twice in %s", id, path)
					}
					seen[id] = true
				}
				sizes = append(sizes, len(a.JSON().([]any)))
				path = testkit.NextPage(a)
			}
			return sizes
		}
		if got := pages("bound", "/orgs/bound/children?limit=100"); !slices.Equal(got, []int{3, 3, 2}) {
			t.Errorf("pages of at most 64 KiB have %v organizations of 30 KiB", got)
		}
		if got := pages("bound", "/orgs/bound/api_keys?limit=100"); !slices.Equal(got, []int{1}) {
			t.Errorf("pages of keys: %v", got)
		}
		s.Must(200, "PUT", "/orgs/bound/quota", op, `{"page_rows":5,"import_rows":3}`)
		if got := pages("bound", "/orgs/bound/children?limit=100"); !slices.Equal(got, []int{5, 3}) {
			t.Errorf("pages of at most 5 rows have %v", got)
		}
		if got := pages("free", "/orgs/free/children?limit=100"); !slices.Equal(got, []int{8}) {
			t.Errorf("pages of the other root have %v", got)
		}
		rows := func(root string) string {
			text := "id,name\n"
			for i := range 4 {
				text += fmt.Sprintf("%s-new-%d,New\n", root, i)
			}
			return text
		}
		a := s.Must(413, "POST", "/orgs/import", keys["bound"], rows("bound"), "Content-Type", "text/csv")
		if got := a.JSON("limit_rows"); got != 3.0 {
			t.Errorf("an import of 4 rows with a quota of 3: %s", a.Body)
		}
		s.Must(200, "POST", "/orgs/import", keys["free"], rows("free"), "Content-Type", "text/csv")
		// The operator's own requests are not the root's.
		s.Must(200, "POST", "/orgs/import?parent_id=bound", op, rows("bound"), "Content-Type", "text/csv")
	})
}
