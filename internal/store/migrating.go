package store

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/pressly/goose/v3/lock"
)

const (
	// progressInterval is how often a migration says that it is under way.
	progressInterval = 3 * time.Second
	// lockInterval is how often the lock of migrations is asked for.
	lockInterval = 500 * time.Millisecond
	// lookTimeout bounds the look at who holds a lock.
	lookTimeout = 2 * time.Second
)

// progress tells of what takes long while a database is brought up to date, in
// the log and to Options.Busy.
type progress struct {
	db   *sql.DB
	d    *dialect
	log  *slog.Logger
	busy func(string)
}

func newProgress(db *sql.DB, d *dialect, o Options) *progress {
	p := &progress{db: db, d: d, log: o.logger(), busy: o.Busy}
	if p.busy == nil {
		p.busy = func(string) {}
	}
	return p
}

// watch runs fn, which goes by a name such as "the migration 00007_metering",
// and says every few seconds that it is under way, for how long, and for whose
// locks the PostgreSQL session pid waits; 0 for none.
func (p *progress) watch(ctx context.Context, name string, pid int, fn func() error) error {
	begun := time.Now()
	p.busy(name + " is under way")
	defer p.busy("")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(progressInterval)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			took := time.Since(begun).Round(time.Second)
			holders := ""
			if pid != 0 {
				holders = p.blockers(ctx, pid)
			}
			if holders == "" {
				p.log.Info(name+" is under way", "seconds", took.Seconds())
				p.busy(fmt.Sprintf("%s is under way, for %s", name, took))
			} else {
				p.log.Warn(name+" waits for a lock of others; it goes on when they end, or when pg_terminate_backend ends them", "seconds", took.Seconds(), "holders", holders)
				p.busy(fmt.Sprintf("%s waits for a lock of others, for %s", name, took))
			}
		}
	}()
	err := fn()
	close(stop)
	<-stopped
	if took := time.Since(begun); err == nil && took >= progressInterval {
		p.log.Info(name+" is done", "seconds", took.Round(time.Second).Seconds())
	}
	return err
}

// blockers describes the sessions for whose locks another one waits.
func (p *progress) blockers(ctx context.Context, pid int) string {
	return p.sessions(ctx, `a.pid = ANY(pg_blocking_pids($1))`, pid)
}

// sessions describes sessions of the database server; empty if there are none,
// or if that cannot be found out.
func (p *progress) sessions(ctx context.Context, which string, arg any) string {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	rows, err := p.db.QueryContext(ctx, `SELECT a.pid, coalesce(a.application_name, ''), coalesce(host(a.client_addr), 'local'), coalesce(a.state, 'unknown'),
		coalesce(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, a.state_change, a.backend_start))::bigint, 0)
		FROM pg_stat_activity AS a WHERE `+which+` ORDER BY a.pid LIMIT 5`, arg)
	if err != nil {
		return ""
	}
	defer rows.Close()
	var list []string
	for rows.Next() {
		var pid, seconds int64
		var application, address, state string
		if err := rows.Scan(&pid, &application, &address, &state, &seconds); err != nil {
			return ""
		}
		list = append(list, fmt.Sprintf("pid %d (%s, from %s, %s for %ds)", pid, application, address, state, seconds))
	}
	return strings.Join(list, "; ")
}

// sessionLocker holds the lock of migrations, which is the one that goose has:
// orgd of older versions takes it too. It waits for as long as it must, and says
// for whom.
type sessionLocker struct{ *progress }

// A connection that is half open ends, on the server's side, in about half a
// minute, and the lock that its session held ends with it.
const endHalfOpen = `SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 4; SET tcp_user_timeout = 30000`

func (l sessionLocker) SessionLock(ctx context.Context, conn *sql.Conn) error {
	for _, statement := range strings.Split(endHalfOpen, "; ") {
		// Not every system has them; a connection that does not work shows below.
		_, _ = conn.ExecContext(ctx, statement)
	}
	locked := false
	try := func() error {
		return conn.QueryRowContext(ctx, `SELECT pg_try_advisory_lock($1)`, lock.DefaultLockID).Scan(&locked)
	}
	begun, said := time.Now(), time.Time{}
	for {
		if err := try(); err != nil || locked {
			l.busy("")
			return err
		}
		if time.Since(said) >= progressInterval {
			said = time.Now()
			took := said.Sub(begun).Round(time.Second)
			l.log.Warn("another process migrates the database, or holds the lock for that; this one waits until its session ends", "seconds", took.Seconds(),
				"holders", l.sessions(ctx, `a.pid IN (SELECT l.pid FROM pg_locks AS l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
					AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND (l.classid::bigint << 32) + l.objid::bigint = $1)`, lock.DefaultLockID))
			l.busy(fmt.Sprintf("another process migrates the database or holds the lock for that, for %s", took))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockInterval):
		}
	}
}

func (l sessionLocker) SessionUnlock(ctx context.Context, conn *sql.Conn) error {
	_, err := conn.ExecContext(ctx, `SELECT pg_advisory_unlock($1)`, lock.DefaultLockID)
	return err
}

// compatibleFrom is the schema from which on servers may serve a database of
// this one's schema. A migration after which servers that do not know it would
// read or write wrongly raises it to its own version.
const compatibleFrom = 14

// compatibleMark is the mark of a database that holds the greatest compatibleFrom
// of the servers that have migrated it.
const compatibleMark = "compatible_from"

// SchemaError says that a newer orgd has brought the database to a schema that
// this one does not know, and must not serve.
type SchemaError struct{ From, Known int64 }

func (e *SchemaError) Error() string {
	return fmt.Sprintf("a newer orgd has changed the database: it takes servers that know the schema %d, and this one knows %d", e.From, e.Known)
}

// CheckSchema returns a *SchemaError if the database may not be served any more by
// this server. It reads one row.
func (s *Store) CheckSchema(ctx context.Context) error {
	var from int64
	err := s.read(ctx, func(t *tx) error {
		return t.queryRow(into(&from), `SELECT CAST(value AS BIGINT) FROM marks WHERE name = $1`, compatibleMark)
	})
	if known := schemaVersion(); err == nil && from > known {
		return &SchemaError{from, known}
	}
	return err
}

// schemaVersion is the newest schema that this server knows.
var schemaVersion = sync.OnceValue(func() (newest int64) {
	names, _ := migrationNames()
	for version := range names {
		newest = max(newest, version)
	}
	return newest
})

type execer interface {
	ExecContext(ctx context.Context, text string, args ...any) (sql.Result, error)
}

// raiseCompatible notes compatibleFrom in the database unless a greater one is.
func raiseCompatible(ctx context.Context, db execer, d *dialect) error {
	_, err := db.ExecContext(ctx, d.query(`INSERT INTO marks (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value
		WHERE CAST(marks.value AS BIGINT) < CAST(excluded.value AS BIGINT)`), compatibleMark, fmt.Sprint(compatibleFrom))
	return err
}
