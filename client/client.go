// Package client is the Go client of orgd, the organization layer of a B2B
// product.
//
// A Client makes one method call into one HTTP request, repeats it when that
// is safe (see Client), and returns what the server answered as a typed value.
// Answers of the server that are not a success are *Error values. It depends
// on the standard library alone.
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Client calls one orgd server with one API key. It is safe for concurrent
// use.
//
// A request is repeated, up to WithRetries times and for as long as its
// context lasts, when that cannot do harm:
//
//   - after 429, and after 503 with the code unavailable: the server did nothing;
//   - after a refused connection: the server did not see the request;
//   - after a lost connection, 502, 504, or 503 with another code, if it was a
//     read, a PUT without If-Match, or a POST, which always carries an
//     Idempotency-Key. PATCH and DELETE are not repeated then: they may have
//     had their effect, and a second DELETE would be answered with 404.
//
// The wait doubles from a tenth of a second, or is what Retry-After says. A
// Retry-After of more than a minute is not waited for: the error is returned.
type Client struct {
	base      string
	key       string
	http      *http.Client
	retries   int
	userAgent string
}

// Option configures a Client.
type Option func(*Client)

// WithHTTPClient makes requests with c. The default has time limits for
// connecting, none for the whole request, and follows no redirects.
func WithHTTPClient(c *http.Client) Option { return func(cl *Client) { cl.http = c } }

// WithRetries sets how often a request is repeated at most, 3 by default; 0
// for never.
func WithRetries(n int) Option { return func(cl *Client) { cl.retries = n } }

// WithUserAgent sets the User-Agent, which the access log and the audit trail
// keep.
func WithUserAgent(s string) Option { return func(cl *Client) { cl.userAgent = s } }

// New returns a client of the server at a URL such as http://127.0.0.1:8080,
// with a base path if the server has one. The key is an API key or the
// operator key; it may be empty for ServiceStatus.
func New(url, key string, opts ...Option) *Client {
	c := &Client{base: strings.TrimRight(url, "/"), key: key, retries: 3, userAgent: "orgd-go-client"}
	for _, o := range opts {
		o(c)
	}
	if c.http == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.DialContext = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext
		t.MaxIdleConnsPerHost = 16
		c.http = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	return c
}

// CallOption changes a single call.
type CallOption func(*call)

// IfMatch lets the call succeed only if the resource still has this ETag,
// which is in the Meta of an earlier answer. Otherwise the call fails with
// status 412 and the code precondition_failed.
func IfMatch(etag string) CallOption { return func(c *call) { c.header("If-Match", etag) } }

// IdempotencyKey replaces the random Idempotency-Key of a call that creates
// something, so that it can be repeated by another process: for 24 hours the
// server answers the same call with the same key from memory.
func IdempotencyKey(k string) CallOption { return func(c *call) { c.idempotencyKey = k } }

// PageSize sets how many elements a list asks for at a time, from 1 to 1000,
// which is the default. It does not end the list.
func PageSize(n int) CallOption { return func(c *call) { c.pageSize = n } }

// Meta is what an answer holds besides its members. In the elements of a list
// only Raw is set.
type Meta struct {
	Raw       json.RawMessage // the representation, byte for byte
	ETag      string          // for IfMatch
	Receipt   string          // of the change in the audit trail: origin, sequence number and leaf hash
	RequestID string          // finds the request in the access log
}

func (m *Meta) meta() *Meta { return m }

// call is one call on its way to the server.
type call struct {
	method, path   string
	query          url.Values
	headers        http.Header
	contentType    string
	body           []byte
	progress       func(sent, total int64)
	idempotencyKey string
	once           bool // it has an effect each time, and takes no Idempotency-Key
	pageSize       int
	err            error // the call cannot be made
}

func newCall(method string, path []string, opts []CallOption) *call {
	var p strings.Builder
	for _, segment := range path {
		p.WriteByte('/')
		p.WriteString(url.PathEscape(segment))
	}
	c := &call{method: method, path: p.String(), query: url.Values{}, headers: http.Header{}, pageSize: 1000}
	for _, o := range opts {
		o(c)
	}
	return c
}

func (c *call) header(name, value string) {
	if value != "" {
		c.headers.Set(name, value)
	}
}

// set sets a query parameter unless the value is empty.
func (c *call) set(name, value string) *call {
	if value != "" {
		c.query.Set(name, value)
	}
	return c
}

func (c *call) setBool(name string, value bool) *call {
	if value {
		c.query.Set(name, "true")
	}
	return c
}

func (c *call) setTime(name string, t time.Time) *call {
	if !t.IsZero() {
		c.query.Set(name, t.UTC().Format(time.RFC3339Nano))
	}
	return c
}

// json sets the body.
func (c *call) json(v any) *call {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		c.err = fmt.Errorf("the request body is not valid JSON: %w", err)
	}
	c.body, c.contentType = b.Bytes(), "application/json"
	return c
}

// get is do for a result with a Meta.
func get[T any](ctx context.Context, cl *Client, c *call) (*T, error) {
	resp, body, err := cl.do(ctx, c)
	if err != nil {
		return nil, err
	}
	v := new(T)
	if err := decode(body, v); err != nil {
		return nil, err
	}
	if m, ok := any(v).(interface{ meta() *Meta }); ok {
		*m.meta() = Meta{Raw: body, ETag: resp.Header.Get("ETag"), Receipt: resp.Header.Get("Orgd-Audit-Receipt"),
			RequestID: resp.Header.Get("X-Request-Id")}
	}
	return v, nil
}

func decode(body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("the server's answer cannot be understood: %w", err)
	}
	return nil
}

// list returns the elements of all pages. It fetches a page when it is
// needed, and stops after the first error.
func list[T any](ctx context.Context, cl *Client, c *call) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		page := *c
		page.query = url.Values{}
		for name, values := range c.query {
			page.query[name] = values
		}
		page.query.Set("limit", strconv.Itoa(c.pageSize))
		for {
			resp, body, err := cl.do(ctx, &page)
			if err != nil {
				yield(zero, err)
				return
			}
			var elements []json.RawMessage
			if err := decode(body, &elements); err != nil {
				yield(zero, err)
				return
			}
			for _, raw := range elements {
				var v T
				if err := decode(raw, &v); err != nil {
					yield(zero, err)
					return
				}
				if m, ok := any(&v).(interface{ meta() *Meta }); ok {
					m.meta().Raw = raw
				}
				if !yield(v, nil) {
					return
				}
			}
			next := nextPage(resp.Header)
			if next == nil {
				return
			}
			page.query = next
		}
	}
}

// nextPage returns the query of the link to the next page; nil on the last
// page. A link always leads to the same path, and taking no more than its
// query keeps the key from going anywhere else, and works behind a proxy that
// serves orgd under a prefix.
func nextPage(h http.Header) url.Values {
	for _, value := range h.Values("Link") {
		for rest := value; ; {
			_, after, ok := strings.Cut(rest, "<")
			if !ok {
				break
			}
			target, params, ok := strings.Cut(after, ">")
			if !ok {
				break
			}
			rest = params
			if end := strings.Index(params, "<"); end >= 0 {
				params = params[:end]
			}
			for p := range strings.SplitSeq(params, ";") {
				name, v, _ := strings.Cut(strings.TrimRight(strings.TrimSpace(p), ", "), "=")
				if strings.EqualFold(strings.TrimSpace(name), "rel") && strings.EqualFold(strings.Trim(strings.TrimSpace(v), `"`), "next") {
					if u, err := url.Parse(target); err == nil {
						return u.Query()
					}
				}
			}
		}
	}
	return nil
}

// do makes the call and returns the answer, whose body has been read. A
// status other than 2xx is an *Error.
func (cl *Client) do(ctx context.Context, c *call) (*http.Response, []byte, error) {
	if c.err != nil {
		return nil, nil, c.err
	}
	if c.method == http.MethodPost && c.idempotencyKey == "" && !c.once {
		c.idempotencyKey = rand.Text()
	}
	for attempt := 0; ; attempt++ {
		resp, body, err := cl.try(ctx, c)
		if err == nil {
			return resp, body, nil
		}
		wait, again := c.again(err, attempt)
		if !again || attempt >= cl.retries || ctx.Err() != nil {
			return nil, nil, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, nil, fmt.Errorf("%w; before that: %w", context.Cause(ctx), err)
		}
	}
}

// Bounds of the wait before a request is repeated.
const (
	firstWait      = 100 * time.Millisecond
	longestBackoff = 5 * time.Second
	longestWait    = time.Minute
)

// again reports whether the call may be repeated after err, and when.
func (c *call) again(err error, attempt int) (time.Duration, bool) {
	backoff := min(longestBackoff, firstWait<<min(attempt, 10))
	backoff = backoff/2 + mrand.N(backoff/2+1)
	// repeatable says that a second request has the same effect as one.
	repeatable := c.idempotencyKey != "" || c.method == http.MethodGet ||
		c.method == http.MethodPut && c.headers.Get("If-Match") == ""
	var e *Error
	if !errors.As(err, &e) {
		var op *net.OpError
		network := errors.As(err, &op)
		var dns *net.DNSError
		if errors.As(err, &dns) && dns.IsNotFound {
			return 0, false
		}
		lost := network || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		return backoff, network && op.Op == "dial" || lost && repeatable
	}
	switch {
	case e.Status == http.StatusTooManyRequests, e.Status == http.StatusServiceUnavailable && e.Code == "unavailable":
	case e.Status == http.StatusConflict && e.Code == "request_in_flight":
		// An earlier attempt, whose connection was lost, is still at work.
	case e.Status == http.StatusBadGateway, e.Status == http.StatusServiceUnavailable, e.Status == http.StatusGatewayTimeout:
		if !repeatable {
			return 0, false
		}
	default:
		return 0, false
	}
	if e.RetryAfter > longestWait {
		return 0, false
	}
	return max(backoff, e.RetryAfter), true
}

// maxAnswer bounds an answer, in bytes: a page of 1000 organizations with 64
// KiB of customizations each stays below it.
const maxAnswer = 128 << 20

// largeBody is the size from which a body waits for the server's consent.
const largeBody = 1 << 20

// request returns the request of a call.
func (cl *Client) request(ctx context.Context, c *call) (*http.Request, error) {
	target := cl.base + c.path
	if len(c.query) > 0 {
		target += "?" + c.query.Encode()
	}
	var body io.Reader
	if c.body != nil {
		body = bytes.NewReader(c.body)
		if c.progress != nil {
			body = &progressReader{r: body, total: int64(len(c.body)), report: c.progress}
		}
	}
	req, err := http.NewRequestWithContext(ctx, c.method, target, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = int64(len(c.body))
	for name, values := range c.headers {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", cl.userAgent)
	req.Header.Set("Accept", "application/json")
	if cl.key != "" {
		req.Header.Set("Authorization", "Bearer "+cl.key)
	}
	if c.contentType != "" {
		req.Header.Set("Content-Type", c.contentType)
	}
	if c.idempotencyKey != "" {
		req.Header.Set("Idempotency-Key", c.idempotencyKey)
	}
	if len(c.body) > largeBody {
		req.Header.Set("Expect", "100-continue")
	}
	return req, nil
}

func (cl *Client) try(ctx context.Context, c *call) (*http.Response, []byte, error) {
	req, err := cl.request(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	resp, err := cl.http.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, nil, fmt.Errorf("the server's answer was cut short: %w", err)
	}
	if len(answer) > maxAnswer {
		return nil, nil, fmt.Errorf("the server's answer is longer than %d bytes", maxAnswer)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return nil, nil, newError(resp, answer)
	}
	return resp, answer, nil
}

// progressReader tells how much of it has been read.
type progressReader struct {
	r           io.Reader
	sent, total int64
	report      func(sent, total int64)
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if n > 0 {
		p.sent += int64(n)
		p.report(p.sent, p.total)
	}
	return n, err
}

// retryAfter returns what a Retry-After header asks for, in whole seconds or
// as a date (RFC 9110); 0 without one.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if s, err := strconv.Atoi(v); err == nil && s >= 0 && s < math.MaxInt32 {
		return time.Duration(s) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}
