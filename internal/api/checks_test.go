package api_test

import (
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/testkit"
)

// The order of checks is fixed: who are you, can you see it, may you do it,
// is it as you think, and only then what do you want. Each request here is
// wrong in every later way too.
func TestOrderOfChecks(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	op := s.OperatorKey
	s.Must(201, "POST", "/orgs", op, `{"id":"a","name":"A"}`)
	s.Must(201, "POST", "/orgs", op, `{"id":"b","name":"B"}`)
	reader, _ := s.NewKey("a", `"permissions":["orgs:read"]`)
	admin, _ := s.NewKey("a", `"permissions":["admin"]`)
	stale := []string{"If-Match", `"stale"`}
	for _, tt := range []struct {
		name, path, key, body string
		headers               []string
		status                int
	}{
		{"no key", "/orgs/b", "", `nonsense`, stale, 401},
		{"not visible", "/orgs/b", reader, `nonsense`, stale, 404},
		{"not permitted", "/orgs/a", reader, `nonsense`, stale, 403},
		{"not as it was", "/orgs/a", admin, `nonsense`, stale, 412},
		{"not JSON", "/orgs/a", admin, `nonsense`, nil, 400},
	} {
		s.Must(tt.status, "PATCH", tt.path, tt.key, tt.body, tt.headers...)
		s.Must(tt.status, "PUT", tt.path+"/customizations", tt.key, tt.body, tt.headers...)
	}
	// The body of somebody who may not act is not even read.
	for _, tt := range []struct {
		path, key string
		status    int
	}{{"/orgs/a", "", 401}, {"/orgs/b", reader, 404}, {"/orgs/a", reader, 403}} {
		if w := sendUnread(t, s, "PATCH", tt.path, tt.key); w.Code != tt.status {
			t.Errorf("PATCH %s: %d, want %d", tt.path, w.Code, tt.status)
		}
	}
}

// Some calls take more than a permission: a key of an ancestor, a key that is
// as powerful as another. Who lacks that learns nothing about a body either,
// which is not read, nor about a precondition.
func TestMorePowerThanAPermissionTakesNoBody(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		plant(s, "r", "a r", "b a", "c a")
		s.Must(200, "PUT", "/orgs/r/limits/api_calls", s.OperatorKey, `{"limit":5,"enforcement":"soft"}`)
		atRoot, _ := s.NewKey("r", `"permissions":["admin"]`)
		atA, strong := s.NewKey("a", `"permissions":["admin"]`)
		keysOnly, _ := s.NewKey("a", `"permissions":["keys:write"]`)
		selfA, _ := s.NewKey("a", `"permissions":["admin"],"reach":"self"`)
		for _, tt := range []struct{ method, path, key, good string }{
			{"PUT", "/orgs/r/limits/api_calls", atRoot, `{"limit":9,"enforcement":"hard"}`},
			{"DELETE", "/orgs/r/limits/api_calls", atRoot, ``},
			{"PUT", "/orgs/a/limits/api_calls", atA, `{"limit":9,"enforcement":"hard"}`},
			{"PATCH", "/orgs/a/api_keys/" + strong, keysOnly, `{"name":"Mine"}`},
			{"PATCH", "/orgs/a/api_keys/" + strong, selfA, `{"name":"Mine"}`},
			{"POST", "/orgs/a/api_keys/" + strong + "/rotate", keysOnly, `{"overlap_seconds":0}`},
			{"POST", "/orgs/a/move", atA, `{"parent_id":"b"}`},
			{"POST", "/orgs/a/move?dry_run=true", atA, `{"parent_id":"b"}`},
			{"DELETE", "/orgs/a?cascade=true", selfA, ``},
		} {
			if a := s.Must(403, tt.method, tt.path, tt.key, tt.good); a.String("code") != "permission_denied" || a.String("fix") == "" && tt.key != atRoot {
				t.Errorf("%s %s: %s", tt.method, tt.path, a.Body)
			}
			headers := []string{"If-Match", `"stale"`}
			if tt.method == "POST" {
				headers = append(headers, "Idempotency-Key", "one")
			}
			s.Must(403, tt.method, tt.path, tt.key, `nonsense`, headers...)
			if w := sendUnread(t, s, tt.method, tt.path, tt.key, headers...); w.Code != 403 {
				t.Errorf("%s %s: %d", tt.method, tt.path, w.Code)
			}
		}
		// It is one and the same body that those who may act get an error for.
		s.Must(400, "PUT", "/orgs/a/limits/api_calls", atRoot, `nonsense`)
		s.Must(400, "PATCH", "/orgs/a/api_keys/"+strong, atRoot, `nonsense`)
		s.Must(400, "POST", "/orgs/a/api_keys/"+strong+"/rotate", atRoot, `nonsense`)
		s.Must(400, "POST", "/orgs/b/move", atA, `nonsense`)
		// What members of a body take is known once it is read, and comes before
		// their values.
		writer, _ := s.NewKey("a", `"permissions":["orgs:write"]`)
		s.Must(403, "POST", "/orgs/a/children", writer, `{"name":"","tags":["t"]}`)
		s.Must(403, "PATCH", "/orgs/a", writer, `{"name":"","tags":["t"]}`)
	})
}

// A key with the reach self puts nothing below its organization, in no way: it
// would not reach what it put there.
func TestSelfReachPutsNothingBelow(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		plant(s, "r", "a r", "b a", "c r")
		selfA, _ := s.NewKey("a", `"permissions":["admin"],"reach":"self"`)
		const csv = "id,name,parent_id\nnew,New,\n"
		for _, tt := range []struct{ path, body, contentType string }{
			{"/orgs/a/children", `{"id":"new","name":"New"}`, "application/json"},
			{"/orgs", `{"id":"new","name":"New","parent_id":"a"}`, "application/json"},
			{"/orgs", `{"id":"new","name":"New"}`, "application/json"},
			{"/orgs", `{"id":"new","name":"New","parent_id":"c"}`, "application/json"},
			{"/orgs/import", csv, "text/csv"},
			{"/orgs/import?parent_id=a", csv, "text/csv"},
			{"/orgs/import?dry_run=true", "id,name,parent_id\nnew,New,a\n", "text/csv"},
		} {
			a := s.Must(403, "POST", tt.path, selfA, tt.body, "Content-Type", tt.contentType)
			if a.String("code") != "permission_denied" || a.String("detail") != "This key reaches only its own organization, a, and nothing below it." ||
				a.String("fix") != "Use a key with the reach subtree." {
				t.Errorf("POST %s: %s", tt.path, a.Body)
			}
			if w := sendUnread(t, s, "POST", tt.path, selfA, "Content-Type", tt.contentType, "Idempotency-Key", "one"); w.Code != 403 {
				t.Errorf("POST %s: %d", tt.path, w.Code)
			}
		}
		s.Must(404, "POST", "/orgs/c/children", selfA, `{"id":"new","name":"New"}`)
		s.Must(404, "POST", "/orgs/c/move", selfA, `{"parent_id":"a"}`)
		s.Must(404, "POST", "/orgs/b/move", selfA, `{"parent_id":"a"}`)
		s.Must(403, "POST", "/orgs/a/move", selfA, `{"parent_id":"c"}`)
		s.Must(404, "GET", "/orgs/new", s.OperatorKey, "")
		s.Must(200, "DELETE", "/orgs/b", s.OperatorKey, "")
		absent := s.Must(404, "POST", "/orgs/nobody/restore", selfA, "", "X-Request-Id", "same")
		if a := s.Must(404, "POST", "/orgs/b/restore", selfA, "", "X-Request-Id", "same"); string(a.Body) != string(absent.Body) {
			t.Errorf("what is deleted below can be told from what is absent: %s", a.Body)
		}
	})
}

// sendUnread makes a request with a body that nobody may read.
func sendUnread(t *testing.T, s *testkit.Server, method, path, key string, headers ...string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, path, unreadable{t})
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+key)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, req)
	return w
}

type unreadable struct{ t *testing.T }

func (u unreadable) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, io.EOF
}

// A bad key is a bad key: every kind gets the same 401.
func TestOneUnauthorized(t *testing.T) {
	c := &clock{}
	s := testkit.Start(t, "sqlite", c.use)
	op := s.OperatorKey
	s.Must(201, "POST", "/orgs", op, `{"id":"a","name":"A"}`)
	s.Must(201, "POST", "/orgs", op, `{"id":"gone","name":"Gone"}`)
	good, _ := s.NewKey("a", "")
	expired, _ := s.NewKey("a", `"expires_at":"`+c.now().Add(time.Minute).UTC().Format(time.RFC3339Nano)+`"`)
	revoked, id := s.NewKey("a", "")
	s.Must(200, "DELETE", "/orgs/a/api_keys/"+id, op, "")
	orphan, _ := s.NewKey("gone", "")
	s.Must(200, "DELETE", "/orgs/gone", op, "")
	rotated, id := s.NewKey("a", "")
	s.Must(200, "POST", "/orgs/a/api_keys/"+id+"/rotate", op, `{"overlap_seconds":0}`)
	c.forward(time.Minute)
	typo := []byte(good)
	typo[len(typo)-10] ^= 1
	var first string
	for _, authorization := range []string{"", "Bearer", "Bearer ", "Bearer x", "Basic " + good, good, "Bearer " + string(typo), "Bearer " + expired,
		"Bearer " + revoked, "Bearer " + orphan, "Bearer " + rotated, "Bearer " + good + good, "Bearer orgd_operator_" + strings.Repeat("a", 38)} {
		a := s.Must(401, "GET", "/orgs/a", "", "", "Authorization", authorization, "X-Request-Id", "same")
		if a.Header.Get("WWW-Authenticate") != "Bearer" || a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("401 for %q has the headers %v", authorization, a.Header)
		}
		if first == "" {
			first = string(a.Body)
		} else if string(a.Body) != first {
			t.Errorf("401 for %q can be told apart: %s", authorization, a.Body)
		}
	}
	s.Must(200, "GET", "/orgs/a", "", "", "Authorization", "bearer  "+good)
}

// What a key cannot see looks exactly like what does not exist, headers
// included.
func TestForeignLooksAbsent(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	op := s.OperatorKey
	s.Must(201, "POST", "/orgs", op, `{"id":"mine","name":"Mine"}`)
	s.Must(201, "POST", "/orgs", op, `{"id":"their","name":"Theirs"}`)
	s.Must(201, "POST", "/orgs", op, `{"id":"gone1","name":"Deleted"}`)
	s.Must(201, "POST", "/orgs/mine/children", op, `{"id":"child","name":"Child"}`)
	s.Must(200, "DELETE", "/orgs/gone1", op, "")
	key, _ := s.NewKey("mine", `"permissions":["admin"]`)
	for _, call := range []struct{ method, path, body string }{
		{"GET", "/orgs/ID", ""}, {"HEAD", "/orgs/ID", ""}, {"PATCH", "/orgs/ID", `{"name":"x"}`}, {"DELETE", "/orgs/ID", ""},
		{"GET", "/orgs/ID/access_log", ""}, {"POST", "/orgs/ID/restore", ""}, {"POST", "/orgs/ID/children", `{"name":"x"}`},
		{"POST", "/orgs", `{"name":"x","parent_id":"ID"}`}, {"POST", "/orgs/child/move", `{"parent_id":"ID"}`},
		{"POST", "/orgs/child/move?dry_run=true", `{"parent_id":"ID"}`}, {"GET", "/orgs/ID/customization_schema", ""},
	} {
		var first *testkit.Answer
		for _, id := range []string{"nobod", "their", "gone1"} {
			fill := strings.NewReplacer("ID", id)
			a := s.Must(404, call.method, fill.Replace(call.path), key, fill.Replace(call.body), "X-Request-Id", "same")
			a.Header.Del("Date")
			if first == nil {
				first = a
				continue
			}
			if string(a.Body) != string(first.Body) {
				t.Errorf("%s %s: %s is told from nobody: %s", call.method, call.path, id, a.Body)
			}
			for name := range first.Header {
				if a.Header.Get(name) != first.Header.Get(name) {
					t.Errorf("%s %s: %s is told from nobody by %s: %s", call.method, call.path, id, name, a.Header.Get(name))
				}
			}
		}
	}
	for _, id := range []string{"nobod", "their", "gone1"} {
		a := s.Must(400, "POST", "/orgs/import", key, "id,name,parent_id\nnew,New,"+id+"\n", "Content-Type", "text/csv", "X-Request-Id", "same")
		if got := strings.ReplaceAll(string(a.Body), id, "ID"); !strings.Contains(got, "the parent ID is not in the import and does not exist") {
			t.Errorf("import below %s: %s", id, a.Body)
		}
	}
}

// Methods, paths and bodies that no call takes.
func TestNoSuchCall(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	op := s.OperatorKey
	s.Must(201, "POST", "/orgs", op, `{"id":"a","name":"A"}`)
	get := s.Must(200, "GET", "/orgs/a", op, "")
	head := s.Must(200, "HEAD", "/orgs/a", op, "")
	if len(head.Body) != 0 || head.Header.Get("Content-Length") != get.Header.Get("Content-Length") || head.Header.Get("ETag") != get.Header.Get("ETag") {
		t.Errorf("HEAD: %v %q", head.Header, head.Body)
	}
	for _, tt := range []struct{ method, path, allow string }{
		{"POST", "/orgs/a", "GET, HEAD, PATCH, DELETE"}, {"PUT", "/orgs", "GET, HEAD, POST"}, {"DELETE", "/orgs/a/customizations", "GET, HEAD, PUT"},
		{"OPTIONS", "/orgs/a", "GET, HEAD, PATCH, DELETE"}, {"TRACE", "/org", "GET, HEAD"}, {"POST", "/healthz", "GET, HEAD"}, {"QUERY", "/orgs/a/tags/x", "PUT, DELETE"},
	} {
		a := plain(t, s, tt.method, tt.path, op, "")
		if a.Status != 405 || a.Header.Get("Allow") != tt.allow || a.String("code") != "method_not_allowed" {
			t.Errorf("%s %s: %d Allow %q %s", tt.method, tt.path, a.Status, a.Header.Get("Allow"), a.Body)
		}
	}
	for _, path := range []string{"/", "/nothing", "/orgs/", "/orgs/a/", "/orgs//children", "/orgs/a/../b", "/orgs/./a", "/orgs/a/nothing", "//orgs", "/ORGS/a", "/orgs/a/children/b"} {
		a := plain(t, s, "GET", path, op, "")
		if a.Status != 404 || a.Header.Get("Content-Type") != "application/problem+json" || a.Header.Get("Location") != "" {
			t.Errorf("GET %s: %d %v %s", path, a.Status, a.Header, a.Body)
		}
	}
	// A misspelt parameter must not widen an answer, nor make a dry run real.
	for _, call := range [][2]string{{"GET", "/orgs?nam=x"}, {"DELETE", "/orgs/a?dryrun=true"}, {"DELETE", "/orgs/a?dry_run=yes"}, {"DELETE", "/orgs/a?dry_run=true&dry_run=false"},
		{"GET", "/orgs/a?x=1"}, {"GET", "/orgs?limit=5;name=x"}, {"GET", "/orgs?name=%zz"}, {"GET", "/orgs?Limit=5"}} {
		s.Must(400, call[0], call[1], op, "")
	}
	s.Must(200, "GET", "/orgs/a", op, "")
	if a := s.Must(200, "GET", "/orgs/a", op, ""); a.Header.Get("X-Content-Type-Options") != "nosniff" || a.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("headers: %v", a.Header)
	}
	a := s.Must(304, "GET", "/orgs/a", op, "", "If-None-Match", get.Header.Get("ETag"))
	if len(a.Body) != 0 {
		t.Errorf("304 with a body: %s", a.Body)
	}

	// A body that does not come in time is 408; one that ends early is 400.
	for _, tt := range []struct {
		err    error
		status int
	}{{os.ErrDeadlineExceeded, 408}, {io.ErrUnexpectedEOF, 400}, {errors.New("reset"), 400}} {
		req := httptest.NewRequest("PATCH", "/orgs/a", io.MultiReader(strings.NewReader(`{"name":`), broken{tt.err}))
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+op)
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, req)
		if w.Code != tt.status {
			t.Errorf("a body that fails with %v: %d %s", tt.err, w.Code, w.Body)
		}
		testkit.CheckContract(t, req, w.Result(), w.Body.Bytes())
	}
	if name := s.Must(200, "GET", "/orgs/a", op, "").String("name"); name != "A" {
		t.Errorf("half a body changed the name to %s", name)
	}
}

type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

// X-Request-Id is taken if it is sane, and made up otherwise.
func TestRequestIds(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	for id, kept := range map[string]bool{"req-1": true, "0190a5c2-7b1e-7000-8000-000000000000": true, strings.Repeat("a", 64): true,
		strings.Repeat("a", 65): false, "a b": false, "a/b": false, "<script>": false, "-x": false} {
		a := s.Must(401, "GET", "/org", "", "", "X-Request-Id", id)
		got := a.Header.Get("X-Request-Id")
		if (got == id) != kept || got == "" || a.String("instance") != "urn:orgd:request:"+got {
			t.Errorf("X-Request-Id %q gave %q, instance %q", id, got, a.String("instance"))
		}
	}
	if a, b := s.Do("GET", "/healthz", "", ""), s.Do("GET", "/healthz", "", ""); a.Header.Get("X-Request-Id") == b.Header.Get("X-Request-Id") {
		t.Error("two requests have one id")
	}
}

// A parameter without a value is what a program makes of a variable that is
// not set: it must not widen an answer, nor make a dry run real. No call takes
// one, except that /forward_auth has words of its own.
func TestParametersWithoutValue(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		plant(s, "r", "a r", "b a")
		key, _ := s.NewKey("r", `"permissions":["admin"]`)
		before := s.Must(200, "GET", "/orgs/r/descendants", op, "")
		var doc struct {
			Paths      map[string]map[string]jsontext.Value
			Components struct{ Parameters map[string]described }
		}
		if err := json.Unmarshal(s.Must(200, "GET", "/openapi.json", "", "").Body, &doc, json.MatchCaseInsensitiveNames(true)); err != nil {
			t.Fatal(err)
		}
		fill := strings.NewReplacer("{org_id}", "r", "{", "", "}", "")
		tried := 0
		for path, item := range doc.Paths {
			for method, raw := range item {
				var operation struct {
					OperationID string `json:"operationId"`
					Parameters  []described
				}
				if method == "parameters" || path == "/forward_auth" {
					continue
				}
				if err := json.Unmarshal(raw, &operation, json.MatchCaseInsensitiveNames(true)); err != nil {
					t.Fatal(err)
				}
				for _, p := range operation.Parameters {
					if name, ok := strings.CutPrefix(p.Ref, "#/components/parameters/"); ok {
						p = doc.Components.Parameters[name]
					}
					if p.In != "query" {
						continue
					}
					tried++
					says := "must not be empty"
					if p.Schema.Type == "boolean" {
						says = "must be true or false"
					}
					for _, query := range []string{"?" + p.Name, "?" + p.Name + "="} {
						caller := key
						if strings.HasPrefix(path, "/refused_audit_logs") || strings.HasPrefix(path, "/spools") {
							caller = op
						}
						a := s.Must(400, strings.ToUpper(method), fill.Replace(path)+query, caller, "")
						if a.String("code") != "invalid_parameter" || !strings.Contains(a.String("detail"), "The parameter "+p.Name+" "+says) {
							t.Errorf("%s %s: %s", operation.OperationID, query, a.Body)
						}
					}
				}
			}
		}
		if tried < 50 {
			t.Errorf("only %d parameters were found in the description", tried)
		}
		for _, query := range []string{"?dry_run", "?cascade=true&dry_run", "?cascade=true&dry_run=", "?dry_run=&cascade=true"} {
			s.Must(400, "DELETE", "/orgs/a"+query, key, "")
		}
		s.Must(400, "POST", "/orgs/b/move?dry_run", key, `{"parent_id":"r"}`)
		s.Must(400, "POST", "/orgs/import?dry_run=", key, "id,name\nc,C\n", "Content-Type", "text/csv")
		s.Must(400, "POST", "/orgs/r/audit_erasures?dry_run", key, `{"subject":"test","basis":"test"}`)
		if after := s.Must(200, "GET", "/orgs/r/descendants", op, ""); string(after.Body) != string(before.Body) {
			t.Errorf("a request without a value changed something: %s", after.Body)
		}
	})
}

// A time in a query is one that every database holds, and the first of all
// times does not stand for none.
func TestTimesInQueries(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		plant(s, "r")
		for _, path := range []string{"/orgs/r/access_log?from=", "/orgs/r/access_log?to=", "/orgs/r/children_audit?from=", "/orgs/r/children_audit?to=",
			"/orgs/r/children_audit?follow=true&from=", "/orgs/r?as_of=", "/orgs/r/descendants?as_of=", "/orgs/r/customizations?as_of="} {
			for v, says := range map[string]string{
				"0001-01-01T00:00:00Z": "years 2 to 9999", "0001-12-31T23:59:59Z": "years 2 to 9999", "0000-01-01T00:00:00Z": "years 2 to 9999",
				"0002-01-01T00:00:00%2B02:00": "years 2 to 9999", "9999-12-31T23:59:59-02:00": "years 2 to 9999",
				"yesterday": "such as 2026-11-28T12:00:00Z", "2026-11-24": "such as 2026-11-28T12:00:00Z", "10000-01-01T00:00:00Z": "such as 2026-11-28T12:00:00Z",
				"2026-11-24T09:30:00+02:00": "Write the + of an offset as %2B",
			} {
				a := s.Must(400, "GET", path+v, op, "")
				if !strings.Contains(string(a.Body), says) || strings.Contains(a.String("fix"), "%2B") != strings.Contains(v, "+") {
					t.Errorf("%s%s: %s", path, v, a.Body)
				}
			}
		}
		s.Must(200, "GET", "/orgs/r", op, "")
		for query, want := range map[string]int{"from=0002-01-01T00:00:00Z": 1, "to=0002-01-01T00:00:00Z": 0, "to=9999-12-31T23:59:59.999999Z": 1, "from=9999-12-31T23:59:59%2B02:00": 0} {
			for _, path := range []string{"/orgs/r/access_log?action=GET_ORG&status=SUCCESS&", "/orgs/r/children_audit?"} {
				if got := len(s.Must(200, "GET", path+query, op, "").JSON().([]any)); got != want {
					t.Errorf("%s%s: %d rows, want %d", path, query, got, want)
				}
			}
		}
	})
}

// described is a parameter in the API description.
type described struct {
	Ref    string `json:"$ref"`
	Name   string
	In     string
	Schema struct{ Type any }
}
