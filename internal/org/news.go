package org

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/orgd/orgd/internal/access"
)

// News tells whoever listens in which roots something has happened. To tell never
// waits for a listener, and what a listener has not heard yet is kept as a set of
// roots, however often it was told. It is safe for concurrent use.
//
// Whoever is told looks at the database, which alone knows what has happened: so
// what is told too often, or for nothing, does no harm.
type News struct {
	whole func() bool

	mu     sync.RWMutex
	all    map[*Listener]bool
	byRoot map[string]map[*Listener]bool
}

// NewNews returns news that are whole while whole says so; nil for always.
func NewNews(whole func() bool) *News {
	return &News{whole: whole, all: map[*Listener]bool{}, byRoot: map[string]map[*Listener]bool{}}
}

// Whole reports whether all that happens is told. It is not where several processes
// share a database: what one of them records of accesses, and the root of an
// organization that one has changed, the others find nowhere but where a listener
// would look. Whoever listens then has to look from time to time.
func (n *News) Whole() bool { return n.whole == nil || n.whole() }

// maxTold is how many roots a listener remembers. If more have news it is told to
// look at all.
const maxTold = 10_000

// Listener hears the News of one root, or of all.
type Listener struct {
	news   *News
	rootID string // empty for all
	wake   chan struct{}

	mu    sync.Mutex
	roots map[string]bool // of a listener to all
	more  bool            // there were too many roots to remember
}

// Listen returns a listener that hears of a root what is told from now on, or of
// all roots for an empty id. Close must be called in the end.
func (n *News) Listen(rootID string) *Listener {
	l := &Listener{news: n, rootID: rootID, wake: make(chan struct{}, 1)}
	n.mu.Lock()
	defer n.mu.Unlock()
	if rootID == "" {
		l.roots = map[string]bool{}
		n.all[l] = true
		return l
	}
	if n.byRoot[rootID] == nil {
		n.byRoot[rootID] = map[*Listener]bool{}
	}
	n.byRoot[rootID][l] = true
	return l
}

// Tell says that something has happened in the roots.
func (n *News) Tell(roots ...string) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, id := range roots {
		for l := range n.byRoot[id] {
			l.rouse()
		}
	}
	if len(roots) > 0 {
		for l := range n.all {
			l.Put(roots, false)
		}
	}
}

// Heard returns a channel that has a value when there is news.
func (l *Listener) Heard() <-chan struct{} { return l.wake }

// Take returns the roots with news since it was last called, in no order; more says
// that others have news too, any of them. It is for listeners to all roots.
func (l *Listener) Take() (roots []string, more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	roots, more = slices.Collect(maps.Keys(l.roots)), l.more
	clear(l.roots)
	l.more = false
	return roots, more
}

// Put gives back what Take has returned, to be taken again.
func (l *Listener) Put(roots []string, more bool) {
	l.mu.Lock()
	for _, id := range roots {
		if len(l.roots) < maxTold {
			l.roots[id] = true
		} else if !l.roots[id] {
			more = true
			break
		}
	}
	l.more = l.more || more
	l.mu.Unlock()
	l.rouse()
}

func (l *Listener) rouse() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Close ends the listening.
func (l *Listener) Close() {
	n := l.news
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.all, l)
	if of := n.byRoot[l.rootID]; of != nil {
		if delete(of, l); len(of) == 0 {
			delete(n.byRoot, l.rootID)
		}
	}
}

// Sink returns a sink of access events that tells the news of what it stores.
func (n *News) Sink(s access.Sink) access.Sink { return tellingSink{s, n} }

type tellingSink struct {
	access.Sink
	news *News
}

// Flush implements access.Sink. What it reports an error of may be stored all the
// same.
func (s tellingSink) Flush(ctx context.Context, b access.Batch) error {
	err := s.Sink.Flush(ctx, b)
	roots := map[string]bool{}
	for i := range b.Events {
		roots[b.Events[i].RootID] = true
	}
	s.news.Tell(slices.Collect(maps.Keys(roots))...)
	return err
}

// AuditNews tells of the roots whose audit logs this service has appended to.
func (s *Service) AuditNews() *News { return s.changed }
