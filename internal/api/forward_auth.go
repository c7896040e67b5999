package api

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
	"github.com/orgd/orgd/internal/web"
)

const forwardAuthPath = "/forward_auth"

// proxySurface is that of proxies which ask about the requests of their clients.
func proxySurface() *web.Surface {
	return &web.Surface{Path: forwardAuthPath, Fail: func(r *web.Request, e *problem.Error) *web.Response {
		// A proxy that drops the body can still tell its client why.
		return web.Problem(r, e).With("X-Orgd-Code", string(e.Code))
	}}
}

func (a *API) forwardAuthRoutes() []web.Route {
	return []web.Route{
		{Pattern: forwardAuthPath, Prefix: true, Surface: proxySurface(), Listeners: []web.Listener{web.Proxies}, Operation: "forwardAuth", Action: "FORWARD_AUTH", Prepare: a.prepareForwardAuth, NoReplay: true, Query: takes(demandParameters...), Handle: a.forwardAuth},
	}
}

// demandParameters are what a proxy's configuration may demand.
var demandParameters = []string{"permission", "meter", "quantity", "org", "action"}

// prepareForwardAuth finds out which request the call stands for and what is
// demanded of it.
//
// Demands must come from the configuration of the proxy and never from its
// client. They stand in the query, unless the proxy appends the path and query
// of the original request to a path of its own, as Envoy does: then they are
// path parameters, "/forward_auth;meter=api_calls/orders/1?page=2", and the
// query is the client's.
func (a *API) prepareForwardAuth(r *web.Request) error {
	path := r.URL.EscapedPath()
	if a.basePath != "" {
		path = strings.TrimPrefix(path, a.basePath)
	}
	rest, ok := strings.CutPrefix(path, forwardAuthPath)
	d := &web.Decision{Method: r.Method, Path: path, IP: r.IP, UserAgent: r.UserAgent()}
	var err error
	switch {
	case !ok || rest != "" && rest[0] != '/' && rest[0] != ';':
		return problem.New(problem.NotFound, "There is nothing at this path.")
	case rest != "" && elsewhere(path, true):
		// Who stands in between may have let it through because it is not this
		// call, or, cleaned, not the path that is decided about.
		return unclear("request")
	case rest == "":
		if err = a.queryDemand(d, r.URL.RawQuery); err == nil && r.Trusted {
			err = originalRequest(d, r.Header)
		}
	case rest[0] == ';':
		parameters, _, found := strings.Cut(rest[1:], "/")
		if !found {
			return problem.New(problem.InvalidRequest, "Path parameters must be followed by the path of the original request.").
				WithFix("Write the parameters as a query: %s?meter=api_calls.", forwardAuthPath)
		}
		values := url.Values{}
		for p := range strings.SplitSeq(parameters, ";") {
			if p == "" {
				continue
			}
			name, value, _ := strings.Cut(p, "=")
			if value, err = url.PathUnescape(value); err != nil {
				return problem.New(problem.InvalidParameter, "The path parameters are malformed.").WithFix("Percent-encode them.")
			}
			values[name] = append(values[name], value)
		}
		d.Path = rest[1+len(parameters):]
		err = demand(d, values)
	default:
		// Whoever configured the proxy may have meant the query for orgd, and
		// then nothing that it demands would be checked.
		values, _ := url.ParseQuery(r.URL.RawQuery)
		for _, name := range demandParameters {
			if values.Has(name) {
				return problem.Param(name, "stands in the query of a path below %s, which is that of the original request", forwardAuthPath).
					WithFix("Write demands as path parameters: %s;meter=api_calls, followed by the original path.", forwardAuthPath)
			}
		}
		d.Path = rest
	}
	if err != nil {
		return err
	}
	if d.Path, _, _ = strings.Cut(d.Path, "?"); rest == "" && d.Path != path && (elsewhere(d.Path, false) || strings.IndexByte(d.Path, '#') >= 0) {
		return unclear("original request")
	}
	r.Decision = d
	return nil
}

// maxQueries is how many queries are kept with what they demand: they are those
// of the proxies' configurations, and of the organizations named in them.
const maxQueries = 10_000

// maxKnownQuery is the length of the longest query that is kept, in bytes: they
// are read before it is known who asks.
const maxKnownQuery = 1024

// knownQuery is what a query demands.
type knownQuery struct {
	demand metering.Demand
	action string
}

// queryDemand reads the demands of a query.
func (a *API) queryDemand(d *web.Decision, raw string) error {
	if known, ok := a.queries.GetIfPresent(raw); ok {
		d.Demand, d.Action = known.demand, known.action
		return nil
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return problem.New(problem.InvalidParameter, "The query string is malformed.").WithFix("Percent-encode the parameters.")
	}
	if err := demand(d, values); err != nil {
		return err
	}
	if len(raw) <= maxKnownQuery {
		a.queries.Set(strings.Clone(raw), knownQuery{d.Demand, d.Action})
	}
	return nil
}

// originalRequest takes the original request from the headers of a proxy that
// is trusted. A proxy sets one family of headers; those of another family are
// its client's, and there is no telling which is which: such a request is
// refused.
func originalRequest(d *web.Decision, h http.Header) error {
	families := [...][2]string{
		{"X-Original-Method", "X-Original-Uri"},   // nginx, by configuration
		{"X-Forwarded-Method", "X-Forwarded-Uri"}, // Caddy, Traefik
	}
	found := false
	for _, names := range families {
		methods, uris := h[names[0]], h[names[1]]
		if methods == nil && uris == nil {
			continue
		}
		if found || len(methods) > 1 || len(uris) > 1 {
			return problem.New(problem.InvalidRequest, "The original request is described more than once.").
				WithFix("Let the proxy remove the headers X-Original-Method, X-Original-URI, X-Forwarded-Method and X-Forwarded-Uri that it does not set itself.")
		}
		found = true
		if methods != nil {
			d.Method = methods[0]
		}
		if uris != nil {
			d.Path = uris[0]
		}
	}
	if !validMethod(d.Method) {
		return problem.New(problem.InvalidRequest, "The method of the original request is not valid.")
	}
	return nil
}

// validMethod reports whether s can be the method of a request (RFC 9110,
// section 9.1), of at most 32 characters.
func validMethod(s string) bool {
	if s == "" || len(s) > 32 {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !('A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return true
}

// demand reads what is demanded. A parameter that is empty is an error: it is
// what a proxy makes of a variable that is not set, and must not be less of a
// demand.
func demand(d *web.Decision, values url.Values) error {
	for name, vs := range values {
		switch {
		case !slices.Contains(demandParameters, name):
			return problem.Param(name, "is not one that this call takes").WithFix("It takes %s.", strings.Join(demandParameters, ", "))
		case len(vs) > 1 && name != "permission":
			return problem.Param(name, "is given more than once")
		case slices.Contains(vs, ""):
			return problem.Param(name, "is empty")
		}
	}
	q := demands{org: values.Get("org"), meter: values.Get("meter"), action: values.Get("action")}
	for _, list := range values["permission"] {
		q.permissions = append(q.permissions, strings.Split(list, ",")...)
	}
	if v := values.Get("quantity"); v != "" {
		quantity, err := usage.ParseDecimal(v)
		if err != nil {
			return problem.Param("quantity", "%s", usage.DecimalRule)
		}
		q.quantity = &quantity
	}
	return q.fill(d, problem.Param)
}

// demands are what is demanded of a request and counted for it, as it was
// written.
type demands struct {
	permissions []string
	org         string
	meter       string
	quantity    *usage.Decimal // nil for 1
	action      string
}

// fill puts the demands into a decision. fail makes the error about one of
// permission, quantity, meter and action.
func (q *demands) fill(d *web.Decision, fail func(name, format string, args ...any) *problem.Error) error {
	d.Demand = metering.Demand{OrgID: q.org, Meter: q.meter, Quantity: usage.One}
	if len(q.permissions) > 0 {
		permissions, p := key.ParsePermissions("", q.permissions)
		if p != nil {
			return fail("permission", "%s", p.Fields[0].Detail).WithFix("%s", p.Fix)
		}
		d.Demand.Permissions = permissions
	}
	switch {
	case q.quantity == nil:
	case q.meter == "":
		return fail("quantity", "is given without a meter")
	case *q.quantity < 0:
		return fail("quantity", "must not be negative")
	default:
		d.Demand.Quantity = *q.quantity
	}
	if q.meter != "" && usage.CheckSlug(q.meter) != nil {
		return fail("meter", "%s", usage.SlugRule)
	}
	if q.action != "" && !validAction(q.action) {
		return fail("action", "must be 1 to 64 characters from A-Z a-z 0-9 . _ : -")
	}
	d.Action = q.action
	return nil
}

func validAction(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !('A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("._:-", c) >= 0) {
			return false
		}
	}
	return len(s) <= 64
}

// forwardAuth decides about a request to a product: a proxy lets it through
// if the answer is 200. The answers are those that proxies hand on to their
// clients, 401, 403 and 429; what else goes wrong is a fault of the
// configuration (400) or of the server.
func (a *API) forwardAuth(r *web.Request) (*web.Response, error) {
	d := r.Decision
	if err := ownDemands(r, d); err != nil {
		return nil, err
	}
	if err := a.decide(r, d); err != nil {
		return nil, err
	}
	o, actor := d.Org, d.Actor
	return &web.Response{Status: http.StatusOK, Header: []string{
		"X-Orgd-Org-Id", o.ID,
		"X-Orgd-Root-Id", o.RootID,
		"X-Orgd-Path", strings.TrimSuffix(o.Path, "/"),
		"X-Orgd-Key-Id", actor.ID,
		"X-Orgd-Permissions", strings.Join(actor.Holds(o.Path), ","),
	}}, nil
}

// ownDemands refuses what somebody may not demand of a request of their own. A
// peer that is no proxy of the operator's, and not on this machine, is whoever
// holds the key. It may learn whether it is allowed, and counts one call as
// with any other; it must not write into logs and consumption what its key
// does not permit.
func ownDemands(r *web.Request, d *web.Decision) error {
	if r.Trusted || r.Local() {
		return nil
	}
	needs := ""
	switch {
	case d.Demand.Meter != "" && (d.Demand.Meter != usage.APICalls || d.Demand.Quantity > usage.One):
		needs = key.ConsumptionWrite
	case d.Action != "":
		needs = key.AccessLogWrite
	}
	if needs == "" || d.Actor.Can(needs, d.Actor.Path) {
		return nil
	}
	d.Action = ""
	return problem.New(problem.PermissionDenied, "This request does not come from a trusted proxy; what it is to count or to be called needs the permission %s.", needs).
		WithFix("Name the proxy in --trusted-proxies.").With("permission", needs)
}

// decide decides by the demand of d, and notes in d what has to be recorded.
// That the actor cannot see the organization is PermissionDenied, with the
// same words whether or not it exists.
func (a *API) decide(r *web.Request, d *web.Decision) error {
	dec, err := a.metering.Decide(r.Context(), d.Actor, &d.Demand, r.At)
	d.Org, d.Usage, d.Reservation = dec.Org, dec.Usage, dec.Reservation
	if err == nil {
		return nil
	}
	if problem.Is(err, problem.NotFound) {
		return problem.New(problem.PermissionDenied, "There is no such organization, or this key cannot see it.").
			WithFix("Use a key of the organization or of one of its ancestors.")
	}
	return err
}
