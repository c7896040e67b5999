package api_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/server"
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
			if _, err := s.Tree.PurgeExpired(t.Context()); err != nil {
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

// reusable starts a server with the tree acme → (eu → (shop → till, lab), us)
// and the root other, where ids are free a day after a delete, and meters of
// three kinds in both.
func reusable(t *testing.T, engine string) (*testkit.Server, *setClock) {
	c := &setClock{at: day("2026-11-02T12:00:00Z")}
	s := testkit.Start(t, engine, func(config *server.Config) { config.Now, config.RestoreWindow = c.now, 24*time.Hour })
	s.Must(200, "POST", "/orgs/import", s.OperatorKey,
		"id,parent_id,name\nacme,,Acme\neu,acme,EU\nus,acme,US\nshop,eu,Shop\ntill,shop,Till\nlab,eu,Lab\nother,,Other\n", "Content-Type", "text/csv")
	kinds(s, "acme")
	kinds(s, "other")
	return s, c
}

func kinds(s *testkit.Server, rootID string) {
	for meter, aggregation := range map[string]string{"tokens": "sum", "peak": "max", "level": "latest"} {
		s.Must(200, "PUT", "/orgs/"+rootID+"/meters/"+meter, s.OperatorKey, `{"unit":"u","aggregation":"`+aggregation+`"}`)
	}
}

// consume makes an organization consume the same quantity of each kind of meter.
func consume(s *testkit.Server, orgID, id, quantity string) {
	for _, meter := range []string{"tokens", "peak", "level"} {
		s.Must(200, "POST", "/orgs/"+orgID+"/consumption/events", s.OperatorKey, fmt.Sprintf(`{"id":"%s-%s","source":"a","meter":"%s","quantity":%s}`, id, meter, meter, quantity))
	}
}

// pass purges what can be restored no longer after a day.
func pass(t *testing.T, s *testkit.Server, c *setClock) {
	t.Helper()
	c.set(c.now().Add(s.Config.RestoreWindow + time.Hour))
	if _, err := s.Tree.PurgeExpired(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.set(c.now().Add(time.Second))
}

func asOf(at time.Time) string {
	return "as_of=" + url.QueryEscape(at.Format(time.RFC3339Nano))
}

// Who takes the id of an organization that was purged gets nothing of what it
// was, had, set and consumed, wherever the new one is; and its ancestors have
// consumed what they had.
func TestReusedIDHasNoPast(t *testing.T) {
	for _, engine := range testkit.Engines {
		for _, parent := range []string{"us", "eu", "other", ""} {
			t.Run(engine+" below "+parent, func(t *testing.T) {
				s, clock := reusable(t, engine)
				op := s.OperatorKey
				s.Must(200, "PATCH", "/orgs/shop", op, `{"description":"former","customizations":{"secret":"former"},"tags":["former"]}`)
				s.Must(200, "PUT", "/orgs/shop/limits/tokens", op, `{"limit":100,"enforcement":"hard"}`)
				former := s.Must(201, "POST", "/orgs/shop/api_keys", op, `{"name":"former","permissions":["admin"]}`).String("secret")
				consume(s, "shop", "old", "90.731")
				consume(s, "till", "old-till", "3")
				s.Must(201, "POST", "/orgs/shop/children", op, `{"id":"desk","name":"Desk"}`)
				consume(s, "desk", "old-desk", "2")
				s.Must(200, "POST", "/orgs/desk/move", op, `{"parent_id":"lab"}`)
				s.Must(200, "POST", "/orgs/shop/consumption/adjustments", op, `{"meter":"tokens","quantity":5,"reason":"former"}`)
				s.Must(201, "POST", "/orgs/shop/children", former, `{"id":"cellar","name":"Former"}`, "Idempotency-Key", "same")
				s.Must(200, "GET", "/forward_auth?meter=api_calls&quantity=4", former, "")
				if a := s.Do("POST", "/orgs/shop/consumption/events", op, `{"id":"more","source":"a","meter":"tokens","quantity":6}`); a.Status != 429 {
					t.Fatalf("the limit of the former one: %s", a.Body)
				}
				moments := []time.Time{clock.now()}
				clock.set(clock.now().Add(time.Second))
				s.Must(200, "DELETE", "/orgs/shop?cascade=true", op, "")
				moments = append(moments, clock.now())
				totals := func(ids ...string) (all []string) {
					for _, id := range ids {
						for _, path := range []string{"", "/daily", "/history"} {
							all = append(all, string(s.Must(200, "GET", "/orgs/"+id+"/consumption"+path, op, "").Body))
						}
						rows := s.Must(200, "GET", "/orgs/"+id+"/consumption/children?meter=tokens&sort=org_id", op, "").JSON().([]any)
						for _, r := range rows {
							r := r.(map[string]any)
							all = append(all, fmt.Sprint(r["org_id"], " ", r["own"], " ", r["total"]))
						}
					}
					return all
				}
				before := totals("acme", "eu", "lab", "desk")
				clock.set(clock.now().Add(24*time.Hour + time.Minute))
				moments = append(moments, clock.now())
				if _, err := s.Tree.PurgeExpired(t.Context()); err != nil {
					t.Fatal(err)
				}
				// The same days, so that only what the purge did can differ.
				for i, now := range totals("acme", "eu", "lab", "desk") {
					if strings.HasPrefix(now, "[") {
						continue // a day more
					}
					if now != before[i] {
						t.Errorf("after the purge: %s, before it: %s", now, before[i])
					}
				}
				clock.set(clock.now().Add(time.Second))
				path := "/orgs"
				if parent != "" {
					path = "/orgs/" + parent + "/children"
				}
				s.Must(201, "POST", path, op, `{"id":"shop","name":"Ours","customizations":{"ours":1}}`)
				clock.set(clock.now().Add(time.Second))
				if parent == "" {
					kinds(s, "shop")
				}
				ours, _ := s.NewKey("shop", `"permissions":["admin"]`)
				s.Must(201, "POST", "/orgs/shop/children", ours, `{"id":"till","name":"Our till"}`, "Idempotency-Key", "same")

				// Its past begins with it, for its own key and for everybody.
				for _, at := range moments {
					for _, view := range []string{"?", "/descendants?", "/customizations?", "/customizations?explain=true&"} {
						for _, key := range []string{ours, op} {
							s.Must(404, "GET", "/orgs/shop"+view+asOf(at), key, "")
							s.Must(404, "GET", "/orgs/till"+view+asOf(at), key, "")
						}
					}
				}
				s.Must(200, "GET", "/orgs/shop/customizations?explain=true&"+asOf(clock.now()), ours, "")

				// Nothing of it shows, in any form.
				for _, view := range []string{"", "/children", "/descendants", "/customizations", "/tags", "/api_keys", "/children_audit", "/access_log", "/limits",
					"/consumption", "/consumption/history", "/consumption/daily", "/consumption/children?meter=tokens", "/consumption/adjustments"} {
					for _, format := range []string{"application/json", "text/csv", ndjson} {
						a := s.Must(200, "GET", "/orgs/shop"+view, ours, "", "Accept", format)
						for _, text := range []string{"former", "Former", "cellar", "desk", "90.731", "95.731", "100.731"} {
							if strings.Contains(string(a.Body), text) {
								t.Errorf("%s of the new one: %s", view, a.Body)
							}
						}
					}
				}
				for _, id := range []string{"shop", "till"} {
					for _, meter := range []string{"tokens", "peak", "level"} {
						wantQuantities(t, s, "2026-11", meter, map[string]string{id: "0 0 0"})
					}
				}
				if a := s.Must(200, "GET", "/orgs/shop/limits", ours, ""); len(a.JSON().([]any)) != 0 {
					t.Errorf("limits: %s", a.Body)
				}

				// It consumes as if nobody had before: of what adds up, of the
				// greatest and of the latest; and up to its own limit.
				if a := s.Must(200, "PUT", "/orgs/shop/limits/tokens", op, `{"limit":10,"enforcement":"hard"}`); a.JSON("used") != 0.0 {
					t.Errorf("used under a new limit: %s", a.Body)
				}
				consume(s, "shop", "new", "10")
				s.Must(429, "POST", "/orgs/shop/consumption/events", ours, `{"id":"over","source":"a","meter":"tokens","quantity":1}`)
				for _, meter := range []string{"tokens", "peak", "level"} {
					wantQuantities(t, s, "2026-11", meter, map[string]string{"shop": "10 0 10"})
				}

				// What lived below the former one and below nobody since brings
				// nothing of that time along.
				if parent == "us" || parent == "eu" {
					s.Must(200, "POST", "/orgs/desk/move", op, `{"parent_id":"shop"}`)
					if a := s.Must(200, "GET", "/orgs/shop/consumption/children?meter=tokens&sort=org_id&format=csv", ours, ""); string(a.Body) !=
						"org_id,name,month,meter,unit,aggregation,own,descendants,total\r\ndesk,Desk,2026-11,tokens,u,sum,0,0,0\r\ntill,Our till,2026-11,tokens,u,sum,0,0,0\r\n" {
						t.Errorf("children of the new one: %s", a.Body)
					}
				}
				children := func(sort string) (rows []string) {
					for next := "/orgs/eu/consumption/children?meter=tokens&limit=1&sort=" + sort; next != ""; {
						a := s.Must(200, "GET", next, op, "")
						for _, r := range a.JSON().([]any) {
							r := r.(map[string]any)
							rows = append(rows, fmt.Sprint(r["org_id"], " ", r["name"], " ", r["own"], " ", r["total"]))
						}
						next = testkit.NextPage(a)
					}
					return rows
				}
				want := []string{"lab Lab 0 0", "shop <nil> 95.731 100.731"}
				if parent == "eu" {
					want = []string{"lab Lab 0 0", "shop Ours 10 10", "shop <nil> 95.731 100.731"}
				}
				if got := children("org_id"); fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("children of the former parent: %q, want %q", got, want)
				}
				if got := children("-total"); len(got) != len(want) || got[0] != "shop <nil> 95.731 100.731" {
					t.Errorf("children of the former parent, the greatest first: %q", got)
				}
			})
		}
	}
}

// A statement says what each of the organizations consumed that had one id.
func TestStatementOfReusedID(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s, clock := reusable(t, engine)
			op := s.OperatorKey
			for i, parent := range []string{"us", "eu", "us"} {
				consume(s, "shop", fmt.Sprint("e", i), fmt.Sprint(10+i))
				s.Must(200, "DELETE", "/orgs/shop?cascade=true", op, "")
				pass(t, s, clock)
				s.Must(201, "POST", "/orgs/"+parent+"/children", op, `{"id":"shop","name":"Next"}`)
			}
			consume(s, "shop", "last", "20")
			clock.set(day("2026-12-05T00:00:00Z"))
			if err := s.CloseMonths(t.Context()); err != nil {
				t.Fatal(err)
			}
			a := s.Must(200, "GET", "/orgs/acme/consumption/statement?month=2026-11", op, "")
			var got []string
			for _, o := range a.JSON("organizations").([]any) {
				m := o.(map[string]any)
				tokens, _ := m["meters"].(map[string]any)["tokens"].(map[string]any)
				got = append(got, fmt.Sprint(m["id"], " ", tokens["own"], " ", tokens["total"]))
			}
			if want := "[acme 0 53 eu 0 22 shop 20 20 shop 10 10 shop 11 11 shop 12 12 us 0 31]"; fmt.Sprint(got) != want {
				t.Errorf("the statement says %v, want %s", got, want)
			}
		})
	}
}
