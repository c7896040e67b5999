package api_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/orgd/orgd/internal/testkit"
)

// The page that describes Organization Management, from top to bottom: each
// call answers as the page says, on both databases.
func TestReferencePage(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s := testkit.Start(t, engine)
			op := s.OperatorKey
			s.Must(201, "POST", "/orgs", op, `{"id":"org-123","name":"Example Organization","customizations":{"theme":"dark"}}`)
			key, _ := s.NewKey("org-123", `"permissions":["admin"]`)

			// All API requests require valid authentication headers.
			for _, call := range [][2]string{{"GET", ""}, {"PATCH", ""}, {"DELETE", ""}, {"GET", "/access_log"}, {"GET", "/children_audit"},
				{"GET", "/consumption"}, {"GET", "/customizations"}, {"PUT", "/customizations"}} {
				for _, bad := range []string{"", "nonsense", "orgd_abc_def", op[:len(op)-1] + "-"} {
					a := s.Must(401, call[0], "/orgs/org-123"+call[1], bad, "")
					if a.Header.Get("WWW-Authenticate") != "Bearer" || a.String("code") != "unauthorized" {
						t.Errorf("401 with %q: %v %s", bad, a.Header, a.Body)
					}
				}
				s.Must(404, call[0], "/orgs/org-124"+call[1], key, "")
			}

			// Retrieve Organization Information
			a := s.Must(200, "GET", "/orgs/org-123", key, "")
			if a.String("id") != "org-123" || a.String("name") != "Example Organization" || a.String("customizations", "theme") != "dark" || a.String("created_at") == "" {
				t.Errorf("organization: %s", a.Body)
			}

			// Update Organization Details
			a = s.Must(200, "PATCH", "/orgs/org-123", key, `{"name": "Updated Organization Name"}`)
			if a.String("name") != "Updated Organization Name" || a.String("customizations", "theme") != "dark" {
				t.Errorf("updated: %s", a.Body)
			}
			a = s.Must(200, "PATCH", "/orgs/org-123", key, `{"customizations": {"theme": null, "logo": "x.png"}}`)
			if a.JSON("customizations", "theme") != nil || a.String("customizations", "logo") != "x.png" {
				t.Errorf("merged: %s", a.Body)
			}
			s.Must(400, "PATCH", "/orgs/org-123", key, `{"name": 5}`)
			s.Must(400, "PATCH", "/orgs/org-123", key, `{"name": "x"`)
			s.Must(400, "PATCH", "/orgs/org-123", key, `{"nickname": "x"}`)

			// Retrieve Access Log
			a = s.Must(200, "GET", "/orgs/org-123/access_log", key, "")
			events, _ := a.JSON().([]any)
			if len(events) == 0 {
				t.Fatalf("access log: %s", a.Body)
			}
			newest, _ := events[0].(map[string]any)
			for _, member := range []string{"timestamp", "user", "action", "status"} {
				if v, _ := newest[member].(string); v == "" {
					t.Errorf("access event without %s: %v", member, newest)
				}
			}
			if newest["action"] != "UPDATE_ORG" || newest["status"] != "FAILURE" || newest["user"] != "test" {
				t.Errorf("the newest access event is %v", newest)
			}

			// Retrieve Audit Log
			a = s.Must(200, "GET", "/orgs/org-123/children_audit", key, "")
			entries, _ := a.JSON().([]any)
			var actions []string
			for _, e := range entries {
				action, _ := e.(map[string]any)["action"].(string)
				actions = append(actions, action)
			}
			if got := strings.Join(actions, " "); got != "organization.updated organization.updated api_key.created organization.created" {
				t.Errorf("the audit trail says %s", got)
			}

			// Retrieve Monthly Consumption
			a = s.Must(200, "GET", "/orgs/org-123/consumption", key, "")
			own, _ := a.JSON("meters", "api_calls", "own").(float64)
			total, _ := a.JSON("meters", "api_calls", "total").(float64)
			// Eight calls were not found; they were answered all the same.
			if own != total || own != 8+1+2+3+1+1 {
				t.Errorf("consumption: %s", a.Body)
			}

			// Retrieve and update Organization Customizations
			a = s.Must(200, "GET", "/orgs/org-123/customizations", key, "")
			if a.String("customizations", "logo") != "x.png" || a.String("effective", "logo") != "x.png" {
				t.Errorf("customizations: %s", a.Body)
			}
			a = s.Must(200, "PUT", "/orgs/org-123/customizations", key, `{"customizations": {"color": "blue"}}`)
			if a.String("customizations", "color") != "blue" || a.JSON("customizations", "logo") != nil {
				t.Errorf("put customizations: %s", a.Body)
			}
			s.Must(400, "PUT", "/orgs/org-123/customizations", key, `{}`)
			s.Must(400, "PUT", "/orgs/org-123/customizations", key, `{"customizations": []}`)

			// Delete Organization
			a = s.Must(200, "DELETE", "/orgs/org-123", key, "")
			if a.String("message") != "Organization deleted successfully" {
				t.Errorf("deleted: %s", a.Body)
			}
			s.Must(401, "GET", "/orgs/org-123", key, "")
			s.Must(404, "GET", "/orgs/org-123", op, "")
			if a = s.Must(http.StatusNotFound, "DELETE", "/orgs/org-123", op, ""); a.String("code") != "not_found" {
				t.Errorf("deleted twice: %s", a.Body)
			}
		})
	}
}
