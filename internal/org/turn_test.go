package org

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orgd/orgd/internal/problem"
)

// No more than so many have a turn of one root at once; those of another root
// do not notice, and who waits too long, or is gone, has had none.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := &turns{most: 2}
		ctx := t.Context()
		var leave []func()
		for range 2 {
			l, err := turns.take(ctx, "busy")
			if err != nil {
				t.Fatal(err)
			}
			leave = append(leave, l)
		}
		if l, err := turns.take(ctx, "other"); err != nil {
			t.Error("another root waits:", err)
		} else {
			l()
		}

		begin := time.Now()
		_, err := turns.take(ctx, "busy")
		if !problem.Is(err, problem.Unavailable) || time.Since(begin) != turnWait {
			t.Errorf("a third: %v after %v", err, time.Since(begin))
		}
		gone, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := turns.take(gone, "busy"); err != context.DeadlineExceeded {
			t.Errorf("a caller that is gone: %v", err)
		}

		got := make(chan func())
		go func() {
			l, err := turns.take(ctx, "busy")
			if err != nil {
				t.Error(err)
			}
			got <- l
		}()
		synctest.Wait()
		leave[0]()
		leave = append(leave[1:], <-got)
		for _, l := range leave {
			l()
		}
		if len(turns.roots) != 0 {
			t.Errorf("%d roots are remembered after all have left", len(turns.roots))
		}
	})
}
