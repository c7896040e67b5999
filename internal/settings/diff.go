package settings

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// spot is where in a value a member is. Its JSON Pointer is put together only
// where somebody reads it: below a long name every pointer is long.
type spot struct {
	up   *spot
	name string
}

// pointer returns the JSON Pointer of p below prefix. A nil spot is the prefix
// itself.
func (p *spot) pointer(prefix string) string {
	var names []string
	for ; p != nil; p = p.up {
		names = append(names, p.name)
	}
	var b strings.Builder
	b.WriteString(prefix)
	for _, name := range slices.Backward(names) {
		b.WriteByte('/')
		b.WriteString(escapePointer(name))
	}
	return b.String()
}

// firstSet returns where the first value in after is that is not in before.
func firstSet(at *spot, before, after *tree) (*spot, bool) {
	if !before.isObject() || !after.isObject() {
		return at, !before.equal(after)
	}
	for _, name := range after.names {
		if at, ok := firstSet(&spot{at, name}, before.get(name), after.members[name]); ok {
			return at, true
		}
	}
	return nil, false
}

// Change is one difference between two states of settings. An absent value is
// nil.
type Change struct {
	Pointer  string // a JSON Pointer
	Old, New jsontext.Value
}

// Diff returns the smallest list of changes that makes new out of old, sorted
// by pointer: objects are compared member by member, anything else is replaced
// whole. Pointers start with prefix. A nil value is an absent one. The order
// of members is no difference.
func Diff(prefix string, old, new jsontext.Value) []Change {
	changes, _ := DiffWithin(math.MaxInt, prefix, old, new)
	return changes
}

// DiffWithin is Diff, if the changes take at most max bytes, values apart, in an
// audit entry; it is false if they take more.
func DiffWithin(max int, prefix string, old, new jsontext.Value) ([]Change, bool) {
	var o, n *tree
	if old != nil {
		o = stored(old)
	}
	if new != nil {
		n = stored(new)
	}
	d := &differ{prefix: prefix, left: max}
	if !d.diff(nil, o, n) {
		return nil, false
	}
	slices.SortFunc(d.changes, func(a, b Change) int { return strings.Compare(a.Pointer, b.Pointer) })
	return d.changes, true
}

type differ struct {
	prefix  string
	left    int // bytes
	changes []Change
}

// diff adds the changes from old to new, and reports whether they fit.
func (d *differ) diff(at *spot, old, new *tree) bool {
	if !old.isObject() || !new.isObject() {
		if old.equal(new) {
			return true
		}
		c := Change{Pointer: at.pointer(d.prefix)}
		if d.left -= 150 + 2*len(c.Pointer); d.left < 0 {
			return false
		}
		c.Old, c.New = old.value(), new.value()
		d.changes = append(d.changes, c)
		return true
	}
	for _, name := range old.names {
		if !d.diff(&spot{at, name}, old.members[name], new.get(name)) {
			return false
		}
	}
	for _, name := range new.names {
		if old.get(name) == nil && !d.diff(&spot{at, name}, nil, new.members[name]) {
			return false
		}
	}
	return true
}

// Apply applies changes, whose pointers are relative to v, in their order and
// returns the result; Apply(Diff("", a, b), a) is b but for the order of
// members. Objects on the way to a new value are made when they are absent. A
// change whose Old is not what is there is an error, unless one of the two is
// the mark of an erased value; what changes inside of an erased value leaves it
// erased.
func Apply(changes []Change, v jsontext.Value) (jsontext.Value, error) {
	var t *tree
	if v != nil {
		var err error
		if t, err = parseTree(v); err != nil {
			return nil, err
		}
	}
	for _, c := range changes {
		var old, new *tree
		var err error
		if c.Old != nil {
			if old, err = parseTree(c.Old); err != nil {
				return nil, fmt.Errorf("old value at %q: %w", c.Pointer, err)
			}
		}
		if c.New != nil {
			if new, err = parseTree(c.New); err != nil {
				return nil, fmt.Errorf("new value at %q: %w", c.Pointer, err)
			}
		}
		if !jsontext.Pointer(c.Pointer).IsValid() {
			return nil, fmt.Errorf("%q is not a JSON Pointer", c.Pointer)
		}
		if t, err = apply(t, slices.Collect(jsontext.Pointer(c.Pointer).Tokens()), old, new); err != nil {
			return nil, fmt.Errorf("change at %q: %w", c.Pointer, err)
		}
	}
	return t.value(), nil
}

func apply(t *tree, tokens []string, old, new *tree) (*tree, error) {
	if len(tokens) == 0 {
		if !t.equal(old) && !t.erased() && !old.erased() {
			return nil, errors.New("the old value is another one")
		}
		return new, nil
	}
	if t.erased() {
		return t, nil
	}
	if t == nil && old == nil && new != nil {
		t = newObject()
	}
	if !t.isObject() {
		return nil, errors.New("it is not inside an object")
	}
	name := tokens[0]
	m, err := apply(t.get(name), tokens[1:], old, new)
	if err != nil {
		return nil, err
	}
	if m == nil {
		t.filter(func(n string, _ *tree) bool { return n != name })
	} else {
		t.put(name, m)
	}
	return t, nil
}

// Replay returns what changes, in their order and with pointers relative to the
// whole, make of no settings when only their new values count: each is put into its
// place, or removes what is there if it is nil. Objects on the way are made, also
// in the place of other values, but an erased value stays whatever changes inside
// of it. It is nil if the last change of the whole removes it.
func Replay(changes []Change) (jsontext.Value, error) {
	t := newObject()
	for _, c := range changes {
		var v *tree
		if c.New != nil {
			var err error
			if v, err = parseTree(c.New); err != nil {
				return nil, fmt.Errorf("change at %q: %w", c.Pointer, err)
			}
		}
		t = replaceAt(t, slices.Collect(jsontext.Pointer(c.Pointer).Tokens()), v)
	}
	return t.value(), nil
}

// replaceAt puts a value into its place, or removes what is there; nothing
// inside of an erased value.
func replaceAt(t *tree, tokens []string, v *tree) *tree {
	switch {
	case len(tokens) == 0:
		return v
	case t.erased():
		return t
	case !t.isObject():
		if v == nil {
			return t
		}
		t = newObject()
	}
	name := tokens[0]
	if m := replaceAt(t.get(name), tokens[1:], v); m != nil {
		t.put(name, m)
	} else if t.get(name) != nil {
		t.filter(func(n string, _ *tree) bool { return n != name })
	}
	return t
}
