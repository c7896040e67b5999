// Package server puts orgd together: store, recorder, service and API behind
// one HTTP server.
package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/api"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/background"
	"github.com/orgd/orgd/internal/budget"
	"github.com/orgd/orgd/internal/durable"
	"github.com/orgd/orgd/internal/evidence"
	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/trail"
	"github.com/orgd/orgd/internal/tree"
	"github.com/orgd/orgd/internal/web"
)

// Config says how a server runs.
type Config struct {
	DataDir  string // holds the SQLite database, the spool and the operator key
	Database string // a postgres:// URL; empty for SQLite in DataDir
	// DatabaseDirect is a URL of the same database that leads past a pooler; empty
	// if Database does.
	DatabaseDirect string
	DatabasePool   int    // how many connections to PostgreSQL do the work of requests; 0 for the default
	BasePath       string // a second place where the API is served, such as /api/v1
	TrustedProxies []netip.Prefix
	// Proxies, unless it is nil, is where /forward_auth is served, and only there.
	Proxies net.Listener
	// Admin, unless it is nil, is where /metrics and /service_status are served,
	// and only there.
	Admin net.Listener
	// ShutdownDelay is how long requests are still answered after the end of the
	// context of Serve, while /readyz tells that they should go elsewhere.
	ShutdownDelay time.Duration
	RestoreWindow time.Duration
	// MonthCloseAfter is how long after its end a month still takes late
	// events; zero for metering.DefaultMonthCloseAfter, negative for not at all.
	MonthCloseAfter time.Duration
	OperatorKey     string // instead of the one in DataDir
	SpoolMaxBytes   int64  // how much may wait for the database; 0 for the default
	AuditKey        string // the seeds of the keys that sign audit logs, instead of those in DataDir
	AuditAnchor     string // the file that keeps what was signed; empty for one in DataDir
	Witnesses       []string
	// SignInterval is the shortest time between two signings of audit logs; 0
	// for the default. Negative: they are not signed.
	SignInterval time.Duration
	// Budget is what customers may use at the same time; nil for what this
	// machine has. NoBudget bounds nothing, for tests that compare.
	Budget   *budget.Budget
	NoBudget bool
	// Demo says that the data is a demo's: a database that has organizations is
	// refused with ErrNotDemo, unless a demo has made it.
	Demo    bool
	Version string
	Log     *slog.Logger
	Now     func() time.Time // nil for the real clock

	busy func(with string) // hears what Open is busy with; nil for nobody
}

// CheckBasePath reports what is wrong with Config.BasePath.
func CheckBasePath(p string) error {
	if p != "" && (p[0] != '/' || p == "/" || path.Clean(p) != p || strings.ContainsAny(p, " {}?#%;\\")) {
		return fmt.Errorf("%q is not a path such as /api/v1", p)
	}
	return nil
}

// ErrNotDemo is the error of Open with Config.Demo for a database that no demo
// has made. Nothing of it was changed.
var ErrNotDemo = errors.New("the database has organizations that no demo has loaded")

// Server is a running orgd. Close must be called in the end.
type Server struct {
	Service     *org.Service
	Tree        *tree.Service
	Trail       *trail.Service
	Evidence    *evidence.Service
	Metering    *metering.Service
	Store       *store.Store
	Recorder    *access.Recorder
	OperatorKey string
	// NewOperatorKey is the file where a first start has written the operator
	// key; empty otherwise.
	NewOperatorKey string

	config       Config
	checkpointer *checkpointer
	handler      *web.Server
	gate         *web.Gate

	serving  sync.Mutex
	outdated bool // guarded by serving: the database is for newer servers
	started  time.Time
	jobs     *background.Runner
	behind   atomic.Pointer[behind] // what the last attempt to close months waits for
}

// Open opens the data directory and the database and brings both up to date. The
// error is a *durable.FullError if the disk has too little space for that.
func Open(ctx context.Context, c Config) (*Server, error) {
	return open(ctx, c, web.NewGate(c.BasePath, starting, api.Surfaces()))
}

// startSpace is how much free space a start takes at most beside the database.
const startSpace = 1 << 20

func open(ctx context.Context, c Config, gate *web.Gate) (_ *Server, err error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	defer func() { err = durable.Full(c.DataDir, startSpace, err) }()
	if err := durable.MkdirAll(c.DataDir); err != nil {
		return nil, fmt.Errorf("the data directory cannot be made: %w", err)
	}
	keepPrivate(c.DataDir, c.Log)
	lacks := missing(c.DataDir, anchorPath(&c))
	s := &Server{config: c, gate: gate, started: c.Now()}
	options := store.Options{Log: c.Log, Busy: c.busy, Direct: c.DatabaseDirect, Readers: c.DatabasePool}
	if c.Demo {
		options.Mark = "demo"
	}
	spool := filepath.Join(c.DataDir, "spool")
	if c.Database == "" {
		options.Readers = 0
		options.Spare = func() { access.GiveUpSpare(spool) } // who has the database has the spool
		s.Store, err = store.OpenSQLite(ctx, c.DataDir, options)
	} else {
		s.Store, err = store.OpenPostgres(ctx, c.Database, options)
	}
	if errors.Is(err, store.ErrUnmarked) {
		return nil, ErrNotDemo
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Store.Close()
		}
	}()
	keyring, err := s.keyring(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.operatorKey(); err != nil {
		return nil, err
	}
	alone := func() bool { return s.Store.Processes() == 1 }
	auditNews, accessNews := org.NewNews(alone), org.NewNews(alone)
	s.Recorder, err = access.OpenRecorder(ctx, spool, accessNews.Sink(s.Store), access.Options{MaxBytes: c.SpoolMaxBytes, Logger: c.Log, Now: c.Now})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Recorder.Close(ctx)
		}
	}()
	s.Store.BorrowFrom(s.Recorder.Lend)
	id, hash, ok := key.ParseToken(s.OperatorKey)
	if !ok || id != "operator" {
		return nil, errors.New("the operator key is malformed; 'orgd keygen' makes one")
	}
	if err := s.compareOperatorKey(ctx, hash); err != nil {
		return nil, err
	}
	s.Service, err = org.NewService(org.Config{Store: s.Store, Now: c.Now, NewID: ident.New, Rand: rand.Reader,
		OperatorHash: hash, AuditNews: auditNews})
	if err != nil {
		return nil, err
	}
	s.Tree = tree.NewService(tree.Config{Orgs: s.Service, Store: store.Side[tree.View, tree.Tx]{Store: s.Store}, Imports: store.Side[tree.ImportView, tree.ImportTx]{Store: s.Store}, Now: c.Now, NewID: ident.New, Rand: rand.Reader,
		RestoreWindow: c.RestoreWindow, Drain: s.Recorder.Drain})
	s.Trail = trail.NewService(trail.Config{Orgs: s.Service, Store: store.Side[trail.View, trail.Tx]{Store: s.Store}, NewID: ident.New, AccessNews: accessNews})
	s.Evidence = evidence.NewService(s.Service, store.Side[evidence.View, evidence.Tx]{Store: s.Store}, keyring)
	s.Metering, err = metering.NewService(metering.Config{Orgs: s.Service, Store: store.Side[metering.View, metering.Tx]{Store: s.Store}, Months: store.Side[metering.MonthsView, metering.MonthsTx]{Store: s.Store}, Spool: s.Recorder, Now: c.Now,
		MonthCloseAfter: c.MonthCloseAfter})
	if err != nil {
		return nil, err
	}
	for _, what := range lacks {
		c.Log.Warn(what)
	}
	metrics := prometheus.NewRegistry()
	if err := s.openCheckpointer(metrics); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.checkpointer.anchor.close()
		}
	}()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "orgd_spool_records", Help: "Recorded requests that wait for the database."},
			func() float64 { n, _ := s.Recorder.Lag(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "orgd_spool_bytes", Help: "Bytes of recorded requests that wait for the database."},
			func() float64 { _, n := s.Recorder.Lag(); return float64(n) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "orgd_spool_damaged_total", Help: "Segments of recorded requests that could not be read to their end."},
			func() float64 { return float64(s.Recorder.Damaged()) }))
	limiter := auth.NewLimiter(s.started, s.Store.Processes)
	bound := c.Budget
	switch {
	case c.NoBudget:
		bound = nil
	case bound == nil:
		bound = budget.New(budget.ThisMachine())
	}
	a, err := api.New(api.Config{Service: s.Service, Tree: s.Tree, Trail: s.Trail, Evidence: s.Evidence, Metering: s.Metering, Flusher: s.Recorder, Limiter: limiter, Status: s, Signer: s.checkpointer, Now: c.Now,
		BasePath: c.BasePath, Secret: []byte(s.OperatorKey), Metrics: metrics, Budget: bound})
	if err != nil {
		return nil, err
	}
	var listeners []web.Listener
	for l := range c.listeners(nil) {
		listeners = append(listeners, l)
	}
	s.handler, err = web.NewServer(web.Config{Service: s.Service, Metering: s.Metering, Recorder: s.Recorder, Limiter: limiter,
		Log: c.Log, Now: c.Now, TrustedProxies: c.TrustedProxies, Listeners: listeners, BasePath: c.BasePath, Metrics: metrics, Budget: bound}, a.Routes())
	if err != nil {
		return nil, err
	}
	s.jobs = background.NewRunner(context.WithoutCancel(ctx), c.Log, c.Now, metrics)
	s.jobs.Start(s.purging(), s.closingMonths(), s.settlingImports())
	if c.Database != "" {
		s.jobs.Start(s.watchingSchema())
	}
	if c.SignInterval >= 0 {
		s.jobs.Start(s.checkpointer.jobs()...)
	}
	return s, nil
}

// openCheckpointer makes what signs the audit logs.
func (s *Server) openCheckpointer(metrics prometheus.Registerer) error {
	witnesses, err := parseWitnesses(s.config.Witnesses)
	if err != nil {
		return err
	}
	a, err := openAnchor(anchorPath(&s.config), s.config.Now, s.config.Log)
	if err != nil {
		return err
	}
	s.checkpointer = newCheckpointer(s.Evidence, a, witnesses, s.config.SignInterval, s.config.Log, metrics)
	s.checkpointer.shared = s.config.Database != ""
	return nil
}

// operatorKey takes the operator key from the configuration, or from the data
// directory, where the first start writes it.
func (s *Server) operatorKey() error {
	if s.OperatorKey = strings.TrimSpace(s.config.OperatorKey); s.OperatorKey != "" {
		return nil
	}
	path := filepath.Join(s.config.DataDir, "operator.key")
	b, err := os.ReadFile(path)
	if err == nil {
		if err := durable.Settle(path); err != nil {
			return fmt.Errorf("the operator key cannot be made durable: %w", err)
		}
		s.OperatorKey = strings.TrimSpace(string(b))
		if id, _, ok := key.ParseToken(s.OperatorKey); !ok || id != "operator" {
			return fmt.Errorf("%s does not hold an operator key; 'orgd keygen' makes one", path)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the operator key cannot be read: %w", err)
	}
	s.OperatorKey, _, _ = key.NewSecret(rand.Reader, "operator")
	if err := durable.Write(path, []byte(s.OperatorKey+"\n")); err != nil {
		return fmt.Errorf("the operator key cannot be written: %w", err)
	}
	s.NewOperatorKey = path
	return nil
}

// operatorMark is the mark of a database that servers share under which the
// beginning of the SHA-256 of the operator key is noted with which a server was
// last started.
const operatorMark = "operator_key"

// compareOperatorKey warns of servers that share a database and not the
// operator key.
func (s *Server) compareOperatorKey(ctx context.Context, hash [32]byte) error {
	if s.config.Database == "" {
		return nil
	}
	var last string
	now := hex.EncodeToString(hash[:8])
	err := s.marks().Read(ctx, func(v marksView) (err error) {
		last, err = v.Mark(operatorMark)
		return err
	})
	if err == nil && last == now {
		return nil
	}
	if err == nil {
		s.config.Log.Warn("the operator key is not the one with which a server of this database was last started; " +
			"unless it has been replaced, give all of them the same ORGD_OPERATOR_KEY")
	} else if !errors.Is(err, org.ErrAbsent) {
		return err
	}
	return s.marks().Write(ctx, func(tx marksTx) error { return tx.ReplaceMark(operatorMark, now) })
}

// Handler returns what answers HTTP requests.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve answers requests on l, and on the other listeners of the Config, as
// Front.Serve does.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.open()
	return s.config.listen(l, s.gate).Serve(ctx, s)
}

// open has requests answered.
func (s *Server) open() {
	s.serving.Lock()
	defer s.serving.Unlock()
	if !s.outdated {
		s.gate.Open(s.handler)
	}
}

// schemaInterval is how often a server looks whether it may still serve a
// database that another one can bring to a schema that it does not know.
const schemaInterval = time.Second

// watchingSchema ends with the answers of the server, and with its work in the
// background, once the database has a schema that it does not know.
func (s *Server) watchingSchema() background.Job {
	return background.Job{Name: "watch_schema", Every: schemaInterval,
		Failing: "whether this server may still serve the database could not be seen; it is tried again",
		Run: func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 5*schemaInterval)
			defer cancel()
			err := s.Store.CheckSchema(ctx)
			if foreign := new(store.SchemaError); errors.As(err, &foreign) {
				s.config.Log.Error("nothing is answered any more; replace this server by the newer version", "error", err)
				s.serving.Lock()
				s.outdated = true
				s.gate.Close("The server is too old: " + err.Error() + ".")
				s.serving.Unlock()
				s.jobs.Cancel()
			}
			return err
		}}
}

// stopTimeout is how long a stop waits for what goes on in the background.
const stopTimeout = 10 * time.Second

// Close stores what was recorded and closes the database.
func (s *Server) Close() error {
	late := s.jobs.Stop(stopTimeout)
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	return errors.Join(s.checkpointer.close(ctx, late), s.closeSpool(ctx), s.Store.Close())
}

const (
	// purgeInterval is how often organizations past the restore window and
	// access events past their retention are removed for good, and answers that
	// cannot be replayed any more.
	purgeInterval = time.Hour
	// expirePause is how long the removal of access events lets others work
	// after each step.
	expirePause = 20 * time.Millisecond
)

// purging removes what nobody may have or needs any more.
func (s *Server) purging() background.Job {
	return background.Job{Name: "purge", First: time.Minute, Every: purgeInterval, Failing: "purge failed; it is tried again",
		Run: func(ctx context.Context) error {
			purged, err := s.Tree.PurgeExpired(ctx)
			if err != nil {
				err = fmt.Errorf("deleted organizations: %w", err)
			}
			if purged > 0 {
				s.config.Log.Info("purged deleted organizations", "organizations", purged)
			}
			answers, failed := s.Service.ExpireAnswers(ctx, expirePause)
			if failed != nil {
				err = errors.Join(err, fmt.Errorf("answers kept for Idempotency-Keys: %w", failed))
			}
			if answers > 0 {
				s.config.Log.Info("removed answers kept for Idempotency-Keys", "answers", answers)
			}
			events, failed := s.Trail.ExpireAccess(ctx, expirePause)
			if failed != nil {
				err = errors.Join(err, fmt.Errorf("access events past their retention: %w", failed))
			}
			if events > 0 {
				s.config.Log.Info("removed access events past their retention", "events", events)
			}
			return err
		}}
}

const (
	// settleInterval is how often imports are looked for that somebody has left
	// in the middle.
	settleInterval = 5 * time.Second
	// importPatience is how long an import of another process may seem to stand
	// still before it is taken over.
	importPatience = 30 * time.Second
)

// settlingImports brings imports to their end that a process has left in the
// middle: this one, before it was started again, or another one.
func (s *Server) settlingImports() background.Job {
	patience := time.Duration(0)
	if s.config.Database != "" {
		patience = importPatience
	}
	return background.Job{Name: "settle_imports", Every: settleInterval,
		Failing: "an import that was left in the middle could not be brought to its end; it is tried again",
		Run: func(ctx context.Context) error {
			n, err := s.Tree.SettleImports(ctx, patience)
			if n > 0 {
				s.config.Log.Info("brought imports to their end that were left in the middle", "imports", n)
			}
			return err
		}}
}

// Ready fails if the database cannot be reached or nothing can be recorded.
func (s *Server) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return errors.Join(s.Store.Ping(ctx), s.Recorder.Ready())
}

// Report describes the server and its parts.
func (s *Server) Report(ctx context.Context) api.Report {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	r := api.Report{Status: "ok", Version: s.config.Version, Database: s.Store.Kind(),
		UptimeSeconds: int64(s.config.Now().Sub(s.started).Seconds()), Checks: map[string]api.Check{}}
	check := func(name, failure string, err error) {
		if err != nil {
			r.Status = "degraded"
			r.Checks[name] = api.Check{Status: "failed", Detail: failure}
			s.config.Log.Warn("check failed", "check", name, "error", err)
			return
		}
		r.Checks[name] = api.Check{Status: "ok"}
	}
	check("database", "The database does not answer.", s.Store.Ping(ctx))
	check("recorder", "The access log cannot be written.", s.Recorder.Ready())
	check("audit_log", s.checkpointer.advice(), s.checkpointer.state())
	behind := s.behind.Load()
	check("months", behindAdvice(behind), behind.state())
	return r
}
