package metering

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
)

// Consumption is what an organization consumed in a month.
type Consumption struct {
	OrgID  string
	Month  usage.Month
	Closed bool
	Meters []MeterTotal // by slug
}

// MeterTotal is the consumption of one meter; the descendants' is Total - Own.
type MeterTotal struct {
	usage.Meter
	Own   usage.Decimal
	Total usage.Decimal
	// Limit is the smallest limit that binds the organization now, its own or
	// that of an ancestor; nil if there is none.
	Limit *usage.Decimal
}

// Consumption returns what an organization consumed in a month. The cost does
// not depend on how many events there were.
func (s *Service) Consumption(ctx context.Context, actor *auth.Actor, id string, month usage.Month) (*Consumption, error) {
	list, err := s.History(ctx, actor, id, month, month)
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// maxMonthMeters is how many totals a history has at most, in all its months.
const maxMonthMeters = 12_000

// meterIndex returns the places of meters by their slugs.
func meterIndex(meters []usage.Meter) map[string]int {
	index := make(map[string]int, len(meters))
	for i := range meters {
		index[meters[i].Slug] = i
	}
	return index
}

// History returns what an organization consumed in each month from first to
// last.
func (s *Service) History(ctx context.Context, actor *auth.Actor, id string, first, last usage.Month) ([]*Consumption, error) {
	snap, err := s.orgs.Find(ctx, actor, id)
	if err != nil {
		return nil, err
	}
	months := usage.Months(first, last)
	read := s.store.Read
	if len(months) > 1 {
		read = s.store.ReadHeavy
	}
	var list []*Consumption
	err = read(ctx, func(v View) error {
		list = nil
		meters, err := meters(v, snap.RootID)
		if err != nil {
			return err
		}
		if n := maxMonthMeters / len(meters); len(months) > max(n, 1) {
			return problem.Param("from", "must be at most %d months before the parameter to, as this root has %d meters", n-1, len(meters))
		}
		index := meterIndex(meters)
		limits, err := org.ChainLimits(v, snap.RootID, snap.Path)
		if err != nil {
			return err
		}
		least := tightest(limits)
		known, err := closedMonths(v, snap.RootID)
		if err != nil {
			return err
		}
		isClosed := s.closedOf(v, known)
		for _, month := range months {
			closed, err := isClosed(month)
			if err != nil {
				return err
			}
			totals, err := v.Totals(snap.RootID, id, month)
			if err != nil {
				return err
			}
			c := &Consumption{OrgID: id, Month: month, Closed: closed, Meters: make([]MeterTotal, len(meters))}
			for i := range meters {
				c.Meters[i].Meter = meters[i]
				c.Meters[i].Limit = least[meters[i].Slug]
			}
			for _, t := range totals {
				if i, ok := index[t.Meter]; ok {
					c.Meters[i].Own += t.Own
					c.Meters[i].Total += t.Total
				}
			}
			list = append(list, c)
		}
		return nil
	})
	return list, err
}

// closedMonths returns which of the months that are known to a root are
// closed.
func closedMonths(v View, rootID string) (map[usage.Month]bool, error) {
	months, err := v.Months(rootID)
	closed := make(map[usage.Month]bool, len(months))
	for _, m := range months {
		closed[m.Month] = m.ClosedAt != nil
	}
	return closed, err
}

// closedOf returns a function that reports whether nothing can be counted in a
// month of a root any more. A month that is not known becomes known if a spool
// still holds requests of it, or one that began in it is under way.
func (s *Service) closedOf(v View, known map[usage.Month]bool) func(usage.Month) (bool, error) {
	now := s.now()
	var stored time.Time // by all spools
	return func(month usage.Month) (bool, error) {
		if closed, ok := known[month]; ok {
			return closed, nil
		}
		if !month.Closed(now, s.monthCloseAfter) {
			return false, nil
		}
		if stored.IsZero() {
			stored = s.spool.Since()
			behind, err := v.SpoolsBehind(now, 2)
			if err != nil {
				return false, err
			}
			for _, spool := range behind {
				if spool.ID != s.spool.ID() { // who reads waits for this process
					if spool.StoredUntil.Before(stored) {
						stored = spool.StoredUntil
					}
					break
				}
			}
		}
		return !stored.Before(month.End()), nil
	}
}

// DayConsumption is what an organization consumed on one day.
type DayConsumption struct {
	Day    usage.Day
	Meters []MeterTotal // by slug, without limits
}

// Daily returns what an organization consumed on each day of a month that has
// begun. Adjustments belong to no day.
func (s *Service) Daily(ctx context.Context, actor *auth.Actor, id string, month usage.Month) ([]DayConsumption, error) {
	snap, err := s.orgs.Find(ctx, actor, id)
	if err != nil {
		return nil, err
	}
	days := month.Days(s.now())
	if len(days) == 0 {
		return nil, nil
	}
	var list []DayConsumption
	err = s.store.ReadHeavy(ctx, func(v View) error {
		meters, err := meters(v, snap.RootID)
		if err != nil {
			return err
		}
		index := meterIndex(meters)
		totals, err := v.DayTotals(snap.RootID, id, days[0], usage.DayOf(month.End().Add(-1)))
		if err != nil {
			return err
		}
		if n := len(totals); n > 0 && totals[n-1].Day > days[len(days)-1] {
			// Of an event from a clock that is ahead.
			days = append(days, totals[n-1].Day)
		}
		list = make([]DayConsumption, len(days))
		for i, day := range days {
			list[i] = DayConsumption{day, make([]MeterTotal, len(meters))}
			for j := range meters {
				list[i].Meters[j].Meter = meters[j]
			}
			for ; len(totals) > 0 && totals[0].Day == day; totals = totals[1:] {
				if j, ok := index[totals[0].Meter]; ok {
					list[i].Meters[j].Own += totals[0].Own
					list[i].Meters[j].Total += totals[0].Total
				}
			}
		}
		return nil
	})
	return list, err
}

// FormerMark ends the id of an organization that has been purged, in the names
// under which its consumption is kept because its ancestors' totals hold it.
// What follows tells it from others that had the id. No id holds the mark, and
// it comes before all that an id holds, so that names are in the order of ids.
const FormerMark = "!"

// PlainID returns the id that an organization has or had, under whose name
// consumption is kept.
func PlainID(name string) string {
	id, _, _ := strings.Cut(name, FormerMark)
	return id
}

// ChildrenQuery selects what the children of an organization consumed, in an
// order.
type ChildrenQuery struct {
	ChildQuery                // its After is not used
	Sort       ChildSort      // with Descending of the ChildQuery
	Position   *ChildPosition // nil for the start
}

// PositionOf returns where a child is in the order of the query.
func (q *ChildrenQuery) PositionOf(c *ChildTotal) ChildPosition {
	return ChildPosition{Value: q.Sort.value(c), OrgID: c.OrgID}
}

func (s ChildSort) value(c *ChildTotal) usage.Decimal {
	switch s {
	case ByOwn:
		return c.Own
	case ByDescendants:
		return c.Total - c.Own
	case ByTotal:
		return c.Total
	}
	return 0
}

// compare orders children by what the query sorts by, and those of one value by
// their ids, ascending.
func (q *ChildrenQuery) compare(a, b *ChildPosition) int {
	n := cmp.Compare(a.Value, b.Value)
	if q.Descending {
		n = -n
	}
	return cmp.Or(n, strings.Compare(a.OrgID, b.OrgID))
}

// childrenStep is how many children are read at a time to sort them, and
// maxSorted how many bytes of them are sorted at most.
const (
	childrenStep = 2000
	maxSorted    = 32 << 20
)

// Children returns one page of what the children of an organization consumed,
// which the actor must see, and whether there are more. What a child consumed
// is what it did while it was one, so that all children together consumed what
// the organization's descendants did.
//
// By id a page costs what it shows. In any other order it takes a look at all
// children, some at a time.
func (s *Service) Children(ctx context.Context, q ChildrenQuery) (list []ChildTotal, more bool, err error) {
	if q.Sort == ByID {
		if q.Position != nil {
			q.After = q.Position.OrgID
		}
		return s.childPage(ctx, q.ChildQuery)
	}
	list, more, err = s.sortChildren(ctx, q, q.Limit)
	size := 0
	for i := range list {
		if size += childSize(&list[i]); q.MaxBytes > 0 && size >= q.MaxBytes && i+1 < len(list) {
			return list[:i+1], true, err
		}
	}
	return list, more, err
}

// AllChildren returns what all children of an organization consumed, in the
// order of the query: Children to its end, read once. It is not for the order
// of ids, in which Children costs no more.
func (s *Service) AllChildren(ctx context.Context, q ChildrenQuery) ([]ChildTotal, error) {
	list, _, err := s.sortChildren(ctx, q, math.MaxInt)
	return list, err
}

func (s *Service) childPage(ctx context.Context, q ChildQuery) (list []ChildTotal, more bool, err error) {
	err = s.store.ReadHeavy(ctx, func(v View) (err error) {
		list, more, err = v.ChildTotals(q)
		return err
	})
	return list, more, err
}

func childSize(c *ChildTotal) int { return 200 + len(c.OrgID) + len(c.Name) }

// sortChildren goes through all children and returns the first n after the
// position of the query.
func (s *Service) sortChildren(ctx context.Context, q ChildrenQuery, n int) (list []ChildTotal, more bool, err error) {
	best := func() {
		slices.SortFunc(list, func(a, b ChildTotal) int {
			x, y := q.PositionOf(&a), q.PositionOf(&b)
			return q.compare(&x, &y)
		})
		if len(list) > n {
			list, more = list[:n:n], true
		}
	}
	page := q.ChildQuery
	page.Descending, page.After, page.Limit, page.MaxBytes = false, "", childrenStep, 0
	size := 0
	for going := true; going; {
		var step []ChildTotal
		if step, going, err = s.childPage(ctx, page); err != nil {
			return nil, false, err
		}
		for i := range step {
			if size += childSize(&step[i]); size > maxSorted {
				return nil, false, problem.New(problem.Conflict, "The organization has too many children to sort them.").
					WithFix("Read them with sort=org_id, in as many pages as there are.")
			}
			if at := q.PositionOf(&step[i]); q.Position == nil || q.compare(&at, q.Position) > 0 {
				list = append(list, step[i])
			}
		}
		if len(list)/2 > n {
			best()
		}
		if going {
			page.After = step[len(step)-1].OrgID
			if err := org.GoOn(ctx); err != nil {
				return nil, false, err
			}
		}
	}
	best()
	return list, more, nil
}

// MeterOf returns a meter of a root by its slug, for a parameter of a request.
func (s *Service) MeterOf(ctx context.Context, rootID, slug string) (*usage.Meter, error) {
	all, err := s.metersOf(ctx, rootID)
	if err != nil {
		return nil, err
	}
	if m := meterOf(all, slug); m != nil {
		return m, nil
	}
	return nil, problem.Param("meter", "names no meter of this root")
}

// Adjustments returns one page of the adjustments of an organization, which
// the actor must see, and whether there are more.
func (s *Service) Adjustments(ctx context.Context, q AdjustmentQuery) (list []usage.Adjustment, more bool, err error) {
	err = s.store.ReadHeavy(ctx, func(v View) (err error) {
		list, more, err = v.Adjustments(q)
		return err
	})
	return list, more, err
}

// NewAdjustment corrects what an organization consumed.
type NewAdjustment struct {
	Month    usage.Month // that is corrected
	Meter    string
	Quantity usage.Decimal // what is added; negative to take away
	Reason   string
}

// maxReason is the length of a reason, in characters.
const maxReason = 500

// Check returns problem.InvalidBody if anything is wrong with the adjustment by
// itself.
func (n *NewAdjustment) Check() error {
	n.Reason = strings.TrimSpace(n.Reason)
	switch count := utf8.RuneCountInString(n.Reason); {
	case n.Meter == "":
		return problem.Body("/meter", "is missing")
	case n.Quantity == 0:
		return problem.Body("/quantity", "must not be zero")
	case count == 0 || count > maxReason:
		return problem.Body("/reason", "must be 1 to %d characters", maxReason)
	case strings.ContainsFunc(n.Reason, unicode.IsControl):
		return problem.Body("/reason", "must not contain control characters")
	}
	return nil
}

// Adjust corrects what an organization consumed, in the month that the
// adjustment is for or, if that is closed, in the first later one that is open.
// Nothing that was counted before is changed. Limits do not bind it.
func (s *Service) Adjust(ctx context.Context, call *org.Call, id string, n NewAdjustment) (*usage.Adjustment, audit.Receipt, error) {
	var made *usage.Adjustment
	receipt, err := s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		o, err := c.Target(id, key.ConsumptionWrite)
		if err != nil {
			return nil, nil, err
		}
		if n.Quantity < 0 {
			refusal, err := refuseLowering(c, c.Call.Actor, o.Path, n.Meter)
			if err != nil {
				return nil, nil, err
			}
			if refusal != "" {
				return nil, nil, problem.New(problem.PermissionDenied, "The quantity is negative: %s.", refusal)
			}
		}
		all, err := meters(c, o.RootID)
		if err != nil {
			return nil, nil, err
		}
		if meterOf(all, n.Meter) == nil {
			return nil, nil, problem.Body("/meter", "names no meter of this root")
		}
		if n.Month > usage.MonthOf(c.At) {
			return nil, nil, problem.Body("/month", "has not begun")
		}
		month, err := openMonth(c, RootMonth{o.RootID, n.Month}, s.over(c.At))
		if err != nil {
			return nil, nil, err
		}
		made = &usage.Adjustment{ID: c.NewID("adj_"), RootID: o.RootID, OrgID: o.ID, Month: month, For: n.Month, Meter: n.Meter,
			Quantity: n.Quantity, Reason: n.Reason, Origin: usage.FromActor, CreatedBy: c.Call.Actor.ID, CreatedAt: c.At}
		if err := c.AddUsage([]usage.Entry{{Path: o.Path, Meter: n.Meter, Month: month, Quantity: n.Quantity}}, c.At); err != nil {
			return nil, nil, err
		}
		if err := c.PutAdjustments([]usage.Adjustment{*made}); err != nil {
			return nil, nil, err
		}
		return made, []audit.Draft{c.Entry(o, "consumption.adjusted", audit.Target{Type: "adjustment", ID: made.ID}, []audit.Change{
			{Pointer: "/month", New: audit.Value(made.Month)}, {Pointer: "/for_month", New: audit.Value(made.For)}, {Pointer: "/meter", New: audit.Value(made.Meter)},
			{Pointer: "/quantity", New: audit.Value(made.Quantity)}, {Pointer: "/reason", New: audit.Value(made.Reason)}})}, nil
	})
	var beyond *usage.RangeError
	if errors.As(err, &beyond) {
		err = problem.Body("/quantity", "would take the consumption of %s by %s in %s out of range", beyond.Meter, beyond.OrgID, beyond.Month)
	}
	return made, receipt, err
}
