package server_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// 100,000 organizations in one request.
func TestImportOfMany(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	s := testkit.Start(t, "sqlite")
	const n = 100_000
	var rows strings.Builder
	rows.WriteString("id,parent_id,name,tags\n")
	for i := n - 1; i > 0; i-- { // children first
		fmt.Fprintf(&rows, "o%d,o%d,Organization %d,t%d\n", i, (i-1)/8, i, i%5)
	}
	rows.WriteString("o0,,Organization 0,\n")
	start := time.Now()
	a := s.Must(200, "POST", "/orgs/import", s.OperatorKey, rows.String(), "Content-Type", "text/csv")
	took := time.Since(start)
	t.Logf("imported in %v", took.Round(time.Millisecond))
	if a.JSON("created") != float64(n) || a.JSON("roots") != 1.0 || took > 2*time.Minute {
		t.Errorf("in %v: %s", took, a.Body)
	}
	if a := s.Must(200, "DELETE", "/orgs/o0?dry_run=true", s.OperatorKey, ""); a.JSON("organizations") != float64(n) {
		t.Errorf("counted: %s", a.Body)
	}
	for _, path := range []string{"/orgs/o0/descendants?limit=1000", "/orgs?tag=t1", "/orgs/o0/children_audit", "/orgs?name=organization"} {
		start := time.Now()
		s.Must(200, "GET", path, s.OperatorKey, "")
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("GET %s took %v", path, took)
		}
	}
	if a := s.Must(200, "GET", fmt.Sprint("/orgs/o", n-1), s.OperatorKey, ""); a.String("parent_id") != fmt.Sprint("o", (n-2)/8) {
		t.Errorf("imported: %s", a.Body)
	}
}
