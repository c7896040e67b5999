package store

import (
	"context"
	"database/sql"
	"slices"
	"time"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/driver"
	"github.com/pressly/goose/v3"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
)

// OldDatabase makes a database with the schema that the given migrations lead
// to, at a path of a SQLite file or a postgres:// URL, and runs fill on it.
func OldDatabase(ctx context.Context, kind, name string, versions map[int64]bool, fill func(exec func(text string, args ...any) error) error) error {
	d := sqliteDialect
	open := func() (*sql.DB, error) { return driver.Open("file:" + name) }
	if kind == Postgres {
		d = postgresDialect
		open = func() (*sql.DB, error) { return sql.Open("pgx", name) }
	}
	db, err := open()
	if err != nil {
		return err
	}
	defer db.Close()
	all, err := migrationSteps(d, newProgress(nil, d, Options{}))
	if err != nil {
		return err
	}
	var steps []*goose.Migration
	for _, s := range all {
		if versions[s.Version] {
			steps = append(steps, s)
		}
	}
	provider, err := goose.NewProvider(d.goose, db, nil, goose.WithGoMigrations(steps...), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	if _, err := provider.Up(ctx); err != nil {
		return err
	}
	return fill(func(text string, args ...any) error {
		_, err := db.ExecContext(ctx, d.query(text), args...)
		return err
	})
}

// RegisterVFS is registerVFS.
func RegisterVFS(name string) string { return registerVFS(name, func(error) {}) }

// Trusting returns options with which a store goes on after a failed write as
// if nothing had happened.
func Trusting(o Options) Options {
	o.trusting = true
	return o
}

// OnMount returns options with which a store believes that it has the data
// directory on a mount, whose locks nobody else knows.
func OnMount(mount string) Options {
	return Options{hooks: ownerHooks{unlocked: true, mount: mount}}
}

// WithoutSharedMemory returns options of a file system that has none.
func WithoutSharedMemory() Options { return Options{hooks: ownerHooks{noMemory: true}} }

// Freeze stops the heart of a store, as a process that is stopped, until thaw is
// called.
func Freeze(s *Store) (thaw func()) {
	o := s.engine.(*sqliteEngine).owner
	o.mu.Lock()
	return o.mu.Unlock
}

// Commit ends the transaction of a connection as the writer does.
func Commit(c *sqlite3.Conn) error {
	conn := &sqliteConn{c: c, stmts: map[string]*sqlite3.Stmt{}}
	err := conn.commit()
	for _, s := range conn.stmts {
		s.Close()
	}
	return err
}

// ClosedLog ends the log of a root and appends a record to it, as the purge of
// a root does.
func ClosedLog(t org.Tx, head *audit.Head, r audit.Record) error {
	if err := t.(*tx).CloseLog(head, time.UnixMicro(1)); err != nil {
		return err
	}
	head.Size++
	return t.AppendAudit(head, []audit.Record{r})
}

// LockPanics panics while it reads the head of a log.
func LockPanics(t org.Tx, rootID string) error {
	return t.(*tx).query(func(row) error { panic("oh") }, lockHead, rootID)
}

// HeadsWritten counts how often the writer has written the head of a log.
func HeadsWritten(s *Store) (n int) {
	return s.engine.(*sqliteEngine).writer.stmts[moveHead].Status(sqlite3.STMTSTATUS_RUN, false)
}

// Group makes changes in one group commit, in their order, and returns their
// errors.
func Group[T any](s *Store, changes ...func(T) error) []error {
	e := s.engine.(*sqliteEngine)
	waiting := make(chan struct{})
	e.queue <- &job{committed: s.generations.changed, done: make(chan struct{}), fn: func(*tx) error {
		<-waiting
		e.lastCommit, e.groupTime = time.Hour, time.Hour // so that the group takes all that wait
		return nil
	}}
	jobs := make([]*job, len(changes))
	for i, change := range changes {
		jobs[i] = &job{committed: s.generations.changed, done: make(chan struct{}), fn: func(t *tx) error { return change(side[T](t)) }}
		e.queue <- jobs[i]
	}
	close(waiting)
	errs := make([]error, len(changes))
	for i, j := range jobs {
		<-j.done
		errs[i] = j.err
	}
	return errs
}

// Changes returns how many rows fn changes in a transaction.
func Changes(t org.Tx, fn func() error) (int64, error) {
	inner := t.(*tx)
	c := &countingConn{conn: inner.conn}
	inner.conn = c
	defer func() { inner.conn = c.conn }()
	err := fn()
	return c.rows, err
}

type countingConn struct {
	conn
	rows int64
}

func (c *countingConn) exec(text string, args ...any) (int64, error) {
	n, err := c.conn.exec(text, args...)
	c.rows += n
	return n, err
}

func (c *countingConn) later(s statement) error {
	if s.answered != nil {
		return c.query(s.answered, s.text, s.args...)
	}
	n, err := c.exec(s.text, s.args...)
	if err == nil && n == 0 && s.must {
		err = org.ErrStale
	}
	return err
}

func (c *countingConn) execEach(text string, n int, args func(int) []any, changed func(int, int64) error) error {
	return c.conn.execEach(text, n, args, func(i int, rows int64) error {
		c.rows += rows
		if changed == nil {
			return nil
		}
		return changed(i, rows)
	})
}

// Watch runs what takes so long as a migration of that name.
func Watch(o Options, name string, takes time.Duration) error {
	return newProgress(nil, sqliteDialect, o).watch(context.Background(), name, 0, func() error {
		time.Sleep(takes)
		return nil
	})
}

// MigrationConn returns a connection that holds the lock of migrations.
func MigrationConn(ctx context.Context, url string) (*sql.Conn, error) {
	db, err := sql.Open("pgx", url)
	if err != nil {
		return nil, err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	return conn, sessionLocker{newProgress(db, postgresDialect, Options{})}.SessionLock(ctx, conn)
}

// Sweeping returns Options with which what has been seen is swept away so often.
func (o Options) Sweeping(every time.Duration) Options {
	o.sweepEvery = every
	return o
}

// Exec runs a statement in a transaction.
func Exec(t org.Tx, text string, args ...any) error {
	_, err := t.(*tx).exec(text, args...)
	return err
}

// Select returns what a query finds in a transaction: columns that can be read
// as text.
func Select(t org.Tx, columns int, text string, args ...any) (rows [][]string, err error) {
	err = t.(*tx).query(func(r row) error {
		values, dest := make([]string, columns), make([]any, columns)
		for i := range values {
			dest[i] = &values[i]
		}
		rows = append(rows, values)
		return r.Scan(dest...)
	}, text, args...)
	return rows, err
}

// PurgeParts returns the names of the parts of a purge.
func PurgeParts() (names []string) {
	for _, p := range purgeParts {
		names = append(names, p.name)
	}
	return names
}

// PartRows is the part of a purge that needs nothing but the registry of tables.
const PartRows = partRows

// Tables returns what is known of every table of the database, those that only
// the engine itself uses apart.
func Tables() []Table { return slices.Clone(tables) }
