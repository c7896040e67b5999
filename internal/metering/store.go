package metering

import (
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/usage"
)

// View is what the package reads within one transaction; see org.View.
type View interface {
	MetersView
	SpoolsView

	// Places returns where live organizations are; those that do not exist or
	// are deleted are missing.
	Places(ids []string) (map[string]org.Place, error)
	// Limits returns the limits on the organizations of a root that have one
	// of the ids, in no particular order.
	Limits(rootID string, orgIDs []string) ([]usage.Limit, error)
	// Totals returns what an organization consumed in a month: one Total per
	// meter and parent it had.
	Totals(rootID, orgID string, month usage.Month) ([]usage.Total, error)
	// DayTotals returns what an organization consumed on the days from first to
	// last: one DayTotal per day, meter and parent it had.
	DayTotals(rootID, orgID string, first, last usage.Day) ([]usage.DayTotal, error)
	// Adjustments returns one page of adjustments, newest month first, and
	// whether there are more.
	Adjustments(q AdjustmentQuery) (list []usage.Adjustment, more bool, err error)
	// ChildTotals returns one page of what the children of an organization
	// consumed, by id, and whether there are more.
	ChildTotals(q ChildQuery) (list []ChildTotal, more bool, err error)
	// Consumed returns what the subtree of an organization consumed of a meter
	// in a month, under all the parents it had.
	Consumed(rootID, orgID string, month usage.Month, meter string) (usage.Decimal, error)
	// MeterUsed tells whether anything was counted on a meter of a root.
	MeterUsed(rootID, slug string) (bool, error)
	// SpoolPosition returns the position up to which a spool is stored, zero
	// for one that is not known.
	SpoolPosition(spoolID string) (access.Position, error)
	// Months returns the months of a root that are known, in ascending order.
	Months(rootID string) ([]Month, error)
	Statement(rootID string, month usage.Month) (*Statement, error)
	StatementPart(rootID string, month usage.Month, part int) ([]byte, error)
}

// Tx is what the package reads and writes within one transaction; see org.Tx.
type Tx interface {
	View
	HeldMonths

	// AddUsage adds to totals, days and adjustments. The adjustments that it
	// makes get the time at. *usage.RangeError if a sum would be out of range;
	// the transaction must then be given up.
	AddUsage(entries []usage.Entry, at time.Time) error
	// PutAdjustments inserts adjustments, or adds to those with the same
	// organization, month and id. Errors are those of AddUsage.
	PutAdjustments([]usage.Adjustment) error
	// ClaimEvents stores those events that are not stored already, and tells
	// which, in the order that usage.ClaimOrder returns for them. Of several with
	// the same key it stores the first. The parts of an event follow its part 0,
	// and are stored if that is. An event of the same organization that was stored
	// without a sender counts as one of any.
	ClaimEvents(events []usage.Event, order []int) (fresh []bool, err error)
	// States returns the states of series, zero for those without events, and
	// keeps others from changing them until the transaction ends.
	States(series []usage.Series) (map[usage.Series]usage.State, error)
	// PutStates changes the states of series that States has returned.
	PutStates(map[usage.Series]usage.State) error
	// PutMeter defines a meter, in the place of one with the same slug.
	PutMeter(rootID string, m *usage.Meter) error
	DeleteMeter(rootID, slug string) error
	// PutLimit sets a limit, in the place of one on the same organization and
	// meter.
	PutLimit(l *usage.Limit) error
	DeleteLimit(rootID, orgID, meter string) error
}

// MetersView reads the meters.
type MetersView interface {
	// Meters returns the meters that a root has defined, by slug.
	Meters(rootID string) ([]usage.Meter, error)
}

// SpoolsView reads what months wait for.
type SpoolsView interface {
	// SpoolsBehind returns up to limit spools that may hold what was recorded
	// before a time and is not stored, those furthest behind first: all that
	// have not reported that time, but those whose process has ended with
	// nothing left, and those given up.
	SpoolsBehind(before time.Time, limit int) ([]SpoolReport, error)
}

// HeldMonths keeps months from being closed, or from being held.
type HeldMonths interface {
	HoldMonths
	// LockMonths waits for all transactions that hold months of the root, and
	// keeps others from holding any until this one ends.
	LockMonths(rootID string) error
}

// MonthsView is what closing and pruning months reads.
type MonthsView interface {
	MetersView
	SpoolsView

	// Months returns the months of a root that are known, in ascending order.
	Months(rootID string) ([]Month, error)
	// OpenMonths returns up to limit months, up to last, that are known and
	// open.
	OpenMonths(last usage.Month, limit int) ([]Month, error)
	// RootsWithout returns up to limit live roots that follow after in the
	// order of paths, are older than the end of a month, and do not know it.
	RootsWithout(month usage.Month, after string, limit int) ([]string, error)
	// MonthsToPrune returns up to limit closed months, up to last, whose events
	// are kept.
	MonthsToPrune(last usage.Month, limit int) ([]Month, error)
	// MonthTotals returns the totals of all organizations of a root in a
	// month, in the order of organization, parent and meter, those that follow
	// after in that order.
	MonthTotals(rootID string, month usage.Month, after usage.Total, limit int) ([]usage.Total, error)
	Statement(rootID string, month usage.Month) (*Statement, error)
}

// MonthsTx is what months are closed and pruned with.
type MonthsTx interface {
	MonthsView
	HeldMonths

	// CloseMonth closes a month, known or not, after all transactions that
	// hold it. It reports whether it was open.
	CloseMonth(rootID string, month usage.Month, at time.Time) (bool, error)
	// PruneEvents removes those events from before a time that are among the
	// limit events of a root that follow a key. It returns the key to go on
	// after, nil at the end.
	PruneEvents(rootID string, before time.Time, after usage.EventKey, limit int) (next *usage.EventKey, err error)
	// PruneStates removes the states of a period.
	PruneStates(rootID, period string) error
	// MarkPruned notes that the events of a month were removed.
	MarkPruned(rootID string, month usage.Month, at time.Time) error
	// PutStatementPart keeps a part of a statement's text, counted from 0.
	PutStatementPart(rootID string, month usage.Month, part int, text []byte) error
	// PutStatement keeps a statement, whose parts are there.
	PutStatement(s *Statement) error
	// ReportSpool notes that what a spool has recorded before a time is stored,
	// and with ended that its process ends with nothing left. ErrStale if
	// another run has the spool.
	ReportSpool(id string, run access.Run, until time.Time, ended bool) error
	// GiveUpSpool makes a spool one that nobody waits for, until a process
	// takes it again. ErrAbsent unless SpoolsBehind has it.
	GiveUpSpool(id string, before time.Time, reason string, at time.Time) error
}

// Store is the side of the store that this package sees.
type Store interface {
	org.Face[View, Tx]
	// Generation is org.Store.Generation.
	Generation(rootID string) uint64
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
