package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
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

// readValue is parseTree. A compact value has the form that CheckValues gives
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

// stored parses settings that have passed CheckValues; nil is an empty
// object.
func stored(v jsontext.Value) *tree {
	if v == nil {
		return newObject()
	}
	t, err := readValue(v, true)
	if err != nil {
		panic("settings: malformed values: " + err.Error())
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
		panic("settings: malformed value: " + err.Error())
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
