// Package usage holds what organizations consume: meters, months, events,
// exact quantities and their totals up the tree. It is pure: no storage, no
// HTTP.
package usage

import (
	"cmp"
	"slices"
	"time"
)

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

// DayTotal is what Total is, for one day (UTC). On meters that add up (Sum and
// Count) the days of a month and its adjustments add up to the month; on the
// others each day stands for itself. Adjustments belong to no day.
type DayTotal struct {
	RootID   string
	OrgID    string
	ParentID string
	Day      Day
	Meter    string
	Own      Decimal
	Total    Decimal
}

// Event is one event for one meter, as it is stored.
type Event struct {
	EventKey
	OrgID    string
	Meter    string
	At       time.Time
	Quantity Decimal
}

// EventKey is the identity of an event: Source and ID together name one event
// of those that a Sender has sent for a root. What others have sent has ids of
// its own. An event that several meters count has a Part for each of them,
// from 0.
type EventKey struct {
	RootID string
	Sender string // the organization of the key that sent it; empty for events from before senders were kept
	Source string
	ID     string
	Part   int
}

// ClaimOrder returns the indexes of events in the order of their keys, in which two
// transactions that claim the same events cannot deadlock. Those with one key stay in
// their order: the first is claimed.
func ClaimOrder(events []Event) []int {
	order := make([]int, len(events))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		a, b := &events[i].EventKey, &events[j].EventKey
		return cmp.Or(cmp.Compare(a.RootID, b.RootID), cmp.Compare(a.Sender, b.Sender), cmp.Compare(a.Source, b.Source),
			cmp.Compare(a.ID, b.ID), cmp.Compare(a.Part, b.Part))
	})
	return order
}

// Series is what an aggregate is of: the events of one organization for one
// meter in one period.
type Series struct {
	RootID string
	Period string // a Month or a Day
	OrgID  string
	Meter  string
}

// State is the aggregate of a Series, kept for the aggregations that need to
// know it: Max and Latest.
type State struct {
	Value    Decimal
	LatestAt time.Time // of the newest event; zero before the first
	// Path is where the organization was when the last event was counted, and
	// Here the part of Value that was counted there. The rest is in the totals
	// of ancestors that it had before, and stays with them.
	Path string
	Here Decimal
}

// Count counts an event of the organization, which is at path now, and returns
// what it adds to the consumption of the organization and of every ancestor: see
// Delta. After a move an event takes away no more than was counted since, so that
// no ancestor is charged less than what was consumed below it: the new ones
// never had the rest, and the old ones keep it.
func (s *State) Count(a Aggregation, path string, at time.Time, quantity Decimal) (Decimal, error) {
	delta, latestAt, err := Delta(a, s.Value, s.LatestAt, at, quantity)
	if err != nil {
		return 0, err
	}
	here := s.Here
	switch s.Path {
	case path:
	case "":
		here = s.Value
	default:
		here = 0
	}
	if least := min(quantity, 0); delta < 0 && here+delta < least {
		delta = min(least-here, 0)
	}
	s.Value, s.LatestAt, s.Path, s.Here = s.Value+delta, latestAt, path, here+delta
	return delta, nil
}

// Entry adds to the totals of the organization at the end of Path, and to
// those of all its ancestors.
type Entry struct {
	Path     string // ids from the root down, each followed by a slash
	Meter    string
	Month    Month // in which it is counted
	Quantity Decimal
	Recorded bool    // it comes from recorded requests
	Day      Day     // empty for what belongs to no day
	OfDay    Decimal // added to the day
	// For is the closed month that the entry is for, empty if it is for Month.
	// What it adds is then also added to an Adjustment.
	For Month
}

// Origin says where an Adjustment comes from.
type Origin string

const (
	FromEvents   Origin = "events"   // events that were sent in after their month had closed
	FromRecorder Origin = "requests" // requests that were recorded, and stored after their month had closed
	FromActor    Origin = "actor"    // somebody made it
)

// Adjustment is consumption that is counted in one month for another, or a
// correction. It is never changed, except that one from late events or
// requests grows with every further one of the same organization, meter and
// months.
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
	CreatedBy string // the id of who made it; empty unless Origin is FromActor
	CreatedAt time.Time
}

const (
	// Window is how long after the end of its month an event is still taken,
	// and its identity kept. An older one could not be told from one that was
	// counted already.
	Window = 35 * 24 * time.Hour
	// Ahead is how far in the future an event may be, for clocks that differ.
	Ahead = 5 * time.Minute
)

// RangeError says that a quantity would take what an organization and its
// descendants consumed of a meter out of the range of a Decimal.
type RangeError struct {
	OrgID string
	Meter string
	Month Month
}

func (e *RangeError) Error() string {
	return "the consumption of " + e.Meter + " by " + e.OrgID + " in " + string(e.Month) + " would be out of range"
}
