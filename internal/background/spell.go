package background

import "sync/atomic"

// Spell tells apart what is new of what is done again and again: the first failure
// of some in a row, and the first success after them. It is safe for concurrent use;
// the zero value has seen no failure.
type Spell struct{ failing atomic.Bool }

// Turned notes how an attempt went, and reports whether the one before went
// otherwise.
func (s *Spell) Turned(failed bool) bool { return s.failing.Swap(failed) != failed }

// Failing reports whether the last attempt has failed.
func (s *Spell) Failing() bool { return s.failing.Load() }
