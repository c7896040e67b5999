// Package examples_test starts the reverse proxies that the examples are for,
// as the examples configure them.
package examples_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// identity are the headers by which a product learns whose request it gets.
var identity = []string{"X-Orgd-Org-Id", "X-Orgd-Root-Id", "X-Orgd-Path", "X-Orgd-Key-Id", "X-Orgd-Permissions"}

// product is an API that orgd protects: it answers what it was sent, and which
// variables CGI (RFC 3875, section 4.1.18), WSGI and PHP make of what concerns
// orgd in its headers and trailers.
func product(t *testing.T) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "websocket" {
			echo(w, r)
			return
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s\nbody %x\n", r.Method, r.RequestURI, sha256.Sum256(body))
		for _, name := range append(identity, "Authorization", "Upgrade") {
			fmt.Fprintf(w, "%s: %s\n", name, strings.Join(r.Header.Values(name), "|"))
		}
		variables := map[string][]string{}
		for _, fields := range []http.Header{r.Header, r.Trailer} {
			for name, values := range fields {
				if name = "HTTP_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_")); strings.Contains(name, "ORGD") && len(values) > 0 {
					variables[name] = append(variables[name], values...)
				}
			}
		}
		for _, name := range slices.Sorted(maps.Keys(variables)) {
			fmt.Fprintf(w, "%s=%s\n", name, strings.Join(variables[name], "|"))
		}
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// echo opens what the proxy takes for a WebSocket, and sends lines back with who
// has sent them.
func echo(w http.ResponseWriter, r *http.Request) {
	c, in, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		io.WriteString(c, r.Header.Get("X-Orgd-Org-Id")+" "+line)
	}
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
	var asked string
	s = testkit.Start(t, "sqlite", func(c *server.Config) {
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		c.Proxies, asked = l, l.Addr().String()
	})
	s.Must(http.StatusOK, "POST", "/orgs/import", s.OperatorKey, "id,parent_id,name\nacme,,Acme\nacme.eu,acme,Acme Europe\nother,,Other\n", "Content-Type", "text/csv")
	address = freeAddress(t)
	asked = newRelay(t, asked)
	replace = strings.NewReplacer("127.0.0.1:8081", asked, "127.0.0.1:8000", address, "127.0.0.1:9000", product(t))
	return s, replace, address
}

// A relay is between a proxy and orgd. While it hangs it takes connections, and
// what is sent on them, and nothing comes back. While it is down it ends them.
type relay struct {
	hangs, down atomic.Bool
}

var relays sync.Map // *testing.T → *relay

func newRelay(t *testing.T, to string) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{}
	relays.Store(t, r)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil || r.down.Load() {
				in.Close()
				continue
			}
			go func() { io.Copy(out, in); out.Close() }()
			go func() {
				b := make([]byte, 32<<10)
				for {
					n, err := out.Read(b)
					for r.hangs.Load() {
						time.Sleep(10 * time.Millisecond)
					}
					if n > 0 && !r.down.Load() {
						in.Write(b[:n])
					}
					if err != nil || r.down.Load() {
						in.Close()
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// Without an answer from orgd nothing is let through, the client is told so in a
// few seconds, orgd is not asked again, and when it answers again all is well.
func testWait(t *testing.T, start func(*testing.T) (*testkit.Server, string)) {
	s, url := start(t)
	r, _ := relays.Load(t)
	key, keyID := s.NewKey("acme.eu", `"permissions":["app:orders:read"]`)
	if a := ask(t, "GET", url+"/orders", key, ""); a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	r.(*relay).down.Store(true)
	for range 3 {
		begun := time.Now()
		if a := ask(t, "GET", url+"/orders", key, ""); time.Since(begun) > 8*time.Second || a.status < 502 || a.status > 504 || strings.Contains(a.body, "X-Orgd") {
			t.Errorf("with orgd down: %d after %s: %s", a.status, time.Since(begun), a.body)
		}
	}
	r.(*relay).down.Store(false)
	r.(*relay).hangs.Store(true)
	for _, method := range []string{"GET", "POST"} {
		begun := time.Now()
		a := ask(t, method, url+"/orders", key, "")
		if took := time.Since(begun); took > 8*time.Second || took < time.Second || a.status < 502 || a.status > 504 || strings.Contains(a.body, "X-Orgd") {
			t.Errorf("with orgd hanging %s is %d after %s: %s", method, a.status, took, a.body)
		}
		if a := ask(t, method, url+"/status", key, ""); a.status != 200 {
			t.Errorf("where orgd is not asked: %d", a.status)
		}
	}
	r.(*relay).hangs.Store(false)
	for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		if a := ask(t, "GET", url+"/orders", key, ""); a.status == 200 {
			break
		} else if time.Since(begun) > 20*time.Second {
			t.Fatalf("when orgd answers again: status %d: %s", a.status, a.body)
		}
	}
	// Who waited in vain was asked about once, and counts once.
	asked := 0
	for _, e := range s.Must(200, "GET", "/orgs/acme.eu/access_log?limit=1000&api_key_id="+keyID, s.OperatorKey, "").JSON().([]any) {
		if e.(map[string]any)["method"] == "POST" {
			asked++
		}
	}
	if asked != 1 {
		t.Errorf("orgd was asked %d times about one request", asked)
	}
}

// A WebSocket is opened through the proxy if orgd says so and nothing else is, and
// a body of 64 MiB reaches the product.
func testStreams(t *testing.T, start func(*testing.T) (*testkit.Server, string)) {
	s, url := start(t)
	key, _ := s.NewKey("acme.eu", `"permissions":["app:orders:read"]`)
	weak, _ := s.NewKey("acme.eu", `"permissions":["app:none"]`)
	open := func(key string) (net.Conn, *bufio.Reader, int) {
		c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(c, "GET /orders/live HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", key)
		in := bufio.NewReader(c)
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		return c, in, resp.StatusCode
	}
	c, in, status := open(key)
	if status != 101 {
		t.Fatalf("a WebSocket is answered %d", status)
	}
	for range 3 {
		io.WriteString(c, "ping\n")
		if line, err := in.ReadString('\n'); line != "acme.eu ping\n" {
			t.Fatalf("on a WebSocket %q comes back: %v", line, err)
		}
	}
	if _, _, status := open(weak); status != 403 {
		t.Errorf("a WebSocket of a key without the permission is answered %d", status)
	}

	// What else a connection may become, nobody would decide about: h2c is any number
	// of requests.
	for _, upgrade := range []string{"Upgrade: h2c\r\n", "Upgrade: websocket, h2c\r\n", "Upgrade: websocket\r\nUpgrade: h2c\r\n", "Upgrade: h2c\r\nUpgrade: websocket\r\n"} {
		a := raw(t, url, "GET /orders HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer "+key+"\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"+upgrade+"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n")
		if a.status != 101 && a.status != 400 && !strings.Contains(a.body, "\nUpgrade: \n") {
			t.Errorf("%q: status %d: %s", upgrade, a.status, a.body)
		}
	}

	large := strings.Repeat("0123456789abcdef", 4<<20)
	if a := ask(t, "POST", url+"/orders", key, large); a.status != 200 || !strings.Contains(a.body, fmt.Sprintf("\nbody %x\n", sha256.Sum256([]byte(large)))) {
		t.Errorf("a body of 64 MiB: status %d: %s", a.status, a.body)
	}
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
	for _, name := range []string{"nginx.conf", "orgd.conf", "orgd-request.conf", "orgd-server.conf", "orgd-none.conf"} {
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

func startHAProxy(t *testing.T) (*testkit.Server, string) {
	return startHAProxyWith(t, "")
}

// startHAProxyWith starts HAProxy with some more Lua.
func startHAProxyWith(t *testing.T, lua string) (*testkit.Server, string) {
	path := testkit.Programs(t, "haproxy")[0]
	s, replace, address := protect(t)
	dir := t.TempDir()
	for _, name := range []string{"haproxy.cfg", "haproxy.lua"} {
		// A name in memory is the whole machine's.
		text := strings.ReplaceAll(replace.Replace(example(t, name)), "abns@orgd", "abns@orgd-"+address)
		if name == "haproxy.lua" {
			text += lua
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(t, address, exec.Command(path, "-db", "-C", dir, "-f", "haproxy.cfg"))
	return s, "http://" + address
}

func startApache(t *testing.T) (*testkit.Server, string) {
	return startApacheWith(t, "")
}

// startApacheWith starts Apache with some more Lua.
func startApacheWith(t *testing.T, lua string) (*testkit.Server, string) {
	path := testkit.Programs(t, "apache2")[0]
	if _, err := os.Stat("/usr/share/lua/5.3/socket.lua"); err != nil && os.Getenv("CI") == "true" {
		t.Fatalf("LuaSocket is required: %v", err)
	} else if err != nil {
		t.Skip("LuaSocket is not installed")
	}
	s, replace, address := protect(t)
	dir := t.TempDir()
	for _, name := range []string{"apache.conf", "apache.lua"} {
		text := replace.Replace(example(t, name))
		if name == "apache.conf" {
			// Where this machine lets a test write.
			text = strings.Replace(text, "LuaRoot /etc/apache2", "LuaRoot "+dir, 1)
			text += "\nServerRoot " + dir + "\nDefaultRuntimeDir " + dir + "\nPidFile " + dir + "/pid\nErrorLog /dev/stderr\n"
		} else {
			text += lua
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(t, address, exec.Command(path, "-D", "FOREGROUND", "-d", dir, "-f", "apache.conf"))
	return s, "http://" + address
}

func TestNginx(t *testing.T)           { testProxy(t, startNginx) }
func TestHAProxy(t *testing.T)         { testProxy(t, startHAProxy) }
func TestApache(t *testing.T)          { testProxy(t, startApache) }
func TestCaddy(t *testing.T)           { testProxy(t, startCaddy) }
func TestNginxPaths(t *testing.T)      { testPaths(t, startNginx) }
func TestHAProxyPaths(t *testing.T)    { testPaths(t, startHAProxy) }
func TestApachePaths(t *testing.T)     { testPaths(t, startApache) }
func TestCaddyPaths(t *testing.T)      { testPaths(t, startCaddy) }
func TestNginxIdentity(t *testing.T)   { testIdentity(t, startNginx) }
func TestHAProxyIdentity(t *testing.T) { testIdentity(t, startHAProxy) }
func TestApacheIdentity(t *testing.T)  { testIdentity(t, startApache) }
func TestCaddyIdentity(t *testing.T)   { testIdentity(t, startCaddy) }
func TestNginxWait(t *testing.T)       { testWait(t, startNginx) }
func TestHAProxyWait(t *testing.T)     { testWait(t, startHAProxy) }
func TestApacheWait(t *testing.T)      { testWait(t, startApache) }
func TestCaddyWait(t *testing.T)       { testWait(t, startCaddy) }
func TestNginxStreams(t *testing.T)    { testStreams(t, startNginx) }
func TestHAProxyStreams(t *testing.T)  { testStreams(t, startHAProxy) }
func TestApacheStreams(t *testing.T)   { testStreams(t, startApache) }
func TestCaddyStreams(t *testing.T)    { testStreams(t, startCaddy) }

// Nothing is let through when Lua fails, after which HAProxy goes on.
func TestLuaFails(t *testing.T) {
	for name, start := range map[string]func(*testing.T) (*testkit.Server, string){
		"HAProxy": func(t *testing.T) (*testkit.Server, string) { return startHAProxyWith(t, "\ncore.httpclient = nil\n") },
		"Apache":  func(t *testing.T) (*testkit.Server, string) { return startApacheWith(t, "\nsocket.tcp = nil\n") },
	} {
		t.Run(name, func(t *testing.T) {
			s, url := start(t)
			key, _ := s.NewKey("acme.eu", `"permissions":["app:orders:read","app:invoices:read"]`)
			for _, path := range []string{"/orders", "/customers/acme.eu/invoices"} {
				if a := ask(t, "GET", url+path, key, "", "X-Orgd-Org-Id", "acme.eu"); a.status < 500 {
					t.Errorf("%s: status %d: %s", path, a.status, a.body)
				}
			}
			if a := ask(t, "GET", url+"/status", key, ""); a.status != 200 {
				t.Errorf("where orgd is not asked: status %d: %s", a.status, a.body)
			}
		})
	}
}

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
		if !strings.HasPrefix(a.body, want) || !strings.Contains(a.body, "X-Orgd-Org-Id: acme.eu\nX-Orgd-Root-Id: acme\nX-Orgd-Path: acme/acme.eu\nX-Orgd-Key-Id: key_") || !strings.Contains(a.body, "\nAuthorization: \n") {
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

// raw sends a request as it is written, and returns what comes back.
func raw(t *testing.T, url, request string) answer {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// misleading are paths that one program takes for those of mine and another for
// those of other.
var misleading = []string{
	"/customers/other/invoices/../../acme.eu/invoices", "/customers/other/invoices/%2e%2e/%2e%2e/acme.eu/invoices", "/customers/other/invoices/..%2f..%2facme.eu/invoices",
	"/customers/other/../acme.eu/invoices", "/customers/other/%2E./acme.eu/invoices", "/customers/other/.%2e/acme.eu/invoices", "/customers/other%2f..%2facme.eu/invoices",
	"/customers/acme.eu/invoices/../invoices", "/customers/./acme.eu/invoices", "/customers/acme.eu/./invoices", "/customers/%2e/acme.eu/invoices", "/customers//acme.eu/invoices",
	"//customers/acme.eu/invoices", "/customers/acme.eu//invoices", "/customers/acme.eu%2finvoices", "/customers%2Facme.eu/invoices", "/customers/other;/../acme.eu/invoices",
	"/customers/other/..;/acme.eu/invoices", "/customers/acme.eu;a=b/invoices", "/customers/acme.eu/invoices;a=b", "/customers/acme.eu/invoices%3ba=b", "/customers/other/..%3b/acme.eu/invoices",
	"/customers/other\\..\\acme.eu/invoices", "/customers/other/..\\acme.eu/invoices", "/customers/acme.eu%5cinvoices", "/customers/other%5c..%5cacme.eu/invoices",
	"/customers/other/%252e%252e/acme.eu/invoices", "/customers/other/..%252facme.eu/invoices", "/customers/acme.eu%252finvoices", "/customers/acme.eu/invoices%253b", "/customers/other/%25252e%25252e/acme.eu/invoices",
	"/customers/acme.eu/invoices%00", "/customers/acme.eu/invoices%0a", "/customers/acme.eu/invoices%0d%0a", "/customers/acme.eu/invoices%7f", "/customers/acme.eu/invoices%2500",
	"/customers/other/%c0%ae%c0%ae/acme.eu/invoices", "/customers/acme.eu%c0%afinvoices", "/customers/acme.eu%e0%80%afinvoices", "/customers/acme.eu%25c0%25afinvoices",
	"/orders/../customers/other/invoices", "/orders/..%2fcustomers/other/invoices", "/orders/..;/customers/other/invoices", "/orders/..\\customers/other/invoices", "/orders/..", "/orders/.", "/orders/%2e%2e", "/orders;/../status",
	"/status/../orders", "/status/..%2forders", "/status;/../orders", "/%2e/orders", "/orders//1", "/orders/%2f", "/orders/a%5Cb",
}

// What was decided about is what the product gets, or nothing: a path that can
// be read in two ways is 400, and neither decided about nor passed on.
func testPaths(t *testing.T, start func(*testing.T) (*testkit.Server, string)) {
	s, url := start(t)
	key, keyID := s.NewKey("acme.eu", `"permissions":["app:orders:read","app:invoices:read"]`)
	request := func(path string) string {
		return "GET " + path + " HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nAuthorization: Bearer " + key + "\r\n\r\n"
	}
	for _, path := range misleading {
		for _, path := range []string{path, path + "?page=2"} {
			if a := raw(t, url, request(path)); a.status != 400 || strings.Contains(a.body, "X-Orgd") {
				t.Errorf("%s: status %d: %s", path, a.status, a.body)
			}
		}
	}
	for _, path := range []string{"http://127.0.0.1/customers/other/../acme.eu/invoices", "http://127.0.0.1/orders/..;/status", "/orders#/../status"} {
		if a := raw(t, url, request(path)); a.status != 400 {
			t.Errorf("%s: status %d: %s", path, a.status, a.body)
		}
	}
	if list, _ := s.Must(200, "GET", "/orgs/acme.eu/access_log?api_key_id="+keyID, s.OperatorKey, "").JSON().([]any); len(list) != 0 {
		t.Errorf("%d of them were decided about: %v", len(list), list[0])
	}
	if n := s.Must(200, "GET", "/orgs/acme.eu/consumption", s.OperatorKey, "").JSON("meters", "api_calls", "own"); n != 0.0 {
		t.Errorf("acme.eu has %v api_calls", n)
	}

	// Clean paths are the same for orgd and for the product, as they came.
	paths := []string{"/orders", "/orders/1.2/...", "/orders/%C3%A9t%C3%A9?q=/../x;y//z%2f", "/orders/50%25/~a!b$c&d'e(f)*+,=:@", "/orders/.well-known", "/customers/acme.eu/invoices?to=..;/", "http://127.0.0.1/orders/1"}
	for i, path := range paths {
		a := raw(t, url, request(path))
		asked := strings.TrimPrefix(path, "http://127.0.0.1")
		if a.status != 200 || !strings.HasPrefix(a.body, "GET "+asked+"\n") {
			t.Errorf("%s: status %d, the product got %s", path, a.status, a.body)
		}
		list, _ := s.Must(200, "GET", "/orgs/acme.eu/access_log?api_key_id="+keyID, s.OperatorKey, "").JSON().([]any)
		decided, _, _ := strings.Cut(asked, "?")
		if len(list) != i+1 || list[0].(map[string]any)["path"] != decided {
			t.Errorf("%s: %d decisions: %v", path, len(list), list)
		}
	}
}

// The product gets the five values that orgd gave, or none, whatever a client
// sends, also in the variables that CGI makes of headers.
func testIdentity(t *testing.T, start func(*testing.T) (*testkit.Server, string)) {
	s, url := start(t)
	key, keyID := s.NewKey("acme.eu", `"permissions":["app:orders:read"]`)
	values := []string{"acme.eu", "acme", "acme/acme.eu", keyID, "app:orders:read"}
	var given strings.Builder
	for _, i := range []int{3, 0, 2, 4, 1} { // sorted
		fmt.Fprintf(&given, "HTTP_%s=%s\n", strings.ToUpper(strings.ReplaceAll(identity[i], "-", "_")), values[i])
	}
	all := func(spell func(string) string) string {
		var b strings.Builder
		for _, name := range identity {
			fmt.Fprintf(&b, "%s: forged\r\n", spell(name))
		}
		return b.String()
	}
	some := func(name string) string { // X-Orgd_Org-Id
		return strings.Replace(name, "d-", "d_", 1)
	}
	underscores := func(name string) string { return strings.ReplaceAll(name, "-", "_") }
	for name, headers := range map[string]string{
		"nothing":                       "",
		"the five":                      all(func(n string) string { return n }),
		"the five in lower case":        all(strings.ToLower),
		"the five in upper case":        all(strings.ToUpper),
		"the five, twice":               all(strings.ToLower) + all(func(n string) string { return n }),
		"the five with underscores":     all(underscores),
		"with underscores, lower case":  all(func(n string) string { return strings.ToLower(underscores(n)) }),
		"with some underscores":         all(some),
		"with some more":                all(func(n string) string { return strings.ToUpper(strings.Replace(n, "X-", "X_", 1)) }),
		"every spelling":                all(some) + all(underscores) + all(strings.ToLower) + all(func(n string) string { return strings.Replace(n, "X-", "x_", 1) }),
		"named in Connection":           "Connection: close, " + strings.Join(identity, ", ") + "\r\n",
		"named in a second Connection":  "Connection: close\r\nConnection: " + strings.Join(identity, ",") + "\r\n",
		"named in Connection and sent":  "Connection: close, x-orgd-org-id,X-ORGD-PATH ,\tX-Orgd-Key-Id\r\n" + all(strings.ToUpper),
		"named with underscores":        "Connection: close, X_Orgd_Org_Id\r\n" + all(underscores),
		"named in Connection, in pairs": "Connection: X-Orgd-Org-Id, close\r\nconnection: keep-alive, X-Orgd-Root-Id\r\n" + all(some),
		"what orgd is told":             "Connection: close, X-Forwarded-For, X-Forwarded-Uri, X-Forwarded-Method, X-Original-URI, X-Original-Method, Authorization-Info\r\nX-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Uri: /forged\r\nX_Forwarded_Uri: /forged\r\nX_Original_URI: /forged\r\n",
	} {
		if !strings.Contains(strings.ToLower(headers), "connection:") {
			headers += "Connection: close\r\n"
		}
		a := raw(t, url, "GET /orders HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer "+key+"\r\n"+headers+"\r\n")
		if got := variables(a.body); a.status != 200 || got != given.String() {
			t.Errorf("%s: status %d, the product's variables are\n%swant\n%s", name, a.status, got, given.String())
		}
		// Where orgd is not asked, nobody is anybody.
		a = raw(t, url, "GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\n"+headers+"\r\n")
		if got := variables(a.body); a.status != 200 || got != "" {
			t.Errorf("%s: where orgd is not asked: status %d, the product's variables are\n%s", name, a.status, got)
		}
	}
	// Trailers are fields too, for who reads them. A proxy that cannot leave them out
	// may refuse what can have some.
	trailers := all(func(n string) string { return n }) + all(underscores)
	for _, path := range []string{"/orders", "/status"} {
		for _, declared := range []string{"", "Trailer: X-Orgd-Org-Id, X_Orgd_Org_Id, X-Checksum\r\n"} {
			a := raw(t, url, "POST "+path+" HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer "+key+"\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"+declared+"\r\n1\r\nx\r\n0\r\n"+trailers+"\r\n")
			want := ""
			if path == "/orders" {
				want = given.String()
			}
			if got := variables(a.body); a.status != 411 && (a.status != 200 || got != want) {
				t.Errorf("%s with trailers (%q): status %d, the product's variables are\n%swant\n%s", path, declared, a.status, got, want)
			}
		}
	}
	// HTTP/2 needs no TLS where a proxy takes it without.
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), "POST", url+"/orders", struct{ io.Reader }{strings.NewReader("x")})
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Authorization": {"Bearer " + key}, "X_Orgd_Org_Id": {"forged"}, "X-Orgd-Path": {"forged"}}
	req.Trailer = http.Header{"X-Orgd-Org-Id": {"forged"}, "X_Orgd_Root_Id": {"forged"}}
	if resp, err := transport.RoundTrip(req); err == nil {
		defer resp.Body.Close()
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode == 200 && variables(string(b)) != given.String() {
			t.Errorf("HTTP/2 with trailers: the product's variables are\n%swant\n%s", variables(string(b)), given.String())
		}
	}
	for _, e := range s.Must(200, "GET", "/orgs/acme.eu/access_log?limit=1000&api_key_id="+keyID, s.OperatorKey, "").JSON().([]any) {
		if m := e.(map[string]any); m["path"] != "/orders" || m["ip"] != "127.0.0.1" {
			t.Errorf("a decision was about %v from %v", m["path"], m["ip"])
		}
	}
}

// variables returns the lines of a product's answer that are CGI variables.
func variables(body string) string {
	var b strings.Builder
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "HTTP_") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// Traefik and Envoy are not started here. What their examples make them send
// to orgd is decided as meant.
func TestTraefikAndEnvoy(t *testing.T) {
	s, replace, _ := protect(t)
	asked := "http://" + replace.Replace("127.0.0.1:8081")
	key, keyID := s.NewKey("acme.eu", `"permissions":["app:orders:read"]`)
	weak, _ := s.NewKey("acme.eu", `"permissions":["app:orders:write"]`)
	address := regexp.MustCompile(`(?m)^ *address: http://127\.0\.0\.1:8081(/\S+)$`).FindStringSubmatch(example(t, "traefik.yaml"))
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
		if a := ask(t, tt.method, asked+tt.path, key, "", tt.headers...); a.status != 200 || a.header.Get("X-Orgd-Org-Id") != "acme.eu" {
			t.Errorf("%s: status %d, header %v: %s", tt.name, a.status, a.header, a.body)
		}
		if a := ask(t, tt.method, asked+tt.path, weak, "", tt.headers...); a.status != 403 {
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

var clean = regexp.MustCompile(`^(/[^/;\\#\x00-\x1f\x7f]*)+$`)

// oneReading reports whether no program takes the path for another.
func oneReading(p string) bool {
	return clean.MatchString(p) && (p == "/" || path.Clean(p) == strings.TrimSuffix(p, "/")) && !encoded.MatchString(p)
}

var encoded = regexp.MustCompile(`(?i)%(25)*(2e|2f|5c|3b|[01][0-9a-f]|7f|c[01]|e0%(25)*[89]|f0%(25)*8)`)

// What Traefik and Envoy make of a path before anything looks at it, by their
// documentation, is what orgd is asked about and what the product gets. Either
// it has one reading then, or the example refuses it.
func TestTraefikAndEnvoyPaths(t *testing.T) {
	rule := regexp.MustCompile("rule: PathRegexp\\(`(.*)`\\)\n *priority: 1000000\n *service: product\n *middlewares: \\[refuse\\]").FindStringSubmatch(example(t, "traefik.yaml"))
	match := regexp.MustCompile(`routes:\n(?: *#.*\n)* *- match: \{safe_regex: \{regex: '(.*)'\}\}\n *direct_response: \{status: 400\}`).FindStringSubmatch(example(t, "envoy.yaml"))
	if rule == nil || match == nil {
		t.Fatal("the examples refuse no paths")
	}
	refused := map[string]func(string) (sent string, refused bool){
		"Traefik": func(p string) (string, bool) {
			// normalizePath, sanitizePath, and the rules' own view of the path.
			p = escape.ReplaceAllStringFunc(p, func(e string) string {
				if c, _ := url.PathUnescape(e); unreserved.MatchString(c) {
					return c
				}
				return strings.ToUpper(e)
			})
			u, err := url.ParseRequestURI(p)
			if err != nil || strings.Contains(p, "#") {
				return "", true
			}
			p = u.JoinPath().EscapedPath()
			routed := escape.ReplaceAllStringFunc(p, func(e string) string {
				c, _ := url.PathUnescape(e)
				if strings.Contains(":/?#[]@!$&'()*+,;=%", c) {
					return e
				}
				return c
			})
			return p, regexp.MustCompile(rule[1]).MatchString(routed)
		},
		"Envoy": func(p string) (string, bool) {
			if regexp.MustCompile(`(?i)%2f|%5c|%00`).MatchString(p) {
				return "", true // path_with_escaped_slashes_action
			}
			p = regexp.MustCompile(`(?i)%2e`).ReplaceAllString(strings.ReplaceAll(p, `\`, "/"), ".")
			cleaned := path.Clean(p)
			if strings.HasSuffix(p, "/") && cleaned != "/" {
				cleaned += "/"
			}
			return cleaned, regexp.MustCompile("^(?:" + match[1] + ")$").MatchString(cleaned)
		},
	}
	for name, proxy := range refused {
		n := 0
		for _, p := range misleading {
			if sent, refused := proxy(p); refused {
				n++
			} else if !oneReading(sent) {
				t.Errorf("%s passes %s on as %s", name, p, sent)
			}
		}
		if n < len(misleading)/2 {
			t.Errorf("%s refuses only %d of %d paths", name, n, len(misleading))
		}
		for _, p := range []string{"/orders", "/orders/1.2/...", "/orders/%C3%A9t%C3%A9", "/orders/50%25/~a!b$c&d'e(f)*+,=:@", "/orders/.well-known"} {
			if sent, refused := proxy(p); refused || sent != p {
				t.Errorf("%s sends %s as %s, refused %v", name, p, sent, refused)
			}
		}
	}
}

var (
	escape     = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)
	unreserved = regexp.MustCompile(`^[A-Za-z0-9._~-]$`)
)

// What Traefik and Envoy do with the identity that a client sends, by their
// documentation: it is gone before orgd is asked, however it is spelled, and
// also where orgd is not asked.
func TestTraefikAndEnvoyIdentity(t *testing.T) {
	var traefik struct {
		HTTP struct {
			Routers map[string]struct {
				Rule        string
				Middlewares []string
			}
			Middlewares map[string]struct {
				ForwardAuth *struct {
					AuthResponseHeaders      []string `yaml:"authResponseHeaders"`
					AuthResponseHeadersRegex string   `yaml:"authResponseHeadersRegex"`
				} `yaml:"forwardAuth"`
				Headers *struct {
					CustomRequestHeaders map[string]string `yaml:"customRequestHeaders"`
				}
			}
		}
	}
	if err := yaml.Unmarshal([]byte(example(t, "traefik.yaml")), &traefik); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(example(t, "traefik-static.yaml"), "\n      underscoreHeadersStrategy: delete\n") || !strings.Contains(example(t, "traefik-static.yaml"), "\n      sanitizePath: true\n") {
		t.Error("Traefik lets headers with underscores through, or does not clean paths")
	}
	for name, router := range traefik.HTTP.Routers {
		if slices.Contains(router.Middlewares, "refuse") {
			continue
		}
		safe := false
		for _, m := range router.Middlewares {
			m := traefik.HTTP.Middlewares[m]
			if f := m.ForwardAuth; f != nil {
				names := regexp.MustCompile(f.AuthResponseHeadersRegex)
				safe = true
				for _, id := range identity {
					for _, spelled := range []string{id, strings.ToLower(id), strings.ToUpper(id), strings.ReplaceAll(id, "-", "_"), "X_orgd-" + id[7:], "X-Orgd_" + id[7:]} {
						safe = safe && names.MatchString(spelled)
					}
				}
				safe = safe && !names.MatchString("X-Request-Id")
			}
			if h := m.Headers; h != nil && len(h.CustomRequestHeaders) >= len(identity) {
				safe = true
				for _, id := range identity {
					value, ok := h.CustomRequestHeaders[id]
					safe = safe && ok && value == ""
				}
			}
		}
		if !safe {
			t.Errorf("Traefik's router %s lets the client say who it is", name)
		}
	}

	envoy := example(t, "envoy.yaml")
	first := strings.Index(envoy, "- name: envoy.filters.http.header_mutation")
	if second := strings.Index(envoy, "- name: envoy.filters.http.ext_authz"); first < 0 || second < first {
		t.Error("Envoy asks orgd before it removes what the client says")
	}
	for _, id := range identity {
		if !strings.Contains(envoy, "- remove: "+strings.ToLower(id)+"\n") {
			t.Errorf("Envoy leaves the client's %s", id)
		}
	}
	for _, setting := range []string{"headers_with_underscores_action: REJECT_REQUEST", "normalize_path: true", "merge_slashes: true", "path_with_escaped_slashes_action: REJECT_REQUEST", "failure_mode_allow: false"} {
		if !strings.Contains(envoy, " "+setting+"\n") {
			t.Errorf("Envoy is not set to %s", setting)
		}
	}
	var any map[string]any
	if err := yaml.Unmarshal([]byte(envoy), &any); err != nil {
		t.Error(err)
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
