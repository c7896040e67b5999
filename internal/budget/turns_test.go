package budget

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A root that comes with one thing waits for no more than what goes on, however
// much another one has lined up.
func TestTurnsAreTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := NewTurns(3)
		var most, now atomic.Int64
		work := func(root string) {
			if err := turns.Take(t.Context(), root); err != nil {
				t.Error(err)
			}
			most.Store(max(most.Load(), now.Add(1)))
			time.Sleep(time.Second)
			now.Add(-1)
			turns.Give(root)
		}
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { work("busy") })
		}
		synctest.Wait()
		if got := now.Load(); got != 2 {
			t.Errorf("one root alone has %d of 3 places, want all but one", got)
		}
		for range 5 {
			begin := time.Now()
			work("other")
			if took := time.Since(begin); took > 2*time.Second {
				t.Errorf("the other root has waited %v", took-time.Second)
			}
		}
		wg.Wait()
		if most.Load() > 3 {
			t.Errorf("%d went on at once", most.Load())
		}
		if turns.running != 0 || len(turns.lines) != 0 || len(turns.ring) != 0 {
			t.Errorf("%d places, %d lines and %d in the ring are left", turns.running, len(turns.lines), len(turns.ring))
		}
	})
}

// Two roots that have much to do get equally much.
func TestTurnsAreFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := NewTurns(2)
		done := map[string]int{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for root, n := range map[string]int{"many": 90, "few": 10} {
			for range n {
				wg.Go(func() {
					if turns.Take(t.Context(), root) != nil {
						return
					}
					time.Sleep(time.Second)
					turns.Give(root)
					mu.Lock()
					defer mu.Unlock()
					if done[root]++; root == "few" && done[root] == 10 && done["many"] > 12 {
						t.Errorf("%d of the many were done before the few", done["many"])
					}
				})
			}
		}
		wg.Wait()
	})
}

// Who no longer waits leaves nothing behind, and takes no turn from others.
func TestTurnsOfThoseWhoAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := NewTurns(2)
		if err := turns.Take(t.Context(), "r"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := turns.Take(ctx, "r"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a second turn of the root: %v", err)
		}
		turns.Give("r")
		if err := turns.Take(t.Context(), "r"); err != nil {
			t.Error(err)
		}
		turns.Give("r")
		if turns.running != 0 || len(turns.lines) != 0 || len(turns.ring) != 0 {
			t.Errorf("%d places, %d lines and %d in the ring are left", turns.running, len(turns.lines), len(turns.ring))
		}
		var none *Turns
		if none.Take(t.Context(), "r") != nil {
			t.Error("without turns something waits")
		}
		none.Give("r")
	})
}
