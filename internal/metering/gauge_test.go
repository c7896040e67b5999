package metering

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/maypok86/otter/v2"
	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
)

// limited is a store and a spool as far as limits need them: a root with two
// organizations in a row, hard limits on each of them, and what is consumed of
// them.
type limited struct {
	Store    // what is not needed
	mu       sync.Mutex
	now      time.Time
	limits   map[string]usage.Decimal // by organization
	consumed map[string]usage.Decimal
	position access.Position
	waiting  []waitingCharge // recorded and not stored
	end      access.Position
	after    func() // what happens once, after the snapshot of the next read
}

type waitingCharge struct {
	end    access.Position
	path   string
	amount usage.Decimal
}

func (l *limited) Read(_ context.Context, fn func(View) error) error {
	l.mu.Lock()
	err := fn(limitedView{l: l})
	after := l.after
	l.after = nil
	l.mu.Unlock()
	if after != nil {
		after()
	}
	return err
}

func (l *limited) Generation(string) uint64 { return 1 }

type limitedView struct {
	View
	l *limited
}

func (t limitedView) Limits(_ string, ids []string) ([]usage.Limit, error) {
	var list []usage.Limit
	for id, amount := range t.l.limits {
		if slices.Contains(ids, id) {
			list = append(list, usage.Limit{RootID: "r", OrgID: id, Meter: "m", Amount: amount, Enforcement: usage.Hard})
		}
	}
	return list, nil
}

func (t limitedView) Consumed(_, id string, _ usage.Month, _ string) (usage.Decimal, error) {
	return t.l.consumed[id], nil
}

func (l *limited) Run() access.Run { return access.Run{} }

func (t limitedView) SpoolPosition(string) (access.Position, error) { return t.l.position, nil }

func (l *limited) ID() string { return "spool" }

func (l *limited) Since() time.Time { return time.Now() }
func (l *limited) Drain(context.Context) error {
	l.store(len(l.waiting))
	return nil
}

// store stores the first n charges that wait.
func (l *limited) store(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.waiting[:n] {
		l.add(c.path, c.amount)
		l.position = c.end
	}
	l.waiting = slices.Clone(l.waiting[n:])
}

func (l *limited) add(path string, amount usage.Decimal) {
	for _, id := range org.SplitPath(path) {
		l.consumed[id] += amount
	}
}

func (l *limited) clock() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

// In one process exactly what fits is let through, whatever has been let
// through, recorded, stored, committed, given up and taken off before, in
// whatever order, and whenever the store is read. What is to be taken off makes
// no room before it is stored.
func TestGaugesAreExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := &limited{now: time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC), consumed: map[string]usage.Decimal{},
			limits: map[string]usage.Decimal{"r": 100, "a": 60, "b": 40}}
		bounds, err := otter.New(&otter.Options[string, *bounds]{MaximumSize: 100})
		if err != nil {
			t.Fatal(err)
		}
		s := &Service{store: l, spool: l, now: l.clock, bounds: bounds, gauges: newGauges()}
		// From here on the limits are watched.
		if _, err := s.Admit(context.Background(), Charge{RootID: "r", Path: "r/a/b/", Month: "2026-11", Meter: "m"}); err != nil {
			t.Fatal(err)
		}
		type let struct {
			path   string
			amount usage.Decimal
			r      *Reservation
		}
		var under []let                    // let through, and neither recorded, committed nor given up
		var falling []let                  // to be taken off
		sums := map[string]usage.Decimal{} // let through and not given up, by organization
		paths := []string{"r/", "r/a/", "r/a/b/"}
		count := func(path string, amount usage.Decimal) {
			for _, id := range org.SplitPath(path) {
				sums[id] += amount
			}
		}
		take := func() let {
			i := rapid.IntRange(0, len(under)-1).Draw(t, "which")
			x := under[i]
			under = slices.Delete(under, i, i+1)
			return x
		}
		read := func(t *rapid.T) {
			if err := s.readGauges(context.Background(), -1); err != nil {
				t.Fatal(err)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"ask": func(t *rapid.T) {
				path := rapid.SampledFrom(paths).Draw(t, "path")
				amount := usage.Decimal(rapid.IntRange(0, 25).Draw(t, "amount"))
				fits := true
				for _, id := range org.SplitPath(path) {
					fits = fits && (amount == 0 || sums[id]+amount <= l.limits[id])
				}
				r, err := s.Admit(context.Background(), Charge{RootID: "r", Path: path, Month: "2026-11", Meter: "m", Quantity: amount})
				if err != nil && !problem.Is(err, problem.LimitExceeded) {
					t.Fatal(err)
				}
				if (err == nil) != fits {
					t.Fatalf("%d at %s, beside %v of %v: %v", amount, path, sums, l.limits, err)
				}
				if err == nil {
					under = append(under, let{path, amount, r})
					count(path, amount)
				}
			},
			"count without asking": func(t *rapid.T) {
				path := rapid.SampledFrom(paths).Draw(t, "path")
				amount := usage.Decimal(rapid.IntRange(0, 5).Draw(t, "amount"))
				under = append(under, let{path, amount, s.Count(context.Background(), Charge{RootID: "r", Path: path, Month: "2026-11", Meter: "m", Quantity: amount})})
				count(path, amount)
			},
			"begin to take off": func(t *rapid.T) {
				path := rapid.SampledFrom(paths).Draw(t, "path")
				r, err := s.Admit(context.Background(), Charge{RootID: "r", Path: path, Month: "2026-11", Meter: "m", Quantity: 5},
					Charge{RootID: "r", Path: path, Month: "2026-11", Meter: "m", Quantity: -30})
				if err != nil {
					t.Fatal(err)
				}
				falling = append(falling, let{path, -25, r})
			},
			"take off": func(t *rapid.T) {
				if len(falling) == 0 {
					t.Skip()
				}
				x := falling[0]
				falling = falling[1:]
				if rapid.Bool().Draw(t, "and fail") {
					x.r.Release()
					return
				}
				l.mu.Lock()
				l.add(x.path, x.amount)
				l.mu.Unlock()
				if rapid.Bool().Draw(t, "read before it is known") {
					read(t)
				}
				x.r.Committed()
				count(x.path, x.amount)
			},
			"record": func(t *rapid.T) {
				if len(under) == 0 {
					t.Skip()
				}
				x := take()
				l.mu.Lock()
				l.end.Offset++
				if rapid.IntRange(0, 9).Draw(t, "segment") == 0 {
					l.end = access.Position{Segment: l.end.Segment + 1, Offset: 1}
				}
				end := l.end
				l.waiting = append(l.waiting, waitingCharge{end, x.path, x.amount})
				l.mu.Unlock()
				if rapid.Bool().Draw(t, "stored and read before it is known") {
					l.store(len(l.waiting))
					read(t)
				}
				s.Recorded(x.r, []access.Usage{{RootID: "r", Path: x.path, At: l.clock(), Meter: "m", Quantity: x.amount}}, end)
			},
			"commit": func(t *rapid.T) {
				if len(under) == 0 {
					t.Skip()
				}
				x := take()
				l.mu.Lock()
				l.add(x.path, x.amount)
				l.mu.Unlock()
				x.r.Committed()
			},
			"commit while the store is read": func(t *rapid.T) {
				if len(under) == 0 {
					t.Skip()
				}
				x := take()
				done := make(chan struct{})
				commit := func() {
					l.mu.Lock()
					l.add(x.path, x.amount)
					l.mu.Unlock()
					x.r.Committed()
					close(done)
				}
				l.mu.Lock()
				l.after = commit
				l.mu.Unlock()
				read(t)
				l.mu.Lock()
				left := l.after != nil // nothing was read
				l.after = nil
				l.mu.Unlock()
				if left {
					commit()
				}
				<-done
			},
			"give up": func(t *rapid.T) {
				if len(under) == 0 {
					t.Skip()
				}
				x := take()
				count(x.path, -x.amount)
				x.r.Release()
			},
			"forget": func(t *rapid.T) {
				for _, x := range under {
					count(x.path, -x.amount)
					x.r.Release()
				}
				for _, x := range falling {
					x.r.Release()
				}
				under, falling = nil, nil
				clear(s.gauges.all)
				// They are there again at once: nothing is stored for that.
				waiting := len(l.waiting)
				if _, err := s.Admit(context.Background(), Charge{RootID: "r", Path: "r/a/b/", Month: "2026-11", Meter: "m"}); err != nil {
					t.Fatal(err)
				}
				if len(l.waiting) != waiting {
					t.Fatal("the gauges have waited for the spool")
				}
			},
			"store": func(t *rapid.T) {
				l.store(rapid.IntRange(0, len(l.waiting)).Draw(t, "records"))
			},
			"wait": func(t *rapid.T) {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.now = l.now.Add(time.Duration(rapid.IntRange(1, 1500).Draw(t, "milliseconds")) * time.Millisecond)
			},
		})
	})
}
