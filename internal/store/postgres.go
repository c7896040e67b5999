package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

const (
	// attempts is how often a transaction is run that conflicts with another
	// one, or loses its connection before its commit.
	attempts = 5
	// connectTimeout bounds the wait for a connection.
	connectTimeout = 5 * time.Second
	// transactionTimeout bounds a transaction.
	transactionTimeout = 5 * time.Minute
	// lockTimeout bounds the wait for a lock. It is far below the time in which an
	// answer must be sent: nothing is done for which nobody waits any more.
	lockTimeout = 20 * time.Second
	// commitTimeout bounds a commit; then its outcome is unknown.
	commitTimeout = 30 * time.Second
	// retireTime is how long what is under way has to end on a server that has
	// seemed to be silent.
	retireTime = 2 * time.Second
	// userTimeout is how long a server may leave unconfirmed what was sent to it
	// (TCP_USER_TIMEOUT).
	userTimeout = 4 * time.Second
)

// sessionSettings are what every transaction needs of its session, whatever the
// role or the database has set.
//
// The planner's make PostgreSQL answer every query from the index that was made
// for it and in that index's order. The statistics of a table that has just
// grown would have it read and sort all of a root's rows for one page.
//
// The timeouts are orgd's own. A commit that was not written to the disk would
// not be one.
func sessionSettings(version int) [][2]string {
	list := [][2]string{
		{"enable_seqscan", "off"}, {"enable_bitmapscan", "off"}, {"enable_sort", "off"}, {"enable_incremental_sort", "off"},
		{"enable_hashjoin", "off"}, {"enable_mergejoin", "off"}, {"jit", "off"},
		{"statement_timeout", millis(transactionTimeout)}, {"lock_timeout", millis(lockTimeout)},
		{"idle_in_transaction_session_timeout", millis(transactionTimeout)},
	}
	if version >= 14_00_00 {
		list = append(list, [2]string{"idle_session_timeout", "0"})
	}
	if version >= 17_00_00 {
		list = append(list, [2]string{"transaction_timeout", "0"})
	}
	return list
}

// serverKeepAlive has the server notice when a connection is gone of whose end it was
// not told: the network was away, or this process's machine is. Its transaction would
// keep its locks for as long as one may be idle.
var serverKeepAlive = [][2]string{{"tcp_keepalives_idle", "5"}, {"tcp_keepalives_interval", "2"}, {"tcp_keepalives_count", "3"}}

func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// settingsText returns a query that makes the settings for the session, or for
// the transaction alone.
func settingsText(settings [][2]string, local bool) string {
	text := `SELECT `
	for _, s := range settings {
		text += fmt.Sprintf(`set_config('%s', '%s', %v), `, s[0], s[1], local)
	}
	return text + fmt.Sprintf(`set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, %v)`, local)
}

// OpenPostgres connects to the database at url and brings its schema up to
// date. It fails if the database cannot be reached or only takes reads; a
// connection that is lost later comes back by itself.
//
// If url leads through a pooler that gives each transaction another session
// (PgBouncer's pool_mode=transaction), Options.Direct must lead past it;
// without, the error is a *PoolerError.
//
// Each Write is one transaction of its own at READ COMMITTED, in which Lock
// serializes the changes of a root; WriteTogether shares one among changes of a
// root that wait. Each Read is one snapshot.
func OpenPostgres(ctx context.Context, url string, o Options) (*Store, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("the database URL is invalid: %w", err)
	}
	direct := config.ConnConfig.Copy()
	if o.Direct != "" {
		if direct, err = pgx.ParseConfig(o.Direct); err != nil {
			return nil, fmt.Errorf("the direct database URL is invalid: %w", err)
		}
	}
	for _, c := range []*pgx.ConnConfig{config.ConnConfig, direct} {
		prepareConfig(c)
	}
	s := &Store{log: o.logger()}
	e := &postgresEngine{id: rand.Text(), instance: rand.Text(), name: processName(), texts: &sync.Map{}, queues: rootQueues{roots: map[string]*rootQueue{}}, config: config.ConnConfig.Copy(), direct: direct, pooled: o.Direct != ""}
	e.epoch.Store(newEpoch())
	e.connecting.Store(newEpoch())
	config.ConnConfig.DialFunc = e.dialPool
	if e.pooled {
		e.config.DefaultQueryExecMode, config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec, pgx.QueryExecModeExec
	}
	first, err := e.findPrimary(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("the database cannot be opened: %w", notPrimary(err))
	}
	version := serverVersion(first)
	if !e.pooled {
		err = checkPooler(ctx, first, e.config)
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), beatTimeout)
	first.Close(closing)
	cancel()
	if err != nil {
		return nil, err
	}
	if err := e.migrate(ctx, o); err != nil {
		return nil, fmt.Errorf("the database cannot be opened: %w", notPrimary(err))
	}

	if o.Readers > 0 {
		config.MaxConns = int32(o.Readers)
	} else if !strings.Contains(url, "pool_max_conns") {
		config.MaxConns = max(16, config.MaxConns)
	}
	settings := sessionSettings(version)
	config.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
		e.follow(c)
		return nil
	}
	text := ""
	if e.pooled {
		e.local = settingsText(settings, true)
	} else {
		text = settingsText(append(settings, serverKeepAlive...), false)
	}
	config.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		connected(c)
		if text == "" {
			return nil
		}
		_, err := c.Exec(ctx, text, pgx.QueryExecModeSimpleProtocol)
		return err
	}
	if e.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, err
	}
	n := int(config.MaxConns)
	e.heavy = newShare(n / 4)
	e.writers = newShare(n - n/4 - (n+7)/8)
	// Without its partition a month's rows go where all others are. Partition
	// tries again, and reports it.
	_ = e.makePartitions(ctx, time.Now())
	e.beat = newBeat(e, &s.generations)
	e.beat.sweepEvery = cmp.Or(o.sweepEvery, sweepInterval)
	s.engine, s.generations.doubted = e, e.beat.doubted
	var background context.Context
	background, e.beat.stop = context.WithCancel(context.Background())
	go e.beat.run(background)
	return s, nil
}

// prepareConfig sets what all connections have in common.
func prepareConfig(c *pgx.ConnConfig) {
	c.ConnectTimeout = connectTimeout
	c.DialFunc = dial
	c.RuntimeParams["application_name"] = application
	if c.ValidateConnect == nil {
		c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	c.OnNotice = func(conn *pgconn.PgConn, n *pgconn.Notice) {
		if n.SeverityUnlocalized == "WARNING" {
			conn.CustomData()[warned] = n.Message
		}
	}
}

// warned is where a connection keeps the last warning that its server has sent.
const warned = "warned"

// migrate brings the schema up to date, past a pooler.
func (e *postgresEngine) migrate(ctx context.Context, o Options) error {
	config := e.direct.Copy()
	if !e.pooled {
		e.follow(config)
	}
	// A migration takes the time that it takes.
	text := settingsText(append([][2]string{{"statement_timeout", "0"}, {"lock_timeout", "0"}, {"idle_in_transaction_session_timeout", "0"}}, serverKeepAlive...), false)
	db := stdlib.OpenDB(*config, stdlib.OptionAfterConnect(func(ctx context.Context, c *pgx.Conn) error {
		_, err := c.Exec(ctx, text, pgx.QueryExecModeSimpleProtocol)
		return err
	}))
	defer db.Close()
	return migrate(ctx, db, postgresDialect, o)
}

func processName() string {
	host, _ := os.Hostname()
	return fmt.Sprintf("%s, process %d", host, os.Getpid())
}

func serverVersion(c *pgx.Conn) int {
	var major, minor int
	_, _ = fmt.Sscanf(c.PgConn().ParameterStatus("server_version"), "%d.%d", &major, &minor)
	return major*10000 + minor
}

// notPrimary says in orgd's words that none of the servers takes changes.
func notPrimary(err error) error {
	if err == nil {
		return nil
	}
	if isReadOnly(err) {
		return fmt.Errorf("it takes no changes: it is a standby, or is set to read only (default_transaction_read_only); name the primary, or all servers of which one is it: %w", err)
	}
	return err
}

// isReadOnly reports whether a server has said that it takes no changes, to a
// statement or when asked at the connection.
func isReadOnly(err error) bool {
	var answer *pgconn.PgError
	return errors.As(err, &answer) && answer.Code == stateReadOnly || strings.Contains(err.Error(), "read only connection")
}

type postgresEngine struct {
	pool   *pgxpool.Pool
	texts  *sync.Map       // text → text in the dialect
	config *pgx.ConnConfig // as the pool connects
	direct *pgx.ConnConfig // past the pooler, if there is one
	pooled bool            // each transaction may have another session
	local  string          // if pooled: the query that makes a transaction's settings
	id     string          // of this process
	name   string          // of this process, for people
	beat   *beat
	closed atomic.Bool

	idMu     sync.Mutex
	instance string                // names this process in the table of changes
	primary  atomic.Pointer[place] // the server that takes the changes, where the URL names several
	epoch    atomic.Pointer[epoch] // of the transactions under way
	// connecting is the epoch of the connections of the pool that are not there yet.
	connecting atomic.Pointer[epoch]

	// Heavy reads and changes, which wait for each other's locks, leave some
	// connections of the pool to other reads.
	heavy, writers share
	queues         rootQueues
}

// process returns the name under which this process makes changes.
func (e *postgresEngine) process() string {
	e.idMu.Lock()
	defer e.idMu.Unlock()
	return e.instance
}

// rename gives this process a new name, so that it looks at what it has changed
// under the old one as at what others have.
func (e *postgresEngine) rename() {
	e.idMu.Lock()
	defer e.idMu.Unlock()
	e.instance = rand.Text()
}

// epoch is a time in which the database seems to be there. With its end
// all transactions under way end too.
type epoch struct {
	context.Context
	end context.CancelFunc
}

func newEpoch() *epoch {
	ctx, end := context.WithCancel(context.Background())
	return &epoch{ctx, end}
}

// renew has all transactions that begin from now on do so on new connections.
// The idle ones are cut: to one that leads to a silent server a farewell would
// take long, and until then it would take the place of a new one.
func (e *postgresEngine) renew() {
	e.connecting.Swap(newEpoch()).end()
	for _, c := range e.pool.AcquireAllIdle(context.Background()) {
		cut(c.Conn())
		c.Release()
	}
	e.pool.Reset()
}

// giveUp ends the transactions that wait for a server that is not there.
func (e *postgresEngine) giveUp() {
	e.epoch.Swap(newEpoch()).end()
	e.renew()
}

// retire is giveUp for a server that may only be slow: what is under way has some
// time to end.
func (e *postgresEngine) retire() {
	time.AfterFunc(retireTime, e.epoch.Swap(newEpoch()).end)
	e.renew()
}

// bounded returns a context for what is done on a connection. When it is over, or
// the epoch, the connection is cut.
func (e *postgresEngine) bounded(ctx context.Context, most time.Duration, c *pgx.Conn) (context.Context, context.CancelFunc) {
	now := e.epoch.Load()
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	end := func() {
		cut(c)
		cancel()
	}
	stop, timer := context.AfterFunc(now, end), time.AfterFunc(most, end)
	return ctx, func() { stop(); timer.Stop(); cancel() }
}

func (e *postgresEngine) kind() string { return Postgres }

// writersPerRoot leaves most of the pool to others: one transaction works, and
// the next ones are there when it ends.
func (e *postgresEngine) writersPerRoot() int { return max(2, int(e.pool.Config().MaxConns)/8) }

func (e *postgresEngine) processes() int { return int(e.beat.alive.Load()) }

func (e *postgresEngine) close() error {
	if e.closed.CompareAndSwap(false, true) {
		e.beat.stop()
		<-e.beat.done
		e.pool.Close()
	}
	return nil
}

// ping says what the last look was like.
func (e *postgresEngine) ping(context.Context) error {
	if e.closed.Load() {
		return errClosed()
	}
	e.beat.mu.Lock()
	why := e.beat.why
	e.beat.mu.Unlock()
	if why == nil && e.beat.since(&e.beat.proven) > 2*trustTime {
		why = e.beat.reason()
	}
	switch {
	case why == nil:
		return nil
	case isReadOnly(why):
		p := problem.New(problem.Unavailable, "The database takes no changes: it is a standby, or set to read only.").WithCause(why)
		p.RetryAfter = time.Second
		return p
	}
	return unreachable(why)
}

// acquire returns a connection. ctx bounds the wait.
func (e *postgresEngine) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	if e.closed.Load() {
		return nil, errClosed()
	}
	waiting, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	for {
		if err := e.beat.lost(); err != nil {
			return nil, err
		}
		now := e.connecting.Load()
		c, err := e.pool.Acquire(waiting)
		switch {
		case err == nil:
			return c, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case now.Err() == nil || waiting.Err() != nil:
			return nil, unreachable(err)
		}
		// It was given up for one that may lead elsewhere.
	}
}

// begin returns a transaction that begins with its first statement. Where it may
// be on another server than the last one, a read also makes sure that what it
// sees is not older than what was looked at.
func (e *postgresEngine) begin(ctx context.Context, c *pgxpool.Conn, text string, reads bool) *postgresConn {
	conn := &postgresConn{ctx: ctx, conn: c.Conn(), texts: e.texts}
	conn.waiting = append(make([]statement, 0, 8), statement{text: text})
	if !e.pooled {
		return conn
	}
	s := statement{text: e.local}
	if reads {
		least := e.beat.ahead.Load()
		s.text += `, pg_is_in_recovery()::text, pg_snapshot_xmax(pg_current_snapshot())::text`
		s.answered = func(r row) error { return present(r.(pgx.Rows), least) }
	}
	conn.waiting = append(conn.waiting, s)
	return conn
}

// errElsewhere says that a read was made on a server that lags behind.
var errElsewhere = errors.New("the pooler has led to a server that does not have the present state")

// present checks the last two columns of a row: whether the server is a standby,
// and up to which transaction it has come.
func present(r pgx.Rows, least int64) error {
	values := r.RawValues()
	n := len(values)
	next, err := strconv.ParseInt(string(values[n-1]), 10, 64)
	if err != nil || string(values[n-2]) != "false" || next < least {
		return errElsewhere
	}
	return nil
}

func (e *postgresEngine) read(ctx context.Context, heavy bool, fn func(*tx) error) error {
	if heavy {
		if err := e.heavy.enter(ctx); err != nil {
			return err
		}
		defer e.heavy.leave()
	}
	for attempt := 1; ; attempt++ {
		err, again := e.readOnce(ctx, heavy, fn)
		if !again || attempt == attempts {
			return err
		}
	}
}

func (e *postgresEngine) readOnce(ctx context.Context, heavy bool, fn func(*tx) error) (err error, again bool) {
	c, err := e.acquire(ctx)
	if err != nil {
		return err, false
	}
	caller := ctx
	ctx, cancel := e.bounded(ctx, transactionTimeout, c.Conn())
	conn := e.begin(ctx, c, `begin isolation level repeatable read read only`, true)
	// Nobody waits for the end of a read.
	defer func() {
		go func() {
			conn.end(ctx)
			cancel()
			c.Release()
		}()
	}()
	t := &tx{conn: conn, d: postgresDialect}
	if heavy {
		t.ctx = caller
	}
	err = fn(t)
	if t.err != nil {
		return postgresProblem(t.err), retryable(t.err)
	}
	return err, false
}

func (e *postgresEngine) write(ctx context.Context, fn func(*tx) error, committed func(touched)) error {
	if err := e.writers.enter(ctx); err != nil {
		return err
	}
	defer e.writers.leave()
	return e.writeAlone(ctx, fn, committed)
}

// writeAlone runs a change in a transaction of its own, for whoever has a place
// among the writers.
func (e *postgresEngine) writeAlone(ctx context.Context, fn func(*tx) error, committed func(touched)) error {
	for attempt := 1; ; attempt++ {
		if err := ctx.Err(); err != nil && attempt == 1 {
			return err
		}
		err, again := e.writeOnce(ctx, fn, committed)
		if !again || attempt == attempts {
			return err
		}
		// What has begun is not cancelled.
		ctx = context.WithoutCancel(ctx)
		time.Sleep(time.Duration(attempt*attempt) * time.Millisecond)
	}
}

func (e *postgresEngine) writeOnce(ctx context.Context, fn func(*tx) error, committed func(touched)) (err error, again bool) {
	c, err := e.acquire(ctx)
	if err != nil {
		return err, false
	}
	defer c.Release()
	ctx, cancel := e.bounded(ctx, transactionTimeout, c.Conn())
	defer cancel()
	conn := e.begin(ctx, c, `begin isolation level read committed`, false)
	defer conn.end(ctx)
	t := &tx{conn: conn, d: postgresDialect, read: map[string]stored{}}
	err = protect(func() error { return fn(t) })
	if t.err != nil {
		return e.refused(t.err)
	}
	if err != nil {
		return err, false
	}
	changed := t.touched()
	if err := e.note(conn, changed); err != nil {
		return e.refused(err)
	}
	return e.commit(ctx, conn, func() { committed(changed); e.beat.changed(changed) })
}

// refused returns what an error means after which the server has committed
// nothing.
func (e *postgresEngine) refused(err error) (problem error, again bool) {
	var answer *pgconn.PgError
	if errors.As(err, &answer) && answer.Code == stateReadOnly {
		// The connections lead to a server that takes no changes any more.
		e.renew()
	}
	return postgresProblem(err), retryable(err)
}

// note says in the transaction itself what it has changed.
func (e *postgresEngine) note(conn *postgresConn, t touched) error {
	n := len(t.roots) + len(t.orgs)
	if n == 0 {
		return nil
	}
	roots, orgs := make([]string, n), make([]string, n)
	copy(roots, t.roots)
	copy(orgs[len(t.roots):], t.orgs)
	process := e.process()
	err := conn.later(statement{text: `INSERT INTO changes (tx, process, root_id, org_id)
		SELECT pg_current_xact_id()::text::bigint, $1, r, o FROM unnest($2::text[], $3::text[]) AS u(r, o)`, args: []any{process, roots, orgs}})
	if err == nil && e.beat.older.Load() {
		err = conn.later(statement{text: announceText, args: []any{channel, t.payloads(process)}})
	}
	return err
}

// commit commits. made is called if it did, or may have.
func (e *postgresEngine) commit(ctx context.Context, conn *postgresConn, made func()) (err error, again bool) {
	committing, cancel := e.bounded(ctx, commitTimeout, conn.conn)
	defer cancel()
	data := conn.conn.PgConn().CustomData()
	delete(data, warned)
	err = conn.commit(committing)
	warning := data[warned]
	delete(data, warned)
	switch answer := (*pgconn.PgError)(nil); {
	case err == nil && warning == nil:
		made()
		return nil, false
	case err == nil:
		// It may not have reached the standby that it should have.
		err = fmt.Errorf("the server has committed with a warning: %v", warning)
	case errors.As(err, &answer) && answer.SeverityUnlocalized == "ERROR", errors.Is(err, pgx.ErrTxCommitRollback), errors.Is(err, org.ErrStale), pgconn.SafeToRetry(err):
		// The server says that it has rolled back, or has heard of nothing.
		return e.refused(err)
	}
	// It may still happen. Then it shows as a change that somebody else makes.
	e.rename()
	made()
	return outcomeUnknown(err), false
}

func unreachable(err error) error {
	p := problem.New(problem.Unavailable, "The database cannot be reached at the moment.").WithCause(err)
	p.RetryAfter = time.Second
	return p
}

// Classes and codes of SQLSTATE, see appendix A of PostgreSQL's manual.
const (
	stateConnection      = "08"
	stateOperator        = "57P" // shutdown, crash, starting up
	stateSerialization   = "40001"
	stateDeadlock        = "40P01"
	stateDiskFull        = "53100"
	stateTooManyConns    = "53300"
	stateReadOnly        = "25006" // a standby: the primary is elsewhere
	stateLockUnavailable = "55P03" // or a lock_timeout
	stateCancelled       = "57014" // by a statement_timeout, or by somebody
	stateTimeout         = "25P0"  // of a transaction: the class's 25P03 and 25P04
)

// retryable reports whether running the transaction again may help. It must
// not be asked about a commit that may have happened.
func retryable(err error) bool {
	var answer *pgconn.PgError
	if !errors.As(err, &answer) {
		return lostConnection(err) || errors.Is(err, errElsewhere)
	}
	switch {
	case answer.Code == stateSerialization, answer.Code == stateDeadlock, answer.Code == stateReadOnly, strings.HasPrefix(answer.Code, stateConnection):
		return true
	}
	return strings.HasPrefix(answer.Code, stateOperator)
}

// lostConnection reports whether err comes from the connection and not from
// the server: a network error, or an end of it in the middle of an answer.
func lostConnection(err error) bool {
	var network net.Error
	var connect *pgconn.ConnectError
	return errors.As(err, &network) || errors.As(err, &connect) || pgconn.SafeToRetry(err) ||
		strings.Contains(err.Error(), "unexpected EOF") || strings.Contains(err.Error(), "conn closed")
}

// postgresProblem says what an error of PostgreSQL means to a caller, when
// nothing has been changed.
func postgresProblem(err error) error {
	if err == nil {
		return nil
	}
	var answer *pgconn.PgError
	if !errors.As(err, &answer) {
		if lostConnection(err) || errors.Is(err, errElsewhere) || errors.Is(err, context.Canceled) {
			return unreachable(err)
		}
		return err
	}
	switch {
	case answer.Code == stateDiskFull:
		return problem.New(problem.StorageFull, "The database's disk is full; nothing was changed.").
			WithFix("Repeat the request once the operator has freed space.").WithCause(err)
	case answer.Code == stateSerialization, answer.Code == stateDeadlock, answer.Code == stateTooManyConns,
		answer.Code == stateReadOnly, answer.Code == stateLockUnavailable, answer.Code == stateCancelled,
		answer.Code == stateTimeout+"3", answer.Code == stateTimeout+"4",
		strings.HasPrefix(answer.Code, stateConnection), strings.HasPrefix(answer.Code, stateOperator):
		return unreachable(err)
	}
	return err
}
