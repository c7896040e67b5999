package api

import (
	"net/http"
	"time"

	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/web"
)

// asOf returns the moment that the request asks about, zero for the present.
func asOf(q *query) (time.Time, error) {
	at := q.time("as_of")
	return at, q.err
}

func (a *API) getOrgAt(r *web.Request, at time.Time) (*web.Response, error) {
	o, err := a.trail.OrgAt(r.Watched(), r.Actor, r.Org.Organization, at)
	if err != nil {
		return nil, err
	}
	return web.Raw(http.StatusOK, renderOrg(o)), nil
}

func (a *API) listDescendantsAt(r *web.Request, q *query, depth int) (*web.Response, error) {
	limit := q.limit()
	after := a.cursorOf(q, 1)
	at, err := asOf(q)
	if err != nil {
		return nil, err
	}
	if after == nil {
		after = []string{""}
	}
	page, err := a.trail.DescendantsAt(r.Watched(), r.Actor, r.Org.Organization, at, depth, after[0], limit, r.PageBytes())
	if err != nil {
		return nil, err
	}
	b := append(make([]byte, 0, 512*len(page.Orgs)+2), '[')
	for i, o := range page.Orgs {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendOrgAt(b, o)
	}
	var next []string
	if page.Next != "" {
		next = []string{page.Next}
	}
	return a.next(q, web.Raw(http.StatusOK, append(b, ']')), next), nil
}

// appendOrgAt appends the representation of an organization as it was. Erased
// values are empty, or absent from the customizations, and listed.
func appendOrgAt(b []byte, o *org.Organization) []byte {
	erased := o.Erased()
	if len(erased) == 0 {
		return appendOrg(b, o)
	}
	b = appendOrg(b, o.WithoutErased())
	b = append(b[:len(b)-1], `,"erased":`...)
	return append(appendStrings(b, erased), '}')
}
