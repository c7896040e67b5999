package web

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

// Feed is the source of a stream of server-sent events (WHATWG HTML, section
// 9.2) that goes on for as long as the request may be made: it ends when the
// key, the permission or the organization is gone, when the server stops, and
// when the client does not read. A client that comes back names the last id
// that it got in the header Last-Event-ID, or in the parameter last_event_id.
type Feed struct {
	// Next returns the messages after those that it returned last; at once,
	// and none if there are none. Before each call the Actor and the Org of
	// the request are brought up to date: what a key may see can change while
	// it follows. Nothing of the messages is kept until the next call, so they
	// should be no more than FeedBytes.
	Next func(ctx context.Context) (Messages, error)
	// News of RootID says when Next may have messages. Next is called soon after
	// them, and every now and then without any.
	News   *org.News
	RootID string
}

// FeedBytes is how many bytes of content a feed reads at a time.
const FeedBytes = 256 << 10

// Messages are some messages of a Feed.
type Messages struct {
	Len int
	// ID returns the id of the ith message, and Append appends its data, in one
	// line as JSON is.
	ID     func(i int) string
	Append func(b []byte, i int) []byte
	// Position is the id to resume at: that of the last message, or a later
	// one if the feed has looked at more and found nothing to send.
	Position string
	More     bool // there may be more now
}

const (
	// feedInterval is how long a key that was revoked can still read: so often a
	// feed that has nothing to send checks that its request may still be made,
	// mostly in memory. It is also the least time between two looks for messages,
	// if the first has found the last one, and so how late a message is at most.
	feedInterval = 500 * time.Millisecond
	// lookInterval is how often a feed looks for messages without news, in case
	// some were lost: a process that has just come to the database is not known of
	// at once, and one of an older version never is.
	lookInterval = 5 * time.Second
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
// written. A feed that has nothing to send holds no messages and no buffer.
func (s *Server) follow(w http.ResponseWriter, rt *Route, r *Request, f *Feed) {
	// A read deadline that passes would cancel the request.
	http.NewResponseController(w).SetReadDeadline(time.Time{})
	out := &feedWriter{out: &patientWriter{w, stallTimeout}, sent: time.Now()}
	ctx := r.Context()
	news := f.News.Listen(f.RootID)
	defer news.Close()
	wait := time.NewTimer(feedInterval)
	defer wait.Stop()
	out.text("retry: 1000\n")
	var looked time.Time
	var last Messages // without their content
	look := true      // in this round
	for first := true; ; first = false {
		err := r.Recheck(ctx)
		if err == nil && look {
			looked = time.Now()
			last, err = s.sendNext(ctx, r, f, out)
		}
		switch {
		case ctx.Err() != nil || out.err != nil:
			return
		case err != nil:
			out.text("event: problem\ndata: ")
			out.text(strings.ReplaceAll(string(s.failed(rt, r, err).Body), "\n", "\ndata: "))
			out.text("\n\n")
			out.send()
			return
		}
		if first || len(out.b) == 0 && !out.wrote && time.Since(out.sent) >= heartbeatInterval {
			out.heartbeat(last.Position)
		}
		if out.send(); out.err != nil {
			return
		}
		heard := news.Heard()
		switch {
		case last.More:
			wait.Reset(0)
			heard = nil
		case look: // and so not again at once, whatever is told
			wait.Reset(feedInterval)
			heard = nil
		default:
			wait.Reset(feedInterval)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.stopped:
			return
		case <-heard:
			look = true
		case <-wait.C:
			look = last.More || !f.News.Whole() || time.Since(looked) >= lookInterval
			select {
			case <-news.Heard():
				look = true
			default:
			}
		}
	}
}

// sendNext writes what the feed has now, and returns the messages without their
// content.
func (s *Server) sendNext(ctx context.Context, r *Request, f *Feed, out *feedWriter) (Messages, error) {
	m, err := s.nextMessages(ctx, r, f)
	if err != nil {
		return Messages{}, err
	}
	for i := range m.Len {
		if out.message(&m, i); out.err != nil {
			break
		}
	}
	return Messages{Position: m.Position, More: m.More}, nil
}

// nextMessages asks the feed, in turns of the roots as pages are made.
func (s *Server) nextMessages(ctx context.Context, r *Request, f *Feed) (Messages, error) {
	root := r.Actor.RootID
	if err := s.budgets.pages.Take(ctx, root); err != nil {
		return Messages{}, err
	}
	defer s.budgets.pages.Give(root)
	return f.Next(ctx)
}

// feedPiece is about how many bytes of a feed are written at once.
const feedPiece = 16 << 10

// feedWriter writes a feed in pieces. It has a buffer only while there is
// something to write, and after an error it writes nothing more.
type feedWriter struct {
	out      *patientWriter
	b        []byte
	wrote    bool      // since the last flush
	sent     time.Time // the last flush
	position string    // the last id
	err      error
}

func (f *feedWriter) text(s string) { f.b = append(f.b, s...) }

func (f *feedWriter) message(m *Messages, i int) {
	if f.b == nil {
		f.b = make([]byte, 0, feedPiece+feedPiece/4)
	}
	f.position = m.ID(i)
	f.text("id: ")
	f.text(f.position)
	f.text("\ndata: ")
	f.b = m.Append(f.b, i)
	if f.text("\n\n"); len(f.b) >= feedPiece {
		f.write()
	}
}

// heartbeat writes that the feed goes on, and where it has come to.
func (f *feedWriter) heartbeat(position string) {
	f.text(": following\n")
	// An id without data is remembered and makes no message.
	if f.position != position {
		f.text("id: " + position + "\n")
		f.position = position
	}
	f.text("\n")
}

func (f *feedWriter) write() {
	if f.err == nil && len(f.b) > 0 {
		_, f.err = f.out.Write(f.b)
		f.wrote = true
	}
	f.b = nil
}

// send writes what there is, to the client and not only to the connection.
func (f *feedWriter) send() {
	if f.write(); f.err == nil && f.wrote {
		f.err = f.out.flush()
		f.wrote, f.sent = false, time.Now()
	}
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
