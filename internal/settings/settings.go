// Package settings is what the settings of organizations mean: what is in effect
// where several of a path set and lock something, what a change may set below the
// locks of others, how two states differ, and whether what is in effect satisfies
// the JSON Schema of the root. In the API settings are called customizations.
//
// Everything here is a function of its arguments: nothing is read or written, and
// everything is safe for concurrent use. Only compiled schemas are remembered, and
// checks that take long wait for each other.
//
// Values are JSON as CheckValues returns it. Functions that rely on that panic on
// what is no JSON; MergePatch, Apply, Replay and EqualButErased do not.
package settings

import "github.com/go-json-experiment/json/jsontext"

// Layer is what one organization of a path contributes to the settings in
// effect: values that have passed CheckValues and the JSON Pointers that it
// locks for everything below it.
type Layer struct {
	OrgID  string
	Values jsontext.Value
	Locked []string
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

// MaxSources bounds what the sources of settings take in an answer, in bytes: a
// member far below long names has a long pointer.
const MaxSources = 4 << 20

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
