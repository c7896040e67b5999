package client

import (
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"time"
)

// AccessEvent is one access to an organization, or one attempt at it.
type AccessEvent struct {
	ID        string    `json:"id"`
	Timestamp time.Time `json:"timestamp"`
	OrgID     string    `json:"org_id"`
	User      string    `json:"user"`
	Action    string    `json:"action"`
	Status    string    `json:"status"` // SUCCESS, FAILURE or DENIED
	IP        string    `json:"ip"`
	UserAgent string    `json:"user_agent"`
	Method    string    `json:"method"`
	Path      string    `json:"path"`
	RequestID string    `json:"request_id"`
	APIKeyID  string    `json:"api_key_id"`
	Position  string    `json:"-"` // of an event that was followed: see FollowOptions.After
	Meta      `json:"-"`
}

// AccessQuery selects access events. Empty members select all.
type AccessQuery struct {
	From, To time.Time // From is inclusive, To is exclusive
	User     string
	Action   string
	Status   string
	IP       string
	APIKeyID string
	Scope    string // "self" (default) or "subtree"
}

// AccessLog lists access events, newest first.
func (cl *Client) AccessLog(ctx context.Context, orgID string, q AccessQuery, opts ...CallOption) iter.Seq2[AccessEvent, error] {
	return list[AccessEvent](ctx, cl, accessCall(orgID, q, opts))
}

func accessCall(orgID string, q AccessQuery, opts []CallOption) *call {
	return newCall(http.MethodGet, []string{"orgs", orgID, "access_log"}, opts).setTime("from", q.From).setTime("to", q.To).
		set("user", q.User).set("action", q.Action).set("status", q.Status).set("ip", q.IP).set("api_key_id", q.APIKeyID).set("scope", q.Scope)
}

// FollowAccessLog returns access events as they become visible, until ctx ends
// or the key may not see them any more. Each has its Position, with which
// FollowOptions.After goes on. A lost connection is opened again; no event is
// left out and none comes twice. From and To of the query are not used.
func (cl *Client) FollowAccessLog(ctx context.Context, orgID string, q AccessQuery, opt FollowOptions, opts ...CallOption) iter.Seq2[AccessEvent, error] {
	q.From, q.To = time.Time{}, time.Time{}
	return followed(follow(ctx, cl, accessCall(orgID, q, opts), opt), func(e *AccessEvent, position string) { e.Position = position })
}

// ExportAccessLog writes all access events that q selects to w, newest first,
// in the format CSV or NDJSON. w may have got a part of them when it fails.
func (cl *Client) ExportAccessLog(ctx context.Context, orgID string, q AccessQuery, format string, w io.Writer, opts ...CallOption) error {
	name := "ndjson"
	if format == CSV {
		name = "csv"
	}
	return cl.copy(ctx, accessCall(orgID, q, opts).set("format", name), w)
}

// NewAccessEvent is an access event to send. ID, Timestamp, OrgID and the
// members after Status may be empty.
type NewAccessEvent struct {
	// ID makes the event one that is stored once for its sender, however often it
	// is sent.
	ID        string
	Timestamp time.Time // when it happened; now if it is zero
	OrgID     string    // at or below the organization of the call, which it is if it is empty
	User      string
	Action    string
	Status    string // SUCCESS, FAILURE or DENIED
	IP        string
	UserAgent string
	Method    string
	Path      string
	RequestID string
}

// MarshalJSON leaves out what is empty.
func (e NewAccessEvent) MarshalJSON() ([]byte, error) {
	v := struct {
		ID        string     `json:"id,omitempty"`
		Timestamp *time.Time `json:"timestamp,omitempty"`
		OrgID     string     `json:"org_id,omitempty"`
		User      string     `json:"user"`
		Action    string     `json:"action"`
		Status    string     `json:"status"`
		IP        string     `json:"ip,omitempty"`
		UserAgent string     `json:"user_agent,omitempty"`
		Method    string     `json:"method,omitempty"`
		Path      string     `json:"path,omitempty"`
		RequestID string     `json:"request_id,omitempty"`
	}{ID: e.ID, OrgID: e.OrgID, User: e.User, Action: e.Action, Status: e.Status, IP: e.IP, UserAgent: e.UserAgent,
		Method: e.Method, Path: e.Path, RequestID: e.RequestID}
	if !e.Timestamp.IsZero() {
		at := e.Timestamp.UTC()
		v.Timestamp = &at
	}
	return json.Marshal(v)
}

// Ingested says what became of the events of a call.
type Ingested struct {
	Accepted   int64 `json:"accepted"`
	Duplicates int64 `json:"duplicates"` // their ids were stored before
	Meta       `json:"-"`
}

// MaxAccessEvents is how many events SendAccessEvents takes at a time.
const MaxAccessEvents = 10_000

// SendAccessEvents stores access events, all of them or none: an *Error with
// the code event_invalid names the bad ones in Errors, by Index. It returns
// once they are durable.
func (cl *Client) SendAccessEvents(ctx context.Context, orgID string, events []NewAccessEvent, opts ...CallOption) (*Ingested, error) {
	return get[Ingested](ctx, cl, newCall(http.MethodPost, []string{"orgs", orgID, "access_log"}, opts).json(events))
}

// AccessRetention is how long a root keeps its access log.
type AccessRetention struct {
	OrgID     string     `json:"org_id"`
	Days      int        `json:"days"`
	UpdatedAt *time.Time `json:"updated_at"` // nil if it was never set
	Meta      `json:"-"`
}

// AccessRetention returns how long a root keeps its access log.
func (cl *Client) AccessRetention(ctx context.Context, rootID string, opts ...CallOption) (*AccessRetention, error) {
	return get[AccessRetention](ctx, cl, newCall(http.MethodGet, []string{"orgs", rootID, "access_log", "retention"}, opts))
}

// PutAccessRetention sets how long a root keeps its access log. Older events
// are gone at once.
func (cl *Client) PutAccessRetention(ctx context.Context, rootID string, days int, opts ...CallOption) (*AccessRetention, error) {
	return get[AccessRetention](ctx, cl, newCall(http.MethodPut, []string{"orgs", rootID, "access_log", "retention"}, opts).
		json(map[string]int{"days": days}))
}
