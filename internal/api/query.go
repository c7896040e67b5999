package api

import (
	"encoding/base64"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/web"
)

// query reads the parameters of a request and keeps the first error.
type query struct {
	r      *web.Request
	values url.Values
	err    error
}

// flags are the parameters that are true or false.
var flags = []string{"cascade", "dry_run", "explain", "follow", "roots"}

// takes returns the parameters with these names, for a Route.
func takes(names ...string) []web.Parameter {
	list := make([]web.Parameter, len(names))
	for i, name := range names {
		list[i] = web.Parameter{Name: name, Flag: slices.Contains(flags, name)}
	}
	return list
}

// parameters returns the parameters of a request, which are among those that its
// route takes.
func parameters(r *web.Request) *query { return &query{r: r, values: r.Query} }

func (q *query) fail(e *problem.Error) {
	if q.err == nil {
		q.err = e
	}
}

func (q *query) text(name string) string {
	v := q.values.Get(name)
	if len(v) > 1024 {
		q.fail(problem.Param(name, "is longer than 1024 bytes"))
	}
	return v
}

// bool returns a parameter that is one of the flags, false without it. It must
// have a value: what ?dry_run means is not to be guessed.
func (q *query) bool(name string) bool {
	if !q.values.Has(name) {
		return false
	}
	switch q.values.Get(name) {
	case "true", "1":
		return true
	case "false", "0":
		return false
	}
	q.fail(problem.Param(name, "must be true or false"))
	return false
}

func (q *query) int(name string, lowest, highest, otherwise int) int {
	v := q.values.Get(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < lowest || n > highest {
		q.fail(problem.Param(name, "must be a whole number from %d to %d", lowest, highest))
		return otherwise
	}
	return n
}

// limit returns how many rows a page has at most: as many as are asked for, if
// the root of the key may have pages of so many.
func (q *query) limit() int { return min(q.int("limit", 1, 1000, 50), q.r.PageRows()) }

// time returns a parameter that is a time, in UTC. Only without it the result
// is the zero time: the year of that is refused.
func (q *query) time(name string) time.Time {
	v := q.values.Get(name)
	if v == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, v)
	switch t = t.UTC(); {
	case err != nil:
		e := problem.Param(name, "%s", web.TimeRule)
		if strings.Contains(v, " ") {
			e = e.WithFix("Write the + of an offset as %%2B: in a query a + stands for a space.")
		}
		q.fail(e)
		return time.Time{}
	case t.Year() < 2 || t.Year() > 9999:
		q.fail(problem.Param(name, "must be in the years 2 to 9999, in UTC"))
		return time.Time{}
	}
	return t
}

func (q *query) oneOf(name, otherwise string, allowed ...string) string {
	v := q.values.Get(name)
	if v == "" {
		return otherwise
	}
	if !slices.Contains(allowed, v) {
		q.fail(problem.Param(name, "must be one of %s", strings.Join(allowed, ", ")))
	}
	return v
}

// cursorOf returns the position that the cursor parameter holds, of n parts;
// nil without one.
func (a *API) cursorOf(q *query, n int) []string {
	v := q.values.Get("cursor")
	if v == "" {
		return nil
	}
	if text, ok := a.open(v, a.cursorScope(q)); ok {
		var position []string
		if json.Unmarshal(text, &position) == nil && len(position) == n {
			return position
		}
	}
	q.fail(problem.New(problem.InvalidCursor, "The cursor was not made for this query.").
		WithFix("Follow the Link header of an earlier answer as it is, or start again without a cursor."))
	return nil
}

// cursorScope is all that a position belongs to: the path, which names the
// organization, and the other parameters. A list that is of no organization is
// of what the caller sees, and its positions belong to the caller's: none for
// the operator. The page size may change on the way.
func (a *API) cursorScope(q *query) string {
	caller := ""
	if q.r.Org == nil {
		caller = q.r.Actor.OrgID
	}
	others := url.Values{}
	for name, vs := range q.values {
		if name != "cursor" && name != "limit" && name != "format" {
			others[name] = vs
		}
	}
	return strings.TrimPrefix(q.r.URL.Path, a.basePath) + "\x00" + others.Encode() + "\x00" + caller
}

// seal makes an opaque text of a position: a position may say more than its
// reader may know, such as how much others log. Only open with the same scope
// gets it back.
func (a *API) seal(text []byte, scope string) string {
	return base64.RawURLEncoding.EncodeToString(a.sealer.Seal(text, []byte(scope)))
}

func (a *API) open(sealed, scope string) ([]byte, bool) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(sealed)
	if err != nil {
		return nil, false
	}
	text, err := a.sealer.Open(raw, []byte(scope))
	return text, err == nil
}

// next adds the link to the page that starts after a position; nothing at the
// end.
func (a *API) next(q *query, resp *web.Response, position []string) *web.Response {
	if position == nil {
		return resp
	}
	text, err := json.Marshal(position)
	if err != nil {
		panic("api: position that is not JSON: " + err.Error())
	}
	others := url.Values{}
	for name, vs := range q.values {
		others[name] = vs
	}
	others.Set("cursor", a.seal(text, a.cursorScope(q)))
	return resp.With("Link", "<"+q.r.URL.EscapedPath()+"?"+others.Encode()+`>; rel="next"`)
}
