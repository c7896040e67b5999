package client_test

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/orgd/orgd/client"
	"github.com/orgd/orgd/internal/testkit"
)

// startPrinter serves a product behind a guard, whose organization stands in
// the path. Its handler answers which paths it was given and which variables CGI
// makes of what concerns orgd in the request.
func startPrinter(t *testing.T, opts client.GuardOptions) (orgd *testkit.Server, address string) {
	t.Helper()
	orgd = testkit.Start(t, "sqlite")
	orgd.Must(200, "POST", "/orgs/import", orgd.OperatorKey, "id,parent_id,name\nmine,,Mine\nother,,Other\n", "Content-Type", "text/csv")
	verifier := orgd.OperatorKey
	g := client.NewGuard(client.New(orgd.URL, verifier), opts)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "path %s, cleaned %s\n", r.URL.EscapedPath(), path.Clean(r.URL.Path))
		variables := map[string][]string{}
		for _, fields := range []http.Header{r.Header, r.Trailer} {
			for name, values := range fields {
				if name = strings.ToUpper(strings.ReplaceAll(name, "-", "_")); strings.HasPrefix(name, "X_ORGD") {
					variables[name] = append(variables[name], values...)
				}
			}
		}
		for _, name := range slices.Sorted(maps.Keys(variables)) {
			fmt.Fprintf(w, "HTTP_%s=%s\n", name, strings.Join(variables[name], "|"))
		}
	})
	protected := g.Protect(client.Demand{Meter: "api_calls", Org: func(r *http.Request) string { return r.PathValue("org") }}, handler)
	mux := http.NewServeMux()
	mux.Handle("/customers/{org}/{rest...}", protected)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Without-Mux") == "" {
			mux.ServeHTTP(w, r)
			return
		}
		// What another router makes of the path: the second segment as it is.
		if segments := strings.Split(r.URL.Path, "/"); len(segments) > 2 {
			r.SetPathValue("org", segments[2])
		}
		protected.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return orgd, s.Listener.Addr().String()
}

func raw(t *testing.T, address, request string) (int, string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, request)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// A handler never gets a path that it could take for another organization's
// than the one that was decided about, whichever router stands before the guard.
func TestGuardPaths(t *testing.T) {
	orgd, address := startPrinter(t, client.GuardOptions{})
	key, id := orgd.NewKey("mine", `"permissions":["app:x"]`)
	request := func(target, headers string) string {
		return "GET " + target + " HTTP/1.1\r\nHost: api\r\nConnection: close\r\nAuthorization: Bearer " + key + "\r\n" + headers + "\r\n"
	}
	for _, target := range []string{
		"/customers/mine/../other/invoices", "/customers/mine/%2e%2e/other/invoices", "/customers/mine/%2E%2E/other", "/customers/mine/.%2e/other", "/customers/mine/..%2fother", "/customers/mine%2f..%2fother/x",
		"/customers/mine/x/../../other", "/customers/mine/./x", "/customers/mine/%2e/x", "/customers/mine//x", "/customers//mine/x", "/customers/mine/%2fx", "/customers/mine/a%2Fb", "/customers/mine/..",
		"/customers/mine/..;/other", "/customers/mine;a=b/x", "/customers/mine/x;a=b", "/customers/mine/..%3b/other", "/customers/mine%3B/x",
		"/customers/mine/..\\other", "/customers/mine\\..\\other/x", "/customers/mine/..%5cother", "/customers/mine/a%5Cb",
		"/customers/mine/%252e%252e/other", "/customers/mine/..%252fother", "/customers/mine/%25252e%25252e/other", "/customers/mine/a%253bb", "/customers/mine/a%255cb",
		"/customers/mine/x%00", "/customers/mine/x%0d%0a", "/customers/mine/%7f", "/customers/mine/%1f", "/customers/mine/x%2500", "/customers/mine/%c0%ae%c0%ae/other", "/customers/mine/..%c0%afother", "/customers/mine#/../other",
	} {
		for _, target := range []string{target, target + "?page=2"} {
			// The guard itself, and with net/http's router, which sends clients
			// of some of them elsewhere.
			status, body := raw(t, address, request(target, "X-Without-Mux: yes\r\n"))
			if status != 400 || !strings.Contains(body, `"code":"invalid_request"`) {
				t.Errorf("%s: %d %s", target, status, body)
			}
			status, body = raw(t, address, request(target, ""))
			if status == 200 || strings.HasPrefix(body, "path ") {
				t.Errorf("%s, with a router: %d %s", target, status, body)
			}
		}
	}
	if list, _ := orgd.Must(200, "GET", "/orgs/mine/access_log?api_key_id="+id, orgd.OperatorKey, "").JSON().([]any); len(list) != 0 {
		t.Errorf("%d of them were decided about: %v", len(list), list[0])
	}
	for _, target := range []string{"/customers/mine/x", "/customers/mine/", "/customers/mine/...", "/customers/mine/.well-known/a..b", "/customers/mine/%C3%A9t%C3%A9", "/customers/mine/50%25", "/customers/mine/a%20b:c@d,e=f"} {
		for _, headers := range []string{"", "X-Without-Mux: yes\r\n"} {
			status, body := raw(t, address, request(target+"?to=/../;x//", headers))
			event := orgd.Must(200, "GET", "/orgs/mine/access_log?limit=1&api_key_id="+id, orgd.OperatorKey, "").JSON().([]any)
			if status != 200 || !strings.HasPrefix(body, "path "+target+",") || len(event) != 1 || event[0].(map[string]any)["path"] != target {
				t.Errorf("%s: %d %s, the decision was about %v", target, status, body, event)
			}
		}
	}
}

// Whose request it is, a handler learns from its verdict alone: no header that a
// client can write says so.
func TestGuardIdentity(t *testing.T) {
	orgd, address := startPrinter(t, client.GuardOptions{TTL: -1})
	key, _ := orgd.NewKey("mine", `"permissions":["app:x"]`)
	for _, headers := range []string{
		"X-Orgd-Org-Id: forged\r\n", "x-orgd-org-id: forged\r\nX-ORGD-PATH: forged\r\n", "X_Orgd_Org_Id: forged\r\n", "x_orgd_root_id: forged\r\nX_ORGD_ROOT_ID: forged\r\n", "X-Orgd_Key-Id: forged\r\nX_Orgd-Permissions: forged\r\n",
		"X-Orgd-Org-Id: forged\r\nX-Orgd-Org-Id: forged\r\nX_Orgd_Org_Id: forged\r\n", "Connection: X-Orgd-Org-Id\r\nX-Orgd-Org-Id: forged\r\n", "X-Orgd-Anything: forged\r\n",
	} {
		status, body := raw(t, address, "GET /customers/mine/x HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer "+key+"\r\n"+headers+"Connection: close\r\n\r\n")
		if status != 200 || strings.Contains(body, "HTTP_") {
			t.Errorf("%q: %d, the handler got %s", headers, status, body)
		}
	}
	status, body := raw(t, address, "POST /customers/mine/x HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer "+key+"\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: X-Orgd-Org-Id, X_Orgd_Path\r\n\r\n1\r\nx\r\n0\r\nX-Orgd-Org-Id: forged\r\nX_Orgd_Path: forged\r\n\r\n")
	if status != 200 || strings.Contains(body, "HTTP_") {
		t.Errorf("trailers: %d, the handler got %s", status, body)
	}
}

// The guard takes the address of a client as proxies write it; one that is none
// is unknown and not an error.
func TestGuardAddress(t *testing.T) {
	orgd, address := startPrinter(t, client.GuardOptions{TTL: -1, ClientIP: func(r *http.Request) string { return r.Header.Get("X-Client") }})
	bound, _ := orgd.NewKey("mine", `"permissions":["app:x"],"allowed_cidrs":["203.0.113.0/24","2001:db8::/32"]`)
	free, id := orgd.NewKey("mine", `"permissions":["app:x"]`)
	for written, ip := range map[string]any{
		"203.0.113.9": "203.0.113.9", "203.0.113.9:51034": "203.0.113.9", "[2001:db8::1]:443": "2001:db8::1", `"[2001:db8::1]"`: "2001:db8::1", "2001:db8::1%eth0": "2001:db8::1", "[2001:db8::1%eth0]:443": "2001:db8::1",
		"": nil, "unknown": nil, "_hidden": nil, "203.0.113.9, unknown": nil, "unix:": nil,
	} {
		want := 200
		if ip == nil {
			want = 403
		}
		headers := "X-Client: " + written + "\r\nConnection: close\r\n\r\n"
		if status, body := raw(t, address, "GET /customers/mine/x HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer "+bound+"\r\n"+headers); status != want {
			t.Errorf("%s: %d %s", written, status, body)
		}
		if status, body := raw(t, address, "GET /customers/mine/x HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer "+free+"\r\n"+headers); status != 200 {
			t.Errorf("%s with a key that is bound to no address: %d %s", written, status, body)
		}
		event := orgd.Must(200, "GET", "/orgs/mine/access_log?limit=1&api_key_id="+id, orgd.OperatorKey, "").JSON().([]any)[0].(map[string]any)
		if event["ip"] != ip {
			t.Errorf("%s: the event is from %v", written, event["ip"])
		}
	}
}
