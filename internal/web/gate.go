package web

import (
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/orgd/orgd/internal/problem"
)

// Gate stands before the handlers of all listeners of a process. While it is
// closed, which it is at first, nothing is answered but that the process lives:
// /healthz is 200, and everything else, /readyz too, 503 with the reason. It is
// safe for concurrent use.
type Gate struct {
	basePath string
	surfaces []*Surface
	server   atomic.Pointer[Server]
	closed   atomic.Pointer[string] // why, as a sentence; nil if it is open
	leaving  atomic.Bool
}

// gateRetry is when a client may try again that found the gate closed.
const gateRetry = 2 * time.Second

// NewGate returns a closed gate. The base path is that of the Config. Each of the
// surfaces has a Path, below which requests are refused as it does.
func NewGate(basePath, why string, surfaces []*Surface) *Gate {
	g := &Gate{basePath: strings.TrimSuffix(basePath, "/"), surfaces: surfaces}
	g.Close(why)
	return g
}

// Close has everything but /healthz answered with 503 and the reason, a whole
// sentence for whoever asks.
func (g *Gate) Close(why string) { g.closed.Store(&why) }

// Open has requests answered by s.
func (g *Gate) Open(s *Server) {
	g.server.Store(s)
	g.closed.Store(nil)
}

// Leave tells whoever balances requests to send no more: /readyz is 503 from now
// on, and every answer asks its client to close the connection. Requests are
// answered as before.
func (g *Gate) Leave() { g.leaving.Store(true) }

// On returns what answers the requests of a listener.
func (g *Gate) On(l Listener) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g.leaving.Load() {
			// Connections that are idle stay open: closed in the moment in which a
			// proxy sends a request, they would lose it.
			w.Header()["Connection"] = []string{"close"}
			if g.asks(r, "/readyz") {
				g.refuse(w, r, "The server is shutting down.")
				return
			}
		}
		if why := g.closed.Load(); why != nil {
			if g.asks(r, "/healthz") {
				JSON(http.StatusOK, struct {
					Status string `json:"status"`
				}{"ok"}).send(w, r.Method == http.MethodHead)
				return
			}
			g.refuse(w, r, *why)
			return
		}
		g.server.Load().On(l).ServeHTTP(w, r)
	})
}

// asks reports whether r is a GET of a path, below the base path or not.
func (g *Gate) asks(r *http.Request, path string) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) &&
		(r.URL.Path == path || g.basePath != "" && r.URL.Path == g.basePath+path)
}

func (g *Gate) refuse(w http.ResponseWriter, r *http.Request, why string) {
	id := requestID(r)
	w.Header()["X-Request-Id"] = []string{id}
	e := problem.New(problem.Unavailable, "%s", why).WithFix("Wait as long as Retry-After says.")
	e.RetryAfter = gateRetry
	fail := Problem
	for _, f := range g.surfaces {
		if f.Fail != nil && below(strings.TrimPrefix(r.URL.Path, g.basePath), f.Path) {
			fail = f.Fail
		}
	}
	fail(&Request{Request: r, ID: id}, e).send(w, r.Method == http.MethodHead)
}
