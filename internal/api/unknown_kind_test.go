package api_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/api"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/web"
)

// An actor of a kind that nothing here knows finds every route closed, unless it
// was granted what the route takes, there: whatever it is called, wherever it
// belongs, and whatever it was granted elsewhere or nowhere. It changes nothing.
func TestUnknownKindFindsEveryRouteClosed(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	f := newFixture(s, "u-")
	var actor *auth.Actor // of the next request
	login := func(context.Context, org.Login, string, netip.Addr) (org.Login, error) {
		return org.Login{Actor: actor}, nil
	}
	a, err := api.New(api.Config{Service: s.Service, Tree: s.Tree, Trail: s.Trail, Evidence: s.Evidence, Metering: s.Metering, Flusher: s.Recorder, Now: time.Now, Secret: []byte("secret")})
	if err != nil {
		t.Fatal(err)
	}
	routes := a.Routes()
	for i := range routes {
		surface := web.Surface{}
		if routes[i].Surface != nil {
			surface = *routes[i].Surface
		}
		surface.Authenticate = login
		routes[i].Surface = &surface
	}
	handler, err := web.NewServer(web.Config{Service: s.Service, Metering: s.Metering, Recorder: s.Recorder, Log: slog.New(slog.DiscardHandler), Now: time.Now, Metrics: prometheus.NewRegistry()}, routes)
	if err != nil {
		t.Fatal(err)
	}

	own, foreign := "u-root/u-parent/u-own/", "u-foreign/"
	at := func(path string) []auth.Grant {
		return []auth.Grant{{Path: path, Reach: key.ReachSubtree, Permissions: key.AllPermissions()}}
	}
	robot := func(kind auth.Kind, path string, grants []auth.Grant) *auth.Actor {
		actor := &auth.Actor{Kind: kind, ID: "rob_1", Name: "robot", Path: path, Grants: grants}
		if path != "" {
			ids := strings.Split(strings.TrimSuffix(path, "/"), "/")
			actor.RootID, actor.OrgID = ids[0], ids[len(ids)-1]
		}
		return actor
	}
	actors := map[string]*auth.Actor{
		"without grants":                  robot("robot", own, nil),
		"without grants or a place":       robot("robot", "", nil),
		"with the name of the operator":   {Kind: "robot", ID: "operator", Name: "operator"},
		"of no kind":                      robot("", own, nil),
		"of a kind that is nearly one":    robot("Operator", own, nil),
		"granted all at no path":          robot("robot", own, at("")),
		"granted all at no path, of none": robot("robot", "", at("")),
		"granted all where nothing is":    robot("robot", own, at("nowhere/")),
		"granted all at a foreign root":   robot("robot", own, at(foreign)),
	}
	trail := func() (n int) {
		t.Helper()
		for _, root := range []string{"u-root", "u-foreign"} {
			n += len(s.Must(http.StatusOK, "GET", "/orgs/"+root+"/children_audit?limit=1000", s.OperatorKey, "").JSON().([]any))
		}
		return n
	}
	entries := trail()
	entryOf := map[string]string{}
	for _, target := range []string{"own", "foreign"} {
		list := s.Must(http.StatusOK, "GET", "/orgs/u-"+target+"/children_audit?scope=self&limit=1", s.OperatorKey, "").JSON().([]any)
		entryOf[target] = list[0].(map[string]any)["id"].(string)
	}
	requests := 0
	for i := range routes {
		rt := &routes[i]
		if rt.Rule.Open {
			continue
		}
		sm, ok := samples[rt.Operation]
		if !ok {
			t.Errorf("the route %s %s has no sample", rt.Method, rt.Pattern)
			continue
		}
		for name, who := range actors {
			absent := ""
			for _, target := range []string{"absent", "own", "foreign"} {
				if target == "foreign" && len(who.Grants) > 0 && who.Grants[0].Path == foreign {
					continue
				}
				keyID, entryID := f.keyOf[target], entryOf[target]
				if target == "absent" {
					keyID, entryID = f.keyOf["own"], entryOf["own"]
				}
				fill := strings.NewReplacer("ORG", "u-"+target, "KEY", keyID, "NEW", "u-new-"+target, "OTHER", "u-other", "ENTRY", entryID, "SECRET", s.OperatorKey)
				method := rt.Method
				if method == "" {
					method = "GET"
				}
				req := httptest.NewRequest(method, fill.Replace(sm.path), io.NopCloser(strings.NewReader(fill.Replace(sm.body))))
				req.Header.Set("X-Request-Id", "req_same")
				if req.Header.Set("Content-Type", "application/json"); sm.contentType != "" {
					req.Header.Set("Content-Type", sm.contentType)
				}
				actor = who
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, req)
				requests++
				if w.Code != http.StatusForbidden && w.Code != http.StatusNotFound {
					t.Errorf("%s by an actor %s, on %s: status %d: %s", rt.Operation, name, target, w.Code, w.Body)
				}
				switch {
				case target == "absent":
					absent = w.Body.String()
				case w.Body.String() != absent:
					t.Errorf("%s by an actor %s: %s can be told from an absent organization:\n%s\n%s", rt.Operation, name, target, w.Body, absent)
				}
			}
		}
	}
	if requests < 1000 {
		t.Errorf("only %d requests were made", requests)
	}
	if n := trail(); n != entries {
		t.Errorf("%d audit entries, %d after all that was refused", entries, n)
	}
	recorded := 0
	for _, root := range []string{"u-root", "u-foreign"} {
		if calls := s.Must(http.StatusOK, "GET", "/orgs/"+root+"/consumption", s.OperatorKey, "").JSON("meters", "api_calls", "total"); calls != 0.0 {
			t.Errorf("%v calls were counted for %s", calls, root)
		}
		page := "/orgs/" + root + "/access_log?user=robot&scope=subtree&limit=1000"
		for page != "" {
			a := s.Must(http.StatusOK, "GET", page, s.OperatorKey, "")
			for _, e := range a.JSON().([]any) {
				recorded++
				if status := e.(map[string]any)["status"]; status == access.Success {
					t.Errorf("in the access log is %v", e)
				}
			}
			page = testkit.NextPage(a)
		}
	}
	if recorded == 0 {
		t.Error("nothing of it is in the access log")
	}
}
