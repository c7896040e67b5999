package org

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/orgd/orgd/internal/problem"
)

// turnWait is how long a change waits for its turn.
const turnWait = 5 * time.Second

// maxTurns is how many may have a turn of one root, or wait for it.
const maxTurns = 256

// turns lets only so many changes of one root go on at once. They would have to
// wait for each other all the same, for the lock of their root or for what they
// rest on, and each that waits there holds something that another customer
// needs. A change that waits here holds nothing. It is safe for concurrent use;
// the zero value lets all go on.
type turns struct {
	most int // at once; 0 for any number

	mu    sync.Mutex
	roots map[string]*turn
}

// A turn is what the changes of one root that are under way or wait share.
type turn struct {
	slots chan struct{}
	users int
}

// take waits for a turn of the root. leave must be called in the end. Without a
// root, for the operator and the server itself, there is nothing to wait for.
func (t *turns) take(ctx context.Context, rootID string) (leave func(), err error) {
	if t.most == 0 || rootID == "" {
		return func() {}, nil
	}
	t.mu.Lock()
	one := t.roots[rootID]
	if one == nil {
		one = &turn{slots: make(chan struct{}, t.most)}
		if t.roots == nil {
			t.roots = map[string]*turn{}
		}
		t.roots[rootID] = one
	}
	if one.users == maxTurns {
		t.mu.Unlock()
		return nil, tooManyTurns()
	}
	one.users++
	t.mu.Unlock()
	select {
	case one.slots <- struct{}{}:
	default:
		wait := time.NewTimer(turnWait)
		defer wait.Stop()
		select {
		case one.slots <- struct{}{}:
		case <-ctx.Done():
			err = ctx.Err()
		case <-wait.C:
			err = tooManyTurns()
		}
	}
	leave = func() {
		if err == nil {
			<-one.slots
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(t.roots, rootID)
		}
	}
	if err != nil {
		leave()
		return nil, err
	}
	return leave, nil
}

// errTurn ends the wait for a turn.
var errTurn = errors.New("the turn has not come in time")

func tooManyTurns() error {
	p := problem.New(problem.Unavailable, "Too many changes below the same root are waiting for each other; nothing was changed.").
		WithFix("Make fewer of them at once.")
	p.RetryAfter = time.Second
	return p
}
