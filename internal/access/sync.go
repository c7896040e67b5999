package access

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// sync makes what waits to be stored durable, at intervals, until ctx ends.
func (r *Recorder) sync(ctx context.Context) {
	ticker := time.NewTicker(r.opts.SyncInterval)
	defer ticker.Stop()
	unsupported := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if err := r.endSegment(r.opts.SegmentAge); err != nil {
				r.opts.Logger.Warn("a segment cannot be ended; it is tried again", "spool", r.id, "error", err)
			}
			r.removeLeft() // what could not be removed before; it says so itself
			if err := r.syncFiles(); err != nil {
				r.opts.Logger.Error("the spool cannot be synced; a loss of power would lose what is not stored", "spool", r.id, "error", err)
			}
			if !unsupported {
				unsupported = errors.Is(r.keepReserve(), errors.ErrUnsupported)
			}
		}
	}
}

// GiveUpSpare removes the spare file of the spool in dir, which no process may have
// open: whoever opens it makes another.
func GiveUpSpare(dir string) { os.Remove(filepath.Join(dir, spareName)) }

// Lend gives up the spare file while use runs, if it has so many bytes, so that
// their space is free for others. use is not called without it.
func (r *Recorder) Lend(bytes int64, use func()) {
	r.sparing.Lock()
	r.mu.Lock()
	lent := r.spool.spare && r.spool.reserved() >= bytes && os.Remove(filepath.Join(r.spool.dir, spareName)) == nil
	if lent {
		r.spool.spare = false
	}
	r.mu.Unlock()
	if lent {
		use()
	}
	r.sparing.Unlock()
	if lent {
		r.keepReserve() // if that fails, it is tried again in the background
	}
}

// keepReserve reserves again what was used or given up on a full disk.
func (r *Recorder) keepReserve() error {
	r.sparing.Lock()
	defer r.sparing.Unlock()
	r.mu.Lock()
	if !r.spool.ahead {
		r.spool.reserve()
	}
	spare := r.spool.spare
	r.mu.Unlock()
	if spare {
		return nil
	}
	if err := r.spool.makeSpare(); err != nil {
		return err
	}
	r.mu.Lock()
	r.spool.spare = true
	r.mu.Unlock()
	return nil
}

// syncFiles syncs what was written and is not stored yet.
func (r *Recorder) syncFiles() error {
	r.mu.Lock()
	s := &r.spool
	if r.bytes == 0 {
		s.closeSealed()
		s.unsafe = nil
		r.mu.Unlock()
		return nil
	}
	sealed, active, number, created := s.sealed, s.active, s.last().number, s.created
	if !s.written {
		active = nil
	}
	s.sealed, s.written, s.created = nil, false, false
	r.mu.Unlock()

	var err error
	var failed []int64
	for _, f := range sealed {
		synced := f.Sync()
		if synced != nil {
			failed = append(failed, f.number)
		}
		err = errors.Join(err, synced, f.Close())
	}
	if active != nil {
		if synced := active.Sync(); synced != nil {
			failed = append(failed, number)
			err = errors.Join(err, synced)
		}
	}
	if created {
		if synced := r.opts.syncDir(s.dir); synced != nil {
			err = errors.Join(err, synced)
			r.mu.Lock()
			s.created = true
			r.mu.Unlock()
		}
	}
	return errors.Join(err, r.distrust(failed), r.rewrite())
}

// distrust ends segments whose sync failed. The system may have dropped what it
// could not write, or keep it in memory only and take it for written: no later
// sync of the file says anything about it.
func (r *Recorder) distrust(numbers []int64) error {
	if len(numbers) == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.spool
	s.unsafe = append(s.unsafe, numbers...)
	r.opts.Logger.Error("a sync of the spool failed: until what it held is stored or written again, a loss of power would lose it",
		"spool", r.id, "segments", numbers, "waiting_records", r.records)
	signal(r.hurry)
	if !slices.Contains(numbers, s.last().number) || s.last().size == 0 {
		return nil
	}
	s.failed = true
	if err := s.roll(s.last().number + 1); err != nil {
		return err
	}
	i := len(s.sealed) - 1 // another sync of it would say nothing
	f := s.sealed[i]
	s.sealed = s.sealed[:i]
	return f.Close()
}

// rewrite writes segments that are unsafe again, into new files with new blocks
// that take their places: what they held is as durable then as if their sync had
// not failed. What is stored meanwhile needs that no more.
func (r *Recorder) rewrite() error {
	r.removing.Lock() // nothing that is removed comes back
	defer r.removing.Unlock()
	r.mu.Lock()
	s := &r.spool
	var unsafe []segment
	s.unsafe = slices.DeleteFunc(s.unsafe, func(n int64) bool {
		i := s.find(n)
		gone := i == len(s.segments) || s.segments[i].number != n
		if !gone && n != s.last().number {
			unsafe = append(unsafe, s.segments[i])
		}
		return gone
	})
	r.mu.Unlock()
	var failed error
	for _, g := range unsafe {
		err := s.copy(g)
		if err != nil && !isDamage(err) {
			failed = errors.Join(failed, fmt.Errorf("a segment whose sync failed cannot be written again: %w", err))
			continue
		}
		if err == nil {
			r.opts.Logger.Info("a segment whose sync failed is written again, and as durable as any", "spool", r.id, "segment", g.number)
		}
		r.mu.Lock()
		s.unsafe = slices.DeleteFunc(s.unsafe, func(n int64) bool { return n == g.number })
		r.mu.Unlock()
	}
	return failed
}
