package audit

import (
	"fmt"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Value returns v, which can be written as JSON, as a value of a change.
func Value(v any) jsontext.Value {
	b, err := json.Marshal(v)
	if err != nil {
		panic("audit: value that is not JSON: " + err.Error())
	}
	return b
}

// Added appends the change that gives pointer a first value; nothing for an empty
// one.
func Added(changes []Change, pointer string, v any, empty bool) []Change {
	if empty {
		return changes
	}
	return append(changes, Change{Pointer: pointer, New: Value(v)})
}

// Replaced appends the change from old to new, nothing if they are equal. Empty
// values count as absent.
func Replaced(changes []Change, pointer, old, new string) []Change {
	if old == new {
		return changes
	}
	c := Change{Pointer: pointer}
	if old != "" {
		c.Old = Value(old)
	}
	if new != "" {
		c.New = Value(new)
	}
	return append(changes, c)
}

// ReplacedList is Replaced for a list.
func ReplacedList(changes []Change, pointer string, old, new []string) []Change {
	if slices.Equal(old, new) {
		return changes
	}
	c := Change{Pointer: pointer}
	if len(old) > 0 {
		c.Old = Value(old)
	}
	if len(new) > 0 {
		c.New = Value(new)
	}
	return append(changes, c)
}

// SetMembers sets the members that changes name, to their zero value where
// there is nothing new.
func SetMembers(changes []Change, members map[string]any) error {
	for _, c := range changes {
		p, ok := members[c.Pointer]
		if !ok {
			return fmt.Errorf("unknown pointer %s", c.Pointer)
		}
		v := c.New
		if v == nil {
			v = jsontext.Value("null")
		}
		if err := json.Unmarshal(v, p); err != nil {
			return err
		}
	}
	return nil
}
