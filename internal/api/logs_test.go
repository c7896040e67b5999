package api_test

import (
	"encoding/csv"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// Every request is an event of exactly one organization: of the one that it
// was about if the key may see it, otherwise of the key's own.
func TestWhoseEventItIs(t *testing.T) {
	onBothWith(t, func(t *testing.T, s *testkit.Server, c *clock) {
		op := s.OperatorKey
		plant(s, "r", "a r", "b a", "their")
		key := s.Must(201, "POST", "/orgs/a/api_keys", op, `{"name":"ci@example.com","permissions":["orgs:read","orgs:write"]}`).String("secret")
		expired := s.Must(201, "POST", "/orgs/a/api_keys", op, `{"name":"late","expires_at":"`+c.now().Add(time.Minute).UTC().Format(time.RFC3339Nano)+`"}`).String("secret")
		a := s.Must(201, "POST", "/orgs/a/api_keys", op, `{"name":"ended"}`)
		revoked := a.String("secret")
		s.Must(200, "DELETE", "/orgs/a/api_keys/"+a.String("id"), op, "")
		c.forward(time.Minute)
		unknown := s.Must(201, "POST", "/orgs/their/api_keys", op, `{"name":"x"}`).String("secret")
		unknown = unknown[:len(unknown)-12] + "000000000000"
		begin := c.now().UTC().Format(time.RFC3339Nano)
		for _, tt := range []struct {
			status                  int
			method, path, key, body string
			owner, event            string
		}{
			{200, "GET", "/orgs/b", key, "", "b", "ci@example.com GET_ORG SUCCESS"},
			{200, "HEAD", "/orgs/b", key, "", "b", "ci@example.com GET_ORG SUCCESS"},
			{200, "GET", "/orgs/b", op, "", "b", "operator GET_ORG SUCCESS"},
			{400, "PATCH", "/orgs/b", key, `{"name":""}`, "b", "ci@example.com UPDATE_ORG FAILURE"},
			{403, "DELETE", "/orgs/b", key, "", "b", "ci@example.com DELETE_ORG DENIED"},
			{404, "GET", "/orgs/r", key, "", "a", "ci@example.com GET_ORG DENIED"},
			{404, "GET", "/orgs/their", key, "", "a", "ci@example.com GET_ORG DENIED"},
			{404, "GET", "/orgs/nobody", key, "", "a", "ci@example.com GET_ORG FAILURE"},
			{404, "POST", "/orgs", key, `{"name":"x","parent_id":"their"}`, "a", "ci@example.com CREATE_ORG DENIED"},
			{404, "POST", "/orgs", key, `{"name":"x","parent_id":"nobody"}`, "a", "ci@example.com CREATE_ORG FAILURE"},
			{201, "POST", "/orgs", key, `{"id":"c","name":"x","parent_id":"b"}`, "b", "ci@example.com CREATE_ORG SUCCESS"},
			{404, "POST", "/orgs/c/move", key, `{"parent_id":"their"}`, "c", "ci@example.com MOVE_ORG DENIED"},
			{200, "GET", "/org", key, "", "a", "ci@example.com WHO_AM_I SUCCESS"},
			{200, "GET", "/orgs?name=x", key, "", "a", "ci@example.com LIST_ORGS SUCCESS"},
			{401, "GET", "/orgs/b", expired, "", "a", "late GET_ORG DENIED"},
			{401, "GET", "/orgs/their", revoked, "", "a", "ended GET_ORG DENIED"},
			// No event anywhere: who is it, and whose business?
			{401, "GET", "/orgs/b", unknown, "", "", ""},
			{401, "GET", "/orgs/b", "", "", "", ""},
			{200, "GET", "/orgs", op, "", "", ""},
			{200, "GET", "/healthz", "", "", "", ""},
		} {
			id := fmt.Sprint("req-", time.Now().UnixNano())
			s.Must(tt.status, tt.method, tt.path, tt.key, tt.body, "X-Request-Id", id, "User-Agent", "spec/1")
			found := ""
			for _, owner := range []string{"r", "their"} {
				for path := "/orgs/" + owner + "/access_log?scope=subtree&limit=1000&from=" + begin; path != ""; {
					a := s.Must(200, "GET", path, op, "")
					for _, e := range a.JSON().([]any) {
						m := e.(map[string]any)
						if m["request_id"] != id {
							continue
						}
						found += fmt.Sprintf("%v: %v %v %v;", m["org_id"], m["user"], m["action"], m["status"])
						at, err := time.Parse(time.RFC3339Nano, m["timestamp"].(string))
						if err != nil || c.now().Sub(at) > time.Minute || m["method"] != tt.method || m["path"] != strings.Split(tt.path, "?")[0] ||
							m["ip"] != "127.0.0.1" || m["user_agent"] != "spec/1" || (m["api_key_id"] == nil) != (tt.key == op) {
							t.Errorf("%s %s left %v", tt.method, tt.path, m)
						}
					}
					path = testkit.NextPage(a)
				}
			}
			want := tt.owner + ": " + tt.event + ";"
			if tt.owner == "" {
				want = ""
			}
			if found != want {
				t.Errorf("%s %s (%d) left %q, want %q", tt.method, tt.path, tt.status, found, want)
			}
		}
		// The operator's calls count for nobody, refused keys' neither.
		if a := s.Must(200, "GET", "/orgs/r/consumption", op, ""); a.JSON("meters", "api_calls", "total") != 13.0 || a.JSON("meters", "api_calls", "own") != 0.0 || a.JSON("meters", "api_calls", "descendants") != 13.0 {
			t.Errorf("consumption: %s", a.Body)
		}
		if a := s.Must(200, "GET", "/metrics", "", ""); !strings.Contains(string(a.Body), "orgd_unknown_keys_total 2") {
			t.Error("the metrics do not count the two requests without a known key")
		}
	})
}

// Filters combine; from is inclusive, to exclusive.
func TestAccessLogFilters(t *testing.T) {
	c := &clock{}
	s := testkit.Start(t, "sqlite", c.use, behindProxy)
	plant(s, "r", "a r", "b a")
	key, keyID := s.NewKey("a", "")
	only, _ := s.NewKey("a", `"permissions":["access_log:read"],"reach":"self"`)
	for i := range 6 {
		s.Do("GET", []string{"/orgs/a", "/orgs/b"}[i%2], key, "", "X-Forwarded-For", fmt.Sprintf("2001:db8::%d", i%3))
		c.forward(time.Hour)
	}
	all := s.Must(200, "GET", "/orgs/a/access_log?scope=subtree&action=GET_ORG", s.OperatorKey, "").JSON().([]any)
	if len(all) != 6 {
		t.Fatalf("%d events", len(all))
	}
	at := func(i int) string { return all[i].(map[string]any)["timestamp"].(string) }
	for query, want := range map[string]int{
		"action=GET_ORG": 3, "action=GET_ORG&scope=subtree": 6, "user=test&scope=subtree": 6, "user=nobody": 0, "status=SUCCESS&action=GET_ORG": 3, "status=DENIED": 0,
		"ip=2001:db8::0&scope=subtree": 2, "ip=2001:DB8:0::0&scope=subtree": 2, "api_key_id=" + keyID + "&scope=subtree": 6,
		"action=GET_ORG&scope=subtree&from=" + at(2): 3, "action=GET_ORG&scope=subtree&to=" + at(2): 3, "action=GET_ORG&scope=subtree&from=" + at(4) + "&to=" + at(1): 3,
		"action=GET_ORG&scope=subtree&from=2100-01-01T00:00:00Z": 0,
	} {
		if got := s.Must(200, "GET", "/orgs/a/access_log?"+query, s.OperatorKey, "").JSON().([]any); len(got) != want {
			t.Errorf("%s: %d events, want %d", query, len(got), want)
		}
	}
	// A key that sees a alone gets the events of a alone.
	for _, e := range s.Must(200, "GET", "/orgs/a/access_log?scope=subtree&limit=1000", only, "").JSON().([]any) {
		if e.(map[string]any)["org_id"] != "a" {
			t.Errorf("a key of reach self got %v", e)
		}
	}
	for _, bad := range []string{"status=OK", "scope=all", "from=yesterday", "to=2026-13-01T00:00:00Z", "ip=1.2.3", "format=xml", "from=2026-11-25"} {
		s.Must(400, "GET", "/orgs/a/access_log?"+bad, s.OperatorKey, "")
	}
}

// X-Forwarded-For is believed from trusted proxies only, and only as far as
// they vouch for it.
func TestForwardedFor(t *testing.T) {
	ipOf := func(s *testkit.Server, headers ...string) string {
		s.Must(200, "GET", "/orgs/r", s.OperatorKey, "", append(headers, "X-Request-Id", "looking")...)
		a := s.Must(200, "GET", "/orgs/r/access_log?action=GET_ORG&limit=1", s.OperatorKey, "")
		ip, _ := a.JSON().([]any)[0].(map[string]any)["ip"].(string)
		return ip
	}
	s := testkit.Start(t, "sqlite")
	plant(s, "r")
	if ip := ipOf(s, "X-Forwarded-For", "192.0.2.1"); ip != "127.0.0.1" {
		t.Errorf("nobody is trusted, and the address is %s", ip)
	}
	s = testkit.Start(t, "sqlite", behindProxy)
	plant(s, "r")
	for header, want := range map[string]string{
		"192.0.2.1":                       "192.0.2.1",
		"203.0.113.9, 192.0.2.1":          "192.0.2.1", // the left one can be forged
		"192.0.2.1, 127.0.0.5, 127.0.0.6": "192.0.2.1",
		"127.0.0.5":                       "", // a trusted proxy, which is nobody's client
		"2001:db8::1":                     "2001:db8::1",
		"::ffff:192.0.2.7":                "192.0.2.7",
		"127.0.0.1":                       "127.0.0.1", // the proxy for itself
		"nonsense":                        "",          // an address that cannot be read is nobody's
		"192.0.2.1, nonsense":             "",
		"":                                "",
	} {
		if ip := ipOf(s, "X-Forwarded-For", header); ip != want {
			t.Errorf("X-Forwarded-For: %s gave %s, want %s", header, ip, want)
		}
	}
}

// Logs and consumption come as CSV and NDJSON too, and no text in them is a
// formula to a spreadsheet.
func TestFormats(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		plant(s, "r")
		names := []string{"=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "plain", `with "quotes", and commas`, "-5"}
		for _, name := range names {
			key := s.Must(201, "POST", "/orgs/r/api_keys", op, fmt.Sprintf(`{"name":%q}`, name)).String("secret")
			s.Must(200, "GET", "/orgs/r", key, "", "User-Agent", "=HYPERLINK(1)")
		}
		a := s.Must(200, "GET", "/orgs/r/access_log?action=GET_ORG", op, "", "Accept", "text/csv")
		if !strings.HasPrefix(a.Header.Get("Content-Type"), "text/csv") {
			t.Errorf("Content-Type %s", a.Header.Get("Content-Type"))
		}
		records, err := csv.NewReader(strings.NewReader(string(a.Body))).ReadAll()
		if err != nil || len(records) != len(names)+1 {
			t.Fatalf("CSV of %d records: %v\n%s", len(records), err, a.Body)
		}
		user, agent := -1, -1
		for i, column := range records[0] {
			switch column {
			case "user":
				user = i
			case "user_agent":
				agent = i
			}
		}
		for i, name := range names {
			want := name
			if strings.ContainsAny(name[:1], "=+-@") && name != "-5" {
				want = "'" + name
			}
			row := records[len(names)-i] // newest first
			if row[user] != want || row[agent] != "'=HYPERLINK(1)" {
				t.Errorf("row %v, want the user %s", row, want)
			}
		}
		for _, record := range records {
			for _, cell := range record {
				if cell != "" && strings.ContainsAny(cell[:1], "=+@\t\r") {
					t.Errorf("a cell is a formula: %s", cell)
				}
			}
		}
		for _, accept := range []string{"application/x-ndjson", "text/html, application/x-ndjson;q=0.9"} {
			a := s.Must(200, "GET", "/orgs/r/access_log?action=GET_ORG", op, "", "Accept", accept)
			if got := strings.Count(string(a.Body), "\n"); got != len(names) || a.Header.Get("Content-Type") != "application/x-ndjson" || !strings.Contains(string(a.Body), `"user":"=cmd|`) {
				t.Errorf("NDJSON of %d lines: %s", got, a.Body)
			}
		}
		for _, path := range []string{"/orgs/r/children_audit", "/orgs/r/consumption"} {
			for _, format := range []string{"csv", "ndjson"} {
				if a := s.Must(200, "GET", path+"?format="+format, op, ""); len(a.Body) == 0 {
					t.Errorf("%s as %s is empty", path, format)
				}
			}
		}
	})
}

// The header Accept is weighed as RFC 9110 says, and format= wins over it.
func TestAccept(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		plant(s, "r")
		types := map[string]string{"json": "application/json", "csv": "text/csv; charset=utf-8; header=present", "ndjson": "application/x-ndjson"}
		for accept, want := range map[string]string{
			"":                         "json",
			"*/*":                      "json",
			"application/*":            "json",
			"text/*":                   "csv",
			"text/csv":                 "csv",
			"TEXT/CSV":                 "csv",
			"application/x-ndjson":     "ndjson",
			"image/png":                "json",
			"nonsense, text/csv":       "csv",
			"text/csv; charset=utf-8":  "csv",
			"text/csv;header=absent":   "csv",
			"text/html, */*;q=0.8":     "json",
			"text/html, text/*;q=0.8":  "csv",
			"text/csv, text/html, */*": "csv",
			// The greatest weight wins.
			"application/json;q=0.5, text/csv":                                 "csv",
			"text/csv;q=0.5, application/json;q=0.6":                           "json",
			"text/csv;q=0.5, application/json;q=0.6, application/x-ndjson;q=1": "ndjson",
			"*/*;q=0.1, text/csv":                                              "csv",
			"*/*;q=0.9, text/csv;q=0.899":                                      "json",
			"text/*;q=0.5, application/json;q=0.4":                             "csv",
			"application/*;q=0.2, text/*;q=0.1":                                "json",
			"text/csv;Q=0.1, application/x-ndjson;q=1":                         "ndjson",
			// Of equal ones the first, a range with * for JSON, text/* last.
			"text/csv, application/json":                 "csv",
			"application/json, text/csv":                 "json",
			"application/x-ndjson;q=0.5, text/csv;q=0.5": "ndjson",
			"text/csv, */*":                              "csv",
			"*/*, text/csv":                              "json",
			"text/*, application/json":                   "json",
			"text/*, */*":                                "json",
			"text/*;q=0.3, application/*;q=0.3":          "json",
			// The closest range counts, and 0 excludes.
			"application/json;q=0.1, */*;q=0.5":               "csv",
			"application/json;q=0.1, application/*":           "ndjson",
			"*/*, application/json;q=0":                       "csv",
			"*/*, application/json;q=0.0, text/csv;q=0.000":   "ndjson",
			"text/csv;q=0, */*":                               "json",
			"text/csv;q=0":                                    "json",
			"*/*;q=0":                                         "json",
			"application/json;q=0, text/csv;q=0, image/*;q=1": "json",
			// A weight that is none counts as 1.
			"application/json;q=0.9, text/csv;q=high": "csv",
			"application/json;q=0.9, text/csv;q=2":    "csv",
			"application/json;q=0.9, text/csv;q=-1":   "csv",
			"application/json;q=0.9, text/csv;q=NaN":  "csv",
			"application/json;q=0.9, text/csv;q":      "csv",
			"application/json;q=0.9, text/csv;q=":     "csv",
		} {
			if a := s.Must(200, "GET", "/orgs/r/consumption", s.OperatorKey, "", "Accept", accept); a.Header.Get("Content-Type") != types[want] {
				t.Errorf("Accept: %s gave %s, want %s", accept, a.Header.Get("Content-Type"), types[want])
			}
			for format, contentType := range types {
				if a := s.Must(200, "GET", "/orgs/r/consumption?format="+format, s.OperatorKey, "", "Accept", accept); a.Header.Get("Content-Type") != contentType {
					t.Errorf("Accept: %s with format=%s gave %s", accept, format, a.Header.Get("Content-Type"))
				}
			}
		}
	})
}

// The trail of a subtree: where entries belong, who did it, what changed.
func TestTrail(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		plant(s, "r", "a r", "b a", "c r")
		key, keyID := s.NewKey("a", `"permissions":["admin"]`)
		s.Must(200, "PATCH", "/orgs/b", key, `{"name":"New","description":"D","tags":["t"],"customizations":{"x":{"y":1}}}`, "X-Request-Id", "req-of-b", "User-Agent", "spec/1")
		s.Must(200, "PATCH", "/orgs/b", key, `{"name":"New"}`) // nothing changes
		s.Must(400, "PATCH", "/orgs/b", key, `{"name":""}`)
		a := s.Must(200, "GET", "/orgs/b/children_audit?action=organization.updated", key, "")
		entries := a.JSON().([]any)
		if len(entries) != 1 {
			t.Fatalf("%d entries of one change: %s", len(entries), a.Body)
		}
		e := entries[0].(map[string]any)
		actor, _ := e["actor"].(map[string]any)
		if e["org_id"] != "b" || e["request_id"] != "req-of-b" || e["ip"] != "127.0.0.1" || e["user_agent"] != "spec/1" || actor["id"] != keyID || actor["name"] != "test" ||
			strings.Join(texts(e["path"]), "/") != "r/a/b" {
			t.Errorf("entry %v", e)
		}
		changes := map[string][2]any{}
		for _, c := range e["changes"].([]any) {
			m := c.(map[string]any)
			changes[m["pointer"].(string)] = [2]any{m["old"], m["new"]}
		}
		if changes["/name"] != [2]any{"B", "New"} || changes["/description"] != [2]any{nil, "D"} || fmt.Sprint(changes["/customizations/x"][1]) != "map[y:1]" || len(changes) != 4 {
			t.Errorf("changes %v", changes)
		}
		// Entries stay where their organization was.
		s.Must(200, "POST", "/orgs/b/move", op, `{"parent_id":"c"}`)
		s.Must(200, "PATCH", "/orgs/b", op, `{"name":"Elsewhere"}`)
		count := func(path string) int {
			t.Helper()
			return len(s.Must(200, "GET", path, op, "").JSON().([]any))
		}
		for query, want := range map[string]int{
			"/orgs/a/children_audit":                                       1 + 1 + 1 + 1, // a and b created, the key, the change of b
			"/orgs/c/children_audit":                                       1 + 2,         // c created, b moved to it and changed
			"/orgs/a/children_audit?scope=self":                            2,
			"/orgs/a/children_audit?scope=descendants":                     2,
			"/orgs/r/children_audit?scope=children":                        1 + 1 + 1, // of a and c
			"/orgs/r/children_audit?org=b":                                 4,
			"/orgs/r/children_audit?actor=" + keyID:                        1,
			"/orgs/r/children_audit?actor=operator&action=api_key.created": 1,
			"/orgs/r/children_audit?to=2020-01-01T00:00:00Z":               0,
		} {
			if got := count(query); got != want {
				t.Errorf("%s: %d entries, want %d", query, got, want)
			}
		}
		for _, bad := range []string{"scope=all", "org=a/b", "from=x"} {
			s.Must(400, "GET", "/orgs/r/children_audit?"+bad, op, "")
		}
	})
}

// A move is one entry, at the new place. What happened before it is shown
// where it happened, and to the organization that it happened to.
func TestTrailOfAMove(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		plant(s, "r", "a r", "b a", "below b", "c r")
		s.Must(200, "PATCH", "/orgs/below", op, `{"name":"Before"}`)
		s.Must(200, "POST", "/orgs/b/move", op, `{"parent_id":"c"}`)
		for _, tt := range []struct{ action, shown, hidden string }{
			{"organization.moved", "r b c", "a below"},
			{"organization.updated", "r a below", "b c"},
		} {
			entry := s.Must(200, "GET", "/orgs/r/children_audit?action="+tt.action, op, "").JSON().([]any)[0].(map[string]any)
			if path := strings.Join(texts(entry["path"]), "/"); tt.action == "organization.moved" && path != "r/c/b" {
				t.Errorf("the entry of the move is at %s", path)
			}
			for _, id := range strings.Fields(tt.shown + " " + tt.hidden) {
				want := 404
				if strings.Contains(" "+tt.shown+" ", " "+id+" ") {
					want = 200
				}
				s.Must(want, "GET", "/orgs/"+id+"/children_audit/"+entry["id"].(string), op, "")
				list := s.Must(200, "GET", "/orgs/"+id+"/children_audit?action="+tt.action, op, "").JSON().([]any)
				if (len(list) == 1) != (want == 200) {
					t.Errorf("%s shows %d entries of %s", id, len(list), tt.action)
				}
			}
		}
	})
}

// With a base path every call is served there and at the root.
func TestBasePath(t *testing.T) {
	s := testkit.Start(t, "sqlite", func(c *server.Config) { c.BasePath = "/api/v1" })
	op := s.OperatorKey
	a := plain(t, s, "POST", "/api/v1/orgs", op, `{"id":"r","name":"Root"}`)
	if a.Status != 201 || a.Header.Get("Location") != "/api/v1/orgs/r" {
		t.Errorf("created: %d %v", a.Status, a.Header)
	}
	if a := plain(t, s, "POST", "/orgs", op, `{"id":"q","name":"Root"}`); a.Header.Get("Location") != "/orgs/q" {
		t.Errorf("created at the root: %v", a.Header)
	}
	if a := plain(t, s, "GET", "/openapi.json", "", ""); a.JSON("servers").([]any)[0].(map[string]any)["url"] != "/api/v1" {
		t.Errorf("the first server is %v", a.JSON("servers"))
	}
	plant(s, "a r", "b r", "c r")
	at, under := s.Must(200, "GET", "/orgs/r", op, ""), plain(t, s, "GET", "/api/v1/orgs/r", op, "")
	if string(at.Body) != string(under.Body) || at.Header.Get("ETag") != under.Header.Get("ETag") {
		t.Errorf("%s, under the base path %s", at.Body, under.Body)
	}
	a = plain(t, s, "GET", "/api/v1/orgs/r/children?limit=1", op, "")
	next := testkit.NextPage(a)
	if !strings.HasPrefix(next, "/api/v1/orgs/r/children?") {
		t.Errorf("Link to %s", next)
	}
	if a := plain(t, s, "GET", next, op, ""); a.Status != 200 || !strings.Contains(string(a.Body), `"id":"b"`) {
		t.Errorf("the next page: %d %s", a.Status, a.Body)
	}
	if a := plain(t, s, "GET", strings.TrimPrefix(next, "/api/v1"), op, ""); a.Status != 200 {
		t.Errorf("the next page at the root: %d %s", a.Status, a.Body)
	}
	for _, path := range []string{"/openapi.json", "/openapi.yaml", "/docs", "/healthz", "/readyz", "/service_status", "/metrics"} {
		if a := plain(t, s, "GET", "/api/v1"+path, "", ""); a.Status != 200 {
			t.Errorf("GET /api/v1%s: %d", path, a.Status)
		}
	}
	for _, path := range []string{"/api/v1", "/api/v1/", "/api/v2/orgs/r", "/api/v1/api/v1/orgs/r", "/api/v1orgs/r"} {
		if a := plain(t, s, "GET", path, op, ""); a.Status != 404 {
			t.Errorf("GET %s: %d", path, a.Status)
		}
	}
	if a := plain(t, s, "DELETE", "/api/v1/orgs", op, ""); a.Status != 405 || a.Header.Get("Allow") != "GET, HEAD, POST" {
		t.Errorf("DELETE: %d %v", a.Status, a.Header)
	}
}
