package usage

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/problem"
)

func TestCheckSlug(t *testing.T) {
	for _, s := range []string{"a", "api_calls", "storage-used", "m2", strings.Repeat("a", 64)} {
		if err := CheckSlug(s); err != nil {
			t.Errorf("CheckSlug(%q) = %v", s, err)
		}
	}
	for _, s := range []string{"", "A", "1a", "_a", "-a", "a b", "a/b", "a.b", "é", "aé", "a\x00", strings.Repeat("a", 65)} {
		if err := CheckSlug(s); !problem.Is(err, problem.InvalidParameter) {
			t.Errorf("CheckSlug(%q) = %v", s, err)
		}
	}
}

func TestBuiltInMeters(t *testing.T) {
	for _, m := range BuiltIn() {
		if err := CheckSlug(m.Slug); err != nil || !m.Aggregation.Valid() || m.Unit == "" || m.EventType == "" || m.Value == "" {
			t.Errorf("%+v is incomplete: %v", m, err)
		}
	}
}

func TestDelta(t *testing.T) {
	at := func(second int) time.Time { return time.Unix(int64(second), 0) }
	none := time.Time{}
	for _, c := range []struct {
		a        Aggregation
		own      Decimal
		latest   time.Time
		event    time.Time
		quantity Decimal
		want     Decimal
		newest   time.Time
	}{
		{Sum, 5, at(9), at(1), -7, -7, at(9)},
		{Count, 5 * One, at(1), at(9), 100, One, at(9)},
		{Max, 0, none, at(1), -3, -3, at(1)},
		{Max, -3, at(1), at(2), -1, 2, at(2)},
		{Max, 5, at(1), at(2), 5, 0, at(2)},
		{Max, 5, at(3), at(2), 9, 4, at(3)},
		{Latest, 0, none, at(1), 4, 4, at(1)},
		{Latest, 4, at(1), at(2), 1, -3, at(2)},
		{Latest, 4, at(2), at(1), 1, 0, at(2)},
		{Latest, 4, at(2), at(2), 1, -3, at(2)},
	} {
		got, newest, err := Delta(c.a, c.own, c.latest, c.event, c.quantity)
		if err != nil || got != c.want || !newest.Equal(c.newest) {
			t.Errorf("%s of %d by %d at %v after %v: %d, %v, %v", c.a, c.own, c.quantity, c.event, c.latest, got, newest, err)
		}
	}
}

func TestDeltaRefuses(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		a             Aggregation
		own, quantity Decimal
	}{
		{Sum, MaxDecimal, 1},
		{Sum, -MaxDecimal, -1},
		{Count, MaxDecimal, 0},
		{Max, -MaxDecimal, MaxDecimal},
		{Latest, MaxDecimal, -MaxDecimal},
	} {
		if delta, latest, err := Delta(c.a, c.own, now, now, c.quantity); !problem.Is(err, problem.InvalidBody) || delta != 0 || latest != now {
			t.Errorf("%s of %d by %d: %d, %v", c.a, c.own, c.quantity, delta, err)
		}
	}
	if delta, _, err := Delta("average", 0, now, now, 1); err == nil {
		t.Errorf("an unknown aggregation adds %d", delta)
	}
}

// Whatever events arrive in whatever order for whichever organizations of a
// tree: own is the aggregate of an organization's events, and total is own and
// the totals of the children.
func TestDeltaKeepsTotals(t *testing.T) {
	type event struct {
		at       time.Time
		quantity Decimal
	}
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.SampledFrom([]Aggregation{Sum, Count, Max, Latest}).Draw(t, "aggregation")
		size := rapid.IntRange(1, 6).Draw(t, "organizations")
		parent := make([]int, size)
		for i := range parent {
			parent[i] = rapid.IntRange(0, max(0, i-1)).Draw(t, "parent")
		}
		own, total := make([]Decimal, size), make([]Decimal, size)
		latest := make([]time.Time, size)
		events := make([][]event, size)
		for range rapid.IntRange(0, 30).Draw(t, "events") {
			org := rapid.IntRange(0, size-1).Draw(t, "organization")
			e := event{time.Unix(rapid.Int64Range(1, 20).Draw(t, "second"), 0), Decimal(rapid.Int64Range(-50, 50).Draw(t, "quantity"))}
			delta, at, err := Delta(a, own[org], latest[org], e.at, e.quantity)
			if err != nil {
				t.Fatal(err)
			}
			events[org] = append(events[org], e)
			latest[org] = at
			own[org] += delta
			for i := org; ; i = parent[i] {
				total[i] += delta
				if i == 0 {
					break
				}
			}
		}
		for i := range size {
			var want Decimal
			var newest time.Time
			for n, e := range events[i] {
				switch a {
				case Sum:
					want += e.quantity
				case Count:
					want += One
				case Max:
					if n == 0 || e.quantity > want {
						want = e.quantity
					}
				case Latest:
					if !e.at.Before(newest) {
						want, newest = e.quantity, e.at
					}
				}
			}
			if own[i] != want {
				t.Fatalf("%s of %v is %d, want %d", a, events[i], own[i], want)
			}
			sum := own[i]
			for child := i + 1; child < size; child++ {
				if parent[child] == i {
					sum += total[child]
				}
			}
			if total[i] != sum {
				t.Fatalf("organization %d: total %d, own and children %d", i, total[i], sum)
			}
		}
	})
}
