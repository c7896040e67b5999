package audit

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// Place names an erasable value in a log: "epoch/seq/slot", such as "0/17/ip".
type Place struct {
	Epoch, Seq int64
	Slot       string
}

// String returns "epoch/seq/slot".
func (p Place) String() string {
	return strconv.FormatInt(p.Epoch, 10) + "/" + strconv.FormatInt(p.Seq, 10) + "/" + p.Slot
}

// ParsePlace parses what String returns, and nothing else.
func ParsePlace(s string) (Place, error) {
	epoch, rest, _ := strings.Cut(s, "/")
	seq, name, _ := strings.Cut(rest, "/")
	var p Place
	var ok1, ok2, ok3 bool
	p.Epoch, ok1 = parseDecimal(epoch)
	p.Seq, ok2 = parseDecimal(seq)
	_, ok3 = parseSlot(name)
	p.Slot = name
	if !ok1 || !ok2 || !ok3 {
		return Place{}, fmt.Errorf("audit: %q is not the place of an erasable value", clip(s))
	}
	return p, nil
}

// Holding returns the slots of the record whose values hold what holds looks
// for (Subject.In): as a text, or anywhere in a JSON value. If the actor's name
// does, the address and the user agent are of the same person, and are among
// them. Values that must never be erased, those of evidence entries' changes,
// are left out.
func (r *Record) Holding(holds func(text string) bool) ([]string, error) {
	var slots, person []string
	byName := false
	err := r.walk(func(slot slot, v *opened, erasable bool) error {
		if v == nil || !erasable {
			return nil
		}
		d := jsontext.NewDecoder(bytes.NewReader(v.text))
		for {
			t, err := d.ReadToken()
			if err != nil {
				if slot.kind == slotIP || slot.kind == slotUserAgent {
					person = append(person, slot.String())
				}
				return nil
			}
			if holds(t.String()) {
				slots = append(slots, slot.String())
				byName = byName || slot.kind == slotActorName
				return nil
			}
		}
	})
	if byName {
		slots = append(slots, person...)
	}
	return slots, err
}

// Erase removes the values in the slots, with their salts, from r.Values. A
// slot that is absent, or whose value must not be erased, is an error, and
// nothing is removed. The entry that records it (Erasure) must become part of
// the log in the same transaction.
func (r *Record) Erase(slots []string) error {
	kept := []byte("{")
	erased := 0
	err := r.walk(func(slot slot, v *opened, erasable bool) error {
		name := slot.String()
		if v != nil && erasable && slices.Contains(slots, name) {
			erased++
			return nil
		}
		if v == nil {
			return nil
		}
		if len(kept) > 1 {
			kept = append(kept, ',')
		}
		kept = append(append(append(kept, '"'), name...), `":{"salt":"`...)
		kept = append(append(kept, v.salt...), `","value":`...)
		kept = append(append(kept, v.text...), '}')
		return nil
	})
	if err != nil {
		return err
	}
	if erased != len(slots) {
		return fmt.Errorf("audit: entry %s does not have all of these values to erase: %q", r.ID, slots)
	}
	r.Values = append(kept, '}')
	return nil
}

func (r *Record) walk(fn func(slot slot, v *opened, erasable bool) error) error {
	var l leaf
	if err := l.parse(r.Leaf); err != nil {
		return fmt.Errorf("audit: leaf %d of epoch %d: %w", r.Seq, r.Epoch, err)
	}
	evidence := isEvidence(l.action)
	return l.open(r.Values, func(slot slot, _ []byte, v *opened) error {
		return fn(slot, v, !evidence || !slot.ofChange())
	})
}

// ofChange reports whether the slot holds a changed value.
func (s slot) ofChange() bool { return s.kind == slotNew || s.kind == slotOld || s.kind == slotChanges }
