package api

import (
	"bytes"
	"context"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/trail"
	"github.com/orgd/orgd/internal/web"
)

// appendEvent appends the representation of an access event.
func appendEvent(b []byte, e *access.Event) []byte {
	b = append(b, `{"id":`...)
	b = appendString(b, e.ID)
	b = append(b, `,"timestamp":`...)
	b = appendTime(b, e.Timestamp)
	b = append(b, `,"org_id":`...)
	b = appendString(b, e.OrgID)
	b = append(b, `,"user":`...)
	b = appendString(b, e.User)
	b = append(b, `,"action":`...)
	b = appendString(b, e.Action)
	b = append(b, `,"status":`...)
	b = appendString(b, e.Status)
	for _, m := range [...]struct{ name, value string }{
		{"ip", e.IP}, {"user_agent", e.UserAgent}, {"method", e.Method}, {"path", e.Path},
		{"request_id", e.RequestID}, {"api_key_id", e.APIKeyID},
	} {
		b = append(b, `,"`...)
		b = append(b, m.name...)
		b = append(b, `":`...)
		b = appendNullable(b, m.value)
	}
	return append(b, '}')
}

var eventColumns = []string{"id", "timestamp", "org_id", "user", "action", "status", "ip", "user_agent", "method", "path", "request_id", "api_key_id"}

func eventRow(e *access.Event) []string {
	return []string{e.ID, e.Timestamp.UTC().Format(time.RFC3339Nano), e.OrgID, e.User, e.Action, e.Status, e.IP, e.UserAgent, e.Method, e.Path, e.RequestID, e.APIKeyID}
}

// accessQuery reads what selects events, whatever their order.
func (q *query) accessQuery() trail.AccessQuery {
	aq := trail.AccessQuery{Scope: org.Scope(q.oneOf("scope", "self", "self", "subtree")), User: q.text("user"), Action: q.text("action"),
		Status: q.oneOf("status", "", access.Success, access.Failure, access.Denied), IP: q.text("ip"), APIKeyID: q.text("api_key_id")}
	if aq.IP != "" {
		ip, err := netip.ParseAddr(aq.IP)
		if err != nil {
			q.fail(problem.Param("ip", "must be an IPv4 or IPv6 address"))
		}
		aq.IP = ip.Unmap().String()
	}
	return aq
}

// within bounds a query to the organization that the request is about, and to
// what its key reaches.
func within(aq trail.AccessQuery, r *web.Request) trail.AccessQuery {
	aq.RootID, aq.OrgID, aq.Path = r.Org.RootID, r.Org.ID, r.Org.Path
	if !r.Actor.SeesBelow(r.Org.Path) {
		aq.Scope = org.ScopeSelf
	}
	return aq
}

func (a *API) getAccessLog(r *web.Request) (*web.Response, error) {
	if r.Query.Has("follow") {
		return a.followAccessLog(r)
	}
	q := parameters(r)
	q.resumesNothing()
	aq := within(q.accessQuery(), r)
	aq.From, aq.To = q.time("from"), q.time("to")
	format := q.format()
	limit := q.limit()
	if after := a.cursorOf(q, 2); after != nil {
		us, err := strconv.ParseInt(after[0], 10, 64)
		seq, err2 := strconv.ParseInt(after[1], 10, 64)
		if err != nil || err2 != nil {
			q.fail(problem.New(problem.InvalidCursor, "The cursor was not made for this query."))
		}
		aq.Before = trail.AccessPosition{At: time.UnixMicro(us).UTC(), Seq: seq}
	}
	if q.err != nil {
		return nil, q.err
	}
	if err := a.caughtUp(r.Context()); err != nil {
		return nil, err
	}
	fetch := func(ctx context.Context, n int) ([]access.Event, []string, error) {
		aq.Limit, aq.MaxBytes = n, r.PageBytes()
		page, err := a.trail.AccessEvents(ctx, aq)
		if err != nil || page.Next == nil {
			return page.Events, nil, err
		}
		aq.Before = *page.Next
		return page.Events, []string{strconv.FormatInt(page.Next.At.UnixMicro(), 10), strconv.FormatInt(page.Next.Seq, 10)}, nil
	}
	if format != formatJSON {
		return table(a, q, format, eventColumns, fetch, eventRow, appendEvent)
	}
	events, next, err := fetch(r.Context(), limit)
	if err != nil {
		return nil, err
	}
	b := append(make([]byte, 0, 400*len(events)+2), '[')
	for i := range events {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendEvent(b, &events[i])
	}
	return a.next(q, web.Raw(http.StatusOK, append(b, ']')), next), nil
}

// followAccessLog answers with the events as they become visible, from the
// position in Last-Event-ID on, or from now on without one.
func (a *API) followAccessLog(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	if !q.bool("follow") {
		q.fail(problem.Param("follow", "must be true, or be left out"))
	}
	selected, lastID := q.accessQuery(), lastEventID(r, q)
	if q.err != nil {
		return nil, q.err
	}
	scope := "access log of " + r.Org.RootID
	var position int64
	var err error
	if lastID != "" {
		position, err = a.openPosition(lastID, scope)
	} else if err = a.caughtUp(r.Context()); err == nil {
		position, err = a.trail.AccessHead(r.Context(), r.Org.RootID)
	}
	if err != nil {
		return nil, err
	}
	return web.Follow(&web.Feed{News: a.trail.AccessNews(), RootID: r.Org.RootID, Next: func(ctx context.Context) (web.Messages, error) {
		aq := within(selected, r)
		aq.Limit, aq.MaxBytes = feedPage, web.FeedBytes
		feed, err := a.trail.AccessFeed(ctx, aq, position)
		if err != nil {
			return web.Messages{}, err
		}
		position = feed.Position
		return web.Messages{Len: len(feed.Events), More: feed.More, Position: a.sealPosition(feed.Position, scope),
			ID:     func(i int) string { return a.sealPosition(feed.Events[i].Seq, scope) },
			Append: func(b []byte, i int) []byte { return appendEvent(b, &feed.Events[i]) }}, nil
	}}), nil
}

// feedPage is how many events a feed sends at most before it checks again that
// its key is still good.
const feedPage = 500

func (a *API) sealPosition(n int64, scope string) string {
	return a.seal(strconv.AppendInt(nil, n, 36), scope)
}

// lastEventID returns the id of the message after which a stream goes on, empty
// for none. The header goes before the parameter last_event_id: an EventSource
// that was opened with that comes back with the same address and a later id in
// the header.
func lastEventID(r *web.Request, q *query) string {
	id := q.text("last_event_id")
	if later := r.Header.Get("Last-Event-ID"); later != "" {
		return later
	}
	return id
}

// resumesNothing fails if the query says where a stream goes on.
func (q *query) resumesNothing() {
	if q.text("last_event_id") != "" {
		q.fail(problem.Param("last_event_id", "goes with follow=true only"))
	}
}

// openPosition returns the position in a Last-Event-ID.
func (a *API) openPosition(id, scope string) (int64, error) {
	if text, ok := a.open(id, scope); ok {
		if n, err := strconv.ParseInt(string(text), 36, 64); err == nil {
			return n, nil
		}
	}
	return 0, problem.New(problem.InvalidCursor, "The Last-Event-ID was not made by this stream.").
		WithFix("Send the id of the last message that you got, or leave it out to start now.")
}

func (a *API) accessRoutes() []web.Route {
	rule := func(permission string) web.Rule {
		return web.Rule{Target: "org_id", Permissions: []string{permission}}
	}
	return []web.Route{
		{Method: "GET", Pattern: "/orgs/{org_id}/access_log", Operation: "getAccessLog", Action: "GET_ACCESS_LOG", Rule: rule(key.AccessLogRead), Query: takes("from", "to", "user", "action", "status", "ip", "api_key_id", "scope", "format", "limit", "cursor", "follow", "last_event_id"), Following: takes("follow", "last_event_id", "user", "action", "status", "ip", "api_key_id", "scope"), Handle: a.getAccessLog},
		{Method: "POST", Pattern: "/orgs/{org_id}/access_log", Operation: "ingestAccessLog", Action: "INGEST_ACCESS_LOG", Rule: rule(key.AccessLogWrite), MaxBody: web.MaxBulkBody, Swell: accessSwell, Handle: a.ingestAccessLog},
		{Method: "GET", Pattern: "/orgs/{org_id}/access_log/retention", Operation: "getAccessLogRetention", Action: "GET_ACCESS_LOG_RETENTION", Rule: rule(key.AccessLogRead), Handle: a.getAccessRetention},
		{Method: "PUT", Pattern: "/orgs/{org_id}/access_log/retention", Operation: "putAccessLogRetention", Action: "PUT_ACCESS_LOG_RETENTION", Rule: rule(key.AccessLogWrite), Handle: a.putAccessRetention},
	}
}

// maxAccessEvents is how many events one request may bring.
const maxAccessEvents = 10_000

func (a *API) ingestAccessLog(r *web.Request) (*web.Response, error) {
	events, err := readAccessEvents(r)
	if err != nil {
		return nil, err
	}
	render := func(result any) *web.Response {
		n := result.(*trail.Ingested)
		return web.JSON(http.StatusOK, struct {
			Accepted   int64 `json:"accepted"`
			Duplicates int64 `json:"duplicates"`
		}{n.Accepted, n.Duplicates})
	}
	n, err := a.trail.IngestAccess(r.Context(), r.Call(render), r.Org.ID, events)
	if err != nil {
		return nil, err
	}
	r.Did = eventsStored
	return render(n), nil
}

// readAccessEvents reads one event, an array of them, or one a line.
func readAccessEvents(r *web.Request) ([]trail.IncomingEvent, error) {
	mediaType, err := r.MediaType("application/json", "application/x-ndjson")
	if err != nil {
		return nil, err
	}
	body, err := r.Raw()
	if err != nil {
		return nil, err
	}
	var events []trail.IncomingEvent
	var bad org.EventErrors
	n := 0
	read := func(line int, text []byte) {
		if n++; n > maxAccessEvents {
			return
		}
		e, p := readAccessEvent(text)
		if p != nil {
			bad.Add(n-1, line, p)
			return
		}
		e.Line = line
		events = append(events, e)
	}
	body = bytes.TrimPrefix(body, []byte("\xef\xbb\xbf"))
	if mediaType == "application/x-ndjson" {
		line := 0
		for text := range bytes.Lines(body) {
			line++
			if text = bytes.TrimSpace(text); len(text) > 0 {
				read(line, text)
			}
		}
	} else if start := bytes.TrimLeft(body, " \t\r\n"); len(start) > 0 && start[0] == '[' {
		list, count, err := web.DecodeList(body, maxAccessEvents)
		if err != nil {
			return nil, err
		}
		for _, text := range list {
			read(0, text)
		}
		n = count
	} else if len(start) > 0 {
		read(0, body)
	}
	switch {
	case n > maxAccessEvents:
		return nil, problem.New(problem.TooLarge, "The request has %d events; it may have %d.", n, maxAccessEvents).
			WithFix("Send the events in several requests.").With("limit_events", maxAccessEvents)
	case n == 0:
		return nil, problem.Body("", "holds no event").WithFix("Send at least one event.")
	}
	return events, bad.Err()
}

// readAccessEvent reads an event as a product sends it. What is null counts as
// absent.
func readAccessEvent(text []byte) (trail.IncomingEvent, *problem.Error) {
	var in struct {
		ID        string     `json:"id"`
		Timestamp *time.Time `json:"timestamp"`
		OrgID     string     `json:"org_id"`
		User      string     `json:"user"`
		Action    string     `json:"action"`
		Status    string     `json:"status"`
		IP        string     `json:"ip"`
		UserAgent string     `json:"user_agent"`
		Method    string     `json:"method"`
		Path      string     `json:"path"`
		RequestID string     `json:"request_id"`
	}
	if err := web.DecodeJSON(text, &in); err != nil {
		return trail.IncomingEvent{}, problem.From(err)
	}
	e := trail.IncomingEvent{Named: in.ID != "", Event: access.Event{ID: in.ID, OrgID: in.OrgID, User: in.User, Action: in.Action,
		Status: in.Status, IP: in.IP, UserAgent: in.UserAgent, Method: in.Method, Path: in.Path, RequestID: in.RequestID}}
	at, err := eventTime("/timestamp", in.Timestamp)
	if err != nil {
		return trail.IncomingEvent{}, problem.From(err)
	}
	e.Timestamp = at.UTC().Truncate(time.Microsecond)
	return e, e.Check()
}

func renderRetention(r *trail.AccessRetention) *web.Response {
	body := struct {
		OrgID     string     `json:"org_id"`
		Days      int        `json:"days"`
		UpdatedAt *time.Time `json:"updated_at"`
	}{OrgID: r.RootID, Days: r.Days}
	if !r.UpdatedAt.IsZero() {
		body.UpdatedAt = &r.UpdatedAt
	}
	return web.JSON(http.StatusOK, body).With("ETag", r.ETag())
}

func (a *API) getAccessRetention(r *web.Request) (*web.Response, error) {
	retention, err := a.trail.AccessRetention(r.Context(), r.Actor, r.Org.ID)
	if err != nil {
		return nil, err
	}
	return renderRetention(retention), nil
}

func (a *API) putAccessRetention(r *web.Request) (*web.Response, error) {
	if err := a.trail.CheckAccessRetention(r.Context(), r.Call(nil), r.Org.ID); err != nil {
		return nil, err
	}
	var in struct {
		Days *int `json:"days"`
	}
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if in.Days == nil {
		return nil, problem.Body("/days", "is missing")
	}
	retention, receipt, err := a.trail.PutAccessRetention(r.Context(), r.Call(nil), r.Org.ID, *in.Days)
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return renderRetention(retention).Receipt(receipt), nil
}
