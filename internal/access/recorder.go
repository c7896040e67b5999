package access

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/orgd/orgd/internal/durable"
	"github.com/orgd/orgd/internal/problem"
)

// Record is what one request leaves behind. It is stored as a whole or not at
// all.
type Record struct {
	Event *Event  // nil for none
	Usage []Usage // counted in the same transaction
	Use   *KeyUse // nil for none
}

const (
	maxBackoff = 5 * time.Second
	retryAfter = time.Second
)

// Recorder records requests without waiting for a database or for a disk to
// sync, and stores them in a Sink in the background.
//
// Record returns once the operating system has the record, in an append-only
// spool. So a crash of the process, kill -9 included, loses nothing for which
// Record returned nil. A loss of power, or a crash of the operating system,
// loses what is not yet in the Sink and was recorded after the last sync that
// completed: with the default options, about the last second. What the Sink
// stored is as durable as the Sink is.
//
// Every record reaches the Sink exactly once, however often either side
// crashes: the Sink stores the position in the spool in the transaction that
// stores the records. A process that finds records in its spool stores them
// when it starts.
//
// On Linux the spool reserves the disk space of at least one segment ahead, if
// the file system can: recording goes on for that long on a full disk.
//
// A record that is damaged on disk is reported: at level error to the Logger,
// and by Damaged. What follows it in its segment cannot be read; the segment's
// file is kept with the extension .damaged.
//
// The methods of a Recorder are safe for concurrent use. One process at a time
// can open a spool.
type Recorder struct {
	id      string
	run     Run  // of this process
	first   bool // this process has made the spool
	sink    Sink
	opts    Options
	lock    *os.File
	reader  reader
	work    chan struct{} // there is something to store
	hurry   chan struct{} // and it should not wait for more
	cancel  context.CancelFunc
	running sync.WaitGroup
	damaged atomic.Int64

	underWay underWay

	mu       sync.Mutex
	buf      []byte
	spool    spool
	stored   Position
	bytes    int64 // after stored
	records  int64 // after stored
	progress chan struct{}
	confirm  bool // whether this process has stored something under this id
	refusing bool
	closed   bool
	forget   int64 // if not 0, the segments before this one are still to be stored; see Forget
	// left holds the files of segments that are stored and not known to be
	// removed.
	left []string

	sparing  sync.Mutex // held by who makes the spare file, or lends it
	removing sync.Mutex // held while files of left are removed
	keeping  bool       // the last removal failed; guarded by removing
}

// OpenRecorder opens the spool in dir, or makes one, and starts to store what
// it finds there. ctx bounds the opening only. It fails if the Sink does not
// tell the position, if another process has the spool open, or if the spool
// was written by a newer version.
func OpenRecorder(ctx context.Context, dir string, sink Sink, opts Options) (*Recorder, error) {
	if err := durable.MkdirAll(dir); err != nil {
		return nil, err
	}
	opts = opts.withDefaults(dir)
	lock, err := durable.Create(filepath.Join(dir, lockName), os.O_RDWR)
	if err != nil {
		return nil, err
	}
	r := &Recorder{
		sink: sink, opts: opts, lock: lock,
		work: make(chan struct{}, 1), hurry: make(chan struct{}, 1), progress: make(chan struct{}),
		spool: spool{dir: dir, open: opts.open, limit: opts.SegmentBytes},
	}
	if err := r.start(ctx); err != nil {
		if r.spool.active != nil {
			r.spool.active.Close()
		}
		lock.Close()
		if err == errInUse {
			return nil, fmt.Errorf("the data directory %s cannot be used: %w", filepath.Dir(dir), err)
		}
		return nil, fmt.Errorf("spool %s: %w", dir, err)
	}
	return r, nil
}

// errInUse says the same as the lock of an SQLite database beside the spool.
var errInUse = errors.New("another process is using it; stop that process, or choose another data directory")

func (r *Recorder) start(ctx context.Context) error {
	locked, err := lockFile(r.lock)
	if err != nil {
		return err
	}
	if !locked {
		return errInUse
	}
	if err := r.spool.list(); err != nil {
		return err
	}
	if r.first, err = r.spool.identify(r.opts.Logger); err != nil {
		return err
	}
	if err := r.take(ctx); err != nil {
		return err
	}
	if err := r.recover(); err != nil {
		return err
	}
	if err := r.spool.count(r.stored); err != nil {
		return err
	}
	r.bytes, r.records = r.spool.after(r.stored)
	if r.bytes > 0 {
		r.opts.Logger.Info("storing what an earlier process recorded", "spool", r.id, "records", r.records, "bytes", r.bytes)
		signal(r.hurry)
	}
	if r.spool.begun.IsZero() {
		r.spool.begun = time.Now()
	}
	if r.opts.SyncInterval > 0 {
		r.spool.spare = r.spool.makeSpare() == nil
	}
	ctx, r.cancel = context.WithCancel(context.Background())
	r.running.Go(func() { r.store(ctx) })
	if r.opts.SyncInterval > 0 {
		r.running.Go(func() { r.sync(ctx) })
	}
	return nil
}

// recover makes the spool one that can be appended to, after whatever ended
// the process that wrote it.
func (r *Recorder) recover() error {
	s, log := &r.spool, r.opts.Logger.With("spool", r.id)
	if len(s.segments) == 0 {
		if r.stored != (Position{}) {
			log.Warn("the spool is gone; what was recorded and not stored is lost", "stored", r.stored)
		}
		return s.roll(r.stored.Segment + 1)
	}
	last := s.last()
	size, total, damaged, err := tail(s.path(last.number))
	if err != nil {
		return err
	}
	last.size = size
	if damaged {
		last.size = total
	}
	_, _, headed, err := s.headed(last)
	if err != nil {
		return err
	}
	switch {
	case s.end().Before(r.stored):
		log.Warn("the spool ends before the position that is stored; a loss of power can do that", "stored", r.stored, "end", s.end())
		err = s.roll(r.stored.Segment + 1)
	case damaged, size > 0 && !headed:
		err = s.roll(last.number + 1)
	default:
		if s.active, err = s.open(s.path(last.number)); err != nil {
			break
		}
		s.written = true
		if size < total {
			log.Warn("cutting off a record that was not written to its end", "segment", last.number, "offset", size, "bytes", total-size)
			err = s.active.Truncate(size)
		}
		s.reserve()
	}
	if err != nil {
		return err
	}
	if first := s.segments[0].number; first > max(r.stored.Segment, 1) {
		log.Warn("segments after the stored position are gone; what they held and was not stored is lost", "stored", r.stored, "first", first)
	}
	r.leave(s.drop(r.stored))
	// What is in a spare file is of a segment whose renaming was undone.
	spare := filepath.Join(s.dir, spareName)
	if info, err := os.Lstat(spare); err == nil && info.Size() > 0 {
		r.left = append(r.left, spare)
	}
	// A segment that was being written again; see rewrite.
	for i := range s.segments {
		if name := s.path(s.segments[i].number) + newExt; exists(name) {
			r.left = append(r.left, name)
		}
	}
	r.removeLeft()
	if r.opts.SyncInterval > 0 {
		return s.reopen()
	}
	return nil
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// Record records a request. When it returns nil, the record survives a crash
// of the process. An error says that the record is not and never will be
// stored: problem.Unavailable if too much waits to be stored, if the spool
// cannot be written or if the Recorder is closed; problem.StorageFull if the
// disk is full. Later calls succeed as soon as the reason is gone. Times are
// cut to microseconds.
func (r *Recorder) Record(rec Record) error {
	_, err := r.RecordAt(rec)
	return err
}

// RecordAt is Record, and returns where the record ends: it is stored once the
// stored position of the spool is not before that.
func (r *Recorder) RecordAt(rec Record) (Position, error) {
	if rec.Event == nil && rec.Use == nil && len(rec.Usage) == 0 {
		return Position{}, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.append(&rec); err != nil {
		return Position{}, err
	}
	return r.spool.end(), nil
}

func (r *Recorder) append(rec *Record) error {
	if r.closed {
		return problem.New(problem.Unavailable, "The server is shutting down.")
	}
	r.buf = appendRecord(r.buf[:0], rec)
	size := int64(len(r.buf))
	if size > recordHeader+maxPayload {
		r.buf = nil
		return fmt.Errorf("a record of %d bytes is too large for the spool", size)
	}
	if r.bytes+size > r.opts.MaxBytes {
		return r.refuse(&problem.Error{Code: problem.Unavailable, RetryAfter: retryAfter,
			Detail: "The server cannot record more requests until its database has caught up."})
	}
	size, err := r.spool.append(r.buf)
	if err != nil {
		return r.refuse(writeError(err))
	}
	if r.refusing {
		r.refusing = false
		r.opts.Logger.Info("recording again", "spool", r.id)
	}
	r.bytes += size
	r.records++
	if r.records == 1 {
		signal(r.work)
	} else if r.records == int64(r.opts.BatchSize) {
		signal(r.hurry)
	}
	return nil
}

func writeError(err error) *problem.Error {
	e := &problem.Error{Code: problem.Unavailable, RetryAfter: retryAfter, Cause: err,
		Detail: "The server cannot record requests at the moment."}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		e.Code, e.Detail = problem.StorageFull, "The server's disk is full."
	}
	return e
}

// refuse logs the first of a run of errors.
func (r *Recorder) refuse(err *problem.Error) error {
	if !r.refusing {
		r.refusing = true
		r.opts.Logger.Error("requests cannot be recorded and are refused", "spool", r.id, "error", err, "waiting_bytes", r.bytes)
	}
	return err
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Drain returns once everything that was recorded before the call is stored.
// It costs next to nothing if that is so already. If ctx ends first, the error
// is problem.Unavailable.
func (r *Recorder) Drain(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for target := r.spool.end(); !r.reached(target); {
		progress := r.progress
		r.mu.Unlock()
		signal(r.hurry)
		select {
		case <-progress:
		case <-ctx.Done():
		}
		r.mu.Lock()
		if ctx.Err() != nil && !r.reached(target) {
			return &problem.Error{Code: problem.Unavailable, RetryAfter: retryAfter, Cause: context.Cause(ctx),
				Detail: "Recent requests are recorded and have not reached the database yet."}
		}
	}
	return nil
}

// ErrKept is the cause of an error of Forget if a file of the spool cannot be
// removed. It is tried again in the background.
var ErrKept = errors.New("a file of the spool cannot be removed")

// Forget returns once everything that was recorded before the call, by an
// earlier process too, is stored and no file of the spool holds it any more, nor
// would after a loss of power. If ctx ends first, or if a file cannot be
// removed, the error is problem.Unavailable.
func (r *Recorder) Forget(ctx context.Context) error {
	if err := r.endSegment(0); err != nil {
		return writeError(err)
	}
	if err := r.Drain(ctx); err != nil {
		return err
	}
	err := r.removeLeft()
	if err == nil {
		err = r.opts.syncDir(r.spool.dir)
	}
	if err != nil {
		return &problem.Error{Code: problem.Unavailable, RetryAfter: retryAfter, Cause: fmt.Errorf("%w: %w", ErrKept, err),
			Detail: "What was recorded has reached the database, but a copy in a file of the spool cannot be removed."}
	}
	return nil
}

// endSegment starts a new segment if the last one has records and is at least
// of an age, and has the ones before it removed once they are stored. An earlier
// process may have come as far as an empty last segment.
func (r *Recorder) endSegment(age time.Duration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.spool
	switch last := s.last(); {
	case r.closed, last.size > 0 && time.Since(s.begun) < age, last.size == 0 && len(s.segments) == 1:
		return nil
	case last.size > 0:
		if err := s.roll(last.number + 1); err != nil {
			return err
		}
	}
	r.forget = s.last().number
	signal(r.hurry)
	return nil
}

// reached says whether nothing before target waits to be stored, or to be
// forgotten.
func (r *Recorder) reached(target Position) bool {
	if r.forget > 0 {
		return false
	}
	if r.bytes == 0 || !r.stored.Before(target) {
		return true
	}
	upTo, _ := r.spool.after(target)
	return r.bytes == upTo
}

// ID returns the name of the spool in the Sink.
func (r *Recorder) ID() string { return r.id }

// Run returns which start on the spool this is.
func (r *Recorder) Run() Run { return r.run }

// First reports whether there was no spool in the directory.
func (r *Recorder) First() bool { return r.first }

// Lag returns how much is recorded and not stored yet.
func (r *Recorder) Lag() (records, bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.records, r.bytes
}

// Damaged returns how many times the Recorder met a segment that could not be
// read to its end, since it was opened.
func (r *Recorder) Damaged() int64 { return r.damaged.Load() }

// Close refuses further records, waits until everything is stored, and closes
// the spool. If ctx ends first it closes the spool all the same: what is in it
// is stored when it is opened again. The error then says how much that is.
func (r *Recorder) Close(ctx context.Context) error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	r.mu.Unlock()

	err := r.Drain(ctx)
	r.cancel()
	r.running.Wait()
	if records, bytes := r.Lag(); err != nil && bytes > 0 {
		err = fmt.Errorf("%d records remain in the spool, to be stored at the next start: %w", records, err)
	} else {
		err = nil
	}
	r.reader.close()
	if r.opts.SyncInterval > 0 {
		err = errors.Join(err, r.syncFiles())
	}
	r.spool.closeSealed()
	return errors.Join(err, r.spool.active.Close(), r.lock.Close())
}
