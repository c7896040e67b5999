package metering

import (
	"context"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
)

// Demand is what a request to a product has to satisfy, and what it counts
// when it does.
type Demand struct {
	Permissions key.Permissions
	OrgID       string        // an organization that the key must see; empty for its own
	Meter       string        // empty counts nothing
	Quantity    usage.Decimal // not negative
}

// Decision is what has to be recorded of a request.
type Decision struct {
	Org         *org.Snapshot // nil if the key cannot see the one that the demand names
	Usage       []access.Usage
	Reservation *Reservation
}

// Decide decides about a request to a product at the time at, made with a key
// that has been authenticated. A request that is allowed is counted for the
// organization that the demand names, and every hard limit that binds it has
// room for it until the reservation is ended. The error is org.NotFound if the key
// cannot see the organization, PermissionDenied, LimitExceeded, or
// InvalidParameter for a meter that cannot be counted by requests; the
// decision then counts nothing.
func (s *Service) Decide(ctx context.Context, actor *auth.Actor, d *Demand, at time.Time) (Decision, error) {
	var out Decision
	id := d.OrgID
	if id == "" {
		if id = actor.OrgID; id == "" {
			return out, problem.New(problem.PermissionDenied, "The operator key belongs to no organization; it is not for requests to a product.").
				WithFix("Use a key of an organization.")
		}
	}
	snap, err := s.orgs.Find(ctx, actor, id)
	if err != nil {
		return out, err
	}
	out.Org = snap
	if err := actor.Demand(snap.Path, d.Permissions...); err != nil {
		return out, err
	}
	if d.Meter == "" || actor.Everywhere() {
		return out, nil
	}
	quantity, err := s.recordable(ctx, snap.RootID, d.Meter, d.Quantity)
	if err != nil || quantity == 0 {
		return out, err
	}
	out.Reservation, err = s.Admit(ctx, Charge{RootID: snap.RootID, Path: snap.Path, Month: usage.MonthOf(at), Meter: d.Meter, Quantity: quantity})
	if err == nil {
		out.Usage = []access.Usage{{RootID: snap.RootID, Path: snap.Path, At: at, Meter: d.Meter, Quantity: quantity}}
	}
	return out, err
}

// recordable returns what one request adds to the consumption of a meter. It
// fails unless requests can count on it: a meter that needs to know what was
// there before cannot be counted by requests that wait for no database.
func (s *Service) recordable(ctx context.Context, rootID, slug string, quantity usage.Decimal) (usage.Decimal, error) {
	if slug == usage.APICalls {
		return quantity, nil
	}
	meters, err := s.metersOf(ctx, rootID)
	if err != nil {
		return 0, err
	}
	for i := range meters {
		switch m := &meters[i]; {
		case m.Slug != slug:
		case m.Aggregation == usage.Sum:
			return quantity, nil
		case m.Aggregation == usage.Count:
			if quantity > 0 {
				quantity = usage.One
			}
			return quantity, nil
		default:
			return 0, problem.Param("meter", "names a meter with the aggregation %s; requests count on meters of sum and count", m.Aggregation)
		}
	}
	return 0, problem.Param("meter", "names no meter of this root")
}
