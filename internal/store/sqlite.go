package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/driver"
	"github.com/ncruces/go-sqlite3/vfs"

	"github.com/orgd/orgd/internal/durable"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

// A WAL of checkpointPages pages is copied into the database. Many small
// changes to the same pages are then copied once. Its file keeps walBytes at
// most for the next log, and on a small disk both are less: one part in
// walParts of it.
const (
	checkpointPages = 20_000
	walBytes        = 128 << 20
	walParts        = 16
	pageSize        = 4096
)

// OpenSQLite opens the database orgd.db in dir, which it creates with mode
// 0700 if need be, and brings its schema up to date. It refuses a directory
// that another process has open.
//
// The database runs in WAL mode with synchronous=FULL: what a Write has
// acknowledged survives a power cut. All changes go through one goroutine,
// which commits those that wait together (group commit).
func OpenSQLite(ctx context.Context, dir string, o Options) (*Store, error) {
	if err := durable.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("the data directory cannot be created: %w", err)
	}
	log := o.logger()
	if err := sharesMemory(dir, o.hooks.noMemory); err != nil {
		return nil, err
	}
	owner, err := own(dir, log, o.hooks)
	if err != nil {
		return nil, fmt.Errorf("the data directory %s cannot be used: %w", dir, err)
	}
	path := filepath.Join(dir, "orgd.db")
	s := &Store{log: log}
	disk := &diskState{log: s.log, trusting: o.trusting}
	vfsName := registerVFS(o.VFS, disk.failed)
	e := &sqliteEngine{
		path:        path,
		vfs:         vfsName,
		uri:         sqliteURI(path, vfsName, owner.lock.Name()),
		disk:        disk,
		owner:       owner,
		generations: &s.generations,
		lend:        &s.lend,
		queue:       make(chan *job, 4*groupSize),
		done:        make(chan struct{}),
		groupTime:   groupTime,
	}
	s.engine = e
	if err = checkCopy(dir, e.uri, s.log); err == nil {
		err = e.open(ctx, o)
	}
	if err == nil {
		// The connection that has migrated may have taken the file with it.
		var shm *os.File
		if shm, err = durable.Open(path+"-shm", os.O_RDWR); err == nil {
			err = shm.Close()
		}
	}
	if err == nil {
		// SQLite syncs its files; that they are in the directory is ours to sync.
		if err = durable.SyncDir(dir); err == nil {
			err = notePlace(dir)
		}
		if err != nil {
			e.close()
		}
	}
	if err != nil {
		vfs.Unregister(vfsName)
		owner.close()
		if noSpace(err) {
			err = durable.Lacks(dir, startsWith(path), err)
		}
		return nil, fmt.Errorf("the database %s cannot be opened: %w", e.path, err)
	}
	return s, nil
}

// sqliteURI names a database file as https://sqlite.org/uri.html says. Its
// files get the mode of the file modeOf.
func sqliteURI(path, vfs, modeOf string) string {
	query := url.Values{"vfs": {vfs}, "modeof": {modeOf}}.Encode()
	return "file:" + (&url.URL{Path: filepath.ToSlash(path)}).EscapedPath() + "?" + strings.ReplaceAll(query, "+", "%20")
}

type sqliteEngine struct {
	path        string
	vfs         string
	uri         string
	owner       *owner
	disk        *diskState
	checkpoints sync.Mutex // held by who empties the write-ahead log
	generations *generations
	lend        *atomic.Pointer[Lender]
	queue       chan *job
	done        chan struct{} // closed when the writer has ended

	// These are used by the writer goroutine alone.
	writer     *sqliteConn   // nil after a failed reopen
	groupTime  time.Duration // for how long a group takes further changes
	lastSize   int           // of the last group
	lastCommit time.Duration
	failed     time.Time // when a group was last undone
	full       bool      // the disk had no space for the last group
	emptied    time.Time // when makeRoom has last failed
	plenty     time.Time // when it has last seen plenty of space
	healed     time.Time // when heal has last tried
	unhealed   error     // what kept it

	readers readers
	health  *pinger
	pings   *sqliteConn // the connection of health; nil if there is none

	// closing guards queue against sends after its close.
	closing sync.RWMutex
	closed  bool
}

func (e *sqliteEngine) kind() string { return SQLite }

// writersPerRoot is any number: those that wait for the one writer hold nothing.
func (e *sqliteEngine) writersPerRoot() int { return 0 }

func (e *sqliteEngine) processes() int { return 1 }

func (e *sqliteEngine) open(ctx context.Context, o Options) error {
	var err error
	if e.writer, err = e.openWriter(); err != nil {
		return err
	}
	if err := e.inherit(o.Spare); err != nil {
		if e.writer != nil {
			e.writer.close()
		}
		return err
	}
	db, err := driver.Open(e.uri)
	if err != nil {
		e.writer.close()
		return err
	}
	defer db.Close()
	if err := migrate(ctx, db, sqliteDialect, o); err != nil {
		e.writer.close()
		return err
	}
	n := o.Readers
	if n <= 0 {
		n = max(4, 2*runtime.GOMAXPROCS(0))
	}
	e.readers = readers{uri: e.uri, tokens: make(chan struct{}, n), heavy: newShare(n / 2)}
	e.health = newPinger(e.askHealth)
	go e.run()
	return nil
}

func errClosed() error {
	return problem.New(problem.Unavailable, "The server is shutting down.")
}

func (e *sqliteEngine) close() error {
	e.closing.Lock()
	if e.closed {
		e.closing.Unlock()
		return nil
	}
	e.closed = true
	close(e.queue)
	e.closing.Unlock()
	<-e.done
	pings := e.health.close(func() error { return e.pings.close() })
	err := errors.Join(pings, e.readers.close(), e.closeWriter(), e.owner.close())
	vfs.Unregister(e.vfs)
	return err
}

// closeWriter closes the last connection, which then copies the write-ahead log into the
// database and removes it, unless the log may not be whole: the next start
// makes it so.
func (e *sqliteEngine) closeWriter() error {
	if e.writer == nil {
		return nil
	}
	if e.disk.failure.Load() != nil || e.owner.lost.Load() {
		return e.writer.close()
	}
	_, err := e.writer.c.Config(sqlite3.DBCONFIG_NO_CKPT_ON_CLOSE, false)
	return errors.Join(err, e.writer.close())
}

func (e *sqliteEngine) ping(ctx context.Context) error { return e.health.ping(ctx) }

// askHealth reads a page of the database file.
func (e *sqliteEngine) askHealth(context.Context) (err error) {
	if err := e.owner.sure(); err != nil {
		return err
	}
	if err := e.disk.sound(); err != nil {
		return err
	}
	if e.pings == nil {
		if e.pings, err = openSQLite(e.uri, true); err != nil {
			return sqliteProblem(err)
		}
	}
	if err = e.pings.query(func(row) error { return errEnough }, `SELECT 1 FROM sqlite_schema`); err != errEnough {
		e.pings.close()
		e.pings = nil
		if err == nil {
			err = errors.New("the database has no tables")
		}
		return sqliteProblem(err)
	}
	return nil
}

// partition has nothing to do: SQLite has no partitions.
func (e *sqliteEngine) partition(_ context.Context, _, expired time.Time) (time.Time, error) {
	return expired, nil
}

func (e *sqliteEngine) read(ctx context.Context, heavy bool, fn func(*tx) error) error {
	if err := e.disk.wait(ctx); err != nil {
		return err
	}
	if heavy {
		if err := e.readers.heavy.enter(ctx); err != nil {
			return err
		}
		defer e.readers.heavy.leave()
	}
	c, err := e.readers.get(ctx)
	if err != nil {
		return err
	}
	// A connection that panicked or failed is in no known state.
	healthy := false
	defer func() { e.readers.put(c, healthy) }()
	if _, err := c.exec(`BEGIN`); err != nil {
		return sqliteProblem(err)
	}
	t := &tx{conn: c, d: sqliteDialect}
	if heavy {
		t.ctx = ctx
	}
	err = fn(t)
	if t.err != nil {
		return sqliteProblem(t.err)
	}
	if _, err := c.exec(`COMMIT`); err != nil {
		return sqliteProblem(err)
	}
	healthy = true
	return err
}

func (e *sqliteEngine) write(ctx context.Context, fn func(*tx) error, committed func(touched)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	j := &job{fn: fn, committed: committed, done: make(chan struct{})}
	e.closing.RLock()
	if e.closed {
		e.closing.RUnlock()
		return errClosed()
	}
	select {
	case e.queue <- j:
		e.closing.RUnlock()
	case <-ctx.Done():
		e.closing.RUnlock()
		return ctx.Err()
	}
	return j.wait(ctx)
}

// writeTogether is write: all changes have one writer, which commits many of them
// together.
func (e *sqliteEngine) writeTogether(ctx context.Context, _ string, fn func(*tx) error, committed func(touched)) error {
	return e.write(ctx, fn, committed)
}

func (e *sqliteEngine) begin() (err error) {
	if e.writer == nil {
		if e.writer, err = e.openWriter(); err != nil {
			return err
		}
	}
	_, err = e.writer.exec(`BEGIN IMMEDIATE`)
	if err != nil {
		e.reopen()
	}
	return err
}

func (e *sqliteEngine) rollback() error {
	if e.writer.c.GetAutocommit() {
		return nil
	}
	_, err := e.writer.exec(`ROLLBACK`)
	return err
}

// inherit makes a log whole that an earlier process has left behind: its last
// write may have failed, and nobody else knows.
//
// It takes as much space as the database grows by. If that is not there, what
// spare gives up may be.
func (e *sqliteEngine) inherit(spare func()) error {
	info, err := os.Stat(e.path + "-wal")
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 || e.disk.trusting {
		return nil
	}
	if err != nil {
		return err
	}
	seen := e.disk.count()
	err = e.renewWAL()
	if noSpace(err) && spare != nil {
		spare()
		err = e.renewWAL()
	}
	if err != nil {
		return err
	}
	e.disk.settle(seen)
	return nil
}

// reopen gives the writer a new connection, now or with the next group.
func (e *sqliteEngine) reopen() {
	e.writer.close()
	e.writer, _ = e.openWriter()
}

// openWriter opens the connection that makes all changes, with a log that suits
// the disk.
func (e *sqliteEngine) openWriter() (*sqliteConn, error) {
	c, err := openSQLite(e.uri, false)
	if err != nil {
		return nil, err
	}
	size := durable.ShareOf(filepath.Dir(e.path), walParts, walBytes)
	pages := min(checkpointPages, size/(pageSize+frameHeaderSize))
	if err := c.c.Exec(fmt.Sprintf(`PRAGMA wal_autocheckpoint = %d; PRAGMA journal_size_limit = %d`, pages, size)); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// sqliteProblem says what an error of SQLite means to a caller. In a
// statement or at the begin of a transaction, such an error means that
// nothing was changed.
func sqliteProblem(err error) error {
	var code sqlite3.ErrorCode
	if !errors.As(err, &code) {
		return err
	}
	switch code {
	case sqlite3.FULL:
		return problem.New(problem.StorageFull, "The server's disk is full; nothing was changed.").
			WithFix("Repeat the request once the operator has freed space.").WithCause(err)
	case sqlite3.IOERR, sqlite3.CANTOPEN, sqlite3.BUSY, sqlite3.LOCKED, sqlite3.READONLY, sqlite3.NOMEM, sqlite3.PROTOCOL:
		p := problem.New(problem.Unavailable, "The database does not work at the moment.").WithCause(err)
		p.RetryAfter = time.Second
		return p
	}
	return err
}

// readers is a pool of connections that only read. The connection that was
// returned last is handed out first: its page cache is warm.
type readers struct {
	uri    string
	tokens chan struct{} // one for each connection in use
	heavy  share         // those of them that do heavy work

	mu     sync.Mutex
	idle   []*sqliteConn
	closed bool
}

func (p *readers) get(ctx context.Context) (*sqliteConn, error) {
	select {
	case p.tokens <- struct{}{}:
	default:
		select {
		case p.tokens <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		<-p.tokens
		return nil, errClosed()
	}
	if n := len(p.idle); n > 0 {
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return c, nil
	}
	p.mu.Unlock()
	c, err := openSQLite(p.uri, true)
	if err != nil {
		<-p.tokens
		return nil, sqliteProblem(err)
	}
	return c, nil
}

func (p *readers) put(c *sqliteConn, healthy bool) {
	if healthy {
		p.mu.Lock()
		p.idle = append(p.idle, c)
		p.mu.Unlock()
	} else {
		c.close()
	}
	<-p.tokens
}

// close waits for the connections in use.
func (p *readers) close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	for range cap(p.tokens) {
		p.tokens <- struct{}{}
	}
	var errs []error
	for _, c := range p.idle {
		errs = append(errs, c.close())
	}
	for range cap(p.tokens) {
		<-p.tokens
	}
	return errors.Join(errs...)
}

// sqliteConn is a connection with its prepared statements.
type sqliteConn struct {
	c     *sqlite3.Conn
	stmts map[string]*sqlite3.Stmt
}

func openSQLite(uri string, readOnly bool) (*sqliteConn, error) {
	c, err := sqlite3.OpenFlags(uri, sqlite3.OPEN_READWRITE|sqlite3.OPEN_CREATE|sqlite3.OPEN_URI)
	if err != nil {
		return nil, err
	}
	pragmas := busyTimeout + `
		PRAGMA journal_mode = WAL;
		PRAGMA synchronous = FULL;
		PRAGMA temp_store = MEMORY;
		PRAGMA trusted_schema = OFF;
		PRAGMA secure_delete = ON;
		PRAGMA cache_size = -16000;`
	if readOnly {
		pragmas = busyTimeout + `
		PRAGMA temp_store = MEMORY;
		PRAGMA trusted_schema = OFF;
		PRAGMA query_only = ON;
		PRAGMA cache_size = -8000;`
	}
	// The last connection is the one to copy the log, see closeWriter.
	if _, err = c.Config(sqlite3.DBCONFIG_NO_CKPT_ON_CLOSE, true); err == nil {
		err = c.Exec(pragmas)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return &sqliteConn{c: c, stmts: map[string]*sqlite3.Stmt{}}, nil
}

// close is safe on a nil connection.
func (c *sqliteConn) close() error {
	if c == nil {
		return nil
	}
	for _, s := range c.stmts {
		s.Close()
	}
	return c.c.Close()
}

func (c *sqliteConn) prepare(text string) (*sqlite3.Stmt, error) {
	if s, ok := c.stmts[text]; ok {
		return s, nil
	}
	s, _, err := c.c.PrepareFlags(sqliteDialect.query(text), sqlite3.PREPARE_PERSISTENT)
	if err != nil {
		return nil, fmt.Errorf("%w in %s", err, text)
	}
	c.stmts[text] = s
	return s, nil
}

func bind(s *sqlite3.Stmt, args []any) (err error) {
	for i, arg := range args {
		switch v := arg.(type) {
		case string:
			err = s.BindText(i+1, v)
		case int64:
			err = s.BindInt64(i+1, v)
		case int:
			err = s.BindInt64(i+1, int64(v))
		case []byte:
			err = s.BindBlob(i+1, v)
		default:
			err = fmt.Errorf("argument of type %T", arg)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *sqliteConn) exec(text string, args ...any) (int64, error) {
	s, err := c.prepare(text)
	if err != nil {
		return 0, err
	}
	if err := bind(s, args); err != nil {
		return 0, err
	}
	if err := s.Exec(); err != nil {
		return 0, err
	}
	return c.c.Changes(), nil
}

func (c *sqliteConn) execEach(text string, n int, args func(i int) []any, changed func(i int, rows int64) error) error {
	for i := range n {
		rows, err := c.exec(text, args(i)...)
		if err == nil && changed != nil {
			err = changed(i, rows)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *sqliteConn) later(s statement) error {
	if s.answered != nil {
		return c.query(s.answered, s.text, s.args...)
	}
	n, err := c.exec(s.text, s.args...)
	if err == nil && n == 0 && s.must {
		err = org.ErrStale
	}
	return err
}

func (c *sqliteConn) query(scan func(row) error, text string, args ...any) error {
	s, err := c.prepare(text)
	if err != nil {
		return err
	}
	if err := bind(s, args); err != nil {
		return err
	}
	ended := false
	defer func() {
		if !ended { // scan failed, or panicked: the statement must work again
			s.Reset()
		}
	}()
	for s.Step() {
		if err := scan(sqliteRow{s}); err != nil {
			return err
		}
	}
	ended = true
	return s.Reset()
}

type sqliteRow struct{ s *sqlite3.Stmt }

func (r sqliteRow) Scan(dest ...any) error {
	for i, d := range dest {
		switch v := d.(type) {
		case *string:
			*v = r.s.ColumnText(i)
		case *int64:
			*v = r.s.ColumnInt64(i)
		case *int:
			*v = int(r.s.ColumnInt64(i))
		case *[]byte:
			*v = r.s.ColumnBlob(i, []byte{})
		default:
			return fmt.Errorf("column %d into a %T", i, d)
		}
	}
	return r.s.Err()
}
