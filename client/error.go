package client

import (
	"encoding/json"
	"errors"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Error is an answer of the server that is not a success: the members of its
// problem document (RFC 9457) and what else the answer tells.
type Error struct {
	Status   int          `json:"status"`
	Code     string       `json:"code"` // stable and machine-readable; empty if something other than orgd answered
	Type     string       `json:"type"`
	Title    string       `json:"title"`
	Detail   string       `json:"detail"`
	Fix      string       `json:"fix"` // what the caller can do about it; may be empty
	Instance string       `json:"instance"`
	Errors   []FieldError `json:"errors"` // the bad parts of the request, at most 100

	RequestID  string          `json:"-"` // finds the request in the server's log
	RetryAfter time.Duration   `json:"-"` // when to try again; 0 if the server did not say
	Raw        json.RawMessage `json:"-"` // the whole problem document, with further members such as counts; nil if there is none
}

// FieldError names one bad part of a request.
type FieldError struct {
	Pointer   string `json:"pointer"` // JSON Pointer into the body
	Parameter string `json:"parameter"`
	Line      int    `json:"line"`  // 1-based line of an import; 0 if there is none
	Index     *int   `json:"index"` // 0-based index in a batch
	Detail    string `json:"detail"`
}

// Error returns the detail, and the request id for finding it in the logs.
func (e *Error) Error() string {
	s := strings.TrimSuffix(e.Detail, ".")
	if e.Code != "" {
		s = e.Code + ": " + s
	}
	if e.RequestID != "" {
		s += " (request " + e.RequestID + ")"
	}
	return s
}

// IsCode reports whether err is an *Error with the given code, such as
// not_found.
func IsCode(err error, code string) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

func newError(resp *http.Response, body []byte) *Error {
	e := &Error{}
	mt, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if mt == "application/problem+json" && json.Unmarshal(body, e) == nil {
		e.Raw = body
	} else {
		*e = Error{Title: http.StatusText(resp.StatusCode),
			Detail: "The server answered " + strconv.Itoa(resp.StatusCode) + " " + http.StatusText(resp.StatusCode) + " and not in the form of orgd."}
		e.Fix = "Check that the URL is that of an orgd server, and what stands in front of it."
		if to := resp.Header.Get("Location"); to != "" && resp.StatusCode/100 == 3 {
			e.Detail = "The server redirects to " + to + ", and redirects are not followed."
			e.Fix = "Use the URL to which it redirects, if you trust it."
		}
	}
	e.Status = resp.StatusCode
	e.RequestID = resp.Header.Get("X-Request-Id")
	e.RetryAfter = retryAfter(resp.Header, time.Now())
	return e
}
