// Package usage holds what organizations consume: meters, months, events,
// exact quantities and their totals up the tree. It is pure: no storage, no
// HTTP.
package usage

import "time"

// Total is what one organization consumed of one meter in one month while it
// had one parent. An organization that moved within the month has one Total
// for each of its parents; its consumption is their sum. That keeps
//
//	total = own + descendants, and descendants = sum of the totals of its children
//
// exact through moves: what was consumed before a move stays with the old
// ancestors.
type Total struct {
	RootID   string
	OrgID    string
	ParentID string // empty for a root
	Month    Month
	Meter    string
	Own      Decimal
	Total    Decimal // own and all descendants
	Recorded Decimal // the part of Own that comes from recorded requests, which leave no Event
}

// DayTotal is what Total is, for one day. Days of meters that add up (Sum and
// Count) add up to the month; the days of the others stand for themselves.
type DayTotal struct {
	OrgID    string
	ParentID string
	Day      Day
	Meter    string
	Own      Decimal
	Total    Decimal
}

// Event is one event as it is stored.
type Event struct {
	EventKey
	OrgID    string
	Meter    string
	At       time.Time
	Quantity Decimal
	Month    Month // in which it is counted: that of At, or a later one if that was closed
}

// EventKey is the identity of an event: Source and ID are unique within a
// root. An event that several meters count has a Part for each of them.
type EventKey struct {
	RootID string
	Source string
	ID     string
	Part   int
}

// Series is what an aggregate is of: the events of one organization for one
// meter in one period.
type Series struct {
	RootID string
	Period string // a Month or a Day
	OrgID  string
	Meter  string
}

// State is the aggregate of a Series, for the aggregations that need to know
// it: Max and Latest.
type State struct {
	Value    Decimal
	LatestAt time.Time // of the newest event; zero before the first
}

// Entry moves the total of an organization, and those of all its ancestors,
// in one month and on one day of it.
type Entry struct {
	RootID   string
	Path     string // ids from the root down, each followed by a slash
	Meter    string
	Month    Month
	Day      Day
	Quantity Decimal // added to the month
	OfDay    Decimal // added to the day
	// Origin says where the entry comes from.
	Origin Origin
	// For is the closed month that a late entry belongs to, empty for an entry
	// in time. A late entry is also added to an Adjustment.
	For Month
}

// Origin says where an Entry or an Adjustment comes from.
type Origin string

const (
	FromEvents   Origin = "events"   // events that were sent in
	FromRecorder Origin = "recorder" // requests that were recorded
	FromActor    Origin = "actor"    // an adjustment that somebody made
)

// Adjustment is consumption that is counted in one month for another, or a
// correction. Adjustments are never changed, except that a late one grows
// with every further late event of its kind.
type Adjustment struct {
	ID        string
	RootID    string
	OrgID     string
	Month     Month // in which it is counted
	For       Month // the month that it is for
	Meter     string
	Quantity  Decimal
	Reason    string
	Origin    Origin
	ActorID   string // who made it; empty unless Origin is FromActor
	CreatedAt time.Time
}

// Window is how long after the end of its month an event is still taken: as
// long as its identity is kept. Later it could not be told from one that has
// been counted.
const Window = 35 * 24 * time.Hour

// Ahead is how far in the future an event may be, for clocks that differ.
const Ahead = 5 * time.Minute

// Book returns the month and the day in which something that belongs to at is
// counted at the time now: its own while the month is open, and those of now
// afterwards. late says that it is not its own.
func Book(at, now time.Time, grace time.Duration) (month Month, day Day, late bool) {
	month = MonthOf(at)
	if !month.Closed(now, grace) {
		return month, DayOf(at), false
	}
	return MonthOf(now), DayOf(now), true
}
