package web

import (
	"maps"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/orgd/orgd/internal/problem"
)

// Parameter is one that the query of a call may have.
type Parameter struct {
	Name string
	// Flag says that it is true or false. An empty one is then not refused as such:
	// whoever reads it says what it must be.
	Flag bool
}

// work reads the query and runs the handler.
func (rt *Route) work(r *Request) (*Response, error) {
	if err := rt.readQuery(r); err != nil {
		return nil, err
	}
	return rt.Handle(r)
}

// readQuery sets the Query of a request. A parameter that the route does not take
// is an error, as is one that is given twice or is empty: a misspelt filter, or one
// made of a variable that is not set, must not widen an answer, nor a misspelt
// dry_run change anything.
func (rt *Route) readQuery(r *Request) error {
	if r.URL.RawQuery == "" {
		return nil
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return problem.New(problem.InvalidParameter, "The query string is malformed.").WithFix("Percent-encode the parameters.")
	}
	takes := rt.Query
	if rt.Following != nil && values.Has("follow") {
		takes = rt.Following
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		vs := values[name]
		i := slices.IndexFunc(takes, func(p Parameter) bool { return p.Name == name })
		switch {
		case i < 0:
			e := problem.Param(name, "is not one that this call takes")
			if len(takes) > 0 {
				names := make([]string, len(takes))
				for i, p := range takes {
					names[i] = p.Name
				}
				e = e.WithFix("It takes %s.", strings.Join(names, ", "))
			}
			return e
		case len(vs) > 1:
			return problem.Param(name, "is given more than once")
		case vs[0] == "" && !takes[i].Flag:
			return problem.Param(name, "must not be empty; leave it out, or give it a value")
		case !utf8.ValidString(vs[0]) || strings.ContainsRune(vs[0], 0):
			return problem.Param(name, "is not valid UTF-8 text")
		}
	}
	r.Query = values
	return nil
}
