package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/usage"
)

// serveFlags are the flags of serve and demo.
type serveFlags struct {
	dataDir, database, listen, basePath string
	databaseDirect                      string
	databasePool                        int
	forwardAuthListen, adminListen      string
	trustedProxies                      []string
	restoreWindow, monthCloseAfter      time.Duration
	shutdownDelay                       time.Duration
	spoolMaxMiB                         int64
	auditAnchor                         string
	witnesses                           []string
	logLevel, logFormat                 string
	demo                                bool // not a flag
}

func (f *serveFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.dataDir, "data-dir", "./orgd-data", "directory of the database, the recorded requests and the secret keys")
	fs.StringVar(&f.database, "database", "", "PostgreSQL `URL` (postgres://…); SQLite in the data directory without it")
	fs.StringVar(&f.databaseDirect, "database-direct", "", "`URL` of the same database that leads past a pooler which gives each transaction another session (PgBouncer's pool_mode=transaction); needed with one")
	fs.IntVar(&f.databasePool, "database-pool-size", 0, "how many connections to PostgreSQL do the work of requests, 4 to 1000; two more look for changes; 0 for 16, or as many as there are processors")
	fs.StringVar(&f.listen, "listen", "127.0.0.1:8080", "`address` to listen on")
	fs.StringVar(&f.forwardAuthListen, "forward-auth-listen", "", "`address` that serves /forward_auth, for proxies alone; without it --listen does")
	fs.StringVar(&f.adminListen, "admin-listen", "", "`address` that serves /metrics and /service_status, for operators alone; without it --listen does")
	fs.StringVar(&f.basePath, "base-path", "", "`path` under which the API is served too, such as /api/v1")
	fs.StringSliceVar(&f.trustedProxies, "trusted-proxies", nil, "addresses of the proxies, or `CIDRs`, that are believed about the client's address and, in /forward_auth, about the original request (default none)")
	f.restoreWindow, f.monthCloseAfter = 30*24*time.Hour, metering.DefaultMonthCloseAfter
	fs.Var((*duration)(&f.restoreWindow), "restore-window", "how long a deleted organization can be restored")
	fs.Var((*duration)(&f.shutdownDelay), "shutdown-delay", "how long requests are still answered after SIGTERM while /readyz is 503, so that a balancer sends them elsewhere")
	fs.Var((*duration)(&f.monthCloseAfter), "month-close-after", "how long after its end a month still takes late usage events")
	fs.Int64Var(&f.spoolMaxMiB, "spool-max", 0, "how many `MiB` of recorded requests may wait for the database before requests get 503; 0 for 1024, or an eighth of a disk of less than 8 GiB")
	fs.StringVar(&f.auditAnchor, "audit-anchor", "", "append-only `file` that keeps what was signed of the audit logs, better not on the database's disk (default audit.anchor in the data directory)")
	fs.StringSliceVar(&f.witnesses, "witness", nil, "a `witness` that cosigns the audit logs (C2SP tlog-witness): its URL and its verifier key, with a space between them; repeatable")
	fs.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&f.logFormat, "log-format", "text", "text or json")
}

// duration is the value of a flag that takes days too: 30d.
type duration time.Duration

func (d *duration) Set(v string) error {
	parsed, err := parseDuration(v)
	*d = duration(parsed)
	return err
}

func (d *duration) String() string { return time.Duration(*d).String() }
func (d *duration) Type() string   { return "duration" }

// fromEnvironment sets every flag that was not given from the environment, but
// for some: --data-dir from ORGD_DATA_DIR, and so on. An empty variable counts
// as not set, since many tools can only empty one.
func fromEnvironment(fs *pflag.FlagSet, but ...string) error {
	var errs []error
	fs.VisitAll(func(f *pflag.Flag) {
		if slices.Contains(secretFlags, f.Name) {
			return
		}
		name := variableOf(f.Name)
		if v := os.Getenv(name); v != "" && !f.Changed && f.Name != "help" && !slices.Contains(but, f.Name) {
			if err := fs.Set(f.Name, v); err != nil {
				errs = append(errs, usageError("%s=%q is not valid: it takes %s", name, v, valuesOf(f)))
			}
		}
	})
	return errors.Join(append(errs, secretsFromEnvironment(fs, but))...)
}

// logger returns the logger that the flags ask for, and what it writes to.
func (f *serveFlags) logger() (*slog.Logger, *server.LineWriter, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
		return nil, nil, usageError("--log-level must be debug, info, warn or error, not %q", f.logLevel)
	}
	opt := &slog.HandlerOptions{Level: level}
	if f.logFormat != "text" && f.logFormat != "json" {
		return nil, nil, usageError("--log-format must be text or json, not %q", f.logFormat)
	}
	w := server.NewLineWriter(os.Stderr)
	var h slog.Handler = slog.NewTextHandler(w, opt)
	if f.logFormat == "json" {
		h = slog.NewJSONHandler(w, opt)
	}
	return slog.New(w.Handler(h)), w, nil
}

func (f *serveFlags) config(log *slog.Logger) (server.Config, error) {
	c := server.Config{DataDir: f.dataDir, Database: f.database, DatabaseDirect: f.databaseDirect, DatabasePool: f.databasePool, BasePath: strings.TrimSuffix(f.basePath, "/"),
		RestoreWindow: f.restoreWindow, ShutdownDelay: f.shutdownDelay, SpoolMaxBytes: f.spoolMaxMiB << 20, Version: version(), Log: log,
		AuditAnchor: f.auditAnchor, Witnesses: f.witnesses, Demo: f.demo}
	if !f.demo {
		var err error
		if c.OperatorKey, err = secretVariable("ORGD_OPERATOR_KEY"); err != nil {
			return c, err
		}
		if c.AuditKey, err = secretVariable("ORGD_AUDIT_KEY"); err != nil {
			return c, err
		}
		// For tests that compare with and without: no flag, since nobody should
		// want it.
		if c.NoBudget = os.Getenv("ORGD_NO_BUDGETS") == "true"; c.NoBudget {
			log.Warn("ORGD_NO_BUDGETS: nothing bounds what one customer uses at the same time")
		}
	}
	for flag, database := range map[string]string{"database": c.Database, "database-direct": c.DatabaseDirect} {
		if database == "" {
			continue
		}
		if err := checkDatabaseURL(flag, database); err != nil {
			return c, err
		}
	}
	switch {
	case c.Database == "" && c.DatabaseDirect != "":
		return c, usageError("--database-direct is for use beside --database, which leads through a pooler")
	case c.Database == "" && c.DatabasePool != 0:
		return c, usageError("--database-pool-size is for PostgreSQL: it needs --database")
	case c.DatabasePool != 0 && (c.DatabasePool < 4 || c.DatabasePool > 1000):
		return c, usageError("--database-pool-size must be from 4 to 1000")
	}
	if err := server.CheckBasePath(c.BasePath); err != nil {
		return c, usageError("--base-path: %w", err)
	}
	places := f.places(&c)
	for i, at := range places {
		for _, other := range places[:i] {
			if at.address == other.address && !strings.HasSuffix(at.address, ":0") {
				return c, usageError("%s and %s are both %s; each needs an address of its own", other.flag, at.flag, at.address)
			}
		}
	}
	if f.restoreWindow < 0 {
		return c, usageError("--restore-window cannot be negative")
	}
	if f.shutdownDelay < 0 {
		return c, usageError("--shutdown-delay cannot be negative")
	}
	if c.MonthCloseAfter = f.monthCloseAfter; f.monthCloseAfter < 0 || f.monthCloseAfter > usage.Window {
		return c, usageError("--month-close-after must be from 0 to %s", usage.Window)
	} else if f.monthCloseAfter == 0 {
		c.MonthCloseAfter = -1
	}
	if f.spoolMaxMiB < 0 {
		return c, usageError("--spool-max cannot be negative")
	}
	if err := server.CheckWitnesses(f.witnesses); err != nil {
		return c, usageError("--witness: %w", err)
	}
	var err error
	if c.TrustedProxies, err = server.ParseTrustedProxies(f.trustedProxies); err != nil {
		return c, usageError("--trusted-proxies: %w", err)
	}
	return c, nil
}

func serveCommand() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:     "serve",
		Short:   "Run the server",
		GroupID: "server",
		Args:    cobra.NoArgs,
		Long: `Run the server.

Without flags it keeps everything in ./orgd-data and listens on loopback. The
first start makes the operator key and writes it to operator.key in the data
directory; ORGD_OPERATOR_KEY sets it instead ('orgd keygen' makes one). The seed
of the keys that sign the audit logs is in audit.key there; ORGD_AUDIT_KEY sets
it instead ('orgd keygen --audit' makes one). The first start makes that, too.
Keep a copy: without it the logs cannot be signed, and the server does not start.
Servers that share a database share both.

Every flag can also be set in the environment: --data-dir as ORGD_DATA_DIR. A
flag goes before the environment. ORGD_OPERATOR_KEY, ORGD_AUDIT_KEY,
ORGD_DATABASE and ORGD_DATABASE_DIRECT may be in files: ORGD_OPERATOR_KEY_FILE
names one. A duration is written as 90s, 72h or 30d.
SIGTERM lets the requests under way finish; a second one ends them. Behind a
balancer set --shutdown-delay to a little more than the time that it takes to
notice that /readyz is 503: until then requests are answered as before.`,
		Example: `  orgd serve
  orgd serve --data-dir /var/lib/orgd --listen 0.0.0.0:8080 --trusted-proxies 10.0.0.5
  orgd serve --database postgres://orgd@db.internal/orgd`,
		PreRunE: func(cmd *cobra.Command, _ []string) error { return fromEnvironment(cmd.Flags()) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.Context(), nil)
		},
	}
	f.add(cmd.Flags())
	return cmd
}

// listenPlace is an address to listen on.
type listenPlace struct {
	flag, address string
	listener      *net.Listener
}

// places returns where the server listens, the main address first, and where
// its configuration has the listeners for the others.
func (f *serveFlags) places(c *server.Config) []listenPlace {
	all := []listenPlace{{"--listen", f.listen, new(net.Listener)}}
	if f.forwardAuthListen != "" {
		all = append(all, listenPlace{"--forward-auth-listen", f.forwardAuthListen, &c.Proxies})
	}
	if f.adminListen != "" {
		all = append(all, listenPlace{"--admin-listen", f.adminListen, &c.Admin})
	}
	return all
}

// listen listens on the address of a flag.
func listen(flag, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s is in use by another program; choose another address with %s", address, flag)
	} else if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", address, err)
	}
	return l, nil
}

// run serves until ctx ends. started is called once the server listens.
func (f *serveFlags) run(ctx context.Context, started func(s *server.Server, url string) error) (err error) {
	log, lines, err := f.logger()
	if err != nil {
		return err
	}
	defer lines.Close()
	config, err := f.config(log)
	if err != nil {
		return err
	}
	bound := server.BoundHeap()
	begin := time.Now()
	places := f.places(&config)
	for _, at := range places {
		l, err := listen(at.flag, at.address)
		if err != nil {
			return err
		}
		defer l.Close()
		*at.listener = l
	}
	l := *places[0].listener
	url := "http://" + l.Addr().String()
	log.Info("orgd is live, and ready when its database is open", "healthz", url+"/healthz", "version", version(), "heap_mib", bound>>20)
	front := server.Listen(config, l)
	s, err := front.Open(ctx)
	if err != nil {
		front.Close()
		if ctx.Err() != nil {
			log.Info("stopped before it was ready", "error", err)
			return nil
		}
		return err
	}
	defer func() {
		if err = errors.Join(err, s.Close()); err == nil {
			log.Info("stopped")
		}
	}()
	if s.NewOperatorKey != "" {
		log.Info("made the operator key", "file", s.NewOperatorKey)
	}
	if l := config.Proxies; l != nil {
		log.Info("listening for proxies alone", "forward_auth", "http://"+l.Addr().String()+"/forward_auth")
	}
	if l := config.Admin; l != nil {
		log.Info("listening for operators alone", "metrics", "http://"+l.Addr().String()+"/metrics", "service_status", "http://"+l.Addr().String()+"/service_status")
	}
	log.Info("orgd is listening", "url", url, "docs", url+"/docs", "database", s.Store.Kind(),
		"data_dir", f.dataDir, "version", version(), "took_ms", time.Since(begin).Milliseconds())
	lines.Flush()
	if started == nil {
		return front.Serve(ctx, s)
	}
	served := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { served <- front.Serve(ctx, s) }()
	if err := started(s, url); err != nil {
		cancel()
		return errors.Join(err, <-served)
	}
	return <-served
}

func keygenCommand() *cobra.Command {
	var seed bool
	cmd := &cobra.Command{
		Use: "keygen", Short: "Make an operator key, or a seed for the audit logs", GroupID: "server", Args: cobra.NoArgs,
		Long: `Make an operator key and print it. ORGD_OPERATOR_KEY gives it to the server, or
the file operator.key in its data directory.

With --audit it makes a seed of the keys that sign the audit logs, for
ORGD_AUDIT_KEY or the file audit.key.`,
		Example: `  ORGD_OPERATOR_KEY=$(orgd keygen) orgd serve
  orgd keygen --audit`,
		Run: func(cmd *cobra.Command, _ []string) {
			if seed {
				fmt.Fprintln(cmd.OutOrStdout(), audit.NewSeed(rand.Reader))
				return
			}
			token, _, _ := key.NewSecret(rand.Reader, "operator")
			fmt.Fprintln(cmd.OutOrStdout(), token)
		},
	}
	cmd.Flags().BoolVar(&seed, "audit", false, "make a seed for ORGD_AUDIT_KEY instead")
	return cmd
}
