// Package metering knows what organizations consume: meters, usage events, totals,
// months, limits and the statements of closed months. What of it is a change goes
// through org.Service.Change.
package metering

import (
	"context"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
)

// Service applies the rules of consumption. It is safe for concurrent use.
type Service struct {
	orgs  *org.Service
	store Store
	// closing is the side of the store that months are closed on.
	closing org.Face[MonthsView, MonthsTx]
	spool   Spool
	now     func() time.Time
	// monthCloseAfter is how long after its end a month takes late events.
	monthCloseAfter time.Duration

	bounds *otter.Cache[string, *bounds] // by path
	meters *otter.Cache[string, *rootMeters]
	gauges *gauges
}

// Config is what a Service works with.
type Config struct {
	Orgs   *org.Service
	Store  Store
	Months org.Face[MonthsView, MonthsTx]
	Spool  Spool
	Now    func() time.Time
	// MonthCloseAfter is how long after its end a month still takes late
	// events; zero for DefaultMonthCloseAfter, negative for not at all.
	MonthCloseAfter time.Duration
}

// NewService returns a service. It must be made before the organizations' service
// is used.
func NewService(c Config) (*Service, error) {
	limits, err := otter.New(&otter.Options[string, *bounds]{MaximumSize: 20_000})
	if err != nil {
		return nil, err
	}
	meters, err := otter.New(&otter.Options[string, *rootMeters]{MaximumSize: 20_000})
	if err != nil {
		return nil, err
	}
	closeAfter := c.MonthCloseAfter
	if closeAfter == 0 {
		closeAfter = DefaultMonthCloseAfter
	}
	s := &Service{orgs: c.Orgs, store: c.Store, closing: c.Months, spool: c.Spool, now: c.Now, monthCloseAfter: max(closeAfter, 0),
		bounds: limits, meters: meters, gauges: newGauges()}
	c.Orgs.OnPurged(s.gauges.forget)
	return s, nil
}

// Now is org.Service.Now.
func (s *Service) Now() time.Time { return s.now().UTC().Truncate(time.Microsecond) }

// check is what decides whether a change may be made, with what this package sees of the
// transaction.
type check struct {
	*org.Check
	View
}

// change is a mutation under way, with this package's side of its transaction.
type change struct {
	*org.Change
	Tx
}

// check returns what the change may be decided by.
func (c *change) check() *check { return &check{&c.Change.Check, c.Tx} }

// change is org.Service.Change.
func (s *Service) change(ctx context.Context, call *org.Call, fn func(c *change) (result any, entries []audit.Draft, err error)) (audit.Receipt, error) {
	return s.orgs.Change(ctx, call, func(c *org.Change) (any, []audit.Draft, error) { return fn(&change{c, s.store.TxOf(c.Tx)}) })
}

// closing is change for what closes a month.
type closing struct {
	*org.Change
	MonthsTx
}

// closeIn is org.Service.Change.
func (s *Service) closeIn(ctx context.Context, call *org.Call, fn func(c *closing) (result any, entries []audit.Draft, err error)) (audit.Receipt, error) {
	return s.orgs.Change(ctx, call, func(c *org.Change) (any, []audit.Draft, error) {
		return fn(&closing{c, s.closing.TxOf(c.Tx)})
	})
}

// precheck is org.Service.Precheck.
func (s *Service) precheck(ctx context.Context, call *org.Call, fn func(c *check) error) error {
	return s.orgs.Precheck(ctx, call, func(c *org.Check) error { return fn(&check{c, s.store.ViewOf(c.View)}) })
}
