package budget

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// begin starts work in the background and tells what became of it.
func begin(t *testing.T, b *Budget, ctx context.Context, root string, limits Limits) (*Ticket, <-chan error) {
	t.Helper()
	ticket := enter(t, b, root, limits)
	done := make(chan error, 1)
	go func() { done <- ticket.Begin(ctx) }()
	synctest.Wait()
	return ticket, done
}

// Of four places one root gets three, and one that comes later need not wait.
func TestExpensiveLeavesAPlace(t *testing.T) {
	for places, want := range map[int64]int{2: 1, 4: 3, 8: 6, 16: 12} {
		synctest.Test(t, func(t *testing.T) {
			b := New(Limits{Requests: 256, RequestsPerSecond: 1000, Expensive: places})
			ctx, cancel := context.WithCancel(t.Context())
			n := 0
			for range want + 3 {
				if _, done := begin(t, b, ctx, "a", Limits{}); len(done) == 1 {
					n++
				}
			}
			if n != want {
				t.Errorf("of %d places one root gets %d, want %d", places, n, want)
			}
			if _, done := begin(t, b, ctx, "b", Limits{}); len(done) != 1 {
				t.Errorf("of %d places one root leaves none to another", places)
			}
			if _, done := begin(t, b, ctx, "", Limits{}); len(done) != 1 {
				t.Error("the operator waits for its customers")
			}
			cancel()
			synctest.Wait()
		})
	}
}

// Roots that wait get places in turn, however much of each waits, and each in
// the order in which its work came.
func TestExpensiveInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Limits{Requests: 256, RequestsPerSecond: 1000, Expensive: 2})
		var order []string
		var mu sync.Mutex
		var held []*Ticket
		for _, root := range []string{"x", "y"} {
			ticket, _ := begin(t, b, t.Context(), root, Limits{})
			held = append(held, ticket)
		}
		for _, work := range []string{"a1", "a2", "a3", "a4", "b1", "c1", "b2"} {
			ticket := enter(t, b, work[:1], Limits{})
			go func() {
				if ticket.Begin(t.Context()) != nil {
					return
				}
				mu.Lock()
				order = append(order, work)
				mu.Unlock()
				time.Sleep(100 * time.Millisecond)
				ticket.Leave()
			}()
			synctest.Wait()
		}
		held[0].End()
		time.Sleep(time.Second)
		if want := []string{"a1", "b1", "c1", "a2", "b2", "a3", "a4"}; !slices.Equal(order, want) {
			t.Errorf("with one place the order is %v, want %v", order, want)
		}
	})
}

// Of each root only so much waits, and not for long; what gives up leaves no
// trace. It is the root's own doing where its own work is in the way.
func TestExpensiveQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Limits{Requests: 256, RequestsPerSecond: 1000, Expensive: 2})
		refusal := func(err error) Refusal {
			var f *Refusal
			if !errors.As(err, &f) {
				t.Fatalf("the error is %v", err)
			}
			return *f
		}
		first, _ := begin(t, b, t.Context(), "a", Limits{})
		other, _ := begin(t, b, t.Context(), "b", Limits{})
		cancelled, cancel := context.WithCancel(t.Context())
		_, gone := begin(t, b, cancelled, "a", Limits{})
		var waiting []<-chan error
		for range maxWaiting - 1 {
			_, done := begin(t, b, t.Context(), "a", Limits{})
			waiting = append(waiting, done)
		}
		_, done := begin(t, b, t.Context(), "a", Limits{})
		if f := refusal(<-done); f.Reason != OverShare || f.RetryAfter <= 0 {
			t.Errorf("behind a full queue of its own a root gets %+v", f)
		}
		_, modest := begin(t, b, t.Context(), "c", Limits{})
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("a request that was cancelled while it waited got %v", err)
		}
		time.Sleep(maxWait)
		synctest.Wait()
		for _, done := range waiting {
			if f := refusal(<-done); f.Reason != OverShare {
				t.Errorf("behind its own work a root gets %+v", f)
			}
		}
		if f := refusal(<-modest); f.Reason != NoRoom {
			t.Errorf("behind the work of others a root gets %+v", f)
		}
		_, limited := begin(t, b, t.Context(), "a", Limits{Expensive: 1})
		time.Sleep(maxWait)
		if f := refusal(<-limited); f.Reason != OverLimit || f.Limit != 1 {
			t.Errorf("at its limit a root gets %+v", f)
		}
		first.End()
		other.End()
		q := &b.roots.expensive
		if q.running != 0 || q.waiting != 0 || len(q.ring) != 0 || b.Used(start)[Expensive] != 0 {
			t.Errorf("in the end %d run, %d wait and %d roots are in turn", q.running, q.waiting, len(q.ring))
		}
	})
}

// Work that was paused goes on when there is a place, however long that takes.
func TestExpensivePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Limits{Requests: 256, RequestsPerSecond: 1000, Expensive: 2})
		first, _ := begin(t, b, t.Context(), "a", Limits{})
		second, done := begin(t, b, t.Context(), "a", Limits{})
		if len(done) != 0 {
			t.Fatal("one root has both places")
		}
		if !first.Pause() {
			t.Error("work that has begun has no place to give up")
		}
		synctest.Wait()
		if len(done) != 1 {
			t.Error("the place of work that is paused stays taken")
		}
		resumed := make(chan error, 1)
		go func() { resumed <- first.Resume(t.Context()) }()
		time.Sleep(10 * maxWait)
		if len(resumed) != 0 {
			t.Error("work goes on without a place")
		}
		second.Leave()
		synctest.Wait()
		if len(resumed) != 1 {
			t.Error("work does not go on although there is a place")
		}
		first.Leave()
		if used := b.Used(start.Add(time.Hour)); used != (Limits{}) {
			t.Errorf("in the end %v is used", used)
		}
	})
}

// However many roots send however much, all that was let in is done.
func TestExpensiveAllGetTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Limits{Requests: 4096, RequestsPerSecond: 100_000, Expensive: 4})
		finished := map[string]int{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		work := func(root string) {
			ticket := enter(t, b, root, Limits{})
			defer ticket.Leave()
			if ticket.Begin(t.Context()) != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
			mu.Lock()
			finished[root]++
			mu.Unlock()
		}
		for range 40 {
			wg.Go(func() {
				for range 50 {
					work("greedy")
				}
			})
		}
		for i := range 5 {
			wg.Go(func() {
				for range 20 {
					time.Sleep(20 * time.Millisecond)
					work(fmt.Sprint("modest", i))
				}
			})
		}
		wg.Wait()
		for i := range 5 {
			if n := finished[fmt.Sprint("modest", i)]; n != 20 {
				t.Errorf("beside a greedy root a modest one gets %d of 20 done", n)
			}
		}
		if used := b.Used(start.Add(time.Hour)); used != (Limits{}) {
			t.Errorf("in the end %v is used", used)
		}
	})
}
