package api

import (
	"net/http"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
	"github.com/orgd/orgd/internal/web"
)

func (a *API) limitRoutes() []web.Route {
	reads := web.Rule{Target: "org_id", Permissions: []string{key.ConsumptionRead}}
	writes := web.Rule{Target: "org_id", Permissions: []string{key.ConsumptionWrite}, May: func(r *web.Request) error {
		return metering.PermitLimit(r.Actor, r.Org.Organization)
	}}
	return []web.Route{
		{Method: "GET", Pattern: "/orgs/{org_id}/limits", Operation: "listLimits", Action: "LIST_LIMITS", Rule: reads, Query: takes("limit", "cursor"), Handle: a.listLimits},
		{Method: "GET", Pattern: "/orgs/{org_id}/limits/{meter}", Operation: "getLimit", Action: "GET_LIMIT", Rule: reads, Handle: a.getLimit},
		{Method: "PUT", Pattern: "/orgs/{org_id}/limits/{meter}", Operation: "putLimit", Action: "PUT_LIMIT", Rule: writes, Handle: a.putLimit},
		{Method: "DELETE", Pattern: "/orgs/{org_id}/limits/{meter}", Operation: "deleteLimit", Action: "DELETE_LIMIT", Rule: writes, Handle: a.deleteLimit},
	}
}

// appendLimit appends the representation of a limit without its use, and
// leaves the object open.
func appendLimit(b []byte, l *usage.Limit) []byte {
	b = append(b, `{"org_id":`...)
	b = appendString(b, l.OrgID)
	b = append(b, `,"meter":`...)
	b = appendString(b, l.Meter)
	b = append(b, `,"limit":`...)
	b = l.Amount.AppendJSON(b)
	b = append(b, `,"enforcement":`...)
	return appendString(b, string(l.Enforcement))
}

// appendLimitUse appends the representation of a limit.
func appendLimitUse(b []byte, l *metering.LimitUse) []byte {
	b = appendLimit(b, &l.Limit)
	b = append(b, `,"used":`...)
	if l.Used == nil {
		b = append(b, "null"...)
	} else {
		b = l.Used.AppendJSON(b)
	}
	b = append(b, `,"updated_at":`...)
	b = appendTime(b, l.UpdatedAt)
	return append(b, '}')
}

func limitAnswer(l *metering.LimitUse) *web.Response {
	return web.Raw(http.StatusOK, appendLimitUse(nil, l)).With("Etag", metering.LimitETag(&l.Limit))
}

func (a *API) listLimits(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	n := q.limit()
	after := a.cursorOf(q, 2)
	if q.err != nil {
		return nil, q.err
	}
	if err := a.caughtUp(r.Context()); err != nil {
		return nil, err
	}
	var position metering.LimitPosition
	if after != nil {
		position = metering.LimitPosition{OrgID: after[0], Meter: after[1]}
	}
	limits, more, err := a.metering.Limits(r.Context(), r.Actor, r.Org.ID, position, n)
	if err != nil {
		return nil, err
	}
	var next []string
	if more {
		next = []string{limits[n-1].OrgID, limits[n-1].Meter}
	}
	b := []byte{'['}
	for i := range limits {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendLimitUse(b, &limits[i])
	}
	return a.next(q, web.Raw(http.StatusOK, append(b, ']')), next), nil
}

// limitMeter returns the meter that the path names.
func limitMeter(r *web.Request) (string, error) {
	slug := r.PathValue("meter")
	if err := usage.CheckSlug(slug); err != nil {
		return "", err
	}
	return slug, nil
}

func (a *API) getLimit(r *web.Request) (*web.Response, error) {
	meter, err := limitMeter(r)
	if err != nil {
		return nil, err
	}
	if err := a.caughtUp(r.Context()); err != nil {
		return nil, err
	}
	l, err := a.metering.Limit(r.Context(), r.Actor, r.Org.ID, meter)
	if err != nil {
		return nil, err
	}
	return limitAnswer(l), nil
}

func (a *API) putLimit(r *web.Request) (*web.Response, error) {
	meter, err := limitMeter(r)
	if err != nil {
		return nil, err
	}
	if err := a.metering.CheckLimit(r.Context(), r.Call(nil), r.Org.ID, meter); err != nil {
		return nil, err
	}
	var body struct {
		Limit       *usage.Decimal    `json:"limit"`
		Enforcement usage.Enforcement `json:"enforcement"`
	}
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	switch {
	case body.Limit == nil:
		return nil, problem.Body("/limit", "is missing").WithFix(`Send {"limit": 1000, "enforcement": "hard"}. To remove a limit, DELETE it.`)
	case *body.Limit < 0:
		return nil, problem.Body("/limit", "must not be negative")
	case body.Enforcement != usage.Soft && body.Enforcement != usage.Hard:
		return nil, problem.Body("/enforcement", "must be soft or hard")
	}
	// What is used is read with the change; it should hold what was answered.
	if err := a.caughtUp(r.Context()); err != nil {
		return nil, err
	}
	l, receipt, err := a.metering.PutLimit(r.Context(), r.Call(nil), r.Org.ID, meter, *body.Limit, body.Enforcement)
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return limitAnswer(l).Receipt(receipt), nil
}

func (a *API) deleteLimit(r *web.Request) (*web.Response, error) {
	meter, err := limitMeter(r)
	if err != nil {
		return nil, err
	}
	if err := a.metering.CheckLimit(r.Context(), r.Call(nil), r.Org.ID, meter); err != nil {
		return nil, err
	}
	if err := r.NoBody(); err != nil {
		return nil, err
	}
	receipt, err := a.metering.DeleteLimit(r.Context(), r.Call(nil), r.Org.ID, meter)
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return web.JSON(http.StatusOK, struct {
		Message string `json:"message"`
	}{"Limit deleted"}).Receipt(receipt), nil
}
