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
func refuseLowering(tx View, a *auth.Actor, path, meter string) (string, error) {
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
	for attempt, replans := 0, 0; ; {
		if err := in.prepare(ctx, within, replans > 0); err != nil {
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
			out, err = in.run(s.store.TxOf(tx))
			return out, path, err
		})
		switch err {
		case errNoGauge:
			// An organization was moved below a limit meanwhile, or the transaction
			// came late.
			if attempt++; attempt <= maxGaugeReads {
				continue
			}
			err = gaugesLate()
		case errPlanChanged:
			if replans++; replans <= maxReplans {
				continue
			}
			p := problem.New(problem.Unavailable, "The meters or the places of the organizations change all the time; none was counted.").WithFix("Send the events again.")
			p.RetryAfter = time.Second
			err = p
		}
		break
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
	orgIDs      []string // of the events, each once
	plan        *plan
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

// plan is what the events come to, worked out before the transaction, which only
// looks whether what it rests on is still so: where the organizations are, the
// meters of their roots, and what may not be lowered. Nothing of it changes once it
// is made.
type plan struct {
	places   map[string]org.Place
	within   string                   // where all events must lie; empty for anywhere
	reached  map[string]bool          // of places, those for which events may be
	meters   map[string][]usage.Meter // by root
	lowers   [][2]string              // paths and meters of which something is taken off
	refusals map[[2]string]string     // what says no to that, by path and meter
	months   []RootMonth              // in which events lie, in ascending order

	events []usage.Event
	of     []planned // of each of events
	order  []int     // usage.ClaimOrder of events
	slots  []slot
	bad    *usageErrors
}

// planned is what is known of an event for one meter.
type planned struct {
	origin      int // index in the request
	aggregation usage.Aggregation
	slot        int // what it adds to
}

// slot is what events add to together.
type slot struct {
	orgID string
	meter string
	month usage.Month
	day   usage.Day
}

// errPlanChanged says that what a plan rests on is no longer so.
var errPlanChanged = errors.New("what the events were checked against has changed")

// maxReplans is how often events are checked anew because others change what the
// check rests on.
const maxReplans = 8

// prepare reads what the transaction will need and works out the plan. again says
// that what is remembered of the meters may be old.
func (in *ingestion) prepare(ctx context.Context, within string, again bool) error {
	// One query for all: it takes as long for organizations that the actor does
	// not see as for those that nobody has.
	p := &plan{reached: map[string]bool{}, meters: map[string][]usage.Meter{}, refusals: map[[2]string]string{}}
	if err := in.service.store.Read(ctx, func(tx View) (err error) {
		p.places, p.within, err = in.where(tx)
		return err
	}); err != nil {
		return err
	}
	for id, place := range p.places {
		if !in.reaches(place, p.within) {
			continue
		}
		p.reached[id] = true
		if p.meters[place.RootID] != nil {
			continue
		}
		var all []usage.Meter
		var err error
		if again {
			err = in.service.store.Read(ctx, func(tx View) (err error) {
				all, err = meters(tx, place.RootID)
				return err
			})
		} else {
			all, err = in.service.metersOf(ctx, place.RootID)
		}
		if err != nil {
			return err
		}
		p.meters[place.RootID] = all
	}
	if err := in.watch(ctx, p); err != nil {
		return err
	}
	if err := p.work(in); err != nil {
		return err
	}
	if len(p.lowers) > 0 {
		refused := false
		if err := in.service.store.Read(ctx, func(tx View) error {
			in.refusals, refused = map[[2]string]string{}, false
			for _, l := range p.lowers {
				refusal, err := in.refuseLowering(tx, l[0], l[1])
				if err != nil {
					return err
				}
				p.refusals[l] = refusal
				refused = refused || refusal != ""
			}
			return nil
		}); err != nil {
			return err
		}
		if refused {
			if err := p.work(in); err != nil {
				return err
			}
		}
	}
	p.order = usage.ClaimOrder(p.events)
	in.plan = p
	return nil
}

// where returns where the organizations of the events are, and where all of them
// must be.
func (in *ingestion) where(tx View) (places map[string]org.Place, within string, err error) {
	if places, err = tx.Places(in.orgIDs); err != nil || in.orgID == "" {
		return places, "", err
	}
	if within = places[in.orgID].Path; within == "" {
		// No event may name it; it may have been deleted just now.
		target, err := tx.Places([]string{in.orgID})
		if err != nil {
			return nil, "", err
		}
		if within = target[in.orgID].Path; within == "" {
			return nil, "", org.NotFound()
		}
	}
	return places, within, nil
}

// watch reads what the hard limits say about the events.
func (in *ingestion) watch(ctx context.Context, p *plan) error {
	in.limits = map[string]*bounds{}
	for id := range p.reached {
		place := p.places[id]
		b, err := in.service.boundsOf(ctx, place.RootID, place.Path)
		if err != nil {
			return err
		}
		in.limits[place.Path] = b
		if len(b.limits) == 0 {
			continue
		}
		var charges []Charge
		for _, meter := range p.meters[place.RootID] {
			for m := usage.MonthOf(in.now.Add(-usage.Window)); m <= usage.MonthOf(in.now.Add(usage.Ahead)); m = m.Next() {
				charges = append(charges, Charge{RootID: place.RootID, Path: place.Path, Month: m, Meter: meter.Slug})
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

// work finds the quantities of the events, and what is wrong with them as far as
// the refusals of lowering are known.
func (p *plan) work(in *ingestion) error {
	p.bad = &usageErrors{events: in.events}
	p.events = make([]usage.Event, 0, len(in.events))
	p.of = make([]planned, 0, len(in.events))
	p.lowers, p.months, p.slots = nil, nil, nil
	lowers := map[[2]string]bool{}
	months := map[RootMonth]bool{}
	slots := map[slot]int{}
	sender := org.SenderOf(in.call.Actor)
	for i := range in.events {
		e := &in.events[i]
		place := p.places[e.OrgID]
		if !p.reached[e.OrgID] {
			switch {
			case e.OrgID == "":
				p.bad.add(i, "/org_id", "is missing: it names the organization")
			default:
				p.bad.add(i, "/org_id", noPlace)
			}
			continue
		}
		month, day := usage.MonthOf(e.At), usage.DayOf(e.At)
		if m := (RootMonth{place.RootID, month}); !months[m] {
			months[m] = true
			p.months = append(p.months, m)
		}
		all := p.meters[place.RootID]
		part := 0
		for j := range all {
			m := &all[j]
			if e.Meter != m.Slug && (e.Type == "" || e.Type != m.EventType) {
				continue
			}
			quantity, err := e.Quantity(m)
			if err != nil {
				failed := problem.From(err)
				if failed.Code == problem.Internal {
					return err
				}
				pointer, detail := "", failed.Detail
				if len(failed.Fields) > 0 {
					pointer, detail = failed.Fields[0].Pointer, failed.Fields[0].Detail
				}
				p.bad.add(i, pointer, detail)
				part = 1
				break
			}
			// A count is one, whatever the quantity.
			if quantity < 0 && m.Aggregation != usage.Count {
				l := [2]string{place.Path, m.Slug}
				if !lowers[l] {
					lowers[l] = true
					p.lowers = append(p.lowers, l)
				}
				if refusal := p.refusals[l]; refusal != "" {
					p.bad.add(i, "/quantity", "is negative: "+refusal)
					part = 1
					break
				}
			}
			s := slot{e.OrgID, m.Slug, month, day}
			at, ok := slots[s]
			if !ok {
				at = len(p.slots)
				slots[s] = at
				p.slots = append(p.slots, s)
			}
			p.events = append(p.events, usage.Event{EventKey: usage.EventKey{RootID: place.RootID, Sender: sender, Source: e.Source, ID: e.ID, Part: part},
				OrgID: e.OrgID, Meter: m.Slug, At: e.At, Quantity: quantity})
			p.of = append(p.of, planned{i, m.Aggregation, at})
			part++
		}
		if part > 0 {
			continue
		}
		if e.Meter != "" {
			p.bad.add(i, "/meter", "names no meter of this root")
		} else {
			p.bad.add(i, "/type", "is one that no meter of this root counts")
		}
	}
	slices.SortFunc(p.months, func(a, b RootMonth) int {
		return cmp.Or(cmp.Compare(a.RootID, b.RootID), cmp.Compare(a.Month, b.Month))
	})
	return nil
}

// confirm checks in the transaction that what the plan rests on is still so. It is
// errPlanChanged if not.
func (in *ingestion) confirm(tx Tx) error {
	p := in.plan
	// Where the organizations are is read in the transaction that counts: a
	// move cannot part an event from the ancestors it counts for.
	places, within, err := in.where(tx)
	if err != nil {
		return err
	}
	if within != p.within || !maps.Equal(places, p.places) {
		return errPlanChanged
	}
	for id, place := range places {
		if in.reaches(place, within) != p.reached[id] {
			return errPlanChanged
		}
	}
	for rootID, before := range p.meters {
		if now, err := meters(tx, rootID); err != nil {
			return err
		} else if !slices.Equal(now, before) {
			return errPlanChanged
		}
	}
	for _, l := range p.lowers {
		if refusal, err := in.refuseLowering(tx, l[0], l[1]); err != nil {
			return err
		} else if refusal != p.refusals[l] {
			return errPlanChanged
		}
	}
	return p.bad.err()
}

// run counts the events in a transaction.
func (in *ingestion) run(tx Tx) (Ingestion, error) {
	var out Ingestion
	in.refusals = map[[2]string]string{}
	if err := in.confirm(tx); err != nil {
		return out, err
	}
	p := in.plan
	months, err := in.hold(tx)
	if err != nil {
		return out, err
	}
	fresh, err := tx.ClaimEvents(p.events, p.order)
	if err != nil {
		return out, err
	}
	book := &booking{plan: p, months: months, states: map[usage.Series]usage.State{}, slots: make([]*usage.Entry, len(p.slots)),
		entries: map[slot]*usage.Entry{}, lowers: map[*usage.Entry]int{}}
	if book.states, err = tx.States(book.series(fresh)); err != nil {
		return out, err
	}
	bad := &usageErrors{events: in.events}
	for n := range p.events {
		if p.events[n].Part == 0 {
			if fresh[n] {
				out.Accepted++
			} else {
				out.Duplicates++
			}
		}
		if !fresh[n] {
			continue
		}
		if err := book.add(n); err != nil {
			bad.add(p.of[n].origin, "", problem.From(err).Detail)
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
func (in *ingestion) refuseLowering(tx View, path, meter string) (string, error) {
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
func (in *ingestion) hold(tx Tx) (map[RootMonth]usage.Month, error) {
	held := make(map[RootMonth]usage.Month, len(in.plan.months))
	for _, m := range in.plan.months {
		held[m] = ""
	}
	return held, Book(tx, held, in.service.over(in.now))
}

// booking adds up what events add to the consumption of their organizations.
type booking struct {
	*plan
	months  map[RootMonth]usage.Month
	states  map[usage.Series]usage.State
	slots   []*usage.Entry        // of the plan's slots; nil for those without fresh events
	entries map[slot]*usage.Entry // without a day for those of a closed month
	order   []*usage.Entry
	lowers  map[*usage.Entry]int // the last event that took something off a closed month, by the entry that does
}

// series returns the series whose states the events depend on.
func (b *booking) series(fresh []bool) []usage.Series {
	var list []usage.Series
	seen := make([]bool, len(b.plan.slots))
	months := map[usage.Series]bool{}
	for i := range b.events {
		at := b.of[i].slot
		if a := b.of[i].aggregation; !fresh[i] || a != usage.Max && a != usage.Latest || seen[at] {
			continue
		}
		seen[at] = true
		of := b.plan.slots[at]
		month := usage.Series{RootID: b.events[i].RootID, Period: string(of.month), OrgID: of.orgID, Meter: of.meter}
		if !months[month] {
			months[month] = true
			list = append(list, month)
		}
		day := month
		day.Period = string(of.day)
		list = append(list, day)
	}
	return list
}

// delta returns what event n adds in a period.
func (b *booking) delta(n int, period string) (usage.Decimal, error) {
	e, a := &b.events[n], b.of[n].aggregation
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

// add adds event n of the plan.
func (b *booking) add(n int) error {
	of := &b.plan.slots[b.of[n].slot]
	ofMonth, err := b.delta(n, string(of.month))
	if err != nil {
		return err
	}
	ofDay, err := b.delta(n, string(of.day))
	if err != nil {
		return err
	}
	entry := b.slots[b.of[n].slot]
	if entry == nil {
		entry = b.entryOf(of)
		b.slots[b.of[n].slot] = entry
	}
	if entry.For != "" {
		if ofDay = 0; ofMonth < 0 {
			b.lowers[entry] = b.of[n].origin
		}
	}
	if entry.Quantity, err = entry.Quantity.Add(ofMonth); err != nil {
		return err
	}
	entry.OfDay, err = entry.OfDay.Add(ofDay)
	return err
}

// entryOf returns what the events of a slot are booked in. A closed month has no
// days.
func (b *booking) entryOf(of *slot) *usage.Entry {
	place := b.places[of.orgID]
	open, k := b.months[RootMonth{place.RootID, of.month}], *of
	if open != of.month {
		k.day = ""
	}
	entry := b.entries[k]
	if entry == nil {
		entry = &usage.Entry{Path: place.Path, Meter: of.meter, Month: open, Day: k.day}
		if open != of.month {
			entry.For = of.month
		}
		b.entries[k] = entry
		b.order = append(b.order, entry)
	}
	return entry
}
