package metering

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
)

// UsageEvent is an event as somebody sent it in. Exactly one of Meter and Type
// is set.
type UsageEvent struct {
	ID     string
	Source string
	OrgID  string    // empty for the organization that the events were sent to
	At     time.Time // zero for now
	Meter  string    // the slug of the meter
	Type   string    // the type of a CloudEvent: all meters with this event type count it
	Line   int       // where it was in the body, from 1; 0 if the body had no lines
	// Quantity returns the quantity that a meter finds in the event. The
	// error is a *problem.Error about one place in the event.
	Quantity func(m *usage.Meter) (usage.Decimal, error)
}

// Ingestion says what became of events that were sent in.
type Ingestion struct {
	Accepted   int
	Duplicates int
}

// Limits of the texts of an event, in bytes.
const (
	maxUsageID     = 256
	maxUsageSource = 512
)

// usageErrors collects what is wrong with the events of a request.
type usageErrors struct {
	events []UsageEvent
	rows   problem.Rows
}

// add notes what is wrong with event i at pointer. In CloudEvents some members
// have other names.
func (e *usageErrors) add(i int, pointer, detail string) {
	if e.events[i].Type != "" {
		switch pointer {
		case "/org_id":
			pointer = "/subject"
		case "/timestamp":
			pointer = "/time"
		}
	}
	p := &problem.Error{Detail: detail}
	if pointer != "" {
		p = problem.Body(pointer, "%s", detail)
	}
	e.rows.Add(problem.Field{Index: &i, Line: e.events[i].Line}, p)
}

func (e *usageErrors) err() error {
	if e.rows.Count() == 0 {
		return nil
	}
	p := problem.New(problem.EventInvalid, "%d of %d events are invalid; none was counted.", e.rows.Count(), len(e.events)).
		WithFix("Correct the events that errors names, and send all of them again.")
	if e.rows.Count() == 1 {
		p.Detail = "One event is invalid, so none was counted: " + e.rows.First()
	}
	p.Fields = e.rows.Fields()
	return p
}

// noPlace is what is wrong with the organization of an event, whether or not
// it exists.
const noPlace = "names no organization that this call reaches"

// storable reports whether s is text that every database holds.
func storable(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// lowering says why something may not be taken off the consumption of an
// organization.
const lowering = "what an organization has consumed is lowered from above, with a key that reaches its parent, and that of a root by the operator"

// mayLower reports whether the actor may take something off what the
// organization at path has consumed. Who consumes may not: it would pay less
// and lift its own limits.
func mayLower(a *auth.Actor, path string) bool {
	if a.Everywhere() {
		return true
	}
	ids := org.SplitPath(path)
	return len(ids) > 1 && a.Sees(strings.TrimSuffix(path, ids[len(ids)-1]+"/"))
}

// refuseLowering returns why the actor may not take something off what the
// organization at path has consumed of a meter, empty if it may. Every ancestor has consumed less too then. So a limit on
// one of them must be the actor's to change, or it would lift it like this.
func refuseLowering(tx Tx, a *auth.Actor, path, meter string) (string, error) {
	switch {
	case a.Everywhere():
		return "", nil
	case !mayLower(a, path):
		return lowering, nil
	}
	rootID, _, _ := strings.Cut(path, "/")
	limits, err := org.ChainLimits(tx, rootID, path)
	for i := range limits {
		if l := &limits[i]; l.Meter == meter && !mayLower(a, pathOf(path, l.OrgID)) {
			return fmt.Sprintf("it would lower what counts against the limit of %s, which this key may not change", l.OrgID), err
		}
	}
	return "", err
}

// checkEvents checks what can be checked without the store, and gives events
// without a time the time now.
func checkEvents(events []UsageEvent, now time.Time) error {
	bad := &usageErrors{events: events}
	for i := range events {
		e := &events[i]
		switch {
		case e.ID == "":
			bad.add(i, "/id", "is missing: an event without an id could be counted twice")
		case len(e.ID) > maxUsageID || !storable(e.ID):
			bad.add(i, "/id", "must be 1 to 256 bytes of UTF-8 without NUL")
		case len(e.Source) > maxUsageSource || !storable(e.Source):
			bad.add(i, "/source", "must be at most 512 bytes of UTF-8 without NUL")
		case key.Holds(e.ID):
			bad.add(i, "/id", key.SecretInID)
		case e.OrgID != "" && !ident.Valid(e.OrgID):
			bad.add(i, "/org_id", noPlace)
		case e.At.IsZero():
			e.At = now
		case e.At.After(now.Add(usage.Ahead)):
			bad.add(i, "/timestamp", "is more than 5 minutes in the future; the server's time is "+now.Format(time.RFC3339))
		case e.At.Year() < 1970 || now.After(usage.MonthOf(e.At).Closes(usage.Window)):
			bad.add(i, "/timestamp", "is in a month that ended more than 35 days ago; correct that month with an adjustment")
		}
		e.At = e.At.UTC().Truncate(time.Microsecond)
		e.Source = key.Redact(e.Source)
	}
	return bad.err()
}

// Ingest counts events, all or none of them, each exactly once: an event with
// the source and id of one that the same sender has sent before, for the same
// root, changes nothing; see senderOf. It returns once the events, their identities and all totals are
// durable. An event counts for the organization that it names, which must lie
// at or below the one with the id orgID, and for its ancestors at that moment.
// With an empty orgID any organization that the actor sees will do.
//
// The error is problem.EventInvalid, naming the bad events, or
// problem.LimitExceeded if those that are not duplicates do not all fit into
// the hard limits.
func (s *Service) Ingest(ctx context.Context, call *org.Call, orgID string, events []UsageEvent) (Ingestion, error) {
	now := s.Now()
	if err := checkEvents(events, now); err != nil {
		return Ingestion{}, err
	}
	within := ""
	if orgID != "" {
		snap, err := s.orgs.Find(ctx, call.Actor, orgID)
		if err != nil {
			return Ingestion{}, err
		}
		within = snap.Path
	}
	in := &ingestion{service: s, call: call, now: now, orgID: orgID, events: events}
	for i := range events {
		if events[i].OrgID == "" {
			events[i].OrgID = orgID
		}
		in.orgIDs = append(in.orgIDs, events[i].OrgID)
	}
	slices.Sort(in.orgIDs)
	in.orgIDs = slices.Compact(in.orgIDs)
	leave, err := s.orgs.BulkTurn(ctx, call, len(events))
	if err != nil {
		return Ingestion{}, err
	}
	defer leave()
	var out Ingestion
	for attempt := 0; ; attempt++ {
		if err := in.watch(ctx, within); err != nil {
			return Ingestion{}, err
		}
		err = s.orgs.Deliver(ctx, call, key.ConsumptionWrite, func(tx org.Tx, present *org.Call) (any, string, error) {
			in.reservation.Release() // of an attempt before
			in.reservation = nil
			path := cmp.Or(within, present.Actor.Path)
			if err := present.Actor.Demand(path, key.ConsumptionWrite); err != nil {
				return nil, "", err
			}
			in.call = present
			var err error
			out, err = in.run(s.store.In(tx))
			return out, path, err
		})
		if err != errNoGauge {
			break
		}
		// An organization was moved below a limit meanwhile, or the transaction
		// came late.
		if attempt == maxGaugeReads {
			err = gaugesLate()
			break
		}
	}
	switch {
	case err == nil || problem.Is(err, problem.OutcomeUnknown):
		in.reservation.Committed()
	default:
		in.reservation.Release()
	}
	var beyond *usage.RangeError
	if errors.As(err, &beyond) {
		err = problem.New(problem.EventInvalid, "The events would take the consumption of %s by %s in %s out of range; none was counted.", beyond.Meter, beyond.OrgID, beyond.Month).
			WithFix("The consumption of an organization and its descendants in a month is between -9000000000000 and 9000000000000.")
	}
	return out, err
}

// ingestion is one call of Ingest.
type ingestion struct {
	service     *Service
	call        *org.Call
	now         time.Time
	orgID       string
	events      []UsageEvent
	orgIDs      []string             // of the events, each once
	limits      map[string]*bounds   // that watch found, by path
	refusals    map[[2]string]string // of what would lower a meter, by path and meter
	reservation *Reservation
}

// reaches reports whether an event may be for an organization: the actor may send
// some for it, and it lies where the events were sent to. Of any other the transaction
// reads where it is, and neither locks nor keeps anything.
func (in *ingestion) reaches(place org.Place, within string) bool {
	return in.call.Actor.Can(key.ConsumptionWrite, place.Path) && strings.HasPrefix(place.Path, within)
}

// watch reads what the hard limits say about the events, before the
// transaction.
func (in *ingestion) watch(ctx context.Context, within string) error {
	in.limits = map[string]*bounds{}
	// One query for all: it takes as long for organizations that the actor does
	// not see as for those that nobody has.
	var places map[string]org.Place
	if err := in.service.store.Read(ctx, func(tx Tx) (err error) {
		places, err = tx.Places(in.orgIDs)
		return err
	}); err != nil {
		return err
	}
	for _, place := range places {
		if !in.reaches(place, within) {
			continue // run says so
		}
		meters, err := in.service.metersOf(ctx, place.RootID)
		if err != nil {
			return err
		}
		b, err := in.service.boundsOf(ctx, place.RootID, place.Path)
		if err != nil {
			return err
		}
		in.limits[place.Path] = b
		if len(b.limits) == 0 {
			continue
		}
		var charges []Charge
		for i := range meters {
			for m := usage.MonthOf(in.now.Add(-usage.Window)); m <= usage.MonthOf(in.now.Add(usage.Ahead)); m = m.Next() {
				charges = append(charges, Charge{RootID: place.RootID, Path: place.Path, Month: m, Meter: meters[i].Slug})
			}
		}
		known, err := in.service.watchLimits(ctx, charges...)
		if err != nil {
			return err
		}
		maps.Copy(in.limits, known)
	}
	return nil
}

// run counts the events in a transaction.
func (in *ingestion) run(tx Tx) (Ingestion, error) {
	var out Ingestion
	in.refusals = map[[2]string]string{}
	// Where the organizations are is read in the transaction that counts: a
	// move cannot part an event from the ancestors it counts for.
	places, err := tx.Places(in.orgIDs)
	if err != nil {
		return out, err
	}
	within := ""
	if in.orgID != "" {
		within = places[in.orgID].Path
		if within == "" {
			// No event may name it; it may have been deleted just now.
			target, err := tx.Places([]string{in.orgID})
			if err != nil {
				return out, err
			}
			if within = target[in.orgID].Path; within == "" {
				return out, org.NotFound()
			}
		}
	}
	bad := &usageErrors{events: in.events}
	months, err := in.hold(tx, places, within)
	if err != nil {
		return out, err
	}
	metersByRoot := map[string][]usage.Meter{}
	stored := make([]usage.Event, 0, len(in.events))
	origin := make([]int, 0, len(in.events)) // index in in.events of each of stored
	aggregation := make([]usage.Aggregation, 0, len(in.events))
	for i := range in.events {
		e := &in.events[i]
		place, ok := places[e.OrgID]
		if !ok || !in.reaches(place, within) {
			switch {
			case e.OrgID == "":
				bad.add(i, "/org_id", "is missing: it names the organization")
			default:
				bad.add(i, "/org_id", noPlace)
			}
			continue
		}
		all, ok := metersByRoot[place.RootID]
		if !ok {
			if all, err = meters(tx, place.RootID); err != nil {
				return out, err
			}
			metersByRoot[place.RootID] = all
		}
		part := 0
		for j := range all {
			m := &all[j]
			if e.Meter != m.Slug && (e.Type == "" || e.Type != m.EventType) {
				continue
			}
			quantity, err := e.Quantity(m)
			if err != nil {
				p := problem.From(err)
				if p.Code == problem.Internal {
					return out, err
				}
				pointer, detail := "", p.Detail
				if len(p.Fields) > 0 {
					pointer, detail = p.Fields[0].Pointer, p.Fields[0].Detail
				}
				bad.add(i, pointer, detail)
				part = 1
				break
			}
			// A count is one, whatever the quantity.
			if quantity < 0 && m.Aggregation != usage.Count {
				refusal, err := in.refuseLowering(tx, place.Path, m.Slug)
				if err != nil {
					return out, err
				}
				if refusal != "" {
					bad.add(i, "/quantity", "is negative: "+refusal)
					part = 1
					break
				}
			}
			stored = append(stored, usage.Event{EventKey: usage.EventKey{RootID: place.RootID, Sender: org.SenderOf(in.call.Actor), Source: e.Source, ID: e.ID, Part: part},
				OrgID: e.OrgID, Meter: m.Slug, At: e.At, Quantity: quantity})
			origin = append(origin, i)
			aggregation = append(aggregation, m.Aggregation)
			part++
		}
		if part > 0 {
			continue
		}
		if e.Meter != "" {
			bad.add(i, "/meter", "names no meter of this root")
		} else {
			bad.add(i, "/type", "is one that no meter of this root counts")
		}
	}
	if err := bad.err(); err != nil {
		return out, err
	}
	fresh, err := tx.ClaimEvents(stored)
	if err != nil {
		return out, err
	}
	book := &booking{places: places, months: months, states: map[usage.Series]usage.State{}, entries: map[entryKey]*usage.Entry{},
		lowers: map[*usage.Entry]int{}}
	if book.states, err = tx.States(book.series(stored, fresh, aggregation)); err != nil {
		return out, err
	}
	for n := range stored {
		if stored[n].Part == 0 {
			if fresh[n] {
				out.Accepted++
			} else {
				out.Duplicates++
			}
		}
		if !fresh[n] {
			continue
		}
		if err := book.add(&stored[n], aggregation[n], origin[n]); err != nil {
			bad.add(origin[n], "", problem.From(err).Detail)
		}
	}
	for _, e := range book.order {
		// What was consumed in a closed month does not shrink with a gauge:
		// it would be taken off another month.
		if i, lower := book.lowers[e]; lower && e.Quantity < 0 {
			refusal, err := in.refuseLowering(tx, e.Path, e.Meter)
			if err != nil {
				return out, err
			}
			if refusal != "" {
				bad.add(i, "/quantity", "is smaller than what was counted for a month that has closed: "+refusal)
			}
		}
	}
	if err := bad.err(); err != nil {
		return out, err
	}
	if len(book.order) == 0 {
		return out, nil
	}
	entries := make([]usage.Entry, len(book.order))
	charges := make([]Charge, len(book.order))
	for i, e := range book.order {
		entries[i] = *e
		rootID, _, _ := strings.Cut(e.Path, "/")
		if in.limits[e.Path] == nil { // it was moved meanwhile
			limits, err := org.ChainLimits(tx, rootID, e.Path)
			if err != nil {
				return out, err
			}
			in.limits[e.Path] = &bounds{rootID: rootID, path: e.Path, limits: limits}
		}
		charges[i] = Charge{RootID: rootID, Path: e.Path, Month: e.Month, Meter: e.Meter, Quantity: e.Quantity}
	}
	if in.reservation, err = in.service.reserve(charges, true, in.limits); err != nil {
		return out, err
	}
	if err := tx.PutStates(book.states); err != nil {
		return out, err
	}
	return out, tx.AddUsage(entries, in.now)
}

// refuseLowering is the function of that name, which asks once for all events.
func (in *ingestion) refuseLowering(tx Tx, path, meter string) (string, error) {
	of := [2]string{path, meter}
	refusal, ok := in.refusals[of]
	if ok {
		return refusal, nil
	}
	refusal, err := refuseLowering(tx, in.call.Actor, path, meter)
	in.refusals[of] = refusal
	return refusal, err
}

// hold returns, for the months in which events of each root lie, those in
// which they are counted, and keeps these from being closed.
func (in *ingestion) hold(tx Tx, places map[string]org.Place, within string) (map[RootMonth]usage.Month, error) {
	held := map[RootMonth]usage.Month{}
	for i := range in.events {
		e := &in.events[i]
		if place, ok := places[e.OrgID]; ok && in.reaches(place, within) {
			held[RootMonth{place.RootID, usage.MonthOf(e.At)}] = ""
		}
	}
	return held, Book(tx, held, in.service.over(in.now))
}

type entryKey struct {
	orgID string
	meter string
	month usage.Month
	day   usage.Day
}

// booking adds up what events add to the consumption of their organizations.
type booking struct {
	places  map[string]org.Place
	months  map[RootMonth]usage.Month
	states  map[usage.Series]usage.State
	entries map[entryKey]*usage.Entry
	order   []*usage.Entry
	lowers  map[*usage.Entry]int // the last event that took something off a closed month, by the entry that does
}

// series returns the series whose states the events depend on.
func (b *booking) series(events []usage.Event, fresh []bool, aggregation []usage.Aggregation) []usage.Series {
	var list []usage.Series
	seen := map[usage.Series]bool{}
	for i := range events {
		if e := &events[i]; fresh[i] && (aggregation[i] == usage.Max || aggregation[i] == usage.Latest) {
			for _, period := range []string{string(usage.MonthOf(e.At)), string(usage.DayOf(e.At))} {
				s := usage.Series{RootID: e.RootID, Period: period, OrgID: e.OrgID, Meter: e.Meter}
				if !seen[s] {
					seen[s] = true
					list = append(list, s)
				}
			}
		}
	}
	return list
}

// delta returns what an event adds in a period.
func (b *booking) delta(e *usage.Event, a usage.Aggregation, period string) (usage.Decimal, error) {
	switch a {
	case usage.Sum:
		return e.Quantity, nil
	case usage.Count:
		return usage.One, nil
	}
	s := usage.Series{RootID: e.RootID, Period: period, OrgID: e.OrgID, Meter: e.Meter}
	state := b.states[s]
	delta, err := state.Count(a, b.places[e.OrgID].Path, e.At, e.Quantity)
	if err == nil {
		b.states[s] = state
	}
	return delta, err
}

// add adds event i of the request.
func (b *booking) add(e *usage.Event, a usage.Aggregation, i int) error {
	month, day := usage.MonthOf(e.At), usage.DayOf(e.At)
	open := b.months[RootMonth{e.RootID, month}]
	ofMonth, err := b.delta(e, a, string(month))
	if err != nil {
		return err
	}
	ofDay, err := b.delta(e, a, string(day))
	if err != nil {
		return err
	}
	k := entryKey{e.OrgID, e.Meter, month, day}
	if open != month {
		k.day, ofDay = "", 0
	}
	entry := b.entries[k]
	if entry == nil {
		entry = &usage.Entry{Path: b.places[e.OrgID].Path, Meter: e.Meter, Month: open, Day: k.day}
		if open != month {
			entry.For = month
		}
		b.entries[k] = entry
		b.order = append(b.order, entry)
	}
	if open != month && ofMonth < 0 {
		b.lowers[entry] = i
	}
	if entry.Quantity, err = entry.Quantity.Add(ofMonth); err != nil {
		return err
	}
	entry.OfDay, err = entry.OfDay.Add(ofDay)
	return err
}
