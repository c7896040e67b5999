package usage

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Wherever an organization moves, and whatever not negative quantities come in
// whatever order: a state is the sum of what was added, no place that the
// organization had is charged less than nothing, and in one place the state is
// the aggregate of the events.
func TestStateCountsByPlace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.SampledFrom([]Aggregation{Max, Latest}).Draw(t, "aggregation")
		places := rapid.IntRange(1, 3).Draw(t, "places")
		var s State
		charged := map[string]Decimal{}
		var newest time.Time
		var aggregate, most Decimal
		for range rapid.IntRange(1, 20).Draw(t, "events") {
			path := rapid.SampledFrom([]string{"r/a/x/", "r/b/x/", "r/x/"}[:places]).Draw(t, "path")
			at := time.Unix(rapid.Int64Range(1, 10).Draw(t, "second"), 0)
			quantity := Decimal(rapid.Int64Range(0, 50).Draw(t, "quantity"))
			delta, err := s.Count(a, path, at, quantity)
			if err != nil {
				t.Fatal(err)
			}
			charged[path] += delta
			most = max(most, quantity)
			if a == Max {
				aggregate = most
			} else if !at.Before(newest) {
				aggregate, newest = quantity, at
			}
			var sum Decimal
			for place, c := range charged {
				if c < 0 {
					t.Fatalf("%s is charged %s", place, c)
				}
				sum += c
			}
			if sum != s.Value || s.Value < aggregate || s.Value > most || (places == 1 || a == Max) && s.Value != aggregate {
				t.Fatalf("%s of %s: the state is %s, charged %s, at most %s", a, aggregate, s.Value, sum, most)
			}
		}
	})
}

// A quantity from somebody with the authority for it may be negative, and a
// state from before places were kept is as one of the present place.
func TestStateBelowNothing(t *testing.T) {
	at := time.Unix(1, 0)
	for _, test := range []struct {
		name     string
		state    State
		quantity Decimal
		delta    Decimal
	}{
		{"the first", State{}, -5, -5},
		{"of the present place", State{Value: 10, LatestAt: at, Path: "r/", Here: 10}, -5, -15},
		{"after a move", State{Value: 10, LatestAt: at, Path: "r/a/", Here: 10}, -5, -5},
		{"of no known place", State{Value: 10, LatestAt: at}, 4, -6},
		{"of another place", State{Value: 10, LatestAt: at, Path: "r/a/", Here: 10}, 4, 0},
		{"in part of another place", State{Value: 10, LatestAt: at, Path: "r/", Here: 3}, 4, -3},
		{"that was below nothing", State{Value: -5, LatestAt: at, Path: "r/", Here: -5}, 7, 12},
	} {
		delta, err := test.state.Count(Latest, "r/", at, test.quantity)
		if err != nil || delta != test.delta {
			t.Errorf("%s: %s adds %s, want %s (%v)", test.name, test.quantity, delta, test.delta, err)
		}
	}
}
