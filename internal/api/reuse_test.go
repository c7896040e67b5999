package api_test

import (
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// An id that was freed by a purge and used again brings nothing of the audit
// trail of the organization that had it before, which may have been another
// customer's. Whoever reaches the place where that one was still sees it.
func TestAuditOfReusedID(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s, clock := metered(t, engine, "2026-10-14T12:00:00Z")
			op := s.OperatorKey
			s.Must(200, "PATCH", "/orgs/shop", op, `{"name":"Private"}`, "Content-Type", "application/merge-patch+json")
			old := s.Must(200, "GET", "/orgs/shop/children_audit?limit=1", op, "").JSON().([]any)[0].(map[string]any)["id"].(string)
			s.Must(200, "DELETE", "/orgs/shop", op, "")
			clock.set(clock.now().Add(s.Config.RestoreWindow + time.Hour))
			if _, err := s.Service.PurgeExpired(t.Context()); err != nil {
				t.Fatal(err)
			}
			clock.set(clock.now().Add(time.Second))
			s.Must(201, "POST", "/orgs/us/children", op, `{"id":"shop","name":"Ours"}`)
			us, _ := s.NewKey("us", `"permissions":["audit:read","audit:erase"]`)
			eu, _ := s.NewKey("eu", `"permissions":["audit:read"]`)
			for _, scope := range []string{"self", "subtree"} {
				a := s.Must(200, "GET", "/orgs/shop/children_audit?scope="+scope, us, "")
				if strings.Contains(string(a.Body), "Private") || strings.Contains(string(a.Body), "organization.purged") || !strings.Contains(string(a.Body), "organization.created") {
					t.Errorf("the trail of the new organization, %s: %s", scope, a.Body)
				}
			}
			s.Must(404, "GET", "/orgs/shop/children_audit/"+old, us, "")
			s.Must(404, "GET", "/orgs/shop/children_audit/"+old+"/proof", us, "")
			a := s.Must(200, "POST", "/orgs/shop/audit_erasures?dry_run=true", us, `{"subject":"Private","basis":"request 1"}`)
			if a.JSON("erased", "audit_entries") != 0.0 {
				t.Errorf("the new organization would erase what the old one's trail says: %s", a.Body)
			}
			if a := s.Must(200, "GET", "/orgs/eu/children_audit", eu, ""); !strings.Contains(string(a.Body), "Private") {
				t.Errorf("the trail of the old organization's parent: %s", a.Body)
			}
		})
	}
}
