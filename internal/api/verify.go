package api

import (
	"cmp"
	"net/http"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
	"github.com/orgd/orgd/internal/web"
)

func (a *API) verifyRoutes() []web.Route {
	return []web.Route{
		{Method: "POST", Pattern: "/verify", Operation: "verify", Action: "VERIFY", Rule: web.Rule{Permissions: []string{key.KeysVerify}}, NoReplay: true, Handle: a.verify},
	}
}

// verdict is what /verify answers.
type verdict struct {
	decision *web.Decision // nil if the key is not valid, or not for the caller to see
	quota    *web.Quota
	limits   []metering.LimitUse
	denied   *problem.Error // nil if the request may be made
}

// verify decides about a request to a product that somebody else received, as
// forwardAuth does. A key that the caller cannot see is answered like one that
// does not exist, and an organization that the caller cannot see like one that
// the key cannot see: nobody learns or counts anything beyond their own reach by
// asking about somebody else's key.
func (a *API) verify(r *web.Request) (*web.Response, error) {
	var body struct {
		Key         string         `json:"key"`
		Permissions []string       `json:"permissions"`
		OrgID       *string        `json:"org_id"`
		Meter       *string        `json:"meter"`
		Quantity    *usage.Decimal `json:"quantity"`
		IP          *string        `json:"ip"`
		Action      *string        `json:"action"`
		Method      string         `json:"method"`
		Path        string         `json:"path"`
		UserAgent   string         `json:"user_agent"`
	}
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	if body.Key == "" {
		return nil, problem.Body("/key", "is missing").WithFix("Send the API key of the request.")
	}
	d := &web.Decision{Method: body.Method, Path: body.Path, UserAgent: body.UserAgent}
	if body.IP != nil {
		ip, ok := web.ParseAddress(*body.IP)
		if !ok {
			return nil, problem.Body("/ip", "must be an IPv4 or IPv6 address").
				WithFix("Leave it out if it is not known: then a key with allowed_cidrs is not valid.")
		}
		d.IP = ip
	}
	if d.Method != "" && !validMethod(d.Method) {
		return nil, problem.Body("/method", "is not the method of a request")
	}
	q := demands{permissions: body.Permissions, quantity: body.Quantity}
	for _, m := range []struct {
		name  string
		value *string
		to    *string
	}{{"org_id", body.OrgID, &q.org}, {"meter", body.Meter, &q.meter}, {"action", body.Action, &q.action}} {
		if m.value == nil {
			continue
		}
		if *m.to = *m.value; *m.to == "" {
			// What a program makes of a value that is not set must not be
			// less of a demand.
			return nil, problem.Body("/"+m.name, "is empty").WithFix("Leave it out.")
		}
	}
	if body.Permissions != nil && len(body.Permissions) == 0 {
		return nil, problem.Body("/permissions", "is empty").WithFix("Leave it out.")
	}
	if err := q.fill(d, func(name, format string, args ...any) *problem.Error {
		if name == "permission" {
			name = "permissions"
		}
		return problem.Body("/"+name, format, args...)
	}); err != nil {
		return nil, err
	}

	v := &verdict{}
	login, err := a.service.Authenticate(r.Context(), body.Key, d.IP)
	if login.Actor == nil && !problem.Is(err, problem.Unauthorized) {
		return nil, err
	}
	r.Decision = &web.Decision{} // of nobody known, which leaves no event
	if login.Actor != nil && (r.Actor.Everywhere() || !login.Actor.Everywhere() && r.Actor.Sees(login.Actor.Path)) {
		d.Actor, d.OldSecret = login.Actor, login.OldSecret
		r.Decision, v.decision = d, d
	}
	switch {
	case v.decision == nil:
		err = org.Unauthorized()
	case err == nil:
		if v.quota, err = web.TakeToken(a.limiter, d.Actor, a.now()); err == nil {
			if err = a.withinReach(r, d); err == nil {
				err = a.decide(r, d)
			}
		}
	}
	switch e := problem.From(err); {
	case err == nil:
		if d.Demand.Meter != "" {
			if v.limits, err = a.metering.MeterLimits(r.Context(), r.Actor, d.Org, d.Demand.Meter, r.At); err != nil {
				d.Reservation.Release()
				r.Decision = nil
				return nil, err
			}
		}
	case e.Code == problem.InvalidParameter:
		r.Decision = nil // a mistake of the caller, not an access
		return nil, problem.Body("/meter", "%s", e.Fields[0].Detail)
	case e.Code == problem.Unauthorized:
		v.denied, d.Status, v.decision = e, access.Denied, nil
	case e.Code == problem.PermissionDenied:
		v.denied, d.Status = e, access.Denied
	case e.Code == problem.RateLimited || e.Code == problem.LimitExceeded:
		v.denied, d.Status = e, access.Failure
	default:
		return nil, err
	}
	return web.Raw(http.StatusOK, v.append(make([]byte, 0, 1024))), nil
}

// withinReach fails, with the words of decide, unless the caller sees the
// organization that the demand names. Without a name it is that of the key, which
// the caller sees.
func (a *API) withinReach(r *web.Request, d *web.Decision) error {
	if d.Demand.OrgID == "" {
		return nil
	}
	_, err := a.service.Find(r.Context(), r.Actor, d.Demand.OrgID)
	if problem.Is(err, problem.NotFound) {
		return problem.New(problem.PermissionDenied, "There is no such organization, or this key cannot see it.").
			WithFix("Use a key of the organization or of one of its ancestors.")
	}
	return err
}

// append appends the representation of the verdict.
func (v *verdict) append(b []byte) []byte {
	text := func(name, value string) {
		b = append(b, `,"`...)
		b = append(b, name...)
		b = append(b, `":`...)
		b = appendNullable(b, value)
	}
	if v.denied == nil {
		b = append(b, `{"valid":true`...)
		text("code", "")
		text("detail", "")
	} else {
		b = append(b, `{"valid":false`...)
		text("code", string(v.denied.Code))
		text("detail", v.denied.Detail)
	}
	var actor auth.Actor
	var o org.Organization
	if d := v.decision; d != nil {
		actor = *d.Actor
		if d.Org != nil {
			o = *d.Org.Organization
		}
	}
	if actor.Kind == auth.KindKey {
		text("key_id", actor.ID)
	} else {
		text("key_id", "")
	}
	text("name", actor.Name)
	text("org_id", o.ID)
	text("root_id", o.RootID)
	b = append(b, `,"path":`...)
	if o.ID == "" {
		b = append(b, "null"...)
	} else {
		b = appendStrings(b, o.PathIDs())
	}
	b = append(b, `,"permissions":`...)
	if v.decision == nil {
		b = append(b, "null"...)
	} else {
		b = appendStrings(b, actor.Holds(cmp.Or(o.Path, actor.Path)))
	}
	b = append(b, `,"rate_limit":`...)
	if q := v.quota; q == nil {
		b = append(b, "null"...)
	} else {
		b = append(b, `{"requests":`...)
		b = appendInt(b, int64(q.Requests))
		b = append(b, `,"period_seconds":`...)
		b = appendInt(b, int64(q.PeriodSeconds))
		b = append(b, `,"remaining":`...)
		b = appendInt(b, int64(q.Remaining))
		b = append(b, `,"reset_seconds":`...)
		b = appendInt(b, int64(q.ResetSeconds))
		b = append(b, '}')
	}
	b = append(b, `,"limits":[`...)
	for i := range v.limits {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendLimitUse(b, &v.limits[i])
	}
	b = append(b, `],"limit_org_id":`...)
	owner := ""
	if v.denied != nil {
		owner, _ = v.denied.Extra["limit_org_id"].(string)
	}
	b = appendNullable(b, owner)
	b = append(b, `,"retry_after_seconds":`...)
	if v.denied == nil || v.denied.RetryAfter == 0 {
		return append(b, "null}"...)
	}
	b = appendInt(b, int64((v.denied.RetryAfter+time.Second-1)/time.Second))
	return append(b, '}')
}
