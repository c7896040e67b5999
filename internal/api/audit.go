package api

import (
	"context"
	"net/http"
	"time"

	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/web"
)

func (a *API) auditRoutes() []web.Route {
	return []web.Route{
		{Method: "GET", Pattern: "/orgs/{org_id}/children_audit", Operation: "getChildrenAudit", Action: "GET_CHILDREN_AUDIT", Rule: needs(key.AuditRead), Query: takes("from", "to", "action", "actor", "org", "scope", "format", "limit", "cursor", "follow", "last_event_id"), Following: takes("follow", "last_event_id", "from", "action", "actor", "org", "scope"), Handle: a.getChildrenAudit},
		{Method: "GET", Pattern: "/orgs/{org_id}/children_audit/{entry_id}", Operation: "getAuditEntry", Action: "GET_AUDIT_ENTRY", Rule: needs(key.AuditRead), Handle: a.getEntry},
	}
}

// auditQuery reads what selects audit entries, whatever their order.
func (q *query) auditQuery() org.AuditQuery {
	aq := org.AuditQuery{Scope: org.Scope(q.oneOf("scope", "subtree", "subtree", "self", "children", "descendants")),
		From: q.time("from"), Action: q.text("action"), Actor: q.text("actor"), Org: q.text("org")}
	if aq.Org != "" && !ident.Valid(aq.Org) {
		q.fail(problem.Param("org", ident.Rule))
	}
	return aq
}

// withinAudit bounds a query to the organization that the request is about,
// and to what its key reaches.
func withinAudit(aq org.AuditQuery, r *web.Request) (org.AuditQuery, error) {
	aq.RootID, aq.OrgID, aq.Path = r.Org.RootID, r.Org.ID, r.Org.Path
	if since := r.Org.TrailSince(); aq.From.Before(since) {
		aq.From = since
	}
	if !r.Actor.SeesBelow(r.Org.Path) {
		if aq.Scope == org.ScopeChildren || aq.Scope == org.ScopeDescendants {
			return aq, problem.New(problem.PermissionDenied, "This key reaches its own organization only.")
		}
		aq.Scope = org.ScopeSelf
	}
	return aq, nil
}

// followChildrenAudit answers with the entries in the order of their log, as
// they are made: from the position in Last-Event-ID on, or else from the time
// in from, or else from now on. Entries of a root's log are made under its
// lock, each with the next number, and the lock is held until they are
// committed: nobody can see an entry before one with a smaller number. So a
// reader who goes by the numbers misses nothing.
func (a *API) followChildrenAudit(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	if !q.bool("follow") {
		q.fail(problem.Param("follow", "must be true, or be left out"))
	}
	selected, lastID := q.auditQuery(), lastEventID(r, q)
	if q.err != nil {
		return nil, q.err
	}
	if _, err := withinAudit(selected, r); err != nil {
		return nil, err
	}
	head, err := a.trail.AuditHead(r.Context(), r.Org.RootID)
	if err != nil {
		return nil, err
	}
	scope := "audit log " + head.LogID
	var position int64
	switch {
	case lastID != "":
		if position, err = a.openPosition(lastID, scope); err != nil {
			return nil, err
		}
		selected.From = time.Time{}
	case selected.From.IsZero():
		position = org.AuditPosition(head.Epoch, head.Size)
	}
	return web.Follow(&web.Feed{News: a.service.AuditNews(), RootID: r.Org.RootID, Next: func(ctx context.Context) (web.Messages, error) {
		aq, err := withinAudit(selected, r)
		if err != nil {
			return web.Messages{}, err
		}
		aq.After, aq.Limit, aq.MaxBytes = position, feedPage, web.FeedBytes
		entries, next, more, err := a.trail.AuditFeed(ctx, aq)
		if err != nil {
			return web.Messages{}, err
		}
		position = next
		return web.Messages{Len: len(entries), More: more, Position: a.sealPosition(next, scope),
			ID: func(i int) string {
				return a.sealPosition(org.AuditPosition(entries[i].Epoch, entries[i].Seq)+1, scope)
			},
			Append: func(b []byte, i int) []byte { return appendEntry(b, &entries[i]) }}, nil
	}}), nil
}

func (a *API) getEntry(r *web.Request) (*web.Response, error) {
	e, err := a.trail.AuditEntry(r.Context(), r.Actor, r.Org, r.PathValue("entry_id"))
	if err != nil {
		return nil, err
	}
	return web.Raw(http.StatusOK, appendEntry(nil, &e)), nil
}
