package testkit

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/usage"
)

// cell is the consumption of one organization of one meter in one period.
type cell struct {
	org    string
	meter  string
	period string // a usage.Month or a usage.Day
}

// sums are the totals of cells, and those of their children.
type sums struct {
	own, total, below, recorded map[cell]usage.Decimal
}

func newSums() *sums {
	return &sums{map[cell]usage.Decimal{}, map[cell]usage.Decimal{}, map[cell]usage.Decimal{}, map[cell]usage.Decimal{}}
}

func (x *sums) check(t testing.TB) {
	t.Helper()
	for c := range x.below {
		if _, ok := x.total[c]; !ok && c.org != "" {
			t.Errorf("%s of %s in %s: the children have %s, and there is no total", c.meter, c.org, c.period, x.below[c])
		}
	}
	for c := range x.total {
		if x.total[c] != x.own[c]+x.below[c] {
			t.Errorf("%s of %s in %s: total %s, own %s, children %s", c.meter, c.org, c.period, x.total[c], x.own[c], x.below[c])
		}
	}
}

// checkUsage checks the consumption in the tree of a root, in every month and
// on every day: total = own + the totals of the children, own is what the
// stored events, the recorded requests and the adjustments give, and what the
// audit trail says of meters, adjustments and closed months is so. seen are the
// organizations that the tree has ever had.
func checkUsage(t testing.TB, s org.Store, rootID string, seen map[string]bool, fold *org.Fold) {
	t.Helper()
	read := func(fn func(tx org.Tx) error) {
		t.Helper()
		if err := s.Read(context.Background(), fn); err != nil {
			t.Fatal(err)
		}
	}
	meters := map[string]usage.Meter{}
	for _, m := range usage.BuiltIn() {
		meters[m.Slug] = m
	}
	var months []org.Month
	read(func(tx org.Tx) (err error) {
		defined, err := tx.Meters(rootID)
		for _, m := range defined {
			meters[m.Slug] = m
			if f := fold.Meters[rootID][m.Slug]; !fold.ErasedUsage[m.Slug] && (f == nil || !cmp.Equal(*f, m)) {
				t.Errorf("the meter %s of %s is %+v, by the audit trail %+v", m.Slug, rootID, m, f)
			}
		}
		if len(defined) != len(fold.Meters[rootID]) {
			t.Errorf("%s has %d meters, by the audit trail %d", rootID, len(defined), len(fold.Meters[rootID]))
		}
		if err == nil {
			months, err = tx.Months(rootID)
		}
		return err
	})
	for _, m := range months {
		if inTrail := slices.Contains(fold.Closed[rootID], m.Month); inTrail != (m.ClosedAt != nil) {
			t.Errorf("%s of %s is closed: %v, by the audit trail %v", m.Month, rootID, m.ClosedAt != nil, inTrail)
		}
	}
	if len(months) == 0 {
		return
	}

	byMonth, byDay := newSums(), newSums()
	moved := map[cell]usage.Decimal{}   // adjustments by the month in which they are counted
	lateFor := map[cell]usage.Decimal{} // those from events, by the month that they are for
	sumOfDays := map[cell]usage.Decimal{}
	for id := range seen {
		read(func(tx org.Tx) error {
			for _, m := range months {
				totals, err := tx.Totals(rootID, id, m.Month)
				if err != nil {
					return err
				}
				for _, x := range totals {
					c := cell{id, x.Meter, string(m.Month)}
					byMonth.own[c] += x.Own
					byMonth.total[c] += x.Total
					byMonth.recorded[c] += x.Recorded
					byMonth.below[cell{x.ParentID, x.Meter, string(m.Month)}] += x.Total
				}
			}
			days, err := tx.DayTotals(rootID, id, usage.DayOf(months[0].Month.Start()), "9999-12-31")
			if err != nil {
				return err
			}
			for _, x := range days {
				c := cell{id, x.Meter, string(x.Day)}
				byDay.own[c] += x.Own
				byDay.total[c] += x.Total
				byDay.below[cell{x.ParentID, x.Meter, string(x.Day)}] += x.Total
				sumOfDays[cell{id, x.Meter, string(x.Day.Month())}] += x.Own
			}
			var made []usage.Adjustment
			for q := (org.AdjustmentQuery{RootID: rootID, OrgID: id, Limit: 100}); ; {
				page, more, err := tx.Adjustments(q)
				if err != nil {
					return err
				}
				for _, a := range page {
					moved[cell{id, a.Meter, string(a.Month)}] += a.Quantity
					switch a.Origin {
					case usage.FromEvents:
						lateFor[cell{id, a.Meter, string(a.For)}] += a.Quantity
					case usage.FromActor:
						if !fold.ErasedUsage[a.ID] {
							made = append(made, a)
						}
					}
					q.Before = org.AdjustmentPosition{Month: a.Month, ID: a.ID}
				}
				if !more {
					break
				}
			}
			byID := cmpopts.SortSlices(func(a, b usage.Adjustment) bool { return a.ID < b.ID })
			if diff := cmp.Diff(fold.Adjustments[id], made, byID, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("the adjustments of %s (-audit trail +stored)\n%s", id, diff)
			}
			return nil
		})
	}
	byMonth.check(t)
	byDay.check(t)

	// A month's events are one quantity, but of several newest ones any may
	// have been counted last.
	type aggregate struct {
		values []usage.Decimal
		newest time.Time
	}
	fromEvents := map[cell]*aggregate{}
	var last usage.EventKey
	for {
		var events []usage.Event
		read(func(tx org.Tx) (err error) {
			events, err = tx.UsageEvents(rootID, last, 5000)
			return err
		})
		for _, e := range events {
			last = e.EventKey
			c := cell{e.OrgID, e.Meter, string(usage.MonthOf(e.At))}
			a := fromEvents[c]
			first := a == nil
			if first {
				a = &aggregate{values: []usage.Decimal{0}}
				fromEvents[c] = a
			}
			switch meters[e.Meter].Aggregation {
			case usage.Sum:
				a.values[0] += e.Quantity
			case usage.Count:
				a.values[0] += usage.One
			case usage.Max:
				if first || e.Quantity > a.values[0] {
					a.values[0] = e.Quantity
				}
			case usage.Latest:
				switch {
				case first || e.At.After(a.newest):
					a.values, a.newest = []usage.Decimal{e.Quantity}, e.At
				case e.At.Equal(a.newest):
					a.values = append(a.values, e.Quantity)
				}
			}
		}
		if len(events) < 5000 {
			break
		}
	}
	pruned := map[string]bool{}
	for _, m := range months {
		pruned[string(m.Month)] = m.PrunedAt != nil
	}
	for c := range fromEvents {
		if _, ok := byMonth.own[c]; !ok && !slices.Contains(fromEvents[c].values, lateFor[c]) {
			t.Errorf("%s of %s in %s has no total, adjustments of %s elsewhere, and the events give %v", c.meter, c.org, c.period,
				lateFor[c], fromEvents[c].values)
		}
	}
	for c, own := range byMonth.own {
		if pruned[c.period] {
			continue
		}
		rest := own - byMonth.recorded[c] - moved[c] + lateFor[c]
		values := []usage.Decimal{0}
		if a := fromEvents[c]; a != nil {
			values = a.values
		}
		if !slices.Contains(values, rest) {
			t.Errorf("%s of %s in %s: own %s, recorded %s, adjustments %s, late %s, and the events give %v", c.meter, c.org, c.period,
				own, byMonth.recorded[c], moved[c], lateFor[c], values)
		}
		if a := meters[c.meter].Aggregation; (a == usage.Sum || a == usage.Count) && sumOfDays[c]+moved[c] != own {
			t.Errorf("%s of %s in %s: own %s, the days %s, adjustments %s", c.meter, c.org, c.period, own, sumOfDays[c], moved[c])
		}
	}
}
