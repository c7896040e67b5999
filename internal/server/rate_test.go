package server_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// Two processes on one database let no more through than a key's rate limit says,
// and a third one that takes the place of the first fills nothing up again.
func TestRateLimitOfProcesses(t *testing.T) {
	var database, operator string
	two := func(c *server.Config) {
		if database != "" {
			c.Database, c.OperatorKey = database, operator
		}
	}
	first := testkit.Open(t, "postgres", two)
	database, operator = first.Config.Database, first.OperatorKey
	second := testkit.Open(t, "sqlite", two)
	bothKnow := func(servers ...*testkit.Server) {
		t.Helper()
		for _, s := range servers {
			for begun := time.Now(); s.Store.Processes() != len(servers); time.Sleep(10 * time.Millisecond) {
				if time.Since(begun) > 10*time.Second {
					t.Fatalf("a process knows of %d, and there are %d", s.Store.Processes(), len(servers))
				}
			}
		}
	}
	bothKnow(first, second)
	first.Must(201, "POST", "/orgs", first.OperatorKey, `{"id":"acme","name":"Acme"}`)
	key, _ := first.NewKey("acme", `"permissions":["orgs:read"],"rate_limit":{"requests":60,"period_seconds":86400}`)
	use := func(servers ...*testkit.Server) (n int) {
		for i := range 120 {
			switch a := servers[i%len(servers)].Do("GET", "/orgs/acme", key, ""); a.Status {
			case http.StatusOK:
				n++
			case http.StatusTooManyRequests:
				if a.Header.Get("Retry-After") == "" || !strings.Contains(a.Header.Get("RateLimit-Policy"), "q=60") {
					t.Errorf("%d %v %s", a.Status, a.Header, a.Body)
				}
			default:
				t.Fatalf("%d %s", a.Status, a.Body)
			}
		}
		return n
	}
	if n := use(first, second); n != 60 {
		t.Errorf("two processes let %d requests of 60 through", n)
	}
	first.Stop()
	third := testkit.Open(t, "sqlite", two)
	bothKnow(second, third)
	if n := use(second, third); n != 1 {
		t.Errorf("after a restart %d more are let through, want 1", n)
	}
}
