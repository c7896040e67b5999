package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// script answers requests with one step after the other.
type script struct {
	steps    []func(*http.Request) (*http.Response, error)
	requests []*http.Request
	at       []time.Time
	bodies   []string
}

func (s *script) RoundTrip(r *http.Request) (*http.Response, error) {
	body := ""
	if r.Body != nil {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		body = string(b)
	}
	s.requests, s.at, s.bodies = append(s.requests, r), append(s.at, time.Now()), append(s.bodies, body)
	if len(s.requests) > len(s.steps) {
		return nil, errors.New("one request too many")
	}
	return s.steps[len(s.requests)-1](r)
}

func answer(status int, body string, headers ...string) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) {
		h := http.Header{"X-Request-Id": {"req_1"}, "Content-Type": {"application/json"}}
		if strings.Contains(body, `"code"`) {
			h.Set("Content-Type", "application/problem+json")
		}
		for i := 0; i+1 < len(headers); i += 2 {
			h.Set(headers[i], headers[i+1])
		}
		return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body))}, nil
	}
}

func fail(err error) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) { return nil, err }
}

func scripted(steps ...func(*http.Request) (*http.Response, error)) (*Client, *script) {
	s := &script{steps: steps}
	c := New("http://orgd.test/api/v1/", "secret")
	c.http.Transport = s
	return c, s
}

var (
	ok          = answer(200, `{"id":"a","name":"A"}`)
	unavailable = answer(503, `{"code":"unavailable","detail":"d"}`)
	unknown     = answer(503, `{"code":"outcome_unknown","detail":"d"}`)
	limited     = answer(429, `{"code":"rate_limited","detail":"d"}`, "Retry-After", "7")
	lost        = fail(&net.OpError{Op: "read", Err: syscall.ECONNRESET})
	refused     = fail(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED})
	cut         = fail(io.ErrUnexpectedEOF)
	gateway     = answer(502, "<h1>Bad Gateway</h1>", "Content-Type", "text/html")
)

func TestRepeats(t *testing.T) {
	ctx := context.Background()
	read := func(c *Client) error { _, err := c.Org(ctx, "a"); return err }
	create := func(c *Client) error { _, err := c.CreateOrg(ctx, OrgCreate{Name: "A"}); return err }
	update := func(c *Client) error { _, err := c.UpdateOrg(ctx, "a", OrgUpdate{}); return err }
	remove := func(c *Client) error { _, err := c.DeleteOrg(ctx, "a", DeleteOptions{}); return err }
	put := func(c *Client) error { _, err := c.PutCustomizations(ctx, "a", CustomizationsPut{}); return err }
	putMatching := func(c *Client) error {
		_, err := c.PutCustomizations(ctx, "a", CustomizationsPut{}, IfMatch(`"v1"`))
		return err
	}
	for _, tt := range []struct {
		name  string
		call  func(*Client) error
		first func(*http.Request) (*http.Response, error)
		again bool
	}{
		{"read, unavailable", read, unavailable, true},
		{"read, lost", read, lost, true},
		{"read, cut short", read, cut, true},
		{"read, gateway", read, gateway, true},
		{"read, refused", read, refused, true},
		{"read, not found", read, answer(404, `{"code":"not_found"}`), false},
		{"read, internal error", read, answer(500, `{"code":"internal"}`), false},
		{"read, wrong certificate", read, fail(errors.New("x509")), false},
		{"read, unknown host", read, fail(&net.OpError{Op: "dial", Err: &net.DNSError{IsNotFound: true}}), false},
		{"create, unavailable", create, unavailable, true},
		{"create, outcome unknown", create, unknown, true},
		{"create, lost", create, lost, true},
		{"create, gateway", create, gateway, true},
		{"create, in flight", create, answer(409, `{"code":"request_in_flight"}`), true},
		{"create, id taken", create, answer(409, `{"code":"id_taken"}`), false},
		{"update, unavailable", update, unavailable, true},
		{"update, limited", update, limited, true},
		{"update, refused", update, refused, true},
		{"update, outcome unknown", update, unknown, false},
		{"update, lost", update, lost, false},
		{"delete, unavailable", remove, unavailable, true},
		{"delete, lost", remove, lost, false},
		{"delete, gateway", remove, gateway, false},
		{"put, lost", put, lost, true},
		{"put, outcome unknown", put, unknown, true},
		{"conditional put, lost", putMatching, lost, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s := scripted(tt.first, ok)
				err := tt.call(c)
				if tt.again != (err == nil) || tt.again != (len(s.requests) == 2) {
					t.Errorf("%d requests, error %v; want repeated %v", len(s.requests), err, tt.again)
				}
			})
		})
	}
}

func TestIdempotencyKeyStaysTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := scripted(lost, unavailable, ok, ok, ok)
		for range 2 {
			if _, err := c.CreateOrg(t.Context(), OrgCreate{Name: "A"}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.CreateOrg(t.Context(), OrgCreate{Name: "A"}, IdempotencyKey("mine")); err != nil {
			t.Fatal(err)
		}
		key := func(i int) string { return s.requests[i].Header.Get("Idempotency-Key") }
		if key(0) == "" || key(0) != key(1) || key(1) != key(2) {
			t.Errorf("keys of one call: %q %q %q", key(0), key(1), key(2))
		}
		if key(3) == key(0) {
			t.Error("another call has the same key")
		}
		if key(4) != "mine" {
			t.Errorf("key %q", key(4))
		}
		if s.bodies[0] != s.bodies[2] {
			t.Errorf("body %q, then %q", s.bodies[0], s.bodies[2])
		}
	})
}

func TestWaitsAsLongAsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := scripted(limited, ok)
		if _, err := c.Org(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if d := s.at[1].Sub(s.at[0]); d < 7*time.Second || d > 8*time.Second {
			t.Errorf("waited %v, want 7 s", d)
		}

		c, s = scripted(answer(429, `{"code":"limit_exceeded"}`, "Retry-After", "86400"))
		var e *Error
		if _, err := c.Org(t.Context(), "a"); !errors.As(err, &e) || e.RetryAfter != 24*time.Hour || len(s.requests) != 1 {
			t.Errorf("%v after %d requests", err, len(s.requests))
		}

		c, s = scripted(unavailable, unavailable, unavailable, unavailable)
		if _, err := c.Org(t.Context(), "a"); !IsCode(err, "unavailable") || len(s.requests) != 4 {
			t.Errorf("%v after %d requests, want 4", err, len(s.requests))
		}
	})
}

func TestEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := scripted(limited)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.Org(ctx, "a")
		if !errors.Is(err, context.DeadlineExceeded) || !IsCode(err, "rate_limited") || len(s.requests) != 1 {
			t.Errorf("%v after %d requests", err, len(s.requests))
		}
	})
}

func TestListsFollowLinks(t *testing.T) {
	page := func(link string, ids ...string) func(*http.Request) (*http.Response, error) {
		var orgs []string
		for _, id := range ids {
			orgs = append(orgs, fmt.Sprintf(`{"id":%q,"future":1}`, id))
		}
		return answer(200, "["+strings.Join(orgs, ",")+"]", "Link", link)
	}
	c, s := scripted(
		page(`</orgs/a/descendants?cursor=c1&depth=2&limit=2>; rel="next"`, "b", "c"),
		page(`<http://elsewhere.test/?x=1>; rel="last", <http://elsewhere.test/orgs/a/descendants?cursor=c2>; rel=next`, "d"),
		page(``))
	var ids, raw []string
	for o, err := range c.Descendants(t.Context(), "a", 2, PageSize(2)) {
		if err != nil {
			t.Fatal(err)
		}
		ids, raw = append(ids, o.ID), append(raw, string(o.Raw))
	}
	if got := strings.Join(ids, " "); got != "b c d" {
		t.Errorf("got %s", got)
	}
	if raw[0] != `{"id":"b","future":1}` {
		t.Errorf("Raw is %s", raw[0])
	}
	for i, want := range []string{"depth=2&limit=2", "cursor=c1&depth=2&limit=2", "cursor=c2"} {
		u := s.requests[i].URL
		if u.RawQuery != want || u.Host != "orgd.test" || u.Path != "/api/v1/orgs/a/descendants" {
			t.Errorf("request %d went to %s, want query %s", i, u, want)
		}
	}
}

func TestListStopsAtAnError(t *testing.T) {
	c, _ := scripted(answer(200, `[{"id":"b"}]`, "Link", `<?cursor=c1>; rel="next"`), answer(400, `{"code":"invalid_cursor"}`))
	var got []string
	for o, err := range c.Children(t.Context(), "a") {
		if err != nil {
			got = append(got, err.Error())
			continue
		}
		got = append(got, o.ID)
	}
	if len(got) != 2 || got[0] != "b" || !strings.HasPrefix(got[1], "invalid_cursor") {
		t.Errorf("got %q", got)
	}
}

func TestErrorHasAllMembers(t *testing.T) {
	c, _ := scripted(answer(400, `{"type":"urn:orgd:problem:import_invalid","title":"The import is invalid","status":400,"code":"import_invalid",
		"detail":"1 row is invalid.","fix":"Mend it.","instance":"urn:x","limit_bytes":3,"errors":[{"line":4,"pointer":"/name","detail":"is empty"}]}`))
	_, err := c.Import(t.Context(), strings.NewReader("id\n"), ImportOptions{Format: CSV})
	var e *Error
	if !errors.As(err, &e) {
		t.Fatal(err)
	}
	if e.Status != 400 || e.Code != "import_invalid" || e.Title != "The import is invalid" || e.Detail != "1 row is invalid." || e.Fix != "Mend it." ||
		e.Instance != "urn:x" || e.RequestID != "req_1" || len(e.Errors) != 1 || e.Errors[0].Line != 4 || e.Errors[0].Pointer != "/name" {
		t.Errorf("got %+v", e)
	}
	var further struct {
		Limit int `json:"limit_bytes"`
	}
	if err := json.Unmarshal(e.Raw, &further); err != nil || further.Limit != 3 {
		t.Errorf("Raw is %s", e.Raw)
	}
}

func TestErrorOfSomethingElse(t *testing.T) {
	for _, tt := range []struct {
		step func(*http.Request) (*http.Response, error)
		want string
	}{
		{answer(403, "<html>", "Content-Type", "text/html"), "answered 403 Forbidden"},
		{answer(308, "", "Location", "https://orgd.test/"), "redirects to https://orgd.test/"},
	} {
		c, _ := scripted(tt.step)
		var e *Error
		if _, err := c.WhoAmI(t.Context()); !errors.As(err, &e) || e.Code != "" || e.Raw != nil || !strings.Contains(e.Detail, tt.want) {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
}

func TestRequest(t *testing.T) {
	c, s := scripted(answer(200, `{"id":"a b","name":"A"}`, "Etag", `"v2"`, "Orgd-Audit-Receipt", "o 1 ff"))
	description := ""
	o, err := c.UpdateOrg(t.Context(), "a/b", OrgUpdate{Description: &description, Customizations: json.RawMessage(`{"x":null,"big":12345678901234567890,"t":"<&>"}`)}, IfMatch(`"v1"`))
	if err != nil {
		t.Fatal(err)
	}
	r := s.requests[0]
	if r.URL.EscapedPath() != "/api/v1/orgs/a%2Fb" || r.Header.Get("If-Match") != `"v1"` || r.Header.Get("Authorization") != "Bearer secret" ||
		r.Header.Get("Content-Type") != "application/merge-patch+json" || r.Header.Get("Idempotency-Key") != "" {
		t.Errorf("request %s %v", r.URL, r.Header)
	}
	if want := `{"description":"","customizations":{"x":null,"big":12345678901234567890,"t":"<&>"}}` + "\n"; s.bodies[0] != want {
		t.Errorf("body %s, want %s", s.bodies[0], want)
	}
	if o.ETag != `"v2"` || o.Receipt != "o 1 ff" || o.RequestID != "req_1" {
		t.Errorf("meta %+v", o.Meta)
	}
	if _, err := c.PutCustomizations(t.Context(), "a", CustomizationsPut{Customizations: json.RawMessage(`{`)}); err == nil || len(s.requests) != 1 {
		t.Errorf("a body that is not JSON: %v, %d requests", err, len(s.requests))
	}
}

func TestImportTellsItsProgress(t *testing.T) {
	c, s := scripted(ok)
	var sent, total int64
	rows := strings.Repeat("x", 1<<20+1)
	if _, err := c.Import(t.Context(), strings.NewReader(rows), ImportOptions{Format: NDJSON, ParentID: "p", DryRun: true,
		Progress: func(s, t int64) { sent, total = s, t }}); err != nil {
		t.Fatal(err)
	}
	if sent != int64(len(rows)) || total != sent || s.bodies[0] != rows {
		t.Errorf("progress %d of %d, want %d", sent, total, len(rows))
	}
	r := s.requests[0]
	if r.Header.Get("Expect") != "100-continue" || r.Header.Get("Content-Type") != NDJSON || r.URL.RawQuery != "dry_run=true&parent_id=p" {
		t.Errorf("request %s %v", r.URL, r.Header)
	}
}
