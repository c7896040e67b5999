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

	// SpoolPosition returns the position that the last successful Flush for
	// spoolID stored, or the zero Position if there was none.
	SpoolPosition(ctx context.Context, spoolID string) (Position, error)
}
