package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orgd/orgd/client"
	"github.com/orgd/orgd/internal/testkit"
)

// wire is what a guard's client sends through: it can be held, and cut.
type wire struct {
	calls atomic.Int64
	hold  atomic.Pointer[chan struct{}]
	cut   atomic.Bool
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	w.calls.Add(1)
	if w.cut.Load() {
		return nil, io.ErrUnexpectedEOF
	}
	if c := w.hold.Load(); c != nil {
		<-*c
	}
	return http.DefaultTransport.RoundTrip(r)
}

type product struct {
	*httptest.Server
	orgd  *testkit.Server
	wire  *wire
	began atomic.Int64 // handlers that were called
	ended chan error   // what a handler met that could not answer
}

// startProduct serves a product behind a guard: GET and POST /orders, and
// /orgs/{org}/orders.
func startProduct(t *testing.T, opts client.GuardOptions) *product {
	t.Helper()
	p := &product{orgd: testkit.Start(t, "sqlite"), wire: &wire{}, ended: make(chan error, 1)}
	p.orgd.Must(200, "POST", "/orgs/import", p.orgd.OperatorKey, "id,parent_id,name\nacme,,Acme\nacme.eu,acme,Europe\nother,,Other\n", "Content-Type", "text/csv")
	verifier, _ := p.orgd.NewKey("acme", `"permissions":["keys:verify"]`)
	g := client.NewGuard(client.New(p.orgd.URL, verifier, client.WithHTTPClient(&http.Client{Transport: p.wire}), client.WithRetries(0)), opts)
	mux := http.NewServeMux()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.began.Add(1)
		v := client.VerdictFrom(r.Context())
		w.Header().Set("X-Product", "yes")
		_, err := fmt.Fprintf(w, "%s of %s", v.KeyID, strings.Join(v.Path, "/"))
		if err != nil {
			<-r.Context().Done()
			p.ended <- context.Cause(r.Context())
		}
	})
	mux.Handle("/orders", g.Protect(client.Demand{Permissions: []string{"app:orders"}, Meter: "api_calls", Action: "ORDERS"}, handler))
	mux.Handle("/orgs/{org}/orders", g.Protect(client.Demand{Meter: "api_calls", Quantity: "0.5", Org: func(r *http.Request) string { return r.PathValue("org") }}, handler))
	mux.Handle("/stream", g.Protect(client.Demand{Action: "STREAM"}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := errors.Join(rc.SetWriteDeadline(time.Now().Add(time.Minute)), rc.Flush()); err != nil {
			p.ended <- err
			return
		}
		w.(http.Flusher).Flush()
		fmt.Fprint(w, "streamed")
	})))
	mux.Handle("/silent", g.Protect(client.Demand{Action: "SILENT"}, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Outer", "yes")
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *product) ask(t *testing.T, method, path, key string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequest(method, p.URL+path, nil)
	if err != nil {
		t.Error(err)
		return 0, "", nil
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Error(err)
		return 0, "", nil
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), resp.Header
}

func (p *product) calls(orgID string) any {
	return p.orgd.Must(200, "GET", "/orgs/"+orgID+"/consumption", p.orgd.OperatorKey, "").JSON("meters", "api_calls", "own")
}

func TestGuard(t *testing.T) {
	p := startProduct(t, client.GuardOptions{})
	key, id := p.orgd.NewKey("acme.eu", `"permissions":["app:orders"]`)
	weak, _ := p.orgd.NewKey("acme.eu", `"permissions":["app:other"]`)
	foreign, _ := p.orgd.NewKey("other", `"permissions":["app:orders"]`)
	limited, _ := p.orgd.NewKey("acme", `"permissions":["app:orders"],"rate_limit":{"requests":1,"period_seconds":3600}`)
	remote, _ := p.orgd.NewKey("acme", `"permissions":["app:orders"],"allowed_cidrs":["203.0.113.0/24"]`)
	for range 2 { // the second time with what the guard remembers
		for _, tt := range []struct {
			method, path, key string
			status            int
			code              string
		}{
			{"GET", "/orders", key, 200, ""}, {"POST", "/orders", key, 200, ""}, {"GET", "/orgs/acme.eu/orders", key, 200, ""},
			{"GET", "/orders", "", 401, "unauthorized"}, {"GET", "/orders", "orgd_nothing", 401, "unauthorized"}, {"GET", "/orders", foreign, 401, "unauthorized"},
			{"GET", "/orders", weak, 403, "permission_denied"}, {"POST", "/orders", remote, 403, "permission_denied"},
			{"GET", "/orgs/acme/orders", key, 403, "permission_denied"}, {"GET", "/orgs/nobody/orders", key, 403, "permission_denied"},
		} {
			status, body, header := p.ask(t, tt.method, tt.path, tt.key)
			if status != tt.status || tt.code != "" && !strings.Contains(body, `"code":"`+tt.code+`"`) || tt.code == "" && body != id+" of acme/acme.eu" {
				t.Errorf("%s %s: %d %s, want %d %s", tt.method, tt.path, status, body, tt.status, tt.code)
			}
			if (header.Get("X-Product") == "yes") != (tt.status == 200) || header.Get("X-Outer") != "yes" || (header.Get("WWW-Authenticate") == "Bearer") != (tt.status == 401) {
				t.Errorf("%s %s: header %v", tt.method, tt.path, header)
			}
		}
	}
	if status, _, _ := p.ask(t, "GET", "/orders", limited); status != 200 {
		t.Errorf("within the rate limit: %d", status)
	}
	// What is remembered does not let it through.
	if status, body, header := p.ask(t, "GET", "/orders", limited); status != 429 || header.Get("Retry-After") == "" || header.Get("X-Product") != "" {
		t.Errorf("beyond the rate limit: %d %s %v", status, body, header)
	}
	if n := p.calls("acme.eu"); n != 5.0 {
		t.Errorf("acme.eu has %v calls, want 4 of 1 and 2 of 0.5", n)
	}
	if n := p.calls("acme"); n != 1.0 {
		t.Errorf("acme has %v calls, want 1", n)
	}
	event := p.orgd.Must(200, "GET", "/orgs/acme.eu/access_log?action=ORDERS&limit=1", p.orgd.OperatorKey, "").JSON().([]any)[0].(map[string]any)
	if fmt.Sprint(event["method"], event["path"], event["status"], event["ip"], event["user_agent"]) != "GET/ordersDENIED127.0.0.1Go-http-client/1.1" {
		t.Errorf("the last event is %v", event)
	}
}

// Every request that is answered is counted once, and is one event.
func TestGuardCountsExactly(t *testing.T) {
	p := startProduct(t, client.GuardOptions{})
	key, id := p.orgd.NewKey("acme.eu", `"permissions":["app:orders"]`)
	var wg sync.WaitGroup
	var answered atomic.Int64
	for range 8 {
		wg.Go(func() {
			for range 40 {
				if status, _, _ := p.ask(t, "GET", "/orders", key); status == 200 {
					answered.Add(1)
				}
			}
		})
	}
	wg.Wait()
	http.DefaultClient.CloseIdleConnections()
	if n := answered.Load(); n != 320 || p.calls("acme.eu") != float64(n) {
		t.Errorf("%d were answered, %v counted", n, p.calls("acme.eu"))
	}
	if list, _ := p.orgd.Must(200, "GET", "/orgs/acme.eu/access_log?limit=1000&api_key_id="+id, p.orgd.OperatorKey, "").JSON().([]any); len(list) != 320 {
		t.Errorf("%d events", len(list))
	}
}

// A request that starts early is answered only after its verdict, and not at
// all if the key has been revoked.
func TestGuardRevokedKey(t *testing.T) {
	p := startProduct(t, client.GuardOptions{TTL: 10 * time.Second})
	key, id := p.orgd.NewKey("acme.eu", `"permissions":["app:orders"]`)
	if status, body, _ := p.ask(t, "GET", "/orders", key); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	hold := make(chan struct{})
	p.wire.hold.Store(&hold)
	answers := make(chan int, 2)
	for _, method := range []string{"GET", "POST"} {
		go func() {
			status, body, header := p.ask(t, method, "/orders", key)
			if strings.Contains(body, id) || header.Get("X-Product") != "" || header.Get("X-Outer") != "yes" {
				t.Errorf("%s: the handler's answer came through: %v %s", method, header, body)
			}
			answers <- status
		}()
	}
	for p.began.Load() < 2 || p.wire.calls.Load() < 3 {
		time.Sleep(time.Millisecond)
	}
	p.orgd.Must(200, "DELETE", "/orgs/acme.eu/api_keys/"+id, p.orgd.OperatorKey, "")
	select {
	case status := <-answers:
		t.Errorf("answered with %d before the verdict", status)
	case <-time.After(50 * time.Millisecond):
	}
	close(hold)
	if a, b := <-answers, <-answers; a != 401 || b != 401 {
		t.Errorf("status %d and %d", a, b)
	}
	if n := p.began.Load(); n != 2 {
		t.Errorf("%d handlers were called; the POST should not have been", n)
	}
	if err := <-p.ended; err == nil || err == context.Canceled {
		t.Errorf("the handler's context ended with %v", err)
	}
	// It is not asked about again for a second, and is not let in.
	before := p.wire.calls.Load()
	if status, _, _ := p.ask(t, "GET", "/orders", key); status != 401 || p.wire.calls.Load() != before {
		t.Errorf("status %d after %d more questions", status, p.wire.calls.Load()-before)
	}
	time.Sleep(1100 * time.Millisecond)
	if status, _, _ := p.ask(t, "GET", "/orders", key); status != 401 || p.wire.calls.Load() != before+1 {
		t.Errorf("status %d after %d more questions", status, p.wire.calls.Load()-before)
	}
}

// A handler can do what the server's ResponseWriter can, once the request is
// allowed; and one that says nothing is denied all the same.
func TestGuardStreams(t *testing.T) {
	p := startProduct(t, client.GuardOptions{})
	key, id := p.orgd.NewKey("acme.eu", `"permissions":["app:orders"]`)
	for range 2 {
		if status, body, _ := p.ask(t, "GET", "/stream", key); status != 200 || body != "streamed" {
			t.Errorf("%d %s", status, body)
		}
		if status, body, _ := p.ask(t, "GET", "/silent", key); status != 200 || body != "" {
			t.Errorf("%d %s", status, body)
		}
	}
	p.orgd.Must(200, "DELETE", "/orgs/acme.eu/api_keys/"+id, p.orgd.OperatorKey, "")
	hold := make(chan struct{})
	p.wire.hold.Store(&hold)
	before := p.wire.calls.Load()
	answers := make(chan int, 2)
	for _, path := range []string{"/stream", "/silent"} {
		go func() {
			status, _, _ := p.ask(t, "GET", path, key)
			answers <- status
		}()
	}
	for p.wire.calls.Load() < before+2 {
		time.Sleep(time.Millisecond)
	}
	close(hold)
	if a, b := <-answers, <-answers; a != 401 || b != 401 {
		t.Errorf("status %d and %d", a, b)
	}
	if err := <-p.ended; !errors.Is(err, http.ErrNotSupported) {
		t.Errorf("the handler's stream ended with %v", err)
	}
}

// Nothing is answered that orgd has not recorded.
func TestGuardWithoutOrgd(t *testing.T) {
	p := startProduct(t, client.GuardOptions{Timeout: 100 * time.Millisecond})
	key, _ := p.orgd.NewKey("acme.eu", `"permissions":["app:orders"]`)
	p.ask(t, "GET", "/orders", key)
	p.wire.cut.Store(true)
	for _, method := range []string{"GET", "POST", "GET"} {
		if status, body, header := p.ask(t, method, "/orders", key); status != 503 || header.Get("Retry-After") != "1" || !strings.Contains(body, `"code":"unavailable"`) {
			t.Errorf("%s: %d %s", method, status, body)
		}
	}
	if n := p.calls("acme.eu"); n != 1.0 {
		t.Errorf("%v calls", n)
	}
}

// What is remembered is bounded.
func TestGuardBounded(t *testing.T) {
	p := startProduct(t, client.GuardOptions{MaxEntries: 3})
	for range 3 {
		key, _ := p.orgd.NewKey("acme.eu", `"permissions":["app:orders"]`)
		for range 3 {
			if status, body, _ := p.ask(t, "GET", "/orders", key); status != 200 {
				t.Errorf("%d %s", status, body)
			}
			p.ask(t, "GET", "/orders", "orgd_nothing")
			p.ask(t, "GET", "/orgs/acme.eu/orders", key)
		}
	}
	if n := p.calls("acme.eu"); n != 13.5 {
		t.Errorf("%v calls", n)
	}
}

func ExampleGuard() {
	c := client.New("http://127.0.0.1:8080", "orgd_…") // a key with the permission keys:verify
	g := client.NewGuard(c, client.GuardOptions{})
	orders := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := client.VerdictFrom(r.Context())
		fmt.Fprintln(w, "The orders of", v.OrgID)
	})
	http.Handle("GET /orders", g.Protect(client.Demand{Permissions: []string{"app:orders:read"}, Meter: "api_calls", Action: "READ_ORDERS"}, orders))
}
