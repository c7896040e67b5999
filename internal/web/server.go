package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/background"
	"github.com/orgd/orgd/internal/budget"
	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

// Handler answers a request that its route's rule has let through.
type Handler func(r *Request) (*Response, error)

// Route is one call and who may make it.
type Route struct {
	Method  string // empty for any
	Pattern string // of http.ServeMux, without the method
	// Prefix also serves every path below Pattern, as it is: it belongs to
	// another request.
	Prefix bool
	// Surface is whose call it is; nil for the API's.
	Surface *Surface
	// Listeners are where the call can be made; Main alone if there are none.
	Listeners []Listener
	Operation string // its operationId in the API description
	Action    string // what the access log calls it
	Rule      Rule
	MaxBody   int64 // 0 means MaxBody
	Swell     Swell // the zero Swell means that of most calls
	// Prepare runs before the request is authenticated. It makes the
	// Request.Decision of a route that decides about the request that it
	// stands for.
	Prepare func(r *Request) error
	// NoReplay says that the call changes nothing for which an answer could
	// be kept: it takes no Idempotency-Key.
	NoReplay bool
	// Room is how many bytes are charged to a GET before its answer is made:
	// see the budget of bytes.
	Room int64
	// Probe says that machines make the call again and again: it is logged at
	// level debug, unless the one before failed and this one does not, or the
	// other way round.
	Probe bool
	// Expensive tells whether the request is one of which only a few are
	// worked on at the same time. It is asked once the request is permitted;
	// the work starts when its body has been read. Nil for never.
	Expensive func(r *Request) bool
	// Query is what the query may have. It is looked at once the request is
	// permitted, just before its handler runs; that of a route with Prepare, and
	// of one whose Rule is Open, is left to the route.
	Query []Parameter
	// Following is what the query may have instead where it has the parameter
	// follow: the answer is a Feed then. Nil if there is no such.
	Following []Parameter
	Handle    Handler
}

// Rule says who may make a call. The zero Rule lets through whoever sees the
// organization that they belong to, as every key does, and the operator.
type Rule struct {
	Open        bool     // no key needed; nothing is recorded
	Target      string   // the path value that names the organization that the call is about
	Permissions []string // all of these
	Operator    bool     // only the operator
	// Check replaces the search for the Target where the call is about an
	// organization that cannot be seen yet or any more. It returns the root
	// that the request belongs to.
	Check func(r *Request) error
	// May checks what the call takes beyond the Permissions, once these are
	// there. It does without the body: nobody reads that for an actor who may
	// not act.
	May func(r *Request) error
}

// Recorder keeps what was accessed. RecordAt returns once the record survives
// a crash of the process.
//
// Begin and End enclose a request that is to be recorded: its month is not closed
// in between.
type Recorder interface {
	Begin() time.Time
	End(began time.Time)
	RecordAt(access.Record) (access.Position, error)
	// Ready fails if Record would.
	Ready() error
}

// Server serves routes.
type Server struct {
	service  *org.Service
	metering *metering.Service
	recorder Recorder
	limiter  *auth.Limiter
	budgets  *budgets
	api      *Surface
	log      *slog.Logger
	now      func() time.Time
	trusted  []netip.Prefix
	tables   [listeners]*table // nil where there is no such listener
	basePath string
	inFlight sync.Map
	feeds    feeds
	stopped  chan struct{}
	stopping func() // closes stopped

	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	unknown  prometheus.Counter
}

// Config is what a Server works with.
type Config struct {
	Service        *org.Service
	Metering       *metering.Service
	Recorder       Recorder
	Limiter        *auth.Limiter
	Log            *slog.Logger
	Now            func() time.Time
	TrustedProxies []netip.Prefix
	Listeners      []Listener // besides Main
	BasePath       string     // "" or "/api/v1": a second place where the routes are served
	Metrics        prometheus.Registerer
	Budget         *budget.Budget // nil for none
}

// NewServer returns a server of the routes.
func NewServer(c Config, routes []Route) (*Server, error) {
	s := &Server{service: c.Service, metering: c.Metering, recorder: c.Recorder, limiter: c.Limiter, log: c.Log, now: c.Now,
		trusted: c.TrustedProxies, basePath: strings.TrimSuffix(c.BasePath, "/"),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "orgd_http_requests_total",
			Help: "Answered requests by operation and status."}, []string{"operation", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "orgd_http_request_duration_seconds",
			Help: "Time to answer a request.", Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5, 30}}, []string{"operation"}),
		unknown: prometheus.NewCounter(prometheus.CounterOpts{Name: "orgd_unknown_keys_total",
			Help: "Requests with a key that names no organization, or with none."}),
	}
	s.api = s.apiSurface()
	s.stopped = make(chan struct{})
	s.stopping = sync.OnceFunc(func() { close(s.stopped) })
	following := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "orgd_open_feeds", Help: "Clients that follow a log."}, func() float64 {
		s.feeds.mu.Lock()
		defer s.feeds.mu.Unlock()
		return float64(s.feeds.open)
	})
	for _, m := range []prometheus.Collector{s.requests, s.duration, s.unknown, following} {
		if err := c.Metrics.Register(m); err != nil {
			return nil, err
		}
	}
	var err error
	if s.budgets, err = newBudgets(c.Budget, c.Now, c.Metrics); err != nil {
		return nil, err
	}
	s.newTable(Main)
	for _, l := range c.Listeners {
		s.newTable(l)
	}
	bases := slices.Compact([]string{"", s.basePath})
	for i := range routes {
		rt := &routes[i]
		if !rt.Rule.Open && rt.Action == "" {
			return nil, fmt.Errorf("the route %s %s has no action for the access log", rt.Method, rt.Pattern)
		}
		h := s.handler(rt)
		for _, t := range s.tablesOf(rt) {
			s.addSurface(t, rt.Surface, bases)
			for _, base := range bases {
				if err := t.add(rt, base, h); err != nil {
					return nil, fmt.Errorf("calls below the base path %s cannot be told from others; choose another, such as /api/v1: %w", s.basePath, err)
				}
			}
		}
	}
	return s, nil
}

func (s *Server) handler(rt *Route) http.Handler {
	surface := rt.Surface.or(s.api)
	duration := s.duration.WithLabelValues(rt.Operation)
	var probes background.Spell // those that fail
	var counters sync.Map       // status → prometheus.Counter
	maxBody := rt.MaxBody
	if maxBody == 0 {
		maxBody = MaxBody
	}
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		start := s.begin(rt)
		r := &Request{Request: hr, ID: requestID(hr), At: start.UTC().Truncate(time.Microsecond), maxBody: maxBody, server: s, route: rt, surface: surface, underWay: !rt.Rule.Open}
		defer s.end(r)
		r.IP, r.Trusted = s.origin(hr)
		r.address = AddressText(r.IP)
		r.failsAgain = rt.Probe && probes.Failing()
		defer r.ticket.Leave()
		w.Header()["X-Request-Id"] = []string{r.ID}
		resp, err := s.answer(rt, r)
		if err == nil {
			err = s.settle(r, resp)
		}
		if err == nil {
			err = s.openStream(r, resp)
		}
		if err == nil && resp.Feed != nil {
			if err = s.feeds.enter(r.Actor.ID); err == nil {
				defer s.feeds.leave(r.Actor.ID)
			}
		}
		if err != nil {
			resp = s.failed(rt, r, err)
		}
		if !rt.Rule.Open {
			if lost := s.record(rt, r, resp.Status); lost != nil {
				resp = s.failed(rt, r, unrecorded(r, err, lost))
			}
		}
		s.end(r)
		resp.Header = append(resp.Header, r.extra...)
		var sent error
		if resp.Stream != nil {
			resp.Stream = r.considerate(resp.Stream)
		}
		if resp.Feed == nil {
			sent = resp.send(w, hr.Method == http.MethodHead)
		}
		end := s.now()
		took := end.Sub(start)
		duration.Observe(took.Seconds())
		counter, ok := counters.Load(resp.Status)
		if !ok {
			counter, _ = counters.LoadOrStore(resp.Status, s.requests.WithLabelValues(rt.Operation, strconv.Itoa(resp.Status)))
		}
		counter.(prometheus.Counter).Inc()
		level := slog.LevelInfo
		if rt.Probe && !probes.Turned(resp.Status >= 400) {
			level = slog.LevelDebug
		}
		s.logRequest(level, rt, r, resp.Status, end, took)
		if resp.Feed != nil {
			resp.send(w, true)
			if hr.Method != http.MethodHead {
				r.ticket.Follow()
				s.follow(w, rt, r, resp.Feed)
			}
		}
		if sent != nil && resp.Stream != nil {
			s.log.Warn("an answer was cut short", "request_id", r.ID, "error", sent)
			panic(http.ErrAbortHandler)
		}
	})
}

// begin returns when a request begins.
func (s *Server) begin(rt *Route) time.Time {
	if rt.Rule.Open {
		return s.now() // it is not recorded
	}
	return s.recorder.Begin()
}

// end says that a request is recorded, or will not be.
func (s *Server) end(r *Request) {
	if r.underWay {
		r.underWay = false
		s.recorder.End(r.At)
	}
}

// done returns what the request did that cannot be taken back, as the beginning
// of a sentence; empty if nothing.
func (r *Request) done() string {
	if r.Did == "" && r.Receipt.Origin != "" {
		return "The change was made"
	}
	return r.Did
}

// unrecorded is the answer when the access could not be recorded: nothing is
// answered that would leave no trace. failed is the error that would have been
// the answer, nil for none.
func unrecorded(r *Request, failed, err error) error {
	did := r.done()
	switch {
	case problem.Is(failed, problem.OutcomeUnknown):
		unknown := *problem.From(failed)
		return unknown.WithCause(errors.Join(unknown.Cause, err))
	case did == "":
		return err
	}
	return problem.New(problem.OutcomeUnknown, "%s, but the access to this call could not be recorded.", did).
		WithFix("Read the state before you repeat the request, or repeat it with the same Idempotency-Key.").WithCause(err)
}

// answer takes the request along the fixed order of checks: authenticate,
// find and see, permission; precondition and body are the handler's.
func (s *Server) answer(rt *Route, r *Request) (resp *Response, err error) {
	defer func() {
		if v := recover(); v != nil {
			if v == http.ErrAbortHandler {
				panic(v)
			}
			resp, err = nil, fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	if rt.Rule.Open {
		return rt.Handle(r)
	}
	if rt.Prepare != nil {
		if err := rt.Prepare(r); err != nil {
			return nil, err
		}
	}
	if err := s.recorder.Ready(); err != nil {
		return nil, err
	}
	err = s.authenticate(r)
	if r.Decision != nil {
		r.Decision.Actor, r.Decision.OldSecret = r.Actor, r.OldSecret
	}
	if err != nil {
		return nil, err
	}
	if err := s.enter(rt, r); err != nil {
		return nil, err
	}
	if err := s.permit(rt, r); err != nil {
		return nil, err
	}
	if rt.Expensive != nil && s.budgets.Budget != nil && rt.Expensive(r) {
		r.expensive = true
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			if err := r.begin(); err != nil {
				return nil, err
			}
		}
	}
	if rt.Prepare != nil {
		// Preconditions and the Idempotency-Key of a request that is decided
		// about are for its product.
		return rt.Handle(r)
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		if err := r.checkIfMatch(); err != nil {
			return nil, err
		}
	}
	if r.Method == http.MethodPost && r.Header["Idempotency-Key"] != nil {
		if rt.NoReplay {
			return nil, problem.New(problem.InvalidRequest, "This call takes no Idempotency-Key: its answer would not be true any more when it is repeated.").
				WithFix("Leave out the header Idempotency-Key.")
		}
		return s.once(r, rt.work)
	}
	return s.handle(rt, r)
}

// permit finds what the request is about and checks that its actor may make
// it.
func (s *Server) permit(rt *Route, r *Request) (err error) {
	rule := &rt.Rule
	switch {
	case rule.Check != nil:
		if err := rule.Check(r); err != nil {
			return err
		}
	case rule.Target != "":
		if r.Org, err = s.service.Find(r.Context(), r.Actor, r.PathValue(rule.Target)); err != nil {
			return err
		}
	}
	if err := rule.permits(r); err != nil {
		return err
	}
	if rule.May != nil {
		return rule.May(r)
	}
	return nil
}

// permits checks what the rule asks of an actor who sees what the call is
// about.
// Where it is about no organization, that is the actor's own, and the actor must
// see that: who is granted nothing there is refused by every rule.
func (rule *Rule) permits(r *Request) error {
	if r.Org == nil && !r.Actor.Sees(r.Actor.Path) {
		return problem.New(problem.PermissionDenied, "Nothing is granted to this caller at the organization that it belongs to.")
	}
	if rule.Operator {
		if err := r.Actor.DemandOperator(); err != nil {
			return err
		}
	}
	return r.Actor.Demand(r.Place(), rule.Permissions...)
}

// Place returns the path of the organization that the call is about, or of the
// actor's own where it is about none.
func (r *Request) Place() string {
	if r.Org != nil {
		return r.Org.Path
	}
	return r.Actor.Path
}

func (s *Server) authenticate(r *Request) error {
	r.credential = r.surface.Credential(r.Request)
	login, err := r.surface.Authenticate(r.Context(), org.Login{}, r.credential, r.IP)
	r.Actor, r.OldSecret, r.login = login.Actor, login.OldSecret, login
	if err != nil {
		return err
	}
	quota, err := TakeToken(s.limiter, r.Actor, s.now())
	if quota != nil {
		r.extra = append(r.extra,
			"RateLimit-Policy", fmt.Sprintf(`"key";q=%d;w=%d`, quota.Requests, quota.PeriodSeconds),
			"RateLimit", fmt.Sprintf(`"key";r=%d;t=%d`, quota.Remaining, quota.ResetSeconds))
	}
	return err
}

// Quota is the state of a key's rate limit.
type Quota struct {
	key.RateLimit
	Remaining    int // requests that may be made at once
	ResetSeconds int // until all may be made at once again
}

// TakeToken counts a request against the rate limit of the actor's key. The
// quota is nil if there is no limit. The error is RateLimited.
func TakeToken(l *auth.Limiter, a *auth.Actor, now time.Time) (*Quota, error) {
	rl := a.RateLimit
	if rl == nil {
		return nil, nil
	}
	ok, remaining, reset, retryAfter := l.Allow(a.ID, a.CreatedAt, *rl, now)
	q := &Quota{RateLimit: *rl, Remaining: remaining, ResetSeconds: int((reset + time.Second - 1) / time.Second)}
	if ok {
		return q, nil
	}
	e := problem.New(problem.RateLimited, "This key may make %d requests in %d seconds.", rl.Requests, rl.PeriodSeconds).
		WithFix("Wait as long as Retry-After says.")
	e.RetryAfter = max(retryAfter, time.Second)
	return q, e
}

// failed renders an error. Only the server log sees what is behind a 5xx.
func (s *Server) failed(rt *Route, r *Request, err error) *Response {
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		err = problem.New(problem.Unavailable, "The client closed the connection.").WithCause(err)
	}
	e := problem.From(err)
	if did := r.done(); did != "" && (e.Code == problem.Unavailable || e.Code == problem.StorageFull) {
		// These two promise that nothing happened.
		e = problem.New(problem.OutcomeUnknown, "%s, and then: %s", did, e.Detail).WithFix("%s", e.Fix).WithCause(err)
	}
	// What a budget refuses is counted there, and no fault.
	if e.Code.Status() >= 500 && e.Extra["budget"] == nil {
		level := slog.LevelError
		if r.failsAgain {
			level = slog.LevelDebug
		}
		s.log.Log(context.Background(), level, "request failed", "request_id", r.ID, "operation", rt.Operation, "code", e.Code, "error", err)
	}
	return r.surface.Fail(r, e)
}

// record writes the access event of the request, or of the one that it decides
// about, and counts it.
func (s *Server) record(rt *Route, r *Request, status int) error {
	d := r.Decision
	if d == nil {
		if r.Actor == nil {
			return nil
		}
		d = &Decision{Actor: r.Actor, OldSecret: r.OldSecret, Org: r.Org, Method: r.Method, Path: r.URL.EscapedPath(), IP: r.IP, UserAgent: r.UserAgent()}
		if counts(status) {
			d.Usage, d.Reservation = r.surface.Count(r)
		}
	} else if r.Actor != nil && r.Actor != d.Actor && r.Actor.Kind == auth.KindKey && status != http.StatusUnauthorized {
		use := &access.KeyUse{KeyID: r.Actor.ID, Old: r.OldSecret, At: r.At, IP: r.address}
		if _, err := s.recorder.RecordAt(access.Record{Use: use}); err != nil {
			d.Reservation.Release()
			return err
		}
	}
	if !counts(status) {
		d.Reservation.Release()
		d.Usage, d.Reservation = nil, nil
	}
	end, err := s.recorder.RecordAt(s.entry(rt, r, d, status))
	if err != nil {
		d.Reservation.Release()
		return err
	}
	s.metering.Recorded(d.Reservation, d.Usage, end)
	return nil
}

// counts reports whether a request with this answer is counted.
func counts(status int) bool {
	return status != http.StatusUnauthorized && status != http.StatusTooManyRequests && status < 500
}

// entry returns what a request leaves behind.
func (s *Server) entry(rt *Route, r *Request, d *Decision, status int) access.Record {
	rec := access.Record{Usage: d.Usage}
	a := d.Actor
	if a == nil {
		return rec
	}
	ip := r.address
	if d.IP != r.IP {
		ip = AddressText(d.IP)
	}
	rootID, orgID := a.RootID, a.OrgID
	if d.Org != nil {
		rootID, orgID = d.Org.RootID, d.Org.ID
	}
	if orgID != "" {
		rec.Event = &access.Event{ID: ident.New("evt_"), Timestamp: r.At, RootID: rootID, OrgID: orgID,
			User: key.Redact(a.Name), Action: key.Redact(d.Action), Status: d.Status, IP: ip, UserAgent: cut(key.Redact(d.UserAgent), 512),
			Method: key.Redact(d.Method), Path: cut(key.Redact(d.Path), 1024), RequestID: r.ID}
		if d.Action == "" {
			rec.Event.Action = rt.Action
		}
		if d.Status == "" {
			rec.Event.Status = s.eventStatus(rt, r, status)
		}
		if a.Kind == auth.KindKey {
			rec.Event.APIKeyID = a.ID
		}
	}
	if a.Kind == auth.KindKey && status != http.StatusUnauthorized && d.Status != access.Denied {
		rec.Use = &access.KeyUse{KeyID: a.ID, Old: d.OldSecret, At: r.At, IP: ip}
	}
	return rec
}

func (s *Server) eventStatus(rt *Route, r *Request, status int) string {
	switch {
	case status < 400:
		return access.Success
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return access.Denied
	case status == http.StatusNotFound && r.Org == nil && rt.Rule.Target != "" && s.service.Exists(r.Context(), r.PathValue(rt.Rule.Target)),
		status == http.StatusNotFound && r.Sought != "" && s.service.Exists(r.Context(), r.Sought):
		return access.Denied
	default:
		return access.Failure
	}
}

// logRequest logs one line. It makes the record itself: a Logger would look up
// which line of the program called it.
func (s *Server) logRequest(level slog.Level, rt *Route, r *Request, status int, end time.Time, took time.Duration) {
	ctx, h := context.Background(), s.log.Handler()
	if !h.Enabled(ctx, level) {
		return
	}
	rec := slog.NewRecord(end, level, "request", 0)
	var more [9]slog.Attr
	attrs := append(more[:0],
		slog.String("request_id", r.ID), slog.String("operation", rt.Operation), slog.String("method", cut(key.Redact(r.Method), 64)),
		slog.String("path", cut(key.Redact(r.URL.EscapedPath()), 1024)), slog.Int("status", status), slog.Float64("took_ms", float64(took.Microseconds())/1000), slog.String("ip", r.address))
	if r.Actor != nil {
		attrs = append(attrs, slog.String("actor", r.Actor.ID))
	}
	if tp := r.Header.Get("Traceparent"); len(tp) == 55 && tp[2] == '-' && tp[35] == '-' {
		attrs = append(attrs, slog.String("trace_id", tp[3:35]))
	}
	rec.AddAttrs(attrs...)
	_ = h.Handle(ctx, rec) // there is nowhere to say that it failed
}

// requestID returns the caller's X-Request-Id if it is sane, or a new one. It
// is kept in logs, where no secret belongs.
func requestID(r *http.Request) string {
	if ids := r.Header["X-Request-Id"]; len(ids) == 1 && ident.Valid(ids[0]) && !key.Holds(ids[0]) {
		return ids[0]
	}
	return ident.New("req_")
}
