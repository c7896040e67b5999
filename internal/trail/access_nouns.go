package trail

import (
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

// AccessRetention is how long the access events of a root are kept.
type AccessRetention struct {
	RootID    string
	Days      int
	UpdatedAt time.Time // zero for the default
}

// IncomingEvent is an access event that a product sends.
type IncomingEvent struct {
	access.Event
	Line  int  // of the request body, 1-based; 0 if it has no lines
	Named bool // the product gave the event its id
}

// Bounds of a retention, in days.
const (
	DefaultAccessRetention = 400
	maxAccessRetention     = 36_500
)

// since returns the time from which on events are kept.
func (r *AccessRetention) since(now time.Time) time.Time { return now.AddDate(0, 0, -r.Days) }

// ETag returns the strong entity tag of the retention.
func (r *AccessRetention) ETag() string {
	return org.ETag("access retention", org.Stamp{Path: r.RootID, Version: int64(r.Days), At: r.UpdatedAt})
}

// Bounds of the members of an incoming event, in bytes.
const (
	maxEventID        = 128
	maxEventUser      = 256
	maxEventAction    = 64
	maxEventUserAgent = 512
	maxEventMethod    = 32
	maxEventPath      = 2048
	maxEventRequestID = 128
)

// Check checks the members that a product gives an event, apart from its place
// and its time, and brings them into their final form.
func (e *IncomingEvent) Check() *problem.Error {
	for _, m := range []struct {
		name, value string
		most        int
		required    bool
	}{
		{"id", e.ID, maxEventID, false}, {"user", e.User, maxEventUser, true}, {"action", e.Action, maxEventAction, true},
		{"status", e.Status, maxEventAction, true}, {"user_agent", e.UserAgent, maxEventUserAgent, false},
		{"method", e.Method, maxEventMethod, false}, {"path", e.Path, maxEventPath, false}, {"request_id", e.RequestID, maxEventRequestID, false},
	} {
		switch {
		case m.required && m.value == "":
			return problem.Body("/"+m.name, "is missing")
		case len(m.value) > m.most:
			return problem.Body("/"+m.name, "is longer than %d bytes", m.most)
		case strings.ContainsFunc(m.value, unicode.IsControl):
			return problem.Body("/"+m.name, "holds a control character")
		}
	}
	if key.Holds(e.ID) {
		return problem.Body("/id", key.SecretInID)
	}
	for _, text := range []*string{&e.User, &e.Action, &e.UserAgent, &e.Method, &e.Path, &e.RequestID} {
		*text = key.Redact(*text)
	}
	if e.OrgID != "" {
		if p := org.CheckID("/org_id", e.OrgID); p != nil {
			return p
		}
	}
	switch e.Status {
	case access.Success, access.Failure, access.Denied:
	default:
		return problem.Body("/status", "must be SUCCESS, FAILURE or DENIED")
	}
	if e.IP != "" {
		ip, err := netip.ParseAddr(e.IP)
		if err != nil || ip.Zone() != "" {
			return problem.Body("/ip", "must be an IPv4 or IPv6 address")
		}
		e.IP = ip.Unmap().String()
	}
	return nil
}
