package api_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// together makes n requests at the same time and returns their answers.
func together(t *testing.T, n int, request func(i int) (*testkit.Answer, error)) []*testkit.Answer {
	t.Helper()
	answers := make([]*testkit.Answer, n)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-start
			a, err := request(i)
			if err != nil {
				t.Error(err)
				a = &testkit.Answer{Header: http.Header{}}
			}
			answers[i] = a
		})
	}
	close(start)
	wg.Wait()
	return answers
}

func statuses(answers []*testkit.Answer) map[int]int {
	n := map[int]int{}
	for _, a := range answers {
		n[a.Status]++
	}
	return n
}

// Every resource has a strong entity tag that changes with it, and a change
// that names another is refused.
func TestPreconditions(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		s.Must(201, "POST", "/orgs", op, `{"id":"r","name":"Root"}`)
		s.Must(201, "POST", "/orgs/r/children", op, `{"id":"c","name":"Child","tags":["x"]}`)
		s.Must(201, "POST", "/orgs/r/children", op, `{"id":"d","name":"Other"}`)
		s.Must(200, "PUT", "/orgs/r/customization_schema", op, `{"type":"object"}`)
		tag := func(path string) string {
			t.Helper()
			tag := s.Must(200, "GET", path, op, "").Header.Get("ETag")
			if len(tag) < 10 || tag[0] != '"' {
				t.Errorf("the tag of %s is %s", path, tag)
			}
			return tag
		}
		for _, tt := range []struct{ resource, method, path, body string }{
			{"/orgs/c", "PATCH", "/orgs/c", `{"name":"New %d"}`},
			{"/orgs/c/customizations", "PUT", "/orgs/c/customizations", `{"customizations":{"a":%d}}`},
			{"/orgs/c", "POST", "/orgs/c/move", `{"parent_id":"d"}`},
			{"/orgs/c", "PUT", "/orgs/c/tags/t%d", ``},
			{"/orgs/c/tags", "PUT", "/orgs/c/tags/u%d", ``},
			{"/orgs/c", "DELETE", "/orgs/c/tags/x", ``},
			{"/orgs/r/customization_schema", "PUT", "/orgs/r/customization_schema", `{"type":"object","title":"%d"}`},
			{"/orgs/r/customization_schema", "DELETE", "/orgs/r/customization_schema", ``},
			{"/orgs/c", "DELETE", "/orgs/c", ``},
		} {
			fill := func(text string, n int) string { return strings.ReplaceAll(text, "%d", fmt.Sprint(n)) }
			current := tag(tt.resource)
			for _, bad := range []string{`"stale"`, `"a", "b"`, `W/` + current, strings.Trim(current, `"`), strings.ToUpper(current) + "x"} {
				a := s.Must(412, tt.method, fill(tt.path, 1), op, fill(tt.body, 1), "If-Match", bad)
				if a.String("code") != "precondition_failed" || a.String("etag") != current {
					t.Errorf("%s %s with If-Match %s: %s", tt.method, tt.path, bad, a.Body)
				}
			}
			if after := tag(tt.resource); after != current {
				t.Errorf("%s %s was refused and changed the tag", tt.method, tt.path)
			}
			a := s.Must(200, tt.method, fill(tt.path, 2), op, fill(tt.body, 2), "If-Match", `"other" , `+current)
			if tt.method == "DELETE" && tt.path != "/orgs/c/tags/x" {
				continue
			}
			after := tag(tt.resource)
			if after == current {
				t.Errorf("%s %s did not change the tag", tt.method, tt.path)
			}
			if got := a.Header.Get("ETag"); got != after && tt.resource == strings.Split(tt.path, "/tags/")[0] && tt.path != "/orgs/c/move" {
				t.Errorf("%s %s answers with the tag %s, then it is %s", tt.method, tt.path, got, after)
			}
			s.Must(412, tt.method, fill(tt.path, 3), op, fill(tt.body, 3), "If-Match", current)
		}
		s.Must(200, "PATCH", "/orgs/r", op, `{"name":"Any"}`, "If-Match", "*")
		s.Must(404, "PATCH", "/orgs/c", op, `{"name":"Any"}`, "If-Match", "*")

		// What is created below a parent is created below that one as it is, by
		// either call. A new root has none.
		current := tag("/orgs/d")
		for i, path := range []string{"/orgs/d/children", "/orgs"} {
			body := fmt.Sprintf(`{"id":"d%d","name":"New","parent_id":"d"}`, i)
			if a := s.Must(412, "POST", path, op, body, "If-Match", `"stale"`); a.String("etag") != current {
				t.Errorf("POST %s: %s", path, a.Body)
			}
			s.Must(201, "POST", path, op, body, "If-Match", current)
		}
		s.Must(412, "POST", "/orgs", op, `{"id":"new","name":"New"}`, "If-Match", "*")

		// What is inherited is part of the settings' representation, and of its tag.
		before := tag("/orgs/d/customizations")
		s.Must(200, "PUT", "/orgs/r/customizations", op, `{"customizations":{"b":1}}`)
		if tag("/orgs/d/customizations") == before {
			t.Error("an inherited setting changed, its tag did not")
		}

		// Of many changes of the same state one wins.
		s.Must(200, "PUT", "/orgs/r/customization_schema", op, `{"type":"object"}`)
		for _, tt := range []struct{ method, path, body string }{
			{"PATCH", "/orgs/d", `{"description":"by %d"}`},
			{"PUT", "/orgs/r/customization_schema", `{"title":"by %d"}`},
		} {
			current := tag(tt.path)
			answers := together(t, 12, func(i int) (*testkit.Answer, error) {
				return s.TryDo(tt.method, tt.path, op, fmt.Sprintf(tt.body, i), "If-Match", current)
			})
			if n := statuses(answers); n[200] != 1 || n[412] != 11 {
				t.Errorf("twelve changes of the same state of %s: %v", tt.path, n)
			}
		}
	})
}

// Whether a resource is as the request thinks comes before what the request
// wants of it: whoever is late learns that, whatever is wrong with the body.
func TestPreconditionsComeBeforeBodies(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		plant(s, "r", "c r", "d r")
		s.Must(200, "PUT", "/orgs/r/customization_schema", op, `{"type":"object"}`)
		s.Must(200, "PUT", "/orgs/r/meters/tokens", op, `{"unit":"tokens","aggregation":"sum"}`)
		s.Must(200, "PUT", "/orgs/c/limits/tokens", op, `{"limit":5,"enforcement":"soft"}`)
		s.Must(200, "PUT", "/orgs/c/tags/x", op, ``)
		_, keyID := s.NewKey("c", "")
		for _, call := range [][2]string{
			{"PATCH", "/orgs/c"}, {"DELETE", "/orgs/c"}, {"POST", "/orgs/c/move"}, {"POST", "/orgs/c/children"},
			{"PUT", "/orgs/c/customizations"}, {"PUT", "/orgs/r/customization_schema"}, {"DELETE", "/orgs/r/customization_schema"},
			{"PUT", "/orgs/c/tags/y"}, {"DELETE", "/orgs/c/tags/x"},
			{"PATCH", "/orgs/c/api_keys/" + keyID}, {"DELETE", "/orgs/c/api_keys/" + keyID}, {"POST", "/orgs/c/api_keys/" + keyID + "/rotate"},
			{"PUT", "/orgs/r/access_log/retention"}, {"PUT", "/orgs/r/meters/tokens"}, {"DELETE", "/orgs/r/meters/tokens"},
			{"PUT", "/orgs/c/limits/tokens"}, {"DELETE", "/orgs/c/limits/tokens"},
		} {
			if a := s.Must(412, call[0], call[1], op, `nonsense`, "If-Match", `"stale"`); a.String("code") != "precondition_failed" || a.String("etag") == "" {
				t.Errorf("%s %s: %s", call[0], call[1], a.Body)
			}
			s.Must(400, call[0], call[1], op, `nonsense`)
		}
	})
}

// A header If-Match that names nothing, such as one made of a variable that is
// not set, is an error: the change was meant to be conditional.
func TestEmptyIfMatch(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		plant(s, "r", "c r")
		reader, _ := s.NewKey("c", `"permissions":["read"]`)
		before := s.Must(200, "GET", "/orgs/c", op, "")
		for _, empty := range []string{"", " ", ",", " , ,"} {
			for _, call := range [][3]string{
				{"PATCH", "/orgs/c", `{"name":"New"}`}, {"PUT", "/orgs/c/customizations", `{"customizations":{"a":1}}`}, {"PUT", "/orgs/c/tags/x", ``},
				{"POST", "/orgs/c/children", `{"name":"New"}`}, {"PUT", "/orgs/c/limits/api_calls", `{"limit":5,"enforcement":"hard"}`}, {"DELETE", "/orgs/c", ``},
			} {
				a := s.Must(400, call[0], call[1], op, call[2], "If-Match", empty)
				if a.String("code") != "invalid_parameter" || a.String("detail") != "The header If-Match is empty." || a.String("fix") == "" {
					t.Errorf("%s %s with If-Match %q: %s", call[0], call[1], empty, a.Body)
				}
				s.Must(403, call[0], call[1], reader, call[2], "If-Match", empty)
			}
			s.Must(400, "POST", "/orgs/c/children", op, `{"name":"New"}`, "If-Match", empty, "Idempotency-Key", "one")
			s.Must(200, "GET", "/orgs/c", op, "", "If-Match", empty)
		}
		if after := s.Must(200, "GET", "/orgs/c", op, ""); string(after.Body) != string(before.Body) {
			t.Errorf("a refused change was made: %s", after.Body)
		}
		// Elements of a list may be empty (RFC 9110, section 5.6.1).
		s.Must(200, "PATCH", "/orgs/c", op, `{"name":"New"}`, "If-Match", `, "other",, `+before.Header.Get("ETag")+`,`)
		// What is no entity tag matches none.
		s.Must(412, "PATCH", "/orgs/c", op, `{"name":"Newer"}`, "If-Match", "unquoted")
		s.Must(412, "PATCH", "/orgs/c", op, `{"name":"Newer"}`, "If-Match", `*, "other"`)
		// The header of a request that is decided about is its product's.
		s.Must(200, "GET", "/forward_auth", reader, "", "If-Match", "")
		s.Must(200, "PUT", "/forward_auth", reader, "", "If-Match", "")
	})
}

// Nothing matches what does not exist, neither * nor the tag that nothing
// would have (RFC 9110, section 13.1.1): If-Match never makes something new.
func TestNothingMatchesWhatDoesNotExist(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		plant(s, "r", "c r")
		hash := sha256.Sum256(nil)
		ofNothing := `"` + base64.RawURLEncoding.EncodeToString(hash[:12]) + `"`
		for _, tt := range []struct{ path, body, detail string }{
			{"/orgs/r/customization_schema", `{"type":"object"}`, "The root r has no customization schema."},
			{"/orgs/r/meters/tokens", `{"unit":"tokens","aggregation":"sum"}`, "This root has no meter tokens."},
			{"/orgs/c/limits/api_calls", `{"limit":5,"enforcement":"soft"}`, "There is no limit on api_calls of c."},
		} {
			for _, match := range []string{"*", `"abc"`, ofNothing} {
				for _, call := range [][2]string{{"PUT", tt.body}, {"PUT", `nonsense`}, {"DELETE", ``}} {
					a := s.Must(412, call[0], tt.path, op, call[1], "If-Match", match)
					if a.String("detail") != tt.detail || a.JSON("etag") != nil || a.String("fix") != "Leave out If-Match." {
						t.Errorf("%s %s with If-Match %s: %s", call[0], tt.path, match, a.Body)
					}
				}
			}
			s.Must(404, "DELETE", tt.path, op, ``)
			s.Must(404, "GET", tt.path, op, ``)
			s.Must(200, "PUT", tt.path, op, tt.body)
			s.Must(200, "PUT", tt.path, op, tt.body, "If-Match", "*")
		}
	})
}

// A POST with an Idempotency-Key happens once, from however many connections
// it comes.
func TestIdempotencyKeys(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		s.Must(201, "POST", "/orgs", op, `{"id":"r","name":"Root"}`)
		key, _ := s.NewKey("r", `"permissions":["admin"]`)
		const body = `{"name":"Child"}`
		send := func(int) (*testkit.Answer, error) {
			return s.TryDo("POST", "/orgs/r/children", key, body, "Idempotency-Key", "one")
		}
		var first *testkit.Answer
		for deadline := time.Now().Add(10 * time.Second); ; {
			answers := together(t, 10, send)
			unfinished := false
			for _, a := range answers {
				switch {
				case a.Status == 409:
					if a.String("code") != "request_in_flight" || a.Header.Get("Retry-After") == "" {
						t.Fatalf("409: %v %s", a.Header, a.Body)
					}
					unfinished = true
				case a.Status != 201:
					t.Fatalf("%d %s", a.Status, a.Body)
				case first == nil:
					first = a
				}
				if a.Status != 201 {
					continue
				}
				if !bytes.Equal(a.Body, first.Body) {
					t.Fatalf("two answers:\n%s\n%s", a.Body, first.Body)
				}
				for _, name := range []string{"Location", "Etag", "Orgd-Audit-Receipt", "Content-Type"} {
					if a.Header.Get(name) != first.Header.Get(name) || a.Header.Get(name) == "" {
						t.Errorf("%s is %q, at first %q", name, a.Header.Get(name), first.Header.Get(name))
					}
				}
			}
			if !unfinished {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("requests are in flight for ever")
			}
		}
		if children := s.Must(200, "GET", "/orgs/r/children", key, "").JSON().([]any); len(children) != 1 {
			t.Errorf("%d children were created", len(children))
		}
		entries := s.Must(200, "GET", "/orgs/r/children_audit?action=organization.created&scope=children", key, "").JSON().([]any)
		if len(entries) != 1 {
			t.Errorf("%d entries were written", len(entries))
		}

		// Another request with the same key: another body, call or query.
		for _, call := range [][2]string{{"/orgs/r/children", `{"name":"Other"}`}, {"/orgs/r/children", `{"name":"Child" }`}, {"/orgs", body}, {"/orgs/r/api_keys", body}} {
			if a := s.Must(409, "POST", call[0], key, call[1], "Idempotency-Key", "one"); a.String("code") != "idempotency_key_reused" {
				t.Errorf("POST %s: %s", call[0], a.Body)
			}
		}
		// Another caller's key is another key.
		other, _ := s.NewKey("r", `"permissions":["admin"]`)
		if a := s.Must(201, "POST", "/orgs/r/children", other, body, "Idempotency-Key", "one"); a.String("id") == first.String("id") {
			t.Error("another caller got the answer")
		}
		// The caller is checked before the answer is given again.
		s.Must(401, "POST", "/orgs/r/children", "", body, "Idempotency-Key", "one")

		// A refused request did nothing and may be tried again.
		s.Must(400, "POST", "/orgs/r/children", key, `{"name":""}`, "Idempotency-Key", "two")
		s.Must(409, "POST", "/orgs/r/children", key, `{"id":"r","name":"x"}`, "Idempotency-Key", "two")
		s.Must(201, "POST", "/orgs/r/children", key, `{"id":"two","name":"Two"}`, "Idempotency-Key", "two")
		for _, bad := range []string{"a b", "é", strings.Repeat("a", 256), ""} {
			s.Must(400, "POST", "/orgs/r/children", key, body, "Idempotency-Key", bad)
		}
		s.Must(201, "POST", "/orgs/r/children", key, body, "Idempotency-Key", strings.Repeat("a", 255))

		// Every POST: a restore, a move and a rotation too.
		s.Must(201, "POST", "/orgs/r/children", key, `{"id":"c","name":"C"}`)
		for i, call := range [][2]string{{"/orgs/c/move", `{"parent_id":"two"}`}, {"/orgs/c/restore", ``}, {"/orgs/import?parent_id=two", "id,name\ni1,I\n"}} {
			ct := "application/json"
			if i == 1 {
				s.Must(200, "DELETE", "/orgs/c", key, "")
			}
			if i == 2 {
				ct = "text/csv"
			}
			k := fmt.Sprint("post-", i)
			a := s.Must(200, "POST", call[0], key, call[1], "Idempotency-Key", k, "Content-Type", ct)
			again := s.Must(200, "POST", call[0], key, call[1], "Idempotency-Key", k, "Content-Type", ct)
			if !bytes.Equal(a.Body, again.Body) || a.Header.Get("Orgd-Audit-Receipt") != again.Header.Get("Orgd-Audit-Receipt") {
				t.Errorf("POST %s: %s\nagain: %s", call[0], a.Body, again.Body)
			}
		}
	})
}

// An answer is kept for a day; after that the key is as if it was never used.
// The answer to a POST that changes nothing is kept too, and answers only the
// same request again.
func TestIdempotencyKeyOfARequestThatChangesNothing(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"r","name":"R"}`)
	s.Must(201, "POST", "/orgs/r/children", s.OperatorKey, `{"id":"c","name":"C"}`)
	s.Must(201, "POST", "/orgs/r/children", s.OperatorKey, `{"id":"d","name":"D"}`)
	first := s.Must(200, "POST", "/orgs/c/move?dry_run=true", s.OperatorKey, `{"parent_id":"d"}`, "Idempotency-Key", "k")
	s.Must(200, "POST", "/orgs/c/move", s.OperatorKey, `{"parent_id":"d"}`)
	again := s.Must(200, "POST", "/orgs/c/move?dry_run=true", s.OperatorKey, `{"parent_id":"d"}`, "Idempotency-Key", "k")
	if string(again.Body) != string(first.Body) {
		t.Errorf("answered %s, then %s", first.Body, again.Body)
	}
	a := s.Must(409, "POST", "/orgs/c/move", s.OperatorKey, `{"parent_id":"r"}`, "Idempotency-Key", "k")
	if a.String("code") != "idempotency_key_reused" {
		t.Errorf("another request with the same key: %s", a.Body)
	}
}

func TestIdempotencyKeysEnd(t *testing.T) {
	onBothWith(t, func(t *testing.T, s *testkit.Server, c *clock) {
		s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"r","name":"Root"}`)
		create := func(name string) *testkit.Answer {
			return s.Do("POST", "/orgs/r/children", s.OperatorKey, `{"name":"`+name+`"}`, "Idempotency-Key", "k")
		}
		first := create("A").String("id")
		c.forward(23 * time.Hour)
		if got := create("A").String("id"); got != first {
			t.Errorf("after 23 hours: %s, at first %s", got, first)
		}
		c.forward(2 * time.Hour)
		if a := create("B"); a.Status != 201 || a.String("id") == first {
			t.Errorf("after 25 hours: %d %s", a.Status, a.Body)
		}
		if a := create("A"); a.Status != 409 {
			t.Errorf("the new answer is kept: %d %s", a.Status, a.Body)
		}
	})
}

// Requests that are refused late, after what they store was written, leave
// those alone that they would have been committed with: each of these is made
// once.
func TestChangesBesideFailures(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		s.Must(201, "POST", "/orgs", op, `{"id":"r","name":"Root"}`)
		s.Must(200, "PUT", "/orgs/r/meters/tokens", op, `{"unit":"tokens","aggregation":"sum"}`)
		s.Must(200, "PUT", "/orgs/r/limits/tokens", op, `{"limit":0,"enforcement":"hard"}`)
		const clients, rounds = 8, 12
		for c := range clients {
			s.Must(201, "POST", "/orgs/r/children", op, fmt.Sprintf(`{"id":"c%d","name":"Child"}`, c))
		}
		answers := together(t, 2*clients, func(i int) (*testkit.Answer, error) {
			c := i / 2
			for round := range rounds {
				var a *testkit.Answer
				var err error
				want := 200
				switch {
				case i%2 == 0:
					a, err = s.TryDo("POST", "/orgs/r/consumption/events", op, fmt.Sprintf(`{"id":"%d","source":"c%d","meter":"tokens","quantity":1}`, round, c))
					want = 429
				case round%4 == 0:
					a, err = s.TryDo("PUT", fmt.Sprintf("/orgs/c%d/tags/t%d", c, round), op, "")
				case round%4 == 1:
					a, err = s.TryDo("POST", fmt.Sprintf("/orgs/c%d/api_keys", c), op, `{"name":"Key"}`)
					want = 201
				case round%4 == 2:
					a, err = s.TryDo("POST", fmt.Sprintf("/orgs/c%d/consumption/events", c), op, fmt.Sprintf(`{"id":"%d","source":"c%d","meter":"storage_used","quantity":%d}`, round, c, round))
				default:
					a, err = s.TryDo("PATCH", fmt.Sprintf("/orgs/c%d", c), op, fmt.Sprintf(`{"name":"Child %d"}`, round))
				}
				if err != nil || a.Status != want {
					return a, err
				}
			}
			return &testkit.Answer{Status: 200}, nil
		})
		for _, a := range answers {
			if a.Status != 200 {
				t.Errorf("%d %s", a.Status, a.Body)
			}
		}
		for c := range clients {
			entries := s.Must(200, "GET", fmt.Sprintf("/orgs/c%d/children_audit?scope=self", c), op, "").JSON().([]any)
			if want := 1 + rounds*3/4; len(entries) != want {
				t.Errorf("c%d: %d entries, not %d", c, len(entries), want)
			}
		}
		if used := s.Must(200, "GET", "/orgs/r/consumption", op, "").JSON("meters", "storage_used", "total"); used != float64(clients*(rounds-2)) {
			t.Errorf("%v was consumed", used)
		}
	})
}
