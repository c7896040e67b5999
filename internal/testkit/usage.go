package testkit

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/orgd/orgd/internal/metering"
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
// audit trail says of meters, adjustments and closed months is so. What is kept
// of organizations that have been purged is under names that nobody finds by an
// id. seen says how many organizations of the tree have had each id: an event
// does not say which of several it was about.
func checkUsage(t testing.TB, s database, rootID string, seen map[string]int, fold *Fold) {
	t.Helper()
	read := func(fn func(tx Tx) error) {
		t.Helper()
		if err := s.Read(context.Background(), fn); err != nil {
			t.Fatal(err)
		}
	}
	meters := map[string]usage.Meter{}
	for _, m := range usage.BuiltIn() {
		meters[m.Slug] = m
	}
	var months []metering.Month
	read(func(tx Tx) (err error) {
		defined, err := tx.Meters(rootID)
		for _, m := range defined {
			meters[m.Slug] = m
			if f := fold.Metering.Meters[rootID][m.Slug]; !fold.Metering.ErasedUsage[m.Slug] && (f == nil || !cmp.Equal(*f, m)) {
				t.Errorf("the meter %s of %s is %+v, by the audit trail %+v", m.Slug, rootID, m, f)
			}
		}
		if len(defined) != len(fold.Metering.Meters[rootID]) {
			t.Errorf("%s has %d meters, by the audit trail %d", rootID, len(defined), len(fold.Metering.Meters[rootID]))
		}
		if err == nil {
			months, err = tx.Months(rootID)
		}
		return err
	})
	for _, m := range months {
		if inTrail := slices.Contains(fold.Metering.Closed[rootID], m.Month); inTrail != (m.ClosedAt != nil) {
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
	parent := map[string]string{}
	treeMoved := false // an organization has consumed below several parents
	// While a purge is under way a part of the names is new.
	purging := map[string]bool{}
	read(func(tx Tx) error {
		tops, err := tx.Purging(1000)
		for _, o := range tops {
			purging[o.DeletionID] = true
		}
		return err
	})
	known := func(name string) string {
		if id, deletionID, former := strings.Cut(name, metering.FormerMark); former && purging[deletionID] {
			return id
		}
		return name
	}
	for name := range usageNames(t, s, rootID, months, seen) {
		id := known(name)
		read(func(tx Tx) error {
			for _, m := range months {
				totals, err := tx.Totals(rootID, name, m.Month)
				if err != nil {
					return err
				}
				for _, x := range totals {
					c := cell{id, x.Meter, string(m.Month)}
					if p, ok := parent[id]; ok && p != x.ParentID {
						treeMoved = true
					}
					parent[id] = x.ParentID
					byMonth.own[c] += x.Own
					byMonth.total[c] += x.Total
					byMonth.recorded[c] += x.Recorded
					byMonth.below[cell{known(x.ParentID), x.Meter, string(m.Month)}] += x.Total
				}
			}
			days, err := tx.DayTotals(rootID, name, usage.DayOf(months[0].Month.Start()), "9999-12-31")
			if err != nil {
				return err
			}
			for _, x := range days {
				c := cell{id, x.Meter, string(x.Day)}
				byDay.own[c] += x.Own
				byDay.total[c] += x.Total
				byDay.below[cell{known(x.ParentID), x.Meter, string(x.Day)}] += x.Total
				sumOfDays[cell{id, x.Meter, string(x.Day.Month())}] += x.Own
			}
			var made []usage.Adjustment
			for q := (metering.AdjustmentQuery{RootID: rootID, OrgID: name, Limit: 100}); ; {
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
						if !fold.Metering.ErasedUsage[a.ID] {
							made = append(made, a)
						}
					}
					q.Before = metering.AdjustmentPosition{Month: a.Month, ID: a.ID}
				}
				if !more {
					break
				}
			}
			if metering.PlainID(name) != name {
				return nil
			}
			byID := cmpopts.SortSlices(func(a, b usage.Adjustment) bool { return a.ID < b.ID })
			if diff := cmp.Diff(fold.Metering.Adjustments[id], made, byID, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("the adjustments of %s (-audit trail +stored)\n%s", id, diff)
			}
			return nil
		})
	}
	byMonth.check(t)
	byDay.check(t)

	// A month's events are one quantity, but of several newest ones any may
	// have been counted last. Where organizations have moved, a gauge that fell
	// since may have left some of it with the old ancestors.
	type aggregate struct {
		values []usage.Decimal
		newest time.Time
		most   usage.Decimal
	}
	fromEvents := map[cell]*aggregate{}
	var last usage.EventKey
	for {
		var events []usage.Event
		read(func(tx Tx) (err error) {
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
				a.most = max(a.most, e.Quantity)
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
		if _, ok := byMonth.own[c]; !ok && !treeMoved && seen[c.org] == 1 && fold.Orgs[c.org] != nil && !slices.Contains(fromEvents[c].values, lateFor[c]) {
			t.Errorf("%s of %s in %s has no total, adjustments of %s elsewhere, and the events give %v", c.meter, c.org, c.period,
				lateFor[c], fromEvents[c].values)
		}
	}
	for c, own := range byMonth.own {
		if a := meters[c.meter].Aggregation; (a == usage.Sum || a == usage.Count) && !pruned[c.period] && sumOfDays[c]+moved[c] != own {
			t.Errorf("%s of %s in %s: own %s, the days %s, adjustments %s", c.meter, c.org, c.period, own, sumOfDays[c], moved[c])
		}
		if pruned[c.period] || seen[c.org] != 1 {
			continue
		}
		rest := own - byMonth.recorded[c] - moved[c] + lateFor[c]
		values := []usage.Decimal{0}
		left := false
		if a := fromEvents[c]; a != nil {
			values = a.values
			left = treeMoved && meters[c.meter].Aggregation == usage.Latest && slices.Min(values) <= rest && rest <= a.most
		}
		if !slices.Contains(values, rest) && !left {
			t.Errorf("%s of %s in %s: own %s, recorded %s, adjustments %s, late %s, and the events give %v", c.meter, c.org, c.period,
				own, byMonth.recorded[c], moved[c], lateFor[c], values)
		}
	}
}

// usageNames returns the names under which consumption is kept in the tree of a
// root, and the ids of its organizations. A name that is an id is one of an
// organization that is there, live or deleted.
func usageNames(t testing.TB, s database, rootID string, months []metering.Month, seen map[string]int) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	if err := s.Read(context.Background(), func(tx Tx) error {
		for id := range seen {
			names[id] = true
		}
		for _, m := range months {
			for last := (usage.Total{}); ; {
				page, err := tx.MonthTotals(rootID, m.Month, last, 1000)
				if err != nil {
					return err
				}
				for _, last = range page {
					if names[last.OrgID] = true; metering.PlainID(last.OrgID) != last.OrgID {
						continue
					}
					if o, err := tx.Org(last.OrgID); err != nil || o.RootID != rootID {
						t.Errorf("%s has consumption in %s of %s, but: %v", last.OrgID, m.Month, rootID, err)
					}
				}
				if len(page) < 1000 {
					break
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return names
}
