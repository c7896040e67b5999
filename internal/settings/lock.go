package settings

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/problem"
)

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
