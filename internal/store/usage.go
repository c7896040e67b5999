package store

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/usage"
)

func (t *tx) Totals(rootID, orgID string, month usage.Month) ([]usage.Total, error) {
	var totals []usage.Total
	err := t.query(func(r row) error {
		total := usage.Total{RootID: rootID, OrgID: orgID, Month: month}
		err := r.Scan(&total.ParentID, &total.Meter, (*int64)(&total.Own), (*int64)(&total.Total), (*int64)(&total.Recorded))
		totals = append(totals, total)
		return err
	}, `SELECT parent_id, meter, own, total, recorded FROM usage_totals
		WHERE root_id = $1 AND month = $2 AND org_id = $3 ORDER BY meter, parent_id`, rootID, string(month), orgID)
	return totals, err
}

func (t *tx) DayTotals(rootID, orgID string, from, to usage.Day) ([]usage.DayTotal, error) {
	var totals []usage.DayTotal
	err := t.query(func(r row) error {
		total := usage.DayTotal{RootID: rootID, OrgID: orgID}
		err := r.Scan((*string)(&total.Day), &total.ParentID, &total.Meter, (*int64)(&total.Own), (*int64)(&total.Total))
		totals = append(totals, total)
		return err
	}, `SELECT day, parent_id, meter, own, total FROM usage_days
		WHERE root_id = $1 AND org_id = $2 AND day >= $3 AND day <= $4 ORDER BY day, parent_id, meter`,
		rootID, orgID, string(from), string(to))
	return totals, err
}

func (t *tx) HoldMonth(rootID string, month usage.Month) (closed bool, err error) {
	var closedAt int64
	err = t.queryRow(into(&closedAt), `SELECT closed_at FROM usage_months WHERE root_id = $1 AND month = $2 FOR SHARE`, rootID, string(month))
	return closedAt != 0, err
}

func (t *tx) OpenMonth(rootID string, month usage.Month) error {
	_, err := t.exec(`INSERT INTO usage_months (root_id, month, closed_at, pruned_at) VALUES ($1, $2, 0, 0) ON CONFLICT DO NOTHING`,
		rootID, string(month))
	return err
}

func (t *tx) LockMonths(rootID string) error {
	return t.query(func(row) error { return nil }, `SELECT month FROM usage_months WHERE root_id = $1 ORDER BY month FOR UPDATE`, rootID)
}

func (t *tx) CloseMonth(rootID string, month usage.Month, at time.Time) (bool, error) {
	n, err := t.exec(`INSERT INTO usage_months (root_id, month, closed_at, pruned_at) VALUES ($1, $2, $3, 0)
		ON CONFLICT (root_id, month) DO UPDATE SET closed_at = excluded.closed_at WHERE usage_months.closed_at = 0`,
		rootID, string(month), micros(at))
	return n > 0, err
}

func (t *tx) Months(rootID string) ([]metering.Month, error) {
	var months []metering.Month
	err := t.query(func(r row) error {
		m := metering.Month{RootID: rootID}
		var closedAt, prunedAt int64
		err := r.Scan((*string)(&m.Month), &closedAt, &prunedAt)
		m.ClosedAt, m.PrunedAt = optionalTime(closedAt), optionalTime(prunedAt)
		months = append(months, m)
		return err
	}, `SELECT month, closed_at, pruned_at FROM usage_months WHERE root_id = $1 ORDER BY month`, rootID)
	return months, err
}

func (t *tx) OpenMonths(last usage.Month, limit int) ([]metering.Month, error) {
	var months []metering.Month
	err := t.query(func(r row) error {
		m := metering.Month{}
		err := r.Scan(&m.RootID, (*string)(&m.Month))
		months = append(months, m)
		return err
	}, `SELECT root_id, month FROM usage_months WHERE closed_at = 0 AND month <= $1 ORDER BY month, root_id LIMIT $2`, string(last), limit)
	return months, err
}

func (t *tx) RootsWithout(month usage.Month, after string, limit int) ([]string, error) {
	var roots []string
	err := t.query(func(r row) error {
		var id string
		err := r.Scan(&id)
		roots = append(roots, id)
		return err
	}, `SELECT o.root_id FROM orgs AS o WHERE o.parent_id = '' AND o.deleted_at = 0 AND o.path > $1 AND o.created_at < $2
		AND NOT EXISTS (SELECT 1 FROM usage_months AS m WHERE m.root_id = o.root_id AND m.month = $3) ORDER BY o.path LIMIT $4`,
		after+"/", micros(month.End()), string(month), limit)
	return roots, err
}

func (t *tx) Places(ids []string) (map[string]org.Place, error) {
	list, err := encodeStrings(ids)
	if err != nil {
		return nil, err
	}
	places := make(map[string]org.Place, len(ids))
	err = t.query(func(r row) error {
		var id string
		var p org.Place
		var deletedAt int64
		err := r.Scan(&id, &p.RootID, &p.Path, &deletedAt)
		if deletedAt == 0 {
			places[id] = p
		}
		return err
	}, `SELECT id, root_id, path, deleted_at FROM orgs WHERE id IN (SELECT value FROM json_each($1))`, list)
	return places, err
}

func (t *tx) ClaimEvents(events []usage.Event, order []int) (fresh []bool, err error) {
	fresh = make([]bool, len(events))
	var parts []int
	first := order[:0:0]
	for _, i := range order {
		if events[i].Part == 0 {
			first = append(first, i)
		} else {
			parts = append(parts, i)
		}
	}
	whole := make([]int, len(events)) // where part 0 of each is
	for i := range events {
		if whole[i] = i; events[i].Part > 0 {
			whole[i] = whole[i-1]
		}
	}
	err = t.insertUsageEvents(events, first, func(i int) { fresh[i] = true })
	if err != nil || len(parts) == 0 {
		return fresh, err
	}
	parts = slices.DeleteFunc(parts, func(i int) bool { return !fresh[whole[i]] })
	return fresh, t.insertUsageEvents(events, parts, func(i int) { fresh[i] = true })
}

// Events from before senders were kept may be anybody's. One that was of the
// same organization is taken for the same event: whoever counts for it sees it,
// and learns nothing that was not their own.
const (
	insertUsage     = `INSERT INTO usage_events (root_id, sender, source, id, part, org_id, meter, at, quantity) `
	insertNewUsage  = insertUsage + `VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING`
	insertMoreUsage = insertUsage + `SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9 WHERE NOT EXISTS (SELECT 1 FROM usage_events AS e
		WHERE e.root_id = $1 AND e.sender = '' AND e.source = $3 AND e.id = $4 AND e.part = 0 AND e.org_id = $6) ON CONFLICT DO NOTHING`
)

// insertUsageEvents inserts those of the events that indexes name, in the order
// of their keys, and calls inserted for each that was not there.
func (t *tx) insertUsageEvents(events []usage.Event, indexes []int, inserted func(i int)) error {
	text, rootID := insertNewUsage, ""
	for _, i := range indexes {
		if events[i].RootID == rootID {
			continue
		}
		rootID = events[i].RootID
		switch err := t.queryRow(into(new(string)), `SELECT id FROM usage_events WHERE root_id = $1 AND sender = '' LIMIT 1`, rootID); {
		case err == nil:
			text = insertMoreUsage
		case !errors.Is(err, org.ErrAbsent):
			return err
		}
	}
	return t.execEach(text, len(indexes), func(n int) []any {
		e := &events[indexes[n]]
		return []any{e.RootID, e.Sender, e.Source, e.ID, e.Part, e.OrgID, e.Meter, micros(e.At), int64(e.Quantity)}
	}, func(n int, rows int64) error {
		if rows > 0 {
			inserted(indexes[n])
		}
		return nil
	})
}

func (t *tx) UsageEvents(rootID string, after usage.EventKey, limit int) ([]usage.Event, error) {
	var events []usage.Event
	err := t.query(func(r row) error {
		e := usage.Event{EventKey: usage.EventKey{RootID: rootID}}
		var at int64
		err := r.Scan(&e.Sender, &e.Source, &e.ID, &e.Part, &e.OrgID, &e.Meter, &at, (*int64)(&e.Quantity))
		e.At = fromMicros(at)
		events = append(events, e)
		return err
	}, `SELECT sender, source, id, part, org_id, meter, at, quantity FROM usage_events
		WHERE root_id = $1 AND (sender, source, id, part) > ($2, $3, $4, $5) ORDER BY sender, source, id, part LIMIT $6`,
		rootID, after.Sender, after.Source, after.ID, after.Part, limit)
	return events, err
}

func (t *tx) MonthsToPrune(last usage.Month, limit int) ([]metering.Month, error) {
	var months []metering.Month
	err := t.query(func(r row) error {
		var m metering.Month
		err := r.Scan(&m.RootID, (*string)(&m.Month))
		months = append(months, m)
		return err
	}, `SELECT root_id, month FROM usage_months WHERE pruned_at = 0 AND closed_at <> 0 AND month <= $1 ORDER BY month, root_id LIMIT $2`,
		string(last), limit)
	return months, err
}

func (t *tx) PruneEvents(rootID string, before time.Time, after usage.EventKey, limit int) (next *usage.EventKey, err error) {
	end := usage.EventKey{RootID: rootID}
	err = t.queryRow(into(&end.Sender, &end.Source, &end.ID, &end.Part), `SELECT sender, source, id, part FROM usage_events
		WHERE root_id = $1 AND (sender, source, id, part) > ($2, $3, $4, $5) ORDER BY sender, source, id, part LIMIT 1 OFFSET $6`,
		rootID, after.Sender, after.Source, after.ID, after.Part, limit-1)
	switch {
	case errors.Is(err, org.ErrAbsent):
		_, err = t.exec(`DELETE FROM usage_events WHERE root_id = $1 AND (sender, source, id, part) > ($2, $3, $4, $5) AND at < $6`,
			rootID, after.Sender, after.Source, after.ID, after.Part, micros(before))
		return nil, err
	case err != nil:
		return nil, err
	}
	_, err = t.exec(`DELETE FROM usage_events WHERE root_id = $1 AND (sender, source, id, part) > ($2, $3, $4, $5)
		AND (sender, source, id, part) <= ($6, $7, $8, $9) AND at < $10`, rootID, after.Sender, after.Source, after.ID, after.Part,
		end.Sender, end.Source, end.ID, end.Part, micros(before))
	return &end, err
}

func (t *tx) PruneStates(rootID, period string) error {
	_, err := t.exec(`DELETE FROM usage_states WHERE root_id = $1 AND period = $2`, rootID, period)
	return err
}

func (t *tx) MarkPruned(rootID string, month usage.Month, at time.Time) error {
	_, err := t.exec(`UPDATE usage_months SET pruned_at = $3 WHERE root_id = $1 AND month = $2`, rootID, string(month), micros(at))
	return err
}

func (t *tx) States(series []usage.Series) (map[usage.Series]usage.State, error) {
	type group struct{ rootID, period, meter string }
	groups := map[group][]string{}
	sorted := slices.SortedFunc(slices.Values(series), func(a, b usage.Series) int {
		return cmp.Or(cmp.Compare(a.RootID, b.RootID), cmp.Compare(a.Period, b.Period), cmp.Compare(a.Meter, b.Meter), cmp.Compare(a.OrgID, b.OrgID))
	})
	var order []group
	for _, s := range sorted {
		g := group{s.RootID, s.Period, s.Meter}
		if groups[g] == nil {
			order = append(order, g)
		}
		groups[g] = append(groups[g], s.OrgID)
	}
	err := t.execEach(`INSERT INTO usage_states (root_id, period, org_id, meter, value, latest_at) VALUES ($1, $2, $3, $4, 0, 0)
		ON CONFLICT DO NOTHING`, len(sorted), func(i int) []any {
		s := &sorted[i]
		return []any{s.RootID, s.Period, s.OrgID, s.Meter}
	}, nil)
	if err != nil {
		return nil, err
	}
	states := make(map[usage.Series]usage.State, len(series))
	for _, g := range order {
		ids, err := encodeStrings(groups[g])
		if err != nil {
			return nil, err
		}
		err = t.query(func(r row) error {
			s := usage.Series{RootID: g.rootID, Period: g.period, Meter: g.meter}
			var state usage.State
			var latestAt int64
			err := r.Scan(&s.OrgID, (*int64)(&state.Value), &latestAt, &state.Path, (*int64)(&state.Here))
			if latestAt != 0 {
				state.LatestAt = fromMicros(latestAt)
			}
			states[s] = state
			return err
		}, `SELECT org_id, value, latest_at, path, here FROM usage_states
			WHERE root_id = $1 AND period = $2 AND meter = $3 AND org_id IN (SELECT value FROM json_each($4))
			ORDER BY org_id FOR UPDATE`, g.rootID, g.period, g.meter, ids)
		if err != nil {
			return nil, err
		}
	}
	return states, nil
}

func (t *tx) PutStates(states map[usage.Series]usage.State) error {
	series := make([]usage.Series, 0, len(states))
	for s := range states {
		series = append(series, s)
	}
	return t.execEach(`UPDATE usage_states SET value = $5, latest_at = $6, path = $7, here = $8
		WHERE root_id = $1 AND period = $2 AND org_id = $3 AND meter = $4`, len(series), func(i int) []any {
		s := series[i]
		state := states[s]
		return []any{s.RootID, s.Period, s.OrgID, s.Meter, int64(state.Value), micros(state.LatestAt), state.Path, int64(state.Here)}
	}, nil)
}

// recordedEntries returns what a batch of recorded requests adds, each in the month
// in which metering.Book books it.
func (t *tx) recordedEntries(batch []access.Usage) ([]usage.Entry, error) {
	booked := map[metering.RootMonth]usage.Month{}
	for i := range batch {
		booked[metering.RootMonth{RootID: batch[i].RootID, Month: usage.MonthOf(batch[i].At)}] = ""
	}
	if err := metering.Book(t, booked, metering.NeverOver); err != nil {
		return nil, err
	}
	type series struct {
		path  string
		meter string
		day   usage.Day
	}
	sums := map[series]int{}
	var entries []usage.Entry
	for i := range batch {
		u := &batch[i]
		s := series{u.Path, u.Meter, usage.DayOf(u.At)}
		at, ok := sums[s]
		if !ok {
			e := usage.Entry{Path: u.Path, Meter: u.Meter, Month: usage.MonthOf(u.At), Recorded: true, Day: s.day}
			if month := booked[metering.RootMonth{RootID: u.RootID, Month: e.Month}]; month != e.Month {
				e.Month, e.For, e.Day = month, e.Month, ""
			}
			at = len(entries)
			sums[s] = at
			entries = append(entries, e)
		}
		e := &entries[at]
		sum, err := e.Quantity.Add(u.Quantity)
		if err != nil {
			continue // no total can hold it
		}
		if e.Quantity = sum; e.Day != "" {
			e.OfDay = sum
		}
	}
	return entries, nil
}

// added is what entries add up to, each list in the order of its table's
// primary key: two transactions that add to the same rows cannot deadlock.
type added struct {
	totals      []usage.Total
	days        []usage.DayTotal
	adjustments []usage.Adjustment
}

// rollUp adds up what entries add to each organization and to every one of its
// ancestors. The error is a *usage.RangeError.
func rollUp(entries []usage.Entry, at time.Time) (added, error) {
	type monthKey struct {
		month         usage.Month
		orgID, parent string
		meter         string
	}
	type dayKey struct {
		day           usage.Day
		orgID, parent string
		meter         string
	}
	type lateKey struct {
		path        string
		month, of   usage.Month
		meter       string
		byRecording bool
	}
	months := map[monthKey]*usage.Total{}
	days := map[dayKey]*usage.DayTotal{}
	late := map[lateKey]*usage.Adjustment{}
	var err error
	add := func(e *usage.Entry, to *usage.Decimal, quantity usage.Decimal, orgID string) {
		sum, failed := to.Add(quantity)
		if failed != nil && err == nil {
			err = &usage.RangeError{OrgID: orgID, Meter: e.Meter, Month: e.Month}
		}
		*to = sum
	}
	for i := range entries {
		e := &entries[i]
		ids := org.SplitPath(e.Path)
		for n, id := range ids {
			parent, own := "", n == len(ids)-1
			if n > 0 {
				parent = ids[n-1]
			}
			k := monthKey{e.Month, id, parent, e.Meter}
			m := months[k]
			if m == nil {
				m = &usage.Total{RootID: ids[0], Month: e.Month, OrgID: id, ParentID: parent, Meter: e.Meter}
				months[k] = m
			}
			add(e, &m.Total, e.Quantity, id)
			if own {
				add(e, &m.Own, e.Quantity, id)
				if e.Recorded && e.For == "" {
					add(e, &m.Recorded, e.Quantity, id)
				}
			}
			if e.Day == "" {
				continue
			}
			dk := dayKey{e.Day, id, parent, e.Meter}
			d := days[dk]
			if d == nil {
				d = &usage.DayTotal{RootID: ids[0], Day: e.Day, OrgID: id, ParentID: parent, Meter: e.Meter}
				days[dk] = d
			}
			add(e, &d.Total, e.OfDay, id)
			if own {
				add(e, &d.Own, e.OfDay, id)
			}
		}
		if e.For == "" {
			continue
		}
		k := lateKey{e.Path, e.Month, e.For, e.Meter, e.Recorded}
		a := late[k]
		if a == nil {
			origin, reason := usage.FromEvents, "Events that arrived after "+string(e.For)+" had closed"
			if e.Recorded {
				origin, reason = usage.FromRecorder, "Requests that were stored after "+string(e.For)+" had closed"
			}
			a = &usage.Adjustment{ID: "late-" + string(e.For) + "-" + string(origin) + "-" + e.Meter, RootID: ids[0], OrgID: ids[len(ids)-1],
				Month: e.Month, For: e.For, Meter: e.Meter, Reason: reason, Origin: origin, CreatedAt: at}
			late[k] = a
		}
		add(e, &a.Quantity, e.Quantity, a.OrgID)
	}
	var out added
	for _, m := range months {
		out.totals = append(out.totals, *m)
	}
	for _, d := range days {
		out.days = append(out.days, *d)
	}
	for _, a := range late {
		out.adjustments = append(out.adjustments, *a)
	}
	slices.SortFunc(out.totals, func(a, b usage.Total) int {
		return cmp.Or(cmp.Compare(a.RootID, b.RootID), cmp.Compare(a.Month, b.Month), cmp.Compare(a.OrgID, b.OrgID),
			cmp.Compare(a.ParentID, b.ParentID), cmp.Compare(a.Meter, b.Meter))
	})
	slices.SortFunc(out.days, func(a, b usage.DayTotal) int {
		return cmp.Or(cmp.Compare(a.RootID, b.RootID), cmp.Compare(a.OrgID, b.OrgID), cmp.Compare(a.Day, b.Day),
			cmp.Compare(a.ParentID, b.ParentID), cmp.Compare(a.Meter, b.Meter))
	})
	slices.SortFunc(out.adjustments, func(a, b usage.Adjustment) int {
		return cmp.Or(cmp.Compare(a.RootID, b.RootID), cmp.Compare(a.OrgID, b.OrgID), cmp.Compare(a.Month, b.Month), cmp.Compare(a.ID, b.ID))
	})
	return out, err
}

// inRange is the condition, in an upsert, that the sums of columns stay within
// usage.MaxDecimal. It cannot overflow itself.
func inRange(table string, columns ...string) string {
	var all []string
	for _, c := range columns {
		all = append(all, fmt.Sprintf(
			`(CASE WHEN excluded.%[2]s > 0 THEN %[1]s.%[2]s <= %[3]d - excluded.%[2]s ELSE %[1]s.%[2]s >= -%[3]d - excluded.%[2]s END)`,
			table, c, int64(usage.MaxDecimal)))
	}
	return strings.Join(all, " AND ")
}

var (
	addTotalText = `INSERT INTO usage_totals (root_id, month, org_id, parent_id, meter, own, total, recorded)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
		ON CONFLICT (root_id, month, org_id, parent_id, meter)
		DO UPDATE SET own = usage_totals.own + excluded.own, total = usage_totals.total + excluded.total,
			recorded = usage_totals.recorded + excluded.recorded
		WHERE ` + inRange("usage_totals", "own", "total", "recorded")
	addDayText = `INSERT INTO usage_days (root_id, org_id, day, parent_id, meter, own, total) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (root_id, org_id, day, parent_id, meter)
		DO UPDATE SET own = usage_days.own + excluded.own, total = usage_days.total + excluded.total
		WHERE ` + inRange("usage_days", "own", "total")
	addLateText = `INSERT INTO usage_adjustments (root_id, org_id, month, id, for_month, meter, quantity, reason, origin, created_by, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
		ON CONFLICT (root_id, org_id, month, id) DO UPDATE SET quantity = usage_adjustments.quantity + excluded.quantity
		WHERE ` + inRange("usage_adjustments", "quantity")
)

func (t *tx) AddUsage(entries []usage.Entry, at time.Time) error {
	sums, err := rollUp(entries, at)
	if err != nil {
		return err
	}
	err = t.execEach(addTotalText, len(sums.totals), func(i int) []any {
		r := &sums.totals[i]
		return []any{r.RootID, string(r.Month), r.OrgID, r.ParentID, r.Meter, int64(r.Own), int64(r.Total), int64(r.Recorded)}
	}, func(i int, rows int64) error {
		if r := &sums.totals[i]; rows == 0 {
			return &usage.RangeError{OrgID: r.OrgID, Meter: r.Meter, Month: r.Month}
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = t.execEach(addDayText, len(sums.days), func(i int) []any {
		r := &sums.days[i]
		return []any{r.RootID, r.OrgID, string(r.Day), r.ParentID, r.Meter, int64(r.Own), int64(r.Total)}
	}, func(i int, rows int64) error {
		if r := &sums.days[i]; rows == 0 {
			return &usage.RangeError{OrgID: r.OrgID, Meter: r.Meter, Month: r.Day.Month()}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return t.PutAdjustments(sums.adjustments)
}

func (t *tx) PutAdjustments(list []usage.Adjustment) error {
	return t.execEach(addLateText, len(list), func(i int) []any {
		a := &list[i]
		return []any{a.RootID, a.OrgID, string(a.Month), a.ID, string(a.For), a.Meter, int64(a.Quantity), a.Reason, string(a.Origin),
			a.CreatedBy, micros(a.CreatedAt)}
	}, func(i int, rows int64) error {
		if a := &list[i]; rows == 0 {
			return &usage.RangeError{OrgID: a.OrgID, Meter: a.Meter, Month: a.Month}
		}
		return nil
	})
}

func (t *tx) Adjustments(q metering.AdjustmentQuery) (list []usage.Adjustment, more bool, err error) {
	text := `SELECT month, id, for_month, meter, quantity, reason, origin, created_by, created_at FROM usage_adjustments
		WHERE root_id = $1 AND org_id = $2`
	args := []any{q.RootID, q.OrgID}
	if q.Month != "" {
		args = append(args, string(q.Month))
		text += ` AND month = $3`
	}
	if q.Before.ID != "" {
		n := len(args)
		args = append(args, string(q.Before.Month), q.Before.ID)
		text += ` AND (month, id) < (` + argument(n+1) + `, ` + argument(n+2) + `)`
	}
	args = append(args, int64(q.Limit)+1)
	w := &window{maxBytes: q.MaxBytes}
	err = t.query(func(r row) error {
		if more = len(list) == q.Limit || w.full(); more {
			return errEnough
		}
		a := usage.Adjustment{RootID: q.RootID, OrgID: q.OrgID}
		var at int64
		err := r.Scan((*string)(&a.Month), &a.ID, (*string)(&a.For), &a.Meter, (*int64)(&a.Quantity), &a.Reason, (*string)(&a.Origin), &a.CreatedBy, &at)
		a.CreatedAt = fromMicros(at)
		list = append(list, a)
		w.take(300 + len(a.ID) + len(a.Meter) + len(a.Reason))
		return err
	}, text+` ORDER BY month DESC, id DESC LIMIT `+argument(len(args)), args...)
	return list, more, err
}

// argument returns the nth placeholder, from 1.
func argument(n int) string { return "$" + strconv.Itoa(n) }

// ChildTotals reads the children that there are and the totals, both in the order
// of ids and from the position on, and merges them: a page costs what it shows.
func (t *tx) ChildTotals(q metering.ChildQuery) (list []metering.ChildTotal, more bool, err error) {
	direction, beyond := "", ">"
	if q.Descending {
		direction, beyond = " DESC", "<"
	}
	page := func(text, id string, scan func(row) error, args ...any) error {
		if q.After != "" {
			args = append(args, q.After)
			text += ` AND ` + id + ` ` + beyond + ` ` + argument(len(args))
		}
		args = append(args, int64(q.Limit)+1)
		return t.query(scan, text+` ORDER BY `+id+direction+` LIMIT `+argument(len(args)), args...)
	}
	var live, consumed []metering.ChildTotal
	err = page(`SELECT id, name FROM orgs WHERE root_id = $1 AND parent_id = $2 AND deleted_at = 0`, `id`, func(r row) error {
		var c metering.ChildTotal
		err := r.Scan(&c.OrgID, &c.Name)
		live = append(live, c)
		return err
	}, q.RootID, q.ParentID)
	if err != nil {
		return nil, false, err
	}
	err = page(`SELECT org_id, own, total FROM usage_totals WHERE root_id = $1 AND month = $2 AND parent_id = $3 AND meter = $4`, `org_id`, func(r row) error {
		var c metering.ChildTotal
		err := r.Scan(&c.OrgID, (*int64)(&c.Own), (*int64)(&c.Total))
		consumed = append(consumed, c)
		return err
	}, q.RootID, string(q.Month), q.ParentID, q.Meter)
	if err != nil {
		return nil, false, err
	}
	w := &window{maxBytes: q.MaxBytes}
	for len(live)+len(consumed) > 0 {
		if len(list) == q.Limit || w.full() {
			return list, true, nil
		}
		var c metering.ChildTotal
		order := 0
		switch {
		case len(live) == 0:
			order = 1
		case len(consumed) == 0:
			order = -1
		default:
			order = strings.Compare(live[0].OrgID, consumed[0].OrgID)
			if q.Descending {
				order = -order
			}
		}
		if order >= 0 {
			c, consumed = consumed[0], consumed[1:]
		}
		if order <= 0 {
			c.OrgID, c.Name, live = live[0].OrgID, live[0].Name, live[1:]
		}
		list = append(list, c)
		w.take(200 + len(c.OrgID) + len(c.Name))
	}
	return list, false, nil
}
