// Package usage holds what organizations consume: meters, months, exact
// quantities and their totals up the tree. It is pure: no storage, no HTTP.
package usage

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
}
