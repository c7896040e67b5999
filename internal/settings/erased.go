package settings

import "github.com/go-json-experiment/json/jsontext"

// ErasedText is the mark that stands for an erased value, as a text. A setting that
// is this text is taken for erased.
const ErasedText = "\x00erased"

// erasedValue is the mark as JSON.
const erasedValue = `"\u0000erased"`

// IsErased reports whether v is the mark of an erased value.
func IsErased(v jsontext.Value) bool { return string(v) == erasedValue }

// EqualButErased reports whether marked is v, apart from what is erased in marked. What
// is no JSON is equal to nothing.
func EqualButErased(marked, v jsontext.Value) bool {
	a, err1 := parseTree(marked)
	b, err2 := parseTree(v)
	return err1 == nil && err2 == nil && a.known(b)
}

// Erased returns the JSON Pointers of the values that are erased in v, each below
// pointer, in the order of the text.
func Erased(pointer string, v jsontext.Value) []string { return stored(v).erasedAt(pointer) }

// WithoutErased returns v without the members that are erased; an empty object if v
// is no object.
func WithoutErased(v jsontext.Value) jsontext.Value {
	t := stored(v)
	if !t.isObject() {
		t = newObject()
	}
	t.dropErased()
	return t.value()
}

func (t *tree) erased() bool { return t != nil && t.members == nil && IsErased(t.text) }

// known reports whether u is t apart from what has been erased in t.
func (t *tree) known(u *tree) bool {
	if t.erased() {
		return true
	}
	if !t.isObject() || !u.isObject() {
		return t.equal(u)
	}
	for name, m := range t.members {
		if v := u.get(name); v == nil && !m.erased() || v != nil && !m.known(v) {
			return false
		}
	}
	for name := range u.members {
		if t.get(name) == nil {
			return false
		}
	}
	return true
}

func (t *tree) erasedAt(pointer string) []string {
	if t.erased() {
		return []string{pointer}
	}
	var pointers []string
	if t.isObject() {
		for _, name := range t.names {
			pointers = append(pointers, t.members[name].erasedAt(pointer+"/"+escapePointer(name))...)
		}
	}
	return pointers
}

func (t *tree) dropErased() {
	if !t.isObject() {
		return
	}
	t.filter(func(_ string, m *tree) bool {
		m.dropErased()
		return !m.erased()
	})
}
