package api_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// The purge of a great subtree stops when the server does, goes on later, also
// after a restart that would let more be restored, and at every moment between
// its steps the system is whole.
func TestPurgeInSteps(t *testing.T) {
	for _, engine := range testkit.Engines {
		for _, top := range []string{"big", "r"} {
			t.Run(engine+" of "+top, func(t *testing.T) {
				const many = 1500
				c := &setClock{at: day("2026-11-02T12:00:00Z")}
				config := func(window time.Duration) func(*server.Config) {
					return func(config *server.Config) { config.Now, config.RestoreWindow = c.now, window }
				}
				s := testkit.Open(t, engine, config(time.Hour))
				op := s.OperatorKey
				rows := []string{"id,parent_id,name,tags", "r,,R,", "big,r,Big,", "stays,r,Stays,"}
				for n := range many {
					rows = append(rows, fmt.Sprintf("o%d,big,O,tag", n))
				}
				s.Must(200, "POST", "/orgs/import", op, strings.Join(rows, "\n")+"\n", "Content-Type", "text/csv")
				kinds(s, "r")
				for n := range 20 {
					key, _ := s.NewKey(fmt.Sprintf("o%d", n*70), "")
					s.Must(200, "GET", fmt.Sprintf("/orgs/o%d", n*70), key, "")
					consume(s, fmt.Sprintf("o%d", n*70), fmt.Sprint(n), "2")
				}
				s.Must(200, "POST", "/orgs/o0/move", op, `{"parent_id":"stays"}`)
				consumed := quantities(s, "r", "2026-11", "tokens")
				s.Must(200, "DELETE", "/orgs/"+top+"?cascade=true", op, "")
				c.set(c.now().Add(2 * time.Hour))

				var purged int64
				stops, patience := 0, 22*time.Millisecond
				for stopped := true; stopped; {
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					n, err := s.Tree.PurgeExpired(ctx)
					if purged += n; n == 0 {
						patience *= 2 // the machine is slow
					} else {
						patience = 22 * time.Millisecond
					}
					if stopped = err != nil; stopped && ctx.Err() == nil {
						t.Fatal(err)
					}
					cancel()
					if !stopped || purged == 0 && stops > 0 {
						continue
					}
					if stops++; stops > 3 {
						continue
					}
					testkit.CheckSystem(t, s.Store)
					s.Must(404, "POST", "/orgs/"+top+"/restore", op, "")
					s.Must(404, "GET", "/orgs/"+top, op, "")
					if stops == 2 {
						again := testkit.Start(t, engine, config(1000*time.Hour), func(config *server.Config) {
							s.Stop()
							config.DataDir, config.Database = s.Config.DataDir, s.Config.Database
						})
						s = again
						s.Must(404, "POST", "/orgs/"+top+"/restore", op, "")
					}
				}
				want := int64(many)
				if top == "r" {
					want = many + 3
				}
				if purged != want || stops < 2 {
					t.Errorf("%d organizations were purged, want %d, with %d stops", purged, want, stops)
				}
				c.set(c.now().Add(time.Second))
				if top == "r" {
					s.Must(201, "POST", "/orgs", op, `{"id":"r","name":"Another"}`)
					if got := quantities(s, "r", "2026-11", "api_calls"); got != "0 0 0" {
						t.Errorf("the new root has consumed %s", got)
					}
					return
				}
				if got := quantities(s, "r", "2026-11", "tokens"); got != consumed {
					t.Errorf("r has consumed %s, before the purge %s", got, consumed)
				}
				a := s.Must(200, "GET", "/orgs/r/children_audit?action=organization.purged", op, "")
				if entries := a.JSON().([]any); len(entries) != 1 {
					t.Errorf("one delete was purged with %d entries: %s", len(entries), a.Body)
				}
				s.Must(201, "POST", "/orgs/stays/children", op, `{"id":"big","name":"Another"}`)
				s.Must(201, "POST", "/orgs/big/children", op, `{"id":"o70","name":"Another"}`)
			})
		}
	}
}

// An organization that was deleted by itself goes with the one above it whose
// purge has begun, with one entry.
func TestPurgeOfDeletedBelow(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s, clock := reusable(t, engine)
			op := s.OperatorKey
			s.Must(200, "DELETE", "/orgs/till", op, "")
			clock.set(clock.now().Add(time.Minute))
			s.Must(200, "DELETE", "/orgs/shop", op, "")
			s.Must(200, "DELETE", "/orgs/lab", op, "")
			s.Must(200, "POST", "/orgs/eu/move", op, `{"parent_id":"us"}`)
			pass(t, s, clock)
			a := s.Must(200, "GET", "/orgs/acme/children_audit?action=organization.purged", op, "")
			if n := len(a.JSON().([]any)); n != 3 {
				t.Errorf("%d entries: %s", n, a.Body)
			}
			for _, id := range []string{"till", "shop", "lab"} {
				s.Must(201, "POST", "/orgs/us/children", op, `{"id":"`+id+`","name":"Next"}`)
			}
		})
	}
}
