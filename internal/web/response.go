// Package web holds what every HTTP surface of orgd shares: the way of a
// request from the route to the answer. It is given a table of routes, each with
// its authorization rule and its Surface; nothing else is reachable.
package web

import (
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/problem"
)

// Response is an answer that has not been sent. Exactly one of Body, Stream and
// Feed is used.
type Response struct {
	Status      int
	ContentType string
	Header      []string // names and values in turn
	Body        []byte
	// Stream writes a body of any length. It is called after the access has
	// been recorded. An error aborts the connection, so that the client
	// cannot take what it got for the whole. It may take as long as the
	// client goes on reading.
	Stream func(w io.Writer) error
	// Feed is what a stream of server-sent events sends.
	Feed *Feed
	// Public allows caches to keep the answer.
	Public bool
}

// JSON returns an answer with v as its body.
func JSON(status int, v any) *Response {
	body, err := json.Marshal(v, json.FormatNilSliceAsNull(false), json.Deterministic(true))
	if err != nil {
		panic("web: answer that is not JSON: " + err.Error())
	}
	return Raw(status, body)
}

// Raw returns an answer with a body that is JSON already.
func Raw(status int, body []byte) *Response {
	return &Response{Status: status, ContentType: "application/json", Body: body}
}

// With adds a header field; nothing for an empty value.
func (r *Response) With(name, value string) *Response {
	if value != "" {
		r.Header = append(r.Header, name, value)
	}
	return r
}

// Receipt adds the receipt of a change; nothing if nothing changed.
func (r *Response) Receipt(receipt audit.Receipt) *Response {
	if receipt.Origin == "" {
		return r
	}
	return r.With("Orgd-Audit-Receipt", receipt.String())
}

// Problem returns the answer of the API for an error (RFC 9457).
func Problem(r *Request, e *problem.Error) *Response {
	m := map[string]any{}
	for name, v := range e.Extra {
		m[name] = v
	}
	m["type"] = "urn:orgd:problem:" + string(e.Code)
	m["title"] = e.Code.Title()
	m["status"] = e.Code.Status()
	m["detail"] = e.Detail
	m["instance"] = "urn:orgd:request:" + r.ID
	m["code"] = e.Code
	if e.Fix != "" {
		m["fix"] = e.Fix
	}
	if len(e.Fields) > 0 {
		m["errors"] = e.Fields
	}
	body, err := json.Marshal(m, json.Deterministic(true), jsontext.AllowInvalidUTF8(true))
	if err != nil {
		panic("web: problem that is not JSON: " + err.Error())
	}
	resp := &Response{Status: e.Code.Status(), ContentType: "application/problem+json", Body: body}
	if e.RetryAfter > 0 {
		resp.With("Retry-After", strconv.Itoa(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
	if e.Code == problem.Unauthorized {
		resp.With("WWW-Authenticate", "Bearer")
	}
	return resp
}

// Follow returns an answer that sends a feed. nginx would keep messages back
// until its buffer is full, unless it is told not to.
func Follow(f *Feed) *Response {
	return (&Response{Status: http.StatusOK, ContentType: "text/event-stream", Feed: f}).With("X-Accel-Buffering", "no")
}

func (r *Response) send(w http.ResponseWriter, head bool) error {
	h := w.Header()
	for i := 0; i+1 < len(r.Header); i += 2 {
		if values := h[r.Header[i]]; values != nil {
			h[r.Header[i]] = append(values, r.Header[i+1])
		} else {
			h[r.Header[i]] = r.Header[i+1 : i+2 : i+2]
		}
	}
	if r.ContentType != "" {
		h["Content-Type"] = []string{r.ContentType}
	}
	h["X-Content-Type-Options"] = nosniff
	if !r.Public {
		h["Cache-Control"] = noStore
	}
	if r.Stream == nil && r.Feed == nil {
		h["Content-Length"] = []string{strconv.Itoa(len(r.Body))}
		w.WriteHeader(r.Status)
		if head {
			return nil
		}
		_, err := w.Write(r.Body)
		return err
	}
	w.WriteHeader(r.Status)
	if head {
		return nil
	}
	// The deadline for reading the request would cancel it.
	http.NewResponseController(w).SetReadDeadline(time.Time{})
	return r.Stream(&patientWriter{w, stallTimeout})
}

var (
	nosniff = []string{"nosniff"}
	noStore = []string{"no-store"}
)
