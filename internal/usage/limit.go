package usage

import "time"

// Enforcement says what happens at a limit.
type Enforcement string

const (
	Soft Enforcement = "soft" // it is shown
	Hard Enforcement = "hard" // what would exceed it is refused
)

// Limit bounds what the subtree of an organization consumes of a meter in one
// calendar month.
type Limit struct {
	RootID      string
	OrgID       string // the organization that the limit is set on
	Meter       string
	Amount      Decimal
	Enforcement Enforcement
	UpdatedAt   time.Time
	Version     int64
}
