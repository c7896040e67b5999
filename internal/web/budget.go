package web

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/orgd/orgd/internal/budget"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

const (
	// smallBody is what a body or an answer may have without being charged:
	// the places of requests bound those.
	smallBody = 4 << 10
	// largeAnswer is from where on an answer is charged while it is sent.
	largeAnswer = 64 << 10
	// bodyStep is how much of a body of unknown length is charged at a time.
	bodyStep = 64 << 10
	// PageRoom is charged for a page before it is made; what it turns out to
	// be longer or shorter is settled when it is known.
	PageRoom = 1 << 20
)

// Swell says how much memory a body takes while it is worked on, itself and what
// it is decoded to, as measured.
type Swell struct {
	Times    int64 // for each of its bytes at least
	Item     int64 // or itself and this for each of its objects or lines
	MaxItems int64 // of which it has no more
}

// usualSwell is that of a JSON document of which much is kept as it is.
var usualSwell = Swell{Times: 4}

// charge returns what is charged for n bytes of a body before they are there.
func (s Swell) charge(n int64) int64 {
	if n <= smallBody {
		return 0
	}
	return n * max(s.Times, 1)
}

// chargeAll returns what is charged for a whole body.
func (s Swell) chargeAll(body []byte) int64 {
	n := int64(len(body))
	if n <= smallBody || s.Item == 0 {
		return s.charge(n)
	}
	items := int64(max(bytes.Count(body, []byte{'\n'}), bytes.Count(body, []byte{'{'})))
	return max(s.charge(n), n+min(items, s.MaxItems)*s.Item)
}

// budgets is what a Server knows of the budget: it shows it in its metrics.
type budgets struct {
	*budget.Budget
	pages       *budget.Turns                 // for the making of pages
	paused      atomic.Int64                  // refusals that are kept back
	refused     map[string]prometheus.Counter // by budget
	idempotency prometheus.Counter
}

func newBudgets(b *budget.Budget, now func() time.Time, metrics prometheus.Registerer) (*budgets, error) {
	refusals := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "orgd_budget_refusals_total",
		Help: "Requests that were refused because a customer or all together used too much, by budget."}, []string{"budget"})
	out := &budgets{Budget: b, pages: pageTurns(b), refused: map[string]prometheus.Counter{}, idempotency: refusals.WithLabelValues(IdempotencyBytes)}
	collectors := []prometheus.Collector{refusals}
	for _, r := range budget.Resources() {
		out.refused[r.String()] = refusals.WithLabelValues(r.String())
		if r == budget.RequestsPerSecond || r == budget.ChangesPerSecond {
			continue // the metrics of requests show these
		}
		collectors = append(collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "orgd_budget_used",
			Help: "What all requests hold of a budget.", ConstLabels: prometheus.Labels{"budget": r.String()}},
			func() float64 { return float64(b.Used(now())[r]) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "orgd_budget_capacity",
				Help: "What the requests of all customers may hold of a budget.", ConstLabels: prometheus.Labels{"budget": r.String()}},
				func() float64 { return float64(b.Capacity()[r]) }))
	}
	for _, c := range collectors {
		if err := metrics.Register(c); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// pageTurns returns turns for making pages: as many as keep the processors busy.
// More would only make all of them slower, those of other customers too.
func pageTurns(b *budget.Budget) *budget.Turns {
	if b == nil {
		return nil
	}
	return budget.NewTurns(runtime.GOMAXPROCS(0) + 1)
}

// handle runs the handler of a request. Pages are made in turns of the roots,
// and only those that are being made have room; they are sent outside of their
// turn, since that takes the time that a client takes.
func (s *Server) handle(rt *Route, r *Request) (*Response, error) {
	if rt.Room == 0 || s.budgets.Budget == nil || r.Method != http.MethodGet && r.Method != http.MethodHead {
		return rt.work(r)
	}
	if root := r.Actor.RootID; !r.expensive {
		if err := s.budgets.pages.Take(r.Context(), root); err != nil {
			return nil, err
		}
		defer s.budgets.pages.Give(root)
	}
	if f := r.ticket.Hold(rt.Room); f != nil {
		return nil, s.refusal(r, f)
	}
	return rt.work(r)
}

// IdempotencyBytes is the name of the budget of answers that are kept for
// Idempotency-Keys.
const IdempotencyBytes = "idempotency_bytes"

// limitsOf returns what a quota sets for the resources of a budget; nil for
// nothing.
func limitsOf(q *org.Quota) *budget.Limits {
	if q == nil {
		return nil
	}
	return &budget.Limits{budget.Requests: q.RequestsInFlight, budget.Bytes: q.BytesInFlight, budget.Expensive: q.ExpensiveInFlight,
		budget.Streams: q.Streams, budget.RequestsPerSecond: q.RequestsPerSecond, budget.ChangesPerSecond: q.ChangesPerSecond}
}

// enter charges the request to the root of its key before anything is done
// for it. The operator and its customers do not get in each other's way.
func (s *Server) enter(rt *Route, r *Request) error {
	if s.budgets.Budget == nil {
		return nil
	}
	change := r.Method != http.MethodGet && r.Method != http.MethodHead && !rt.NoReplay
	if f := s.budgets.Enter(&r.ticket, r.Actor.RootID, limitsOf(r.login.Quota), change, r.At); f != nil {
		s.budgets.pause(r.Context())
		return s.refusal(r, f)
	}
	return nil
}

const (
	// refusalPause is how long a refusal is kept back: who does not heed
	// Retry-After would otherwise keep the processors busy with refusals.
	refusalPause = 100 * time.Millisecond
	// maxPaused is how many are kept back at once; others are sent at once.
	maxPaused = 1024
)

func (b *budgets) pause(ctx context.Context) {
	defer b.paused.Add(-1)
	if b.paused.Add(1) > maxPaused {
		return
	}
	timer := time.NewTimer(refusalPause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// refusal returns the problem of what did not fit into the budget, nil for
// nil.
func (s *Server) refusal(r *Request, f *budget.Refusal) error {
	if f == nil {
		return nil
	}
	name := f.Resource.String()
	s.budgets.refused[name].Inc()
	who := r.Actor.RootID
	if who == "" {
		who = "The operator"
	}
	what := map[budget.Resource]string{
		budget.Requests:          "requests in flight",
		budget.Bytes:             "bytes of bodies and answers in flight",
		budget.Expensive:         "expensive requests in flight",
		budget.Streams:           "streams and exports open",
		budget.RequestsPerSecond: "requests in this second",
		budget.ChangesPerSecond:  "changes in this second",
	}[f.Resource]
	var e *problem.Error
	switch f.Reason {
	case budget.OverLimit:
		e = problem.New(problem.QuotaExceeded, "%s has as many %s as the operator has set for it and all below it: %d.", who, what, f.Limit).
			WithFix("Wait as long as Retry-After says, and send less at the same time; or ask the operator for a greater quota.").
			With("limit", f.Limit).With("set_by", "operator")
	case budget.OverShare:
		e = problem.New(problem.QuotaExceeded, "%s has as many %s as one customer may have now, beside the others.", who, what).
			WithFix("Wait as long as Retry-After says, and send less at the same time.").With("set_by", "default")
	case budget.TooMuch:
		// A body that is too large however long one waits.
		return problem.New(problem.TooLarge, "The request body is larger than the %d bytes that %s may have in flight.", f.Limit, who).
			WithFix("Send less at a time, or ask the operator for a greater quota.").With("limit_bytes", f.Limit).With("budget", name)
	default:
		e = problem.New(problem.Unavailable, "The server has no room for more %s.", what).
			WithFix("Wait as long as Retry-After says.").With("set_by", "default")
	}
	e.RetryAfter = f.RetryAfter
	return e.With("budget", name)
}

// begin waits for a place among the expensive work, if the request is some.
func (r *Request) begin() error {
	if !r.expensive {
		return nil
	}
	return r.server.started(r, r.ticket.Begin(r.Context()))
}

func (s *Server) started(r *Request, err error) error {
	var f *budget.Refusal
	if errors.As(err, &f) {
		s.budgets.pause(r.Context())
		return s.refusal(r, f)
	}
	return err
}

// swell says what the body of the request becomes.
func (r *Request) swell() Swell {
	if r.route == nil || r.route.Swell == (Swell{}) {
		return usualSwell
	}
	return r.route.Swell
}

// hold charges n bytes for the body.
func (r *Request) hold(n int64) error {
	if n <= 0 || r.server == nil {
		return nil
	}
	return r.server.refusal(r, r.ticket.Hold(n))
}

// settle gives back what the body took and charges the answer instead, until
// it is sent. Only an answer without which nothing is lost is refused: what
// has been changed must be said.
func (s *Server) settle(r *Request, resp *Response) error {
	if s.budgets.Budget == nil {
		return nil
	}
	r.ticket.End()
	r.body = nil
	n := int64(len(resp.Body))
	if n < largeAnswer {
		n = 0
	}
	if more := n - r.ticket.Held(); more > 0 {
		f := r.ticket.Hold(more)
		if f != nil && f.Reason == budget.TooMuch {
			f.Reason = budget.OverShare
		}
		if f != nil && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
			return s.refusal(r, f)
		}
	}
	r.ticket.Keep(n)
	return nil
}

// openStream charges an answer that goes on for as long as its client reads.
func (s *Server) openStream(r *Request, resp *Response) error {
	if resp.Feed == nil && resp.Stream == nil || r.Method == http.MethodHead {
		return nil
	}
	return s.refusal(r, r.ticket.Stream())
}

// considerate has a stream that is expensive to make hold its place only while
// it is made, and not while its client reads.
func (r *Request) considerate(stream func(io.Writer) error) func(io.Writer) error {
	if !r.expensive {
		return stream
	}
	return func(w io.Writer) error {
		ctx := r.Context()
		if err := r.ticket.Resume(ctx); err != nil {
			return err
		}
		defer r.ticket.End()
		return stream(&pausingWriter{ctx, w, &r.ticket})
	}
}

type pausingWriter struct {
	ctx    context.Context
	w      io.Writer
	ticket *budget.Ticket
}

func (p *pausingWriter) Write(b []byte) (int, error) {
	p.ticket.Pause()
	n, err := p.w.Write(b)
	if err == nil {
		err = p.ticket.Resume(p.ctx)
	}
	return n, err
}

// keepable fails if the root keeps as much for its Idempotency-Keys as it may.
func (s *Server) keepable(r *Request) error {
	if s.budgets.Budget == nil || r.Actor.Everywhere() {
		return nil
	}
	most, by := int64(org.DefaultIdempotencyBytes), "default"
	if r.login.Quota != nil && r.login.Quota.IdempotencyBytes > 0 {
		most, by = r.login.Quota.IdempotencyBytes, "operator"
	}
	n, until, err := s.service.AnswersKept(r.Context(), r.Actor.RootID)
	if err != nil || n < most {
		return err
	}
	s.budgets.idempotency.Inc()
	e := problem.New(problem.QuotaExceeded, "The answers that are kept for the Idempotency-Keys of %s and all below it take the %d bytes that they may. Nothing was done.", r.Actor.RootID, most).
		WithFix("Send the request without Idempotency-Key, or wait: answers are kept for a day.").
		With("budget", IdempotencyBytes).With("limit", most).With("set_by", by)
	e.RetryAfter = max(until.Sub(s.now()), time.Second)
	return e
}
