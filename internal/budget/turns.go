package budget

import (
	"context"
	"slices"
	"sync"
)

// Turns lets only so much work of one kind go on at once, and lets roots take
// turns: whoever has much of it waits for its own, and not the others for it.
// It bounds nothing by itself: those who wait hold a place of their Budget. It
// may be used from many goroutines, and on nil, which lets everything go on.
type Turns struct {
	capacity int
	perRoot  int // of a root that others wait beside, or may come

	mu      sync.Mutex
	running int
	lines   map[string]*line // of roots with work
	ring    []*line          // those with work that waits, the next one first
}

// line is the work of one root.
type line struct {
	root    string
	running int
	waiting []chan struct{}
}

// NewTurns returns turns for so much work at once. A root gets all but one of
// these places, so that there is always one for the next root.
func NewTurns(capacity int) *Turns {
	capacity = max(2, capacity)
	return &Turns{capacity: capacity, perRoot: capacity - 1, lines: map[string]*line{}}
}

// Take returns once it is the root's turn, or with the error of ctx if that
// ends before. After nil, Give must be called in the end.
func (t *Turns) Take(ctx context.Context, root string) error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	l := t.lines[root]
	if l == nil {
		l = &line{root: root}
		t.lines[root] = l
	}
	if len(l.waiting) == 0 && l.running < t.perRoot && t.running < t.capacity {
		l.running++
		t.running++
		t.mu.Unlock()
		return nil
	}
	ready := make(chan struct{})
	if l.waiting = append(l.waiting, ready); len(l.waiting) == 1 {
		t.ring = append(t.ring, l)
	}
	t.mu.Unlock()
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(l.waiting, ready); i >= 0 {
		if l.waiting = slices.Delete(l.waiting, i, i+1); len(l.waiting) == 0 {
			t.ring = slices.DeleteFunc(t.ring, func(other *line) bool { return other == l })
		}
		t.forget(l)
	} else { // it has got its turn meanwhile
		t.give(l)
	}
	return ctx.Err()
}

// Give ends a turn.
func (t *Turns) Give(root string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.give(t.lines[root])
}

func (t *Turns) give(l *line) {
	l.running--
	t.running--
	for i := 0; i < len(t.ring) && t.running < t.capacity; {
		next := t.ring[i]
		if next.running == t.perRoot {
			i++
			continue
		}
		close(next.waiting[0])
		next.waiting = next.waiting[1:]
		next.running++
		t.running++
		t.ring = slices.Delete(t.ring, i, i+1)
		if len(next.waiting) > 0 {
			t.ring = append(t.ring, next)
		}
	}
	t.forget(l)
}

func (t *Turns) forget(l *line) {
	if l.running == 0 && len(l.waiting) == 0 {
		delete(t.lines, l.root)
	}
}
