// Package store keeps everything that orgd knows in SQLite or in PostgreSQL.
// It is the only package that knows SQL. Both engines share one set of SQL
// texts; what differs is in a dialect.
package store

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

// Options tune a store. The zero value is what production uses.
type Options struct {
	// Readers is the greatest number of connections that read at once; 0 for
	// a number that suits the machine. On PostgreSQL it bounds all
	// connections but the two by which it looks for changes. With fewer than 4
	// there is none to set aside for what is not heavy.
	Readers int
	// Log hears of what could be stored only in part; nil for nobody.
	Log *slog.Logger
	// Busy, unless it is nil, hears what takes long while the store is opened, as
	// a part of a sentence; an empty text when it is over.
	Busy func(with string)
	// Mark, if set, is for data that is of no worth: the database gets this
	// mark (Store.Mark), and one that ever had organizations and does not bear
	// it is refused with ErrUnmarked, before anything of it is changed.
	Mark string
	// Direct is a URL of a PostgreSQL database that leads past the pooler through
	// which the other one leads; empty if there is none.
	Direct string
	// Spare, unless it is nil, gives up space of the data directory's disk that is
	// kept for later. It is called when a log that an earlier process has left
	// behind does not fit into the database without.
	Spare func()
	// VFS is the name of a registered SQLite VFS, empty for the operating
	// system's files. It lets tests inject faults.
	VFS string

	trusting   bool // see diskState
	hooks      ownerHooks
	sweepEvery time.Duration // 0 for sweepInterval
}

// ErrUnmarked says that a database has what Options.Mark does not allow.
var ErrUnmarked = errors.New("it has organizations already")

func (o *Options) logger() *slog.Logger {
	if o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log
}

// Store implements org.Store and access.Sink. It is safe for concurrent use.
type Store struct {
	engine      engine
	generations generations
	log         *slog.Logger
	trace       atomic.Pointer[func(text string)]
	lend        atomic.Pointer[Lender]
}

// A Lender has disk space that is kept for something else. It calls use once, with
// at least so many bytes of it given up until use returns; if it has less, use is
// not called.
type Lender func(bytes int64, use func())

// BorrowFrom names the lender of the space that the store may need for a moment
// on a full disk, to free more than that.
func (s *Store) BorrowFrom(lend Lender) { s.lend.Store(&lend) }

// Trace has fn called with the text of every statement from now on, and with
// "BEGIN" before those of a transaction; nil ends that. Tests compare by it what
// requests do.
func (s *Store) Trace(fn func(text string)) {
	if fn == nil {
		s.trace.Store(nil)
		return
	}
	s.trace.Store(&fn)
}

// traced returns fn with its statements traced.
func (s *Store) traced(fn func(*tx) error) func(*tx) error {
	trace := s.trace.Load()
	if trace == nil {
		return fn
	}
	return func(t *tx) error {
		t.trace = *trace
		t.trace("BEGIN")
		return fn(t)
	}
}

var (
	_ org.Store   = (*Store)(nil)
	_ access.Sink = (*Store)(nil)
)

// engine runs transactions. Its errors are those of org.Store.
type engine interface {
	kind() string
	writersPerRoot() int
	// processes is Store.Processes.
	processes() int
	// read with heavy is Store.ReadHeavy.
	read(ctx context.Context, heavy bool, fn func(*tx) error) error
	// write calls committed with what the transaction changed, after the commit
	// and before write returns. It does so too when the outcome of the commit
	// is unknown.
	write(ctx context.Context, fn func(*tx) error, committed func(touched)) error
	// writeTogether is write for Store.WriteTogether.
	writeTogether(ctx context.Context, rootID string, fn func(*tx) error, committed func(touched)) error
	ping(ctx context.Context) error
	scrub(ctx context.Context) error
	// partition is Store.Partition.
	partition(ctx context.Context, now, expired time.Time) (time.Time, error)
	close() error
}

// Kind returns the engine: SQLite or Postgres.
func (s *Store) Kind() string { return s.engine.kind() }

// Read implements org.Store.
func (s *Store) Read(ctx context.Context, fn func(org.View) error) error {
	return s.engine.read(ctx, false, s.traced(func(t *tx) error { return fn(t) }))
}

// ReadHeavy implements org.Store.
func (s *Store) ReadHeavy(ctx context.Context, fn func(org.View) error) error {
	return s.engine.read(ctx, true, s.traced(func(t *tx) error { return fn(t) }))
}

// Write implements org.Store.
func (s *Store) Write(ctx context.Context, fn func(org.Tx) error) error {
	return s.write(ctx, func(t *tx) error { return fn(t) })
}

// WriteTogether implements org.Store.
func (s *Store) WriteTogether(ctx context.Context, rootID string, fn func(org.Tx) error) error {
	return s.engine.writeTogether(ctx, rootID, s.traced(func(t *tx) error { return fn(t) }), s.generations.changed)
}

func (s *Store) read(ctx context.Context, fn func(*tx) error) error {
	return s.engine.read(ctx, false, s.traced(fn))
}

func (s *Store) write(ctx context.Context, fn func(*tx) error) error {
	return s.engine.write(ctx, s.traced(fn), s.generations.changed)
}

// WritersPerRoot implements org.Store.
func (s *Store) WritersPerRoot() int { return s.engine.writersPerRoot() }

// Processes returns how many processes use the database, this one too, as far as
// is known: a process that has just come or gone counts, or does not, for a few
// seconds.
func (s *Store) Processes() int { return s.engine.processes() }

// Generation implements org.Store.
func (s *Store) Generation(rootID string) uint64 { return s.generations.of(rootID, "") }

// OrgGeneration implements org.Store.
func (s *Store) OrgGeneration(rootID, orgID string) uint64 { return s.generations.of(rootID, orgID) }

// Partition implements trail.Store.
func (s *Store) Partition(ctx context.Context, now, expired time.Time) (time.Time, error) {
	return s.engine.partition(ctx, now, expired)
}

// Ping reports whether the database answers. It has a connection of its own.
func (s *Store) Ping(ctx context.Context) error { return s.engine.ping(ctx) }

// Close waits for the transactions under way and closes the database. Later
// calls fail with problem.Unavailable.
func (s *Store) Close() error { return s.engine.close() }

// outcomeUnknown is the error of a commit that failed in a way that leaves
// open whether it happened.
func outcomeUnknown(err error) error {
	return problem.New(problem.OutcomeUnknown, "The change may or may not have been made: the database failed to confirm it.").
		WithFix("Read the state again before you repeat the request, or repeat it with the same Idempotency-Key.").WithCause(err)
}

// touched is what a transaction changed, as far as the generations tell.
type touched struct {
	roots []string // their trees
	orgs  []string // only the rows of these organizations
}

// generations counts the changes of each root's tree and of single
// organizations.
//
// A generation is the sum of counts that only grow: the root's own, which
// changes made by this process and those it heard of increase; that of the
// organization's stripe, if it is about one; and the count of resets, which
// change all generations. While doubted returns true, changes may go unheard,
// and each call returns a number that no other call ever returns.
type generations struct {
	roots   sync.Map // root id → *atomic.Uint64
	stripes [stripes]atomic.Uint64
	resets  atomic.Uint64
	fresh   atomic.Uint64
	doubted func() bool // nil for never
}

const (
	resetShift = 40
	freshBit   = 1 << 63
	// stripes is how many counts the organizations share, by the hash of their
	// ids. A change to one looks like a change to all of its stripe.
	stripes = 4096
)

var stripeSeed = maphash.MakeSeed()

// of returns the generation of an organization, or of the root's tree alone if
// orgID is empty.
func (g *generations) of(rootID, orgID string) uint64 {
	if g.doubted != nil && g.doubted() {
		return freshBit | g.fresh.Add(2) // by two: nobody's plus one is another's
	}
	n := g.resets.Load() << resetShift
	if count, ok := g.roots.Load(rootID); ok {
		n += count.(*atomic.Uint64).Load()
	}
	if orgID != "" {
		n += g.stripe(orgID).Load()
	}
	return n
}

func (g *generations) stripe(orgID string) *atomic.Uint64 {
	return &g.stripes[maphash.String(stripeSeed, orgID)%stripes]
}

func (g *generations) changed(t touched) {
	for _, rootID := range t.roots {
		count, ok := g.roots.Load(rootID)
		if !ok {
			count, _ = g.roots.LoadOrStore(rootID, new(atomic.Uint64))
		}
		count.(*atomic.Uint64).Add(1)
	}
	for _, orgID := range t.orgs {
		g.stripe(orgID).Add(1)
	}
}

// reset changes all generations.
func (g *generations) reset() { g.resets.Add(1) }
