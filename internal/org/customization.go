package org

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/problem"
)

// Limits of customizations.
const (
	MaxSettingsSize  = 64 << 10 // bytes of compact JSON
	MaxSettingsDepth = 32       // nested objects and arrays, the outermost included
	MaxLocks         = 100
	maxPointerLen    = 1024 // bytes of a locked JSON Pointer
)

// tree is a JSON value whose objects can be changed. Everything that is not
// an object is kept as the text it was written as, so that numbers never lose
// digits.
type tree struct {
	text    jsontext.Value   // of anything but an object
	members map[string]*tree // of an object; nil for anything else
	names   []string         // the members' names, in the order of the text
	from    string           // the organization that set it, in effective settings
}

func newObject() *tree { return &tree{members: map[string]*tree{}} }

// parseTree parses one JSON value. It allows what RFC 7493 allows: valid
// UTF-8 and no member twice.
func parseTree(v jsontext.Value) (*tree, error) {
	return readValue(v, false)
}

// readValue is parseTree. A compact value has the form that CheckSettings gives
// it: its parts are then used as they are, and share its memory.
func readValue(v jsontext.Value, compact bool) (*tree, error) {
	dec := jsontext.NewDecoder(bytes.NewBuffer(v))
	var src jsontext.Value
	if compact {
		src = v
	}
	t, err := readTree(dec, src)
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if _, err := dec.ReadToken(); err == nil {
		return nil, errors.New("there is data after the JSON value")
	} else if err != io.EOF {
		return nil, err
	}
	return t, nil
}

func readTree(dec *jsontext.Decoder, src jsontext.Value) (*tree, error) {
	if dec.PeekKind() != '{' {
		v, err := dec.ReadValue()
		if err != nil {
			return nil, err
		}
		if src != nil {
			end := dec.InputOffset()
			return &tree{text: src[end-int64(len(v)) : end : end]}, nil
		}
		v = v.Clone()
		return &tree{text: v}, v.Format()
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	t := newObject()
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return nil, err
		}
		n := name.String()
		m, err := readTree(dec, src)
		if err != nil {
			return nil, err
		}
		t.put(n, m)
	}
	_, err := dec.ReadToken()
	return t, err
}

// stored parses settings that have passed CheckSettings; nil is an empty
// object.
func stored(v jsontext.Value) *tree {
	if v == nil {
		return newObject()
	}
	t, err := readValue(v, true)
	if err != nil {
		panic("org: malformed settings: " + err.Error())
	}
	return t
}

func (t *tree) isObject() bool { return t != nil && t.members != nil }

// get returns a member, nil if there is none.
func (t *tree) get(name string) *tree {
	if t == nil {
		return nil
	}
	return t.members[name]
}

func (t *tree) put(name string, m *tree) {
	if _, ok := t.members[name]; !ok {
		t.names = append(t.names, name)
	}
	t.members[name] = m
}

// filter keeps the members for which keep returns true.
func (t *tree) filter(keep func(name string, m *tree) bool) {
	t.names = slices.DeleteFunc(t.names, func(name string) bool {
		if keep(name, t.members[name]) {
			return false
		}
		delete(t.members, name)
		return true
	})
}

func (t *tree) append(dst []byte) []byte {
	if !t.isObject() {
		return append(dst, t.text...)
	}
	dst = append(dst, '{')
	for i, name := range t.names {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst, _ = jsontext.AppendQuote(dst, name) // fails only on invalid UTF-8, which cannot be parsed either
		dst = append(dst, ':')
		dst = t.members[name].append(dst)
	}
	return append(dst, '}')
}

// value returns compact JSON; nil if t is nil.
func (t *tree) value() jsontext.Value {
	if t == nil {
		return nil
	}
	return t.append(nil)
}

// equal reports whether two values are the same JSON: members in any order,
// numbers written with the same digits. nil is equal only to nil.
func (t *tree) equal(u *tree) bool {
	if t == nil || u == nil {
		return t == u
	}
	if t.isObject() != u.isObject() || len(t.members) != len(u.members) {
		return false
	}
	if !t.isObject() {
		return bytes.Equal(t.text, u.text) || t.text.Kind() == '[' && bytes.Equal(reordered(t.text), reordered(u.text))
	}
	for name, m := range t.members {
		if !m.equal(u.members[name]) {
			return false
		}
	}
	return true
}

// reordered returns v with the members of all objects in canonical order.
func reordered(v jsontext.Value) jsontext.Value {
	v = v.Clone()
	if err := v.Format(jsontext.ReorderRawObjects(true)); err != nil {
		panic("org: malformed value: " + err.Error())
	}
	return v
}

// escapePointer returns name as a reference token of a JSON Pointer.
func escapePointer(name string) string {
	return strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
}

// MergePatch applies a JSON Merge Patch (RFC 7396) and returns compact JSON.
// Members keep their place, new ones follow, and numbers keep their text. A
// nil target stands for no value.
func MergePatch(target, patch jsontext.Value) (jsontext.Value, error) {
	var t *tree
	if target != nil {
		var err error
		if t, err = parseTree(target); err != nil {
			return nil, fmt.Errorf("target: %w", err)
		}
	}
	p, err := parseTree(patch)
	if err != nil {
		return nil, fmt.Errorf("patch: %w", err)
	}
	return mergePatch(t, p).value(), nil
}

func mergePatch(target, patch *tree) *tree {
	if !patch.isObject() {
		return patch
	}
	if !target.isObject() {
		target = newObject()
	}
	var removed bool
	for _, name := range patch.names {
		m := patch.members[name]
		if m.text.Kind() == 'n' {
			removed = removed || target.get(name) != nil
			continue
		}
		target.put(name, mergePatch(target.get(name), m))
	}
	if removed {
		target.filter(func(name string, _ *tree) bool {
			m := patch.get(name)
			return m == nil || m.text.Kind() != 'n'
		})
	}
	return target
}

// CheckSettings returns v as compact JSON in which every string has its
// shortest form. It must be a JSON object (RFC 7493) within the limits of
// customizations, with numbers that a double can hold.
func CheckSettings(pointer string, v jsontext.Value) (jsontext.Value, *problem.Error) {
	v = v.Clone()
	if err := v.Format(); err != nil {
		var syntax *jsontext.SyntacticError
		if errors.As(err, &syntax) {
			return nil, problem.Body(pointer+string(syntax.JSONPointer), "is not valid JSON: %v", cmp.Or(syntax.Err, err))
		}
		return nil, problem.Body(pointer, "is not valid JSON: %v", err)
	}
	if v.Kind() != '{' {
		return nil, problem.Body(pointer, "must be a JSON object")
	}
	if len(v) > MaxSettingsSize {
		return nil, problem.Body(pointer, "must be at most %d bytes of JSON without space; it has %d", MaxSettingsSize, len(v))
	}
	if at, err := checkTokens(v, MaxSettingsDepth); err != nil {
		return nil, problem.Body(pointer+at, "%v", err)
	}
	return v, nil
}

// checkTokens checks what a valid JSON text may not contain here, and returns
// the JSON Pointer of what is wrong.
func checkTokens(v jsontext.Value, maxDepth int) (at string, err error) {
	dec := jsontext.NewDecoder(bytes.NewReader(v))
	for {
		tok, err := dec.ReadToken()
		if err == io.EOF {
			return "", nil
		} else if err != nil {
			return "", err
		}
		if dec.StackDepth() > maxDepth {
			return string(dec.StackPointer()), fmt.Errorf("is nested too deeply: at most %d levels are allowed", maxDepth)
		}
		switch tok.Kind() {
		case '0':
			if err := checkNumber(tok.String()); err != nil {
				return string(dec.StackPointer()), err
			}
		case '"':
			if kind, n := dec.StackIndex(dec.StackDepth()); kind == '{' && n%2 == 1 && strings.ContainsFunc(tok.String(), unicode.IsControl) {
				return string(dec.StackPointer().Parent()), errors.New("has a member whose name contains control characters")
			}
		}
	}
}

// checkNumber refuses what no double can hold. Arithmetic on an exponent of a
// billion would also take memory without bound.
func checkNumber(s string) error {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return errors.New("is too large a number")
	}
	if mantissa, _, _ := strings.Cut(strings.ToLower(s), "e"); f == 0 && strings.ContainsAny(mantissa, "123456789") {
		return errors.New("is too small a number")
	}
	return nil
}

// CheckLocks returns JSON Pointers (RFC 6901) sorted and without repeats. The
// pointer to the whole document cannot be locked.
func CheckLocks(pointer string, locks []string) ([]string, *problem.Error) {
	for i, lock := range locks {
		at := pointer + "/" + strconv.Itoa(i)
		switch {
		case lock == "":
			return nil, problem.Body(at, "must not be the empty JSON Pointer: name a setting")
		case len(lock) > maxPointerLen:
			return nil, problem.Body(at, "must be at most %d bytes; it has %d", maxPointerLen, len(lock))
		case !utf8.ValidString(lock) || strings.ContainsFunc(lock, unicode.IsControl):
			return nil, problem.Body(at, "must be valid UTF-8 without control characters")
		case !jsontext.Pointer(lock).IsValid():
			return nil, problem.Body(at, "must be a JSON Pointer (RFC 6901), such as /branding/logo_url")
		}
	}
	sorted := slices.Clone(locks)
	slices.Sort(sorted)
	sorted = slices.Compact(sorted)
	if len(sorted) > MaxLocks {
		return nil, problem.Body(pointer, "must be at most %d JSON Pointers; there are %d", MaxLocks, len(sorted))
	}
	return sorted, nil
}

// Layer is what one organization of a path contributes to the settings in
// effect: values that have passed CheckSettings and the JSON Pointers that it
// locks for everything below it.
type Layer struct {
	OrgID  string
	Values jsontext.Value
	Locked []string
}

// locks is a set of locked JSON Pointers as a tree of their reference tokens.
type locks struct {
	below map[string]*locks
	owner string // the organization that locked this pointer; empty if it is not locked
}

// add locks the pointers of a layer. A pointer that is locked already keeps
// its owner.
func (l *locks) add(layer Layer) {
	for _, pointer := range layer.Locked {
		at := l
		for token := range jsontext.Pointer(pointer).Tokens() {
			next := at.below[token]
			if next == nil {
				next = &locks{}
				if at.below == nil {
					at.below = map[string]*locks{}
				}
				at.below[token] = next
			}
			at = next
		}
		at.owner = cmp.Or(at.owner, layer.OrgID)
	}
}

// first returns the pointer and the owner of the first lock at or below l.
func (l *locks) first(pointer string) (string, string) {
	for l.owner == "" {
		names := make([]string, 0, len(l.below))
		for name := range l.below {
			names = append(names, name)
		}
		name := slices.Min(names)
		pointer += "/" + escapePointer(name)
		l = l.below[name]
	}
	return pointer, l.owner
}

// prune removes from t what locks keep it from setting: values at or under a
// locked pointer, and whatever is not an object above one, since it would
// replace the locked value as well. Objects that this empties go too.
func (l *locks) prune(t *tree) {
	if len(l.below) == 0 {
		return
	}
	t.filter(func(name string, m *tree) bool {
		lock := l.below[name]
		if lock == nil {
			return true
		}
		if lock.owner != "" || !m.isObject() {
			return false
		}
		if len(m.members) == 0 {
			return true
		}
		lock.prune(m)
		return len(m.members) > 0
	})
}

// Effective returns the settings in effect for the organization of the last
// layer; the layers are a path, root first. Objects merge member by member,
// anything else (null too) replaces what comes from above, except that a
// pointer locked by a layer keeps the value, or the absence, that it has there
// whatever the layers below say.
func Effective(layers []Layer) jsontext.Value { return effective(layers).value() }

// Explain is Effective that also says where each value comes from: sources
// maps the JSON Pointer of everything in the result that is not an object with
// members to the organization that set it. It gives up, and whole is false, if
// pointers and organizations take more than max bytes.
func Explain(layers []Layer, max int) (result jsontext.Value, sources map[string]string, whole bool) {
	t := effective(layers)
	s := sourceMap{sources: map[string]string{}, left: max}
	if !s.add(t) {
		return nil, nil, false
	}
	return t.value(), s.sources, true
}

func effective(layers []Layer) *tree {
	result, locked := newObject(), &locks{}
	for _, layer := range layers {
		own := stored(layer.Values)
		locked.prune(own)
		result = overlay(result, own, layer.OrgID)
		locked.add(layer)
	}
	return result
}

// overlay merges own, which orgID set, over inherited and returns the result;
// both are used up.
func overlay(inherited, own *tree, orgID string) *tree {
	own.from = orgID
	if !own.isObject() {
		return own
	}
	if !inherited.isObject() {
		inherited = newObject()
	}
	inherited.from = orgID
	for _, name := range own.names {
		inherited.put(name, overlay(inherited.get(name), own.members[name], orgID))
	}
	return inherited
}

// sourceMap collects where values come from.
type sourceMap struct {
	sources map[string]string
	pointer []byte // of the object that is being looked at
	left    int    // bytes
}

// add adds the members of t, and reports whether there was room for all.
func (s *sourceMap) add(t *tree) bool {
	end := len(s.pointer)
	for _, name := range t.names {
		s.pointer = append(append(s.pointer[:end], '/'), escapePointer(name)...)
		m := t.members[name]
		if len(m.members) > 0 {
			if !s.add(m) {
				return false
			}
			continue
		}
		if s.left -= len(s.pointer) + len(m.from) + 6; s.left < 0 {
			return false
		}
		s.sources[string(s.pointer)] = m.from
	}
	s.pointer = s.pointer[:end]
	return true
}

// maxFields bounds the fields of an error.
const maxFields = 100

// CheckLocked checks that a change of own settings from before to after sets
// nothing that the ancestors (root first) locked: no new or other value at or
// under a locked pointer, and none that is not an object above one. What is
// there already may stay, and anything may be removed. The error is
// SettingLocked and names the lock and its owner.
func CheckLocked(ancestors []Layer, before, after jsontext.Value) *problem.Error {
	locked := &locks{}
	for _, layer := range ancestors {
		locked.add(layer)
	}
	if len(locked.below) == 0 {
		return nil
	}
	var err *problem.Error
	refuse := func(pointer, lock, owner string) {
		if err == nil {
			err = problem.New(problem.SettingLocked, "The setting %s is locked by the organization %s.", lock, owner).
				WithFix("Leave it out, or have the organization %s unlock %s.", owner, lock).
				With("locked_by", owner).With("lock", lock)
		}
		if len(err.Fields) < maxFields {
			err.Fields = append(err.Fields, problem.Field{Pointer: "/customizations" + pointer,
				Detail: fmt.Sprintf("%s is locked by the organization %s", lock, owner)})
		}
	}
	locked.check("", stored(before), stored(after), refuse)
	return err
}

func (l *locks) check(pointer string, before, after *tree, refuse func(pointer, lock, owner string)) {
	for _, name := range after.names {
		lock := l.below[name]
		if lock == nil {
			continue
		}
		at, old, m := pointer+"/"+escapePointer(name), before.get(name), after.members[name]
		if lock.owner == "" && m.isObject() {
			lock.check(at, old, m, refuse)
		} else if differs, ok := firstSet(nil, old, m); ok {
			path, owner := lock.first(at)
			refuse(differs.pointer(at), path, owner)
		}
	}
}

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

// Diff returns the smallest list of changes that makes new out of old, sorted
// by pointer: objects are compared member by member, anything else is replaced
// whole. Pointers start with prefix. A nil value is an absent one. The order
// of members is no difference.
func Diff(prefix string, old, new jsontext.Value) []audit.Change {
	changes, _ := diffWithin(math.MaxInt, prefix, old, new)
	return changes
}

// diffWithin is Diff, if the changes take at most max bytes, values apart, in an
// audit entry; it is false if they take more.
func diffWithin(max int, prefix string, old, new jsontext.Value) ([]audit.Change, bool) {
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
	slices.SortFunc(d.changes, func(a, b audit.Change) int { return strings.Compare(a.Pointer, b.Pointer) })
	return d.changes, true
}

type differ struct {
	prefix  string
	left    int // bytes
	changes []audit.Change
}

// diff adds the changes from old to new, and reports whether they fit.
func (d *differ) diff(at *spot, old, new *tree) bool {
	if !old.isObject() || !new.isObject() {
		if old.equal(new) {
			return true
		}
		c := audit.Change{Pointer: at.pointer(d.prefix)}
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
func Apply(changes []audit.Change, v jsontext.Value) (jsontext.Value, error) {
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
