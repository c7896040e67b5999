package usage

import (
	"time"

	"github.com/orgd/orgd/internal/problem"
)

// Month is a calendar month in UTC, written "2026-11", from 1970-01 to
// 9999-12. Months compare as strings in the order of time.
type Month string

const monthLayout = "2006-01"

// ParseMonth parses a month. The error is problem.InvalidParameter.
func ParseMonth(s string) (Month, error) {
	if t, err := time.Parse(monthLayout, s); err != nil || len(s) != len(monthLayout) || t.Year() < 1970 {
		return "", problem.New(problem.InvalidParameter, "A month is written YYYY-MM, from 1970-01 to 9999-12.")
	}
	return Month(s), nil
}

// MonthOf returns the month in which t lies in UTC. It is not valid if the
// year is before 1970 or after 9999.
func MonthOf(t time.Time) Month {
	return Month(t.UTC().Format(monthLayout))
}

// Valid reports whether ParseMonth accepts m.
func (m Month) Valid() bool {
	_, err := ParseMonth(string(m))
	return err == nil
}

// Start returns the first instant of m, which must be valid.
func (m Month) Start() time.Time {
	t, err := time.Parse(monthLayout, string(m))
	if err != nil {
		panic("usage: invalid month " + string(m))
	}
	return t
}

// End returns the first instant after m, which must be valid.
func (m Month) End() time.Time { return m.Start().AddDate(0, 1, 0) }

// Next returns the month after m, which must be valid. The month after 9999-12
// is not valid.
func (m Month) Next() Month { return MonthOf(m.End()) }

// Closes returns when m, which must be valid, stops to accept events if late
// ones are accepted for grace after its end.
func (m Month) Closes(grace time.Duration) time.Time { return m.End().Add(grace) }

// Closed reports whether m, which must be valid, has stopped to accept events
// at the time now.
func (m Month) Closed(now time.Time, grace time.Duration) bool { return !now.Before(m.Closes(grace)) }

// Day is a day in UTC, written "2026-11-25". Days compare as strings in the
// order of time.
type Day string

// DayOf returns the day in which t lies in UTC.
func DayOf(t time.Time) Day { return Day(t.UTC().Format(time.DateOnly)) }

// Days returns the days of m, which must be valid, up to the one in which
// until lies; none if m begins later.
func (m Month) Days(until time.Time) []Day {
	var days []Day
	for t := m.Start(); t.Before(m.End()) && !t.After(until); t = t.AddDate(0, 0, 1) {
		days = append(days, DayOf(t))
	}
	return days
}

// Months returns the months from first to last, both included and valid.
func Months(first, last Month) []Month {
	var months []Month
	for m := first; m <= last && m.Valid(); m = m.Next() {
		months = append(months, m)
	}
	return months
}

// Month returns the month in which d lies.
func (d Day) Month() Month { return Month(d[:len(monthLayout)]) }
