package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/background"
	"github.com/orgd/orgd/internal/evidence"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

const (
	// signInterval is how long after a signing the next one comes at the
	// earliest, unless the configuration says otherwise.
	signInterval = 500 * time.Millisecond
	// scanInterval is how often the checkpointer looks for logs that other
	// processes have left unsigned.
	scanInterval = 10 * time.Second
	// followInterval is how often the checkpointer anchors what other servers
	// of the same database have signed; followBack is how much their clocks
	// may be behind each other's.
	followInterval = time.Second
	followBack     = 10 * time.Second
	followBatch    = 16 * signBatch // many that were signed at one time
	// signBatch is how many logs are signed in one go.
	signBatch = 64
)

// checkpointer signs the audit logs soon after they have changed, anchors what
// it has signed, and has it cosigned. It never signs a log that lacks what was
// signed before.
type checkpointer struct {
	service   *evidence.Service
	anchor    *anchor
	witnesses []*witness
	log       *slog.Logger
	interval  time.Duration
	shared    bool          // other servers may sign in the same database
	changed   *org.Listener // to the logs of all roots; nil until its jobs are started

	// signing is held while logs are compared with the anchor, and until what was
	// signed is in it: an anchor that grew meanwhile, by what another server has
	// signed, would be ahead of the snapshot that it is compared with.
	signing sync.Mutex

	mu      sync.Mutex
	failure error                       // of the last pass
	refused map[string]evidence.Refusal // by log id

	signed prometheus.Counter
}

func newCheckpointer(service *evidence.Service, a *anchor, witnesses []*witness, interval time.Duration, log *slog.Logger, metrics prometheus.Registerer) *checkpointer {
	c := &checkpointer{service: service, anchor: a, witnesses: witnesses, interval: cmp.Or(interval, signInterval), log: log,
		refused: map[string]evidence.Refusal{},
		signed:  prometheus.NewCounter(prometheus.CounterOpts{Name: "orgd_audit_checkpoints_total", Help: "Checkpoints of audit logs that were signed."})}
	metrics.MustRegister(c.signed, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "orgd_audit_refused_logs",
		Help: "Audit logs that are not signed, because the database lacks what was signed before."},
		func() float64 { return float64(len(c.Refused())) }))
	client := &http.Client{Timeout: witnessTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for _, w := range witnesses {
		w.service, w.log, w.client = service, log, client
		label := prometheus.Labels{"witness": w.name()}
		metrics.MustRegister(
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "orgd_audit_witness_lacking_logs", ConstLabels: label,
				Help: "Audit logs that the witness was asked to cosign and has not."},
				func() float64 { n, _ := w.lacking(); return float64(n) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "orgd_audit_witness_disputed_logs", ConstLabels: label,
				Help: "Audit logs of which the witness claims to know another history."},
				func() float64 { _, disputed := w.lacking(); return float64(disputed) }))
	}
	return c
}

// The jobs that hold signing for a while.
const (
	signingJob   = "sign_logs"
	anchoringJob = "anchor_logs"
)

// jobs returns what signs in the background, and goes with that.
func (c *checkpointer) jobs() []background.Job {
	c.changed = c.service.News().Listen("")
	list := []background.Job{c.auditSigning()}
	if c.shared {
		list = append(list, c.auditAnchoring())
	}
	for _, w := range c.witnesses {
		list = append(list, w.cosigning())
	}
	return list
}

// auditSigning signs the logs that have changed, soon after that, and at every scan
// all that are unsigned.
func (c *checkpointer) auditSigning() background.Job {
	checked := false
	var scanAt time.Time
	return background.Job{Name: signingJob, Failing: "the audit logs could not be signed; it is tried again",
		Wait: func() time.Duration { return time.Until(scanAt) }, Wake: c.changed.Heard(), Pause: c.interval,
		Run: func(ctx context.Context) error {
			if !checked {
				c.checkAnchors(ctx)
				checked = true
			}
			sign := c.signChanged
			if !time.Now().Before(scanAt) {
				scanAt, sign = time.Now().Add(scanInterval), c.signAll
			}
			return c.report(ctx, sign(ctx))
		}}
}

// auditAnchoring anchors what other servers sign, so that no single server's anchor
// is needed to notice that the database has lost what was signed.
func (c *checkpointer) auditAnchoring() background.Job {
	var since time.Time
	return background.Job{Name: anchoringJob, First: followInterval, Every: followInterval,
		Failing: "what other servers have signed could not be anchored; it is tried again",
		Run: func(ctx context.Context) error {
			for {
				signed, err := c.service.SignedLogs(ctx, since, followBatch)
				if err == nil {
					err = c.anchorSigned(ctx, signed)
				}
				if err != nil || len(signed) == 0 {
					return err
				}
				last := signed[len(signed)-1].Signature.SignedAt
				if len(signed) < followBatch {
					since = last.Add(-followBack)
					return nil
				}
				if !last.After(since) { // a page of one time: go past it
					last = since.Add(time.Microsecond)
				}
				since = last
			}
		}}
}

// anchorSigned anchors signatures that go beyond what is anchored.
func (c *checkpointer) anchorSigned(ctx context.Context, signed []*evidence.LogState) error {
	for _, l := range signed {
		if a := c.anchor.lastOf(l.Head.LogID); l.Signature.Size == 0 || a != nil &&
			(a.epoch > l.Head.Epoch || a.epoch == l.Head.Epoch && a.Size >= l.Signature.Size) {
			continue
		}
		if err := c.anchorOne(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

func (c *checkpointer) anchorOne(ctx context.Context, l *evidence.LogState) error {
	c.signing.Lock()
	defer c.signing.Unlock()
	r, err := c.service.CheckAnchor(ctx, l.Head.RootID, l.Head.LogID, c.anchor)
	if err != nil {
		return err
	}
	if r != nil {
		c.refuse(*r)
		return nil
	}
	if err := c.anchor.Keep([]*evidence.LogState{l}); err != nil {
		return err
	}
	c.accept(l.Head.LogID) // a new epoch may have been opened at the other server
	return nil
}

// close signs what is left, once the jobs have ended. If one of them that keeps
// others from signing is late, what is left is signed after the next start.
func (c *checkpointer) close(ctx context.Context, late []string) error {
	if c.changed == nil {
		return c.anchor.close()
	}
	c.changed.Close()
	if slices.Contains(late, signingJob) || slices.Contains(late, anchoringJob) {
		return errors.New("the audit logs could not be signed a last time; what was not signed is signed after the next start")
	}
	return errors.Join(c.signAll(ctx), c.anchor.close())
}

// report notes how a pass went, and returns that.
func (c *checkpointer) report(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		c.mu.Lock()
		c.failure = err
		c.mu.Unlock()
	}
	return err
}

// signChanged signs the logs that have changed since the last pass.
func (c *checkpointer) signChanged(ctx context.Context) error {
	roots, more := c.changed.Take()
	err := c.signRoots(ctx, roots)
	if err == nil && more {
		err = c.signAll(ctx)
	}
	if err != nil {
		c.changed.Put(roots, more)
	}
	return err
}

func (c *checkpointer) signRoots(ctx context.Context, roots []string) error {
	var heads []*audit.Head
	for _, id := range roots {
		more, err := c.service.UnsignedHeads(ctx, id, nil, signBatch)
		if err != nil {
			return err
		}
		heads = append(heads, more...)
	}
	for batch := range slices.Chunk(heads, signBatch) {
		if err := c.sign(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// SignAuditLogs signs every audit log that has unsigned entries.
func (s *Server) SignAuditLogs(ctx context.Context) error { return s.checkpointer.signAll(ctx) }

// signAll signs every log that has unsigned entries.
func (c *checkpointer) signAll(ctx context.Context) error {
	var after *audit.Head
	for {
		heads, err := c.service.UnsignedHeads(ctx, "", after, signBatch)
		if err != nil || len(heads) == 0 {
			return err
		}
		if err := c.sign(ctx, heads); err != nil {
			return err
		}
		after = heads[len(heads)-1]
	}
}

func (c *checkpointer) sign(ctx context.Context, heads []*audit.Head) error {
	c.signing.Lock()
	defer c.signing.Unlock()
	signed, refused, err := c.service.SignLogs(ctx, heads, c.anchor)
	for _, r := range refused {
		c.refuse(r)
	}
	if err != nil {
		return err
	}
	for _, l := range signed {
		c.accept(l.Head.LogID)
	}
	c.signed.Add(float64(len(signed)))
	for _, w := range c.witnesses {
		w.submit(signed)
	}
	return nil
}

func (c *checkpointer) refuse(r evidence.Refusal) {
	c.mu.Lock()
	_, known := c.refused[r.LogID]
	c.refused[r.LogID] = r
	c.mu.Unlock()
	c.service.SetRefused(r.LogID, true)
	if !known {
		c.log.Error("an audit log is not signed", "root_id", r.RootID, "log_id", r.LogID, "reason", r.Err)
	}
}

// accept takes back that a log was refused.
func (c *checkpointer) accept(logID string) {
	c.mu.Lock()
	delete(c.refused, logID)
	c.mu.Unlock()
	c.service.SetRefused(logID, false)
}

// disputed reports whether a witness claims to know another history of a log.
func (c *checkpointer) disputed(logID string) bool {
	return slices.ContainsFunc(c.witnesses, func(w *witness) bool { return w.disputes(logID) })
}

// checkAnchors checks that the database has all that is anchored.
func (c *checkpointer) checkAnchors(ctx context.Context) {
	// Of many logs one at a time, so that others are signed meanwhile.
	check := func(rootID, logID string) {
		c.signing.Lock()
		defer c.signing.Unlock()
		if r, err := c.service.CheckAnchor(ctx, rootID, logID, c.anchor); err == nil && r != nil {
			c.refuse(*r)
		}
	}
	for logID, rootID := range c.anchor.all() {
		if check(rootID, logID); ctx.Err() != nil {
			return
		}
	}
}

// Refused implements api.Signer.
func (c *checkpointer) Refused() []evidence.Refusal {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]evidence.Refusal, 0, len(c.refused))
	for _, r := range c.refused {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b evidence.Refusal) int { return strings.Compare(a.RootID+"/"+a.LogID, b.RootID+"/"+b.LogID) })
	return list
}

// state says what is wrong; nil if nothing is.
func (c *checkpointer) state() error {
	if refused := c.Refused(); len(refused) > 0 {
		return refused[0].Err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure != nil {
		return c.failure
	}
	for _, w := range c.witnesses {
		if err := w.state(); err != nil {
			return err
		}
	}
	return nil
}

// advice says to anybody what it means that state is not nil.
func (c *checkpointer) advice() string {
	if n := len(c.Refused()); n > 0 {
		return fmt.Sprintf("Audit logs that are not signed: %d. The database lacks what was signed before, or the server the key. "+
			"The server's log says more, and so does 'orgd audit new-epoch --dry-run'.", n)
	}
	c.mu.Lock()
	failure := c.failure
	c.mu.Unlock()
	if failure == nil {
		for _, w := range c.witnesses {
			if n, disputed := w.lacking(); n > 0 {
				return fmt.Sprintf("Audit logs are signed, but the witness %s has not cosigned %d of them; of %d it claims to know another history. "+
					"It is asked again, and the server's log says more.", w.name(), n, disputed)
			}
		}
	}
	return "Audit logs could not be signed, anchored or cosigned. The server's log says why; it is tried again."
}

// OpenEpoch implements api.Signer.
func (c *checkpointer) OpenEpoch(ctx context.Context, call *org.Call, rootID, reason string) (origin string, receipt audit.Receipt, err error) {
	c.signing.Lock()
	defer c.signing.Unlock()
	head, err := c.service.LogHead(ctx, rootID)
	if err != nil {
		return "", receipt, err
	}
	c.mu.Lock()
	_, refused := c.refused[head.LogID]
	c.mu.Unlock()
	if !refused && !c.disputed(head.LogID) {
		return "", receipt, problem.New(problem.Conflict, "The audit log of %s has all that was signed of it; it needs no new epoch.", rootID)
	}
	last, err := c.service.LastSignature(ctx, head)
	if err != nil && !errors.Is(err, org.ErrAbsent) {
		return "", receipt, err
	}
	var checkpoint []byte
	var size int64
	if err == nil {
		checkpoint, size = last.Checkpoint, last.Size
	}
	if a := c.anchor.lastOf(head.LogID); a != nil && (a.epoch > head.Epoch || a.epoch == head.Epoch && a.Size > size) {
		checkpoint = a.signed
	}
	origin, receipt, err = c.service.OpenEpoch(ctx, call, rootID, checkpoint, reason)
	if err == nil {
		for _, w := range c.witnesses {
			w.forget(head.LogID)
		}
		c.accept(head.LogID)
	}
	return origin, receipt, err
}

// Abandon implements api.Signer.
func (c *checkpointer) Abandon(logID, reason string) error {
	c.mu.Lock()
	r, refused := c.refused[logID]
	c.mu.Unlock()
	if !refused {
		return problem.New(problem.NotFound, "No audit log %s is refused.", logID)
	}
	if !r.Missing {
		return problem.New(problem.Conflict, "The database has the audit log %s; it can go on.", logID).
			WithFix("Open a new epoch of the log of %s.", r.RootID)
	}
	if err := c.anchor.abandon(logID, reason); err != nil {
		return err
	}
	c.mu.Lock()
	delete(c.refused, logID)
	c.mu.Unlock()
	c.log.Warn("an audit log that the database does not have was abandoned", "root_id", r.RootID, "log_id", logID, "reason", reason)
	return nil
}
