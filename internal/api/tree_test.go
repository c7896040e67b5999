package api_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/usage"
)

// plant creates organizations from lines "id parent": a parent comes before
// its children, and roots have none.
func plant(s *testkit.Server, lines ...string) {
	rows := "id,parent_id,name\n"
	for _, l := range lines {
		id, parent, _ := strings.Cut(l, " ")
		rows += id + "," + parent + "," + strings.ToUpper(id[:1]) + id[1:] + "\n"
	}
	s.Must(200, "POST", "/orgs/import", s.OperatorKey, rows, "Content-Type", "text/csv")
}

// ids returns the ids of a list of organizations, all pages of it.
func ids(t *testing.T, s *testkit.Server, path, key string) string {
	t.Helper()
	var out []string
	for path != "" {
		a := s.Must(200, "GET", path, key, "")
		list, _ := a.JSON().([]any)
		for _, o := range list {
			id, _ := o.(map[string]any)["id"].(string)
			out = append(out, id)
		}
		path = testkit.NextPage(a)
	}
	return strings.Join(out, " ")
}

// chain returns lines for plant: prefix0 below parent, prefix1 below it, and
// so on.
func chain(prefix, parent string, n int) []string {
	var lines []string
	for i := range n {
		id := fmt.Sprint(prefix, i)
		lines = append(lines, id+" "+parent)
		parent = id
	}
	return lines
}

// A tree has at most 32 levels below its root, however it gets them, and
// users hold no children.
func TestDepthAndTypes(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		plant(s, append(chain("a", "", 32), chain("b", "a0", 3)...)...) // a31 has depth 31
		if d := s.Must(201, "POST", "/orgs/a31/children", op, `{"id":"a32","name":"Deepest"}`).JSON("depth"); d != 32.0 {
			t.Errorf("depth %v", d)
		}
		for _, call := range [][3]string{
			{"/orgs/a32/children", `{"name":"33"}`, ""},
			{"/orgs", `{"name":"33","parent_id":"a32"}`, ""},
			{"/orgs/b0/move", `{"parent_id":"a30"}`, ""}, // b2 would have depth 33
			{"/orgs/b0/move?dry_run=true", `{"parent_id":"a30"}`, ""},
		} {
			a := s.Must(409, "POST", call[0], op, call[1])
			if a.String("code") != "depth_exceeded" || a.String("fix") == "" {
				t.Errorf("POST %s: %s", call[0], a.Body)
			}
		}
		a := s.Must(400, "POST", "/orgs/import", op, "id,parent_id,name\nx,a31,X\ny,x,Y\n", "Content-Type", "text/csv")
		if !strings.Contains(string(a.Body), `"line":3`) || strings.Contains(string(a.Body), `"line":2`) {
			t.Errorf("import: %s", a.Body)
		}
		// What is deleted counts too: it could not be restored otherwise.
		s.Must(200, "DELETE", "/orgs/b2", op, "")
		s.Must(409, "POST", "/orgs/b0/move", op, `{"parent_id":"a30"}`)
		s.Must(200, "POST", "/orgs/b0/move", op, `{"parent_id":"a29"}`)
		if a := s.Must(200, "POST", "/orgs/b2/restore", op, ""); a.JSON("depth") != 32.0 {
			t.Errorf("restored: %s", a.Body)
		}

		s.Must(201, "POST", "/orgs/a0/children", op, `{"id":"u","name":"User","type":"user"}`)
		s.Must(201, "POST", "/orgs/a0/children", op, `{"id":"g","name":"Group","type":"group"}`)
		s.Must(201, "POST", "/orgs/g/children", op, `{"id":"g1","name":"Below a group","type":"organization"}`)
		s.Must(409, "POST", "/orgs/u/children", op, `{"name":"x"}`)
		s.Must(409, "POST", "/orgs", op, `{"name":"x","parent_id":"u"}`)
		s.Must(409, "POST", "/orgs/g/move", op, `{"parent_id":"u"}`)
		s.Must(400, "POST", "/orgs/import", op, "id,parent_id,name\nx,u,X\n", "Content-Type", "text/csv")
		s.Must(400, "POST", "/orgs/import", op, "id,parent_id,name,type\nv,a0,V,user\nw,v,W,\n", "Content-Type", "text/csv")
		s.Must(400, "POST", "/orgs/g/children", op, `{"name":"x","type":"team"}`)
		s.Must(400, "PATCH", "/orgs/u", op, `{"type":"group"}`)
	})
}

// A move takes the whole subtree along, and only to where it may be.
func TestMoves(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		plant(s, "r", "a r", "b r", "x a", "y x", "z y", "other", "o1 other")
		for _, tt := range []struct{ id, to, code string }{
			{"a", "a", "move_invalid"}, {"a", "z", "move_invalid"}, {"a", "o1", "move_invalid"}, {"r", "other", "move_invalid"}, {"r", "a", "move_invalid"},
		} {
			for _, query := range []string{"", "?dry_run=true"} {
				if a := s.Must(409, "POST", "/orgs/"+tt.id+"/move"+query, op, `{"parent_id":"`+tt.to+`"}`); a.String("code") != tt.code {
					t.Errorf("%s to %s: %s", tt.id, tt.to, a.Body)
				}
			}
		}
		s.Must(404, "POST", "/orgs/a/move", op, `{"parent_id":"nowhere"}`)
		s.Must(400, "POST", "/orgs/a/move", op, `{}`)
		s.Must(400, "POST", "/orgs/a/move", op, `{"parent_id":null}`)

		// A preview says what a move would change, and changes nothing.
		s.Must(200, "PUT", "/orgs/a/customizations", op, `{"customizations":{"color":"red","size":1}}`)
		s.Must(200, "PUT", "/orgs/b/customizations", op, `{"customizations":{"color":"blue"}}`)
		_, ka := s.NewKey("a", "")
		_, kb := s.NewKey("b", "")
		s.NewKey("b", `"reach":"self"`)
		s.NewKey("x", "")
		before := s.Must(200, "GET", "/orgs/x", op, "")
		p := s.Must(200, "POST", "/orgs/x/move?dry_run=true", op, `{"parent_id":"b"}`)
		for _, want := range []string{`"old":["r","a","x"]`, `"new":["r","b","x"]`, `"organizations":3`, `"gain":[{"id":"` + kb + `","org_id":"b","name":"test"}]`,
			`"lose":[{"id":"` + ka + `","org_id":"a","name":"test"}]`, `"/color"`, `"/size"`, `"red"`, `"blue"`} {
			if !strings.Contains(string(p.Body), want) {
				t.Errorf("the preview does not say %s: %s", want, p.Body)
			}
		}
		if after := s.Must(200, "GET", "/orgs/x", op, ""); string(after.Body) != string(before.Body) {
			t.Errorf("the preview changed %s", after.Body)
		}
		a := s.Must(200, "POST", "/orgs/x/move", op, `{"parent_id":"b"}`)
		if got := strings.Join(texts(a.JSON("path")), "/"); got != "r/b/x" || a.String("parent_id") != "b" {
			t.Errorf("moved: %s", a.Body)
		}
		if got := strings.Join(texts(s.Must(200, "GET", "/orgs/z", op, "").JSON("path")), "/"); got != "r/b/x/y/z" {
			t.Errorf("z is at %s", got)
		}
		if got := s.Must(200, "GET", "/orgs/y/customizations", op, "").String("effective", "color"); got != "blue" {
			t.Errorf("y has the color %s", got)
		}
		if got := ids(t, s, "/orgs/a/descendants", op); got != "" {
			t.Errorf("below a: %s", got)
		}
		// To where it is already: nothing happens.
		n := len(s.Must(200, "GET", "/orgs/x/children_audit?scope=self", op, "").JSON().([]any))
		if a := s.Must(200, "POST", "/orgs/x/move", op, `{"parent_id":"b"}`); a.Header.Get("Orgd-Audit-Receipt") != "" {
			t.Errorf("a move to where it is: %v", a.Header)
		}
		if again := len(s.Must(200, "GET", "/orgs/x/children_audit?scope=self", op, "").JSON().([]any)); again != n {
			t.Errorf("a move to where it is wrote an entry")
		}

		// A key needs to reach the old and the new parent.
		atB, _ := s.NewKey("b", `"permissions":["admin"]`)
		atRoot, _ := s.NewKey("r", `"permissions":["admin"]`)
		s.Must(404, "POST", "/orgs/x/move", atB, `{"parent_id":"a"}`)
		s.Must(403, "POST", "/orgs/b/move", atB, `{"parent_id":"x"}`)
		s.Must(200, "POST", "/orgs/y/move", atB, `{"parent_id":"b"}`)
		s.Must(200, "POST", "/orgs/x/move", atRoot, `{"parent_id":"a"}`)
		s.Must(404, "GET", "/orgs/x", atB, "")
	})
}

// Two moves that together would make a cycle: one wins, and the tree stays a
// tree.
func TestCrossingMoves(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		plant(s, "r", "a r", "b r", "a1 a", "b1 b")
		for range 25 {
			answers := together(t, 2, func(i int) (*testkit.Answer, error) {
				if i == 0 {
					return s.TryDo("POST", "/orgs/a/move", op, `{"parent_id":"b1"}`)
				}
				return s.TryDo("POST", "/orgs/b/move", op, `{"parent_id":"a1"}`)
			})
			if n := statuses(answers); n[200] != 1 || n[409] != 1 {
				t.Fatalf("two crossing moves: %v %s %s", n, answers[0].Body, answers[1].Body)
			}
			if got := len(strings.Fields(ids(t, s, "/orgs/r/descendants", op))); got != 4 {
				t.Fatalf("%d organizations below the root", got)
			}
			s.Must(200, "POST", "/orgs/a/move", op, `{"parent_id":"r"}`)
			s.Must(200, "POST", "/orgs/b/move", op, `{"parent_id":"r"}`)
		}
	})
}

// Whatever is created while its parent is being deleted is deleted with it or
// not created: no orphan, ever.
func TestDeleteWhileChildrenAreCreated(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		plant(s, "r", "elsewhere r", "m elsewhere")
		for round := range 8 {
			p := fmt.Sprint("p", round)
			plant(s, p+" r", p+"-a "+p, p+"-b "+p+"-a")
			var deleted atomic.Bool
			var created atomic.Int64
			var wg sync.WaitGroup
			for w := range 4 {
				wg.Go(func() {
					for i := 0; ; i++ {
						over := deleted.Load()
						var a *testkit.Answer
						var err error
						switch w {
						case 0:
							a, err = s.TryDo("POST", "/orgs/"+p+"/children", op, `{"name":"x"}`)
						case 1:
							a, err = s.TryDo("POST", "/orgs/"+p+"-b/children", op, `{"name":"x"}`)
						case 2:
							a, err = s.TryDo("POST", "/orgs/import?parent_id="+p+"-a", op, fmt.Sprintf("id,name\n%s-i%d,I\n", p, i), "Content-Type", "text/csv")
						default:
							a, err = s.TryDo("POST", "/orgs/m/move", op, fmt.Sprintf(`{"parent_id":"%s"}`, []string{p + "-b", "elsewhere"}[i%2]))
						}
						if err != nil {
							t.Error(err)
							return
						}
						switch {
						case a.Status == 404:
							return
						case a.Status < 300 && !over:
							created.Add(1)
						case a.Status < 300 && w == 3 && i%2 == 1:
							// it had got away before
						default:
							t.Errorf("%d after the delete %v: %s", a.Status, over, a.Body)
							return
						}
					}
				})
			}
			for wait := time.Now(); created.Load() < 3 && time.Since(wait) < 10*time.Second; {
				time.Sleep(time.Millisecond)
			}
			s.Must(200, "DELETE", "/orgs/"+p+"?cascade=true", op, "")
			deleted.Store(true)
			wg.Wait()
			if created.Load() == 0 {
				t.Error("nothing was created before the delete")
			}
			if got := ids(t, s, "/orgs/r/descendants", op); strings.Contains(got, p) || strings.Contains(got, "org_") {
				t.Errorf("after the delete: %s", got)
			}
			testkit.CheckSystem(t, s.Store)
			if a := s.Do("GET", "/orgs/m", op, ""); a.Status == 404 {
				s.Must(200, "POST", "/orgs/"+p+"/restore", op, "")
				s.Must(200, "POST", "/orgs/m/move", op, `{"parent_id":"elsewhere"}`)
				s.Must(200, "DELETE", "/orgs/"+p+"?cascade=true", op, "")
			}
		}
	})
}

// A delete is previewed, counted and undone exactly.
func TestDeleteAndRestore(t *testing.T) {
	onBothWith(t, func(t *testing.T, s *testkit.Server, c *clock) {
		op := s.OperatorKey
		plant(s, "r", "a r", "b a", "c b", "d b", "e a", "stay r")
		inC, _ := s.NewKey("c", `"permissions":["admin"]`)
		s.NewKey("a", "")
		_, gone := s.NewKey("a", "")
		s.Must(200, "DELETE", "/orgs/a/api_keys/"+gone, op, "")
		s.Must(200, "PUT", "/orgs/c/tags/blue", op, "")
		s.Must(200, "PUT", "/orgs/b/customizations", op, `{"customizations":{"x":""},"locked":["/x"]}`)
		key, _ := s.NewKey("r", `"permissions":["admin"]`)

		a := s.Must(409, "DELETE", "/orgs/a", key, "")
		if a.String("code") != "has_descendants" || a.JSON("organizations") != 5.0 || a.JSON("api_keys") != 2.0 || !strings.Contains(a.String("fix"), "?cascade=true") {
			t.Errorf("delete with descendants: %s", a.Body)
		}
		before := s.Must(200, "GET", "/orgs/a/descendants", op, "")
		for _, query := range []string{"?dry_run=true", "?dry_run=true&cascade=true"} {
			a = s.Must(200, "DELETE", "/orgs/a"+query, key, "")
			if a.JSON("dry_run") != true || a.JSON("organizations") != 5.0 || a.JSON("api_keys") != 2.0 || a.JSON("restorable_until") != nil || a.String("message") == "Organization deleted successfully" {
				t.Errorf("dry run: %s", a.Body)
			}
		}
		if after := s.Must(200, "GET", "/orgs/a/descendants", op, ""); string(after.Body) != string(before.Body) {
			t.Errorf("the dry run changed %s", after.Body)
		}

		// A delete inside, then one around it.
		a = s.Must(200, "DELETE", "/orgs/d", key, "")
		if a.String("message") != "Organization deleted successfully" || a.JSON("organizations") != 1.0 || a.JSON("api_keys") != 0.0 {
			t.Errorf("delete of a leaf: %s", a.Body)
		}
		a = s.Must(200, "DELETE", "/orgs/b?cascade=true", key, "")
		until, err := time.Parse(time.RFC3339, a.String("restorable_until"))
		if a.String("message") != "Organization deleted successfully" || a.JSON("organizations") != 2.0 || a.JSON("api_keys") != 1.0 || err != nil ||
			until.Sub(c.now()).Round(time.Minute) != 30*24*time.Hour {
			t.Errorf("delete: %s", a.Body)
		}
		a = s.Must(200, "DELETE", "/orgs/a?cascade=true", key, "")
		if a.JSON("organizations") != 2.0 {
			t.Errorf("delete around: %s", a.Body)
		}
		for _, id := range []string{"a", "b", "c", "d", "e"} {
			for _, call := range []string{"", "/children", "/ancestors", "/api_keys", "/tags", "/access_log", "/children_audit", "/consumption", "/customizations"} {
				s.Must(404, "GET", "/orgs/"+id+call, op, "")
			}
			s.Must(404, "POST", "/orgs/"+id+"/children", op, `{"name":"x"}`)
			s.Must(409, "POST", "/orgs", op, `{"id":"`+id+`","name":"Taken until the purge"}`)
		}
		s.Must(401, "GET", "/orgs/c", inC, "")
		if got := ids(t, s, "/orgs/r/descendants", op) + "|" + ids(t, s, "/orgs?name=b", op) + "|" + ids(t, s, "/orgs?tag=blue", op); got != "stay||" {
			t.Errorf("lists after the delete: %s", got)
		}

		// Restores go from the outside in and bring back what each delete took.
		for _, id := range []string{"b", "c", "d", "e"} {
			a := s.Must(409, "POST", "/orgs/"+id+"/restore", key, "")
			if a.String("code") != "parent_deleted" || a.String("fix") == "" {
				t.Errorf("restore of %s under a deleted parent: %s", id, a.Body)
			}
		}
		s.Must(200, "POST", "/orgs/a/restore", key, "")
		if got := ids(t, s, "/orgs/r/descendants", op); got != "a e stay" {
			t.Errorf("after the first restore: %s", got)
		}
		s.Must(401, "GET", "/orgs/c", inC, "")
		s.Must(200, "POST", "/orgs/b/restore", key, "")
		if got := ids(t, s, "/orgs/r/descendants", op); got != "a b c e stay" {
			t.Errorf("after the second restore: %s", got)
		}
		if a := s.Must(200, "GET", "/orgs/c", inC, ""); strings.Join(texts(a.JSON("tags")), " ") != "blue" {
			t.Errorf("restored: %s", a.Body)
		}
		if got := ids(t, s, "/orgs?tag=blue", op); got != "c" {
			t.Errorf("with the tag after the restore: %s", got)
		}
		if a := s.Must(200, "GET", "/orgs/c/customizations", op, ""); a.JSON("effective", "x") != "" {
			t.Errorf("customizations after the restore: %s", a.Body)
		}
		s.Must(200, "POST", "/orgs/d/restore", key, "")
		if a := s.Must(409, "POST", "/orgs/d/restore", key, ""); a.String("code") != "conflict" {
			t.Errorf("restored twice: %s", a.Body)
		}
		s.Must(404, "POST", "/orgs/nobody/restore", key, "")

		// A root is restored by the operator alone; its own keys ended with it.
		s.Must(200, "DELETE", "/orgs/r?cascade=true", op, "")
		s.Must(401, "POST", "/orgs/r/restore", key, "")
		s.Must(200, "POST", "/orgs/r/restore", op, "")
		s.Must(200, "GET", "/orgs/d", key, "")
	})
}

// After the restore window a deleted organization is gone, its id is free, and
// whatever takes the id starts anew.
func TestPurge(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			c := &clock{}
			s := testkit.Start(t, engine, c.use, func(sc *server.Config) { sc.RestoreWindow = time.Hour })
			op := s.OperatorKey
			month := string(usage.MonthOf(c.now())) // the next may have begun by the end
			plant(s, "r", "a r", "b a", "old")
			secret, keyID := s.NewKey("b", `"permissions":["admin"]`)
			s.Must(200, "GET", "/orgs/b", secret, "")
			s.Must(200, "PATCH", "/orgs/old", op, `{"name":"Before the purge"}`)
			ofOld, _ := s.NewKey("old", "")
			s.Must(200, "GET", "/orgs/old", ofOld, "")
			s.Must(200, "PUT", "/orgs/old/customization_schema", op, `{"type":"object","required":["x"]}`)
			s.Must(200, "DELETE", "/orgs/b", op, "")
			c.forward(59 * time.Minute)
			s.Must(200, "DELETE", "/orgs/a", op, "")
			s.Must(200, "DELETE", "/orgs/old", op, "")
			purge := func(want int64) {
				t.Helper()
				if err := s.Recorder.Drain(t.Context()); err != nil {
					t.Fatal(err)
				}
				if n, err := s.Tree.PurgeExpired(t.Context()); err != nil || n != want {
					t.Errorf("%d organizations were purged, want %d: %v", n, want, err)
				}
			}
			purge(0)
			s.Must(200, "POST", "/orgs/old/restore", op, "")
			s.Must(200, "DELETE", "/orgs/old", op, "")
			c.forward(2 * time.Minute)
			purge(1) // b, not a, which was deleted later
			s.Must(404, "POST", "/orgs/b/restore", op, "")
			c.forward(time.Hour)
			// Past the window nothing comes back, purged or not.
			s.Must(404, "POST", "/orgs/a/restore", op, "")
			purge(2)
			for _, id := range []string{"a", "b", "old"} {
				s.Must(404, "GET", "/orgs/"+id, op, "")
				s.Must(404, "POST", "/orgs/"+id+"/restore", op, "")
			}
			// The trail keeps what was; the ids are free.
			if a := s.Must(200, "GET", "/orgs/r/children_audit?org=b", op, ""); !strings.Contains(string(a.Body), "organization.purged") || !strings.Contains(string(a.Body), "api_key.created") {
				t.Errorf("the trail after the purge: %s", a.Body)
			}
			plant(s, "b r", "old")
			s.Must(401, "GET", "/orgs/b", secret, "")
			s.Must(404, "GET", "/orgs/b/api_keys/"+keyID, op, "")
			if a := s.Must(200, "GET", "/orgs/b/access_log", op, ""); strings.Contains(string(a.Body), "GET_ORG") {
				t.Errorf("the new b has the old b's log: %s", a.Body)
			}
			// A new root with an old id has its own log and none of the old data.
			a := s.Must(200, "GET", "/orgs/old/children_audit", op, "")
			if entries := a.JSON().([]any); len(entries) != 1 || strings.Contains(string(a.Body), "Before the purge") {
				t.Errorf("the new root's trail: %s", a.Body)
			}
			s.Must(404, "GET", "/orgs/old/customization_schema", op, "")
			s.Must(200, "PUT", "/orgs/old/customizations", op, `{"customizations":{}}`)
			// What b consumed stays with the root that it was below; the new root
			// has consumed nothing.
			if a := s.Must(200, "GET", "/orgs/r/consumption?month="+month, op, ""); a.JSON("meters", "api_calls", "total") != 1.0 {
				t.Errorf("consumption of r: %s", a.Body)
			}
			if a := s.Must(200, "GET", "/orgs/old/consumption", op, ""); a.JSON("meters", "api_calls", "total") != 0.0 {
				t.Errorf("consumption of the new root: %s", a.Body)
			}
		})
	}
}
