package org

import (
	"context"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/usage"
)

// AuditEntries returns one page of audit entries. The organization that q
// names must be one that the actor sees.
func (s *Service) AuditEntries(ctx context.Context, q AuditQuery) ([]*audit.Entry, int64, error) {
	var page AuditPage
	err := s.store.Read(ctx, func(tx Tx) (err error) {
		page, err = tx.AuditEntries(q)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	entries, err := entriesOf(page.Records)
	return entries, page.Next, err
}

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
}

// closeGrace is how long after its end a month still takes late events.
const closeGrace = 3 * 24 * 60 * 60 * 1e9

// Consumption returns what an organization consumed in a month. The cost does
// not depend on how many events there were.
func (s *Service) Consumption(ctx context.Context, actor *key.Actor, id string, month usage.Month) (*Consumption, error) {
	snap, err := s.Find(ctx, actor, id)
	if err != nil {
		return nil, err
	}
	var totals []usage.Total
	err = s.store.Read(ctx, func(tx Tx) (err error) {
		totals, err = tx.Totals(snap.RootID, id, month)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := &Consumption{OrgID: id, Month: month, Closed: !s.now().Before(month.Closes(closeGrace))}
	for _, m := range usage.BuiltIn() {
		mt := MeterTotal{Meter: m}
		for _, t := range totals {
			if t.Meter == m.Slug {
				mt.Own += t.Own
				mt.Total += t.Total
			}
		}
		out.Meters = append(out.Meters, mt)
	}
	return out, nil
}
