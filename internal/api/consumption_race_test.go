package api_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// sendAll sends events of quantity 1 over several connections, 20 at a time,
// for as long as more says so, and returns how many were counted. event makes
// the members of an event besides its id; a request that is refused counts
// nothing.
func sendAll(t *testing.T, s *testkit.Server, conns int, more func(batch int) bool, event func(r *rand.Rand) string) int64 {
	var counted atomic.Int64
	var wg sync.WaitGroup
	for c := range conns {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(c), 7))
			for batch := 0; more(batch); batch++ {
				body := ""
				for i := range 20 {
					body += fmt.Sprintf(`{"id":"%d-%d-%d","quantity":1,%s}`+"\n", c, batch, i, event(random))
				}
				a, err := s.TryDo("POST", "/orgs/acme/consumption/events", s.OperatorKey, body, "Content-Type", ndjson)
				switch {
				case err != nil:
					t.Error(err)
				case a.Status == http.StatusOK:
					counted.Add(20)
				case a.String("code") != "event_invalid":
					t.Errorf("%d %s", a.Status, a.Body)
				}
			}
		})
	}
	wg.Wait()
	return counted.Load()
}

// A month closes while events for it arrive: each is in the month or in an
// adjustment, and the month does not change once it is closed.
func TestMonthClosesUnderLoad(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s, clock := metered(t, engine, "2026-11-03T23:59:59Z")
			total := func(month string) float64 {
				v, _ := s.Must(200, "GET", "/orgs/acme/consumption?month="+month, s.OperatorKey, "").JSON("meters", "api_calls", "total").(float64)
				return v
			}
			var sent atomic.Int64
			var frozen float64
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				for sent.Load() < 400 {
					time.Sleep(time.Millisecond)
				}
				clock.set(day("2026-11-04T00:00:00Z"))
				for range 5000 {
					a, err := s.TryDo("GET", "/orgs/acme/consumption?month=2026-10", s.OperatorKey, "")
					if err != nil {
						t.Error(err)
						return
					}
					if a.String("status") == "closed" {
						frozen, _ = a.JSON("meters", "api_calls", "total").(float64)
						return
					}
				}
				t.Error("October does not close")
			}()
			after := 0 // batches after the close, about
			var mu sync.Mutex
			n := sendAll(t, s, 4, func(batch int) bool {
				mu.Lock()
				defer mu.Unlock()
				select {
				case <-closed:
					after++
				default:
				}
				return after < 20 && batch < 5000
			}, func(r *rand.Rand) string {
				sent.Add(1)
				return fmt.Sprintf(`"meter":"api_calls","org_id":%q,"timestamp":"2026-10-%02dT10:00:00Z"`, []string{"shop", "lab", "us"}[r.IntN(3)], 1+r.IntN(31))
			})
			<-closed
			if in, late := total("2026-10"), total("2026-11"); in != frozen || in+late != float64(n) || in == 0 || late == 0 {
				t.Errorf("of %d events October has %v, and had %v when it closed; November has %v", n, in, frozen, late)
			} else {
				t.Logf("%v in time, %v late", in, late)
			}
		})
	}
}

// Organizations move, are deleted and restored while they send: every total is
// exact, of every organization that was an ancestor at the time.
func TestUsageWhileTheTreeChanges(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s, _ := metered(t, engine, "2026-11-03T12:00:00Z")
			op := s.OperatorKey
			s.Must(200, "PUT", "/orgs/acme/meters/peak", op, `{"unit":"users","aggregation":"max"}`)
			stop, stopped := make(chan struct{}), make(chan struct{})
			changes := 0
			go func() {
				defer close(stopped)
				random := rand.New(rand.NewPCG(1, 2))
				for {
					select {
					case <-stop:
						return
					default:
					}
					id := []string{"shop", "lab", "eu", "us"}[random.IntN(4)]
					var a *testkit.Answer
					var err error
					switch random.IntN(3) {
					case 0:
						a, err = s.TryDo("POST", "/orgs/"+id+"/move", op, fmt.Sprintf(`{"parent_id":%q}`, []string{"acme", "eu", "us"}[random.IntN(3)]))
					case 1:
						if a, err = s.TryDo("DELETE", "/orgs/"+id+"?cascade=true", op, ""); err == nil && a.Status == 200 {
							a, err = s.TryDo("POST", "/orgs/"+id+"/restore", op, "")
						}
					case 2:
						a, err = s.TryDo("PUT", "/orgs/acme/meters/peak", op, fmt.Sprintf(`{"unit":"users","aggregation":%q}`, []string{"max", "latest"}[random.IntN(2)]))
					}
					if err != nil || a.Status >= 500 {
						t.Errorf("%v %v", a, err)
						return
					}
					if a.Status == 200 {
						changes++
					}
				}
			}()
			n := sendAll(t, s, 4, func(batch int) bool { return batch < 30 }, func(r *rand.Rand) string {
				return fmt.Sprintf(`"meter":%q,"org_id":%q`, []string{"api_calls", "peak"}[r.IntN(2)], []string{"shop", "lab", "us", "acme"}[r.IntN(4)])
			})
			close(stop)
			<-stopped
			if n == 0 || changes == 0 {
				t.Errorf("%d events and %d changes", n, changes)
			}
			t.Logf("%d events, %d changes", n, changes)
		})
	}
}
