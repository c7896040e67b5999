package access

import (
	"context"
	"time"

	"github.com/orgd/orgd/internal/usage"
)

// Batch is a run of consecutive records of one spool, in the order in which
// they were recorded. A batch without any records only moves the position,
// past a part of the spool that cannot be read.
type Batch struct {
	SpoolID  string
	Run      Run      // of the process that stores it; the zero Run is not compared
	From     Position // the stored position that the batch follows
	Position Position // the position to store: the end of the batch's last record
	Events   []Event
	Usage    []Usage
	Uses     []KeyUse
}

// Position is a place in a spool: a byte offset within one of its segments.
// The zero Position is before every record.
type Position struct {
	Segment int64
	Offset  int64
}

// Before reports whether p comes before q.
func (p Position) Before(q Position) bool {
	return p.Segment < q.Segment || p.Segment == q.Segment && p.Offset < q.Offset
}

// Run is one start of a process on a spool. Each start has the number after the
// last one's, and a nonce of its own: so two directories with one spool in them
// can be told apart.
type Run struct {
	Number int64
	Nonce  string
	Before string // the nonce of the run with the number before; empty if that is not known
}

// Same reports whether r and q are the same run.
func (r Run) Same(q Run) bool { return r.Number == q.Number && r.Nonce == q.Nonce }

// Follows reports whether r may store what follows on what was stored by q, or
// by nobody if q is the zero Run: q is r, the run before it, or an older one of
// the same directory, which a database tells that went back to an earlier state.
func (r Run) Follows(q Run) bool {
	return r.Same(q) || q.Number < r.Number-1 || q.Number == r.Number-1 && (r.Before == "" || q.Nonce == r.Before)
}

// SpoolState is what a Sink knows of a spool.
type SpoolState struct {
	Position
	Run Run // the last run that took it, without Before; zero if none did
}

// Usage is what a recorded request consumed of a meter with the aggregation
// sum or count, as counted for the organization at the end of Path and, in the
// totals, for every ancestor in Path.
type Usage struct {
	RootID   string
	Path     string    // ids from the root down at the time, each followed by a slash: "root/child/"
	At       time.Time // decides the month and the day
	Meter    string
	Quantity usage.Decimal
}

// KeyUse is one use of an API key.
type KeyUse struct {
	KeyID string
	Old   bool // the secret was the one that a rotation had replaced
	At    time.Time
	IP    string
}

// Sink is where a Recorder puts what it recorded.
type Sink interface {
	// Flush stores a batch, and b.Position as the position of b.SpoolID, in
	// one durable transaction. It stores nothing and returns nil if the
	// stored position is b.Position already: an earlier call did it, although
	// that call may have reported an error. It stores nothing and returns an
	// error if the stored position is neither b.From nor b.Position; the
	// check is part of the transaction, so that two transactions of the same
	// spool cannot both pass it.
	//
	// An error leaves open whether the batch was stored. The Recorder asks
	// for the position and calls again until the batch is stored, so Flush
	// must not fail because of what the batch holds (an organization that
	// has been purged, a key that is gone). The slices of b are only valid
	// during the call.
	Flush(ctx context.Context, b Batch) error

	// SpoolState returns the position that the last successful Flush for a
	// spool stored, and the run that has the spool; the zero SpoolState for one
	// that is not known.
	SpoolState(ctx context.Context, spoolID string) (SpoolState, error)

	// TakeSpool gives the spool to a run, in one durable transaction: from then
	// on no batch is stored for a run before it. It changes nothing if the run
	// does not follow the one that has the spool. It returns what was there
	// before. place says to people where the spool is, and at is the time.
	TakeSpool(ctx context.Context, spoolID string, run Run, place string, at time.Time) (SpoolState, error)
}
