package api_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/orgd/orgd/internal/testkit"
)

// onBoth runs a scenario on both databases, beside other tests. After each of
// them testkit checks the whole system.
func onBoth(t *testing.T, scenario func(t *testing.T, s *testkit.Server)) {
	t.Parallel()
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) { scenario(t, testkit.Start(t, engine)) })
	}
}

// plain makes a request that the API description does not know, so that its
// answer is not checked against it.
func plain(t *testing.T, s *testkit.Server, method, path, key, body string, headers ...string) *testkit.Answer {
	t.Helper()
	req, err := http.NewRequest(method, s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return &testkit.Answer{Status: resp.StatusCode, Header: resp.Header, Body: b}
}

// pointers returns the pointers of the bad values that an answer names.
func pointers(a *testkit.Answer) string {
	var ps []string
	errs, _ := a.JSON("errors").([]any)
	for _, e := range errs {
		p, _ := e.(map[string]any)["pointer"].(string)
		ps = append(ps, p)
	}
	return strings.Join(ps, " ")
}

// An id that is none names nothing, in every place where ids stand.
func TestIdsThatAreNone(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"Acme","name":"Acme"}`)
		s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"`+strings.Repeat("a", 64)+`","name":"Longest"}`)
		key, keyID := s.NewKey("Acme", `"permissions":["admin"]`)
		for _, id := range []string{"acme", "ACME", "Acme%2F", "Acme%2Fx", "%2FAcme", "..", "%2e%2e", "..%2FAcme", ".Acme", "Acme%00", "%00",
			strings.Repeat("a", 65), "Acm%C3%A9", "%FF%FE", "Acme%20", "Acme%0A", "Acme'", "Acme%25", "*", "%5c"} {
			for _, caller := range []string{s.OperatorKey, key} {
				for _, path := range []string{"/orgs/" + id, "/orgs/" + id + "/children", "/orgs/" + id + "/api_keys", "/orgs/Acme/api_keys/" + id} {
					a := plain(t, s, "GET", path, caller, "")
					if a.Status != 404 || a.String("code") != "not_found" {
						t.Errorf("GET %s: %d %s", path, a.Status, a.Body)
					}
				}
				if a := plain(t, s, "POST", "/orgs/"+id+"/restore", caller, ""); a.Status != 404 {
					t.Errorf("restore of %s: %d %s", id, a.Status, a.Body)
				}
			}
		}
		// In a body, and in another's place: none of these is an id.
		for _, id := range []string{"a/b", "..", ".a", "-a", "_a", "a b", "a\\u0000", "a\\n", "é", strings.Repeat("a", 65)} {
			a := s.Must(400, "POST", "/orgs", s.OperatorKey, `{"id":"`+id+`","name":"x"}`)
			if pointers(a) != "/id" {
				t.Errorf("id %s: %s", id, a.Body)
			}
			s.Must(404, "POST", "/orgs", s.OperatorKey, `{"name":"x","parent_id":"`+id+`"}`)
		}
		s.Must(200, "GET", "/orgs/"+strings.Repeat("a", 64), s.OperatorKey, "")
		s.Must(200, "GET", "/orgs/Acme/api_keys/"+keyID, key, "")
		// All of it was recorded, on both databases.
		s.Must(200, "GET", "/orgs/Acme/access_log?limit=1000", key, "")
	})
}

// Bodies are JSON as RFC 8259 and RFC 7493 have it and nothing else; the
// answer names the place.
func TestStrictBodies(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	op := s.OperatorKey
	s.Must(201, "POST", "/orgs", op, `{"id":"o","name":"Org"}`)
	deep := func(n int) string {
		return `{"customizations":` + strings.Repeat(`{"a":`, n-1) + `1` + strings.Repeat(`}`, n-1) + `}`
	}
	before := s.Must(200, "GET", "/orgs/o", op, "")
	for _, tt := range []struct{ name, body, pointer, says string }{
		{"unknown member", `{"name":"x","nickname":"y"}`, "/nickname", "nickname"},
		{"unknown member with a slash", `{"a/b":1}`, "/a~1b", "not a member"},
		{"repeated member", `{"name":"x","name":"y"}`, "/name", "duplicate"},
		{"repeated member below", `{"customizations":{"a":{"b":1,"b":2}}}`, "/customizations/a/b", "duplicate"},
		{"member in other case", `{"Name":"x"}`, "/Name", "case-sensitive"},
		{"member in other case below", `{"name":"x","TAGS":[]}`, "/TAGS", "case-sensitive"},
		{"invalid UTF-8", "{\"name\":\"\xff\"}", "/name", "UTF-8"},
		{"invalid UTF-8 in a name", "{\"na\xffme\":1}", "", "UTF-8"},
		{"lone surrogate", `{"name":"\ud800"}`, "/name", "surrogate"},
		{"lone surrogate in customizations", `{"customizations":{"a":"\udc00 x"}}`, "/customizations/a", "surrogate"},
		{"too deep", deep(65), "", "64"},
		{"deep array", strings.Repeat("[", 65) + strings.Repeat("]", 65), "", "64"},
		{"trailing data", `{"name":"x"} {}`, "", "after top-level value"},
		{"trailing comma", `{"name":"x",}`, "", "JSON"},
		{"comment", `{"name":"x" /* y */}`, "", "JSON"},
		{"unfinished", `{"name":"x"`, "", "JSON"},
		{"wrong type", `{"name":5}`, "/name", ""},
		{"wrong element", `{"tags":["a",5]}`, "/tags", ""},
		{"not an object", `[]`, "", "array"},
		{"null", `null`, "", "null"},
		{"text", `"name"`, "", "string"},
		{"byte-order mark", "\xef\xbb\xbf{}", "", "Remove the first three bytes"},
		{"white space alone", "  \n", "", "empty"},
		{"NaN", `{"customizations":{"a":NaN}}`, "", "JSON"},
	} {
		a := s.Must(400, "PATCH", "/orgs/o", op, tt.body)
		if a.String("code") != "invalid_body" || !strings.Contains(pointers(a), tt.pointer) || !strings.Contains(string(a.Body), tt.says) {
			t.Errorf("%s: %s", tt.name, a.Body)
		}
	}
	a := s.Must(400, "PATCH", "/orgs/o", op, "", "Content-Type", "application/json")
	if !strings.Contains(a.String("detail"), "empty") {
		t.Errorf("no body: %s", a.Body)
	}
	// The deepest body that is read is refused for another reason: customizations
	// may be nested 32 levels.
	if a := s.Must(400, "PATCH", "/orgs/o", op, deep(64)); strings.Contains(a.String("detail"), "64") {
		t.Errorf("a body of 64 levels: %s", a.Body)
	}
	if again := s.Must(200, "GET", "/orgs/o", op, ""); string(again.Body) != string(before.Body) {
		t.Errorf("a refused body changed something: %s", again.Body)
	}

	// Size: at most 1 MiB, whether or not the length is declared.
	padded := func(n int) string { return `{"name":"x"}` + strings.Repeat(" ", n-12) }
	s.Must(200, "PATCH", "/orgs/o", op, padded(1<<20))
	for _, chunked := range []bool{false, true} {
		body := io.Reader(strings.NewReader(padded(1<<20 + 1)))
		if chunked {
			body = io.MultiReader(body)
		}
		req, err := http.NewRequest("PATCH", s.URL+"/orgs/o", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+op)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 413 || !strings.Contains(string(b), `"limit_bytes":1048576`) {
			t.Errorf("a body of more than 1 MiB, chunked %v: %d %s", chunked, resp.StatusCode, b)
		}
	}

	// Content-Type.
	for _, ct := range []string{"text/plain", "application/x-www-form-urlencoded", "application/json; charset=iso-8859-1", "json", "*/*", ""} {
		a := s.Must(415, "PATCH", "/orgs/o", op, `{"name":"y"}`, "Content-Type", ct)
		if !strings.Contains(a.String("fix"), "application/json") || (ct == "") != strings.Contains(a.String("detail"), "is missing") {
			t.Errorf("415 for %q: %s", ct, a.Body)
		}
	}
	for _, ct := range []string{"application/json", "application/merge-patch+json", "Application/JSON; charset=UTF-8"} {
		s.Must(200, "PATCH", "/orgs/o", op, `{"name":"y"}`, "Content-Type", ct)
	}
	if a := s.Must(415, "PATCH", "/orgs/o", op, `{"name":"y"}`, "Content-Encoding", "gzip"); !strings.Contains(a.String("detail"), "gzip") {
		t.Errorf("a body in gzip: %s", a.Body)
	}
	s.Must(200, "PATCH", "/orgs/o", op, `{"description":"two\r\nlines"}`, "Content-Encoding", "identity")
	s.Must(415, "POST", "/orgs/import", op, `{}`)
	// A call that takes no body says so; an empty object is none.
	s.Must(400, "DELETE", "/orgs/o", op, `{"cascade":true}`)
	s.Must(200, "PUT", "/orgs/o/tags/blue", op, `{}`)
}

// A value that does not fit is told what would, in the words of the API and
// not of the language that it is written in.
func TestValuesThatDoNotFit(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		plant(s, "o")
		_, keyID := s.NewKey("o", "")
		const aTime, whole, far = "must be a time such as 2026-11-28T12:00:00Z (RFC 3339)", "must be a whole number", "is a number too far from zero"
		for _, tt := range []struct{ method, path, body, pointer, says string }{
			{"POST", "/orgs/o/api_keys", `{"name":"x","expires_at":"tomorrow"}`, "/expires_at", aTime},
			{"POST", "/orgs/o/api_keys", `{"name":"x","expires_at":""}`, "/expires_at", aTime},
			{"POST", "/orgs/o/api_keys", `{"name":"x","expires_at":"2030-02-30T00:00:00Z"}`, "/expires_at", aTime},
			{"POST", "/orgs/o/api_keys", `{"name":"x","expires_at":5}`, "/expires_at", "a JSON number does not fit here"},
			{"POST", "/orgs/o/api_keys", `{"name":"x","rate_limit":{"requests":1.5,"period_seconds":1}}`, "/rate_limit/requests", whole},
			{"PATCH", "/orgs/o/api_keys/" + keyID, `{"expires_at":"tomorrow"}`, "/expires_at", aTime},
			{"PATCH", "/orgs/o/api_keys/" + keyID, `{"rate_limit":{"requests":1.5,"period_seconds":1}}`, "/rate_limit/requests", whole},
			{"POST", "/orgs/o/api_keys/" + keyID + "/rotate", `{"overlap_seconds":1.5}`, "/overlap_seconds", whole},
			{"POST", "/orgs/o/api_keys/" + keyID + "/rotate", `{"overlap_seconds":99999999999999999999}`, "/overlap_seconds", far},
			{"POST", "/orgs/o/audit_log/rotate_key", `{"overlap_seconds":1e3}`, "/overlap_seconds", whole},
			{"PUT", "/orgs/o/access_log/retention", `{"days":30.5}`, "/days", whole},
			{"POST", "/orgs/o/access_log", `{"user":"jo","action":"LOGIN","status":"SUCCESS","timestamp":"noon"}`, "/timestamp", aTime},
			{"POST", "/orgs/o/consumption/events", `{"id":"1","meter":"api_calls","quantity":1,"timestamp":"noon"}`, "/timestamp", aTime},
		} {
			a := s.Must(400, tt.method, tt.path, op, tt.body)
			if pointers(a) != tt.pointer || !strings.Contains(a.String("detail"), tt.says) || strings.Contains(string(a.Body), "parsing time") || strings.Contains(string(a.Body), "syntax") {
				t.Errorf("%s %s with %s: %s", tt.method, tt.path, tt.body, a.Body)
			}
		}
	})
}

// No text that a database cannot hold gets near one: control characters, NUL,
// and what is not UTF-8, wherever a caller may put text.
func TestTextThatCannotBeStored(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		s.Must(201, "POST", "/orgs", op, `{"id":"o","name":"Org"}`)
		key, keyID := s.NewKey("o", `"permissions":["admin"]`)
		for _, c := range []string{`\u0000`, `\u0007`, `\u001b`, `\u007f`, `\u0085`, `\n`, `\u2028`, `\u202e`} {
			for _, call := range [][3]string{
				{"PATCH", "/orgs/o", `{"name":"a` + c + `b"}`},
				{"POST", "/orgs/o/children", `{"name":"a` + c + `b"}`},
				{"PATCH", "/orgs/o", `{"external_id":"a` + c + `b"}`},
			} {
				s.Must(400, call[0], call[1], key, call[2])
			}
			if c != `\u2028` && c != `\u202e` {
				s.Must(400, "PUT", "/orgs/o/customizations", key, `{"customizations":{},"locked":["/a`+c+`b"]}`)
				s.Must(400, "PUT", "/orgs/o/customizations", key, `{"customizations":{"a`+c+`b":1}}`)
			}
			if c != `\u2028` && c != `\u202e` {
				s.Must(400, "POST", "/orgs/o/api_keys", key, `{"name":"a`+c+`b"}`)
			}
			if c != `\n` && c != `\u2028` && c != `\u202e` {
				s.Must(400, "PATCH", "/orgs/o", key, `{"description":"a`+c+`b"}`)
			}
		}
		// In customizations any text is a value, NUL too, and comes back; the
		// names of members are for people and have none.
		s.Must(400, "PATCH", "/orgs/o", key, `{"customizations":{"a\u0000b":"c"}}`)
		s.Must(200, "PATCH", "/orgs/o", key, `{"customizations":{"a":"c\u0000d\u001b"}}`)
		if a := s.Must(200, "GET", "/orgs/o", key, ""); a.String("customizations", "a") != "c\x00d\x1b" {
			t.Errorf("customizations with control characters: %s", a.Body)
		}
		for _, v := range []string{"a%00b", "%00", "%FF", "a%C0%80", "%ED%A0%80"} {
			for _, path := range []string{"/orgs?name=", "/orgs?tag=", "/orgs?external_id=", "/orgs/o/access_log?user=", "/orgs/o/access_log?action=",
				"/orgs/o/access_log?ip=", "/orgs/o/access_log?api_key_id=", "/orgs/o/children_audit?action=", "/orgs/o/children_audit?actor=",
				"/orgs/o/children_audit?org=", "/orgs?cursor=", "/orgs/o/consumption?month=", "/orgs?" + v + "="} {
				if a := plain(t, s, "GET", path+v, key, ""); a.Status != 400 {
					t.Errorf("GET %s%s: %d %s", path, v, a.Status, a.Body)
				}
			}
			for _, call := range [][2]string{{"PUT", "/orgs/o/tags/"}, {"DELETE", "/orgs/o/tags/"}, {"GET", "/orgs/o/api_keys/"}, {"DELETE", "/orgs/o/api_keys/"}, {"POST", "/orgs/o/api_keys/"}} {
				if a := plain(t, s, call[0], call[1]+v, key, ""); a.Status != 400 && a.Status != 404 && a.Status != 405 {
					t.Errorf("%s %s%s: %d %s", call[0], call[1], v, a.Status, a.Body)
				}
			}
			if a := plain(t, s, "POST", "/orgs/import?parent_id="+v, key, "id,name\nx,X\n", "Content-Type", "text/csv"); a.Status != 400 {
				t.Errorf("import below %s: %d %s", v, a.Status, a.Body)
			}
		}
		// Other control characters are just not found.
		for _, v := range []string{"%07", "%0a", "%1b", "%7f"} {
			if a := s.Must(200, "GET", "/orgs?name=a"+v, key, ""); string(a.Body) != "[]" {
				t.Errorf("search for %s: %s", v, a.Body)
			}
		}
		// Everything was recorded, also the paths with NUL in them.
		a := s.Must(200, "GET", "/orgs/o/access_log?action=GET_KEY&limit=1000", key, "")
		if n := len(a.JSON().([]any)); n != 5 {
			t.Errorf("%d events of the five requests for a key", n)
		}
		s.Must(200, "GET", "/orgs/o/api_keys/"+keyID, key, "")
	})
}
