package api_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// found returns the files below dir that contain the text, in upper or lower
// case.
func found(t testing.TB, dir, text string) []string {
	t.Helper()
	var names []string
	if err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if bytes.Contains(bytes.ToLower(b), []byte(strings.ToLower(text))) {
			names = append(names, fmt.Sprintf("%s (%d times)", filepath.Base(name), bytes.Count(bytes.ToLower(b), []byte(strings.ToLower(text)))))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return names
}

// Somebody who asks to be forgotten leaves no trace in the past of a tree, and
// in no file of the data directory, while the trail stays whole and what
// others did stays as it was.
func TestErasure(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			dir := t.TempDir()
			s := testkit.Start(t, engine, func(c *server.Config) { c.DataDir = dir })
			op := s.OperatorKey
			const john, other = "John.Doe@example.com", "jane.roe@example.org"
			s.Must(201, "POST", "/orgs", op, `{"id":"acme","name":"Acme"}`)
			s.Must(201, "POST", "/orgs", op, `{"id":"beta","name":"Beta"}`)
			s.Must(201, "POST", "/orgs/acme/children", op, `{"id":"eu","name":"EU","customizations":{"owner":{"mail":"John.Doe@example.com","tel":1}}}`)
			s.Must(201, "POST", "/orgs/acme/children", op, `{"id":"us","name":"US"}`)
			johns := s.Must(201, "POST", "/orgs/eu/api_keys", op, `{"name":"john.doe@example.com","permissions":["admin"]}`)
			janes := s.Must(201, "POST", "/orgs/acme/api_keys", op, `{"name":"jane.roe@example.org","permissions":["admin"]}`)

			s.Must(200, "POST", "/orgs/eu/consumption/adjustments", op, `{"meter":"api_calls","quantity":1,"reason":"Asked by John.Doe@example.com"}`)

			// Both work for a while, at the same time, so that their values are
			// mixed on the pages of the database.
			var working sync.WaitGroup
			for i, k := range []*testkit.Answer{johns, janes, johns, janes} {
				working.Go(func() {
					org := []string{"eu", "us"}[i%2]
					for n := range 60 {
						agent := fmt.Sprintf("Browser of %s %d %s", []string{"john.doe@example.com", other}[i%2], n, strings.Repeat("x", n*5))
						if _, err := s.TryDo("PATCH", "/orgs/"+org, k.String("secret"),
							fmt.Sprintf(`{"description":"%d %d","customizations":{"by":{"who":"<%s>","n":%d}}}`, i, n, []string{john, other}[i%2], n),
							"User-Agent", agent); err != nil {
							t.Error(err)
						}
						if _, err := s.TryDo("GET", "/orgs/"+org+"?mail="+john, k.String("secret"), "", "User-Agent", agent); err != nil {
							t.Error(err)
						}
					}
				})
			}
			working.Wait()
			if engine == "sqlite" && len(found(t, dir, john)) == 0 {
				t.Fatal("this test does not find what is in the files")
			}

			// What is in force is counted, not touched.
			erase := func(status int, key, query, subject string) *testkit.Answer {
				t.Helper()
				return s.Must(status, "POST", "/orgs/acme/audit_erasures"+query, key, `{"subject":"`+subject+`","basis":"Request 2026-118"}`)
			}
			before := len(s.Must(200, "GET", "/orgs/acme/children_audit?limit=1000", op, "").JSON().([]any))
			a := erase(200, op, "?dry_run=true", john)
			if n, _ := a.JSON("erased", "audit_values").(float64); n < 300 {
				t.Errorf("a dry run finds %s", a.Body)
			}
			if a.JSON("remaining", "organizations") != 1.0 || a.JSON("remaining", "api_keys") != 1.0 || a.Header.Get("Orgd-Audit-Receipt") != "" {
				t.Errorf("a dry run says %s", a.Body)
			}
			s.Must(200, "PUT", "/orgs/eu/customizations", op, `{"customizations":{}}`)
			s.Must(200, "DELETE", "/orgs/eu/api_keys/"+johns.String("id"), op, "")

			for _, bad := range []string{`{"subject":"jo","basis":"x"}`, `{"subject":"john.doe@example.com"}`,
				`{"subject":"john.doe@example.com","basis":"asked by john.doe@example.com"}`, `{"subject":5,"basis":"x"}`, `{"basis":"x"}`} {
				s.Must(400, "POST", "/orgs/acme/audit_erasures", op, bad)
			}
			weak, _ := s.NewKey("acme", `"permissions":["write"]`)
			erase(403, weak, "", john)

			a = erase(200, janes.String("secret"), "", strings.ToUpper(john))
			if a.Header.Get("Orgd-Audit-Receipt") == "" {
				t.Error("an erasure has no receipt")
			}
			values, _ := a.JSON("erased", "audit_values").(float64)
			events, _ := a.JSON("erased", "access_events").(float64)
			if values < 300 || events < 240 || a.JSON("erased", "api_keys") != 1.0 || a.JSON("remaining", "organizations") != 0.0 ||
				a.JSON("remaining", "api_keys") != 0.0 || a.JSON("remaining", "audit_entries") != 0.0 {
				t.Errorf("erased: %s", a.Body)
			}
			if engine == "sqlite" {
				if names := found(t, dir, "john.doe@example.com"); names != nil {
					t.Errorf("the subject is still in %s", names)
				}
				if len(found(t, dir, other)) == 0 {
					t.Error("somebody else's values are gone too")
				}
			}
			if a := s.Must(200, "GET", "/orgs/eu/consumption/adjustments", op, ""); !strings.Contains(string(a.Body), `"reason":""`) {
				t.Errorf("the adjustments are %s", a.Body)
			}
			for _, list := range []string{"/orgs/acme/children_audit?limit=1000", "/orgs/acme/access_log?scope=subtree&limit=1000"} {
				b := bytes.ToLower(s.Must(200, "GET", list, op, "").Body)
				if bytes.Contains(b, []byte("john.doe")) || !bytes.Contains(b, []byte("jane.roe")) {
					t.Errorf("%s holds the subject, or not what others did", list)
				}
			}
			entries := s.Must(200, "GET", "/orgs/acme/children_audit?limit=1000", op, "").JSON().([]any)
			if len(entries) != before+4 && len(entries) != before+3 {
				t.Errorf("there are %d entries, there were %d", len(entries), before)
			}
			newest, _ := entries[0].(map[string]any)
			if newest["action"] != "erasure" || !strings.Contains(fmt.Sprint(newest["changes"]), "Request 2026-118") {
				t.Errorf("the newest entry is %v", newest)
			}

			// Again there is nothing to do, and so nothing to record.
			a = erase(200, op, "", john)
			if a.JSON("erased", "audit_values") != 0.0 || a.JSON("erased", "access_events") != 0.0 || a.Header.Get("Orgd-Audit-Receipt") != "" {
				t.Errorf("erased again: %s", a.Body)
			}
			if n := len(s.Must(200, "GET", "/orgs/acme/children_audit?limit=1000", op, "").JSON().([]any)); n != len(entries) {
				t.Errorf("an erasure of nothing left %d entries", n-len(entries))
			}

			// The one who asks may be the subject: the entry does not say so.
			a = erase(200, janes.String("secret"), "", other)
			newest, _ = s.Must(200, "GET", "/orgs/acme/children_audit?limit=1", op, "").JSON().([]any)[0].(map[string]any)
			if actor, _ := newest["actor"].(map[string]any); newest["action"] != "erasure" || actor["name"] != nil || newest["ip"] != nil {
				t.Errorf("the entry is %v", newest)
			}
			if a.JSON("remaining", "api_keys") != 1.0 || a.JSON("remaining", "organizations") != 1.0 {
				t.Errorf("remaining: %s", a.Body)
			}
			// The rest of the trail is there, and is checked when the server ends.
			s.Must(200, "PATCH", "/orgs/eu", op, `{"name":"Europe","customizations":{"by":{"who":"x"}}}`)
			s.Must(200, "PATCH", "/orgs/us", op, `{"customizations":{"by":{"who":"y"}}}`)
		})
	}
}

// Many values take several steps, each with an entry of its own; the answer to
// an Idempotency-Key is that of the whole.
func TestErasureInSteps(t *testing.T) {
	bothEngines(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		s.Must(201, "POST", "/orgs", op, `{"id":"acme","name":"Acme"}`)
		rows := strings.Builder{}
		rows.WriteString("id,parent_id,name,description\n")
		const n = 5200
		for i := range n {
			fmt.Fprintf(&rows, "o%d,acme,Org,of ann@example.com and bob@example.com\n", i)
		}
		s.Must(200, "POST", "/orgs/import", op, rows.String(), "Content-Type", "text/csv")
		body := `{"subject":"ann@example.com","basis":"Request 1"}`
		first := s.Must(200, "POST", "/orgs/acme/audit_erasures", op, body, "Idempotency-Key", "k1")
		if first.JSON("erased", "audit_values") != float64(n) || first.JSON("remaining", "organizations") != float64(n) {
			t.Errorf("erased: %s", first.Body)
		}
		again := s.Must(200, "POST", "/orgs/acme/audit_erasures", op, body, "Idempotency-Key", "k1")
		if string(again.Body) != string(first.Body) || again.Header.Get("Orgd-Audit-Receipt") != first.Header.Get("Orgd-Audit-Receipt") {
			t.Errorf("again: %s", again.Body)
		}
		erasures := s.Must(200, "GET", "/orgs/acme/children_audit?action=erasure", op, "").JSON().([]any)
		if len(erasures) != 2 {
			t.Errorf("%d entries of erasures", len(erasures))
		}
	})
}

// Erasures at the same time, of values that are partly the same, while changes
// go on: each value is erased once, and what each entry lists is true, which is
// checked when the server ends.
func TestErasuresAtOnce(t *testing.T) {
	bothEngines(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		s.Must(201, "POST", "/orgs", op, `{"id":"acme","name":"Acme"}`)
		for i := range 40 {
			s.Must(201, "POST", "/orgs/acme/children", op, fmt.Sprintf(`{"id":"o%d","name":"Org","description":"of ann@example.com","external_id":"bob@example.com","customizations":{"both":"ann@example.com, bob@example.com"}}`, i))
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		total := 0.0
		for i, subject := range []string{"ann@example.com", "bob@example.com", "ann@example.com"} {
			wg.Go(func() {
				a, err := s.TryDo("POST", "/orgs/acme/audit_erasures", op, `{"subject":"`+subject+`","basis":"Request 1"}`)
				if err != nil || a.Status != 200 {
					t.Errorf("erasure %d: %v %s", i, err, a.Body)
					return
				}
				n, _ := a.JSON("erased", "audit_values").(float64)
				mu.Lock()
				total += n
				mu.Unlock()
			})
		}
		for i := range 4 {
			wg.Go(func() {
				for n := range 10 {
					if _, err := s.TryDo("PATCH", fmt.Sprintf("/orgs/o%d", 10*i+n), op, `{"description":"","external_id":null,"customizations":{"both":null}}`); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		for _, subject := range []string{"ann@example.com", "bob@example.com"} {
			a := s.Must(200, "POST", "/orgs/acme/audit_erasures", op, `{"subject":"`+subject+`","basis":"Request 2"}`)
			n, _ := a.JSON("erased", "audit_values").(float64)
			total += n
			if a.JSON("remaining", "organizations") != 0.0 {
				t.Errorf("remaining: %s", a.Body)
			}
		}
		if total != 40*3*2 {
			t.Errorf("%v values were erased, want %d: old and new ones of three members", total, 40*3*2)
		}
	})
}
