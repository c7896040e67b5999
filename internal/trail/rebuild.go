package trail

import (
	"slices"
	"strings"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/settings"
)

const (
	// historyPage is how many entries of an organization are read at a time,
	// and historyBytes about how many bytes of them.
	historyPage  = 500
	historyBytes = 512 << 10
	// smallValues is how long the values of an entry may be to be read along
	// with it. Longer ones are read if they turn out to be needed.
	smallValues = 2 << 10
	// historyScan is what a page counts in which others than the wanted entries
	// were passed over.
	historyScan = 5000
)

// history is the query for the entries about an organization itself, those that
// the past has, newest first.
func (p *past) history(id string) org.AuditQuery {
	return org.AuditQuery{RootID: p.rootID, OrgID: id, Scope: org.ScopeSelf, Noun: "organization", Before: p.before,
		Limit: historyPage, MaxBytes: historyBytes, SmallValues: smallValues}
}

// prefetch reads the newest entries of organizations that are about to be
// rebuilt, as far as they fit into one short read.
func (p *past) prefetch(ids []string) error {
	return p.run(func(v View) error {
		size := 0
		for _, id := range ids {
			if _, ok := p.states[id]; ok || size >= historyBytes {
				continue
			}
			q := p.history(id)
			q.Limit, q.MaxBytes = 20, historyBytes-size
			page, err := v.AuditEntries(q)
			if err != nil {
				return err
			}
			for i := range page.Records {
				size += len(page.Records[i].Leaf) + len(page.Records[i].Values)
			}
			p.pages[id] = page
		}
		return nil
	})
}

// rebuild makes an organization of its own entries, newest first: what a later
// entry has set makes of no interest what earlier ones had in its place, which
// is not even read. It returns nil if the organization did not exist. Its path
// and depth are not set.
//
// Each page is one read of the store, and what is read is decoded after it.
// Entries only come, and none that is in the past. A value that is erased while
// this goes on is either read or erased.
func (p *past) rebuild(id string) (*org.Organization, error) {
	b := &rebuilding{o: org.Organization{ID: id, RootID: p.rootID}, known: map[string]bool{}}
	for q := p.history(id); q.Before > 0; {
		page, ok := p.pages[id]
		if delete(p.pages, id); !ok {
			err := p.run(func(v View) (err error) {
				page, err = v.AuditEntries(q)
				return err
			})
			if err != nil {
				return nil, err
			}
		}
		if p.entries += len(page.Records) + 1; len(page.Records) == 0 && page.Next >= 0 {
			p.entries += historyScan
		}
		for records := page.Records; len(records) > 0; {
			var batch []wanted
			for len(records) > 0 && !b.created {
				r := &records[0]
				if err := p.count(len(r.Leaf)); err != nil {
					return nil, err
				}
				w, purged, err := b.look(r)
				if err != nil || purged {
					return nil, err
				}
				records = records[1:]
				if w.record == nil {
					continue
				}
				// What a folded entry changes is known when it is opened.
				if batch = append(batch, w); w.changes == nil {
					break
				}
			}
			if err := p.open(batch); err != nil {
				return nil, err
			}
			for i := range batch {
				if err := b.take(&batch[i]); err != nil {
					return nil, err
				}
			}
			if b.created {
				return b.done()
			}
		}
		q.Before = page.Next
	}
	// There was nothing, or the log was closed meanwhile.
	return nil, nil
}

// count counts bytes that were read against what one request may read.
func (p *past) count(n int) error {
	if p.bytes += n; p.entries > maxHistory || p.bytes > maxHistoryBytes {
		return longHistory()
	}
	return nil
}

// open reads the values of entries that have not been read with them.
func (p *past) open(batch []wanted) error {
	var missing []int
	for i := range batch {
		if batch[i].record.Values == nil {
			missing = append(missing, i)
		} else if err := p.count(len(batch[i].record.Values)); err != nil {
			return err
		}
	}
	for len(missing) > 0 {
		positions := make([]int64, len(missing))
		for i, at := range missing {
			positions[i] = org.AuditPosition(batch[at].record.Epoch, batch[at].record.Seq)
		}
		var values [][]byte
		err := p.run(func(v View) (err error) {
			values, err = v.AuditValues(p.rootID, positions, historyBytes)
			return err
		})
		if err != nil {
			return err
		}
		for i, v := range values {
			if err := p.count(len(v)); err != nil {
				return err
			}
			w := &batch[missing[i]]
			w.record.Values = v
			if err := w.decode(); err != nil {
				return err
			}
		}
		missing = missing[len(values):]
	}
	for i := range batch {
		if err := batch[i].decode(); err != nil {
			return err
		}
	}
	return nil
}

// wanted is an entry of which some changes count.
type wanted struct {
	record  *audit.Record
	changes []int // their indexes; nil for whatever it turns out to have
	entry   *audit.Entry
}

// decode makes the entry of the record, and keeps of it what counts.
func (w *wanted) decode() error {
	if w.entry != nil {
		return nil
	}
	e, err := w.record.Entry()
	if err != nil {
		return err
	}
	w.record.Values = nil
	w.entry, w.record = org.Marked(e), nil
	for i := range w.entry.Changes {
		c := &w.entry.Changes[i]
		if c.Old = nil; w.changes != nil && !slices.Contains(w.changes, i) {
			c.New = nil
		}
	}
	return nil
}

// rebuilding is an organization on the way from its last entry to its first.
type rebuilding struct {
	o       org.Organization
	created bool              // its first entry has been seen
	placed  bool              // and so on: its newest entry
	updated bool              // the last change of it
	tuned   bool              // the last change of its settings
	lived   bool              // the last delete or restore
	unsaid  bool              // what is structural may have been erased with all changes of an entry
	known   map[string]bool   // pointers that have their last value
	patches []settings.Change // of the settings, newest first
}

// look says what of an entry counts. purged ends the search: what was before
// was another organization.
func (b *rebuilding) look(r *audit.Record) (w wanted, purged bool, err error) {
	e, folded, err := r.Outline()
	if err != nil {
		return w, false, err
	}
	if !b.placed {
		b.placed = true
		if n := len(e.Path); n > 1 {
			b.o.ParentID = e.Path[n-2]
		}
	}
	verb := strings.TrimPrefix(e.Action, "organization.")
	switch verb {
	case "purged":
		return w, true, nil
	case "deleted", "restored":
		if !b.lived && verb == "deleted" {
			b.o.DeletedAt = &e.Timestamp
		}
		b.lived = true
		return w, false, nil
	case "created":
		b.created, b.o.CreatedAt = true, e.Timestamp
		b.tune(e.Timestamp)
	}
	if !b.updated {
		b.updated, b.o.UpdatedAt = true, e.Timestamp
	}
	if folded {
		return wanted{record: r}, false, nil
	}
	changes := []int{}
	for i := range e.Changes {
		pointer := e.Changes[i].Pointer
		if org.IsSetting(pointer) {
			b.tune(e.Timestamp)
		}
		if !b.overridden(pointer) {
			changes = append(changes, i)
		}
	}
	// Only now, since the changes of an entry do not stand in for each other.
	for _, i := range changes {
		b.known[e.Changes[i].Pointer] = true
	}
	if len(changes) == 0 {
		return w, false, nil
	}
	return wanted{record: r, changes: changes}, false, nil
}

func (b *rebuilding) tune(at time.Time) {
	if !b.tuned {
		b.tuned, b.o.Settings.UpdatedAt = true, at
	}
}

// overridden reports whether a later entry has set what is at a pointer, or all
// that it is a part of.
func (b *rebuilding) overridden(pointer string) bool {
	if pointer == "/parent_id" || b.known[pointer] {
		return true
	}
	for i := len(pointer) - 1; i > 0; i-- {
		if pointer[i] == '/' && b.known[pointer[:i]] {
			return true
		}
	}
	return false
}

// take applies what counts of an entry.
func (b *rebuilding) take(w *wanted) error {
	e := w.entry
	if e.AllErased() {
		b.takeErased(e)
		return nil
	}
	scalars := audit.Entry{}
	for i, c := range e.Changes {
		if w.changes != nil && !slices.Contains(w.changes, i) {
			continue
		}
		if w.changes == nil {
			if org.IsSetting(c.Pointer) {
				b.tune(e.Timestamp)
			}
			if b.overridden(c.Pointer) {
				continue
			}
		}
		if rest, ok := strings.CutPrefix(c.Pointer, "/customizations"); ok {
			b.patches = append(b.patches, settings.Change{Pointer: rest, New: c.New})
		} else {
			scalars.Changes = append(scalars.Changes, c)
		}
	}
	if w.changes == nil {
		for i := range e.Changes {
			b.known[e.Changes[i].Pointer] = true
		}
	}
	return b.o.Fold(&scalars)
}

// takeErased takes an entry all of whose changes have been erased: it may have set every
// member that no later entry has.
func (b *rebuilding) takeErased(e *audit.Entry) {
	b.tune(e.Timestamp)
	b.unsaid = true
	var erased org.Organization
	erased.Erase()
	unknown := func(pointer string) bool {
		was := b.known[pointer]
		b.known[pointer] = true
		return !was
	}
	for i := range org.Texts {
		if m := &org.Texts[i]; !m.Structural && unknown(m.Pointer()) {
			*m.Of(&b.o) = *m.Of(&erased)
		}
	}
	for i := range org.Lists {
		if m := &org.Lists[i]; unknown(m.Pointer()) {
			*m.Of(&b.o) = *m.Of(&erased)
		}
	}
	if unknown("/customizations") {
		b.patches = append(b.patches, settings.Change{New: erased.Settings.Values})
	}
}

// done returns the organization.
func (b *rebuilding) done() (*org.Organization, error) {
	slices.Reverse(b.patches)
	values, err := settings.Replay(b.patches)
	if err != nil {
		return nil, err
	}
	b.o.Settings.Values = values
	for i := range org.Texts {
		if m := &org.Texts[i]; m.Structural && b.unsaid && *m.Of(&b.o) == "" {
			*m.Of(&b.o) = org.ErasedText
		}
	}
	return &b.o, nil
}
