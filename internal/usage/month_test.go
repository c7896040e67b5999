package usage

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/problem"
)

func TestParseMonth(t *testing.T) {
	for _, s := range []string{"1970-01", "2026-11", "2028-02", "9999-12"} {
		if m, err := ParseMonth(s); err != nil || string(m) != s || !m.Valid() {
			t.Errorf("ParseMonth(%q) = %q, %v", s, m, err)
		}
	}
	for _, s := range []string{"", "2026", "2026-1", "2026-13", "2026-00", "1969-12", "10000-01", "2026-11-01", " 2026-11", "2026/11",
		"-026-11", "2026-+1", "２026-11"} {
		if m, err := ParseMonth(s); !problem.Is(err, problem.InvalidParameter) || Month(s).Valid() {
			t.Errorf("ParseMonth(%q) = %q, %v", s, m, err)
		}
	}
}

func TestMonthBounds(t *testing.T) {
	berlin := time.FixedZone("", 3600)
	for _, c := range []struct {
		at   time.Time
		want Month
	}{
		{time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), "2026-11"},
		{time.Date(2026, 11, 1, 0, 59, 59, 999, berlin), "2026-10"},
		{time.Date(2026, 12, 31, 23, 59, 59, 999_999_999, time.UTC), "2026-12"},
		{time.Date(2027, 1, 1, 0, 0, 0, 0, berlin), "2026-12"},
	} {
		if got := MonthOf(c.at); got != c.want {
			t.Errorf("MonthOf(%v) = %s, want %s", c.at, got, c.want)
		}
	}
	if got, want := Month("2026-12").Closes(72*time.Hour), time.Date(2027, 1, 4, 0, 0, 0, 0, time.UTC); !got.Equal(want) {
		t.Errorf("2026-12 closes at %v, want %v", got, want)
	}
	if next := Month("9999-12").Next(); next.Valid() {
		t.Errorf("the month after 9999-12 is %s and valid", next)
	}
}

// Months cover time without gaps, and their order is the order of strings.
func TestMonthsPartitionTime(t *testing.T) {
	last := time.Date(9999, 12, 1, 0, 0, 0, 0, time.UTC).Unix()
	rapid.Check(t, func(t *rapid.T) {
		at := time.Unix(rapid.Int64Range(0, last-1).Draw(t, "seconds"), rapid.Int64Range(0, 999_999_999).Draw(t, "nanoseconds"))
		m := MonthOf(at)
		if !m.Valid() || at.Before(m.Start()) || !at.Before(m.End()) {
			t.Fatalf("%v is in %s, from %v to %v", at, m, m.Start(), m.End())
		}
		next := m.Next()
		if !next.Start().Equal(m.End()) || next <= m || MonthOf(m.End().Add(-1)) != m {
			t.Fatalf("%s follows %s", next, m)
		}
	})
}
