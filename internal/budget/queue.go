package budget

import (
	"context"
	"slices"
	"sync"
	"time"
)

// queue gives places for expensive work to roots in turn.
type queue struct {
	capacity int64 // places
	perRoot  int64 // that one root may have, unless it has a limit of its own

	mu      sync.Mutex
	running int64
	waiting int
	ring    []*Share // those with work that waits, the next one first
}

// waiter is some work that waits for a place.
type waiter struct {
	ready chan struct{} // closed when it has got one
	limit int64
}

// limitOf returns how many places the root may have.
func (q *queue) limitOf(limit int64) int64 {
	if limit > 0 {
		return min(limit, q.capacity)
	}
	return q.perRoot
}

// acquire returns once the share has a place. Bounded work does not join a
// queue that is full and does not wait for long; the error is then a *Refusal.
func (q *queue) acquire(ctx context.Context, s *Share, limit int64, bounded bool) error {
	q.mu.Lock()
	w := &waiter{limit: q.limitOf(limit)}
	// A place is free only if nobody who waits may have it, and work of the
	// same root is done in its order.
	if len(s.waiting) == 0 && q.running < q.capacity && s.running < w.limit {
		q.start(s)
		q.mu.Unlock()
		return nil
	}
	if bounded && (len(s.waiting) >= maxWaiting || q.waiting >= maxWaitingAll) {
		err := q.refusal(s, limit)
		q.mu.Unlock()
		return err
	}
	w.ready = make(chan struct{})
	s.waiting = append(s.waiting, w)
	q.waiting++
	if !s.listed {
		s.listed = true
		q.ring = append(q.ring, s)
	}
	q.mu.Unlock()
	var late <-chan time.Time
	if bounded {
		timer := time.NewTimer(maxWait)
		defer timer.Stop()
		late = timer.C
	}
	var err error
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-late:
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(s.waiting, w)
	if i < 0 { // it has got a place meanwhile
		if err != nil {
			q.stop(s)
		}
		return err
	}
	s.waiting = slices.Delete(s.waiting, i, i+1)
	q.waiting--
	q.unlist(s)
	// Whoever waits behind it may be bounded by less than it was.
	q.dispatch()
	if err == nil {
		err = q.refusal(s, limit)
	}
	return err
}

// refusal says whose work is in the way: the root's own, or that of others.
func (q *queue) refusal(s *Share, limit int64) *Refusal {
	f := &Refusal{Resource: Expensive, Reason: NoRoom, RetryAfter: maxWait}
	switch {
	case limit > 0 && s.running >= q.limitOf(limit):
		f.Reason, f.Limit = OverLimit, limit
	case s.running > 0 || len(s.waiting) >= maxWaiting:
		f.Reason = OverShare
	}
	return f
}

func (q *queue) release(s *Share) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stop(s)
}

func (q *queue) start(s *Share) {
	q.running++
	s.running++
	s.pool.used[Expensive].Add(1)
	s.used[Expensive].Add(1)
}

func (q *queue) stop(s *Share) {
	q.running--
	s.running--
	s.put(Expensive, 1)
	q.dispatch()
}

// dispatch gives free places to those who wait and may have one.
func (q *queue) dispatch() {
	for i := 0; i < len(q.ring) && q.running < q.capacity; {
		s := q.ring[i]
		w := s.waiting[0]
		if s.running >= w.limit {
			i++
			continue
		}
		s.waiting = s.waiting[1:]
		q.waiting--
		q.start(s)
		close(w.ready)
		// Those before it cannot have a place, so it is their turn first when
		// they can; it itself goes to the end.
		q.ring = slices.Delete(q.ring, i, i+1)
		if s.listed = len(s.waiting) > 0; s.listed {
			q.ring = append(q.ring, s)
		}
	}
}

// unlist takes a root out of the ring if none of its work waits.
func (q *queue) unlist(s *Share) {
	if len(s.waiting) > 0 || !s.listed {
		return
	}
	s.listed = false
	if i := slices.Index(q.ring, s); i >= 0 {
		q.ring = slices.Delete(q.ring, i, i+1)
	}
}
