package api

import (
	"net/http"
	"strconv"

	"github.com/orgd/orgd/internal/budget"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/web"
)

func (a *API) quotaRoutes() []web.Route {
	const path = "/orgs/{org_id}/quota"
	writes := web.Rule{Target: "org_id", Operator: true}
	return []web.Route{
		{Method: "GET", Pattern: path, Operation: "getQuota", Action: "GET_QUOTA", Rule: web.Rule{Target: "org_id", Permissions: []string{key.OrgsRead}}, Handle: a.getQuota},
		{Method: "PUT", Pattern: path, Operation: "putQuota", Action: "PUT_QUOTA", Rule: writes, Handle: a.putQuota},
		{Method: "DELETE", Pattern: path, Operation: "deleteQuota", Action: "DELETE_QUOTA", Rule: writes, Handle: a.deleteQuota},
	}
}

// defaultQuota returns what a root has without a quota while it is alone. What
// is not bounded is 0.
func (a *API) defaultQuota() org.Quota {
	l := a.budget.Default()
	return org.Quota{RequestsInFlight: l[budget.Requests], BytesInFlight: l[budget.Bytes], ExpensiveInFlight: l[budget.Expensive],
		Streams: l[budget.Streams], RequestsPerSecond: l[budget.RequestsPerSecond], ChangesPerSecond: l[budget.ChangesPerSecond],
		IdempotencyBytes: org.DefaultIdempotencyBytes, PageRows: org.DefaultPageRows, PageBytes: org.DefaultPageBytes,
		ImportRows: org.DefaultImportRows}
}

// appendQuota appends the members of a quota; 0 is null.
func appendQuota(b []byte, q *org.Quota) []byte {
	b = append(b, '{')
	for i, m := range org.QuotaMembers() {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, m.Name)
		b = append(b, ':')
		if v := *m.Of(q); v == 0 {
			b = append(b, "null"...)
		} else {
			b = strconv.AppendInt(b, v, 10)
		}
	}
	return append(b, '}')
}

// quotaAnswer shows the quota of a root beside what it uses.
func (a *API) quotaAnswer(r *web.Request, q *org.Quota) (*web.Response, error) {
	kept, _, err := a.service.AnswersKept(r.Context(), r.Org.ID)
	if err != nil {
		return nil, err
	}
	defaults := a.defaultQuota()
	effective := q.Or(defaults)
	used := a.budget.UsedBy(r.Org.ID, a.now())
	b := append([]byte(nil), `{"org_id":`...)
	b = appendString(b, r.Org.ID)
	b = append(b, `,"quota":`...)
	b = appendQuota(b, q)
	b = append(b, `,"defaults":`...)
	b = appendQuota(b, &defaults)
	b = append(b, `,"effective":`...)
	b = appendQuota(b, &effective)
	b = append(b, `,"used":{`...)
	for _, res := range budget.Resources() {
		b = appendString(b, res.String())
		b = append(b, ':')
		b = strconv.AppendInt(b, used[res], 10)
		b = append(b, ',')
	}
	b = append(b, `"idempotency_bytes":`...)
	b = strconv.AppendInt(b, kept, 10)
	b = append(b, `},"updated_at":`...)
	if q.UpdatedAt.IsZero() {
		b = append(b, "null"...)
	} else {
		b = appendTime(b, q.UpdatedAt)
	}
	return web.Raw(http.StatusOK, append(b, '}')).With("Etag", q.ETag(r.Org.ID)), nil
}

func (a *API) getQuota(r *web.Request) (*web.Response, error) {
	q, err := a.service.Quota(r.Context(), r.Actor, r.Org.ID)
	if err != nil {
		return nil, err
	}
	return a.quotaAnswer(r, q)
}

func (a *API) putQuota(r *web.Request) (*web.Response, error) {
	if err := a.service.CheckQuota(r.Context(), r.Call(nil), r.Org.ID); err != nil {
		return nil, err
	}
	var body map[string]*int64
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	members, err := quotaOf(body)
	if err != nil {
		return nil, err
	}
	return a.changeQuota(r, members)
}

// quotaOf returns the quota that a body is. What is null is not set, and 0 is
// not taken for that.
func quotaOf(body map[string]*int64) (org.Quota, error) {
	var q org.Quota
	for _, m := range org.QuotaMembers() {
		v := body[m.Name]
		delete(body, m.Name)
		if v == nil {
			continue
		}
		if *v < m.Min || *v > m.Max {
			return q, m.OutOfRange()
		}
		*m.Of(&q) = *v
	}
	for name := range body {
		return q, problem.Body("/"+name, "is not a member that this call takes: %s", name).
			WithFix("Remove %s. Member names are case-sensitive.", name)
	}
	return q, nil
}

func (a *API) deleteQuota(r *web.Request) (*web.Response, error) {
	if err := a.service.CheckQuota(r.Context(), r.Call(nil), r.Org.ID); err != nil {
		return nil, err
	}
	if err := r.NoBody(); err != nil {
		return nil, err
	}
	return a.changeQuota(r, org.Quota{})
}

func (a *API) changeQuota(r *web.Request, members org.Quota) (*web.Response, error) {
	q, receipt, err := a.service.PutQuota(r.Context(), r.Call(nil), r.Org.ID, members)
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	resp, err := a.quotaAnswer(r, q)
	if err != nil {
		return nil, err
	}
	return resp.Receipt(receipt), nil
}
