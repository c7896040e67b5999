package api_test

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// Every list is an array in pages; the next page is in the Link header.
func TestPages(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		lines := []string{"r", "p r"}
		for i := range 25 {
			lines = append(lines, fmt.Sprintf("c%02d p", i))
		}
		plant(s, lines...)
		for i := range 25 {
			s.Must(200, "PUT", fmt.Sprintf("/orgs/c%02d/tags/even%d", i, i%2), op, "")
		}
		for range 7 {
			s.NewKey("p", "")
		}
		key, _ := s.NewKey("r", `"permissions":["admin"]`)
		if err := s.Recorder.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			path string
			rows int
		}{
			{"/orgs/p/children", 25}, {"/orgs/r/descendants", 26}, {"/orgs?name=c", 25}, {"/orgs?tag=even0", 13}, {"/orgs", 27}, {"/orgs/p/api_keys", 7},
			{"/orgs/r/children_audit", 27 + 25 + 7 + 1}, {"/orgs/r/children_audit?scope=children", 1 + 7}, {"/orgs/p/access_log?action=CREATE_KEY", 7}, {"/orgs/r/access_log?scope=subtree&action=PUT_TAG", 25},
			{"/orgs/r/descendants?depth=1", 1}, {"/orgs/r/descendants?depth=2", 26}, {"/orgs?roots=true", 1},
		} {
			whole := s.Must(200, "GET", with(tt.path, "limit=1000"), key, "")
			all, _ := whole.JSON().([]any)
			if len(all) != tt.rows || whole.Header.Get("Link") != "" {
				t.Errorf("%s has %d rows, want %d; Link %s", tt.path, len(all), tt.rows, whole.Header.Get("Link"))
			}
			for _, limit := range []int{1, 4, tt.rows} {
				var seen []string
				pages := 0
				for path := with(tt.path, fmt.Sprint("limit=", limit)); path != ""; pages++ {
					a := s.Must(200, "GET", path, key, "")
					rows, _ := a.JSON().([]any)
					if len(rows) > limit {
						t.Fatalf("%s gave %d rows", path, len(rows))
					}
					for _, row := range rows {
						id, _ := row.(map[string]any)["id"].(string)
						seen = append(seen, id)
					}
					path = testkit.NextPage(a)
				}
				if want := (tt.rows + limit - 1) / limit; len(seen) != tt.rows || pages != want && tt.path != "/orgs?roots=true" {
					t.Errorf("%s in pages of %d: %d rows on %d pages", tt.path, limit, len(seen), pages)
				}
				for i := range min(len(seen), len(all)) {
					if seen[i] != all[i].(map[string]any)["id"] {
						t.Errorf("%s in pages of %d: row %d is %s", tt.path, limit, i, seen[i])
						break
					}
				}
			}
			for _, bad := range []string{"0", "-1", "1001", "1.5", "x", "", "9999999999999999999999"} {
				s.Must(400, "GET", with(tt.path, "limit="+bad), key, "")
			}
		}
		if got := len(s.Must(200, "GET", "/orgs/r/children_audit", key, "").JSON().([]any)); got != 50 {
			t.Errorf("without a limit a page has %d rows", got)
		}
	})
}

// With a limit CSV and NDJSON come in pages too, the same as those of JSON;
// without one they hold the whole list.
func TestPagesInOtherFormats(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		lines := []string{"r"}
		for i := range 7 {
			lines = append(lines, fmt.Sprintf("c%d r", i))
		}
		plant(s, lines...)
		for i := range 7 {
			s.Must(200, "POST", "/orgs/r/consumption/adjustments", op, fmt.Sprintf(`{"meter":"api_calls","quantity":%d,"reason":"test"}`, i+1))
			s.Must(200, "PUT", fmt.Sprintf("/orgs/r/tags/t%d", i), op, "")
		}
		for _, path := range []string{"/orgs/r/access_log?action=PUT_TAG", "/orgs/r/children_audit?action=organization.updated", "/orgs/r/consumption/children?sort=org_id",
			"/orgs/r/consumption/adjustments"} {
			for _, f := range []struct{ name, accept string }{{"csv", "text/csv"}, {"ndjson", "application/x-ndjson"}} {
				whole := s.Must(200, "GET", with(path, "format="+f.name), op, "")
				list := slices.Collect(strings.Lines(string(whole.Body)))
				columns := ""
				if f.name == "csv" {
					columns, list = list[0], list[1:]
				}
				if len(list) != 7 || whole.Header.Get("Link") != "" {
					t.Errorf("%s as %s: %d rows, Link: %s", path, f.name, len(list), whole.Header.Get("Link"))
				}
				for _, limit := range []int{1, 3, 7, 1000} {
					// The format is in the link, or in the header of each request.
					for parameter, accept := range map[string]string{"format=" + f.name + "&limit=": "*/*", "limit=": f.accept} {
						all, pages := columns, 0
						for next := with(path, fmt.Sprint(parameter, limit)); next != ""; pages++ {
							a := s.Must(200, "GET", next, op, "", "Accept", accept)
							page, ok := strings.CutPrefix(string(a.Body), columns)
							if n := strings.Count(page, "\n"); !ok || n > limit {
								t.Fatalf("%s as %s in pages of %d gave %d rows: %s", path, f.name, limit, n, a.Body)
							}
							all += page
							next = testkit.NextPage(a)
						}
						if want := (7 + limit - 1) / limit; pages != want || all != string(whole.Body) {
							t.Errorf("%s as %s in pages of %d: %d pages:\n%swant\n%s", path, f.name, limit, pages, all, whole.Body)
						}
					}
				}
				// A cursor goes on where the page of another format ended, and is one page as well.
				first := testkit.NextPage(s.Must(200, "GET", with(path, "limit=2"), op, ""))
				u, err := url.Parse(first)
				if err != nil {
					t.Fatal(err)
				}
				a := s.Must(200, "GET", with(path, "format="+f.name+"&cursor="+u.Query().Get("cursor")), op, "")
				if string(a.Body) != columns+strings.Join(list[2:], "") || a.Header.Get("Link") != "" {
					t.Errorf("%s as %s after two rows: Link: %s\n%s", path, f.name, a.Header.Get("Link"), a.Body)
				}
				s.Must(400, "GET", with(path, "format="+f.name+"&cursor=x"), op, "")
				s.Must(400, "GET", with(path, "format="+f.name+"&limit=0"), op, "")
			}
		}
	})
}

func with(path, parameter string) string {
	if strings.Contains(path, "?") {
		return path + "&" + parameter
	}
	return path + "?" + parameter
}

// A cursor belongs to its query and to its organization, and cannot be altered.
func TestCursorsAreBound(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	op := s.OperatorKey
	plant(s, "r", "a r", "a1 a", "a2 a", "a3 a", "b r", "b1 b", "b2 b")
	next := testkit.NextPage(s.Must(200, "GET", "/orgs/a/children?limit=1", op, ""))
	u, err := url.Parse(next)
	if err != nil || u.Path != "/orgs/a/children" || u.Query().Get("limit") != "1" {
		t.Fatalf("Link to %s: %v", next, err)
	}
	cursor := u.Query().Get("cursor")
	s.Must(200, "GET", "/orgs/a/children?limit=1000&cursor="+cursor, op, "") // the page size may change
	for _, path := range []string{"/orgs/b/children?", "/orgs/a/descendants?", "/orgs/a/children_audit?", "/orgs/r/children?", "/orgs?", "/orgs?name=a&"} {
		if a := s.Must(400, "GET", path+"limit=1&cursor="+cursor, op, ""); a.String("code") != "invalid_cursor" || a.String("fix") == "" {
			t.Errorf("GET %s: %s", path, a.Body)
		}
	}
	named := testkit.NextPage(s.Must(200, "GET", "/orgs?name=a&limit=1", op, ""))
	s.Must(400, "GET", strings.Replace(named, "name=a", "name=b", 1), op, "")
	s.Must(400, "GET", strings.Replace(named, "name=a", "name=a&tag=x", 1), op, "")
	// No single character can be changed, left out or added.
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	for i := range len(cursor) {
		other := alphabet[(strings.IndexByte(alphabet, cursor[i])+1)%len(alphabet)]
		for _, altered := range []string{cursor[:i] + string(other) + cursor[i+1:], cursor[:i] + cursor[i+1:], cursor[:i] + "A" + cursor[i:]} {
			if altered != cursor {
				s.Must(400, "GET", "/orgs/a/children?limit=1&cursor="+altered, op, "")
			}
		}
	}
	for _, bad := range []string{"x", "%00", "e30", "WyJhMSJd", cursor + "=", strings.Repeat("A", 5000)} {
		s.Must(400, "GET", "/orgs/a/children?limit=1&cursor="+bad, op, "")
	}
}

// A cursor of a search belongs to the organization whose key made it, and to
// all keys of that; those of the operator are the operator's.
func TestCursorsOfSearchesAreBound(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		plant(s, "r", "a r", "a1 a", "other")
		inR, _ := s.NewKey("r", `"permissions":["admin"]`)
		alsoInR, _ := s.NewKey("r", "")
		inA, _ := s.NewKey("a", "")
		callers := []struct{ org, key string }{{"none", s.OperatorKey}, {"r", inR}, {"r", alsoInR}, {"a", inA}}
		for _, query := range []string{"/orgs?limit=1", "/orgs?name=a&limit=1"} {
			for _, made := range callers {
				next := testkit.NextPage(s.Must(200, "GET", query, made.key, ""))
				for _, by := range callers {
					a := s.Do("GET", next, by.key, "")
					if by.org == made.org && a.Status != 200 || by.org != made.org && (a.Status != 400 || a.String("code") != "invalid_cursor") {
						t.Errorf("a cursor made for %s, used for %s: %d %s", made.org, by.org, a.Status, a.Body)
					}
				}
			}
		}
	})
}

// While organizations come, go and move, a reader of pages gets every row that
// was there throughout, once.
func TestPagesWhileTheTreeChanges(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		lines := []string{"r", "p r", "q p", "side r"}
		var steady []string
		for i := range 30 {
			lines = append(lines, fmt.Sprintf("s%02d p", i), fmt.Sprintf("s%02dx s%02d", i, i), fmt.Sprintf("go%02d p", i), fmt.Sprintf("mv%02d q", i), fmt.Sprintf("mv%02dy mv%02d", i, i))
			steady = append(steady, fmt.Sprintf("s%02d", i))
		}
		plant(s, lines...)
		var over atomic.Bool
		var wg sync.WaitGroup
		var done atomic.Int64
		wg.Go(func() { // moves in and out of the list, deletes and creates
			for i := 0; !over.Load(); i++ {
				n := i % 30
				to := []string{"side", "q", "p"}[i%3]
				for _, call := range [][4]string{
					{"POST", fmt.Sprintf("/orgs/mv%02d/move", n), `{"parent_id":"` + to + `"}`},
					{"DELETE", fmt.Sprintf("/orgs/go%02d", n), ""},
					{"POST", "/orgs/p/children", fmt.Sprintf(`{"id":"a%d","name":"S0"}`, i)},
					{"POST", "/orgs/p/children", fmt.Sprintf(`{"id":"s%02d-%d","name":"S"}`, n, i)},
				} {
					if a, err := s.TryDo(call[0], call[1], op, call[2]); err != nil || a.Status >= 500 {
						t.Errorf("%s %s: %v %v", call[0], call[1], err, a)
						return
					}
				}
				done.Add(1)
			}
		})
		for wait := time.Now(); done.Load() < 3 && time.Since(wait) < 10*time.Second; {
			time.Sleep(time.Millisecond)
		}
		for _, list := range []string{"/orgs/p/children?limit=7", "/orgs/r/descendants?limit=7", "/orgs?name=s&limit=7", "/orgs?limit=11"} {
			for range 3 {
				count := map[string]int{}
				for path := list; path != ""; {
					a := s.Must(200, "GET", path, op, "")
					for _, o := range a.JSON().([]any) {
						id := o.(map[string]any)["id"].(string)
						count[id]++
					}
					path = testkit.NextPage(a)
				}
				for _, id := range steady {
					if count[id] != 1 {
						t.Errorf("%s: %s was there throughout and was listed %d times", list, id, count[id])
					}
					if list != "/orgs/p/children?limit=7" && count[id+"x"] != 1 {
						t.Errorf("%s: %sx was there throughout and was listed %d times", list, id, count[id+"x"])
					}
				}
			}
		}
		over.Store(true)
		wg.Wait()
		if done.Load() < 4 {
			t.Error("the tree did not change")
		}
	})
}

// Organizations are found by the start of their name in any case and script,
// by tag and by external id, and only where the key reaches.
func TestSearch(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		rows := "id,parent_id,name,tags,external_id\n" +
			"r,,Root,,\na,r,Straße,x;y,ext-1\nb,r,STRASSE,x,ext-2\nc,a,Ärger,y,ext-1\nd,a,ärgern,,\ne,r,100%,,\nf,r,100_,,\ng,r,東京支社,,\nother,,Ärgernis,x,ext-1\n"
		s.Must(200, "POST", "/orgs/import", op, rows, "Content-Type", "text/csv; charset=utf-8")
		inA, _ := s.NewKey("a", "")
		only, _ := s.NewKey("a", `"reach":"self"`)
		q := url.QueryEscape
		for _, tt := range []struct{ query, operator, below, self string }{
			{"name=" + q("ÄRGER"), "c d other", "c d", ""},
			{"name=" + q("ärgern"), "d other", "d", ""},
			{"name=straSS", "b", "", ""},
			{"name=" + q("STRAßE"), "a", "a", "a"},
			{"name=" + q("100%"), "e", "", ""},
			{"name=" + q("100_"), "f", "", ""},
			{"name=" + q("東京"), "g", "", ""},
			{"tag=x", "a b other", "a", "a"},
			{"tag=X", "", "", ""},
			{"external_id=ext-1", "a c other", "a c", "a"},
			{"external_id=EXT-1", "", "", ""},
			{"tag=x&name=str", "a b", "a", "a"},
			{"tag=y&external_id=ext-1", "a c", "a c", "a"},
			{"tag=y&external_id=ext-1&name=" + q("ä"), "c", "c", ""},
			{"roots=true", "other r", "", ""},
			{"roots=true&tag=x", "other", "", ""},
			{"name=" + q("'; DROP TABLE orgs; --"), "", "", ""},
		} {
			for key, want := range map[string]string{op: tt.operator, inA: tt.below, only: tt.self} {
				if got := sorted(ids(t, s, "/orgs?"+tt.query+"&limit=1", key)); got != want {
					t.Errorf("search for %s: %q, want %q", tt.query, got, want)
				}
			}
		}
		s.Must(400, "GET", "/orgs?name="+strings.Repeat("a", 1025), op, "")
		// What is found follows what changes.
		s.Must(200, "PATCH", "/orgs/a", op, `{"name":"Allee","tags":["z"],"external_id":null}`)
		if got := ids(t, s, "/orgs?name="+q("straße"), op) + "|" + ids(t, s, "/orgs?tag=z", op) + "|" + sorted(ids(t, s, "/orgs?external_id=ext-1", op)) + "|" + ids(t, s, "/orgs?tag=y", op); got != "|a|c other|c" {
			t.Errorf("after a change: %s", got)
		}
	})
}

func sorted(list string) string {
	fields := strings.Fields(list)
	slices.Sort(fields)
	return strings.Join(fields, " ")
}
