// Package examples_test starts the reverse proxies that the examples are for,
// as the examples configure them.
package examples_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// product is an API that orgd protects: it answers what it was sent.
func product(t *testing.T) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s\nbody %x\n", r.Method, r.RequestURI, sha256.Sum256(body))
		for _, name := range []string{"X-Orgd-Org-Id", "X-Orgd-Root-Id", "X-Orgd-Path", "X-Orgd-Key-Id", "X-Orgd-Permissions", "Authorization"} {
			fmt.Fprintf(w, "%s: %s\n", name, strings.Join(r.Header.Values(name), "|"))
		}
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// protect starts orgd with two customers, acme with acme.eu below it, and
// other, and a product.
func protect(t *testing.T) (s *testkit.Server, replace *strings.Replacer, address string) {
	t.Helper()
	s = testkit.Start(t, "sqlite", func(c *server.Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")} })
	s.Must(http.StatusOK, "POST", "/orgs/import", s.OperatorKey, "id,parent_id,name\nacme,,Acme\nacme.eu,acme,Acme Europe\nother,,Other\n", "Content-Type", "text/csv")
	address = freeAddress(t)
	replace = strings.NewReplacer("127.0.0.1:8080", strings.TrimPrefix(s.URL, "http://"), "127.0.0.1:8000", address, "127.0.0.1:9000", product(t))
	return s, replace, address
}

// run runs a proxy until the test ends, and returns when it listens.
func run(t *testing.T, address string, cmd *exec.Cmd) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			<-exited
		}
		log.Close()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("the log of %s:\n%s", cmd.Path, b)
		}
	})
	for range 100 {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return
		}
		select {
		case err := <-exited:
			exited <- err
			b, _ := os.ReadFile(log.Name())
			t.Fatalf("%s ended: %v\n%s", cmd.Path, err, b)
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Fatalf("%s does not listen", cmd.Path)
}

func startNginx(t *testing.T) (*testkit.Server, string) {
	path := testkit.Programs(t, "nginx")[0]
	s, replace, address := protect(t)
	dir := t.TempDir()
	for _, name := range []string{"nginx.conf", "orgd.conf", "orgd-request.conf", "orgd-denied.conf"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text := replace.Replace(string(b))
		if name == "nginx.conf" {
			// Where this machine lets a test write.
			text = strings.Replace(text, "http {", "http {\n\taccess_log off;", 1)
			for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
				text = strings.Replace(text, "http {", "http {\n\t"+kind+"_temp_path "+dir+"/"+kind+";", 1)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(t, address, exec.Command(path, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", "stderr", "-g", "daemon off; master_process off; pid "+dir+"/pid;"))
	return s, "http://" + address
}

func startCaddy(t *testing.T) (*testkit.Server, string) {
	path := testkit.Programs(t, "caddy")[0]
	s, replace, address := protect(t)
	dir := t.TempDir()
	b, err := os.ReadFile("Caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "Caddyfile")
	if err := os.WriteFile(config, []byte(replace.Replace(string(b))), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "run", "--config", config, "--adapter", "caddyfile")
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_DATA_HOME="+dir)
	run(t, address, cmd)
	return s, "http://" + address
}

func TestNginx(t *testing.T) { testProxy(t, startNginx) }
func TestCaddy(t *testing.T) { testProxy(t, startCaddy) }

// answer is what a client gets through a proxy.
type answer struct {
	status int
	header http.Header
	body   string
}

func ask(t *testing.T, method, url, key, body string, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// testProxy makes the same requests through a proxy. Each is answered as it
// should, and leaves the access event and the count that it should.
func testProxy(t *testing.T, start func(*testing.T) (*testkit.Server, string)) {
	s, url := start(t)
	key, keyID := s.NewKey("acme.eu", `"permissions":["app:orders:read","app:invoices:read"]`)
	weak, _ := s.NewKey("acme.eu", `"permissions":["app:orders:write"]`)
	parent, _ := s.NewKey("acme", `"permissions":["app:invoices:read"]`)
	foreign, _ := s.NewKey("other", `"permissions":["app:invoices:read"]`)
	slow, _ := s.NewKey("acme.eu", `"permissions":["app:orders:read"],"rate_limit":{"requests":1,"period_seconds":3600}`)
	elsewhere, _ := s.NewKey("acme.eu", `"permissions":["app:orders:read"],"allowed_cidrs":["203.0.113.0/24"]`)
	gone, goneID := s.NewKey("acme.eu", `"permissions":["app:orders:read"]`)
	s.Must(200, "DELETE", "/orgs/acme.eu/api_keys/"+goneID, s.OperatorKey, "")

	for _, tt := range []struct {
		name              string
		method, path, key string
		body              string
		headers           []string
		status            int
		code              string
	}{
		{name: "allowed", method: "GET", path: "/orders/1?page=2", key: key, status: 200},
		{name: "allowed with a body", method: "POST", path: "/orders", key: key, body: strings.Repeat("x", 100_000), status: 200},
		{name: "another method", method: "DELETE", path: "/orders/1", key: key, status: 200},
		{name: "no key", method: "GET", path: "/orders", status: 401, code: "unauthorized"},
		{name: "a typo", method: "GET", path: "/orders", key: key[:len(key)-1] + "!", status: 401, code: "unauthorized"},
		{name: "a revoked key", method: "GET", path: "/orders", key: gone, status: 401, code: "unauthorized"},
		{name: "too little permission", method: "GET", path: "/orders", key: weak, status: 403, code: "permission_denied"},
		{name: "from elsewhere", method: "GET", path: "/orders", key: elsewhere, status: 403, code: "permission_denied"},
		{name: "from elsewhere with a forged address", method: "GET", path: "/orders", key: elsewhere, headers: []string{"X-Forwarded-For", "203.0.113.7", "X-Real-IP", "203.0.113.7"}, status: 403, code: "permission_denied"},
		{name: "within its rate limit", method: "GET", path: "/orders", key: slow, status: 200},
		{name: "beyond its rate limit", method: "GET", path: "/orders", key: slow, status: 429, code: "rate_limited"},
		{name: "a forged description", method: "GET", path: "/orders/2", key: key, status: 200, headers: []string{
			"X-Original-URI", "/forged", "X-Original-Method", "FORGED", "X-Forwarded-Uri", "/forged", "X-Forwarded-Method", "FORGED"}},
		{name: "a forged identity", method: "GET", path: "/orders", key: key, status: 200, headers: []string{
			"X-Orgd-Org-Id", "forged", "X-Orgd-Root-Id", "forged", "X-Orgd-Path", "forged", "X-Orgd-Key-Id", "forged", "X-Orgd-Permissions", "forged"}},
		{name: "demands in the client's query", method: "GET", path: "/orders?permission=app:orders:write&quantity=0&meter=storage_used&org=other", key: weak, status: 403, code: "permission_denied"},
		{name: "its own invoices", method: "GET", path: "/customers/acme.eu/invoices", key: key, status: 200},
		{name: "invoices below it", method: "GET", path: "/customers/acme.eu/invoices", key: parent, status: 200},
		{name: "invoices above it", method: "GET", path: "/customers/acme/invoices", key: key, status: 403, code: "permission_denied"},
		{name: "foreign invoices", method: "GET", path: "/customers/acme.eu/invoices", key: foreign, status: 403, code: "permission_denied"},
		{name: "invoices of nobody", method: "GET", path: "/customers/nobody/invoices", key: key, status: 403, code: "permission_denied"},
	} {
		a := ask(t, tt.method, url+tt.path, tt.key, tt.body, tt.headers...)
		if a.status != tt.status {
			t.Errorf("%s: status %d, want %d: %s", tt.name, a.status, tt.status, a.body)
			continue
		}
		if strings.Contains(a.body, "forged\n") {
			t.Errorf("%s: what the client forged reached the product:\n%s", tt.name, a.body)
		}
		if tt.status != 200 {
			if !strings.Contains(a.body, `"`+tt.code+`"`) || a.header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s: the answer is no problem document with the code %s: %s: %s", tt.name, tt.code, a.header.Get("Content-Type"), a.body)
			}
			if tt.status == 401 && a.header.Get("Www-Authenticate") != "Bearer" {
				t.Errorf("%s: WWW-Authenticate is %q", tt.name, a.header.Values("Www-Authenticate"))
			}
			if tt.status == 429 && a.header.Get("Retry-After") == "" {
				t.Errorf("%s: no Retry-After", tt.name)
			}
			continue
		}
		want := fmt.Sprintf("%s %s\nbody %x\n", tt.method, tt.path, sha256.Sum256([]byte(tt.body)))
		if !strings.HasPrefix(a.body, want) || !strings.Contains(a.body, "X-Orgd-Org-Id: acme.eu\nX-Orgd-Root-Id: acme\nX-Orgd-Path: acme/acme.eu\nX-Orgd-Key-Id: key_") || !strings.HasSuffix(a.body, "\nAuthorization: \n") {
			t.Errorf("%s: the product got\n%s", tt.name, a.body)
		}
	}

	events := s.Must(200, "GET", "/orgs/acme.eu/access_log?api_key_id="+keyID, s.OperatorKey, "")
	list, _ := events.JSON().([]any)
	var seen []string
	for _, e := range list {
		m := e.(map[string]any)
		if m["ip"] != "127.0.0.1" || m["user"] != "test" || m["user_agent"] != "Go-http-client/1.1" {
			t.Errorf("an event is of %v at %v with %v", m["user"], m["ip"], m["user_agent"])
		}
		seen = append(seen, fmt.Sprintf("%s %s %s %s", m["method"], m["path"], m["action"], m["status"]))
	}
	want := []string{
		"GET /customers/nobody/invoices READ_INVOICES DENIED", "GET /customers/acme/invoices READ_INVOICES DENIED", "GET /customers/acme.eu/invoices READ_INVOICES SUCCESS",
		"GET /orders READ_ORDERS SUCCESS", "GET /orders/2 READ_ORDERS SUCCESS",
		"DELETE /orders/1 READ_ORDERS SUCCESS", "POST /orders READ_ORDERS SUCCESS", "GET /orders/1 READ_ORDERS SUCCESS",
	}
	if strings.Join(seen, "\n") != strings.Join(want, "\n") {
		t.Errorf("the access log of the key holds\n%s\nwant\n%s", strings.Join(seen, "\n"), strings.Join(want, "\n"))
	}
	if n := s.Must(200, "GET", "/orgs/acme.eu/consumption", s.OperatorKey, "").JSON("meters", "api_calls", "own"); n != 8.0 {
		t.Errorf("acme.eu has %v api_calls, want 8", n)
	}
	if n := s.Must(200, "GET", "/orgs/acme/consumption", s.OperatorKey, "").JSON("meters", "api_calls", "total"); n != 8.0 {
		t.Errorf("acme has %v api_calls, want 8", n)
	}
}

// Traefik and Envoy are not started here. What their examples make them send
// to orgd is decided as meant.
func TestTraefikAndEnvoy(t *testing.T) {
	s, _, _ := protect(t)
	key, keyID := s.NewKey("acme.eu", `"permissions":["app:orders:read"]`)
	weak, _ := s.NewKey("acme.eu", `"permissions":["app:orders:write"]`)
	address := regexp.MustCompile(`(?m)^ *address: http://127\.0\.0\.1:8080(/\S+)$`).FindStringSubmatch(example(t, "traefik.yaml"))
	prefix := regexp.MustCompile(`(?m)^ *path_prefix: (/\S+)$`).FindStringSubmatch(example(t, "envoy.yaml"))
	if address == nil || prefix == nil {
		t.Fatal("the examples do not say where to ask")
	}
	for _, tt := range []struct {
		name, method, path string
		headers            []string
	}{
		{"Traefik", "GET", address[1], []string{"X-Forwarded-Method", "PUT", "X-Forwarded-Uri", "/orders/1?permission=none", "X-Forwarded-For", "203.0.113.7"}},
		{"Envoy", "PUT", prefix[1] + "/orders/1?permission=none", []string{"X-Forwarded-For", "203.0.113.7"}},
	} {
		if a := ask(t, tt.method, s.URL+tt.path, key, "", tt.headers...); a.status != 200 || a.header.Get("X-Orgd-Org-Id") != "acme.eu" {
			t.Errorf("%s: status %d, header %v: %s", tt.name, a.status, a.header, a.body)
		}
		if a := ask(t, tt.method, s.URL+tt.path, weak, "", tt.headers...); a.status != 403 {
			t.Errorf("%s: status %d for a key with another permission: %s", tt.name, a.status, a.body)
		}
	}
	list, _ := s.Must(200, "GET", "/orgs/acme.eu/access_log?api_key_id="+keyID, s.OperatorKey, "").JSON().([]any)
	if len(list) != 2 {
		t.Errorf("%d events", len(list))
	}
	for _, e := range list {
		m := e.(map[string]any)
		if got := fmt.Sprint(m["method"], " ", m["path"], " ", m["action"], " ", m["status"], " ", m["ip"]); got != "PUT /orders/1 READ_ORDERS SUCCESS 203.0.113.7" {
			t.Errorf("an event is %s", got)
		}
	}
	if n := s.Must(200, "GET", "/orgs/acme.eu/consumption", s.OperatorKey, "").JSON("meters", "api_calls", "own"); n != 2.0 {
		t.Errorf("acme.eu has %v api_calls, want 2", n)
	}
}

func example(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
