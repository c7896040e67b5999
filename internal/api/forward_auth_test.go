package api_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

func trusting(c *server.Config) {
	c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
}

// lastEvent returns the newest access event of an organization as
// "METHOD path ACTION STATUS ip", and how many events and api_calls it has.
func lastEvent(s *testkit.Server, orgID string) (event string, events int, calls any) {
	list, _ := s.Must(200, "GET", "/orgs/"+orgID+"/access_log?limit=1000", s.OperatorKey, "").JSON().([]any)
	n := 0
	for _, e := range list {
		m := e.(map[string]any)
		if m["user"] == "operator" {
			continue
		}
		if n++; n == 1 {
			event = fmt.Sprint(m["method"], " ", m["path"], " ", m["action"], " ", m["status"], " ", m["ip"])
		}
	}
	return event, n, s.Must(200, "GET", "/orgs/"+orgID+"/consumption", s.OperatorKey, "").JSON("meters", "api_calls", "own")
}

// Which request is decided about, by who says so.
func TestForwardAuthOriginalRequest(t *testing.T) {
	trusted, distrusting := startTree(t, "sqlite", trusting), startTree(t, "sqlite")
	for _, tt := range []struct {
		name         string
		distrust     bool
		method, path string
		headers      []string
		status       int
		event        string
	}{
		{name: "no proxy", method: "GET", path: "/forward_auth", event: "GET /forward_auth FORWARD_AUTH SUCCESS 127.0.0.1"},
		{name: "nginx", method: "GET", path: "/forward_auth?action=BUY", headers: []string{"X-Original-Method", "POST", "X-Original-URI", "/orders/1%2F2?secret=x#y", "X-Forwarded-For", "203.0.113.7"},
			event: "POST /orders/1%2F2 BUY SUCCESS 203.0.113.7"},
		{name: "Caddy and Traefik", method: "GET", path: "/forward_auth", headers: []string{"X-Forwarded-Method", "PURGE", "X-Forwarded-Uri", "//orders/1;a=b/..c", "X-Forwarded-For", "198.51.100.1, 2001:db8::7"},
			event: "PURGE //orders/1;a=b/..c FORWARD_AUTH SUCCESS 2001:db8::7"},
		{name: "only the URI", method: "PUT", path: "/forward_auth", headers: []string{"X-Original-URI", "/orders"}, event: "PUT /orders FORWARD_AUTH SUCCESS 127.0.0.1"},
		{name: "two families", method: "GET", path: "/forward_auth", headers: []string{"X-Original-URI", "/a", "X-Forwarded-Uri", "/b"}, status: 400},
		{name: "half of each family", method: "GET", path: "/forward_auth", headers: []string{"X-Original-Method", "GET", "X-Forwarded-Uri", "/b"}, status: 400},
		{name: "a method that is none", method: "GET", path: "/forward_auth", headers: []string{"X-Original-Method", "GET /"}, status: 400},
		{name: "Envoy", method: "DELETE", path: "/forward_auth;action=BUY;meter=api_calls/orders/1?meter=storage_used&org=other", headers: []string{"X-Original-URI", "/forged", "X-Forwarded-For", "203.0.113.7"},
			event: "DELETE /orders/1 BUY SUCCESS 203.0.113.7"},
		{name: "Envoy without demands", method: "GET", path: "/forward_auth/orders/1%2F2;a=b?page=../2", event: "GET /orders/1%2F2;a=b FORWARD_AUTH SUCCESS 127.0.0.1"},
		{name: "Envoy with an empty list of demands", method: "GET", path: "/forward_auth;/orders?org=other", event: "GET /orders FORWARD_AUTH SUCCESS 127.0.0.1"},
		{name: "demands where the client could write them", method: "GET", path: "/forward_auth/?permission=app:x", status: 400},
		{name: "path parameters without a path", method: "GET", path: "/forward_auth;meter=api_calls", status: 400},
		{name: "a semicolon that is escaped", method: "GET", path: "/forward_auth%3Bmeter=api_calls/orders", status: 404},
		{name: "a longer word", method: "GET", path: "/forward_authority", status: 404},
		{name: "a proxy that is not trusted", distrust: true, method: "POST", path: "/forward_auth", headers: []string{"X-Original-Method", "GET", "X-Original-URI", "/forged", "X-Forwarded-For", "203.0.113.7"},
			event: "POST /forward_auth FORWARD_AUTH SUCCESS 127.0.0.1"},
		{name: "forged twice at a proxy that is not trusted", distrust: true, method: "GET", path: "/forward_auth", headers: []string{"X-Original-URI", "/a", "X-Forwarded-Uri", "/b"},
			event: "GET /forward_auth FORWARD_AUTH SUCCESS 127.0.0.1"},
		{name: "a base path", method: "GET", path: "/forward_auth", headers: []string{"X-Original-URI", "/a", "Idempotency-Key", "the client's"}, event: "GET /a FORWARD_AUTH SUCCESS 127.0.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := trusted
			if tt.distrust {
				s = distrusting
			}
			key, _ := s.NewKey("leaf", `"permissions":["app:x"]`)
			_, before, _ := lastEvent(s, "leaf")
			// The validator knows no path parameters.
			req, err := http.NewRequest(tt.method, s.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			path, query, _ := strings.Cut(tt.path, "?")
			req.URL.Opaque, req.URL.RawQuery = "//"+req.URL.Host+path, query
			req.Header.Set("Authorization", "Bearer "+key)
			for i := 0; i+1 < len(tt.headers); i += 2 {
				req.Header.Set(tt.headers[i], tt.headers[i+1])
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if want := max(tt.status, 200); tt.status == 0 && resp.StatusCode != 200 || tt.status != 0 && resp.StatusCode != tt.status {
				t.Fatalf("status %d, want %d", resp.StatusCode, want)
			}
			event, after, _ := lastEvent(s, "leaf")
			if tt.event == "" {
				if after != before {
					t.Errorf("left the event %s", event)
				}
				return
			}
			if after != before+1 || event != tt.event {
				t.Errorf("%d events, the last is\n%s\nwant\n%s", after-before, event, tt.event)
			}
		})
	}
}

// A path that is another one once it is cleaned or decoded is refused, and
// nothing is decided, counted or recorded: what stands between the client and
// orgd may have read it the other way, and so may what stands behind.
func TestForwardAuthMisleadingPaths(t *testing.T) {
	s := startTree(t, "sqlite", trusting, func(c *server.Config) { c.BasePath = "/api/v1" })
	key, _ := s.NewKey("leaf", `"permissions":["app:x","read"]`)
	do := func(path string, headers ...string) *testkit.Answer {
		t.Helper()
		c, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: orgd\r\nConnection: close\r\nAuthorization: Bearer %s\r\n%s\r\n", path, key, strings.Join(headers, ""))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return &testkit.Answer{Status: resp.StatusCode, Header: resp.Header, Body: b}
	}
	before, events, calls := lastEvent(s, "leaf")
	refused := func(what string, a *testkit.Answer) {
		t.Helper()
		if a.Status != 400 || a.String("code") != "invalid_request" || !strings.Contains(a.String("detail"), "can be taken for another one") || a.Header.Get("X-Orgd-Code") != "invalid_request" {
			t.Errorf("%s: %d %s", what, a.Status, a.Body)
		}
	}
	const demands = ";meter=api_calls;quantity=999995;action=ADMIN_LOGIN"
	for _, path := range []string{
		"/forward_auth" + demands + "/../org", "/forward_auth" + demands + "/%2e%2e/org", "/forward_auth" + demands + "/.%2E/org",
		"/forward_auth" + demands + "/..%2forg", "/forward_auth" + demands + "%2f..%2f..%2forg/x", "/forward_auth" + demands + "/..;/org", "/forward_auth" + demands + "/..;a=b/org",
		"/forward_auth" + demands + "/..%3b/org", "/forward_auth" + demands + "/%2e%2e%3Ba=b/org", "/forward_auth" + demands + "/x/../../org",
		"/forward_auth" + demands + "/%252e%252e/org", "/forward_auth" + demands + "/..%252forg", "/forward_auth" + demands + "/%252e%252e%253b/org",
		"/forward_auth" + demands + "/..\\org", "/forward_auth" + demands + "\\..\\org/x", "/forward_auth" + demands + "/..%5corg", "/forward_auth" + demands + "/..%255corg",
		"/forward_auth" + demands + "/orders/..", "/forward_auth" + demands + "/..", "/forward_auth" + demands + "/.", "/forward_auth" + demands + "/./org", "/forward_auth" + demands + "/%2e/org",
		"/forward_auth" + demands + "//org", "/forward_auth" + demands + "//../../org", "/forward_auth" + demands + "/%2f/org", "/forward_auth" + demands + "/x//", "/forward_auth" + demands + "/%252f%252f",
		"/forward_auth" + demands + "/..%00/org", "/forward_auth" + demands + "/..%09/org", "/forward_auth" + demands + "/org%0a", "/forward_auth" + demands + "/%7f",
		"/forward_auth" + demands + "/%c0%ae%c0%ae/org", "/forward_auth" + demands + "/..%c0%afx", "/forward_auth" + demands + "/%e0%80%ae./org", "/forward_auth" + demands + "/%25c0%25ae/org",
		"/forward_auth/../org", "/forward_auth/..;/org", "/forward_auth//org", "/forward_auth/%2e%2e/orgs/leaf", "/forward_auth;/../org", "/forward_auth;a=../../org",
		"/api/v1/forward_auth" + demands + "/../../../org", "/api/v1/forward_auth" + demands + "/..%2f..%2forg", "/api/v1/forward_auth/..;/..;/..;/org",
		"http://orgd/forward_auth" + demands + "/../org",
	} {
		refused(path, do(path))
		refused(path, do(path+"?page=2"))
	}
	for _, path := range []string{
		"/customers/other/invoices/../../mine/invoices", "/customers/other/invoices/%2e%2e/%2E./mine/invoices", "/customers/other/..%2fmine/invoices", "/mine/..", "..", "./mine",
		"/customers/other/..;/mine", "/customers/other/..;a=b/mine", "/customers/other/.;/mine", "/customers/other/..%3bx/mine", "/customers/other/%252e%252e/mine", "/customers/other/..%5cmine",
		"/customers/other\\..\\mine", "/customers/mine%5Cinvoices", "/customers/mine%00/invoices", "/customers/mine%0d%0a", "/customers/mine%c0%af..%c0%afother", "/customers/mine#/../other", "http://api/customers/other/../mine",
	} {
		for _, name := range []string{"X-Original-URI", "X-Forwarded-Uri"} {
			refused(name+": "+path, do("/forward_auth", name+": "+path+"\r\n"))
			refused(name+": "+path+"?page=2", do("/forward_auth", name+": "+path+"?page=2\r\n"))
		}
	}
	if after, n, c := lastEvent(s, "leaf"); n != events || c != calls {
		t.Errorf("refused paths left %d events, the last is %s after %s, and %v calls after %v", n-events, after, before, c, calls)
	}

	// What only looks like it is decided about as it is.
	for _, path := range []string{"/orders/...", "/orders/..a", "/orders/a..", "/.well-known/x", "/orders/1.2;v=..", "/orders/50%25", "/orders/%25zz%", "/orders/a%2Fb", "/orders/%E9t%C3%A9", "/orders/%3Fa%23b", "/orders//1", "/", "*"} {
		if a := do("/forward_auth", "X-Original-URI: "+path+"?to=/../x\r\n"); a.Status != 200 {
			t.Errorf("%s: %d %s", path, a.Status, a.Body)
		}
		if event, _, _ := lastEvent(s, "leaf"); event != "GET "+path+" FORWARD_AUTH SUCCESS 127.0.0.1" {
			t.Errorf("%s is the event %s", path, event)
		}
	}
	if a := do("/forward_auth;permission=app:x/orders/a..;b=c/%2Fd?to=/../x"); a.Status != 400 {
		t.Errorf("an empty segment that is encoded: %d", a.Status)
	}
	if a := do("/forward_auth;permission=app:x/orders/a..;b=c/d%2F?to=/../x"); a.Status != 200 {
		t.Errorf("a path with parameters: %d %s", a.Status, a.Body)
	}
}

// A header that a proxy did not join arrives twice.
func TestForwardAuthRepeatedHeader(t *testing.T) {
	s := startTree(t, "sqlite", trusting)
	key, _ := s.NewKey("leaf", `"permissions":["app:x"]`)
	req, _ := http.NewRequest("GET", s.URL+"/forward_auth", nil)
	req.Header = http.Header{"Authorization": {"Bearer " + key}, "X-Original-Uri": {"/true", "/forged"}}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

// What a proxy's configuration may demand; a mistake in it demands no less.
func TestForwardAuthDemands(t *testing.T) {
	s := startTree(t, "sqlite", func(c *server.Config) { c.BasePath = "/api/v1" })
	key, id := s.NewKey("a", `"permissions":["app:x","app:z","orgs:read"]`)
	for _, tt := range []struct {
		query  string
		status int
	}{
		{"", 200}, {"permission=app:x", 200}, {"permission=app:x,orgs:read", 200}, {"permission=app:x&permission=app:y", 403}, {"permission=app:x,app:y", 403},
		{"permission=read", 403}, {"permission=orgs:read&org=leaf", 200}, {"org=a", 200}, {"org=root", 403}, {"org=b", 403}, {"org=other", 403}, {"org=nobody", 403}, {"org=..%2Fa", 403},
		{"meter=api_calls&quantity=2.5", 200}, {"meter=api_calls&quantity=0", 200},

		{"permission=", 400}, {"permission=app:x&permission=", 400}, {"permission=app:x,", 400}, {"permission=nonsense", 400}, {"permission=app:", 400}, {"org=", 400}, {"org=a&org=b", 400},
		{"meter=", 400}, {"meter=api_calls&meter=api_calls", 400}, {"meter=unknown", 400}, {"meter=storage_used", 400}, {"meter=API_CALLS", 400},
		{"meter=api_calls&quantity=", 400}, {"meter=api_calls&quantity=-1", 400}, {"meter=api_calls&quantity=1e-7", 400}, {"meter=api_calls&quantity=x", 400}, {"quantity=1", 400},
		{"action=", 400}, {"action=a%20b", 400}, {"action=" + strings.Repeat("A", 65), 400}, {"unknown=1", 400}, {"permission=%zz", 400}, {"a;b", 400},
	} {
		a := s.Do("GET", "/forward_auth?"+tt.query, key, "")
		if a.Status != tt.status {
			t.Errorf("%s: status %d, want %d: %s", tt.query, a.Status, tt.status, a.Body)
		}
		if (a.Header.Get("X-Orgd-Org-Id") != "") != (tt.status == 200) || (a.Header.Get("X-Orgd-Code") != "") != (tt.status != 200) {
			t.Errorf("%s: headers %v", tt.query, a.Header)
		}
	}
	a := s.Must(200, "GET", "/forward_auth?org=leaf", key, "")
	for name, want := range map[string]string{"X-Orgd-Org-Id": "leaf", "X-Orgd-Root-Id": "root", "X-Orgd-Path": "root/a/leaf", "X-Orgd-Key-Id": id, "X-Orgd-Permissions": "app:x,app:z,orgs:read"} {
		if got := a.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if len(a.Body) != 0 {
		t.Errorf("the body is %s", a.Body)
	}
	if event, _, calls := lastEvent(s, "leaf"); event != "GET /forward_auth FORWARD_AUTH SUCCESS 127.0.0.1" || calls != 0.0 {
		t.Errorf("leaf has the event %s and %v calls", event, calls)
	}
	if _, _, calls := lastEvent(s, "a"); calls != 2.5 {
		t.Errorf("a has %v calls", calls)
	}
	resp, err := http.Get(s.URL + "/api/v1/forward_auth")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 401 || resp.Header.Get("Www-Authenticate") != "Bearer" {
		t.Errorf("below the base path, without a key: status %d, WWW-Authenticate %q", resp.StatusCode, resp.Header.Get("Www-Authenticate"))
	}
	if before, after := s.Do("GET", "/forward_auth?org=other", key, "", "X-Request-Id", "same"), s.Do("GET", "/forward_auth?org=nobody", key, "", "X-Request-Id", "same"); string(before.Body) != string(after.Body) {
		t.Errorf("a foreign organization can be told from an absent one:\n%s\n%s", before.Body, after.Body)
	}
	op := s.Must(403, "GET", "/forward_auth", s.OperatorKey, "")
	if !strings.Contains(op.String("detail"), "belongs to no organization") {
		t.Errorf("the operator's own request: %s", op.Body)
	}
	if got := s.Must(200, "GET", "/forward_auth?org=leaf&meter=api_calls&permission=app:x", s.OperatorKey, "").Header.Get("X-Orgd-Key-Id"); got != "operator" {
		t.Errorf("the operator is %q", got)
	}
}

// Whoever holds a key may ask about it from anywhere, but not make up what is
// counted and recorded.
func TestForwardAuthFromElsewhere(t *testing.T) {
	s := startTree(t, "sqlite", trusting)
	plain, _ := s.NewKey("leaf", `"permissions":["app:x"]`)
	writer, _ := s.NewKey("leaf", `"permissions":["consumption:write","access_log:write"]`)
	for _, tt := range []struct {
		query, key, peer string
		status           int
	}{
		{"permission=app:x&meter=api_calls&quantity=1", plain, "198.51.100.9:4711", 200},
		{"meter=api_calls&quantity=1.000001", plain, "198.51.100.9:4711", 403},
		{"action=DELETE_ALL", plain, "198.51.100.9:4711", 403},
		{"action=DELETE_ALL&meter=api_calls&quantity=2", writer, "198.51.100.9:4711", 200},
		{"action=BUY&meter=api_calls&quantity=2", plain, "[::1]:4711", 200},
		{"action=BUY&meter=api_calls&quantity=2", plain, "127.0.0.2:4711", 200},
	} {
		r := httptest.NewRequest("GET", "/forward_auth?"+tt.query, nil)
		r.RemoteAddr = tt.peer
		r.Header.Set("Authorization", "Bearer "+tt.key)
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		if w.Code != tt.status {
			t.Errorf("%s from %s: status %d, want %d: %s", tt.query, tt.peer, w.Code, tt.status, w.Body)
		}
	}
	if event, n, calls := lastEvent(s, "leaf"); n != 6 || calls != 7.0 {
		t.Errorf("leaf has %d events and %v calls, the last event is %s", n, calls, event)
	}
	list, _ := s.Must(200, "GET", "/orgs/leaf/access_log?status=DENIED", s.OperatorKey, "").JSON().([]any)
	for _, e := range list {
		if action := e.(map[string]any)["action"]; action != "FORWARD_AUTH" {
			t.Errorf("a refused request is called %v", action)
		}
	}
}

// Whose event a refused request is, and that it counts nowhere.
func TestForwardAuthDenied(t *testing.T) {
	s := startTree(t, "sqlite", trusting)
	key, id := s.NewKey("a", `"permissions":["app:x"],"allowed_cidrs":["203.0.113.0/24"]`)
	from := []string{"X-Forwarded-For", "203.0.113.7"}
	check := func(orgID, want string, n int) {
		t.Helper()
		if event, events, calls := lastEvent(s, orgID); event != want || events != n || calls != 0.0 {
			t.Errorf("%s has %d events and %v calls, the last event is %s; want %d, 0 and %s", orgID, events, calls, event, n, want)
		}
	}
	const q = "/forward_auth?meter=api_calls&permission=app:y"
	s.Must(403, "GET", q, key, "", from...)
	check("a", "GET /forward_auth FORWARD_AUTH DENIED 203.0.113.7", 1)
	s.Must(403, "GET", q+"&org=leaf", key, "", from...)
	check("leaf", "GET /forward_auth FORWARD_AUTH DENIED 203.0.113.7", 1)
	s.Must(403, "GET", q+"&org=b&action=B", key, "", from...)
	check("a", "GET /forward_auth B DENIED 203.0.113.7", 2)
	check("b", "", 0)
	s.Must(403, "GET", q+"&action=ADDRESS", key, "")
	check("a", "GET /forward_auth ADDRESS DENIED 127.0.0.1", 3)
	s.Must(401, "GET", q, key[:len(key)-1]+"!", "", from...)
	check("a", "GET /forward_auth ADDRESS DENIED 127.0.0.1", 3)
	s.Must(200, "DELETE", "/orgs/a/api_keys/"+id, s.OperatorKey, "")
	s.Must(401, "GET", q+"&action=REVOKED", key, "", from...)
	check("a", "GET /forward_auth REVOKED DENIED 203.0.113.7", 4)
}

// Decisions from code are the same as those for a proxy.
func TestVerify(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		s := startTree(t, engine)
		caller, callerID := s.NewKey("a", `"permissions":["keys:verify"]`)
		foreign, _ := s.NewKey("other", `"permissions":["keys:verify"]`)
		self, _ := s.NewKey("a", `"permissions":["keys:verify"],"reach":"self"`)
		key, id := s.NewKey("leaf", `"permissions":["app:x"]`)
		body := func(members string) string { return fmt.Sprintf(`{"key":%q%s}`, key, members) }

		a := s.Must(200, "POST", "/verify", caller, body(`,"permissions":["app:x"],"meter":"api_calls","quantity":"1.5","ip":"203.0.113.7","action":"BUY","method":"POST","path":"/orders","user_agent":"shop/1"`))
		want := fmt.Sprintf(`{"valid":true,"code":null,"detail":null,"key_id":"%s","name":"test","org_id":"leaf","root_id":"root","path":["root","a","leaf"],"permissions":["app:x"],"rate_limit":null,"limits":[],"limit_org_id":null,"retry_after_seconds":null}`, id)
		if string(a.Body) != want {
			t.Errorf("got  %s\nwant %s", a.Body, want)
		}
		if event, n, calls := lastEvent(s, "leaf"); event != "POST /orders BUY SUCCESS 203.0.113.7" || n != 1 || calls != 1.5 {
			t.Errorf("leaf has %d events and %v calls, the last event is %s", n, calls, event)
		}
		used := s.Must(200, "GET", "/orgs/leaf/api_keys/"+id, s.OperatorKey, "")
		if used.JSON("last_used_ip") != "203.0.113.7" {
			t.Errorf("the key was last used from %v", used.JSON("last_used_ip"))
		}
		if _, n, calls := lastEvent(s, "a"); n != 0 || calls != 0.0 {
			t.Errorf("the caller's organization has %d events and %v calls", n, calls)
		}
		if s.Must(200, "GET", "/orgs/a/api_keys/"+callerID, s.OperatorKey, "").JSON("last_used_at") == nil {
			t.Error("the calling key was never used")
		}

		// What the caller cannot see does not exist.
		unknown := string(s.Must(200, "POST", "/verify", caller, `{"key":"orgd_nothing"}`).Body)
		if !strings.HasPrefix(unknown, `{"valid":false,"code":"unauthorized"`) {
			t.Errorf("an unknown key: %s", unknown)
		}
		for name, who := range map[string]string{"a foreign key": foreign, "the self reach": self} {
			if got := string(s.Must(200, "POST", "/verify", who, body(`,"meter":"api_calls"`)).Body); got != unknown {
				t.Errorf("%s can tell a key that it cannot see from an unknown one:\n%s\n%s", name, got, unknown)
			}
		}
		// Nor does what the verified key sees, and the caller does not.
		wide, _ := s.NewKey("a", `"permissions":["app:x"]`)
		top, _ := s.NewKey("root", `"permissions":["app:x"]`)
		aboveSelf, _ := s.NewKey("root", `"permissions":["keys:verify"],"reach":"self"`)
		ask := func(who, key, org string) string {
			return string(s.Must(200, "POST", "/verify", who, fmt.Sprintf(`{"key":%q,"org_id":%q}`, key, org)).Body)
		}
		for _, tt := range []struct{ who, key string }{{self, wide}, {aboveSelf, top}} {
			absent := ask(tt.who, tt.key, "absent")
			if !strings.HasPrefix(absent, `{"valid":false,"code":"permission_denied"`) {
				t.Errorf("an organization that does not exist: %s", absent)
			}
			for _, org := range []string{"leaf", "other"} {
				if got := ask(tt.who, tt.key, org); got != absent {
					t.Errorf("a caller of the reach self learns of %s: %s", org, got)
				}
			}
		}
		if got := ask(self, wide, "a"); !strings.HasPrefix(got, `{"valid":true`) {
			t.Errorf("a caller of the reach self about its own organization: %s", got)
		}
		if got := ask(caller, wide, "leaf"); !strings.HasPrefix(got, `{"valid":true`) {
			t.Errorf("a caller that sees all below: %s", got)
		}
		if _, n, _ := lastEvent(s, "leaf"); n != 2 {
			t.Errorf("leaf has %d events, of which the callers of the reach self made none", n)
		}

		if got := string(s.Must(200, "POST", "/verify", caller, fmt.Sprintf(`{"key":%q}`, s.OperatorKey)).Body); got != unknown {
			t.Errorf("the operator key can be told from an unknown one: %s", got)
		}
		if event, n, calls := lastEvent(s, "leaf"); n != 2 || calls != 1.5 {
			t.Errorf("verifying what cannot be seen left %s, and %v calls", event, calls)
		}
		s.Must(403, "POST", "/verify", key, body("")) // a call of its own, which counts

		decide := func(members string) *testkit.Answer {
			return s.Must(200, "POST", "/verify", s.OperatorKey, body(members))
		}
		if a := decide(`,"permissions":["app:y"],"action":"NO"`); a.JSON("valid") != false || a.String("code") != "permission_denied" || a.String("key_id") != id || a.String("org_id") != "leaf" {
			t.Errorf("too little permission: %s", a.Body)
		}
		if event, _, _ := lastEvent(s, "leaf"); event != "<nil> <nil> NO DENIED <nil>" {
			t.Errorf("the event is %s", event)
		}
		above, missing := decide(`,"org_id":"a"`), decide(`,"org_id":"nobody"`)
		if above.String("code") != "permission_denied" || string(above.Body) != string(missing.Body) {
			t.Errorf("an organization that the key cannot see: %s\n%s", above.Body, missing.Body)
		}

		// Hard limits, with their owner and what is used.
		s.Must(200, "PUT", "/orgs/a/limits/api_calls", s.OperatorKey, `{"limit":4,"enforcement":"hard"}`)
		a = s.Must(200, "POST", "/verify", caller, body(`,"meter":"api_calls"`))
		if l := fmt.Sprint(a.JSON("limits")); a.JSON("valid") != true || !strings.Contains(l, "limit:4 ") || !strings.Contains(l, "used:3.5") {
			t.Errorf("under a limit: %s", a.Body)
		}
		a = s.Must(200, "POST", "/verify", caller, body(`,"meter":"api_calls"`))
		if a.String("code") != "limit_exceeded" || a.String("limit_org_id") != "a" || a.JSON("retry_after_seconds") == nil {
			t.Errorf("beyond a limit: %s", a.Body)
		}
		if event, _, calls := lastEvent(s, "leaf"); event != "<nil> <nil> VERIFY FAILURE <nil>" || calls != 3.5 {
			t.Errorf("the event is %s, %v calls", event, calls)
		}

		// One bucket for both ways to ask.
		limited, _ := s.NewKey("leaf", `"permissions":["app:x"],"rate_limit":{"requests":2,"period_seconds":3600}`)
		s.Must(200, "GET", "/forward_auth", limited, "")
		a = s.Must(200, "POST", "/verify", caller, fmt.Sprintf(`{"key":%q}`, limited))
		if got := fmt.Sprint(a.JSON("rate_limit")); a.JSON("valid") != true || got != "map[period_seconds:3600 remaining:0 requests:2 reset_seconds:3600]" {
			t.Errorf("within its rate limit: %s", a.Body)
		}
		a = s.Must(200, "POST", "/verify", caller, fmt.Sprintf(`{"key":%q}`, limited))
		if a.String("code") != "rate_limited" || a.JSON("retry_after_seconds") == nil {
			t.Errorf("beyond its rate limit: %s", a.Body)
		}
		s.Must(429, "GET", "/forward_auth", limited, "")

		// Addresses, expiry, revocation.
		local, _ := s.NewKey("leaf", `"permissions":["app:x"],"allowed_cidrs":["203.0.113.0/24"]`)
		for ip, code := range map[string]string{`,"ip":"203.0.113.7"`: "", `,"ip":"::ffff:203.0.113.7"`: "", `,"ip":"198.51.100.1"`: "permission_denied", ``: "permission_denied"} {
			if got := s.Must(200, "POST", "/verify", caller, fmt.Sprintf(`{"key":%q%s}`, local, ip)).String("code"); got != code {
				t.Errorf("from %q: %q", ip, got)
			}
		}
		short, _ := s.NewKey("leaf", fmt.Sprintf(`"permissions":["app:x"],"expires_at":%q`, time.Now().Add(2*time.Second).UTC().Format(time.RFC3339Nano)))
		time.Sleep(2100 * time.Millisecond)
		if got := string(s.Must(200, "POST", "/verify", caller, fmt.Sprintf(`{"key":%q,"action":"LATE"}`, short)).Body); got != unknown {
			t.Errorf("an expired key: %s", got)
		}
		if event, _, _ := lastEvent(s, "leaf"); event != "<nil> <nil> LATE DENIED <nil>" {
			t.Errorf("the event of an expired key is %s", event)
		}
		s.Must(200, "DELETE", "/orgs/leaf/api_keys/"+id, s.OperatorKey, "")
		if got := string(s.Must(200, "POST", "/verify", caller, body("")).Body); got != unknown {
			t.Errorf("a revoked key: %s", got)
		}

		for _, bad := range []string{`{}`, `{"key":""}`, `{"key":1}`, body(`,"permissions":[]`), body(`,"permissions":["nonsense"]`), body(`,"org_id":""`), body(`,"meter":""`), body(`,"meter":"A"`),
			body(`,"quantity":1`), body(`,"meter":"api_calls","quantity":-1`), body(`,"ip":""`), body(`,"ip":"nowhere"`), body(`,"action":""`), body(`,"action":"a b"`), body(`,"method":"A B"`), body(`,"note":1`)} {
			s.Must(400, "POST", "/verify", caller, bad)
		}
		s.Must(400, "POST", "/verify", caller, fmt.Sprintf(`{"key":%q,"ip":"203.0.113.7","meter":"storage_used"}`, local))
		s.Must(400, "POST", "/verify", caller, body(""), "Idempotency-Key", "once")
		s.Must(400, "POST", "/verify?dry_run=true", caller, body(""))
	})
}

// A key that somebody puts where it does not belong is in no log.
func TestKeysAreNotLogged(t *testing.T) {
	var log bytes.Buffer
	s := testkit.Open(t, "sqlite", func(c *server.Config) {
		c.Log = slog.New(slog.NewTextHandler(&log, nil))
	})
	s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"acme","name":"Acme"}`)
	secret, _ := s.NewKey("acme", `"permissions":["read"]`)
	for _, path := range []string{"/orgs/", "/forward_auth/orders/", "/forward_auth;permission=orgs:read/orders/", "/nothing/"} {
		r, err := http.NewRequest("GET", s.URL+path+secret, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+secret)
		r.Header.Set("User-Agent", "curl "+secret)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	a := s.Must(200, "GET", "/orgs/acme/access_log", secret, "")
	if strings.Contains(string(a.Body), secret) || strings.Count(string(a.Body), "orgd_…") != 6 {
		t.Errorf("the access log: %s", a.Body)
	}
	s.Stop()
	if strings.Contains(log.String(), secret) || strings.Count(log.String(), "orgd_…") != 4 {
		t.Errorf("the server log: %s", log.String())
	}
}
