package usagetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/store/storetest"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/usage"
)

func usageEvent(source, id string, part int, orgID string) usage.Event {
	return usage.Event{EventKey: usage.EventKey{RootID: "r", Sender: "r", Source: source, ID: id, Part: part}, OrgID: orgID, Meter: "tokens",
		At: storetest.Epoch, Quantity: usage.One}
}

func claim(t testing.TB, s storetest.Store, events ...usage.Event) (fresh []bool) {
	t.Helper()
	storetest.Write(t, s, func(tx testkit.Tx) (err error) {
		fresh, err = tx.ClaimEvents(events, usage.ClaimOrder(events))
		return err
	})
	return fresh
}

func testClaimEvents(t *testing.T, s storetest.Store) {
	storetest.Plant(t, s, "r/", "r/a/")
	a, b := usageEvent("s", "1", 0, "a"), usageEvent("s", "2", 0, "a")
	storetest.WantEqual(t, claim(t, s, b, a, a), []bool{true, true, false})
	storetest.WantEqual(t, claim(t, s, a, usageEvent("s", "3", 0, "r"), b), []bool{false, true, false})
	// The same id from another source, or in another root, is another event.
	elsewhere := a
	elsewhere.RootID = "q"
	storetest.WantEqual(t, claim(t, s, usageEvent("t", "1", 0, "a"), elsewhere), []bool{true, true})
	// Parts go with part 0.
	storetest.WantEqual(t, claim(t, s, usageEvent("s", "1", 0, "a"), usageEvent("s", "1", 1, "a"), usageEvent("s", "4", 0, "a"), usageEvent("s", "4", 1, "a")),
		[]bool{false, false, true, true})
	// An event that comes twice is the first, with all its parts and no others.
	storetest.WantEqual(t, claim(t, s, usageEvent("s", "5", 0, "a"), usageEvent("s", "5", 0, "a"), usageEvent("s", "5", 1, "a"), usageEvent("s", "5", 2, "a")),
		[]bool{true, false, false, false})
	storetest.WantEqual(t, claim(t, s), []bool(nil))
	var ids []string
	var last usage.EventKey
	for {
		page := storetest.Get(t, s, func(tx testkit.Tx) ([]usage.Event, error) { return tx.UsageEvents("r", last, 2) })
		for _, e := range page {
			ids = append(ids, fmt.Sprint(e.Source, e.ID, e.Part))
			last = e.EventKey
		}
		if len(page) < 2 {
			break
		}
	}
	storetest.WantEqual(t, ids, []string{"s10", "s20", "s30", "s40", "s41", "s50", "t10"})
	// What a transaction that fails has claimed is free.
	failed := errors.New("failed")
	err := s.Write(t.Context(), func(tx testkit.Tx) error {
		_, err := tx.ClaimEvents([]usage.Event{usageEvent("s", "9", 0, "a")}, []int{0})
		return errors.Join(err, failed)
	})
	storetest.WantErr(t, err, failed)
	storetest.WantEqual(t, claim(t, s, usageEvent("s", "9", 0, "a")), []bool{true})
}

func from(sender string, e usage.Event) usage.Event {
	e.Sender = sender
	return e
}

// testClaimSenders: an id that one sender has used is free for every other, and
// what is read and pruned goes through the events of all of them.
func testClaimSenders(t *testing.T, s storetest.Store) {
	storetest.Plant(t, s, "r/", "r/a/", "r/b/")
	one, two := usageEvent("s", "1", 0, "a"), usageEvent("s", "2", 0, "a")
	part := usageEvent("s", "2", 1, "a")
	storetest.WantEqual(t, claim(t, s, from("b", one), from("b", two)), []bool{true, true})
	storetest.WantEqual(t, claim(t, s, from("a", one), from("a", two), from("a", part)), []bool{true, true, true})
	storetest.WantEqual(t, claim(t, s, from("/operator", two), from("/operator", part)), []bool{true, true})
	// Together they are each who they are.
	storetest.WantEqual(t, claim(t, s, from("b", one), from("c", one), from("a", one), from("c", one)), []bool{false, true, false, false})
	list := func() (keys []string) {
		t.Helper()
		for after := (usage.EventKey{}); ; {
			page := storetest.Get(t, s, func(tx testkit.Tx) ([]usage.Event, error) { return tx.UsageEvents("r", after, 3) })
			for _, e := range page {
				keys = append(keys, fmt.Sprint(e.Sender, ":", e.ID, e.Part))
				after = e.EventKey
			}
			if len(page) < 3 {
				return keys
			}
		}
	}
	storetest.WantEqual(t, list(), strings.Fields("/operator:20 /operator:21 a:10 a:20 a:21 b:10 b:20 c:10"))
	late := from("b", usageEvent("s", "9", 0, "a"))
	late.At = storetest.Epoch.AddDate(0, 1, 0)
	claim(t, s, late)
	for after := new(usage.EventKey{RootID: "r"}); after != nil; {
		storetest.Write(t, s, func(tx testkit.Tx) (err error) {
			after, err = tx.PruneEvents("r", storetest.Epoch.AddDate(0, 0, 1), *after, 2)
			return err
		})
	}
	storetest.WantEqual(t, list(), strings.Fields("b:90"))
	storetest.WantEqual(t, claim(t, s, from("b", one), late), []bool{true, false})
}

// testPurgedSender: who gets the id of a purged organization, or a root that was
// purged, has sent nothing yet. What the former one sent for others stays
// counted.
func testPurgedSender(t *testing.T, s storetest.Store) {
	storetest.Plant(t, s, "r/", "r/a/", "r/a/b/")
	mine, other := from("b", usageEvent("s", "1", 0, "b")), from("b", usageEvent("s", "2", 0, "a"))
	for round := range 3 {
		storetest.WantEqual(t, claim(t, s, mine, other), []bool{true, true})
		storetest.WantEqual(t, storetest.IngestFrom(t, s, "b", storetest.Incoming("b", "one", 1), storetest.Incoming("a", "two", 1)), int64(0))
		storetest.WantEqual(t, claim(t, s, mine, other), []bool{false, false})
		storetest.WantEqual(t, storetest.IngestFrom(t, s, "b", storetest.Incoming("b", "one", 1), storetest.Incoming("a", "two", 1)), int64(2))
		deletion := fmt.Sprint("del_", round)
		storetest.Write(t, s, func(tx testkit.Tx) error {
			_, err := tx.MarkDeleted("r", "r/a/b/", deletion, storetest.At(1))
			if err == nil {
				_, err = tx.BeginPurge("r", deletion, storetest.At(2))
			}
			return err
		})
		for done := false; !done; {
			storetest.Write(t, s, func(tx testkit.Tx) (err error) {
				_, done, err = tx.Purge("r", deletion, 1000, storetest.At(3))
				return err
			})
		}
		storetest.Plant(t, s, "r/a/b/")
	}
	var kept int
	for _, e := range storetest.Get(t, s, func(tx testkit.Tx) ([]usage.Event, error) { return tx.UsageEvents("r", usage.EventKey{}, 100) }) {
		if e.OrgID == "a" {
			kept++
		}
	}
	storetest.WantEqual(t, kept, 3)
	// In the namespace of another sender nothing has changed.
	storetest.WantEqual(t, claim(t, s, from("a", other)), []bool{true})
	storetest.WantEqual(t, claim(t, s, from("a", other)), []bool{false})
}

// testClaimRace: of many transactions that claim the same events in any order,
// each event belongs to exactly one, and none fails.
func testClaimRace(t *testing.T, s storetest.Store) {
	storetest.Plant(t, s, "r/", "r/a/")
	const events = 40
	var won [events]atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				order := rand.Perm(events)
				var list []usage.Event
				for _, i := range order {
					list = append(list, usageEvent("s", fmt.Sprint(i), 0, "a"))
				}
				var fresh []bool
				err := s.Write(context.Background(), func(tx testkit.Tx) (err error) {
					if fresh, err = tx.ClaimEvents(list, usage.ClaimOrder(list)); err != nil {
						return err
					}
					var entries []usage.Entry
					for n := range fresh {
						if fresh[n] {
							entries = append(entries, usage.Entry{Path: "r/a/", Meter: "tokens", Month: "2026-11", Quantity: usage.One})
						}
					}
					return tx.AddUsage(entries, storetest.Epoch)
				})
				if err != nil {
					t.Error(err)
				}
				for n, i := range order {
					if fresh[n] {
						won[i].Add(1)
					}
				}
			}
		})
	}
	wg.Wait()
	for i := range won {
		if n := won[i].Load(); n != 1 {
			t.Errorf("event %d was claimed %d times", i, n)
		}
	}
	for _, x := range storetest.Get(t, s, func(tx testkit.Tx) ([]usage.Total, error) { return tx.Totals("r", "r", "2026-11") }) {
		storetest.WantEqual(t, x.Total, events*usage.One)
	}
}

func testAddUsage(t *testing.T, s storetest.Store) {
	storetest.Plant(t, s, "r/", "r/a/", "r/a/b/")
	const month, late = usage.Month("2026-11"), usage.Month("2026-10")
	add := func(entries ...usage.Entry) error {
		return s.Write(t.Context(), func(tx testkit.Tx) error { return tx.AddUsage(entries, storetest.Epoch) })
	}
	entry := func(path string, quantity, ofDay usage.Decimal, day usage.Day) usage.Entry {
		return usage.Entry{Path: path, Meter: "m", Month: month, Quantity: quantity, Day: day, OfDay: ofDay}
	}
	storetest.WantErr(t, add(entry("r/a/b/", 5, 4, "2026-11-02"), entry("r/a/", 1, 1, "2026-11-02"), entry("r/a/b/", 2, 2, "2026-11-03")), nil)
	storetest.WantErr(t, add(usage.Entry{Path: "r/a/b/", Meter: "m", Month: month, Quantity: 10, For: late}), nil)
	storetest.WantErr(t, add(usage.Entry{Path: "r/a/b/", Meter: "m", Month: month, Quantity: 20, For: late, Recorded: true},
		usage.Entry{Path: "r/a/b/", Meter: "m", Month: month, Quantity: 30, For: late}), nil)
	totals := func(id string) []usage.Total {
		t.Helper()
		return storetest.Get(t, s, func(tx testkit.Tx) ([]usage.Total, error) { return tx.Totals("r", id, month) })
	}
	storetest.WantEqual(t, totals("b"), []usage.Total{{RootID: "r", OrgID: "b", ParentID: "a", Month: month, Meter: "m", Own: 67, Total: 67}})
	storetest.WantEqual(t, totals("a"), []usage.Total{{RootID: "r", OrgID: "a", ParentID: "r", Month: month, Meter: "m", Own: 1, Total: 68}})
	storetest.WantEqual(t, totals("r"), []usage.Total{{RootID: "r", OrgID: "r", Month: month, Meter: "m", Total: 68}})
	days := func(id string, first, last usage.Day) []usage.DayTotal {
		t.Helper()
		return storetest.Get(t, s, func(tx testkit.Tx) ([]usage.DayTotal, error) { return tx.DayTotals("r", id, first, last) })
	}
	storetest.WantEqual(t, days("a", "2026-11-01", "2026-11-02"), []usage.DayTotal{{RootID: "r", OrgID: "a", ParentID: "r", Day: "2026-11-02", Meter: "m", Own: 1, Total: 5}})
	storetest.WantEqual(t, len(days("b", "2026-11-01", "2026-11-30")), 2)

	list := storetest.Get(t, s, func(tx testkit.Tx) (list []usage.Adjustment, err error) {
		list, _, err = tx.Adjustments(metering.AdjustmentQuery{RootID: "r", OrgID: "b", Limit: 10})
		return list, err
	})
	sums := map[usage.Origin]usage.Decimal{}
	for _, a := range list {
		sums[a.Origin] += a.Quantity
		if a.Month != month || a.For != late || a.Meter != "m" || !a.CreatedAt.Equal(storetest.Epoch) || a.Reason == "" {
			t.Errorf("adjustment %+v", a)
		}
	}
	storetest.WantEqual(t, sums, map[usage.Origin]usage.Decimal{usage.FromEvents: 40, usage.FromRecorder: 20})

	// A sum that is out of range changes nothing, wherever it is in the tree.
	var beyond *usage.RangeError
	storetest.WantErr(t, add(entry("r/a/", usage.MaxDecimal-100, 0, "")), nil)
	for _, e := range []usage.Entry{entry("r/a/b/", 200, 0, ""), entry("r/a/", usage.MaxDecimal, 0, ""), entry("r/a/b/", -usage.MaxDecimal, 0, "")} {
		if err := add(entry("r/a/b/", 1, 0, ""), e); e.Quantity > 0 && !errors.As(err, &beyond) || e.Quantity < 0 && err != nil {
			t.Errorf("adding %s: %v", e.Quantity, err)
		}
	}
	storetest.WantEqual(t, totals("b")[0].Own, 68-usage.MaxDecimal)
	storetest.WantEqual(t, totals("r")[0].Total, usage.Decimal(69-100))

	// What is recorded and out of range does not keep the rest of its batch.
	storetest.FlushBatch(t, s, access.Batch{SpoolID: "spool", Position: access.Position{Segment: 9}, Usage: []access.Usage{
		{RootID: "r", Path: "r/a/", At: storetest.Epoch, Meter: "n", Quantity: usage.MaxDecimal}, {RootID: "r", Path: "r/", At: storetest.Epoch, Meter: "n", Quantity: 1},
		{RootID: "r", Path: "r/", At: storetest.Epoch, Meter: "o", Quantity: 7}}})
	for _, x := range totals("r") {
		if x.Meter == "o" && x.Total != 7 || x.Total != x.Own && x.Meter != "m" && x.Meter != "n" {
			t.Errorf("total %+v", x)
		}
	}
}

func testMonths(t *testing.T, s storetest.Store) {
	storetest.Plant(t, s, "r/", "q/")
	const october, november = usage.Month("2026-10"), usage.Month("2026-11")
	storetest.Read(t, s, func(tx testkit.Tx) error {
		roots, err := tx.RootsWithout(october, "", 10)
		storetest.WantEqual(t, roots, []string(nil)) // the roots are younger
		return err
	})
	storetest.Write(t, s, func(tx testkit.Tx) error {
		_, err := tx.HoldMonth("r", october)
		storetest.WantErr(t, err, org.ErrAbsent)
		err = errors.Join(tx.OpenMonth("r", october), tx.OpenMonth("r", october))
		closed, held := tx.HoldMonth("r", october)
		storetest.WantEqual(t, closed, false)
		return errors.Join(err, held)
	})
	toClose := func(last usage.Month) (list []string) {
		t.Helper()
		for _, m := range storetest.Get(t, s, func(tx testkit.Tx) ([]metering.Month, error) { return tx.OpenMonths(last, 10) }) {
			list = append(list, m.RootID+" "+string(m.Month))
		}
		return list
	}
	storetest.WantEqual(t, toClose("2026-09"), []string(nil))
	storetest.WantEqual(t, toClose(november), []string{"r 2026-10"})
	closeMonth := func(rootID string, month usage.Month) (closed bool) {
		t.Helper()
		storetest.Write(t, s, func(tx testkit.Tx) (err error) {
			closed, err = tx.CloseMonth(rootID, month, storetest.Epoch)
			return err
		})
		return closed
	}
	storetest.WantEqual(t, closeMonth("r", october), true)
	storetest.WantEqual(t, closeMonth("r", october), false)
	storetest.WantEqual(t, toClose(november), []string(nil))
	without := func(after string) []string {
		t.Helper()
		return storetest.Get(t, s, func(tx testkit.Tx) ([]string, error) { return tx.RootsWithout(november, after, 10) })
	}
	storetest.WantEqual(t, without(""), []string{"q", "r"})
	storetest.WantEqual(t, without("q"), []string{"r"})
	storetest.WantEqual(t, closeMonth("q", november), true)
	storetest.WantEqual(t, without(""), []string{"r"})
	storetest.WantEqual(t, storetest.Get(t, s, func(tx testkit.Tx) ([]metering.Month, error) { return tx.Months("r") }), []metering.Month{{RootID: "r", Month: october, ClosedAt: new(storetest.Epoch)}})

	// Who holds a month keeps it from being closed.
	holding, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	var order []string
	var mu sync.Mutex
	note := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, what)
	}
	storetest.Write(t, s, func(tx testkit.Tx) error { return tx.OpenMonth("r", november) })
	wg.Go(func() {
		once := sync.OnceFunc(func() { close(holding) })
		if err := s.Write(context.Background(), func(tx testkit.Tx) error {
			closed, err := tx.HoldMonth("r", november)
			if closed {
				t.Error("it is closed already")
			}
			once()
			<-release
			note("held")
			return err
		}); err != nil {
			t.Error(err)
		}
	})
	<-holding
	for _, lock := range []func(tx testkit.Tx) error{
		func(tx testkit.Tx) error { _, err := tx.CloseMonth("r", november, storetest.Epoch); return err },
		func(tx testkit.Tx) error { return tx.LockMonths("r") },
	} {
		wg.Go(func() {
			if err := s.Write(context.Background(), func(tx testkit.Tx) error {
				err := lock(tx)
				note("locked")
				return err
			}); err != nil {
				t.Error(err)
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	close(release)
	wg.Wait()
	storetest.WantEqual(t, order, []string{"held", "locked", "locked"})

	// Recorded requests of a closed month are counted in the next open one.
	storetest.Write(t, s, func(tx testkit.Tx) error { return tx.OpenMonth("r", "2026-12") })
	storetest.FlushBatch(t, s, access.Batch{SpoolID: "spool", Position: access.Position{Segment: 1}, Usage: []access.Usage{
		{RootID: "r", Path: "r/", At: october.Start(), Meter: "m", Quantity: 3}, {RootID: "r", Path: "r/", At: november.Start(), Meter: "m", Quantity: 4}}})
	got := storetest.Get(t, s, func(tx testkit.Tx) ([]usage.Total, error) { return tx.Totals("r", "r", "2026-12") })
	storetest.WantEqual(t, got, []usage.Total{{RootID: "r", OrgID: "r", Month: "2026-12", Meter: "m", Own: 7, Total: 7}})
}

func testPruneUsage(t *testing.T, s storetest.Store) {
	storetest.Plant(t, s, "r/", "r/a/")
	var events []usage.Event
	for i := range 10 {
		e := usageEvent("s", fmt.Sprint(i), 0, "a")
		if i%2 == 0 {
			e.At = storetest.Epoch.AddDate(0, -1, 0)
		}
		events = append(events, e)
	}
	claim(t, s, events...)
	month := usage.MonthOf(storetest.Epoch.AddDate(0, -1, 0))
	storetest.Write(t, s, func(tx testkit.Tx) error {
		_, err := tx.CloseMonth("r", month, storetest.Epoch)
		return errors.Join(err, tx.OpenMonth("r", month.Next()))
	})
	storetest.WantEqual(t, len(storetest.Get(t, s, func(tx testkit.Tx) ([]metering.Month, error) { return tx.MonthsToPrune(month.Next(), 10) })), 1)
	steps := 0
	for after := new(usage.EventKey{RootID: "r"}); after != nil; steps++ {
		storetest.Write(t, s, func(tx testkit.Tx) (err error) {
			after, err = tx.PruneEvents("r", month.End(), *after, 3)
			return err
		})
	}
	storetest.WantEqual(t, steps, 4)
	var left []string
	for _, e := range storetest.Get(t, s, func(tx testkit.Tx) ([]usage.Event, error) { return tx.UsageEvents("r", usage.EventKey{}, 100) }) {
		left = append(left, e.ID)
	}
	storetest.WantEqual(t, left, []string{"1", "3", "5", "7", "9"})
	storetest.Write(t, s, func(tx testkit.Tx) error { return tx.MarkPruned("r", month, storetest.Epoch) })
	storetest.WantEqual(t, len(storetest.Get(t, s, func(tx testkit.Tx) ([]metering.Month, error) { return tx.MonthsToPrune(month.Next(), 10) })), 0)
}

func testStates(t *testing.T, s storetest.Store) {
	storetest.Plant(t, s, "r/", "r/a/")
	a := usage.Series{RootID: "r", Period: "2026-11", OrgID: "a", Meter: "m"}
	b := usage.Series{RootID: "r", Period: "2026-11-03", OrgID: "r", Meter: "m"}
	storetest.Write(t, s, func(tx testkit.Tx) error {
		got, err := tx.States([]usage.Series{b, a})
		storetest.WantEqual(t, got, map[usage.Series]usage.State{a: {}, b: {}})
		return errors.Join(err, tx.PutStates(map[usage.Series]usage.State{a: {Value: -5, LatestAt: storetest.Epoch, Path: "r/a/", Here: -2}, b: {Value: 7, LatestAt: storetest.At(1)}}))
	})
	storetest.Write(t, s, func(tx testkit.Tx) error {
		got, err := tx.States([]usage.Series{a, b})
		storetest.WantEqual(t, got, map[usage.Series]usage.State{a: {Value: -5, LatestAt: storetest.Epoch, Path: "r/a/", Here: -2}, b: {Value: 7, LatestAt: storetest.At(1)}})
		return errors.Join(err, tx.PruneStates("r", "2026-11"))
	})
	storetest.Write(t, s, func(tx testkit.Tx) error {
		got, err := tx.States([]usage.Series{a, b})
		storetest.WantEqual(t, got, map[usage.Series]usage.State{a: {}, b: {Value: 7, LatestAt: storetest.At(1)}})
		return err
	})
	// Nobody else changes a state between States and the end.
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 10 {
				if err := s.Write(context.Background(), func(tx testkit.Tx) error {
					got, err := tx.States([]usage.Series{b, a})
					if err != nil {
						return err
					}
					for k, v := range got {
						v.Value++
						v.LatestAt = storetest.Epoch
						got[k] = v
					}
					return tx.PutStates(got)
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	storetest.Write(t, s, func(tx testkit.Tx) error {
		got, err := tx.States([]usage.Series{a, b})
		storetest.WantEqual(t, []usage.Decimal{got[a].Value, got[b].Value}, []usage.Decimal{40, 47})
		return err
	})
}

func testMeters(t *testing.T, s storetest.Store) {
	storetest.Plant(t, s, "r/", "q/")
	m := usage.Meter{Slug: "tokens", Unit: "tokens", Aggregation: usage.Max, Description: "d", EventType: "e", Value: "/v",
		CreatedAt: storetest.Epoch, UpdatedAt: storetest.At(1), Version: 1}
	storetest.Write(t, s, func(tx testkit.Tx) error { return tx.PutMeter("r", &m) })
	m.Unit, m.UpdatedAt, m.Version = "x", storetest.At(2), 2
	other := m
	other.Slug = "a"
	storetest.Write(t, s, func(tx testkit.Tx) error { return errors.Join(tx.PutMeter("r", &m), tx.PutMeter("r", &other)) })
	meters := func(rootID string) []usage.Meter {
		t.Helper()
		return storetest.Get(t, s, func(tx testkit.Tx) ([]usage.Meter, error) { return tx.Meters(rootID) })
	}
	storetest.WantEqual(t, meters("r"), []usage.Meter{other, m})
	storetest.WantEqual(t, meters("q"), []usage.Meter(nil))
	used := func(slug string) bool {
		t.Helper()
		return storetest.Get(t, s, func(tx testkit.Tx) (bool, error) { return tx.MeterUsed("r", slug) })
	}
	storetest.WantEqual(t, used("tokens"), false)
	storetest.Write(t, s, func(tx testkit.Tx) error {
		return errors.Join(tx.OpenMonth("r", "2026-11"), tx.AddUsage([]usage.Entry{{Path: "r/x/", Meter: "tokens", Month: "2026-11"}}, storetest.Epoch))
	})
	storetest.WantEqual(t, used("tokens"), true)
	storetest.WantEqual(t, used("a"), false)
	storetest.Write(t, s, func(tx testkit.Tx) error { return tx.DeleteMeter("r", "a") })
	storetest.WantEqual(t, meters("r"), []usage.Meter{m})
}

func testPlaces(t *testing.T, s storetest.Store) {
	storetest.Plant(t, s, "r/", "r/a/", "r/a/b/", "q/")
	storetest.Write(t, s, func(tx testkit.Tx) error {
		_, err := tx.MarkDeleted("r", "r/a/b/", "d", storetest.Epoch)
		return err
	})
	got := storetest.Get(t, s, func(tx testkit.Tx) (map[string]org.Place, error) { return tx.Places([]string{"a", "b", "q", "none"}) })
	storetest.WantEqual(t, got, map[string]org.Place{"a": {RootID: "r", Path: "r/a/"}, "q": {RootID: "q", Path: "q/"}})
}
