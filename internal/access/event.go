// Package access holds access events: who accessed, or tried to access, what.
package access

import "time"

// Statuses of an access event.
const (
	Success = "SUCCESS"
	Failure = "FAILURE" // answered with 4xx or 5xx
	Denied  = "DENIED"  // 401, 403, or 404 because the organization is foreign
)

// Event is one access, or one attempt at it.
type Event struct {
	ID        string // "evt_…", or what the product calls it
	Seq       int64  // in the order in which the root's events became visible; set by the store
	Timestamp time.Time
	RootID    string
	OrgID     string
	User      string
	Action    string
	Status    string
	IP        string
	UserAgent string
	Method    string
	Path      string // of the request
	RequestID string
	APIKeyID  string
}
