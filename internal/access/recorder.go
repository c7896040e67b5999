package access

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
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

// Options of a Recorder. The zero value of a field means its default.
type Options struct {
	// MaxBytes is the most that may wait to be stored. Beyond it Record fails
	// until the Sink has caught up. Default 1 GiB, or an eighth of a disk that is
	// smaller than 8 GiB. The spool takes up to two segments more on disk, which
	// it reserves: see Recorder.
	MaxBytes int64
	// SegmentBytes is the size at which a new segment is started. Default 16 MiB,
	// or a part in 32 of a disk that is smaller than 512 MiB.
	SegmentBytes int64
	// SegmentAge is the age at which a segment is ended, so that no file of the
	// spool keeps for longer what the Sink has stored. Default 10 minutes.
	SegmentAge time.Duration
	// FlushInterval is how long a record waits for others to be stored with
	// it. Default 100 ms.
	FlushInterval time.Duration
	// BatchSize is the most records in one Batch, and the number of waiting
	// records that are stored without waiting for more. Default 2000.
	BatchSize int
	// SyncInterval is how often records that are not stored yet are synced to
	// disk, and space for the next segment is reserved, in the background.
	// Default 1 s; negative for never.
	SyncInterval time.Duration
	// Logger gets what goes wrong in the background. Default slog.Default().
	Logger *slog.Logger
	// Now is the clock. Default time.Now.
	Now func() time.Time

	open    func(name string) (file, error)
	remove  func(name string) error
	syncDir func(dir string) error
}

func (o Options) withDefaults(dir string) Options {
	if o.MaxBytes == 0 {
		o.MaxBytes = durable.ShareOf(dir, 8, 1<<30)
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = durable.ShareOf(dir, 32, 16<<20)
	}
	if o.SegmentAge == 0 {
		o.SegmentAge = 10 * time.Minute
	}
	if o.FlushInterval == 0 {
		o.FlushInterval = 100 * time.Millisecond
	}
	if o.BatchSize == 0 {
		o.BatchSize = 2000
	}
	if o.SyncInterval == 0 {
		o.SyncInterval = time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.open == nil {
		o.open = openFile
	}
	if o.remove == nil {
		o.remove = os.Remove
	}
	if o.syncDir == nil {
		o.syncDir = durable.SyncDir
	}
	return o
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
