package access

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"
)

// store stores records until ctx ends.
func (r *Recorder) store(ctx context.Context) {
	var b batch
	for {
		wait := true
		select {
		case <-ctx.Done():
			return
		case <-r.work:
		case <-r.hurry:
			wait = false
		}
		if wait {
			timer := time.NewTimer(r.opts.FlushInterval)
			select {
			case <-ctx.Done():
			case <-r.hurry:
			case <-timer.C:
			}
			timer.Stop()
		}
		r.flush(ctx, &b)
		if records, bytes := r.Lag(); records >= int64(r.opts.BatchSize) {
			signal(r.hurry)
		} else if bytes > 0 {
			signal(r.work)
		}
	}
}

// batch is a Batch with where its records are.
type batch struct {
	Batch
	segment int64
	records int64
}

// flush stores everything that is recorded when it is called, or ends with
// ctx. It uses the memory of b.
func (r *Recorder) flush(ctx context.Context, b *batch) {
	r.mu.Lock()
	target := r.spool.end()
	r.mu.Unlock()
	log := r.opts.Logger.With("spool", r.id)
	var failures int
	// A batch that failed is tried again as it is, never joined by later
	// records: its commit may be on its way still.
	for retry := false; ctx.Err() == nil; {
		if !retry {
			r.mu.Lock()
			done := r.reached(target)
			r.mu.Unlock()
			if done {
				return
			}
		}
		var err error
		if !retry {
			err = r.read(b)
		}
		if err == nil {
			retry = true
			err = r.sink.Flush(ctx, b.Batch)
		}
		if err == nil {
			r.advance(b)
			retry = false
			if failures > 0 {
				log.Info("storing recorded requests again", "failures", failures)
				failures = 0
			}
			continue
		}
		if ctx.Err() != nil {
			return
		}
		failures++
		records, size := r.Lag()
		log.Error("recorded requests cannot be stored", "error", err, "failures", failures, "waiting_records", records, "waiting_bytes", size)
		backoff := min(maxBackoff, r.opts.FlushInterval<<min(failures-1, 10))
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff):
		}
		state, err := r.sink.SpoolState(ctx, r.id)
		if err != nil {
			continue
		}
		if retry && state.Position == b.Position && state.Run.Same(r.run) {
			r.advance(b)
			retry = false
		} else if r.relocate(state) {
			retry = false
		}
	}
}

// read fills b with the next records, all from one segment.
func (r *Recorder) read(b *batch) error {
	r.mu.Lock()
	s := &r.spool
	pos := r.stored
	i := s.find(pos.Segment)
	for {
		if g := s.segments[i]; g.number > pos.Segment {
			pos = Position{Segment: g.number}
		}
		if pos.Offset < s.segments[i].size || i == len(s.segments)-1 {
			break
		}
		i++
	}
	g := s.segments[i]
	b.SpoolID, b.Run, b.From, b.segment, b.records = r.id, r.run, r.stored, g.number, 0
	b.Events, b.Usage, b.Uses = b.Events[:0], b.Usage[:0], b.Uses[:0]
	r.mu.Unlock()

	for b.records < int64(r.opts.BatchSize) && pos.Offset < g.size {
		payload, n, err := r.reader.next(s.path(g.number), pos, g.size)
		if err == nil {
			err = decodePayload(payload, &b.Batch)
		}
		if isDamage(err) && b.records > 0 {
			break
		} else if isDamage(err) {
			if pos, err = r.skip(pos, err); err != nil {
				return err
			}
			break
		} else if err != nil {
			return err
		}
		if !isHeader(payload) {
			b.records++
		}
		pos.Offset += int64(n)
	}
	b.Position = pos
	return nil
}

// skip gives up what is left of a segment from a damaged record on, and
// returns the start of the segment after it.
func (r *Recorder) skip(pos Position, damage error) (Position, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.spool
	if s.last().number == pos.Segment {
		if err := s.roll(pos.Segment + 1); err != nil {
			return pos, err
		}
	}
	i := s.find(pos.Segment)
	name := s.path(pos.Segment)
	kept := name + damagedExt
	if err := os.Link(name, kept); err != nil && !errors.Is(err, os.ErrExist) {
		kept = ""
	}
	r.damaged.Add(1)
	r.opts.Logger.Error("the spool is damaged; the rest of this segment cannot be read and is skipped", "spool", r.id,
		"segment", pos.Segment, "offset", pos.Offset, "bytes", s.segments[i].size-pos.Offset, "error", damage, "kept", kept)
	return Position{Segment: s.segments[i+1].number}, nil
}

// advance notes that b is stored.
func (r *Recorder) advance(b *batch) {
	r.mu.Lock()
	r.confirm = true
	r.stored = b.Position
	r.spool.segments[r.spool.find(b.segment)].records -= b.records
	dropped := r.spool.drop(r.stored)
	r.leave(dropped)
	r.moved()
	if r.opts.SyncInterval < 0 {
		r.spool.closeSealed()
	}
	r.mu.Unlock()
	for _, g := range dropped {
		if r.reader.number == g.number {
			r.reader.close()
		}
	}
	if len(dropped) > 0 {
		r.removeLeft()
	}
	r.mu.Lock()
	if r.forget > 0 && r.forget <= r.stored.Segment {
		r.forget = 0
		r.moved()
	}
	r.mu.Unlock()
}

// moved works out what lies after a new stored position.
func (r *Recorder) moved() {
	r.bytes, r.records = r.spool.after(r.stored)
	close(r.progress)
	r.progress = make(chan struct{})
}

// relocate goes to the position that the Sink tells after a failure. It
// returns false if the Recorder was there already, or cannot go there.
func (r *Recorder) relocate(state SpoolState) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	position := state.Position
	log := r.opts.Logger.With("spool", r.id, "stored", position, "expected", r.stored)
	switch {
	case !r.run.Follows(state.Run):
		log.Error("another process has opened a copy of this spool and stores under its id; this one stores nothing more: stop one of them, and start this one again")
		return false
	case position == r.stored:
		return false
	case position.Before(r.stored):
		log.Warn("the database went back to an earlier state; storing again what it lost and the spool still has")
	case !r.confirm && !r.spool.end().Before(position):
		// The last transaction of an earlier process was committed after
		// this one had asked for the position.
	default:
		log.Error("somebody else has moved the position of this spool; nothing is stored until it is corrected")
		return false
	}
	if err := r.spool.count(position); err != nil {
		log.Error("the spool cannot be read", "error", err)
		return false
	}
	if first := r.spool.segments[0].number; first > max(position.Segment, 1) {
		log.Warn("segments after the stored position are gone", "first", first)
	}
	r.stored = position
	r.moved()
	return true
}

// leave notes that the files of segments are to be removed.
func (r *Recorder) leave(dropped []segment) {
	for _, g := range dropped {
		r.left = append(r.left, r.spool.path(g.number))
	}
}

// removeLeft removes the files of segments that are stored. What cannot be
// removed is left for the next attempt, and is the error.
func (r *Recorder) removeLeft() error {
	r.removing.Lock()
	defer r.removing.Unlock()
	r.mu.Lock()
	names := slices.Clone(r.left)
	r.mu.Unlock()
	if len(names) == 0 {
		return nil
	}
	var failed error
	gone := map[string]bool{}
	for _, name := range names {
		if err := r.opts.remove(name); err == nil || errors.Is(err, os.ErrNotExist) {
			gone[name] = true
		} else {
			failed = errors.Join(failed, err)
		}
	}
	r.mu.Lock()
	r.left = slices.DeleteFunc(r.left, func(name string) bool { return gone[name] })
	r.mu.Unlock()
	switch {
	case failed != nil && !r.keeping:
		r.opts.Logger.Error("a stored segment cannot be removed; it is tried again, and an erasure waits for it", "spool", r.id, "error", failed)
	case failed == nil && r.keeping:
		r.opts.Logger.Info("stored segments can be removed again", "spool", r.id)
	}
	r.keeping = failed != nil
	return failed
}
