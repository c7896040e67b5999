package api_test

import (
	"testing"

	"github.com/orgd/orgd/internal/testkit"
)

// A restore that is refused is in the access log of the organization that it was
// about, whoever asked and whatever the reason.
func TestRefusedRestoreIsRecorded(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	op := s.OperatorKey
	s.Must(201, "POST", "/orgs", op, `{"id":"root","name":"Root"}`)
	s.Must(201, "POST", "/orgs/root/children", op, `{"id":"a","name":"A"}`)
	s.Must(201, "POST", "/orgs/a/children", op, `{"id":"b","name":"B"}`)
	reader, _ := s.NewKey("root", `"permissions":["orgs:read"]`)
	failures := func(id string) (n int) {
		t.Helper()
		for _, e := range s.Must(200, "GET", "/orgs/root/access_log?scope=subtree&limit=100&action=RESTORE_ORG", op, "").JSON().([]any) {
			if e.(map[string]any)["org_id"] == id {
				n++
			}
		}
		return n
	}
	s.Must(409, "POST", "/orgs/a/restore", op, "")
	s.Must(403, "POST", "/orgs/a/restore", reader, "")
	if n := failures("a"); n != 2 {
		t.Errorf("%d events of refused restores of a live organization, want 2", n)
	}
	s.Must(200, "DELETE", "/orgs/b", op, "")
	s.Must(200, "DELETE", "/orgs/a", op, "")
	s.Must(409, "POST", "/orgs/b/restore", op, "")
	s.Must(200, "POST", "/orgs/a/restore", op, "")
	if n := failures("b"); n != 1 {
		t.Errorf("%d events of refused restores below a deleted parent, want 1", n)
	}
}
