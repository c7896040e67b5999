package web

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/orgd/orgd/internal/problem"
)

// Listener is a place where a Server answers.
type Listener int

// The places. There is always a Main; what is for another one that there is
// not, Main serves.
const (
	Main    Listener = iota // the API
	Proxies                 // what proxies ask
	Admin                   // what operators look at
	listeners
)

// table holds the routes of one listener. What is not in it does not exist
// there.
type table struct {
	mux      *http.ServeMux
	prefixes []prefix
	none     http.Handler // answers what no route takes
	surfaces []prefix     // answer that below their paths
}

// prefix is a path with all that lies below it.
type prefix struct {
	path    string
	handler http.Handler
}

// On returns what answers the requests of a listener; nil if the Server has no
// such.
func (s *Server) On(l Listener) http.Handler {
	if t := s.tables[l]; t != nil {
		return t
	}
	return nil
}

// ServeHTTP answers the requests of Main.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.tables[Main].ServeHTTP(w, r)
}

// newTable adds a listener.
func (s *Server) newTable(l Listener) {
	t := &table{mux: http.NewServeMux()}
	t.none = s.noRoute(t, nil)
	t.mux.HandleFunc("/", t.serveNone)
	s.tables[l] = t
}

// noRoute returns what answers for a surface where no route does.
func (s *Server) noRoute(t *table, f *Surface) http.Handler {
	return s.handler(&Route{Operation: "none", Surface: f, Rule: Rule{Open: true}, Handle: t.notRouted})
}

// addSurface has a surface answer below its path what no route takes.
func (s *Server) addSurface(t *table, f *Surface, bases []string) {
	if f == nil || f.Path == "" || slices.ContainsFunc(t.surfaces, func(p prefix) bool { return p.path == f.Path }) {
		return
	}
	h := s.noRoute(t, f)
	for _, base := range bases {
		t.surfaces = append(t.surfaces, prefix{base + f.Path, h})
	}
}

// tablesOf returns the tables of the listeners that serve a route.
func (s *Server) tablesOf(rt *Route) []*table {
	var on []*table
	for _, l := range rt.Listeners {
		if s.tables[l] != nil {
			on = append(on, s.tables[l])
		}
	}
	if on == nil {
		on = append(on, s.tables[Main])
	}
	return on
}

// add adds a route at a path. It fails if the pattern conflicts with another,
// which http.ServeMux answers with a panic.
func (t *table) add(rt *Route, base string, h http.Handler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	t.mux.Handle(strings.TrimPrefix(rt.Method+" "+base+rt.Pattern, " "), h)
	if rt.Prefix {
		t.prefixes = append(t.prefixes, prefix{base + rt.Pattern, h})
	}
	return nil
}

func (t *table) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for i := range t.prefixes {
		if p := &t.prefixes[i]; below(r.URL.Path, p.path) {
			p.handler.ServeHTTP(w, r)
			return
		}
	}
	// http.ServeMux redirects paths that are not clean. They name nothing here.
	if p := r.URL.Path; strings.Contains(p, "//") || strings.Contains(p+"/", "/./") || strings.Contains(p+"/", "/../") {
		t.serveNone(w, r)
		return
	}
	t.mux.ServeHTTP(w, r)
}

// serveNone answers what no route takes, as the surface does that has the path.
func (t *table) serveNone(w http.ResponseWriter, r *http.Request) {
	for i := range t.surfaces {
		if p := &t.surfaces[i]; below(r.URL.Path, p.path) {
			p.handler.ServeHTTP(w, r)
			return
		}
	}
	t.none.ServeHTTP(w, r)
}

// notRouted answers what no route takes: 405 if the path exists for another
// method, 404 otherwise.
func (t *table) notRouted(r *Request) (*Response, error) {
	var allowed []string
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
		other := &http.Request{Method: method, URL: r.URL, Host: r.Host}
		if _, pattern := t.mux.Handler(other); pattern != "/" && pattern != "" && strings.HasPrefix(pattern, method+" ") {
			allowed = append(allowed, method)
			if method == "GET" {
				allowed = append(allowed, "HEAD")
			}
		}
	}
	if len(allowed) == 0 || slices.Contains(allowed, r.Method) {
		return nil, problem.New(problem.NotFound, "There is nothing at this path.").WithFix("The calls are listed at /docs.")
	}
	list := strings.Join(allowed, ", ")
	r.extra = append(r.extra, "Allow", list)
	return nil, problem.New(problem.MethodNotAllowed, "This path does not take %s.", cut(r.Method, 20)).WithFix("Use %s.", list)
}
