package web_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/budget"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/web"
)

// desk is a surface for people: a cookie says who they are, failures are plain
// text, and nothing that they do is counted.
type desk struct {
	mu       sync.Mutex
	sessions map[string]*auth.Actor
}

func (d *desk) surface() *web.Surface {
	return &web.Surface{
		Path: "/desk",
		Credential: func(r *http.Request) string {
			c, err := r.Cookie("session")
			if err != nil {
				return ""
			}
			return c.Value
		},
		Authenticate: func(_ context.Context, _ org.Login, credential string, _ netip.Addr) (org.Login, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			if a := d.sessions[credential]; a != nil {
				return org.Login{Actor: a}, nil
			}
			return org.Login{}, problem.New(problem.Unauthorized, "Please log in.")
		},
		Fail: func(r *web.Request, e *problem.Error) *web.Response {
			return &web.Response{Status: e.Code.Status(), ContentType: "text/plain; charset=utf-8",
				Body: fmt.Appendf(nil, "Sorry: %s\n%s\n", e.Code, r.ID)}
		},
		Count: func(*web.Request) ([]access.Usage, *metering.Reservation) { return nil, nil },
	}
}

func (d *desk) logOut(session string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.sessions, session)
}

func person(name, orgID string, permissions ...string) *auth.Actor {
	return &auth.Actor{Kind: "person", ID: "per_" + name, Name: name, OrgID: orgID, RootID: orgID, Path: orgID + "/",
		Grants: []auth.Grant{{Path: orgID + "/", Reach: key.ReachSubtree, Permissions: permissions}}}
}

// A second surface goes the whole way of a request, and nothing of the API's shows
// in its answers or is counted for it.
func TestSecondSurface(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	for _, id := range []string{"acme", "other"} {
		s.Must(201, "POST", "/orgs", s.OperatorKey, fmt.Sprintf(`{"id":%q,"name":"N"}`, id))
	}
	apiKey, _ := s.NewKey("acme", `"permissions":["orgs:read"]`)

	d := &desk{sessions: map[string]*auth.Actor{
		"jo": person("jo", "acme", key.OrgsRead, key.OrgsWrite), "jo2": person("jo", "acme", key.OrgsRead, key.OrgsWrite),
		"al": person("al", "other", key.OrgsRead), "no": {Kind: "person", ID: "per_no", Name: "no", OrgID: "acme", RootID: "acme", Path: "acme/"},
	}}
	surface := d.surface()
	text := func(s string) (*web.Response, error) {
		return &web.Response{Status: http.StatusOK, ContentType: "text/plain; charset=utf-8", Body: []byte(s)}, nil
	}
	made := 0
	entered, leave := make(chan bool), make(chan bool)
	reads := web.Rule{Target: "org_id", Permissions: []string{key.OrgsRead}}
	routes := []web.Route{
		{Method: "GET", Pattern: "/orgs/{org_id}", Operation: "getOrg", Action: "GET_ORG", Rule: reads,
			Handle: func(r *web.Request) (*web.Response, error) { return web.JSON(http.StatusOK, r.Org.ID), nil }},
		{Method: "GET", Pattern: "/desk/orgs/{org_id}", Surface: surface, Operation: "deskOrg", Action: "DESK_ORG", Rule: reads,
			Handle: func(r *web.Request) (*web.Response, error) { return text(r.Org.ID + " for " + r.Actor.Name) }},
		{Method: "POST", Pattern: "/desk/orgs/{org_id}/notes", Surface: surface, Operation: "deskNote", Action: "DESK_NOTE", MaxBody: 10,
			Rule: web.Rule{Target: "org_id", Permissions: []string{key.OrgsWrite}}, Handle: func(r *web.Request) (*web.Response, error) {
				b, err := r.Raw()
				if err != nil {
					return nil, err
				}
				made++
				return text(fmt.Sprintf("note %d: %s", made, b))
			}},
		{Method: "GET", Pattern: "/desk/home", Surface: surface, Operation: "deskHome", Action: "DESK_HOME",
			Handle: func(r *web.Request) (*web.Response, error) { return text("hello") }},
		{Method: "GET", Pattern: "/desk/all", Surface: surface, Operation: "deskAll", Action: "DESK_ALL", Rule: web.Rule{Operator: true},
			Handle: func(r *web.Request) (*web.Response, error) { return text("everything") }},
		{Method: "GET", Pattern: "/desk/panic", Surface: surface, Operation: "deskPanic", Action: "DESK_PANIC",
			Handle: func(*web.Request) (*web.Response, error) { panic("a secret of the server") }},
		{Method: "GET", Pattern: "/desk/slow", Surface: surface, Operation: "deskSlow", Action: "DESK_SLOW",
			Handle: func(*web.Request) (*web.Response, error) { entered <- true; <-leave; return text("slow") }},
		{Method: "GET", Pattern: "/desk/feed", Surface: surface, Operation: "deskFeed", Action: "DESK_FEED",
			Handle: func(r *web.Request) (*web.Response, error) {
				return web.Follow(&web.Feed{News: org.NewNews(func() bool { return true }), RootID: "acme",
					Next: func(context.Context) (web.Messages, error) { return web.Messages{}, nil }}), nil
			}},
	}
	metrics := prometheus.NewRegistry()
	// One request at a time has room, whoever makes it.
	bound := budget.New(budget.Limits{budget.Requests: 1, budget.Bytes: 64 << 20, budget.Expensive: 2, budget.Streams: 10,
		budget.RequestsPerSecond: 1000, budget.ChangesPerSecond: 1000})
	handler, err := web.NewServer(web.Config{Service: s.Service, Metering: s.Metering, Recorder: s.Recorder, Limiter: auth.NewLimiter(time.Now(), func() int { return 1 }),
		Log: slog.New(slog.DiscardHandler), Now: time.Now, Metrics: metrics, Budget: bound, BasePath: "/base"}, routes)
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(handler)
	defer ts.Close()
	ask := func(method, path, session, body string, headers ...string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequest(method, ts.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if session != "" {
			req.AddCookie(&http.Cookie{Name: "session", Value: session})
		}
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(b)
	}
	fails := func(what string, status int, code problem.Code, resp *http.Response, body string) {
		t.Helper()
		id := resp.Header.Get("X-Request-Id")
		if resp.StatusCode != status || id == "" || body != fmt.Sprintf("Sorry: %s\n%s\n", code, id) || resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("%s: status %d, %s %q", what, resp.StatusCode, resp.Header.Get("Content-Type"), body)
		}
		for _, name := range []string{"WWW-Authenticate", "Retry-After", "X-Orgd-Code", "RateLimit", "Link"} {
			if v := resp.Header.Get(name); v != "" {
				t.Errorf("%s: the API's header %s: %s", what, name, v)
			}
		}
		if resp.Header.Get("Cache-Control") != "no-store" || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: the headers of every answer are %v", what, resp.Header)
		}
	}

	for _, tt := range []struct {
		what, method, path, session, body string
		status                            int
		code                              problem.Code
		headers                           []string
	}{
		{"an unknown path", "GET", "/desk/nothing", "jo", "", 404, problem.NotFound, nil},
		{"the path itself", "GET", "/desk", "jo", "", 404, problem.NotFound, nil},
		{"an unknown path below the base path", "GET", "/base/desk/nothing", "", "", 404, problem.NotFound, nil},
		{"a path that is not clean", "GET", "/desk//home", "jo", "", 404, problem.NotFound, nil},
		{"nobody", "GET", "/desk/home", "", "", 401, problem.Unauthorized, nil},
		{"an unknown session", "GET", "/desk/orgs/acme", "who", "", 401, problem.Unauthorized, nil},
		{"a key of the API", "GET", "/desk/orgs/acme", "", "", 401, problem.Unauthorized, []string{"Authorization", "Bearer " + apiKey}},
		{"the operator's key", "GET", "/desk/all", "", "", 401, problem.Unauthorized, []string{"Authorization", "Bearer " + s.OperatorKey}},
		{"nothing granted", "GET", "/desk/home", "no", "", 403, problem.PermissionDenied, nil},
		{"a permission that is missing", "POST", "/desk/orgs/other/notes", "al", "x", 403, problem.PermissionDenied, nil},
		{"what is the operator's", "GET", "/desk/all", "jo", "", 403, problem.PermissionDenied, nil},
		{"a foreign organization", "GET", "/desk/orgs/other", "jo", "", 404, problem.NotFound, nil},
		{"an absent organization", "GET", "/desk/orgs/absent", "jo", "", 404, problem.NotFound, nil},
		{"another method", "DELETE", "/desk/home", "jo", "", 405, problem.MethodNotAllowed, nil},
		{"a body that is too large", "POST", "/desk/orgs/acme/notes", "jo", "more than ten", 413, problem.TooLarge, nil},
		{"a parameter that the call does not take", "GET", "/desk/home?x=1", "jo", "", 400, problem.InvalidParameter, nil},
		{"an empty precondition", "POST", "/desk/orgs/acme/notes", "jo", "x", 400, problem.InvalidParameter, []string{"If-Match", ""}},
		{"a panic", "GET", "/desk/panic", "jo", "", 500, problem.Internal, nil},
	} {
		resp, body := ask(tt.method, tt.path, tt.session, tt.body, tt.headers...)
		fails(tt.what, tt.status, tt.code, resp, body)
		if allow := resp.Header.Get("Allow"); (tt.status == 405) != (allow == "GET, HEAD") {
			t.Errorf("%s: Allow is %q", tt.what, allow)
		}
	}
	succeeds := func(method, path, session, body, want string, headers ...string) {
		t.Helper()
		if resp, got := ask(method, path, session, body, headers...); resp.StatusCode != 200 || got != want {
			t.Errorf("%s %s: status %d, %q", method, path, resp.StatusCode, got)
		}
	}
	succeeds("GET", "/desk/orgs/acme", "jo", "", "acme for jo")
	succeeds("GET", "/base/desk/orgs/acme", "jo", "", "acme for jo")
	succeeds("GET", "/desk/home", "al", "", "hello")

	// An answer is kept for a session, and no other one opens it.
	for range 2 {
		succeeds("POST", "/desk/orgs/acme/notes", "jo", "a", "note 1: a", "Idempotency-Key", "once")
	}
	resp, body := ask("POST", "/desk/orgs/acme/notes", "jo2", "a", "Idempotency-Key", "once")
	fails("another session", 409, problem.IdempotencyKeyReused, resp, body)

	slow := make(chan bool)
	go func() {
		succeeds("GET", "/desk/slow", "al", "", "slow")
		close(slow)
	}()
	<-entered
	resp, body = ask("GET", "/desk/home", "jo", "")
	fails("no room in the budget", 503, problem.Unavailable, resp, body)
	leave <- true
	<-slow

	// A session that ends while it follows something is told so in the words of its
	// surface, whatever lines they have.
	req, _ := http.NewRequest("GET", ts.URL+"/desk/feed", nil)
	req.AddCookie(&http.Cookie{Name: "session", Value: "jo2"})
	feed, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer feed.Body.Close()
	d.logOut("jo2")
	var lines []string
	for in := bufio.NewScanner(feed.Body); in.Scan(); {
		lines = append(lines, in.Text())
	}
	if n := slices.Index(lines, "event: problem"); n < 0 || strings.Join(lines[n:], "\n") != "event: problem\ndata: Sorry: unauthorized\ndata: "+feed.Header.Get("X-Request-Id")+"\ndata: \n" {
		t.Errorf("the feed ends with %q", lines)
	}

	// The API beside it is as ever.
	for _, tt := range []struct {
		path, bearer string
		status       int
		challenge    string
	}{{"/orgs/acme", apiKey, 200, ""}, {"/orgs/acme", "", 401, "Bearer"}, {"/orgs/other", apiKey, 404, ""}, {"/deskless", "", 404, ""}, {"/nothing/desk", "", 404, ""}} {
		resp, body := ask("GET", tt.path, "jo", "", "Authorization", "Bearer "+tt.bearer)
		if resp.StatusCode != tt.status || resp.Header.Get("WWW-Authenticate") != tt.challenge || !strings.HasSuffix(resp.Header.Get("Content-Type"), "json") {
			t.Errorf("GET %s of the API: status %d, %v, %s", tt.path, resp.StatusCode, resp.Header, body)
		}
	}

	// All of it is measured, what somebody did is in the access log, and only what the
	// key did is counted.
	if n := total(t, metrics, "orgd_unknown_keys_total"); n != 1 {
		t.Errorf("%v requests with unknown keys, want that of the API", n)
	}
	if n := total(t, metrics, "orgd_http_requests_total"); n != 18+3+3+2+1+5 {
		t.Errorf("%v requests are measured", n)
	}
	if n := total(t, metrics, "orgd_budget_refusals_total"); n != 1 {
		t.Errorf("%v refusals are measured", n)
	}
	got := map[string]int{}
	for _, e := range s.Must(200, "GET", "/orgs/acme/access_log?limit=1000", s.OperatorKey, "").JSON().([]any) {
		e := e.(map[string]any)
		if e["action"] != "CREATE_KEY" && e["action"] != "CREATE_ORG" && e["action"] != "GET_ACCESS_LOG" {
			got[fmt.Sprint(e["user"], " ", e["action"], " ", e["status"], " ", e["api_key_id"] == nil)]++
		}
	}
	want := map[string]int{"jo DESK_ORG SUCCESS true": 2, "jo DESK_ORG DENIED true": 1, "jo DESK_ORG FAILURE true": 1, "no DESK_HOME DENIED true": 1, "jo DESK_ALL DENIED true": 1,
		"jo DESK_NOTE FAILURE true": 3, "jo DESK_NOTE SUCCESS true": 2, "jo DESK_PANIC FAILURE true": 1, "jo DESK_HOME FAILURE true": 2, "jo DESK_FEED SUCCESS true": 1,
		"test GET_ORG SUCCESS false": 1, "test GET_ORG DENIED false": 1}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("in the access log are\n%v, want\n%v", got, want)
	}
	for id, n := range map[string]float64{"acme": 2, "other": 0} {
		if calls := s.Must(200, "GET", "/orgs/"+id+"/consumption", s.OperatorKey, "").JSON("meters", "api_calls", "total"); calls != n {
			t.Errorf("%v api_calls of %s, want %v", calls, id, n)
		}
	}
}

// total returns the sum of a metric over its labels.
func total(t *testing.T, metrics prometheus.Gatherer, name string) (sum float64) {
	t.Helper()
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// A closed gate refuses as the surface does that a request is for.
func TestGateOfSurfaces(t *testing.T) {
	gate := web.NewGate("/base", "The server is starting.", []*web.Surface{(&desk{}).surface()}).On(web.Main)
	for path, want := range map[string]string{
		"/desk": "text/plain; charset=utf-8", "/desk/home": "text/plain; charset=utf-8", "/base/desk/home": "text/plain; charset=utf-8",
		"/deskless": "application/problem+json", "/": "application/problem+json", "/base": "application/problem+json", "/orgs/desk": "application/problem+json",
	} {
		w := httptest.NewRecorder()
		gate.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Content-Type") != want || w.Header().Get("X-Request-Id") == "" {
			t.Errorf("GET %s: status %d, %v", path, w.Code, w.Header())
		}
	}
}
