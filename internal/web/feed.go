package web

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/orgd/orgd/internal/problem"
)

// Feed is the source of a stream of server-sent events (WHATWG HTML, section
// 9.2) that goes on for as long as the request may be made: it ends when the
// key, the permission or the organization is gone, when the server stops, and
// when the client does not read. A client that comes back names the last id
// that it got in the header Last-Event-ID.
type Feed struct {
	// Next returns the messages after those that it returned last; at once,
	// and none if there are none. Before each call the Actor and the Org of
	// the request are brought up to date: what a key may see can change while
	// it follows.
	Next func(ctx context.Context) (Messages, error)
}

// Messages are some messages of a Feed.
type Messages struct {
	List []Message
	// Position is the id to resume at: that of the last message, or a later
	// one if the feed has looked at more and found nothing to send.
	Position string
	More     bool // there may be more now
}

// Message is one message of a Feed.
type Message struct {
	ID   string
	Data []byte // in one line, as JSON is
}

const (
	// feedInterval is how long a feed that has nothing to send waits before it
	// looks again, and so how long a key that was revoked can still read.
	feedInterval = 500 * time.Millisecond
	// heartbeatInterval is how often a feed writes, whether or not there is
	// something to send, so that proxies keep the connection and a client
	// that is gone is noticed.
	heartbeatInterval = 15 * time.Second
	// stallTimeout is how long a client may take to read what a stream writes
	// at once.
	stallTimeout = 30 * time.Second

	maxFeeds       = 2000
	maxFeedsPerKey = 50
)

// feeds counts the feeds that are open, in all and by key.
type feeds struct {
	mu    sync.Mutex
	open  int
	byKey map[string]int
}

func (f *feeds) enter(actorID string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.byKey[actorID] >= maxFeedsPerKey:
		e := problem.New(problem.RateLimited, "This key follows %d streams already.", maxFeedsPerKey).
			WithFix("Close one of them first.")
		e.RetryAfter = heartbeatInterval
		return e
	case f.open >= maxFeeds:
		e := problem.New(problem.Unavailable, "The server has no room for one more stream.")
		e.RetryAfter = heartbeatInterval
		return e
	}
	if f.byKey == nil {
		f.byKey = map[string]int{}
	}
	f.open++
	f.byKey[actorID]++
	return nil
}

func (f *feeds) leave(actorID string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open--
	if f.byKey[actorID]--; f.byKey[actorID] == 0 {
		delete(f.byKey, actorID)
	}
}

// Stop ends all feeds, and those that are opened later after what they have
// to send at once.
func (s *Server) Stop() { s.stopping() }

// follow sends a feed until one of its ends. The answer's header has been
// written.
func (s *Server) follow(w http.ResponseWriter, rt *Route, r *Request, f *Feed) {
	// A read deadline that passes would cancel the request.
	http.NewResponseController(w).SetReadDeadline(time.Time{})
	out := &patientWriter{w, stallTimeout}
	ctx := r.Context()
	b := []byte("retry: 1000\n")
	sent, position := time.Now(), ""
	for first := true; ; first = false {
		m, err := s.next(ctx, r, f)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			p := s.failed(rt, r, err)
			b = append(b, "event: problem\ndata: "...)
			b = append(b, p.Body...)
			out.Write(append(b, "\n\n"...))
			out.flush()
			return
		}
		for i := range m.List {
			b = append(b, "id: "...)
			b = append(b, m.List[i].ID...)
			b = append(b, "\ndata: "...)
			b = append(b, m.List[i].Data...)
			b = append(b, "\n\n"...)
			position = m.List[i].ID
		}
		if first || len(m.List) == 0 && time.Since(sent) >= heartbeatInterval {
			// An id without data is remembered and makes no message.
			b = append(b, ": following\n"...)
			if position != m.Position {
				b = append(b, "id: "...)
				b = append(b, m.Position...)
				b = append(b, '\n')
				position = m.Position
			}
			b = append(b, '\n')
		}
		if len(b) > 0 {
			if _, err := out.Write(b); err != nil {
				return
			}
			if err := out.flush(); err != nil {
				return
			}
			b, sent = b[:0], time.Now()
		}
		wait := feedInterval
		if m.More {
			wait = 0
		}
		select {
		case <-ctx.Done():
			return
		case <-s.stopped:
			return
		case <-time.After(wait):
		}
	}
}

// next checks that the request may still be made, and then asks the feed.
func (s *Server) next(ctx context.Context, r *Request, f *Feed) (Messages, error) {
	if err := r.StillAllowed(); err != nil {
		return Messages{}, err
	}
	return f.Next(ctx)
}

// patientWriter moves the deadline of the connection with every write: an
// answer may take as long as it likes while its client reads, and no longer
// than stall when it does not.
type patientWriter struct {
	w     http.ResponseWriter
	stall time.Duration
}

func (p *patientWriter) Write(b []byte) (int, error) {
	if err := p.extend(); err != nil {
		return 0, err
	}
	return p.w.Write(b)
}

func (p *patientWriter) flush() error {
	if err := p.extend(); err != nil {
		return err
	}
	return http.NewResponseController(p.w).Flush()
}

func (p *patientWriter) extend() error {
	err := http.NewResponseController(p.w).SetWriteDeadline(time.Now().Add(p.stall))
	if errors.Is(err, http.ErrNotSupported) {
		return nil
	}
	return err
}
