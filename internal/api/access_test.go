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
			{"expired", fmt.Sprintf(`"permissions":["admin"],"expires_at":%q`, time.Now().Add(2*time.Second).UTC().Format(time.RFC3339Nano)), "unauthorized", func(string) {}},
			{"deleted", `"permissions":["admin"]`, "unauthorized", func(string) {
				s.Must(200, "DELETE", own+"?cascade=true", s.OperatorKey, "")
			}},
		} {
			secret, id := s.NewKey(f.prefix+"own", test.members)
			feed := s.Follow(own+"/access_log?follow=true&action=NOTHING", secret, "")
			test.end(id)
			begin := time.Now()
			m, ok := feed.Next(5 * time.Second)
			if !ok || m.Event != "problem" || !strings.Contains(m.Data, `"`+test.code+`"`) {
				t.Errorf("%s: the last message is %+v (%v)", test.name, m, ok)
			}
			if _, ok := feed.Next(5 * time.Second); ok {
				t.Errorf("%s: the stream goes on", test.name)
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
