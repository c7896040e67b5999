// Package metering knows what organizations consume: meters, usage events, totals,
// months, limits and the statements of closed months. What of it is a change goes
// through org.Service.Change.
package metering

import (
	"context"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/usage"
)

// Service applies the rules of consumption. It is safe for concurrent use.
type Service struct {
	orgs  *org.Service
	store Store
	spool Spool
	now   func() time.Time
	// monthCloseAfter is how long after its end a month takes late events.
	monthCloseAfter time.Duration

	bounds *otter.Cache[string, *bounds] // by path
	meters *otter.Cache[string, *rootMeters]
	gauges *gauges
}

// Config is what a Service works with.
type Config struct {
	Orgs  *org.Service
	Store Store
	Spool Spool
	Now   func() time.Time
	// MonthCloseAfter is how long after its end a month still takes late
	// events; zero for DefaultMonthCloseAfter, negative for not at all.
	MonthCloseAfter time.Duration
}

// NewService returns a service. It must be made before the organizations' service
// is used.
func NewService(c Config) (*Service, error) {
	limits, err := otter.New(&otter.Options[string, *bounds]{MaximumSize: 20_000})
	if err != nil {
		return nil, err
	}
	meters, err := otter.New(&otter.Options[string, *rootMeters]{MaximumSize: 20_000})
	if err != nil {
		return nil, err
	}
	closeAfter := c.MonthCloseAfter
	if closeAfter == 0 {
		closeAfter = DefaultMonthCloseAfter
	}
	s := &Service{orgs: c.Orgs, store: c.Store, spool: c.Spool, now: c.Now, monthCloseAfter: max(closeAfter, 0),
		bounds: limits, meters: meters, gauges: newGauges()}
	c.Orgs.OnPurged(s.gauges.forget)
	return s, nil
}

// Now is org.Service.Now.
func (s *Service) Now() time.Time { return s.now().UTC().Truncate(time.Microsecond) }

// change is a mutation under way, with what this package needs of its transaction.
type change struct {
	*org.Change
	Tx
}

// change is org.Service.Change.
func (s *Service) change(ctx context.Context, call *org.Call, fn func(c *change) (result any, entries []audit.Draft, err error)) (audit.Receipt, error) {
	return s.orgs.Change(ctx, call, func(c *org.Change) (any, []audit.Draft, error) { return fn(&change{c, s.store.In(c.Tx)}) })
}

// precheck is org.Service.Precheck.
func (s *Service) precheck(ctx context.Context, call *org.Call, fn func(c *change) error) error {
	return s.orgs.Precheck(ctx, call, func(c *org.Change) error { return fn(&change{c, s.store.In(c.Tx)}) })
}

// Store is a durable, transactional store; see org.Store.
type Store interface {
	Read(ctx context.Context, fn func(Tx) error) error
	ReadHeavy(ctx context.Context, fn func(Tx) error) error
	Write(ctx context.Context, fn func(Tx) error) error
	// In returns what this package needs of a transaction of the same store.
	In(tx org.Tx) Tx
	// Generation is org.Store.Generation.
	Generation(rootID string) uint64
}

// Tx is what this package reads and writes within one transaction, beside what the
// organizations' service does; see org.Tx.
type Tx interface {
	org.Tx
	StatementTx

	// Totals returns what an organization consumed in a month: one Total per
	// meter and parent it had.
	Totals(rootID, orgID string, month usage.Month) ([]usage.Total, error)

	// DayTotals returns what an organization consumed on the days from first to
	// last: one DayTotal per day, meter and parent it had.
	DayTotals(rootID, orgID string, first, last usage.Day) ([]usage.DayTotal, error)
	// AddUsage adds to totals, days and adjustments. The adjustments that it
	// makes get the time at. *usage.RangeError if a sum would be out of range;
	// the transaction must then be given up.
	AddUsage(entries []usage.Entry, at time.Time) error
	// PutAdjustments inserts adjustments, or adds to those with the same
	// organization, month and id. Errors are those of AddUsage.
	PutAdjustments([]usage.Adjustment) error
	// Adjustments returns one page of adjustments, newest month first, and
	// whether there are more.
	Adjustments(q AdjustmentQuery) (list []usage.Adjustment, more bool, err error)
	// ChildTotals returns one page of what the children of an organization
	// consumed, by id, and whether there are more.
	ChildTotals(q ChildQuery) (list []ChildTotal, more bool, err error)

	HoldMonths
	// LockMonths waits for all transactions that hold months of the root, and
	// keeps others from holding any until this one ends.
	LockMonths(rootID string) error
	// CloseMonth closes a month, known or not, after all transactions that
	// hold it. It reports whether it was open.
	CloseMonth(rootID string, month usage.Month, at time.Time) (bool, error)
	// Months returns the months of a root that are known, in ascending order.
	Months(rootID string) ([]Month, error)
	// OpenMonths returns up to limit months, up to last, that are known and
	// open.
	OpenMonths(last usage.Month, limit int) ([]Month, error)
	// RootsWithout returns up to limit live roots that follow after in the
	// order of paths, are older than the end of a month, and do not know it.
	RootsWithout(month usage.Month, after string, limit int) ([]string, error)

	// ClaimEvents stores those events that are not stored already, and tells
	// which. Of several with the same key it stores the first. The parts of an
	// event follow its part 0, and are stored if that is. An event of the same
	// organization that was stored without a sender counts as one of any.
	ClaimEvents(events []usage.Event) (fresh []bool, err error)
	// UsageEvents returns the events of a root that follow a key, in the order
	// of their keys.
	UsageEvents(rootID string, after usage.EventKey, limit int) ([]usage.Event, error)
	// MonthsToPrune returns up to limit closed months, up to last, whose events
	// are kept.
	MonthsToPrune(last usage.Month, limit int) ([]Month, error)
	// PruneEvents removes those events from before a time that are among the
	// limit events of a root that follow a key. It returns the key to go on
	// after, nil at the end.
	PruneEvents(rootID string, before time.Time, after usage.EventKey, limit int) (next *usage.EventKey, err error)
	// PruneStates removes the states of a period.
	PruneStates(rootID, period string) error
	// MarkPruned notes that the events of a month were removed.
	MarkPruned(rootID string, month usage.Month, at time.Time) error
	// States returns the states of series, zero for those without events, and
	// keeps others from changing them until the transaction ends.
	States(series []usage.Series) (map[usage.Series]usage.State, error)
	// PutStates changes the states of series that States has returned.
	PutStates(map[usage.Series]usage.State) error

	// Meters returns the meters that a root has defined, by slug.
	Meters(rootID string) ([]usage.Meter, error)
	// PutMeter defines a meter, in the place of one with the same slug.
	PutMeter(rootID string, m *usage.Meter) error
	DeleteMeter(rootID, slug string) error
	// MeterUsed tells whether anything was counted on a meter of a root.
	MeterUsed(rootID, slug string) (bool, error)

	// PutLimit sets a limit, in the place of one on the same organization and
	// meter.
	PutLimit(l *usage.Limit) error
	DeleteLimit(rootID, orgID, meter string) error
	// Consumed returns what the subtree of an organization consumed of a meter
	// in a month, under all the parents it had.
	Consumed(rootID, orgID string, month usage.Month, meter string) (usage.Decimal, error)
	// SpoolPosition returns the position up to which a spool is stored, zero
	// for one that is not known.
	SpoolPosition(spoolID string) (access.Position, error)

	// SpoolsBehind returns up to limit spools that may hold what was recorded
	// before a time and is not stored, those furthest behind first: all that
	// have not reported that time, but those whose process has ended with
	// nothing left, and those given up.
	SpoolsBehind(before time.Time, limit int) ([]SpoolReport, error)
	// ReportSpool notes that what a spool has recorded before a time is stored,
	// and with ended that its process ends with nothing left. ErrStale if
	// another run has the spool.
	ReportSpool(id string, run access.Run, until time.Time, ended bool) error
	// GiveUpSpool makes a spool one that nobody waits for, until a process
	// takes it again. ErrAbsent unless SpoolsBehind has it.
	GiveUpSpool(id string, before time.Time, reason string, at time.Time) error
}

// Month is a calendar month of a root.
type Month struct {
	RootID   string
	Month    usage.Month
	ClosedAt *time.Time
	PrunedAt *time.Time // when the identities of its events were removed
}

// AdjustmentQuery selects the adjustments of an organization, newest month
// first and then by id descending.
type AdjustmentQuery struct {
	RootID   string
	OrgID    string
	Month    usage.Month // in which they are counted; empty for all
	Before   AdjustmentPosition
	Limit    int
	MaxBytes int
}

// AdjustmentPosition is a place in the order of adjustments; zero for the
// start.
type AdjustmentPosition struct {
	Month usage.Month
	ID    string
}

// ChildQuery selects what the children of an organization consumed of a meter
// in a month: those that are its children now, and those that consumed
// something while they were.
type ChildQuery struct {
	RootID     string
	ParentID   string
	Month      usage.Month
	Meter      string
	Descending bool
	After      string // only children beyond this id; empty for all
	Limit      int
	MaxBytes   int
}

// ChildSort is what children are sorted by.
type ChildSort string

const (
	ByID          ChildSort = "org_id"
	ByOwn         ChildSort = "own"
	ByDescendants ChildSort = "descendants"
	ByTotal       ChildSort = "total"
)

// ChildPosition is a place in the order of children: what they are sorted by,
// then the name, ascending.
type ChildPosition struct {
	Value usage.Decimal // not for ByID
	OrgID string
}

// ChildTotal is what one child consumed while it was a child.
type ChildTotal struct {
	OrgID string // a name: see PlainID
	Name  string // empty if it is no live child any more
	Own   usage.Decimal
	Total usage.Decimal
}
