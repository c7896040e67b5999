package client

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Guard protects handlers of net/http with orgd: it lets a request through if
// Verify allows it. Every request is verified by itself, so every one that is
// answered has been counted and is in the access log, exactly once; nothing is
// gathered here that a crash could lose. A request that is answered with 503
// because orgd's own answer was lost may have been counted.
//
// To save time, the guard remembers for a moment which keys were allowed. A
// GET, HEAD or OPTIONS request of such a key is given to its handler at once,
// while it is being verified; the first byte of the answer waits for the
// verdict. A request that turns out to be denied gets the denial instead, and
// its context is cancelled. So a key that was revoked gets no answer any more,
// from the moment at which orgd knows. What a handler does other than to answer
// it may have done, for at most TTL after the last verdict; and the Verdict in
// its context may be as old as that. Requests of other methods are verified
// before the handler sees them.
//
// A key that orgd does not know is refused without asking again for one
// second. Other denials are not remembered.
//
// What is decided about is what the handler gets. A request whose path can be
// read in more than one way, such as /customers/a/..%2Fb or /a;x/b, is refused
// and not verified: its Verdict has the code invalid_request. And a handler gets
// no header field named X-Orgd-…, with _ for - or not, which only the client can
// have sent: whose request it is stands in its context (see VerdictFrom).
//
// The methods of a Guard are safe for concurrent use.
type Guard struct {
	client *Client
	opts   GuardOptions

	mu      sync.Mutex
	entries map[guardKey]guardEntry
}

// GuardOptions configure a Guard. The zero value of a field means its default.
type GuardOptions struct {
	// TTL is how long a key counts as recently allowed. Default 2 s, at most
	// 10 s; negative for never: then every request is verified before its
	// handler sees it.
	TTL time.Duration
	// MaxEntries is how many verdicts are remembered at most. Default 10,000.
	MaxEntries int
	// Timeout bounds how long a request waits for its verdict. Default 5 s.
	Timeout time.Duration
	// ClientIP returns the address of the client. Default: that of the
	// connection. Behind a proxy it must be taken from a header that the proxy
	// sets and that no client can. A port is left out; what is no address is
	// unknown, and then a key that is bound to addresses is refused.
	ClientIP func(*http.Request) string
	// Deny answers a request that is denied, or that could not be verified:
	// then v is nil and err says why. Default: a problem document (RFC 9457)
	// with the status 400, 401, 403, 429 or 503.
	Deny func(w http.ResponseWriter, r *http.Request, v *Verdict, err error)
}

// Demand is what a Guard demands of a request, and how it is counted and
// recorded.
type Demand struct {
	Permissions []string
	Meter       string      // none if empty
	Quantity    json.Number // 1 if empty
	Action      string      // METHOD of the request if empty
	// Org returns the organization that a request is about. If it is nil, that
	// is the key's own; if it returns an empty string, the request is denied.
	Org func(*http.Request) string
}

const (
	maxGuardTTL = 10 * time.Second
	// refusedTTL is how long a key that is not known is refused without asking.
	refusedTTL = time.Second
)

// NewGuard returns a guard that verifies with c, whose key must have the
// permission keys:verify.
func NewGuard(c *Client, opts GuardOptions) *Guard {
	if opts.TTL == 0 {
		opts.TTL = 2 * time.Second
	}
	opts.TTL = min(opts.TTL, maxGuardTTL)
	if opts.MaxEntries <= 0 {
		opts.MaxEntries = 10_000
	}
	if opts.Timeout <= 0 {
		opts.Timeout = 5 * time.Second
	}
	if opts.ClientIP == nil {
		opts.ClientIP = func(r *http.Request) string {
			return r.RemoteAddr
		}
	}
	if opts.Deny == nil {
		opts.Deny = deny
	}
	return &Guard{client: c, opts: opts, entries: map[guardKey]guardEntry{}}
}

// guardKey is what a verdict depends on. The key itself is kept as a hash.
type guardKey struct {
	key    [sha256.Size]byte
	demand *Demand // nil for a key that is not known at all
	org    string
	ip     string
}

type guardEntry struct {
	verdict *Verdict
	until   time.Time
}

type verdictKey struct{}

// VerdictFrom returns the verdict about the request that a context belongs to:
// whose request it is. It returns nil outside of a Guard's handlers.
func VerdictFrom(ctx context.Context) *Verdict {
	v, _ := ctx.Value(verdictKey{}).(*Verdict)
	return v
}

// Protect returns a handler that gives requests that satisfy the demand to
// next, with the verdict in their context.
func (g *Guard) Protect(d Demand, next http.Handler) http.Handler {
	demand := &d
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if unclear(r) {
			g.opts.Deny(w, r, &Verdict{Code: "invalid_request", Detail: "The path of the request can be taken for another one when it is cleaned or decoded."}, nil)
			return
		}
		r = withoutIdentity(r)
		q := Request{Permissions: d.Permissions, Meter: d.Meter, Quantity: d.Quantity, IP: readAddress(g.opts.ClientIP(r)),
			Action: d.Action, Method: r.Method, Path: r.URL.EscapedPath(), UserAgent: r.UserAgent(),
			RequestID: r.Header.Get("X-Request-Id")}
		if q.Action == "" {
			q.Action = r.Method
		}
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if q.Key = strings.TrimSpace(token); q.Key == "" || !strings.EqualFold(scheme, "Bearer") {
			g.opts.Deny(w, r, &Verdict{Code: "unauthorized", Detail: "The request has no valid API key."}, nil)
			return
		}
		if d.Org != nil {
			if q.OrgID = d.Org(r); q.OrgID == "" {
				g.opts.Deny(w, r, &Verdict{Code: "permission_denied", Detail: "The request names no organization."}, nil)
				return
			}
		}
		k := guardKey{key: sha256.Sum256([]byte(q.Key)), demand: demand, org: q.OrgID, ip: q.IP}
		known := g.remembered(guardKey{key: k.key})
		if known != nil {
			g.opts.Deny(w, r, known, nil)
			return
		}
		safe := r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions
		if known = g.remembered(k); known != nil && safe {
			g.early(w, r, q, k, known, next)
			return
		}
		v, err := g.verify(r.Context(), q, k)
		if err != nil || !v.Valid {
			g.opts.Deny(w, r, v, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), verdictKey{}, v)))
	})
}

// remembered returns the verdict about a request like this one, nil if there
// is none that is young enough.
func (g *Guard) remembered(k guardKey) *Verdict {
	g.mu.Lock()
	defer g.mu.Unlock()
	if e, ok := g.entries[k]; ok && time.Now().Before(e.until) {
		return e.verdict
	}
	return nil
}

// verify verifies a request and remembers the verdict.
func (g *Guard) verify(ctx context.Context, q Request, k guardKey) (*Verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, g.opts.Timeout)
	defer cancel()
	// The verdict is as old as the question.
	asked := time.Now()
	v, err := g.client.Verify(ctx, q)
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case err != nil:
		delete(g.entries, k)
		return nil, err
	case v.Valid && g.opts.TTL > 0:
		g.remember(k, guardEntry{v, asked.Add(g.opts.TTL)})
	default:
		delete(g.entries, k)
		if v.Code == "unauthorized" {
			g.remember(guardKey{key: k.key}, guardEntry{v, asked.Add(refusedTTL)})
		}
	}
	return v, nil
}

// remember keeps an entry, in the place of any other if there is no room.
func (g *Guard) remember(k guardKey, e guardEntry) {
	if _, ok := g.entries[k]; !ok && len(g.entries) >= g.opts.MaxEntries {
		now := time.Now()
		seen := 0
		var victim guardKey
		for other, o := range g.entries { // in random order
			victim = other
			if seen++; seen == 16 || now.After(o.until) {
				break
			}
		}
		delete(g.entries, victim)
	}
	g.entries[k] = e
}

// errDenied is what a handler gets that answers a request that is denied.
var errDenied = errors.New("orgd: the request is denied")

// early gives the request to its handler while it is being verified.
func (g *Guard) early(w http.ResponseWriter, r *http.Request, q Request, k guardKey, known *Verdict, next http.Handler) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	gate := &gate{w: w, before: w.Header().Clone(), decided: make(chan struct{})}
	go func() {
		gate.verdict, gate.err = g.verify(r.Context(), q, k)
		if gate.denied() {
			cancel(errDenied)
		}
		close(gate.decided)
	}()
	gate.deny = func() { g.opts.Deny(w, r, gate.verdict, gate.err) }
	next.ServeHTTP(gate, r.WithContext(context.WithValue(ctx, verdictKey{}, known)))
	gate.open()
}

// gate is a ResponseWriter that lets nothing through before the verdict, and
// nothing at all if the request is denied. Like any ResponseWriter it is used
// by one goroutine at a time.
type gate struct {
	w        http.ResponseWriter
	before   http.Header // what others had set before the handler was called
	deny     func()
	decided  chan struct{}
	verdict  *Verdict // after decided
	err      error    // after decided
	answered bool     // the denial has been written
}

func (g *gate) denied() bool { return g.err != nil || !g.verdict.Valid }

// open waits for the verdict. It reports whether the answer may be given; if
// not, it has been.
func (g *gate) open() bool {
	<-g.decided
	if !g.denied() {
		return true
	}
	if !g.answered {
		g.answered = true
		h := g.w.Header()
		clear(h) // the handler's
		maps.Copy(h, g.before)
		g.deny()
	}
	return false
}

func (g *gate) Header() http.Header {
	if g.answered {
		return http.Header{}
	}
	return g.w.Header()
}

func (g *gate) WriteHeader(status int) {
	if g.open() {
		g.w.WriteHeader(status)
	}
}

func (g *gate) Write(b []byte) (int, error) {
	if !g.open() {
		return 0, errDenied
	}
	return g.w.Write(b)
}

// Flush implements http.Flusher.
func (g *gate) Flush() {
	if g.open() {
		http.NewResponseController(g.w).Flush()
	}
}

// Unwrap lets http.ResponseController reach the rest of what the server can
// do, once the request is allowed.
func (g *gate) Unwrap() http.ResponseWriter {
	if !g.open() {
		return refusing{}
	}
	return g.w
}

// refusing is the ResponseWriter of a request that has been denied.
type refusing struct{}

func (refusing) Header() http.Header       { return http.Header{} }
func (refusing) WriteHeader(int)           {}
func (refusing) Write([]byte) (int, error) { return 0, errDenied }

// deny answers with a problem document.
func deny(w http.ResponseWriter, _ *http.Request, v *Verdict, err error) {
	p := struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
		Code   string `json:"code"`
	}{Status: http.StatusServiceUnavailable, Code: "unavailable", Detail: "The request could not be verified."}
	h := w.Header()
	if err == nil {
		p.Code, p.Detail = v.Code, v.Detail
		switch v.Code {
		case "invalid_request":
			p.Status = http.StatusBadRequest
		case "unauthorized":
			p.Status = http.StatusUnauthorized
			h.Set("WWW-Authenticate", "Bearer")
		case "rate_limited", "limit_exceeded":
			p.Status = http.StatusTooManyRequests
		default:
			p.Status = http.StatusForbidden
		}
		if v.RetryAfterSeconds > 0 {
			h.Set("Retry-After", strconv.FormatInt(v.RetryAfterSeconds, 10))
		}
	} else {
		h.Set("Retry-After", "1")
	}
	p.Type, p.Title = "about:blank#"+p.Code, http.StatusText(p.Status)
	body, _ := json.Marshal(p)
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	w.Write(body)
}
