package org

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/orgd/orgd/internal/auth"
)

// idempotencyWindow is how long an answer can be replayed.
const idempotencyWindow = 24 * time.Hour

// keptAnswers is what the answers that are kept for a root take, as far as
// this process knows: what the store said, and what was added here since.
type keptAnswers struct {
	bytes  atomic.Int64
	first  atomic.Int64 // the hour of the oldest, in seconds since 1970; 0 for none
	readAt time.Time
}

// keptTrust is how long the sum of the store is believed. Meanwhile other
// processes may keep more answers of the root.
const keptTrust = 5 * time.Second

// AnswersKept returns how many bytes are kept for the Idempotency-Keys of a
// root, and when the first of them will be given up.
func (s *Service) AnswersKept(ctx context.Context, rootID string) (bytes int64, until time.Time, err error) {
	now := s.Now()
	k, ok := s.kept.GetIfPresent(rootID)
	if age := time.Duration(0); ok {
		age = now.Sub(k.readAt)
		ok = age >= 0 && age < keptTrust
	}
	if !ok {
		k = &keptAnswers{readAt: now}
		err := s.store.Read(ctx, func(v View) error {
			n, first, err := v.AnswersKept(rootID, now.Add(-idempotencyWindow))
			if k.bytes.Store(n); n > 0 {
				k.first.Store(first.Unix())
			}
			return err
		})
		if err != nil {
			return 0, time.Time{}, err
		}
		s.kept.Set(rootID, k)
	}
	// A whole hour is given up at once, when its end is past the window.
	return k.bytes.Load(), time.Unix(k.first.Load(), 0).Add(idempotencyWindow + time.Hour), nil
}

// noteKept adds an answer that was just kept.
func (s *Service) noteKept(rootID string, n int64) {
	if k, ok := s.kept.GetIfPresent(rootID); ok {
		k.bytes.Add(n)
		k.first.CompareAndSwap(0, s.Now().Truncate(time.Hour).Unix())
	}
}

// answersStep is how many answers one transaction removes.
const answersStep = 500

// ExpireAnswers removes the answers that cannot be replayed any more. After
// each step it lets others work for the time of pause.
func (s *Service) ExpireAnswers(ctx context.Context, pause time.Duration) (removed int64, err error) {
	before := s.Now().Add(-idempotencyWindow)
	for {
		var n int64
		err := s.store.Write(ctx, func(tx Tx) (err error) {
			n, err = tx.ExpireIdempotent(before, answersStep)
			return err
		})
		if removed += n; err != nil || n < answersStep {
			return removed, err
		}
		select {
		case <-ctx.Done():
			return removed, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// KeepAnswer stores the sealed answer to a request that changed nothing.
func (s *Service) KeepAnswer(ctx context.Context, actor *auth.Actor, idem *Idempotency, sealed []byte) error {
	at := s.Now()
	r := &Replay{RequestHash: idem.RequestHash, Answer: sealed, CreatedAt: at}
	err := s.store.Write(ctx, func(tx Tx) error {
		return tx.PutIdempotent(actor.RootID, actor.ID, idem.Key, at.Add(-idempotencyWindow), r)
	})
	if err == nil {
		s.noteKept(actor.RootID, r.Size(idem.Key))
	}
	return err
}

// Replay returns the stored answer to the actor's earlier request with the
// same idempotency key; nil if there is none.
func (s *Service) Replay(ctx context.Context, actor *auth.Actor, idempotencyKey string) (*Replay, error) {
	var r *Replay
	err := s.store.Read(ctx, func(v View) (err error) {
		r, err = v.Idempotent(actor.ID, idempotencyKey, s.Now().Add(-idempotencyWindow))
		return err
	})
	if errors.Is(err, ErrAbsent) {
		return nil, nil
	}
	return r, err
}
