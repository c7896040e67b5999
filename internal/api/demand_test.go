package api

import (
	"bufio"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/maypok86/otter/v2"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/usage"
	"github.com/orgd/orgd/internal/web"
)

// Whatever path and query a client sends, what is demanded of it is what the
// proxy's configuration says: behind one that appends the client's path and
// query to its own, and behind one that describes them in headers.
func FuzzForwardAuthDemand(f *testing.F) {
	for _, target := range []string{"/", "/orders?page=2", "/;permission=app:y", "/..;meter=api_calls/", "//forward_auth;org=other/", "/?permission=app:y&org=other",
		"/%2F..%2Fforward_auth?quantity=0", "/a;b=c/d;e", "/%3Bmeter=x", "/?", "/#x", "/%zz", "/\x00", "/é"} {
		f.Add(target)
	}
	queries, err := otter.New(&otter.Options[string, knownQuery]{MaximumSize: 10})
	if err != nil {
		f.Fatal(err)
	}
	a := &API{queries: queries}
	want := metering.Demand{Permissions: key.Permissions{"app:x"}, Meter: "api_calls", Quantity: 2 * usage.One, OrgID: "acme"}
	f.Fuzz(func(t *testing.T, target string) {
		if strings.ContainsAny(target, " \r\n") || !strings.HasPrefix(target, "/") {
			return // not the path of a request (RFC 9112, section 3.2.1)
		}
		for _, line := range []string{
			"GET /forward_auth;permission=app:x;meter=api_calls;quantity=2;org=acme;action=BUY" + target + " HTTP/1.1\r\nHost: orgd\r\n\r\n",
			"GET /forward_auth?permission=app:x&meter=api_calls&quantity=2&org=acme&action=BUY HTTP/1.1\r\nHost: orgd\r\nX-Original-URI: " + target + "\r\n\r\n",
		} {
			hr, err := http.ReadRequest(bufio.NewReader(strings.NewReader(line)))
			if err != nil {
				continue
			}
			r := &web.Request{Request: hr, Trusted: true}
			if err := a.prepareForwardAuth(r); err != nil {
				continue
			}
			if d := r.Decision; !reflect.DeepEqual(d.Demand, want) || d.Action != "BUY" {
				t.Errorf("%q: the demand is %+v, the action %q", line, d.Demand, d.Action)
			} else if strings.Contains(d.Path, "?") {
				t.Errorf("%q: the path %q holds a query", line, d.Path)
			}
		}
	})
}
