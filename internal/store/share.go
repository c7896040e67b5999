package store

import (
	"context"
	"time"

	"github.com/orgd/orgd/internal/problem"
)

// shareTimeout bounds the wait for a place in a share.
const shareTimeout = 5 * time.Second

// share is how many connections one kind of work may use at once: a place for
// each. The rest of the pool is there for other work, however much of this kind
// waits.
type share chan struct{}

func newShare(places int) share { return make(share, max(places, 1)) }

// enter takes a place. Whoever waits for longer than shareTimeout is told to
// come back.
func (s share) enter(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	default:
	}
	late := time.NewTimer(shareTimeout)
	defer late.Stop()
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-late.C:
		p := problem.New(problem.Unavailable, "The database has more of this kind of work than it can do at the moment.").
			WithFix("Repeat the request after a second.")
		p.RetryAfter = time.Second
		return p
	}
}

func (s share) leave() { <-s }

// pinger asks a database whether it answers, on a connection that nothing else
// uses: work of any amount does not make the answer wait.
type pinger struct {
	turn chan struct{}
	// ask asks on the connection, which it opens if there is none and drops if
	// it does not work.
	ask func(ctx context.Context) error
}

func newPinger(ask func(ctx context.Context) error) *pinger {
	return &pinger{turn: make(chan struct{}, 1), ask: ask}
}

// ping returns when ctx is done, whether or not the database lets go of the
// question; until it does, others wait for their turn and not for the database.
func (p *pinger) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, shareTimeout)
	defer cancel()
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	answer := make(chan error, 1)
	go func() {
		defer func() { <-p.turn }()
		answer <- p.ask(ctx)
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// close runs drop once nobody asks any more, and keeps others from asking. It
// waits no longer than a question may take.
func (p *pinger) close(drop func() error) error {
	late := time.NewTimer(shareTimeout)
	defer late.Stop()
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
		p.ask = func(context.Context) error { return errClosed() }
		return drop()
	case <-late.C:
		return nil
	}
}
