package api

import (
	"encoding/base64"
	"io"
	"net/http"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
	"github.com/orgd/orgd/internal/web"
)

func (a *API) statementRoutes() []web.Route {
	return []web.Route{
		{Method: "GET", Pattern: "/orgs/{org_id}/consumption/statement", Operation: "getStatement", Action: "GET_STATEMENT", Rule: needs(key.ConsumptionRead), Query: takes("month"), Handle: a.getStatement},
	}
}

func (a *API) getStatement(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	month, err := usage.ParseMonth(q.text("month"))
	if err != nil {
		q.fail(problem.Param("month", "must be a month such as 2026-11"))
	}
	if q.err != nil {
		return nil, q.err
	}
	if err := whole(r); err != nil {
		return nil, err
	}
	st, err := a.metering.Statement(r.Context(), r.Org.ID, month)
	if err != nil {
		return nil, err
	}
	resp := &web.Response{Status: http.StatusOK, ContentType: "application/json"}
	resp.With("Orgd-Audit-Entry", st.EntryID)
	switch proof, err := a.evidence.ProveEntry(r.Context(), r.Actor, r.Org, st.EntryID); {
	case err == nil:
		resp.With("Orgd-Audit-Proof", base64.StdEncoding.EncodeToString(proof.Text()))
	case !problem.Is(err, problem.Unavailable): // then the entry is not signed yet
		return nil, err
	}
	resp.Stream = func(w io.Writer) error {
		for part := range st.Parts {
			text, err := a.metering.StatementPart(r.Context(), st, part)
			if err != nil {
				return err
			}
			if _, err := w.Write(text); err != nil {
				return err
			}
		}
		return nil
	}
	return resp, nil
}
