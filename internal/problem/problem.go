// Package problem holds the errors that orgd shows to its callers, and the one
// table that gives each of them a code, an HTTP status and a title.
//
// Domain code returns *Error; a surface renders it (RFC 9457 for the API). Any
// other error is a fault of the server: it is shown as Internal with a
// fixed message, and only the server log sees its text.
package problem

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Code identifies a kind of error. Codes are part of the public contract and
// never change their meaning.
type Code string

// The codes, in the order of the statuses that they map to.
const (
	InvalidRequest       Code = "invalid_request"        // 400: the request as a whole cannot be read
	InvalidParameter     Code = "invalid_parameter"      // 400: a path or query parameter
	InvalidBody          Code = "invalid_body"           // 400: the body is not the JSON that the call takes
	InvalidCursor        Code = "invalid_cursor"         // 400: a cursor that was altered or belongs to another query
	SchemaViolation      Code = "schema_violation"       // 400: customizations do not satisfy the root's schema
	ImportInvalid        Code = "import_invalid"         // 400: an import with bad rows
	EventInvalid         Code = "event_invalid"          // 400: a batch with bad events
	Unauthorized         Code = "unauthorized"           // 401
	PermissionDenied     Code = "permission_denied"      // 403
	NotFound             Code = "not_found"              // 404
	MethodNotAllowed     Code = "method_not_allowed"     // 405
	NotAcceptable        Code = "not_acceptable"         // 406
	RequestTimeout       Code = "request_timeout"        // 408: the body did not come in time
	Conflict             Code = "conflict"               // 409
	IDTaken              Code = "id_taken"               // 409
	HasDescendants       Code = "has_descendants"        // 409
	ParentDeleted        Code = "parent_deleted"         // 409
	SettingLocked        Code = "setting_locked"         // 409
	MoveInvalid          Code = "move_invalid"           // 409: across roots, under itself
	DepthExceeded        Code = "depth_exceeded"         // 409: below the deepest level allowed
	IdempotencyKeyReused Code = "idempotency_key_reused" // 409
	RequestInFlight      Code = "request_in_flight"      // 409
	ValuesErased         Code = "values_erased"          // 410: what was asked for has been erased in part
	PreconditionFailed   Code = "precondition_failed"    // 412
	TooLarge             Code = "too_large"              // 413
	UnsupportedMediaType Code = "unsupported_media_type" // 415
	RateLimited          Code = "rate_limited"           // 429
	LimitExceeded        Code = "limit_exceeded"         // 429: a hard limit on a meter
	QuotaExceeded        Code = "quota_exceeded"         // 429: what a root uses of the server at once
	Internal             Code = "internal"               // 500
	Unavailable          Code = "unavailable"            // 503
	OutcomeUnknown       Code = "outcome_unknown"        // 503: the change may or may not have been made
	StorageFull          Code = "storage_full"           // 507
)

var table = map[Code]struct {
	status int
	title  string
}{
	InvalidRequest:       {400, "The request is invalid"},
	InvalidParameter:     {400, "A parameter is invalid"},
	InvalidBody:          {400, "The request body is invalid"},
	InvalidCursor:        {400, "The cursor is invalid"},
	SchemaViolation:      {400, "The customizations do not satisfy the schema"},
	ImportInvalid:        {400, "The import is invalid"},
	EventInvalid:         {400, "The events are invalid"},
	Unauthorized:         {401, "A valid API key is required"},
	PermissionDenied:     {403, "The API key may not do this"},
	NotFound:             {404, "Not found"},
	MethodNotAllowed:     {405, "Method not allowed"},
	NotAcceptable:        {406, "Not acceptable"},
	RequestTimeout:       {408, "The request took too long to arrive"},
	Conflict:             {409, "Conflict"},
	IDTaken:              {409, "The id is taken"},
	HasDescendants:       {409, "The organization has descendants"},
	ParentDeleted:        {409, "The parent is deleted"},
	SettingLocked:        {409, "An ancestor locked this setting"},
	MoveInvalid:          {409, "The organization cannot move there"},
	DepthExceeded:        {409, "The tree would become too deep"},
	IdempotencyKeyReused: {409, "The Idempotency-Key was used for another request"},
	RequestInFlight:      {409, "The same request is still being processed"},
	ValuesErased:         {410, "Values have been erased"},
	PreconditionFailed:   {412, "Precondition failed"},
	TooLarge:             {413, "The request is too large"},
	UnsupportedMediaType: {415, "Unsupported media type"},
	RateLimited:          {429, "Too many requests"},
	LimitExceeded:        {429, "A consumption limit is exceeded"},
	QuotaExceeded:        {429, "Too much at the same time"},
	Internal:             {500, "Internal error"},
	Unavailable:          {503, "Temporarily unavailable"},
	OutcomeUnknown:       {503, "The outcome is unknown"},
	StorageFull:          {507, "Storage is full"},
}

// Status returns the HTTP status of c; 500 for a code that is not in the table.
func (c Code) Status() int {
	if e, ok := table[c]; ok {
		return e.status
	}
	return 500
}

// Title returns the short, fixed description of c.
func (c Code) Title() string { return table[c].title }

// Codes returns every code of the table, in no particular order.
func Codes() []Code {
	codes := make([]Code, 0, len(table))
	for c := range table {
		codes = append(codes, c)
	}
	return codes
}

// Field names one bad part of a request.
type Field struct {
	Pointer string `json:"pointer,omitempty"` // RFC 6901, into the request body
	Param   string `json:"parameter,omitempty"`
	Line    int    `json:"line,omitzero"`   // 1-based line of an import or an NDJSON body
	Index   *int   `json:"index,omitempty"` // 0-based index in a batch
	Detail  string `json:"detail"`
}

// Error is an error that a caller may see. Detail, Fix and Fields are public:
// no secret and nothing of an organization that the caller cannot see may ever
// be put into them. Cause is private to the server log.
type Error struct {
	Code       Code
	Detail     string         // what went wrong with this request, one sentence
	Fix        string         // what the caller can do about it; may be empty
	Fields     []Field        // the bad parts, at most MaxFields
	Extra      map[string]any // further public members, such as counts
	RetryAfter time.Duration  // when to try again; 0 if unknown
	Cause      error
}

// New returns an error with a formatted detail.
func New(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// Param returns an InvalidParameter error about one parameter. The name may be a
// caller's own: of a long one the error has the beginning.
func Param(name, format string, args ...any) *Error {
	name = strings.ToValidUTF8(name[:min(len(name), 64)], "\uFFFD")
	detail := fmt.Sprintf(format, args...)
	return &Error{Code: InvalidParameter, Detail: sentence("The parameter " + name + " " + detail),
		Fields: []Field{{Param: name, Detail: detail}}}
}

// Body returns an InvalidBody error about the value at one JSON Pointer.
func Body(pointer, format string, args ...any) *Error {
	detail := fmt.Sprintf(format, args...)
	return &Error{Code: InvalidBody, Detail: sentence("The value at " + orRoot(pointer) + " " + detail),
		Fields: []Field{{Pointer: pointer, Detail: detail}}}
}

// sentence returns s with a period at its end.
func sentence(s string) string { return strings.TrimSuffix(s, ".") + "." }

func orRoot(pointer string) string {
	if pointer == "" {
		return "the top level"
	}
	return pointer
}

// WithFix returns e with what the caller can do about it.
func (e *Error) WithFix(format string, args ...any) *Error {
	e.Fix = fmt.Sprintf(format, args...)
	return e
}

// WithCause returns e with its private cause.
func (e *Error) WithCause(err error) *Error {
	e.Cause = err
	return e
}

// With returns e with one more public member.
func (e *Error) With(name string, value any) *Error {
	if e.Extra == nil {
		e.Extra = map[string]any{}
	}
	e.Extra[name] = value
	return e
}

func (e *Error) Error() string {
	if e.Cause != nil {
		return string(e.Code) + ": " + e.Detail + ": " + e.Cause.Error()
	}
	return string(e.Code) + ": " + e.Detail
}

func (e *Error) Unwrap() error { return e.Cause }

// From returns the *Error in err's chain, or an Internal error with err as its
// private cause. It returns nil for nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Code: Internal, Detail: "The server failed to answer this request.", Cause: err}
}

// Is reports whether err is an *Error with the given code.
func Is(err error, code Code) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}
