package trail

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
)

// Erasure says what was erased, or would be.
type Erasure struct {
	DryRun       bool
	Values       int64 // of the audit trail
	AuditEntries int64 // that had these values
	AccessEvents int64 // of which something was blanked
	APIKeys      int64 // whose last address, or whose name if they are revoked, was blanked
	Remaining    Remaining
}

// Remaining counts what still holds the subject: the live state, which its
// owners change, and what the audit trail needs to stay provable.
type Remaining struct {
	Organizations        int64 `json:"organizations"` // by id, name, description, external id, tags or customizations; deleted ones too
	APIKeys              int64 `json:"api_keys"`      // by name or CIDRs, those that are not revoked
	CustomizationSchemas int64 `json:"customization_schemas"`
	AuditEntries         int64 `json:"audit_entries"` // by an id, a path, a pointer, a request id or what was said of meters and limits
	AccessEvents         int64 `json:"access_events"` // by id, action or method
}

// eraseStep is how many values, events and keys one transaction erases. More
// than that takes several, each with its own entry, so that others need not
// wait long for theirs; each is complete in itself.
const eraseStep = 5000

// eraseBytes bounds the values of the audit entries that one transaction
// erases something of, beyond the first.
const eraseBytes = 32 << 20

// erasePage is about how many bytes a search reads at a time.
const erasePage = 4 << 20

// eraseRun is a search for a subject, and what it has found.
type eraseRun struct {
	s       *Service
	call    *org.Call
	orgID   string
	subject audit.Subject
	basis   string
	done    Erasure
	receipt audit.Receipt

	// Found and not erased yet.
	records []string // ids of audit entries
	events  []access.Event
	keys    []*key.Key
	slots   int
	bytes   int // of the values of the audit entries
}

// Erase erases every value of a subject that the organization and what is
// below it keep about the past: the erasable values of audit entries, as far
// as children_audit shows those entries, what access events say of it, and the
// addresses from which keys were last used. What it erased, and on which
// basis, is recorded in the audit trail in the same transaction; whose values
// they were is not. Names and settings that are in force stay and are counted.
//
// It covers what was stored before it was called. Values of different kinds
// that are erased in different transactions are each covered by an entry; if
// it fails on the way, calling it again erases the rest.
func (s *Service) Erase(ctx context.Context, call *org.Call, orgID, subject, basis string, dryRun bool) (*Erasure, audit.Receipt, error) {
	who, p := audit.NewSubject(subject)
	if p != nil {
		return nil, audit.Receipt{}, p
	}
	if basis, p = org.CheckDescription("/basis", strings.TrimSpace(basis)); p != nil {
		return nil, audit.Receipt{}, p
	}
	switch {
	case basis == "":
		return nil, audit.Receipt{}, problem.Body("/basis", "is missing").WithFix("Say on which ground this is erased, such as a request under article 17 GDPR.")
	case who.In(basis):
		return nil, audit.Receipt{}, problem.Body("/basis", "contains the subject, and would be kept").WithFix("Refer to the request by a number.")
	}
	run := &eraseRun{s: s, call: call, orgID: orgID, subject: who, basis: basis, done: Erasure{DryRun: dryRun}}
	if err := run.search(ctx); err != nil {
		return nil, run.receipt, err
	}
	if !dryRun {
		if err := run.step(ctx, call.Idempotent); err != nil {
			return nil, run.receipt, err
		}
		if err := s.store.Scrub(ctx); err != nil {
			return nil, run.receipt, problem.New(problem.Unavailable, "The values are erased, but copies of them may still be in the database's write-ahead log.").
				WithFix("Repeat the request: it finds nothing more and empties the log.").WithCause(err)
		}
	}
	return &run.done, run.receipt, nil
}

// search goes through everything, and erases on the way what is more than one
// step takes.
func (run *eraseRun) search(ctx context.Context) error {
	snap, err := run.s.orgs.Find(ctx, run.call.Actor, run.orgID)
	if err != nil {
		return err
	}
	self := !run.call.Actor.SeesBelow(snap.Path)
	scope := org.ScopeSubtree
	if self {
		scope = org.ScopeSelf
	}
	needle := run.subject.Needle()

	aq := org.AuditQuery{RootID: snap.RootID, OrgID: snap.ID, Path: snap.Path, Scope: scope, From: snap.TrailSince(), Holding: needle, Ascending: true, Limit: 100, MaxBytes: erasePage}
	for aq.After >= 0 {
		var page org.AuditPage
		if err := run.read(ctx, func(v View) (err error) {
			page, err = v.AuditEntries(aq)
			return err
		}); err != nil {
			return err
		}
		for i := range page.Records {
			if err := run.record(ctx, &page.Records[i]); err != nil {
				return err
			}
		}
		aq.After = page.Next
	}

	eq := AccessQuery{RootID: snap.RootID, OrgID: snap.ID, Path: snap.Path, Scope: scope, Holding: needle, Limit: 1000, MaxBytes: erasePage}
	for more := true; more; {
		var page AccessPage
		if err := run.read(ctx, func(v View) (err error) {
			page, err = v.AccessEvents(eq)
			return err
		}); err != nil {
			return err
		}
		for _, e := range page.Events {
			if err := run.event(ctx, e); err != nil {
				return err
			}
		}
		if more = page.Next != nil; more {
			eq.Before = *page.Next
		}
	}

	hq := HoldingQuery{RootID: snap.RootID, OrgID: snap.ID, Path: snap.Path, Self: self, Needle: needle, Limit: 1000, MaxBytes: erasePage}
	for more := true; more; more = hq.After != nil {
		var keys []*key.Key
		if err := run.read(ctx, func(v View) (err error) {
			keys, hq.After, err = v.KeysHolding(hq)
			return err
		}); err != nil {
			return err
		}
		for _, k := range keys {
			if err := run.key(ctx, k); err != nil {
				return err
			}
		}
	}
	hq.After = nil
	for more := true; more; more = hq.After != nil {
		var orgs []*org.Organization
		if err := run.read(ctx, func(v View) (err error) {
			orgs, hq.After, err = v.OrgsHolding(hq)
			return err
		}); err != nil {
			return err
		}
		for _, o := range orgs {
			if holdsOrg(run.subject, o) {
				run.done.Remaining.Organizations++
			}
		}
	}
	if self || snap.ParentID != "" {
		return nil
	}
	return run.read(ctx, func(v View) error {
		schema, err := v.Schema(snap.RootID)
		if err == nil && holdsJSON(run.subject, schema) {
			run.done.Remaining.CustomizationSchemas++
		} else if errors.Is(err, org.ErrAbsent) {
			err = nil
		}
		return err
	})
}

func (run *eraseRun) read(ctx context.Context, fn func(View) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return run.s.store.ReadHeavy(ctx, fn)
}

// found makes room for n more to erase.
func (run *eraseRun) found(ctx context.Context, n int) error {
	if run.done.DryRun || run.pending() == 0 || run.pending()+n <= eraseStep && run.bytes < eraseBytes {
		return nil
	}
	return run.step(ctx, nil)
}

func (run *eraseRun) pending() int { return run.slots + len(run.events) + len(run.keys) }

func (run *eraseRun) record(ctx context.Context, r *audit.Record) error {
	slots, stays, err := erasable(r, run.subject)
	if err != nil {
		return err
	}
	if stays {
		run.done.Remaining.AuditEntries++
	}
	if len(slots) == 0 {
		return nil
	}
	if run.done.DryRun {
		run.done.AuditEntries++
		run.done.Values += int64(len(slots))
		return nil
	}
	if err := run.found(ctx, len(slots)); err != nil {
		return err
	}
	run.records = append(run.records, r.ID)
	run.slots += len(slots)
	run.bytes += len(r.Values)
	return nil
}

func (run *eraseRun) event(ctx context.Context, e access.Event) error {
	blanked, changed, stays := blankEvent(e, run.subject)
	if stays {
		run.done.Remaining.AccessEvents++
	}
	if !changed {
		return nil
	}
	if run.done.DryRun {
		run.done.AccessEvents++
		return nil
	}
	if err := run.found(ctx, 1); err != nil {
		return err
	}
	run.events = append(run.events, blanked)
	return nil
}

func (run *eraseRun) key(ctx context.Context, k *key.Key) error {
	blanked, changed, stays := blankKey(k, run.subject)
	if stays {
		run.done.Remaining.APIKeys++
	}
	if !changed {
		return nil
	}
	if run.done.DryRun {
		run.done.APIKeys++
		return nil
	}
	if err := run.found(ctx, 1); err != nil {
		return err
	}
	run.keys = append(run.keys, blanked)
	return nil
}

// step erases what was found. Everything is looked at again under the lock of
// the root, since another erasure may have been faster.
func (run *eraseRun) step(ctx context.Context, idem *org.Idempotency) error {
	call := *run.call
	call.Idempotent = idem
	var after Erasure
	receipt, err := run.s.change(ctx, &call, func(c *change) (any, []audit.Draft, error) {
		after = run.done
		o, err := c.Target(run.orgID, key.AuditErase)
		if err != nil {
			return nil, nil, err
		}
		records, places, adjustments, err := run.recordsNow(c, o.RootID)
		if err != nil {
			return nil, nil, err
		}
		events, err := run.eventsNow(c)
		if err != nil {
			return nil, nil, err
		}
		keys, err := run.keysNow(c)
		if err != nil || len(places)+len(events)+len(keys) == 0 {
			return nil, nil, err
		}
		if err := errors.Join(c.PutAuditValues(o.RootID, records), c.BlankReasons(adjustments), c.PutAccessEvents(events), c.PutKeyUse(keys)); err != nil {
			return nil, nil, err
		}
		after.Values += int64(len(places))
		after.AuditEntries += int64(len(records))
		after.AccessEvents += int64(len(events))
		after.APIKeys += int64(len(keys))
		changes, err := audit.Erasure(run.basis, places)
		if err != nil {
			return nil, nil, err
		}
		if len(events) > 0 {
			changes = append(changes, audit.Change{Pointer: "/access_events", New: audit.Value(len(events))})
		}
		if len(keys) > 0 {
			changes = append(changes, audit.Change{Pointer: "/api_keys", New: audit.Value(len(keys))})
		}
		return &after, []audit.Draft{run.entry(c, o, changes)}, nil
	})
	if err != nil {
		return err
	}
	if receipt.Origin != "" {
		run.receipt = receipt
	}
	run.done = after
	run.records, run.events, run.keys, run.slots, run.bytes = nil, nil, nil, 0, 0
	return nil
}

// entry drafts the erasure entry. The subject may be the one who asks: what
// the entry would say of them again is left out.
func (run *eraseRun) entry(c *change, o *org.Organization, changes []audit.Change) audit.Draft {
	d := c.OrgEntry(o, audit.ActionErasure, changes)
	if run.subject.In(d.Actor.Name) {
		d.Actor.Name, d.IP, d.UserAgent = "", "", ""
	}
	for _, text := range []*string{&d.IP, &d.UserAgent, &d.RequestID} {
		if run.subject.In(*text) {
			*text = ""
		}
	}
	return d
}

// recordsNow erases what was found from records as they are now. The reason of
// an adjustment is kept beside its entry too: adjustments are those that lose it.
func (run *eraseRun) recordsNow(c *change, rootID string) (records []audit.Record, places []audit.Place, adjustments []usage.Adjustment, err error) {
	for _, id := range run.records {
		r, err := c.AuditEntry(rootID, id)
		if err != nil {
			return nil, nil, nil, err
		}
		slots, _, err := erasable(r, run.subject)
		if err != nil {
			return nil, nil, nil, err
		}
		if len(slots) == 0 {
			continue
		}
		if strings.HasPrefix(r.Action, "consumption.") && slices.ContainsFunc(slots, func(slot string) bool { return strings.HasPrefix(slot, "changes") }) {
			e, err := r.Entry()
			if err != nil {
				return nil, nil, nil, err
			}
			adjustments = append(adjustments, usage.Adjustment{RootID: rootID, OrgID: e.OrgID, ID: e.Target.ID})
		}
		if err := r.Erase(slots); err != nil {
			return nil, nil, nil, err
		}
		records = append(records, *r)
		for _, slot := range slots {
			places = append(places, audit.Place{Epoch: r.Epoch, Seq: r.Seq, Slot: slot})
		}
	}
	return records, places, adjustments, nil
}

func (run *eraseRun) eventsNow(c *change) (events []access.Event, err error) {
	for _, e := range run.events {
		e, err := c.AccessEvent(e.RootID, e.Timestamp, e.Seq)
		if errors.Is(err, org.ErrAbsent) {
			continue // its retention has ended
		} else if err != nil {
			return nil, err
		}
		if e, changed, _ := blankEvent(e, run.subject); changed {
			events = append(events, e)
		}
	}
	return events, nil
}

func (run *eraseRun) keysNow(c *change) (keys []*key.Key, err error) {
	for _, k := range run.keys {
		k, err := c.Key(k.ID)
		if errors.Is(err, org.ErrAbsent) {
			continue // it was purged
		} else if err != nil {
			return nil, err
		}
		if k, changed, _ := blankKey(k, run.subject); changed {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

// erasable returns the slots of a record that hold the subject and may be
// erased, and whether something else of it holds the subject and stays.
func erasable(r *audit.Record, subject audit.Subject) (slots []string, stays bool, err error) {
	held, err := r.Holding(subject.In)
	if err != nil {
		return nil, false, err
	}
	e, err := r.Entry()
	if err != nil {
		return nil, false, err
	}
	for _, slot := range held {
		if structural(e, slot) {
			stays = true
			continue
		}
		slots = append(slots, slot)
	}
	texts := append([]string{e.ID, e.OrgID, e.Action, e.Actor.ID, e.Target.ID, e.RequestID}, e.Path...)
	for _, c := range e.Changes {
		texts = append(texts, c.Pointer)
	}
	for _, text := range texts {
		stays = stays || subject.In(text)
	}
	return slots, stays, nil
}

// structural reports whether a slot holds a value without which no state could
// be rebuilt, and which says nothing of people: what places an organization in
// the tree, or a number or a kind. Of entries about anything but organizations,
// keys and schemas only what they say of the actor and the reasons of adjustments
// are erased.
func structural(e *audit.Entry, slot string) bool {
	rest, ok := strings.CutPrefix(slot, "changes/")
	number, _, _ := strings.Cut(rest, "/")
	i, err := strconv.Atoi(number)
	if !ok || err != nil || i >= len(e.Changes) {
		return false
	}
	p := e.Changes[i].Pointer
	switch noun, _, _ := strings.Cut(e.Action, "."); noun {
	case "organization":
		return org.IsStructural(p) || p == "/deletion_id" || strings.HasPrefix(p, "/deleted/") || strings.HasPrefix(p, "/restored/")
	case "api_key", "customization_schema":
		return false
	case "consumption":
		return p != "/reason"
	}
	return true
}

// blankEvent returns an event without what it says of the subject: whatever
// holds it, and if that is the user, the address and the user agent too.
func blankEvent(e access.Event, subject audit.Subject) (out access.Event, changed, stays bool) {
	out = e
	if subject.In(e.User) {
		out.User, out.IP, out.UserAgent = "", "", ""
	}
	for _, text := range []*string{&out.IP, &out.UserAgent, &out.Path, &out.RequestID} {
		if subject.In(*text) {
			*text = ""
		}
	}
	return out, out != e, subject.In(e.ID) || subject.In(e.Action) || subject.In(e.Method)
}

// blankKey returns a key without the addresses of its last use, where they
// hold the subject. A revoked key, which nobody can change any more, loses its
// name too.
func blankKey(k *key.Key, subject audit.Subject) (out *key.Key, changed, stays bool) {
	copied := *k
	out = &copied
	if subject.In(k.LastUsedIP) {
		out.LastUsedIP, changed = "", true
	}
	if k.Old != nil && subject.In(k.Old.LastUsedIP) {
		old := *k.Old
		old.LastUsedIP = ""
		out.Old, changed = &old, true
	}
	if k.RevokedAt != nil && subject.In(k.Name) {
		out.Name, changed = "", true
	}
	if k.RevokedAt == nil {
		stays = subject.In(k.Name)
		for _, cidr := range k.AllowedCIDRs {
			stays = stays || subject.In(cidr)
		}
	}
	return out, changed, stays
}

func holdsOrg(subject audit.Subject, o *org.Organization) bool {
	for _, text := range append(o.PersonalTexts(), o.ID) {
		if subject.In(text) {
			return true
		}
	}
	return holdsJSON(subject, o.Settings.Values)
}

// holdsJSON reports whether a string, a number or the name of a member holds
// the subject.
func holdsJSON(subject audit.Subject, v []byte) bool {
	d := jsontext.NewDecoder(bytes.NewReader(v))
	for {
		t, err := d.ReadToken()
		if err != nil {
			return false
		}
		if subject.In(t.String()) {
			return true
		}
	}
}
