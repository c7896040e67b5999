package metering

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
)

// LimitETag returns the strong entity tag of a limit itself, without its use.
func LimitETag(l *usage.Limit) string {
	return org.ETag("limit "+l.Meter, org.Stamp{Path: l.OrgID, Version: l.Version, At: l.UpdatedAt})
}

// LimitUse is a limit with what was consumed under it.
type LimitUse struct {
	usage.Limit
	// Used is what the subtree of the limit's organization has consumed this
	// month. It is nil if the actor cannot see that organization: what its
	// siblings consume is not its business.
	Used *usage.Decimal
}

// bounds are the limits that bind an organization: its own and those of its
// ancestors, from the root down and then by meter.
type bounds struct {
	rootID     string
	path       string
	limits     []usage.Limit
	generation uint64
}

// boundsOf returns the limits that bind the organization at path.
func (s *Service) boundsOf(ctx context.Context, rootID, path string) (*bounds, error) {
	generation := s.store.Generation(rootID)
	if b, ok := s.bounds.GetIfPresent(path); ok && b.generation == generation {
		return b, nil
	}
	b := &bounds{rootID: rootID, path: path, generation: generation}
	err := s.store.Read(ctx, func(v View) (err error) {
		b.limits, err = org.ChainLimits(v, rootID, path)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.bounds.Set(path, b)
	return b, nil
}

// PermitLimit checks that the actor, who sees o, may change its limits. A limit
// is set from above: whoever provides for an organization sets it, so that no
// customer lifts its own.
func PermitLimit(a *auth.Actor, o *org.Organization) error {
	switch {
	case mayLower(a, o.Path):
		return nil
	case o.ParentID == "":
		return problem.New(problem.PermissionDenied, "Only the operator may change the limits of a root.")
	}
	return problem.New(problem.PermissionDenied, "The limits of an organization are changed from above, and this key does not reach its parent.").
		WithFix("Use a key of an ancestor.")
}

// limitTarget finds the organization whose limit for a meter is to be changed,
// and the limit as it is; nil if there is none.
func (c *check) limitTarget(id, meter string) (*org.Organization, *usage.Limit, error) {
	o, err := c.Target(id, key.ConsumptionWrite)
	if err != nil {
		return nil, nil, err
	}
	if err := PermitLimit(c.Call.Actor, o); err != nil {
		return nil, nil, err
	}
	limits, err := c.Limits(o.RootID, []string{o.ID})
	if err != nil {
		return nil, nil, err
	}
	for i := range limits {
		if l := &limits[i]; l.Meter == meter {
			return o, l, org.CheckMatch(c.Call.IfMatch, LimitETag(l))
		}
	}
	return o, nil, org.MatchNothing(c.Call.IfMatch, noLimit(id, meter))
}

// CheckLimit checks whether the actor may change the limit on an organization
// for a meter, and whether it is as the call says.
func (s *Service) CheckLimit(ctx context.Context, call *org.Call, id, meter string) error {
	return s.precheck(ctx, call, func(c *check) error {
		_, _, err := c.limitTarget(id, meter)
		return err
	})
}

func noLimit(id, meter string) *problem.Error {
	return problem.New(problem.NotFound, "There is no limit on %s of %s.", meter, id)
}

// PutLimit sets the limit on an organization for a meter. The amount must not
// be negative. A hard limit that is exceeded already refuses all that would
// add to it.
func (s *Service) PutLimit(ctx context.Context, call *org.Call, id, meter string, amount usage.Decimal, enforcement usage.Enforcement) (*LimitUse, audit.Receipt, error) {
	var use *LimitUse
	receipt, err := s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		o, old, err := c.check().limitTarget(id, meter)
		if err != nil {
			return nil, nil, err
		}
		if err := knownMeter(c, o.RootID, meter); err != nil {
			return nil, nil, err
		}
		used, err := c.Consumed(o.RootID, o.ID, usage.MonthOf(c.At), meter)
		if err != nil {
			return nil, nil, err
		}
		l := &usage.Limit{RootID: o.RootID, OrgID: o.ID, Meter: meter, Amount: amount, Enforcement: enforcement, UpdatedAt: c.At, Version: 1}
		use = &LimitUse{Limit: *l, Used: &used}
		var changes []audit.Change
		if old == nil {
			changes = []audit.Change{{Pointer: "/limit", New: audit.Value(amount)}, {Pointer: "/enforcement", New: audit.Value(enforcement)}}
		} else {
			l.Version = old.Version + 1
			if old.Amount != amount {
				changes = append(changes, audit.Change{Pointer: "/limit", Old: audit.Value(old.Amount), New: audit.Value(amount)})
			}
			changes = audit.Replaced(changes, "/enforcement", string(old.Enforcement), string(enforcement))
		}
		if len(changes) == 0 {
			use.Limit = *old
			return nil, nil, nil
		}
		if err := c.Tx.PutLimit(l); err != nil {
			return nil, nil, err
		}
		use.Limit = *l
		return use, []audit.Draft{c.Entry(o, "limit.put", audit.Target{Type: "limit", ID: meter}, changes)}, nil
	})
	return use, receipt, err
}

// knownMeter fails with org.NotFound unless the root has the meter.
func knownMeter(v View, rootID, slug string) error {
	all, err := meters(v, rootID)
	if err == nil && meterOf(all, slug) == nil {
		err = noMeter(slug)
	}
	return err
}

// DeleteLimit removes the limit on an organization for a meter.
func (s *Service) DeleteLimit(ctx context.Context, call *org.Call, id, meter string) (audit.Receipt, error) {
	return s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		o, l, err := c.check().limitTarget(id, meter)
		if err != nil {
			return nil, nil, err
		}
		if l == nil {
			return nil, nil, noLimit(id, meter)
		}
		if err := c.Tx.DeleteLimit(o.RootID, o.ID, meter); err != nil {
			return nil, nil, err
		}
		return nil, []audit.Draft{c.Entry(o, "limit.deleted", audit.Target{Type: "limit", ID: meter}, []audit.Change{
			{Pointer: "/limit", Old: audit.Value(l.Amount)}, {Pointer: "/enforcement", Old: audit.Value(l.Enforcement)}})}, nil
	})
}

// LimitPosition is a place in the order of the limits that bind an
// organization: from the root down, and then by meter. Zero is the start.
type LimitPosition struct{ OrgID, Meter string }

// Limits returns at most limit of the limits that bind an organization, those
// after a position, with what was consumed under them this month, and whether
// there are more.
func (s *Service) Limits(ctx context.Context, actor *auth.Actor, id string, after LimitPosition, limit int) (list []LimitUse, more bool, err error) {
	snap, err := s.orgs.Find(ctx, actor, id)
	if err != nil {
		return nil, false, err
	}
	month := usage.MonthOf(s.now())
	err = s.store.ReadHeavy(ctx, func(v View) error {
		limits, err := org.ChainLimits(v, snap.RootID, snap.Path)
		if err != nil {
			return err
		}
		if after != (LimitPosition{}) {
			path := snap.PathIDs()
			depth := slices.Index(path, after.OrgID)
			limits = slices.DeleteFunc(limits, func(l usage.Limit) bool {
				d := slices.Index(path, l.OrgID)
				return d < depth || d == depth && l.Meter <= after.Meter
			})
		}
		if more = len(limits) > limit; more {
			limits = limits[:limit]
		}
		list, err = limitUses(v, actor, snap.Path, limits, month)
		return err
	})
	return list, more, err
}

// limitUses adds to limits on organizations of a path what was consumed.
func limitUses(v View, actor *auth.Actor, path string, limits []usage.Limit, month usage.Month) ([]LimitUse, error) {
	list := make([]LimitUse, len(limits))
	for i, l := range limits {
		list[i].Limit = l
		if !actor.Sees(pathOf(path, l.OrgID)) {
			continue
		}
		used, err := v.Consumed(l.RootID, l.OrgID, month, l.Meter)
		if err != nil {
			return nil, err
		}
		list[i].Used = &used
	}
	return list, nil
}

// MeterLimits returns the limits on a meter that bind an organization at the
// time at, from the root down. Used is what this process knows of the month
// under a hard limit that has been asked about; nil for others, and for those
// of organizations that the actor cannot see.
func (s *Service) MeterLimits(ctx context.Context, actor *auth.Actor, o *org.Snapshot, meter string, at time.Time) ([]LimitUse, error) {
	b, err := s.boundsOf(ctx, o.RootID, o.Path)
	if err != nil {
		return nil, err
	}
	var list []LimitUse
	for i := range b.limits {
		l := &b.limits[i]
		if l.Meter != meter {
			continue
		}
		use := LimitUse{Limit: *l}
		if l.Enforcement == usage.Hard && actor.Sees(pathOf(o.Path, l.OrgID)) {
			use.Used = s.gauges.used(gaugeKey{o.RootID, l.OrgID, usage.MonthOf(at), meter})
		}
		list = append(list, use)
	}
	return list, nil
}

// Limit returns the limit that is set on an organization for a meter.
func (s *Service) Limit(ctx context.Context, actor *auth.Actor, id, meter string) (*LimitUse, error) {
	snap, err := s.orgs.Find(ctx, actor, id)
	if err != nil {
		return nil, err
	}
	month := usage.MonthOf(s.now())
	var list []LimitUse
	err = s.store.Read(ctx, func(v View) error {
		limits, err := v.Limits(snap.RootID, []string{id})
		if err != nil {
			return err
		}
		limits = slices.DeleteFunc(limits, func(l usage.Limit) bool { return l.Meter != meter })
		list, err = limitUses(v, actor, snap.Path, limits, month)
		return err
	})
	if err == nil && len(list) == 0 {
		err = noLimit(id, meter)
	}
	if err != nil {
		return nil, err
	}
	return &list[0], nil
}

// pathOf returns the part of path that ends with the organization id.
func pathOf(path, id string) string {
	end := strings.Index("/"+path, "/"+id+"/") + len(id) + 1
	return path[:end]
}

// tightest returns the smallest of the limits on each meter that has one.
func tightest(limits []usage.Limit) map[string]*usage.Decimal {
	least := map[string]*usage.Decimal{}
	for i := range limits {
		l := &limits[i]
		if have := least[l.Meter]; have == nil || l.Amount < *have {
			least[l.Meter] = &l.Amount
		}
	}
	return least
}

// exceeded is the error of what does not fit into a hard limit.
func exceeded(l *usage.Limit, month usage.Month, now time.Time) *problem.Error {
	e := problem.New(problem.LimitExceeded, "The organization %s and its descendants may consume %s of %s a month, and this would exceed it.", l.OrgID, l.Amount, l.Meter).
		WithFix("Wait for the next month, or ask whoever provides for %s to raise the limit.", l.OrgID).
		With("limit_org_id", l.OrgID).With("meter", l.Meter).With("limit", l.Amount)
	if left := month.End().Sub(now); left > 0 {
		e.RetryAfter = left
	}
	return e
}
