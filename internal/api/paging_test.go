package api_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/orgd/orgd/internal/testkit"
)

// pages follows the links of a list to its end and returns what key says of
// each element.
func pages(t *testing.T, s *testkit.Server, path, secret string) []string {
	t.Helper()
	var ids []string
	for n := 0; path != ""; n++ {
		if n > 100 {
			t.Fatalf("the list does not end: %v", ids)
		}
		a := s.Must(200, "GET", path, secret, "")
		list, _ := a.JSON().([]any)
		for _, e := range list {
			ids = append(ids, e.(map[string]any)["id"].(string))
		}
		path = testkit.NextPage(a)
	}
	return ids
}

// Every list of organizations, in each of its orders, is whole when its links
// are followed, on both databases.
func TestListsOfOrganizationsPage(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s := testkit.Start(t, engine)
			rows := "id,parent_id,name,external_id,tags\nroot,,Root,,\n"
			var want []string
			for i := range 23 {
				id := fmt.Sprintf("n%02d", i)
				parent := "root"
				if i%3 == 2 {
					parent = fmt.Sprintf("n%02d", i-1)
				}
				rows += fmt.Sprintf("%s,%s,Node %d,same,red\n", id, parent, i%4)
				want = append(want, id)
			}
			s.Must(200, "POST", "/orgs/import", s.OperatorKey, rows, "Content-Type", "text/csv")
			secret, _ := s.NewKey("root", `"permissions":["read"]`)
			for _, query := range []string{
				"/orgs/root/descendants?limit=4", "/orgs?limit=5&name=node", "/orgs?limit=3&tag=red", "/orgs?limit=7&external_id=same",
			} {
				got := pages(t, s, query, secret)
				if slices.Sort(got); !slices.Equal(got, want) {
					t.Errorf("%s gave %v", query, got)
				}
			}
			got := pages(t, s, "/orgs?limit=6", s.OperatorKey)
			if slices.Sort(got); len(got) != 24 || len(slices.Compact(got)) != 24 {
				t.Errorf("all organizations: %v", got)
			}
		})
	}
}
