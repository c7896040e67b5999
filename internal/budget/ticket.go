package budget

import (
	"context"
	"time"
)

// Ticket is what one request holds. Its methods are called by one goroutine at
// a time. The zero Ticket is one of a nil Budget.
type Ticket struct {
	share   *Share
	limits  *Limits // nil for none
	request bool    // holds a place among the requests
	stream  bool    // and among the streams
	bytes   int64   // that it holds
	begun   bool    // its expensive work may go on
}

// Enter lets a request of a root in, "" for the operator's, with the limits
// that the root has of its own, nil for none. Leave must be called in the end, unless it is
// refused.
func (b *Budget) Enter(t *Ticket, root string, limits *Limits, change bool, now time.Time) *Refusal {
	if b == nil {
		return nil
	}
	share := b.share(root, now)
	err := share.take(Requests, 1, limits.of(Requests), now)
	if err == nil {
		if err = share.take(RequestsPerSecond, 1, limits.of(RequestsPerSecond), now); err == nil && change {
			err = share.take(ChangesPerSecond, 1, limits.of(ChangesPerSecond), now)
		}
		if err != nil {
			share.put(Requests, 1)
		}
	}
	if err != nil {
		share.tickets.Add(-1)
		return err
	}
	*t = Ticket{share: share, limits: limits, request: true}
	return nil
}

// Leave gives back all that the ticket holds.
func (t *Ticket) Leave() {
	s := t.share
	if s == nil {
		return
	}
	t.End()
	if t.bytes > 0 {
		s.put(Bytes, t.bytes)
	}
	if t.stream {
		s.put(Streams, 1)
	}
	if t.request {
		s.put(Requests, 1)
	}
	s.tickets.Add(-1)
	*t = Ticket{}
}

// Hold charges n more bytes.
func (t *Ticket) Hold(n int64) *Refusal {
	if t.share == nil || n <= 0 {
		return nil
	}
	if err := t.share.take(Bytes, n, t.limits.of(Bytes), time.Time{}); err != nil {
		return err
	}
	t.bytes += n
	return nil
}

// Keep gives back all bytes but n of them.
func (t *Ticket) Keep(n int64) {
	if t.share == nil || t.bytes <= n {
		return
	}
	t.share.put(Bytes, t.bytes-n)
	t.bytes = n
}

// Held returns how many bytes the ticket holds.
func (t *Ticket) Held() int64 { return t.bytes }

// Stream takes a place among the streams.
func (t *Ticket) Stream() *Refusal {
	if t.share == nil || t.stream {
		return nil
	}
	if err := t.share.take(Streams, 1, t.limits.of(Streams), time.Time{}); err != nil {
		return err
	}
	t.stream = true
	return nil
}

// Follow gives back the place among the requests: what goes on as a stream
// for hours is one no more.
func (t *Ticket) Follow() {
	if t.share == nil || !t.request {
		return
	}
	t.share.put(Requests, 1)
	t.request = false
}

// Begin waits for a place to do expensive work in. Roots that wait get places
// in turn, and the work of one root in the order in which it came. It is
// refused if too much of the root waits, and after a while.
func (t *Ticket) Begin(ctx context.Context) error {
	if t.share == nil || t.begun {
		return nil
	}
	if err := t.share.pool.expensive.acquire(ctx, t.share, t.limits.of(Expensive), true); err != nil {
		return err
	}
	t.begun = true
	return nil
}

// Pause gives the place up while nothing is done, such as while a client
// reads. It reports whether there was one.
func (t *Ticket) Pause() bool {
	begun := t.begun
	t.End()
	return begun
}

// Resume is Begin for work that has begun and was paused: it waits for as long
// as it takes. What was paused is bounded by the places among the streams.
func (t *Ticket) Resume(ctx context.Context) error {
	if t.share == nil || t.begun {
		return nil
	}
	if err := t.share.pool.expensive.acquire(ctx, t.share, t.limits.of(Expensive), false); err != nil {
		return err
	}
	t.begun = true
	return nil
}

// End gives the place for expensive work back, if there is one.
func (t *Ticket) End() {
	if !t.begun {
		return
	}
	t.share.pool.expensive.release(t.share)
	t.begun = false
}
