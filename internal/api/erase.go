package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/trail"
	"github.com/orgd/orgd/internal/web"
)

func (a *API) eraseRoutes() []web.Route {
	return []web.Route{
		{Method: "POST", Pattern: "/orgs/{org_id}/audit_erasures", Operation: "eraseSubject", Action: "ERASE_SUBJECT", Rule: needs(key.AuditErase), Query: takes("dry_run"), Handle: a.eraseSubject},
	}
}

func (a *API) eraseSubject(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	dryRun := q.bool("dry_run")
	if q.err != nil {
		return nil, q.err
	}
	var body struct {
		Subject string `json:"subject"`
		Basis   string `json:"basis"`
	}
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	if !dryRun {
		// What was recorded before now must be in the database to be found.
		if err := a.forget(r); err != nil {
			return nil, err
		}
	} else if err := a.caughtUp(r.Context()); err != nil {
		return nil, err
	}
	e, receipt, err := a.trail.Erase(r.Context(), r.Call(renderErasure), r.Org.ID, body.Subject, body.Basis, dryRun)
	r.Receipt = receipt
	if err != nil {
		return nil, err
	}
	return renderErasure(e).Receipt(receipt), nil
}

// forgetTimeout bounds how long an erasure waits for what was just recorded.
const forgetTimeout = 10 * time.Second

// forget stores what waits in the spool and removes it from its files.
func (a *API) forget(r *web.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), forgetTimeout)
	defer cancel()
	if err := a.flusher.Forget(ctx); errors.Is(err, access.ErrKept) {
		return problem.New(problem.Unavailable, "A file of the access log's spool that may hold copies cannot be removed; nothing was erased.").
			WithFix("Repeat the request when the operator has seen to it; the server's log names the file.").WithCause(err)
	} else if err != nil {
		return problem.New(problem.Unavailable, "Recent requests have not reached the database yet; nothing was erased.").
			WithFix("Repeat the request in a moment.").WithCause(err)
	}
	return nil
}

func renderErasure(result any) *web.Response {
	e := result.(*trail.Erasure)
	type counts struct {
		AuditEntries int64 `json:"audit_entries"`
		AuditValues  int64 `json:"audit_values"`
		AccessEvents int64 `json:"access_events"`
		APIKeys      int64 `json:"api_keys"`
	}
	return web.JSON(http.StatusOK, struct {
		DryRun    bool            `json:"dry_run,omitzero"`
		Erased    counts          `json:"erased"`
		Remaining trail.Remaining `json:"remaining"`
	}{e.DryRun, counts{e.AuditEntries, e.Values, e.AccessEvents, e.APIKeys}, e.Remaining})
}
