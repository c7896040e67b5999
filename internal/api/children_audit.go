package api

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/web"
)

var entryColumns = []string{"id", "timestamp", "org_id", "path", "action", "actor_type", "actor_id", "actor_name", "target_type", "target_id", "changes", "request_id", "ip", "user_agent", "seq", "leaf_hash"}

func entryRow(e *audit.Entry) []string {
	changes, err := json.Marshal(e.Changes)
	if err != nil {
		panic("api: audit changes that are not JSON: " + err.Error())
	}
	return []string{e.ID, e.Timestamp.UTC().Format(time.RFC3339Nano), e.OrgID, strings.Join(e.Path, "/"), e.Action,
		e.Actor.Type, e.Actor.ID, e.Actor.Name, e.Target.Type, e.Target.ID, string(changes), e.RequestID, e.IP, e.UserAgent,
		strconv.FormatInt(e.Seq, 10), e.LeafHash}
}

func appendEntry(b []byte, e **audit.Entry) []byte {
	out, err := json.Marshal(*e)
	if err != nil {
		panic("api: audit entry that is not JSON: " + err.Error())
	}
	return append(b, out...)
}

func (a *API) getChildrenAudit(r *web.Request) (*web.Response, error) {
	if r.Query.Has("follow") {
		return a.followChildrenAudit(r)
	}
	q := parameters(r)
	q.resumesNothing()
	aq := q.auditQuery()
	aq.To = q.time("to")
	format := q.format()
	limit := q.limit()
	if after := a.cursorOf(q, 1); after != nil {
		n, err := strconv.ParseInt(after[0], 10, 64)
		if err != nil {
			q.fail(problem.New(problem.InvalidCursor, "The cursor was not made for this query."))
		}
		aq.Before = n
	}
	if q.err != nil {
		return nil, q.err
	}
	aq, err := withinAudit(aq, r)
	if err != nil {
		return nil, err
	}
	fetch := func(ctx context.Context, n int) ([]*audit.Entry, []string, error) {
		aq.Limit, aq.MaxBytes = n, r.PageBytes()
		entries, next, err := a.trail.AuditEntries(ctx, aq)
		if err != nil || next < 0 {
			return entries, nil, err
		}
		aq.Before = next
		return entries, []string{strconv.FormatInt(next, 10)}, nil
	}
	if format != formatJSON {
		return table(a, q, format, entryColumns, fetch, func(e **audit.Entry) []string { return entryRow(*e) }, appendEntry)
	}
	entries, next, err := fetch(r.Context(), limit)
	if err != nil {
		return nil, err
	}
	return a.next(q, web.JSON(http.StatusOK, entries), next), nil
}
