package web

import (
	"context"
	"net/http"
	"net/netip"
	"strings"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

// Surface is what differs between the kinds of clients that a Server answers: how
// they say who they are, how they are told of a failure, and what their requests
// consume. Everything else on the way of a request is the same for all of them.
//
// A nil Surface is that of the API: programs that present a key and read JSON.
// What another one leaves nil is as there. A Surface is immutable, and its
// functions are called by many requests at the same time.
type Surface struct {
	// Path is where the surface is: what no route takes at this path or below fails
	// as the requests of its routes do. Empty if it has no place of its own. No
	// surface lies below another one.
	Path string
	// Credential returns the secret that a request presents, empty for none. Answers
	// that are kept for an Idempotency-Key are sealed with it.
	Credential func(r *http.Request) string
	// Authenticate finds out whose a credential is that comes from an address; the
	// address is not valid if it is unknown. It is asked again while the request
	// is worked on: last is what it returned before, at first the zero Login. With an
	// error the Login may still name an actor, so that the attempt is recorded.
	Authenticate func(ctx context.Context, last org.Login, credential string, ip netip.Addr) (org.Login, error)
	// Fail renders an error. Of an Internal one it shows nothing but what a
	// problem.Error says, which holds no cause.
	Fail func(r *Request, e *problem.Error) *Response
	// Count returns what a request consumes. It is asked when a request has been
	// answered, and not refused for the credential or the rate, nor by a fault of
	// the server.
	Count func(r *Request) ([]access.Usage, *metering.Reservation)
}

// or returns the surface with what it leaves nil taken from another one.
func (f *Surface) or(other *Surface) *Surface {
	if f == nil {
		return other
	}
	whole := *f
	if f.Credential == nil {
		whole.Credential = other.Credential
	}
	if f.Authenticate == nil {
		whole.Authenticate = other.Authenticate
	}
	if f.Fail == nil {
		whole.Fail = other.Fail
	}
	if f.Count == nil {
		whole.Count = other.Count
	}
	return &whole
}

// below reports whether a path is another one or lies below it. A path parameter may
// follow it (RFC 3986, section 3.3): "/forward_auth;meter=api_calls/…".
func below(path, above string) bool {
	rest, ok := strings.CutPrefix(path, above)
	return ok && (rest == "" || rest[0] == '/' || rest[0] == ';')
}

// apiSurface returns the Surface of the API.
func (s *Server) apiSurface() *Surface {
	return &Surface{Credential: bearer, Authenticate: s.authenticateKey, Fail: Problem, Count: s.countCall}
}

// bearer returns the token of a request (RFC 6750).
func bearer(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

func (s *Server) authenticateKey(ctx context.Context, last org.Login, token string, ip netip.Addr) (org.Login, error) {
	login, err := s.service.Again(ctx, last, token, ip)
	if login.Actor == nil && last.Actor == nil {
		s.unknown.Inc()
	}
	return login, err
}

// countCall counts the call of a key.
func (s *Server) countCall(r *Request) ([]access.Usage, *metering.Reservation) {
	if r.Actor.Kind != auth.KindKey {
		return nil, nil
	}
	return s.metering.CountCall(r.Context(), r.Actor, r.At)
}
