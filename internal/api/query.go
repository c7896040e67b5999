package api

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

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

// query returns the request's parameters; one that is not in the list of
// those allowed is an error, as is one that is given twice: a misspelt filter
// must not widen an answer, nor a misspelt dry_run change anything.
func parameters(r *web.Request, allowed ...string) *query {
	q := &query{r: r}
	var err error
	if q.values, err = url.ParseQuery(r.URL.RawQuery); err != nil {
		q.fail(problem.New(problem.InvalidParameter, "The query string is malformed.").WithFix("Percent-encode the parameters."))
		return q
	}
	for name, vs := range q.values {
		switch {
		case !slices.Contains(allowed, name):
			e := problem.Param(printable(name), "is not one that this call takes")
			if len(allowed) > 0 {
				e = e.WithFix("It takes %s.", strings.Join(allowed, ", "))
			}
			q.fail(e)
		case len(vs) > 1:
			q.fail(problem.Param(name, "is given more than once"))
		case !utf8.ValidString(vs[0]) || strings.ContainsRune(vs[0], 0):
			q.fail(problem.Param(name, "is not valid UTF-8 text"))
		}
	}
	return q
}

func printable(s string) string {
	if len(s) > 64 {
		s = s[:64]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

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

func (q *query) bool(name string) bool {
	switch q.values.Get(name) {
	case "true", "1":
		return true
	case "", "false", "0":
		return false
	}
	q.fail(problem.Param(name, "must be true or false"))
	return false
}

func (q *query) int(name string, lowest, highest, otherwise int) int {
	v := q.values.Get(name)
	if v == "" && !q.values.Has(name) {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < lowest || n > highest {
		q.fail(problem.Param(name, "must be a whole number from %d to %d", lowest, highest))
		return otherwise
	}
	return n
}

func (q *query) limit() int { return q.int("limit", 1, 1000, 50) }

func (q *query) time(name string) time.Time {
	v := q.values.Get(name)
	if v == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, v)
	if err != nil || t.Year() < 1 || t.Year() > 9999 {
		q.fail(problem.Param(name, "must be a time such as 2026-11-24T09:30:00Z (RFC 3339)"))
		return time.Time{}
	}
	return t.UTC()
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

// cursor returns the position that the cursor parameter holds, of n parts;
// nil without one.
func (a *API) cursorOf(q *query, n int) []string {
	v := q.values.Get("cursor")
	if v == "" {
		return nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(v)
	if err == nil && len(raw) > cursorMAC {
		text, mac := raw[:len(raw)-cursorMAC], raw[len(raw)-cursorMAC:]
		var position []string
		if hmac.Equal(mac, a.cursorCode(q, text)) && json.Unmarshal(text, &position) == nil && len(position) == n {
			return position
		}
	}
	q.fail(problem.New(problem.InvalidCursor, "The cursor was not made for this query.").
		WithFix("Follow the Link header of an earlier answer as it is, or start again without a cursor."))
	return nil
}

const cursorMAC = 16

// cursorCode authenticates a position together with all that it belongs to:
// the path, which names the organization, and the other parameters. The page
// size may change on the way.
func (a *API) cursorCode(q *query, text []byte) []byte {
	others := url.Values{}
	for name, vs := range q.values {
		if name != "cursor" && name != "limit" && name != "format" {
			others[name] = vs
		}
	}
	h := hmac.New(sha256.New, a.cursor)
	h.Write([]byte(strings.TrimPrefix(q.r.URL.Path, a.basePath)))
	h.Write([]byte{0})
	h.Write([]byte(others.Encode()))
	h.Write([]byte{0})
	h.Write(text)
	return h.Sum(nil)[:cursorMAC]
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
	others.Set("cursor", base64.RawURLEncoding.EncodeToString(append(text, a.cursorCode(q, text)...)))
	return resp.With("Link", "<"+q.r.URL.EscapedPath()+"?"+others.Encode()+`>; rel="next"`)
}
