package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/orgd/orgd/internal/problem"
)

const (
	// channel carries what a transaction changed to the other processes on the
	// same database, see touched.payloads.
	channel = "orgd"
	// attempts is how often a transaction is run that conflicts with another
	// one, or loses its connection before its commit.
	attempts = 5
	// connectTimeout bounds the wait for a connection.
	connectTimeout = 5 * time.Second
	// transactionTimeout ends a transaction on a server that no longer
	// answers, without a sign from the network.
	transactionTimeout = 5 * time.Minute
	// commitTimeout bounds a commit; then its outcome is unknown.
	commitTimeout = 30 * time.Second
)

// planning makes PostgreSQL answer every query from the index that was made
// for it and in that index's order. The statistics of a table that has just
// grown would have it read and sort all of a root's rows for one page.
const planning = `SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off; SET enable_incremental_sort = off;
	SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off`

// OpenPostgres connects to the database at url and brings its schema up to
// date. It fails if the database cannot be reached; a connection that is lost
// later comes back by itself.
//
// Each Write is one transaction of its own at READ COMMITTED, in which Lock
// serializes the changes of a root. Each Read is one snapshot.
func OpenPostgres(ctx context.Context, url string, o Options) (*Store, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("the database URL is invalid: %w", err)
	}
	if o.Readers > 0 {
		config.MaxConns = int32(o.Readers)
	} else if !strings.Contains(url, "pool_max_conns") {
		config.MaxConns = max(16, config.MaxConns)
	}
	config.ConnConfig.ConnectTimeout = connectTimeout
	config.ConnConfig.DialFunc = (&net.Dialer{Timeout: connectTimeout, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}}).DialContext
	config.ConnConfig.RuntimeParams["application_name"] = "orgd"
	config.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		_, err := c.Exec(ctx, planning)
		return err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	db := stdlib.OpenDBFromPool(pool)
	err = migrate(ctx, db, postgresDialect, o)
	db.Close()
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("the database cannot be opened: %w", err)
	}

	s := &Store{log: o.logger()}
	e := &postgresEngine{pool: pool, instance: rand.Text(), texts: &sync.Map{}, config: config.ConnConfig.Copy()}
	e.health = newPinger(e.askHealth)
	n := int(config.MaxConns)
	e.heavy = newShare(n / 4)
	e.writers = newShare(n - n/4 - (n+7)/8)
	// Without its partition a month's rows go where all others are. Partition
	// tries again, and reports it.
	_ = e.makePartitions(ctx, time.Now())
	l := &listener{config: config.ConnConfig.Copy(), instance: e.instance, generations: &s.generations, started: time.Now(),
		done: make(chan struct{})}
	l.heard.Store(math.MinInt64 / 2)
	s.engine, e.listener, s.generations.doubted = e, l, l.doubted
	var background context.Context
	background, l.stop = context.WithCancel(context.Background())
	go l.run(background)
	return s, nil
}

type postgresEngine struct {
	pool     *pgxpool.Pool
	instance string    // names this process in notifications
	texts    *sync.Map // text → text in the dialect
	listener *listener
	closed   atomic.Bool

	// Heavy reads and changes, which wait for each other's locks, leave some
	// connections of the pool to other reads.
	heavy, writers share
	health         *pinger
	pings          *pgx.Conn // the connection of health; nil if there is none
	config         *pgx.ConnConfig
}

func (e *postgresEngine) kind() string { return Postgres }

// writersPerRoot leaves most of the pool to others: one transaction works, and
// the next ones are there when it ends.
func (e *postgresEngine) writersPerRoot() int { return max(2, int(e.pool.Config().MaxConns)/8) }

func (e *postgresEngine) close() error {
	if e.closed.CompareAndSwap(false, true) {
		e.listener.stop()
		<-e.listener.done
		e.health.close(func() error { e.dropHealth(); return nil })
		e.pool.Close()
	}
	return nil
}

func (e *postgresEngine) ping(ctx context.Context) error { return e.health.ping(ctx) }

// askHealth asks again on a new connection if the old one does not work any
// more: the server may have closed it long ago.
func (e *postgresEngine) askHealth(ctx context.Context) error {
	if e.pings != nil {
		if err := e.pings.Ping(ctx); err == nil {
			return nil
		}
		e.dropHealth()
	}
	c, err := pgx.ConnectConfig(ctx, e.config.Copy())
	if err != nil {
		return unreachable(err)
	}
	e.pings = c
	if err := c.Ping(ctx); err != nil {
		e.dropHealth()
		return postgresProblem(err)
	}
	return nil
}

func (e *postgresEngine) dropHealth() {
	if e.pings == nil {
		return
	}
	closing, cancel := context.WithTimeout(context.Background(), aliveInterval)
	defer cancel()
	e.pings.Close(closing)
	e.pings = nil
}

// acquire returns a connection. ctx bounds the wait.
func (e *postgresEngine) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	if e.closed.Load() {
		return nil, errClosed()
	}
	waiting, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	c, err := e.pool.Acquire(waiting)
	if err == nil {
		return c, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, unreachable(err)
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
	defer c.Release()
	caller := ctx
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), transactionTimeout)
	defer cancel()
	begun, err := c.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return postgresProblem(err), retryable(err)
	}
	defer begun.Rollback(ctx)
	t := &tx{conn: &postgresConn{ctx: ctx, tx: begun, texts: e.texts}, d: postgresDialect}
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
	detached := context.WithoutCancel(ctx)
	ctx, cancel := context.WithTimeout(detached, transactionTimeout)
	defer cancel()
	begun, err := c.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return postgresProblem(err), retryable(err)
	}
	defer begun.Rollback(ctx)
	t := &tx{conn: &postgresConn{ctx: ctx, tx: begun, texts: e.texts}, d: postgresDialect, read: map[string]stored{}}
	err = protect(func() error { return fn(t) })
	if t.err != nil {
		return postgresProblem(t.err), retryable(t.err)
	}
	if err != nil {
		return err, false
	}
	for _, payload := range t.touched().payloads(e.instance) {
		if _, err := begun.Exec(ctx, `SELECT pg_notify($1, $2)`, channel, payload); err != nil {
			return postgresProblem(err), retryable(err)
		}
	}
	committing, cancelCommit := context.WithTimeout(detached, commitTimeout)
	defer cancelCommit()
	err = begun.Commit(committing)
	switch answer := (*pgconn.PgError)(nil); {
	case err == nil:
		committed(t.touched())
		return nil, false
	case errors.As(err, &answer) && answer.SeverityUnlocalized == "ERROR", errors.Is(err, pgx.ErrTxCommitRollback):
		// The server says that it has rolled back.
		return postgresProblem(err), retryable(err)
	default:
		committed(t.touched())
		return outcomeUnknown(err), false
	}
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
	stateLockUnavailable = "55P03"
)

// retryable reports whether running the transaction again may help. It must
// not be asked about a commit that may have happened.
func retryable(err error) bool {
	var answer *pgconn.PgError
	if !errors.As(err, &answer) {
		return lostConnection(err)
	}
	switch {
	case answer.Code == stateSerialization, answer.Code == stateDeadlock, strings.HasPrefix(answer.Code, stateConnection):
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
		if lostConnection(err) {
			return unreachable(err)
		}
		return err
	}
	switch {
	case answer.Code == stateDiskFull:
		return problem.New(problem.StorageFull, "The database's disk is full; nothing was changed.").
			WithFix("Repeat the request once the operator has freed space.").WithCause(err)
	case answer.Code == stateSerialization, answer.Code == stateDeadlock, answer.Code == stateTooManyConns,
		answer.Code == stateReadOnly, answer.Code == stateLockUnavailable,
		strings.HasPrefix(answer.Code, stateConnection), strings.HasPrefix(answer.Code, stateOperator):
		return unreachable(err)
	}
	return err
}

// postgresConn is a transaction on a connection.
type postgresConn struct {
	ctx   context.Context
	tx    pgx.Tx
	texts *sync.Map
}

func (c *postgresConn) text(text string) string {
	if t, ok := c.texts.Load(text); ok {
		return t.(string)
	}
	t := postgresDialect.query(text)
	c.texts.Store(text, t)
	return t
}

func (c *postgresConn) exec(text string, args ...any) (int64, error) {
	tag, err := c.tx.Exec(c.ctx, c.text(text), args...)
	return tag.RowsAffected(), err
}

// batchSize bounds what is queued at once.
const batchSize = 1000

// execEach sends the statements without waiting for the answers in between.
func (c *postgresConn) execEach(text string, n int, args func(i int) []any, changed func(i int, rows int64) error) error {
	text = c.text(text)
	if n == 1 {
		tag, err := c.tx.Exec(c.ctx, text, args(0)...)
		if err != nil {
			return err
		}
		return changed(0, tag.RowsAffected())
	}
	for start := 0; start < n; start += batchSize {
		end := min(n, start+batchSize)
		batch := &pgx.Batch{}
		for i := start; i < end; i++ {
			batch.Queue(text, args(i)...)
		}
		results := c.tx.SendBatch(c.ctx, batch)
		for i := start; i < end; i++ {
			tag, err := results.Exec()
			if err == nil {
				err = changed(i, tag.RowsAffected())
			}
			if err != nil {
				results.Close()
				return err
			}
		}
		if err := results.Close(); err != nil {
			return err
		}
	}
	return nil
}

func (c *postgresConn) query(scan func(row) error, text string, args ...any) error {
	rows, err := c.tx.Query(c.ctx, c.text(text), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}
