package budget

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

var start = time.Unix(1_800_000_000, 0)

// capacity is one of small numbers, so that everything is reached.
var capacity = Limits{Requests: 256, Bytes: 64 << 20, Expensive: 4, Streams: 200, RequestsPerSecond: 1000, ChangesPerSecond: 400}

func enter(t *testing.T, b *Budget, root string, limits Limits) *Ticket {
	t.Helper()
	var ticket Ticket
	if err := b.Enter(&ticket, root, &limits, false, start); err != nil {
		t.Fatalf("a request of %s is refused: %+v", root, err)
	}
	return &ticket
}

// fill takes all that a root gets of what can be held, and returns how much
// that is of each.
func fill(b *Budget, root string, limits Limits) (held Limits, tickets []*Ticket) {
	for i := 0; ; i++ {
		// Each in a second of its own: rates are another matter.
		var ticket Ticket
		if b.Enter(&ticket, root, &limits, false, start.Add(time.Duration(i)*time.Second)) != nil {
			break
		}
		held[Requests]++
		tickets = append(tickets, &ticket)
		if ticket.Stream() == nil {
			held[Streams]++
		}
		for ticket.Hold(64<<10) == nil {
			held[Bytes] += 64 << 10
		}
	}
	return held, tickets
}

func leave(tickets []*Ticket) {
	for _, ticket := range tickets {
		ticket.Leave()
	}
}

func TestShareOfOneThatIsAlone(t *testing.T) {
	b := New(capacity)
	held, tickets := fill(b, "a", Limits{})
	for _, r := range []Resource{Requests, Bytes, Streams} {
		if held[r] > capacity[r] || held[r]*100 < capacity[r]*85 {
			t.Errorf("a root that is alone gets %d of %d %s", held[r], capacity[r], r)
		}
		if want := b.Default()[r]; held[r] > want || held[r]*100 < want*98 {
			t.Errorf("a root that is alone gets %d %s, the default says %d", held[r], r, want)
		}
	}
	leave(tickets)
	if used := b.Used(start); used[Requests]+used[Bytes]+used[Streams] != 0 {
		t.Errorf("after all have left %v is used", used)
	}
}

// A root that comes later gets something at once, and as much as the first when
// that gives some back.
func TestShareOfNewcomers(t *testing.T) {
	b := New(capacity)
	_, first := fill(b, "a", Limits{})
	second, tickets := fill(b, "b", Limits{})
	for _, r := range []Resource{Requests, Bytes, Streams} {
		if second[r] < minimum[r] || second[r] < capacity[r]/40 {
			t.Errorf("beside a root that has taken all it may, another gets %d of %d %s", second[r], capacity[r], r)
		}
	}
	leave(first)
	leave(tickets)

	_, _ = fill(b, "a", Limits{Requests: 100, Bytes: 20 << 20, Streams: 80})
	second, _ = fill(b, "b", Limits{})
	for r, least := range map[Resource]int64{Requests: 128, Bytes: 35 << 20, Streams: 90} {
		if second[r] < least {
			t.Errorf("beside a root that holds less than half, another gets %d of %d %s", second[r], capacity[r], r)
		}
	}
}

// Every root gets its minimum although others before it have taken all they
// may, for as long as there is room at all; then it is the server's room that
// is missing.
func TestMinimum(t *testing.T) {
	b := New(capacity)
	for i := range 3 {
		fill(b, fmt.Sprint("greedy", i), Limits{})
	}
	last, refusal := 0, (*Refusal)(nil)
	for i := 0; refusal == nil; i++ {
		for range minimum[Requests] {
			var ticket Ticket
			if refusal = b.Enter(&ticket, fmt.Sprint("modest", i), nil, false, start); refusal != nil {
				break
			}
		}
		last = i
	}
	if last < 6 {
		t.Errorf("only %d roots get their minimum", last)
	}
	if refusal.Reason != NoRoom || refusal.Resource != Requests {
		t.Errorf("without room the refusal is %+v", refusal)
	}
	if used := b.Used(start)[Requests]; used != capacity[Requests] {
		t.Errorf("%d of %d places are used", used, capacity[Requests])
	}
}

func TestLimitOfARoot(t *testing.T) {
	b := New(capacity)
	few := Limits{Requests: 3, Streams: 1, Bytes: 1 << 20, RequestsPerSecond: 1000}
	held, tickets := fill(b, "a", few)
	for _, r := range []Resource{Requests, Streams, Bytes} {
		if held[r] != few[r] {
			t.Errorf("a root with the limit %d gets %d %s", few[r], held[r], r)
		}
	}
	var ticket Ticket
	if err := b.Enter(&ticket, "a", &few, false, start); err == nil || err.Reason != OverLimit || err.Limit != 3 || err.RetryAfter <= 0 {
		t.Errorf("over a limit the refusal is %+v", err)
	}
	if err := tickets[0].Hold(2 << 20); err == nil || err.Reason != TooMuch || err.Limit != 1<<20 {
		t.Errorf("for what never fits under a limit the refusal is %+v", err)
	}
	leave(tickets)
	// A limit may be more than the share, and never more than there is.
	held, tickets = fill(b, "a", Limits{Requests: 1 << 30, Streams: 1 << 30, Bytes: 1 << 40})
	for _, r := range []Resource{Requests, Streams, Bytes} {
		if held[r] <= b.Default()[r] || held[r] > capacity[r] {
			t.Errorf("a root with a great limit gets %d of %d %s, without it %d", held[r], capacity[r], r, b.Default()[r])
		}
	}
	if err := b.Enter(&ticket, "b", nil, false, start); err != nil {
		t.Errorf("beside a root with a great limit another is refused: %+v", err)
	}
	leave(tickets)
	if err := enter(t, b, "c", Limits{}).Hold(capacity[Bytes]); err == nil || err.Reason != TooMuch {
		t.Errorf("for what never fits the refusal is %+v", err)
	}
}

func TestRates(t *testing.T) {
	b := New(capacity)
	count := func(root string, limits Limits, change bool, at time.Time) (n int64, last *Refusal) {
		for {
			var ticket Ticket
			if last = b.Enter(&ticket, root, &limits, change, at); last != nil {
				return n, last
			}
			ticket.Leave()
			n++
		}
	}
	n, refusal := count("a", Limits{}, false, start)
	if n != b.Default()[RequestsPerSecond] || refusal.Resource != RequestsPerSecond || refusal.Reason != OverShare {
		t.Errorf("alone a root makes %d requests in a second of %d, then %+v", n, capacity[RequestsPerSecond], refusal)
	}
	if n, _ := count("b", Limits{}, false, start); n < minimum[RequestsPerSecond] {
		t.Errorf("beside it another makes %d", n)
	}
	if n, _ := count("a", Limits{}, false, start.Add(time.Second)); n != b.Default()[RequestsPerSecond] {
		t.Errorf("in the next second it makes %d", n)
	}
	limits := Limits{RequestsPerSecond: 7, ChangesPerSecond: 3}
	at := start.Add(5 * time.Second)
	if n, refusal := count("a", limits, true, at); n != 3 || refusal.Resource != ChangesPerSecond || refusal.Reason != OverLimit || refusal.Limit != 3 {
		t.Errorf("with a limit of 3 a root makes %d changes in a second, then %+v", n, refusal)
	}
	// The request that would have been a change was one.
	if n, refusal := count("a", limits, false, at); n != 3 || refusal.Resource != RequestsPerSecond {
		t.Errorf("with 3 changes and one refused of 7 requests a root makes %d more, then %+v", n, refusal)
	}
}

// The operator is not kept out by customers that have taken all, nor they by it.
func TestOperatorHasItsOwn(t *testing.T) {
	b := New(capacity)
	for i := range 300 {
		fill(b, fmt.Sprint(i), Limits{})
	}
	held, _ := fill(b, "", Limits{})
	if held[Requests] < 100 || held[Streams] < 80 || held[Bytes] < 28<<20 {
		t.Errorf("beside customers that have taken all the operator gets %v", held)
	}
	b = New(capacity)
	fill(b, "", Limits{})
	if held, _ := fill(b, "a", Limits{}); held[Requests] != b.Default()[Requests] {
		t.Errorf("beside the operator, who has taken all it may, a root gets %v", held)
	}
}

// Whatever happens, nothing is over its capacity and nothing is lost.
func TestNeverOverCapacityAndNoLeak(t *testing.T) {
	b := New(capacity)
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(worker)))
			for range 3000 {
				root := fmt.Sprint(random.IntN(12))
				if root == "11" {
					root = ""
				}
				var limits Limits
				if random.IntN(4) == 0 {
					limits = Limits{Requests: 1 + random.Int64N(300), Bytes: 1 << (15 + random.IntN(20)), Streams: 1 + random.Int64N(5)}
				}
				var ticket Ticket
				if b.Enter(&ticket, root, &limits, random.IntN(2) == 0, start.Add(time.Duration(random.IntN(3))*time.Second)) != nil {
					continue
				}
				for range random.IntN(4) {
					switch random.IntN(6) {
					case 0:
						ticket.Hold(random.Int64N(16 << 20))
					case 1:
						ticket.Stream()
					case 2:
						ticket.Keep(random.Int64N(4 << 20))
					case 3:
						ticket.Follow()
					case 4:
						if ticket.Begin(t.Context()) == nil {
							ticket.Pause()
							ticket.Resume(t.Context())
						}
					}
				}
				for _, p := range []*pool{&b.roots, &b.operator} {
					for _, r := range []Resource{Requests, Bytes, Expensive, Streams} {
						if used := p.used[r].Load(); used < 0 || used > p.capacity[r] {
							t.Errorf("%d of %d %s are used", used, p.capacity[r], r)
						}
					}
				}
				ticket.Leave()
			}
		})
	}
	wg.Wait()
	later := start.Add(time.Hour)
	if used := b.Used(later); used != (Limits{}) {
		t.Errorf("after all have left %v is used", used)
	}
	for i := range 11 {
		if used := b.UsedBy(fmt.Sprint(i), later); used != (Limits{}) {
			t.Errorf("after all have left root %d uses %v", i, used)
		}
	}
}

// Roots that use nothing take no memory.
func TestRootsAreForgotten(t *testing.T) {
	b := New(capacity)
	kept := enter(t, b, "kept", Limits{})
	for i := range 200_000 {
		var ticket Ticket
		if err := b.Enter(&ticket, fmt.Sprint("root", i), nil, false, start.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
		ticket.Leave()
	}
	n := 0
	for i := range b.shards {
		n += len(b.shards[i].shares)
	}
	if n > shards*minShardSweep {
		t.Errorf("%d roots are remembered", n)
	}
	if b.UsedBy("kept", start)[Requests] != 1 {
		t.Error("a root whose request is being answered was forgotten")
	}
	kept.Leave()
}

// Without a budget everything goes.
func TestNil(t *testing.T) {
	var b *Budget
	var ticket Ticket
	if err := b.Enter(&ticket, "a", &Limits{Requests: 1}, true, start); err != nil {
		t.Error(err)
	}
	if ticket.Hold(1<<50) != nil || ticket.Stream() != nil || ticket.Begin(t.Context()) != nil || ticket.Resume(t.Context()) != nil {
		t.Error("without a budget something is refused")
	}
	ticket.Keep(0)
	ticket.Follow()
	ticket.Pause()
	ticket.End()
	ticket.Leave()
	if b.Used(start) != (Limits{}) || b.UsedBy("a", start) != (Limits{}) || b.Default() != (Limits{}) || b.Capacity() != (Limits{}) {
		t.Error("without a budget something is used")
	}
}
