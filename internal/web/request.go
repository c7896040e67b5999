package web

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/budget"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

// Request is a request on its way through a Server.
type Request struct {
	*http.Request
	ID        string     // X-Request-Id
	IP        netip.Addr // of the client; not valid if it is unknown
	Trusted   bool       // straight from a proxy whose headers are believed
	OldSecret bool       // the key's secret is one that a rotation replaced
	At        time.Time  // when it arrived: UTC, whole microseconds
	Actor     *auth.Actor
	Query     url.Values    // the parameters, each of which the route takes and none twice
	Org       *org.Snapshot // the organization that the request is about; nil if none, or not visible
	Sought    string        // the id of an organization that the body or the query names; it may not exist
	Receipt   audit.Receipt // of the change that the request made
	Did       string        // what else the request did and cannot be taken back, as the beginning of a sentence
	// Decision is set by a route that decides about another request: it says
	// what is recorded, instead of this request and its count.
	Decision *Decision

	server     *Server
	route      *Route
	surface    *Surface
	credential string // see Surface.Credential
	login      org.Login
	address    string // IP as text
	failsAgain bool   // it is a probe, and the one before has failed
	body       []byte
	maxBody    int64
	idempotent *org.Idempotency
	extra      []string // header fields of the answer, whatever it is
	ticket     budget.Ticket
	bodyRead   bool
	kept       bool // the answer was stored with what the request did
	expensive  bool // see Route.Expensive
	underWay   bool // see Recorder.Begin
}

// Quota returns what is set for the root of the actor's key.
func (r *Request) Quota() org.Quota {
	if r.login.Quota == nil {
		return org.Quota{}
	}
	return *r.login.Quota
}

// PageBytes returns how many bytes of content a page of a list may have, however
// many rows the request asks for. The row that goes beyond is the last one.
func (r *Request) PageBytes() int {
	return int(cmp.Or(r.Quota().PageBytes, org.DefaultPageBytes))
}

// PageRows returns how many rows a page of a list may have, however many the
// request asks for.
func (r *Request) PageRows() int {
	return int(cmp.Or(r.Quota().PageRows, org.DefaultPageRows))
}

// Recheck checks again what was checked of the request before its handler ran:
// the key, that it sees the target, the permissions. It brings Actor and Org up
// to date. What takes long asks it again and again: a right can end meanwhile.
// What else the rule of a route takes is about a change, and is checked again
// where that is made.
func (r *Request) Recheck(ctx context.Context) error {
	if r.route.Rule.Open {
		return nil
	}
	login, err := r.surface.Authenticate(ctx, r.login, r.credential, r.IP)
	if err != nil {
		return err
	}
	r.Actor, r.login = login.Actor, login
	if rule := &r.route.Rule; rule.Check == nil && rule.Target != "" {
		if r.Org, err = r.server.service.Find(ctx, r.Actor, r.PathValue(rule.Target)); err != nil {
			return err
		}
	}
	return r.route.Rule.permits(r)
}

// Watched returns the context of the request for work that goes on page by page:
// between two pages it is checked that the request may still be made, by the
// same actor with the same reach as at its start.
func (r *Request) Watched() context.Context {
	began := r.Actor
	return org.WithRecheck(r.Context(), func(ctx context.Context) error {
		if err := r.Recheck(ctx); err != nil {
			return err
		}
		if !r.Actor.SameReach(began) {
			return problem.New(problem.Conflict, "What this key reaches was changed while the request was answered.").
				WithFix("Repeat the request.")
		}
		return nil
	})
}

// Local reports whether the request comes straight from this machine.
func (r *Request) Local() bool {
	ip, ok := peer(r.Request)
	return ok && ip.IsLoopback()
}

// Decision is a decision about a request that somebody makes to a product.
type Decision struct {
	// Actor is whose request it is; nil if nobody known, and then nothing is
	// recorded of it.
	Actor     *auth.Actor
	OldSecret bool
	Org       *org.Snapshot   // what the request is about; nil for the actor's organization
	Demand    metering.Demand // what the request has to satisfy

	Action    string // empty for the route's
	Status    string // of the access event; empty for what follows from the answer's status
	Method    string
	Path      string
	IP        netip.Addr
	UserAgent string

	// Usage is counted if the request is allowed, and the reservation is
	// ended when it is recorded or refused.
	Usage       []access.Usage
	Reservation *metering.Reservation
}

// Limits of bodies, in bytes.
const (
	MaxBody     = 1 << 20
	MaxBulkBody = 32 << 20
	maxDepth    = 64
)

// IfMatch returns the header If-Match as one list (RFC 9110, section 5.3).
func (r *Request) IfMatch() string { return strings.Join(r.Header["If-Match"], ",") }

// checkIfMatch fails if there is a header If-Match that names no entity tag.
// Taken for none it would make a change unconditional that was not meant to be.
func (r *Request) checkIfMatch() error {
	if r.Header["If-Match"] == nil || strings.Trim(r.IfMatch(), ", \t") != "" {
		return nil
	}
	return problem.New(problem.InvalidParameter, "The header If-Match is empty.").
		WithFix("Send the ETag of the resource as you know it, or leave out the header.")
}

// Call returns what the service needs to know of the request. render turns
// the result of a change into the answer: it runs again for the answer that
// is kept for an Idempotency-Key.
func (r *Request) Call(render func(result any) *Response) *org.Call {
	c := &org.Call{Actor: r.Actor, Secret: key.HashToken(r.credential), Address: r.IP, RequestID: r.ID, IP: r.address,
		UserAgent: cut(key.Redact(r.UserAgent()), 512), IfMatch: r.IfMatch()}
	if r.idempotent != nil && render != nil {
		idem := *r.idempotent
		idem.Render = func(result any, receipt audit.Receipt) ([]byte, error) {
			r.kept = true
			return sealAnswer(r.credential, idem.Key, render(result).Receipt(receipt))
		}
		c.Idempotent = &idem
	}
	return c
}

// cut returns at most n bytes of s, as text that every database holds: valid
// UTF-8 without NUL.
func cut(s string, n int) string {
	if strings.IndexByte(s, 0) >= 0 {
		s = strings.ReplaceAll(s, "\x00", "\uFFFD")
	}
	if len(s) <= n {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	return strings.ToValidUTF8(s[:n], "")
}

// Raw returns the whole body. It fails with TooLarge beyond the route's limit,
// and, since a body takes the time that its sender takes, if the request could
// not be made any more once the body is there.
func (r *Request) Raw() ([]byte, error) {
	if r.bodyRead {
		return r.body, nil
	}
	if r.ContentLength > r.maxBody {
		return nil, tooLarge(r.maxBody)
	}
	b, err := r.readBody()
	var refused *problem.Error
	switch {
	case errors.As(err, &refused):
		return nil, err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, problem.New(problem.RequestTimeout, "The request body did not arrive in time.").
			WithFix("Send it faster, or less at a time.").WithCause(err)
	case err != nil:
		return nil, problem.New(problem.InvalidRequest, "The request body could not be read.").WithCause(err)
	}
	if int64(len(b)) > r.maxBody {
		return nil, tooLarge(r.maxBody)
	}
	r.body, r.bodyRead = b, true
	if err := r.Recheck(r.Context()); err != nil {
		return nil, err
	}
	return b, r.begin()
}

// readBody reads the body and charges it, and what it becomes: by its length
// where that is known, as it grows otherwise, and by what is in it in the end.
func (r *Request) readBody() (b []byte, err error) {
	body, swell := io.LimitReader(r.Request.Body, r.maxBody+1), r.swell()
	held := int64(0)
	hold := func(upTo int64) error {
		more := upTo - held
		if more <= 0 {
			return nil
		}
		held = upTo
		return r.hold(more)
	}
	if n := r.ContentLength; n >= 0 {
		if err := hold(swell.charge(n)); err != nil {
			return nil, err
		}
		b = make([]byte, n)
		_, err := io.ReadFull(body, b)
		if err != nil && n > 0 {
			return nil, err
		}
	} else {
		b = make([]byte, 0, smallBody)
		for {
			if len(b) == cap(b) {
				size := cap(b) + max(bodyStep, cap(b)/4)
				if err := hold(swell.charge(int64(size))); err != nil {
					return nil, err
				}
				b = append(make([]byte, 0, size), b...)
			}
			n, err := body.Read(b[len(b):cap(b)])
			b = b[:len(b)+n]
			if err == io.EOF {
				break
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return b, hold(swell.chargeAll(b))
}

func tooLarge(limit int64) *problem.Error {
	return problem.New(problem.TooLarge, "The request body is larger than %d bytes.", limit).
		WithFix("Send less at a time.").With("limit_bytes", limit)
}

// MediaType returns the body's media type without parameters, in lower case.
// It fails with UnsupportedMediaType unless it is one of those allowed.
func (r *Request) MediaType(allowed ...string) (string, error) {
	if coding := r.Header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return "", problem.New(problem.UnsupportedMediaType, "The Content-Encoding %q is not one that this server takes.", cut(coding, 100)).
			WithFix("Send the body as it is, without Content-Encoding.")
	}
	mt, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err == nil && (params["charset"] == "" || strings.EqualFold(params["charset"], "utf-8")) {
		for _, a := range allowed {
			if mt == a {
				return mt, nil
			}
		}
	}
	e := problem.New(problem.UnsupportedMediaType, "The Content-Type %q is not one that this call takes.", cut(r.Header.Get("Content-Type"), 100))
	if r.Header.Get("Content-Type") == "" {
		e.Detail = "The header Content-Type is missing."
	}
	return "", e.WithFix("Send the header Content-Type: %s.", strings.Join(allowed, " or "))
}

// Decode reads the body as JSON into v: unknown and repeated members,
// invalid UTF-8, lone surrogates, trailing data and a depth beyond 64 are
// errors that name their place.
func (r *Request) Decode(v any) error {
	return r.DecodeAs(v, "application/json")
}

// DecodeAs is Decode for other media types of JSON.
func (r *Request) DecodeAs(v any, mediaTypes ...string) error {
	if _, err := r.MediaType(mediaTypes...); err != nil {
		return err
	}
	b, err := r.Raw()
	if err != nil {
		return err
	}
	return DecodeJSON(b, v)
}

// DecodeJSON decodes strictly; see Request.Decode.
func DecodeJSON(b []byte, v any) error { return decodeJSON(b, v, true) }

// DecodeOpenJSON is DecodeJSON for objects that may have further members.
func DecodeOpenJSON(b []byte, v any) error { return decodeJSON(b, v, false) }

// DecodeList returns the first elements of a JSON array, at most most of them,
// as parts of b, and how many it has. It is as strict as DecodeJSON, and holds
// no memory for the other elements.
func DecodeList(b []byte, most int) (list []jsontext.Value, n int, err error) {
	if depth(b) > maxDepth {
		return nil, 0, tooNested()
	}
	d := jsontext.NewDecoder(bytes.NewBuffer(b))
	if kind := d.PeekKind(); kind != '[' && kind != 0 {
		return nil, 0, problem.Body("", "has the wrong type: a JSON %s does not fit here", kindName(kind))
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, 0, bodyError(err)
	}
	for ; d.PeekKind() != ']'; n++ {
		if n >= most {
			if err := d.SkipValue(); err != nil {
				return nil, 0, bodyError(err)
			}
			continue
		}
		v, err := d.ReadValue()
		if err != nil {
			return nil, 0, bodyError(err)
		}
		end := d.InputOffset()
		list = append(list, jsontext.Value(b[end-int64(len(v)):end]))
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, 0, bodyError(err)
	}
	if end := d.InputOffset(); len(bytes.TrimLeft(b[end:], " \t\r\n")) > 0 {
		return nil, 0, problem.Body("", "is not valid JSON at byte %d: there is something after the array", end)
	}
	return list, n, nil
}

// TimeRule is what must hold for a time that a caller writes.
const TimeRule = "must be a time such as 2026-11-28T12:00:00Z (RFC 3339)"

func tooNested() *problem.Error {
	return problem.Body("", "is nested deeper than %d levels", maxDepth)
}

func decodeJSON(b []byte, v any, closed bool) error {
	if len(strings.TrimSpace(string(b[:min(len(b), 64)]))) == 0 && len(b) < 64 {
		return problem.Body("", "is missing: the body is empty").WithFix("Send a JSON object.")
	}
	if bytes.HasPrefix(b, []byte("\xef\xbb\xbf")) {
		return problem.Body("", "starts with a byte-order mark, which JSON does not have (RFC 8259)").
			WithFix("Remove the first three bytes, EF BB BF: save the text as UTF-8 without BOM.")
	}
	if string(bytes.TrimSpace(b)) == "null" {
		return problem.Body("", "must not be null").WithFix("Send a JSON object.")
	}
	if depth(b) > maxDepth {
		return tooNested()
	}
	if err := json.Unmarshal(b, v, json.RejectUnknownMembers(closed)); err != nil {
		return bodyError(err)
	}
	return nil
}

func bodyError(err error) error {
	var semantic *json.SemanticError
	if errors.As(err, &semantic) {
		pointer := string(semantic.JSONPointer)
		if errors.Is(err, json.ErrUnknownName) {
			name := pointer[strings.LastIndexByte(pointer, '/')+1:]
			return problem.Body(pointer, "is not a member that this call takes: %s", name).
				WithFix("Remove %s. Member names are case-sensitive.", name)
		}
		var p *problem.Error
		if errors.As(semantic.Err, &p) {
			detail := p.Detail
			if len(p.Fields) > 0 {
				detail = p.Fields[0].Detail // without its subject, which is the pointer
			}
			return problem.Body(pointer, "%s", detail).WithFix("%s", p.Fix)
		}
		switch {
		case semantic.Err == nil:
			return problem.Body(pointer, "has the wrong type: a JSON %s does not fit here", kindName(semantic.JSONKind))
		case semantic.GoType == reflect.TypeFor[time.Time]():
			return problem.Body(pointer, TimeRule)
		case errors.Is(semantic.Err, strconv.ErrSyntax):
			return problem.Body(pointer, "must be a whole number, without a fraction or an exponent")
		case errors.Is(semantic.Err, strconv.ErrRange):
			return problem.Body(pointer, "is a number too far from zero")
		}
		return problem.Body(pointer, "is not valid").WithCause(err)
	}
	var syntactic *jsontext.SyntacticError
	if errors.As(err, &syntactic) {
		return problem.Body(string(syntactic.JSONPointer), "is not valid JSON at byte %d: %v", syntactic.ByteOffset, syntactic.Err)
	}
	return problem.Body("", "is not valid JSON").WithCause(err)
}

func kindName(k jsontext.Kind) string {
	switch k {
	case 'n':
		return "null"
	case 't', 'f':
		return "boolean"
	case '"':
		return "string"
	case '0':
		return "number"
	case '{':
		return "object"
	case '[':
		return "array"
	}
	return "value"
}

// depth returns how deep arrays and objects are nested in b, whether or not
// the rest of it is valid.
func depth(b []byte) int {
	var now, deepest int
	inString := false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if now++; now > deepest {
				deepest = now
			}
		case c == '}' || c == ']':
			now--
		}
	}
	return deepest
}

// NoBody fails if the request has a body other than white space or {}.
func (r *Request) NoBody() error {
	b, err := r.Raw()
	if err != nil {
		return err
	}
	if s := strings.TrimSpace(string(b)); s != "" && s != "{}" {
		return problem.Body("", "is not expected: this call takes no body")
	}
	return nil
}
