package metering

import (
	"cmp"
	"context"
	"slices"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
)

// maxMeters is the number of meters that a root may define.
const maxMeters = 500

// meters returns all meters of a root, by slug: the built-in ones and those
// that it has defined.
func meters(v MetersView, rootID string) ([]usage.Meter, error) {
	defined, err := v.Meters(rootID)
	all := append(usage.BuiltIn(), defined...)
	slices.SortFunc(all, func(a, b usage.Meter) int { return cmp.Compare(a.Slug, b.Slug) })
	return all, err
}

func meterOf(meters []usage.Meter, slug string) *usage.Meter {
	for i := range meters {
		if meters[i].Slug == slug {
			return &meters[i]
		}
	}
	return nil
}

func noMeter(slug string) *problem.Error {
	return problem.New(problem.NotFound, "This root has no meter %s.", slug)
}

// rootMeters are the meters of a root as they were read.
type rootMeters struct {
	meters     []usage.Meter
	generation uint64
}

// metersOf returns all meters of a root, by slug, from memory if nothing has
// changed. Nobody may change what it returns.
func (s *Service) metersOf(ctx context.Context, rootID string) ([]usage.Meter, error) {
	generation := s.store.Generation(rootID)
	if m, ok := s.meters.GetIfPresent(rootID); ok && m.generation == generation {
		return m.meters, nil
	}
	m := &rootMeters{generation: generation}
	err := s.store.Read(ctx, func(v View) (err error) {
		m.meters, err = meters(v, rootID)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.meters.Set(rootID, m)
	return m.meters, nil
}

// MeterETag returns the strong entity tag of a meter.
func MeterETag(rootID string, m *usage.Meter) string {
	return org.ETag("meter "+m.Slug, org.Stamp{Path: rootID, Version: m.Version, At: m.UpdatedAt})
}

// Meters returns the meters of a root, by slug. An organization that is not a
// root has none: problem.Conflict.
func (s *Service) Meters(ctx context.Context, actor *auth.Actor, rootID string) ([]usage.Meter, error) {
	snap, err := s.orgs.Find(ctx, actor, rootID)
	if err != nil {
		return nil, err
	}
	if err := metersOnRoot(snap.Organization); err != nil {
		return nil, err
	}
	return s.metersOf(ctx, rootID)
}

// Meter returns one meter of a root.
func (s *Service) Meter(ctx context.Context, actor *auth.Actor, rootID, slug string) (*usage.Meter, error) {
	all, err := s.Meters(ctx, actor, rootID)
	if err != nil {
		return nil, err
	}
	if m := meterOf(all, slug); m != nil {
		return m, nil
	}
	return nil, noMeter(slug)
}

func metersOnRoot(o *org.Organization) error {
	if o.ParentID == "" {
		return nil
	}
	return problem.New(problem.Conflict, "Meters belong to the root of a tree, and %s is below %s.", o.ID, o.RootID).
		WithFix("Use the root's id.").With("root_id", o.RootID)
}

// meterTarget finds the root whose meter is to be changed, all that it has
// defined, and the meter as it is; nil if it is not among these.
func (c *check) meterTarget(rootID, slug string) (*org.Organization, []usage.Meter, *usage.Meter, error) {
	o, err := c.Target(rootID, key.ConsumptionWrite)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := metersOnRoot(o); err != nil {
		return nil, nil, nil, err
	}
	if meterOf(usage.BuiltIn(), slug) != nil {
		return nil, nil, nil, problem.New(problem.Conflict, "The meter %s is built in; it cannot be changed.", slug).
			WithFix("Define a meter with another name.")
	}
	defined, err := c.Meters(o.ID)
	if err != nil {
		return nil, nil, nil, err
	}
	m := meterOf(defined, slug)
	if m == nil {
		return o, defined, nil, org.MatchNothing(c.Call.IfMatch, noMeter(slug))
	}
	return o, defined, m, org.CheckMatch(c.Call.IfMatch, MeterETag(o.ID, m))
}

// CheckMeter checks whether the actor may change the meter of a root, and
// whether it is as the call says.
func (s *Service) CheckMeter(ctx context.Context, call *org.Call, rootID, slug string) error {
	return s.precheck(ctx, call, func(c *check) error {
		_, _, _, err := c.meterTarget(rootID, slug)
		return err
	})
}

// unused fails with problem.Conflict if anything has been counted on a meter.
// Until the transaction ends nothing more is.
func (c *change) unused(rootID, slug, fix string) error {
	if err := c.OpenMonth(rootID, usage.MonthOf(c.At)); err != nil {
		return err
	}
	if err := c.LockMonths(rootID); err != nil {
		return err
	}
	used, err := c.MeterUsed(rootID, slug)
	if err == nil && used {
		err = problem.New(problem.Conflict, "The meter %s has counted already.", slug).WithFix("%s", fix)
	}
	return err
}

// PutMeter defines a meter of a root, or changes it. A meter that has counted
// keeps its aggregation: problem.Conflict. m must satisfy usage.CheckSlug and
// Check; its times and version are set.
func (s *Service) PutMeter(ctx context.Context, call *org.Call, rootID string, m usage.Meter) (*usage.Meter, audit.Receipt, error) {
	// What was recorded must be stored for it to be known that it counts.
	if err := s.spool.Drain(ctx); err != nil {
		return nil, audit.Receipt{}, err
	}
	var out *usage.Meter
	receipt, err := s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		o, defined, old, err := c.check().meterTarget(rootID, m.Slug)
		if err != nil {
			return nil, nil, err
		}
		put := m
		put.CreatedAt, put.UpdatedAt, put.Version = c.At, c.At, 1
		var changes []audit.Change
		if old == nil {
			if len(defined) >= maxMeters {
				return nil, nil, problem.New(problem.Conflict, "A root defines at most %d meters.", maxMeters)
			}
			old = &usage.Meter{}
		} else {
			put.CreatedAt, put.Version = old.CreatedAt, old.Version+1
			if old.Aggregation != put.Aggregation {
				if err := c.unused(o.ID, m.Slug, "Define a meter with another name for the new aggregation."); err != nil {
					return nil, nil, err
				}
			}
		}
		changes = audit.Replaced(changes, "/unit", old.Unit, put.Unit)
		changes = audit.Replaced(changes, "/aggregation", string(old.Aggregation), string(put.Aggregation))
		changes = audit.Replaced(changes, "/description", old.Description, put.Description)
		changes = audit.Replaced(changes, "/event_type", old.EventType, put.EventType)
		changes = audit.Replaced(changes, "/value", old.Value, put.Value)
		if len(changes) == 0 {
			out = old
			return nil, nil, nil
		}
		out = &put
		if err := c.Tx.PutMeter(o.ID, out); err != nil {
			return nil, nil, err
		}
		return out, []audit.Draft{c.Entry(o, "meter.put", audit.Target{Type: "meter", ID: m.Slug}, changes)}, nil
	})
	return out, receipt, err
}

// DeleteMeter removes a meter that a root has defined and nothing was counted
// on: problem.Conflict otherwise.
func (s *Service) DeleteMeter(ctx context.Context, call *org.Call, rootID, slug string) (audit.Receipt, error) {
	if err := s.spool.Drain(ctx); err != nil {
		return audit.Receipt{}, err
	}
	return s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		o, _, m, err := c.check().meterTarget(rootID, slug)
		if err != nil {
			return nil, nil, err
		}
		if m == nil {
			return nil, nil, noMeter(slug)
		}
		if err := c.unused(o.ID, slug, "Leave it: a meter that counts nothing costs nothing."); err != nil {
			return nil, nil, err
		}
		if err := c.Tx.DeleteMeter(o.ID, slug); err != nil {
			return nil, nil, err
		}
		changes := audit.Replaced(nil, "/unit", m.Unit, "")
		changes = audit.Replaced(changes, "/aggregation", string(m.Aggregation), "")
		return nil, []audit.Draft{c.Entry(o, "meter.deleted", audit.Target{Type: "meter", ID: slug}, changes)}, nil
	})
}
