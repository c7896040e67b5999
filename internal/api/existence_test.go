package api_test

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/orgd/orgd/internal/api"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// work collects the statements that the store runs.
type work struct {
	mu   sync.Mutex
	list []string
}

func (w *work) add(text string) {
	w.mu.Lock()
	w.list = append(w.list, text)
	w.mu.Unlock()
}

func (w *work) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.list
	w.list = nil
	return list
}

// existence compares what the server does for things that differ only in
// whether they exist.
type existence struct {
	*testkit.Server
	work work
}

// cost returns what a request has the store do until it is answered. What the
// request before it left behind is stored first.
func (x *existence) cost(t *testing.T, request func() *testkit.Answer) (*testkit.Answer, []string) {
	t.Helper()
	if err := x.Recorder.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	x.work.take()
	a := request()
	return a, x.work.take()
}

// same fails unless the requests cost the same. A flush of the access log may
// fall into one of them now and then, but not into several attempts.
func (x *existence) same(t *testing.T, what string, ids []string, request func(id string) *testkit.Answer) {
	t.Helper()
	var problem string
	for range 5 {
		problem = ""
		first, want := x.cost(t, func() *testkit.Answer { return request(ids[0]) })
		for _, id := range ids[1:] {
			a, got := x.cost(t, func() *testkit.Answer { return request(id) })
			if a.Status != first.Status || !slices.Equal(got, want) {
				problem = fmt.Sprintf("%s: %s gets %d after\n  %s\n%s gets %d after\n  %s", what,
					ids[0], first.Status, strings.Join(want, "\n  "), id, a.Status, strings.Join(got, "\n  "))
			}
		}
		if problem == "" {
			return
		}
	}
	t.Error(problem)
}

// Whoever may not see something does not learn from the time of an answer
// whether it exists: the server does the same for what is elsewhere, cached or
// not, large or small, deleted or live, and for what was never there.
func TestExistenceCostsNothing(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		x := &existence{Server: testkit.Start(t, engine, func(c *server.Config) { c.SignInterval = -1 })}
		x.Must(http.StatusOK, "POST", "/orgs/import", x.OperatorKey,
			"id,parent_id,name\nmine,,mine\nown,mine,own\nbelow,own,below\nabove,mine,above\nforeign,,foreign\nlarge,foreign,large\ncold,foreign,cold\ngone,foreign,gone\n",
			"Content-Type", "text/csv")
		x.Must(http.StatusOK, "PUT", "/orgs/large/customizations", x.OperatorKey, `{"customizations":{"a":"`+strings.Repeat("x", 60_000)+`"}}`)
		x.Must(http.StatusOK, "DELETE", "/orgs/gone", x.OperatorKey, "")
		mine, _ := x.NewKey("own", `"permissions":["admin"]`)
		self, _ := x.NewKey("own", `"permissions":["admin"],"reach":"self"`)
		other, otherID := x.NewKey("large", `"permissions":["admin"]`)
		_, aboveID := x.NewKey("above", `"permissions":["admin"]`)
		_, belowID := x.NewKey("below", `"permissions":["admin"]`)
		known, _ := x.NewKey("own", `"permissions":["orgs:read"]`)
		x.Store.Trace(x.work.add)

		// What is remembered of them: all but cold.
		warm := func() {
			for _, id := range []string{"foreign", "large", "above"} {
				x.Must(http.StatusOK, "GET", "/orgs/"+id, x.OperatorKey, "")
			}
			x.Must(http.StatusOK, "GET", "/org", other, "")
		}
		unseen := []string{"absent", "foreign", "large", "above", "cold", "gone"}

		t.Run("organizations in paths", func(t *testing.T) {
			for _, rt := range new(api.API).Routes() {
				sm := samples[rt.Operation]
				if rt.Rule.Open || !strings.Contains(sm.path, "ORG") || strings.Contains(sm.path, "?parent_id") {
					continue
				}
				warm()
				headers := []string{}
				if sm.contentType != "" {
					headers = append(headers, "Content-Type", sm.contentType)
				}
				x.same(t, rt.Operation, unseen, func(id string) *testkit.Answer {
					fill := strings.NewReplacer("ORG", id, "KEY", otherID, "NEW", "new", "OTHER", "below", "ENTRY", "aud_none")
					return x.Do(rt.Method, fill.Replace(sm.path), mine, fill.Replace(sm.body), headers...)
				})
			}
			warm()
			x.same(t, "getOrg with the reach self", append(unseen, "below"), func(id string) *testkit.Answer { return x.Do("GET", "/orgs/"+id, self, "") })
		})
		t.Run("organizations that a request names elsewhere", func(t *testing.T) {
			for name, request := range map[string]func(id string) *testkit.Answer{
				"createOrg": func(id string) *testkit.Answer {
					return x.Do("POST", "/orgs", mine, fmt.Sprintf(`{"id":"new","name":"new","parent_id":%q}`, id))
				},
				"importOrgs": func(id string) *testkit.Answer {
					return x.Do("POST", "/orgs/import?parent_id="+id, mine, "id,name\nnew,new\n", "Content-Type", "text/csv")
				},
				"moveOrg": func(id string) *testkit.Answer {
					return x.Do("POST", "/orgs/below/move", mine, fmt.Sprintf(`{"parent_id":%q}`, id))
				},
				"moveOrg, dry run": func(id string) *testkit.Answer {
					return x.Do("POST", "/orgs/below/move?dry_run=true", mine, fmt.Sprintf(`{"parent_id":%q}`, id))
				},
				"importOrgs, a row": func(id string) *testkit.Answer {
					return x.Do("POST", "/orgs/import", mine, "id,name,parent_id\nnew,new,"+id+"\n", "Content-Type", "text/csv")
				},
				"importOrgs, a row of a dry run": func(id string) *testkit.Answer {
					return x.Do("POST", "/orgs/import?dry_run=true", mine, "id,name,parent_id\nnew,new,"+id+"\n", "Content-Type", "text/csv")
				},
				"importOrgs, an id": func(id string) *testkit.Answer {
					return x.Do("POST", "/orgs/import?dry_run=true", mine, "id,name,parent_id\nnew,new,"+id+"\nbelow,below,own\n", "Content-Type", "text/csv")
				},
				"ingestUsageEvents": func(id string) *testkit.Answer {
					return x.Do("POST", "/orgs/own/consumption/events", mine, fmt.Sprintf(`{"id":"e","org_id":%q,"meter":"api_calls","quantity":1}`, id))
				},
				"ingestUsageEvents, beside one that is seen": func(id string) *testkit.Answer {
					return x.Do("POST", "/orgs/own/consumption/events", mine, fmt.Sprintf(`[{"id":"e","org_id":"below","meter":"api_calls","quantity":1},{"id":"f","org_id":%q,"meter":"api_calls","quantity":1}]`, id))
				},
				"CloudEvents": func(id string) *testkit.Answer {
					return x.Do("POST", "/api/v1/events", mine, fmt.Sprintf(`{"specversion":"1.0","id":"f","source":"test","type":"api_calls","subject":%q,"data":{"quantity":1}}`, id),
						"Content-Type", "application/cloudevents+json")
				},
				"ingestAccessEvents": func(id string) *testkit.Answer {
					return x.Do("POST", "/orgs/own/access_log", mine, fmt.Sprintf(`{"user":"jo","action":"LOGIN","status":"SUCCESS","org_id":%q}`, id))
				},
				"forwardAuth": func(id string) *testkit.Answer { return x.Do("GET", "/forward_auth?org_id="+id, mine, "") },
				"verify": func(id string) *testkit.Answer {
					return x.Do("POST", "/verify", mine, fmt.Sprintf(`{"key":%q,"org_id":%q}`, known, id))
				},
			} {
				warm()
				x.same(t, name, unseen, request)
			}
		})
		t.Run("keys of an organization", func(t *testing.T) {
			for _, call := range [][3]string{{"GET", "", ""}, {"PATCH", "", `{"name":"x"}`}, {"DELETE", "", ""}, {"POST", "/rotate", ""}} {
				x.same(t, call[0]+call[1], []string{"key_absent", otherID, aboveID, belowID}, func(id string) *testkit.Answer {
					return x.Do(call[0], "/orgs/own/api_keys/"+id+call[1], mine, call[2])
				})
			}
		})
		t.Run("keys without their secret", func(t *testing.T) {
			wrong := map[string]string{}
			for _, id := range []string{"key_absent", otherID, aboveID} {
				wrong[id], _, _ = key.NewSecret(rand.Reader, id)
			}
			warm() // the key otherID is remembered, aboveID was never used
			for name, request := range map[string]func(id string) *testkit.Answer{
				"GET /org":     func(id string) *testkit.Answer { return x.Do("GET", "/org", wrong[id], "") },
				"forward_auth": func(id string) *testkit.Answer { return x.Do("GET", "/forward_auth", wrong[id], "") },
				"verify": func(id string) *testkit.Answer {
					return x.Do("POST", "/verify", mine, fmt.Sprintf(`{"key":%q}`, wrong[id]))
				},
			} {
				x.same(t, name, []string{"key_absent", otherID, aboveID}, request)
			}
		})
		t.Run("what is seen costs no more for it", func(t *testing.T) {
			x.Must(http.StatusOK, "GET", "/orgs/below", mine, "")
			if _, got := x.cost(t, func() *testkit.Answer { return x.Must(http.StatusOK, "GET", "/orgs/below", mine, "") }); len(got) != 0 {
				t.Errorf("reading what is remembered takes\n  %s", strings.Join(got, "\n  "))
			}
			x.Must(http.StatusOK, "PATCH", "/orgs/own", x.OperatorKey, `{"name":"changed"}`)
			if _, got := x.cost(t, func() *testkit.Answer { return x.Must(http.StatusOK, "GET", "/orgs/own", mine, "") }); len(got) > 2 {
				t.Errorf("reading what has changed takes\n  %s", strings.Join(got, "\n  "))
			}
		})
	})
}
