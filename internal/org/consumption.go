package org

import (
	"context"

	"github.com/orgd/orgd/internal/key"
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
func (s *Service) Consumption(ctx context.Context, actor *key.Actor, id string, month usage.Month) (*Consumption, error) {
	list, err := s.History(ctx, actor, id, month, month)
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// History returns what an organization consumed in each month from first to
// last.
func (s *Service) History(ctx context.Context, actor *key.Actor, id string, first, last usage.Month) ([]*Consumption, error) {
	snap, err := s.Find(ctx, actor, id)
	if err != nil {
		return nil, err
	}
	var list []*Consumption
	err = s.store.Read(ctx, func(tx Tx) error {
		list = nil
		meters, err := meters(tx, snap.RootID)
		if err != nil {
			return err
		}
		limits, err := chainLimits(tx, snap.RootID, snap.Path)
		if err != nil {
			return err
		}
		known, err := closedMonths(tx, snap.RootID)
		if err != nil {
			return err
		}
		for _, month := range usage.Months(first, last) {
			totals, err := tx.Totals(snap.RootID, id, month)
			if err != nil {
				return err
			}
			c := &Consumption{OrgID: id, Month: month, Closed: s.isClosed(known, month), Meters: make([]MeterTotal, len(meters))}
			for i := range meters {
				c.Meters[i].Meter = meters[i]
				c.Meters[i].Limit = tightest(limits, meters[i].Slug)
				for _, t := range totals {
					if t.Meter == meters[i].Slug {
						c.Meters[i].Own += t.Own
						c.Meters[i].Total += t.Total
					}
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
func closedMonths(tx Tx, rootID string) (map[usage.Month]bool, error) {
	months, err := tx.Months(rootID)
	closed := make(map[usage.Month]bool, len(months))
	for _, m := range months {
		closed[m.Month] = m.ClosedAt != nil
	}
	return closed, err
}

// isClosed reports whether nothing can be counted in a month any more.
func (s *Service) isClosed(known map[usage.Month]bool, month usage.Month) bool {
	if closed, ok := known[month]; ok {
		return closed
	}
	return month.Closed(s.now(), s.monthCloseAfter)
}
