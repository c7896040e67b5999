package api_test

import (
	"fmt"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// A clock that goes back leaves the audit trail in the order of its times, in the
// same process and after a restart: what was changed is in as_of and to from its
// time on, whatever the change was.
func TestClockGoesBack(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		var c clock
		s := testkit.Open(t, engine, c.use)
		op := s.OperatorKey
		s.Must(201, "POST", "/orgs", op, `{"id":"root","name":"Root"}`)
		for _, id := range []string{"a", "b", "c"} {
			s.Must(201, "POST", "/orgs/root/children", op, fmt.Sprintf(`{"id":%q,"name":"Before"}`, id))
		}
		c.forward(-time.Hour)
		s.Must(200, "PATCH", "/orgs/a", op, `{"name":"After"}`)
		s.Must(200, "POST", "/orgs/b/move", op, `{"parent_id":"a"}`)
		_, keyID := s.NewKey("a", `"permissions":["orgs:read"]`)
		c.forward(-time.Hour)
		s.Must(200, "DELETE", "/orgs/a/api_keys/"+keyID, op, "")
		s.Must(200, "DELETE", "/orgs/c", op, "")
		s.Must(200, "PUT", "/orgs/a/customizations", op, `{"customizations":{"x":1}}`)

		check := func(s *testkit.Server) {
			t.Helper()
			var times []string
			var last string
			for _, e := range s.Must(200, "GET", "/orgs/root/children_audit?limit=100", op, "").JSON().([]any) {
				entry := e.(map[string]any)
				times = append(times, entry["timestamp"].(string))
			}
			last = times[0]
			slices.Reverse(times) // the newest first
			parsed := make([]time.Time, len(times))
			for i, text := range times {
				var err error
				if parsed[i], err = time.Parse(time.RFC3339Nano, text); err != nil {
					t.Fatal(err)
				}
			}
			if !slices.IsSortedFunc(parsed, time.Time.Compare) {
				t.Errorf("the times of the entries are out of order: %v", times)
			}
			if got := s.Must(200, "GET", "/orgs/a?as_of="+url.QueryEscape(last), op, "").String("name"); got != "After" {
				t.Errorf("as of the last entry a is called %q", got)
			}
			to := parsed[len(parsed)-1].Add(time.Microsecond).Format(time.RFC3339Nano)
			n := len(s.Must(200, "GET", "/orgs/root/children_audit?limit=100&to="+url.QueryEscape(to), op, "").JSON().([]any))
			if n != len(times) {
				t.Errorf("%d of %d entries are before %s", n, len(times), to)
			}
			s.Must(400, "GET", "/orgs/a?as_of="+url.QueryEscape(to), op, "")
		}
		check(s)
		s.Stop()
		again := testkit.Start(t, engine, func(sc *server.Config) { *sc = s.Config; c.use(sc); c.forward(-time.Hour) })
		again.Must(200, "PATCH", "/orgs/a", op, `{"description":"later"}`)
		check(again)
	})
}
