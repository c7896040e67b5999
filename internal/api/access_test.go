package api_test

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

type event struct {
	ID        string    `json:"id"`
	Timestamp time.Time `json:"timestamp"`
	OrgID     string    `json:"org_id"`
	User      string    `json:"user"`
	Action    string    `json:"action"`
	Status    string    `json:"status"`
	IP        *string   `json:"ip"`
	UserAgent *string   `json:"user_agent"`
	Method    *string   `json:"method"`
	Path      *string   `json:"path"`
	RequestID *string   `json:"request_id"`
	APIKeyID  *string   `json:"api_key_id"`
}

// accessLog returns all pages of a query.
func accessLog(t *testing.T, s *testkit.Server, path, key string) []event {
	t.Helper()
	var all []event
	for path != "" {
		a := s.Must(http.StatusOK, "GET", path, key, "")
		var page []event
		if err := json.Unmarshal(a.Body, &page); err != nil {
			t.Fatal(err)
		}
		all = append(all, page...)
		path = testkit.NextPage(a)
	}
	return all
}

func eventIDs(events []event) []string {
	var ids []string
	for _, e := range events {
		ids = append(ids, e.ID)
	}
	slices.Sort(ids)
	return ids
}

func bothEngines(t *testing.T, test func(t *testing.T, s *testkit.Server)) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) { test(t, testkit.Start(t, engine)) })
	}
}

// A client that follows the access log, loses the stream again and again and
// comes back gets every event once: no more and no fewer than the log holds.
func TestFollowAccessLog(t *testing.T) {
	bothEngines(t, func(t *testing.T, s *testkit.Server) {
		f := newFixture(s, "f-")
		secret, _ := s.NewKey(f.prefix+"own", `"permissions":["admin"]`)
		path := "/orgs/" + f.prefix + "own/access_log?follow=true&scope=subtree"
		feed := s.Follow(path, secret, "")

		const clients, each = 4, 60
		var wg sync.WaitGroup
		for c := range clients {
			wg.Go(func() {
				for i := range each {
					org := []string{"own", "child", "sibling", "parent"}[(c+i)%4]
					if _, err := s.TryDo("GET", "/orgs/"+f.prefix+org, s.OperatorKey, ""); err != nil {
						t.Error(err)
					}
					time.Sleep(5 * time.Millisecond)
				}
			})
		}
		worked := make(chan struct{})
		go func() { wg.Wait(); close(worked) }()

		var followed []string
		take := func(m testkit.FeedMessage) {
			var e event
			if err := json.Unmarshal([]byte(m.Data), &e); err != nil || m.Event != "" {
				t.Fatalf("the message %+v: %v", m, err)
			}
			if e.OrgID != f.prefix+"own" && e.OrgID != f.prefix+"child" {
				t.Errorf("an event of %s", e.OrgID)
			}
			followed = append(followed, e.ID)
		}
		reopen := func() {
			feed.Close()
			for m := range feed.Messages {
				take(m)
			}
			feed = s.Follow(path, secret, feed.LastID)
		}
		for more := true; more; {
			select {
			case <-worked:
				more = false
			case <-time.After(150 * time.Millisecond):
			}
			reopen()
		}
		log := accessLog(t, s, "/orgs/"+f.prefix+"own/access_log?scope=subtree&limit=100", s.OperatorKey)
		log = slices.DeleteFunc(log, func(e event) bool {
			return e.Action == "CREATE_KEY" || e.Action == "GET_ACCESS_LOG" && !strings.Contains(*e.Path, "own")
		})
		for deadline := time.Now().Add(10 * time.Second); len(followed) < len(log) && time.Now().Before(deadline); {
			time.Sleep(100 * time.Millisecond)
			reopen()
			log = accessLog(t, s, "/orgs/"+f.prefix+"own/access_log?scope=subtree&limit=1000", s.OperatorKey)
			log = slices.DeleteFunc(log, func(e event) bool { return e.Action == "CREATE_KEY" })
			// The last reads of the log itself may not have come yet.
			log = slices.DeleteFunc(log, func(e event) bool { return e.Action == "GET_ACCESS_LOG" })
			followed = slices.DeleteFunc(followed, func(id string) bool {
				return !slices.ContainsFunc(log, func(e event) bool { return e.ID == id })
			})
		}
		slices.Sort(followed)
		if want := eventIDs(log); !slices.Equal(followed, want) {
			t.Errorf("followed %d events, the log holds %d", len(followed), len(want))
		}
		if n := clients * each / 2; len(log) != n {
			t.Errorf("%d events in the log, want %d", len(log), n)
		}
	})
}

// A stream filters what it sends, and resumes after what it has filtered out.
func TestFollowFilters(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	f := newFixture(s, "f-")
	own := "/orgs/" + f.prefix + "own"
	secret, _ := s.NewKey(f.prefix+"own", `"permissions":["admin"]`)
	feed := s.Follow(own+"/access_log?follow=true&action=LIST_TAGS&status=FAILURE", secret, "")
	s.Must(200, "GET", own+"/tags", secret, "")
	s.Must(400, "GET", own+"/tags?x=1", secret, "")
	s.Must(200, "GET", own, secret, "")
	m, _ := feed.Next(5 * time.Second)
	var e event
	if err := json.Unmarshal([]byte(m.Data), &e); err != nil || e.Action != "LIST_TAGS" || e.Status != "FAILURE" {
		t.Errorf("the first message: %+v", m)
	}
	s.Must(400, "GET", own+"/tags?x=2", secret, "")
	feed.Next(5 * time.Second)
	feed.Close()
	for _, query := range []string{"?follow=false", "?follow=true&limit=5", "?follow=true&from=2026-01-01T00:00:00Z", "?follow=1&x=2"} {
		s.Must(400, "GET", own+"/access_log"+query, secret, "")
	}
	id := feed.LastID
	other, _ := s.NewKey(f.prefix+"foreign", `"permissions":["admin"]`)
	for _, bad := range []string{"x", id[1:], id + "A", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"} {
		if a := s.Must(400, "GET", own+"/access_log?follow=true", secret, "", "Last-Event-ID", bad); a.String("code") != "invalid_cursor" {
			t.Errorf("%s: %s", bad, a.Body)
		}
	}
	s.Must(400, "GET", "/orgs/"+f.prefix+"foreign/access_log?follow=true", other, "", "Last-Event-ID", id)
}

// A stream ends within five seconds of the end of its right to be.
func TestFollowEnds(t *testing.T) {
	bothEngines(t, func(t *testing.T, s *testkit.Server) {
		f := newFixture(s, "f-")
		own := "/orgs/" + f.prefix + "own"
		for _, test := range []struct {
			name, members, code string
			end                 func(keyID string)
		}{
			{"revoked", `"permissions":["admin"]`, "unauthorized", func(id string) {
				s.Must(200, "DELETE", own+"/api_keys/"+id, s.OperatorKey, "")
			}},
			{"less permission", `"permissions":["admin"]`, "permission_denied", func(id string) {
				s.Must(200, "PATCH", own+"/api_keys/"+id, s.OperatorKey, `{"permissions":["orgs:read"]}`)
			}},
			{"expired", `"permissions":["admin"],"expires_at":"SOON"`, "unauthorized", func(string) {}},
			{"deleted", `"permissions":["admin"]`, "unauthorized", func(string) {
				s.Must(200, "DELETE", own+"?cascade=true", s.OperatorKey, "")
			}},
		} {
			soon := time.Now().Add(3 * time.Second)
			secret, id := s.NewKey(f.prefix+"own", strings.ReplaceAll(test.members, "SOON", soon.UTC().Format(time.RFC3339Nano)))
			feed := s.Follow(own+"/access_log?follow=true&action=NOTHING", secret, "")
			test.end(id)
			begin := time.Now()
			if strings.Contains(test.members, "SOON") {
				begin = soon
			}
			m, ok := feed.Next(10 * time.Second)
			if !ok || m.Event != "problem" || !strings.Contains(m.Data, `"`+test.code+`"`) {
				t.Errorf("%s: the last message is %+v (%v)", test.name, m, ok)
			}
			if _, ok := feed.Next(5 * time.Second); ok {
				t.Errorf("%s: the stream goes on", test.name)
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("%s: ended after %v", test.name, took)
			}
			t.Logf("%s: ended after %v", test.name, time.Since(begin).Round(time.Millisecond))
		}
	})
}

// A key may follow a bounded number of streams, and gets room when it closes
// one.
func TestFollowBounded(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	f := newFixture(s, "f-")
	path := "/orgs/" + f.prefix + "own/access_log?follow=true"
	secret, _ := s.NewKey(f.prefix+"own", `"permissions":["admin"]`)
	var feeds []*testkit.Feed
	for range 50 {
		feeds = append(feeds, s.Follow(path, secret, ""))
	}
	if a := s.Must(429, "GET", path, secret, ""); a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	feeds[0].Close()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		// A stream that is answered does not end: look at its header only.
		req, _ := http.NewRequestWithContext(t.Context(), "GET", s.URL+path, nil)
		req.Header.Set("Authorization", "Bearer "+secret)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no room for another stream")
		}
	}
}

// When the server stops, its streams end at once.
func TestFollowShutdown(t *testing.T) {
	var resp *http.Response
	var begin time.Time
	t.Run("server", func(t *testing.T) {
		s := testkit.Start(t, "sqlite")
		newFixture(s, "f-")
		req, err := http.NewRequest("GET", s.URL+"/orgs/f-own/access_log?follow=true", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+s.OperatorKey)
		if resp, err = http.DefaultClient.Do(req); err != nil {
			t.Fatal(err)
		}
		begin = time.Now()
	})
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Errorf("the stream was cut: %v", err)
	}
	resp.Body.Close()
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the server stopped after %v", took)
	}
}

// A request with events is stored whole or not at all, and an id once.
func TestIngestAccessLog(t *testing.T) {
	bothEngines(t, func(t *testing.T, s *testkit.Server) {
		f := newFixture(s, "f-")
		path := "/orgs/f-own/access_log"
		secret, _ := s.NewKey("f-own", `"permissions":["access_log:write","access_log:read"]`)
		ingested := func(accepted, duplicates int, body string, headers ...string) {
			t.Helper()
			a := s.Must(200, "POST", path, secret, body, headers...)
			if want := fmt.Sprintf(`{"accepted":%d,"duplicates":%d}`, accepted, duplicates); string(a.Body) != want {
				t.Errorf("%s: %s, want %s", body, a.Body, want)
			}
		}
		at := time.Now().UTC().Add(-time.Hour).Truncate(time.Second)
		one := fmt.Sprintf(`{"id":"one","timestamp":%q,"user":"jo","action":"LOGIN","status":"DENIED","ip":"::ffff:192.0.2.7","user_agent":"x","method":"POST","path":"/login","request_id":"r-1"}`, at.Format(time.RFC3339))
		ingested(1, 0, one)
		ingested(0, 1, one)
		ingested(1, 2, `[{"id":"one","user":"other","action":"OTHER","status":"SUCCESS"},{"id":"two","org_id":"f-child","user":"jo","action":"LOGIN","status":"SUCCESS","ip":null},{"id":"two","user":"jo","action":"LOGIN","status":"SUCCESS"}]`)
		ingested(2, 0, "{\"user\":\"ann\",\"action\":\"LOGIN\",\"status\":\"SUCCESS\"}\r\n\n{\"user\":\"ann\",\"action\":\"LOGOUT\",\"status\":\"FAILURE\"}", "Content-Type", "application/x-ndjson")
		ingested(1, 0, `{"user":"bo","action":"LOGIN","status":"SUCCESS"}`, "Idempotency-Key", "k1")
		ingested(1, 0, `{"user":"bo","action":"LOGIN","status":"SUCCESS"}`, "Idempotency-Key", "k1")

		log := accessLog(t, s, path+"?scope=subtree&action=LOGIN", secret)
		var users []string
		for _, e := range log {
			users = append(users, e.OrgID+" "+e.User)
		}
		slices.Sort(users)
		if want := []string{"f-child jo", "f-own ann", "f-own bo", "f-own jo"}; !slices.Equal(users, want) {
			t.Errorf("logged %v, want %v", users, want)
		}
		e := log[len(log)-1]
		if e.ID != "one" || !e.Timestamp.Equal(at) || e.Status != "DENIED" || *e.IP != "192.0.2.7" || *e.UserAgent != "x" || *e.Method != "POST" ||
			*e.Path != "/login" || *e.RequestID != "r-1" || e.APIKeyID != nil {
			t.Errorf("the first event: %+v", e)
		}

		good := `{"user":"x","action":"X","status":"SUCCESS"}`
		for _, test := range []struct{ bad, pointer, says string }{
			{`{"action":"X","status":"SUCCESS"}`, "/user", "missing"},
			{`{"user":"x","action":"","status":"SUCCESS"}`, "/action", "missing"},
			{`{"user":"x","action":"X"}`, "/status", "missing"},
			{`{"user":"x","action":"X","status":"OK"}`, "/status", "SUCCESS, FAILURE or DENIED"},
			{`{"user":"x","action":"X","status":"SUCCESS","ip":"example.com"}`, "/ip", "address"},
			{`{"user":"x","action":"X","status":"SUCCESS","ip":"fe80::1%eth0"}`, "/ip", "address"},
			{`{"user":"x\u0007","action":"X","status":"SUCCESS"}`, "/user", "control"},
			{`{"user":"x","action":"X","status":"SUCCESS","id":"` + strings.Repeat("i", 129) + `"}`, "/id", "128"},
			{`{"user":"x","action":"X","status":"SUCCESS","timestamp":"yesterday"}`, "/timestamp", ""},
			{`{"user":"x","action":"X","status":"SUCCESS","timestamp":"0001-01-01T00:00:00Z"}`, "/timestamp", "never set"},
			{`{"user":"x","action":"X","status":"SUCCESS","timestamp":"` + time.Now().Add(6*time.Minute).Format(time.RFC3339) + `"}`, "/timestamp", "future"},
			{`{"user":"x","action":"X","status":"SUCCESS","timestamp":"` + time.Now().AddDate(0, 0, -401).Format(time.RFC3339) + `"}`, "/timestamp", "400 days"},
			{`{"user":"x","action":"X","status":"SUCCESS","org_id":"f-sibling"}`, "/org_id", "at or below f-own"},
			{`{"user":"x","action":"X","status":"SUCCESS","org_id":"f-foreign"}`, "/org_id", "at or below f-own"},
			{`{"user":"x","action":"X","status":"SUCCESS","org_id":"absent"}`, "/org_id", "at or below f-own"},
			{`{"user":"x","action":"X","status":"SUCCESS","org_id":"-"}`, "/org_id", ""},
			{`{"user":"x","action":"X","status":"SUCCESS","api_key_id":"key_1"}`, "/api_key_id", "api_key_id"},
			{`{"user":1,"action":"X","status":"SUCCESS"}`, "/user", ""},
			{`7`, "", ""},
		} {
			for _, format := range []string{"json", "ndjson"} {
				body, headers := "["+good+","+good+","+test.bad+"]", []string{}
				if format == "ndjson" {
					body, headers = good+"\n\n"+good+"\n"+test.bad+"\n", []string{"Content-Type", "application/x-ndjson"}
				}
				a := s.Must(400, "POST", path, secret, body, headers...)
				var p struct {
					Code   string
					Errors []struct {
						Index           *int
						Line            int
						Pointer, Detail string
					}
				}
				if err := json.Unmarshal(a.Body, &p, json.MatchCaseInsensitiveNames(true)); err != nil {
					t.Fatal(err)
				}
				if p.Code != "event_invalid" || len(p.Errors) != 1 || p.Errors[0].Index == nil || *p.Errors[0].Index != 2 || p.Errors[0].Pointer != test.pointer ||
					!strings.Contains(p.Errors[0].Detail, test.says) || (format == "ndjson") != (p.Errors[0].Line == 4) {
					t.Errorf("%s: %s", test.bad, a.Body)
				}
			}
		}
		for _, bad := range []string{"[]", "[" + good, "{"} {
			if a := s.Must(400, "POST", path, secret, bad); a.String("code") != "invalid_body" && a.String("code") != "event_invalid" {
				t.Errorf("%s: %s", bad, a.Body)
			}
		}
		s.Must(400, "POST", path, secret, "", "Content-Type", "application/json")
		s.Must(413, "POST", path, secret, strings.Repeat(good+"\n", 10_001), "Content-Type", "application/x-ndjson")
		s.Must(415, "POST", path, secret, good, "Content-Type", "text/csv")
		if n := len(accessLog(t, s, path+"?scope=subtree&action=X&limit=1000", secret)); n != 0 {
			t.Errorf("%d events of refused requests are stored", n)
		}
		ingested(10_000, 0, strings.Repeat(good+"\n", 10_000), "Content-Type", "application/x-ndjson")
		if n := len(accessLog(t, s, path+"?action=X&limit=1000", secret)); n != 10_000 {
			t.Errorf("%d events are stored", n)
		}

		self, _ := s.NewKey("f-own", `"permissions":["access_log:write"],"reach":"self"`)
		s.Must(200, "POST", path, self, `{"org_id":"f-own","user":"x","action":"X","status":"SUCCESS"}`)
		s.Must(400, "POST", path, self, `{"org_id":"f-child","user":"x","action":"X","status":"SUCCESS"}`)
		s.Must(200, "DELETE", "/orgs/f-child", s.OperatorKey, "")
		s.Must(400, "POST", path, secret, `{"org_id":"f-child","user":"x","action":"X","status":"SUCCESS"}`)
		_ = f
	})
}

// What is older than its root's retention shows nowhere, and is removed.
func TestAccessLogRetention(t *testing.T) {
	bothEngines(t, func(t *testing.T, s *testkit.Server) {
		newFixture(s, "f-")
		path := "/orgs/f-root/access_log"
		secret, _ := s.NewKey("f-root", `"permissions":["admin"]`)
		a := s.Must(200, "GET", path+"/retention", secret, "")
		if a.JSON("days") != 400.0 || a.JSON("updated_at") != nil {
			t.Errorf("the default is %s", a.Body)
		}
		tag := a.Header.Get("ETag")
		day := func(n int) string { return time.Now().AddDate(0, 0, -n).UTC().Format(time.RFC3339) }
		old := func(id string, n int) string {
			return fmt.Sprintf(`{"id":%q,"timestamp":%q,"user":"x","action":"OLD","status":"SUCCESS"}`, id, day(n))
		}
		s.Must(400, "POST", path, secret, old("ancient", 4000))
		a = s.Must(200, "PUT", path+"/retention", secret, `{"days":5000}`, "If-Match", tag)
		if a.Header.Get("Orgd-Audit-Receipt") == "" || a.JSON("days") != 5000.0 {
			t.Errorf("%s %v", a.Body, a.Header)
		}
		s.Must(412, "PUT", path+"/retention", secret, `{"days":30}`, "If-Match", tag)
		if a := s.Must(200, "PUT", path+"/retention", secret, `{"days":5000}`, "If-Match", a.Header.Get("ETag")); a.Header.Get("Orgd-Audit-Receipt") != "" {
			t.Error("a receipt for no change")
		}
		s.Must(200, "POST", path, secret, "["+old("ancient", 4000)+","+old("old", 100)+","+old("new", 1)+"]")
		for _, bad := range []string{`{"days":0}`, `{"days":36501}`, `{"days":1.5}`, `{}`, `{"days":null}`, `{"days":"30"}`} {
			s.Must(400, "PUT", path+"/retention", secret, bad)
		}
		count := func() int { return len(accessLog(t, s, path+"?action=OLD", secret)) }
		if n := count(); n != 3 {
			t.Errorf("%d events", n)
		}
		feed := s.Follow(path+"?follow=true&action=OLD", secret, "")
		feed.Close()
		s.Must(200, "PUT", path+"/retention", secret, `{"days":30}`)
		if n := count(); n != 1 {
			t.Errorf("%d events show after the retention was shortened", n)
		}
		if csv := s.Must(200, "GET", path+"?action=OLD&format=csv", secret, ""); strings.Count(string(csv.Body), "\r\n") != 2 {
			t.Errorf("as CSV: %s", csv.Body)
		}
		s.Must(400, "POST", path, secret, old("older", 31))
		if n, err := s.Trail.ExpireAccess(t.Context(), 0); err != nil || n != 2 {
			t.Errorf("removed %d (%v)", n, err)
		}
		s.Must(200, "PUT", path+"/retention", secret, `{"days":5000}`)
		if n := count(); n != 1 {
			t.Errorf("%d events are left", n)
		}
		if a := s.Must(200, "POST", path, secret, "["+old("old", 100)+","+old("new", 1)+"]"); string(a.Body) != `{"accepted":1,"duplicates":1}` {
			t.Errorf("an id whose event has expired, and one whose event is kept: %s", a.Body)
		}
		audit := s.Must(200, "GET", "/orgs/f-root/children_audit?action=access_log_retention.put", secret, "")
		if n := strings.Count(string(audit.Body), `"/days"`); n != 3 {
			t.Errorf("%d audit entries: %s", n, audit.Body)
		}
	})
}

// With two processes on one database, whoever follows the log at one of them
// gets what both record, each event once.
func TestFollowWithTwoProcesses(t *testing.T) {
	url := testkit.Postgres(t)
	one := testkit.Start(t, "postgres", func(c *server.Config) { c.Database = url })
	two := testkit.Start(t, "postgres", func(c *server.Config) { c.Database, c.OperatorKey = url, one.OperatorKey })
	newFixture(one, "f-")
	path := "/orgs/f-root/access_log?follow=true&scope=subtree&action=GET_ORG"
	feed := one.Follow(path, one.OperatorKey, "")
	const clients, each = 3, 80
	var wg sync.WaitGroup
	for _, s := range []*testkit.Server{one, two} {
		for c := range clients {
			wg.Go(func() {
				for i := range each {
					if a, err := s.TryDo("GET", "/orgs/f-"+[]string{"root", "own", "child"}[(c+i)%3], one.OperatorKey, ""); err != nil || a.Status != 200 {
						t.Errorf("%v %v", a, err)
					}
				}
			})
		}
	}
	const want = 2 * clients * each
	seen := map[string]bool{}
	next, then := two, one
	for deadline := time.Now().Add(20 * time.Second); len(seen) < want && time.Now().Before(deadline); {
		time.Sleep(100 * time.Millisecond)
		feed.Close()
		for m := range feed.Messages {
			var e event
			if err := json.Unmarshal([]byte(m.Data), &e); err != nil {
				t.Fatal(err)
			}
			if seen[e.ID] {
				t.Errorf("the event %s came twice", e.ID)
			}
			seen[e.ID] = true
		}
		feed = next.Follow(path, next.OperatorKey, feed.LastID)
		next, then = then, next
	}
	wg.Wait()
	if len(seen) != want {
		t.Errorf("%d events came, want %d", len(seen), want)
	}
}
