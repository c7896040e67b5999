package access

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/durable"
	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
)

// memorySink is a Sink with the transactional behaviour that a store must
// have. It outlives the recorders that use it, as a database does.
type memorySink struct {
	mu        sync.Mutex
	positions map[string]Position
	runs      map[string]Run
	events    []Event
	usage     []Usage
	uses      []KeyUse
	batches   int

	before func(b Batch) error // fails a Flush before its commit
	after  func(b Batch) error // fails it after its commit
}

func newMemorySink() *memorySink {
	return &memorySink{positions: map[string]Position{}, runs: map[string]Run{}}
}

var (
	errPosition = errors.New("the spool is at another position")
	errTaken    = errors.New("another process has taken the spool")
)

func (s *memorySink) Flush(ctx context.Context, b Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.before != nil {
		if err := s.before(b); err != nil {
			return err
		}
	}
	if !b.Run.Follows(s.runs[b.SpoolID]) {
		return errTaken
	}
	switch s.positions[b.SpoolID] {
	case b.Position:
		return nil
	case b.From:
	default:
		return errPosition
	}
	s.positions[b.SpoolID], s.runs[b.SpoolID] = b.Position, b.Run
	s.events = append(s.events, b.Events...)
	s.usage = append(s.usage, b.Usage...)
	s.uses = append(s.uses, b.Uses...)
	s.batches++
	if s.after != nil {
		return s.after(b)
	}
	return nil
}

func (s *memorySink) SpoolState(ctx context.Context, id string) (SpoolState, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return SpoolState{Position: s.positions[id], Run: s.runs[id]}, nil
}

func (s *memorySink) TakeSpool(ctx context.Context, id string, run Run, _ string, _ time.Time) (SpoolState, error) {
	was, err := s.SpoolState(ctx, id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if run.Follows(was.Run) {
		s.runs[id] = run
	}
	return was, err
}

// ids returns the ids of the events stored, in order.
func (s *memorySink) ids() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]string, len(s.events))
	for i, e := range s.events {
		ids[i] = e.ID
	}
	return ids
}

func (s *memorySink) set(before, after func(Batch) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before, s.after = before, after
}

var (
	errSink = errors.New("the sink fails")
	quiet   = slog.New(slog.NewTextHandler(io.Discard, nil))
)

func fail(Batch) error { return errSink }

// fast are options for tests that wait for the recorder.
func fast() Options { return Options{FlushInterval: time.Millisecond, Logger: quiet} }

func open(t testing.TB, dir string, sink Sink, opts Options) *Recorder {
	t.Helper()
	r, err := OpenRecorder(t.Context(), dir, sink, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { crash(r) })
	return r
}

// crash ends r without storing anything more, as if its process had ended.
func crash(r *Recorder) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r.Close(ctx)
}

func drain(t testing.TB, r *Recorder) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := r.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	if records, bytes := r.Lag(); records != 0 || bytes != 0 {
		t.Fatalf("after Drain %d records and %d bytes wait", records, bytes)
	}
}

func testRecord(n int) Record {
	id := fmt.Sprint(n)
	at := time.Date(2026, 11, 23, 12, 0, 0, n*1000, time.UTC)
	return Record{
		Event: &Event{ID: id, Timestamp: at, RootID: "acme", OrgID: "acme-eu", User: "deploy key", Action: "GET_ORG",
			Status: Success, IP: "2001:db8::1", UserAgent: "curl/8.5.0", Method: "GET", Path: "/orgs/acme-eu",
			RequestID: "req_" + id, APIKeyID: "key_1"},
		Usage: []Usage{{RootID: "acme", Path: "acme/acme-eu/", At: at, Meter: usage.APICalls, Quantity: 1_000_000}},
		Use:   &KeyUse{KeyID: "key_1", Old: n%2 == 1, At: at, IP: "2001:db8::1"},
	}
}

func record(t testing.TB, r *Recorder, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		if err := r.Record(testRecord(n)); err != nil {
			t.Fatalf("record %d: %v", n, err)
		}
	}
}

func wantIDs(t testing.TB, sink *memorySink, from, to int) {
	t.Helper()
	var want []string
	for n := from; n < to; n++ {
		want = append(want, fmt.Sprint(n))
	}
	if got := sink.ids(); !slices.Equal(got, want) {
		t.Fatalf("stored %d events %.200v, want %d from %d to %d", len(got), got, len(want), from, to)
	}
}

func TestRecorderStoresWhatIsRecorded(t *testing.T) {
	sink := newMemorySink()
	r := open(t, t.TempDir(), sink, fast())
	record(t, r, 0, 5000)
	drain(t, r)
	wantIDs(t, sink, 0, 5000)
	for n := range 5000 {
		want := testRecord(n)
		if sink.events[n] != *want.Event || sink.usage[n] != want.Usage[0] || sink.uses[n] != *want.Use {
			t.Fatalf("record %d was stored as %v %v %v", n, sink.events[n], sink.usage[n], sink.uses[n])
		}
	}
}

// segments returns the numbers of the segments in dir.
func segments(t testing.TB, dir string) []int64 {
	t.Helper()
	s := spool{dir: dir}
	if err := s.list(); err != nil {
		t.Fatal(err)
	}
	var numbers []int64
	for _, g := range s.segments {
		numbers = append(numbers, g.number)
	}
	return numbers
}

// spooled returns a directory in which a crashed process left records, and
// the name of its only segment.
func spooled(t testing.TB, records int) (dir, name string) {
	t.Helper()
	dir = t.TempDir()
	sink := newMemorySink()
	sink.before = fail
	r := open(t, dir, sink, fast())
	record(t, r, 0, records)
	crash(r)
	return dir, r.spool.path(1)
}

func TestNothingIsRecordedForAnEmptyRecord(t *testing.T) {
	sink := newMemorySink()
	sink.before = fail
	r := open(t, t.TempDir(), sink, fast())
	if err := r.Record(Record{}); err != nil {
		t.Fatal(err)
	}
	drain(t, r)
}

func TestDrainSeesOnesOwnRecords(t *testing.T) {
	sink := newMemorySink()
	opts := fast()
	opts.FlushInterval = time.Hour // only Drain and full batches store
	opts.BatchSize = 10
	opts.SegmentBytes = 2000
	r := open(t, t.TempDir(), sink, opts)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for n := range 50 {
				id := g*1000 + n
				if err := r.Record(testRecord(id)); err != nil {
					t.Error(err)
				}
				if n%7 == 0 {
					if err := r.Drain(t.Context()); err != nil {
						t.Error(err)
					}
					if !slices.Contains(sink.ids(), fmt.Sprint(id)) {
						t.Errorf("record %d is not stored after Drain", id)
					}
				}
			}
		})
	}
	wg.Wait()
	drain(t, r)
	ids := sink.ids()
	slices.Sort(ids)
	if len(ids) != 200 || len(slices.Compact(ids)) != 200 {
		t.Fatalf("%d events are stored, want 200 different ones", len(ids))
	}
}

func TestDrainEndsWithItsContext(t *testing.T) {
	sink := newMemorySink()
	sink.before = fail
	r := open(t, t.TempDir(), sink, fast())
	record(t, r, 0, 1)
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("gone")
	cancel(reason)
	if err := r.Drain(ctx); !problem.Is(err, problem.Unavailable) || !errors.Is(err, reason) {
		t.Fatalf("Drain: %v", err)
	}
}

func TestStoredSegmentsAreRemoved(t *testing.T) {
	sink := newMemorySink()
	opts := fast()
	opts.SegmentBytes = 1000
	opts.BatchSize = 3
	dir := t.TempDir()
	r := open(t, dir, sink, opts)
	for n := 0; n < 300; n += 30 {
		record(t, r, n, n+30)
		drain(t, r)
	}
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := segments(t, dir); len(left) > 2 || left[0] < 50 {
		t.Fatalf("segments %v are left", left)
	}
	r = open(t, dir, sink, opts)
	record(t, r, 300, 310)
	drain(t, r)
	wantIDs(t, sink, 0, 310)
}

func TestAnEarlierProcessesRecordsAreStored(t *testing.T) {
	sink := newMemorySink()
	dir := t.TempDir()
	opts := fast()
	opts.SegmentBytes = 1500
	opts.BatchSize = 4
	r := open(t, dir, sink, opts)
	record(t, r, 0, 10)
	drain(t, r)
	sink.set(fail, nil)
	record(t, r, 10, 50)
	crash(r)
	for range 3 { // crashes while the sink is down change nothing
		crash(open(t, dir, sink, opts))
	}
	r = open(t, dir, sink, opts)
	if records, _ := r.Lag(); records != 40 {
		t.Errorf("%d records wait, want 40", records)
	}
	record(t, r, 50, 60)
	sink.set(nil, nil)
	drain(t, r)
	wantIDs(t, sink, 0, 60)
}

func TestEveryRecordIsStoredExactlyOnce(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			sink := newMemorySink()
			faults := rand.New(rand.NewPCG(seed, 1))
			some := func(Batch) error {
				if faults.IntN(3) == 0 {
					return errSink
				}
				return nil
			}
			sink.set(some, some)
			dir := t.TempDir()
			opts := fast()
			opts.FlushInterval = time.Microsecond
			next := 0
			for range 6 {
				opts.SegmentBytes = 200 + rng.Int64N(3000)
				opts.BatchSize = 1 + rng.IntN(20)
				r := open(t, dir, sink, opts)
				for range rng.IntN(4) {
					n := next + rng.IntN(40)
					record(t, r, next, n)
					next = n
					if rng.IntN(2) == 0 {
						drain(t, r)
					}
				}
				crash(r)
			}
			drain(t, open(t, dir, sink, opts))
			wantIDs(t, sink, 0, next)
		})
	}
}

// A commit may take effect after the call that made it has failed and the
// position has been asked for.
func TestACommitThatArrivesLateCountsOnce(t *testing.T) {
	sink := newMemorySink()
	dir := t.TempDir()
	var late Batch
	attempts := 0
	attempted := make(chan struct{})
	sink.set(func(b Batch) error {
		switch attempts++; attempts {
		case 1:
			late = b
			late.Events, late.Usage, late.Uses = slices.Clone(b.Events), slices.Clone(b.Usage), slices.Clone(b.Uses)
			close(attempted)
			return errSink
		case 2: // the first one commits just before the second
			sink.positions[late.SpoolID] = late.Position
			sink.events = append(sink.events, late.Events...)
		}
		return nil
	}, nil)
	opts := fast()
	opts.FlushInterval = 20 * time.Millisecond
	r := open(t, dir, sink, opts)
	record(t, r, 0, 5)
	<-attempted
	record(t, r, 5, 9)
	drain(t, r)
	wantIDs(t, sink, 0, 9)
}

// The same, when the process that made the commit is gone.
func TestACommitOfAnEarlierProcessThatArrivesLateCountsOnce(t *testing.T) {
	sink := newMemorySink()
	dir := t.TempDir()
	var late Batch
	attempted := make(chan struct{})
	sink.set(func(b Batch) error {
		if late.Position == (Position{}) {
			late = b
			late.Events = slices.Clone(b.Events)
			close(attempted)
		}
		return errSink
	}, nil)
	r := open(t, dir, sink, fast())
	record(t, r, 0, 5)
	<-attempted
	crash(r)
	sink.set(func(b Batch) error {
		if b.From == late.From && sink.positions[late.SpoolID] == late.From {
			sink.positions[late.SpoolID] = late.Position
			sink.events = append(sink.events, late.Events...)
		}
		return nil
	}, nil)
	r = open(t, dir, sink, fast())
	record(t, r, 5, 9)
	drain(t, r)
	wantIDs(t, sink, 0, 9)
}

func timeout(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestWhenTheSinkIsDownRecordingGoesOnUpToABound(t *testing.T) {
	sink := newMemorySink()
	sink.before = fail
	opts := fast()
	opts.MaxBytes = 20_000
	opts.SegmentBytes = 3000
	dir := t.TempDir()
	r := open(t, dir, sink, opts)
	n := 0
	var err error
	for ; err == nil; n++ {
		err = r.Record(testRecord(n))
	}
	n--
	if e := problem.From(err); e.Code != problem.Unavailable || e.RetryAfter <= 0 {
		t.Fatalf("the error is %v", err)
	}
	records, size := r.Lag()
	if size > opts.MaxBytes || size < opts.MaxBytes-500 || records != int64(n) {
		t.Fatalf("%d records and %d bytes wait after %d were accepted", records, size, n)
	}
	crash(r)
	r = open(t, dir, sink, opts)
	if err := r.Record(testRecord(n)); !problem.Is(err, problem.Unavailable) {
		t.Fatalf("the bound is gone after a restart: %v", err)
	}
	sink.set(nil, nil)
	drain(t, r)
	record(t, r, n, n+10)
	drain(t, r)
	wantIDs(t, sink, 0, n+10)
}

func TestARecordThatWasCutShortIsCutOff(t *testing.T) {
	dir, name := spooled(t, 3)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var ends []int
	for off := 0; off < len(whole); {
		_, n, err := nextRecord(whole[off:])
		if err != nil {
			t.Fatal(err)
		}
		off += n
		ends = append(ends, off)
	}
	ends = ends[1:] // the first is that of the header
	for cut := ends[1]; cut < ends[2]; cut++ {
		for _, zeros := range []int{0, 1, 5000} {
			copied := t.TempDir()
			if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			// Zeros are the start of no record, but after a part of one they
			// are bytes of it that are not as they were written.
			tail := append(slices.Clone(whole[:cut]), make([]byte, zeros)...)
			if err := os.WriteFile(filepath.Join(copied, filepath.Base(name)), tail, 0o600); err != nil {
				t.Fatal(err)
			}
			sink := newMemorySink()
			r := open(t, copied, sink, fast())
			record(t, r, 2, 4)
			drain(t, r)
			wantIDs(t, sink, 0, 4)
			wantDamage := int64(0)
			if zeros == 5000 && cut > ends[1] {
				wantDamage = 1
			}
			if damaged := r.Damaged(); (zeros == 0 || zeros == 5000) && damaged != wantDamage {
				t.Fatalf("cut at byte %d of %d, then %d zeros: %d segments are reported damaged", cut-ends[1], ends[2]-ends[1], zeros, damaged)
			}
			crash(r)
		}
	}
}

func TestDamageIsReportedAndSkipped(t *testing.T) {
	sink := newMemorySink()
	sink.before = fail
	dir := t.TempDir()
	opts := fast()
	r := open(t, dir, sink, opts)
	record(t, r, 0, 3)
	first := r.spool.last().size
	r.mu.Lock()
	if err := r.spool.roll(2); err != nil {
		t.Fatal(err)
	}
	r.mu.Unlock()
	record(t, r, 3, 5)
	crash(r)
	whole, err := os.ReadFile(r.spool.path(1))
	if err != nil {
		t.Fatal(err)
	}
	n, end := 0, 0 // the bytes of the second record, which follows the header and the first
	for range 3 {
		_, size, err := nextRecord(whole[end:])
		if err != nil {
			t.Fatal(err)
		}
		n, end = end, end+size
	}
	for at := n; at < end && at < int(first); at++ {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			copied := t.TempDir()
			if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			damaged := slices.Clone(whole)
			damaged[at] ^= 1 << (at % 8)
			name := filepath.Join(copied, filepath.Base(r.spool.path(1)))
			if err := os.WriteFile(name, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			opts := fast()
			opts.Logger = slog.New(slog.NewTextHandler(&log, nil))
			sink := newMemorySink()
			r := open(t, copied, sink, opts)
			record(t, r, 5, 6)
			drain(t, r)
			if err := r.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got, want := sink.ids(), []string{"0", "3", "4", "5"}; !slices.Equal(got, want) {
				t.Errorf("stored %v, want %v", got, want)
			}
			if r.Damaged() != 1 || strings.Count(log.String(), "level=ERROR") != 1 || !strings.Contains(log.String(), fmt.Sprintf("offset=%d", n)) {
				t.Errorf("%d damaged segments, log:\n%s", r.Damaged(), &log)
			}
			if kept, err := os.ReadFile(name + damagedExt); err != nil || !bytes.Equal(kept, damaged) {
				t.Errorf("the damaged segment is not kept: %v", err)
			}
			if left := segments(t, copied); !slices.Equal(left, []int64{2}) {
				t.Errorf("segments %v are left", left)
			}
		})
	}
}

// A file that is damaged while it is being written to is left behind.
func TestDamageOfTheLastSegment(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(name string) error
		want   []string
	}{
		{"truncated", func(name string) error { return os.Truncate(name, 20) }, nil},
		{"removed", os.Remove, nil},
		{"overwritten", func(name string) error { return overwrite(name, -1) }, []string{"0", "1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sink := newMemorySink()
			opts := fast()
			opts.FlushInterval = time.Hour
			r := open(t, t.TempDir(), sink, opts)
			record(t, r, 0, 3)
			if err := c.damage(r.spool.path(1)); err != nil {
				t.Fatal(err)
			}
			drain(t, r)
			record(t, r, 3, 5)
			drain(t, r)
			if got, want := sink.ids(), append(c.want, "3", "4"); !slices.Equal(got, want) {
				t.Errorf("stored %v, want %v", got, want)
			}
			if r.Damaged() != 1 {
				t.Errorf("%d segments are reported damaged", r.Damaged())
			}
		})
	}
}

// overwrite changes the byte at offset of a file, counted from its end if it
// is negative.
func overwrite(name string, offset int) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if offset < 0 {
		offset += len(b)
	}
	b[offset]++
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	return errors.Join(err, f.Close())
}

func TestARecordOfANewerVersionStopsTheStart(t *testing.T) {
	dir, name := spooled(t, 1)
	rec := testRecord(1)
	b := appendRecord(nil, &rec)
	b[recordHeader] = headerVersion + 1
	seal(b)
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if r, err := OpenRecorder(t.Context(), dir, newMemorySink(), fast()); !errors.Is(err, errVersion) {
		t.Fatalf("opened %v, %v", r, err)
	}
}

func TestOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	sink := newMemorySink()
	r := open(t, dir, sink, fast())
	if _, err := OpenRecorder(t.Context(), dir, sink, fast()); err == nil || !strings.Contains(err.Error(), "another process is using it") {
		t.Fatalf("opened twice: %v", err)
	}
	crash(r)
	open(t, dir, sink, fast())
}

func TestTheIDOfASpoolStays(t *testing.T) {
	dir := t.TempDir()
	sink := newMemorySink()
	r := open(t, dir, sink, fast())
	crash(r)
	if again := open(t, dir, sink, fast()); again.id != r.id || r.id == "" {
		t.Fatalf("the id was %q and is %q", r.id, again.id)
	}
	if other := open(t, t.TempDir(), sink, fast()); other.id == r.id {
		t.Fatal("two spools have one id")
	}
	crash(r)
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, idFile), []byte("no id"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenRecorder(t.Context(), broken, sink, fast()); err == nil {
		t.Fatal("a spool with a broken id was opened")
	}
}

func TestASpoolThatWasDeletedStartsAfterTheStoredPosition(t *testing.T) {
	sink := newMemorySink()
	dir := t.TempDir()
	opts := fast()
	opts.SegmentBytes = 500
	r := open(t, dir, sink, opts)
	record(t, r, 0, 10)
	drain(t, r)
	crash(r)
	for _, n := range segments(t, dir) {
		if err := os.Remove(r.spool.path(n)); err != nil {
			t.Fatal(err)
		}
	}
	r = open(t, dir, sink, opts)
	record(t, r, 10, 20)
	drain(t, r)
	wantIDs(t, sink, 0, 20)
}

// After a loss of power the database may have what the spool lost.
func TestASpoolThatEndsBeforeTheStoredPosition(t *testing.T) {
	sink := newMemorySink()
	dir := t.TempDir()
	r := open(t, dir, sink, fast())
	record(t, r, 0, 10)
	drain(t, r)
	crash(r)
	if err := os.Truncate(r.spool.path(1), r.spool.last().size-100); err != nil {
		t.Fatal(err)
	}
	r = open(t, dir, sink, fast())
	record(t, r, 10, 20)
	drain(t, r)
	wantIDs(t, sink, 0, 20)
}

func TestARestoredDatabaseGetsWhatTheSpoolStillHas(t *testing.T) {
	sink := newMemorySink()
	dir := t.TempDir()
	r := open(t, dir, sink, fast())
	record(t, r, 0, 5)
	drain(t, r)
	backup := sink.positions[r.id]
	record(t, r, 5, 10)
	drain(t, r)

	crash(r)
	sink.positions[r.id], sink.events = backup, sink.events[:5]
	r = open(t, dir, sink, fast())
	drain(t, r)
	wantIDs(t, sink, 0, 10)

	// A standby that is behind may take over while the process runs.
	sink.mu.Lock()
	sink.positions[r.id], sink.events = backup, sink.events[:5]
	sink.mu.Unlock()
	record(t, r, 10, 12)
	drain(t, r)
	wantIDs(t, sink, 0, 12)
}

func TestTwoSpoolsWithOneIDStopStoring(t *testing.T) {
	sink := newMemorySink()
	r := open(t, t.TempDir(), sink, fast())
	record(t, r, 0, 3)
	drain(t, r)
	attempts := make(chan struct{})
	var mine Position
	sink.set(func(b Batch) error {
		select {
		case attempts <- struct{}{}:
		default:
		}
		return nil
	}, nil)
	sink.mu.Lock()
	mine = sink.positions[r.id]
	sink.positions[r.id] = Position{mine.Segment, mine.Offset + 1000}
	sink.mu.Unlock()
	record(t, r, 3, 5)
	for range 3 {
		<-attempts
	}
	wantIDs(t, sink, 0, 3)
	sink.mu.Lock()
	sink.positions[r.id] = mine
	sink.mu.Unlock()
	drain(t, r)
	wantIDs(t, sink, 0, 5)
}

func TestCloseStoresAndRefuses(t *testing.T) {
	sink := newMemorySink()
	opts := fast()
	opts.FlushInterval = time.Hour
	r := open(t, t.TempDir(), sink, opts)
	record(t, r, 0, 5)
	for range 2 {
		if err := r.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wantIDs(t, sink, 0, 5)
	if err := r.Record(testRecord(5)); !problem.Is(err, problem.Unavailable) {
		t.Fatalf("recorded after Close: %v", err)
	}
}

func TestCloseSaysWhatIsLeft(t *testing.T) {
	sink := newMemorySink()
	sink.before = fail
	dir := t.TempDir()
	r := open(t, dir, sink, fast())
	record(t, r, 0, 5)
	if err := r.Close(timeout(t, time.Millisecond)); err == nil || !strings.Contains(err.Error(), "5 records") {
		t.Fatalf("Close: %v", err)
	}
	sink.set(nil, nil)
	drain(t, open(t, dir, sink, fast()))
	wantIDs(t, sink, 0, 5)
}

// disk is a file system with a fault.
type disk struct {
	mu     sync.Mutex
	free   int // bytes that can still be written; -1 for no bound
	fault  error
	stuck  bool // Truncate fails
	synced chan string
}

type diskFile struct {
	*os.File
	disk *disk
}

func (d *disk) set(free int, fault error, stuck bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.free, d.fault, d.stuck = free, fault, stuck
}

func (d *disk) open(name string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.free == 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: d.fault}
	}
	f, err := openFile(name)
	if err != nil {
		return nil, err
	}
	return diskFile{f.(*os.File), d}, nil
}

func (f diskFile) Write(b []byte) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.disk.free < 0 || len(b) <= f.disk.free {
		f.disk.free = max(-1, f.disk.free-len(b))
		return f.File.Write(b)
	}
	n, err := f.File.Write(b[:f.disk.free])
	f.disk.free = 0
	if err != nil {
		return n, err
	}
	return n, f.disk.fault
}

func (f diskFile) Truncate(size int64) error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.disk.stuck {
		return syscall.EIO
	}
	return f.File.Truncate(size)
}

func (f diskFile) Sync() error {
	if f.disk.synced != nil {
		select {
		case f.disk.synced <- filepath.Base(f.Name()):
		default:
		}
	}
	return f.File.Sync()
}

func TestAFullDisk(t *testing.T) {
	size := func() int { rec := testRecord(0); return len(appendRecord(nil, &rec)) }()
	for _, c := range []struct {
		name  string
		fault error
		stuck bool
		code  problem.Code
	}{
		{"full", syscall.ENOSPC, false, problem.StorageFull},
		{"over quota", syscall.EDQUOT, false, problem.StorageFull},
		{"broken", syscall.EIO, false, problem.Unavailable},
		{"short write", nil, false, problem.Unavailable},
		{"full and cannot be cut back", syscall.ENOSPC, true, problem.StorageFull},
	} {
		t.Run(c.name, func(t *testing.T) {
			for part := 0; part < size; part += 11 {
				sink := newMemorySink()
				sink.before = fail
				d := &disk{free: len(appendHeader(nil, ident.New("spool_"), 1)) + 3*size + part, fault: c.fault, stuck: c.stuck}
				dir := t.TempDir()
				opts := fast()
				opts.open = d.open
				opts.SegmentBytes = int64(5 * size)
				r := open(t, dir, sink, opts)
				record(t, r, 0, 3)
				if err := r.Record(testRecord(3)); !problem.Is(err, c.code) {
					t.Fatalf("after %d bytes of a record: %v", part, err)
				}
				if err := r.Record(testRecord(3)); err == nil {
					t.Fatal("a record was accepted by a full disk")
				}
				if part%2 == 0 { // what was refused is not there after a crash either, nor hides what follows
					d.set(0, c.fault, false)
					r.Record(testRecord(3))
					crash(r)
					d.set(-1, nil, false)
					r = open(t, dir, sink, opts)
				}
				d.set(-1, nil, false)
				record(t, r, 3, 20)
				sink.set(nil, nil)
				drain(t, r)
				wantIDs(t, sink, 0, 20)
				if r.Damaged() != 0 {
					t.Fatal("damage is reported")
				}
				crash(r)
			}
		})
	}
}

func TestADiskWithoutRoomForANewSegment(t *testing.T) {
	sink := newMemorySink()
	sink.before = fail
	d := &disk{free: -1, fault: syscall.ENOSPC}
	opts := fast()
	opts.open = d.open
	opts.SegmentBytes = 1
	r := open(t, t.TempDir(), sink, opts)
	record(t, r, 0, 2)
	d.set(0, syscall.ENOSPC, false)
	if err := r.Record(testRecord(2)); !problem.Is(err, problem.StorageFull) {
		t.Fatal(err)
	}
	d.set(-1, nil, false)
	record(t, r, 2, 4)
	sink.set(nil, nil)
	drain(t, r)
	wantIDs(t, sink, 0, 4)
}

func TestWhatWaitsIsSyncedInTheBackground(t *testing.T) {
	sink := newMemorySink()
	sink.before = fail
	d := &disk{free: -1, synced: make(chan string, 100)}
	opts := fast()
	opts.open = d.open
	opts.SyncInterval = time.Millisecond
	opts.SegmentBytes = 1
	r := open(t, t.TempDir(), sink, opts)
	record(t, r, 0, 3)
	want := map[string]bool{}
	for n := range int64(3) {
		want[filepath.Base(r.spool.path(n+1))] = true
	}
	for len(want) > 0 {
		select {
		case name := <-d.synced:
			delete(want, name)
		case <-time.After(10 * time.Second):
			t.Fatalf("%v are not synced", want)
		}
	}
}

func TestRecordsTooLargeAreRefused(t *testing.T) {
	sink := newMemorySink()
	r := open(t, t.TempDir(), sink, fast())
	rec := testRecord(0)
	rec.Event.Path = strings.Repeat("x", maxPayload)
	if err := r.Record(rec); err == nil {
		t.Fatal("accepted")
	}
	rec.Event.Path = strings.Repeat("x", maxPayload-1000)
	for range 3 {
		if err := r.Record(rec); err != nil {
			t.Fatal(err)
		}
	}
	drain(t, r)
	if len(sink.events) != 3 || sink.events[2].Path != rec.Event.Path {
		t.Fatalf("%d events are stored", len(sink.events))
	}
}

func BenchmarkRecord(b *testing.B) {
	for _, parallel := range []bool{false, true} {
		b.Run(fmt.Sprintf("parallel=%v", parallel), func(b *testing.B) {
			r := open(b, b.TempDir(), discard{}, Options{Logger: quiet})
			rec := testRecord(1)
			b.ReportAllocs()
			if parallel {
				b.SetParallelism(32)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := r.Record(rec); err != nil {
							b.Error(err)
						}
					}
				})
				return
			}
			for b.Loop() {
				if err := r.Record(rec); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// discard is a Sink that costs nothing.
type discard struct{}

func (discard) Flush(context.Context, Batch) error                     { return nil }
func (discard) SpoolState(context.Context, string) (SpoolState, error) { return SpoolState{}, nil }
func (discard) TakeSpool(context.Context, string, Run, string, time.Time) (SpoolState, error) {
	return SpoolState{}, nil
}

func BenchmarkDrainIdle(b *testing.B) {
	r := open(b, b.TempDir(), discard{}, Options{Logger: quiet})
	for b.Loop() {
		if err := r.Drain(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// What is forgotten is stored and in no file of the spool, while others go on
// recording; a new process finds the spool in order.
func TestForget(t *testing.T) {
	dir, sink := t.TempDir(), newMemorySink()
	r := open(t, dir, sink, fast())
	inFiles := func(n int) bool {
		t.Helper()
		found := false
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			found = found || bytes.Contains(b, []byte(testRecord(n).Event.RequestID+"\x05key_1"))
		}
		return found
	}
	const each = 200
	for round := range 10 {
		from := round * each
		record(t, r, from, from+each/2)
		if !inFiles(from + each/2 - 1) {
			t.Fatal("this test does not find what is in the spool")
		}
		var recording sync.WaitGroup
		recording.Go(func() { record(t, r, from+each/2, from+each) })
		if err := r.Forget(timeout(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
		for n := from; n < from+each/2; n++ {
			if inFiles(n) {
				t.Fatalf("record %d is still in a file of the spool", n)
			}
		}
		recording.Wait()
	}
	drain(t, r)
	wantIDs(t, sink, 0, 10*each)
	if err := r.Forget(timeout(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := r.Forget(timeout(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	crash(r)
	r = open(t, dir, sink, fast())
	record(t, r, 10*each, 10*each+5)
	drain(t, r)
	wantIDs(t, sink, 0, 10*each+5)

	sink.set(fail, nil)
	record(t, r, 10*each+5, 10*each+6)
	if err := r.Forget(timeout(t, 50*time.Millisecond)); !problem.Is(err, problem.Unavailable) {
		t.Errorf("forgotten while the database is away: %v", err)
	}
	sink.set(nil, nil)
	if err := r.Forget(timeout(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	if inFiles(10*each + 5) {
		t.Error("the last record is still in a file of the spool")
	}
}

// What is stored leaves the files of the spool after a while by itself.
func TestSegmentAge(t *testing.T) {
	dir, sink := t.TempDir(), newMemorySink()
	opts := fast()
	opts.SegmentAge, opts.SyncInterval = 20*time.Millisecond, 5*time.Millisecond
	r := open(t, dir, sink, opts)
	record(t, r, 0, 10)
	drain(t, r)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		size := int64(0)
		entries, err := filepath.Glob(filepath.Join(dir, "*"+segmentExt))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range entries {
			if info, err := os.Stat(name); err == nil {
				size += info.Size()
			}
		}
		if size == 0 && len(entries) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are still in %d segments", size, len(entries))
		}
	}
	record(t, r, 10, 20)
	drain(t, r)
	wantIDs(t, sink, 0, 20)
}

// holds reports whether a file of the directory holds what was recorded.
func holds(t testing.TB, dir string, n int) bool {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(testRecord(n).Event.RequestID+"\x05key_1")) {
			return true
		}
	}
	return false
}

// Wherever a process ends on the way of forgetting, the next one that is asked
// to forget does.
func TestForgetAfterACrash(t *testing.T) {
	for _, tt := range []struct {
		name  string
		crash func(t *testing.T, r *Recorder, sink *memorySink)
	}{
		{"before the end of the segment", func(t *testing.T, r *Recorder, sink *memorySink) {}},
		{"between the end of the segment and its flush", func(t *testing.T, r *Recorder, sink *memorySink) {
			sink.set(fail, nil)
			if err := r.Forget(timeout(t, 20*time.Millisecond)); err == nil {
				t.Fatal("forgotten without a flush")
			}
		}},
		{"after the commit of the flush", func(t *testing.T, r *Recorder, sink *memorySink) {
			sink.set(nil, fail) // the position tells that it was committed
			r.Forget(timeout(t, time.Millisecond))
		}},
		{"after the flush and before the position of the next segment is stored", func(t *testing.T, r *Recorder, sink *memorySink) {
			sink.set(func(b Batch) error {
				if len(b.Events) == 0 {
					return errSink
				}
				return nil
			}, nil)
			if err := r.Forget(timeout(t, 100*time.Millisecond)); err == nil {
				t.Fatal("forgotten without the position")
			}
		}},
		{"before the removal", func(t *testing.T, r *Recorder, sink *memorySink) {
			r.opts.remove = func(string) error { return syscall.EIO }
			if err := r.Forget(timeout(t, 10*time.Second)); !errors.Is(err, ErrKept) {
				t.Fatalf("forgotten without the removal: %v", err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, sink := t.TempDir(), newMemorySink()
			opts := fast()
			opts.SyncInterval = -1 // nothing but Forget ends a segment
			r := open(t, dir, sink, opts)
			record(t, r, 0, 10)
			if !holds(t, dir, 9) {
				t.Fatal("this test does not find what is in the spool")
			}
			tt.crash(t, r, sink)
			crash(r)
			sink.set(nil, nil)
			r = open(t, dir, sink, opts)
			if err := r.Forget(timeout(t, 10*time.Second)); err != nil {
				t.Fatal(err)
			}
			for n := range 10 {
				if holds(t, dir, n) {
					t.Fatalf("record %d is still in a file of the spool", n)
				}
			}
			wantIDs(t, sink, 0, 10)
			record(t, r, 10, 20)
			drain(t, r)
			wantIDs(t, sink, 0, 20)
		})
	}
}

// A file that cannot be removed is not forgotten: that is said, tried again in
// the background and by the next request, and over once it works.
func TestForgetWhatCannotBeRemoved(t *testing.T) {
	for name, fault := range map[string]error{"EACCES": syscall.EACCES, "EIO": syscall.EIO, "EROFS": syscall.EROFS} {
		t.Run(name, func(t *testing.T) {
			dir, sink := t.TempDir(), newMemorySink()
			var failing atomic.Bool
			var dirSyncs atomic.Int64
			opts := fast()
			opts.SyncInterval = 5 * time.Millisecond
			opts.remove = func(name string) error {
				if failing.Load() {
					return &fs.PathError{Op: "remove", Path: name, Err: fault}
				}
				return os.Remove(name)
			}
			opts.syncDir = func(dir string) error { dirSyncs.Add(1); return durable.SyncDir(dir) }
			r := open(t, dir, sink, opts)
			failing.Store(true)
			record(t, r, 0, 10)
			for range 2 {
				err := r.Forget(timeout(t, 10*time.Second))
				if !errors.Is(err, ErrKept) || !errors.Is(err, fault) || !problem.Is(err, problem.Unavailable) {
					t.Fatalf("forgotten: %v", err)
				}
				if !holds(t, dir, 0) {
					t.Fatal("this test does not find what is in the spool")
				}
			}
			failing.Store(false)
			if name == "EACCES" { // in the background
				for range 1000 {
					if !holds(t, dir, 0) {
						break
					}
					time.Sleep(5 * time.Millisecond)
				}
			} else if before := dirSyncs.Load(); true {
				if err := r.Forget(timeout(t, 10*time.Second)); err != nil {
					t.Fatal(err)
				}
				if dirSyncs.Load() == before {
					t.Error("the removal is not durable: the directory was not synced")
				}
			}
			if holds(t, dir, 0) {
				t.Error("the record is still in a file of the spool")
			}
			wantIDs(t, sink, 0, 10)
		})
	}
	t.Run("a directory that cannot be synced", func(t *testing.T) {
		dir, sink := t.TempDir(), newMemorySink()
		opts := fast()
		opts.SyncInterval = -1
		opts.syncDir = func(string) error { return syscall.EIO }
		r := open(t, dir, sink, opts)
		record(t, r, 0, 1)
		if err := r.Forget(timeout(t, 10*time.Second)); !errors.Is(err, ErrKept) {
			t.Errorf("forgotten, though a loss of power brings it back: %v", err)
		}
	})
	t.Run("what a loss of power has left in the spare file", func(t *testing.T) {
		dir, sink := t.TempDir(), newMemorySink()
		r := open(t, dir, sink, fast())
		record(t, r, 0, 10)
		name := r.spool.path(r.spool.last().number)
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		drain(t, r)
		crash(r)
		if err := os.WriteFile(filepath.Join(dir, spareName), b, 0o600); err != nil {
			t.Fatal(err)
		}
		opts := fast()
		opts.SyncInterval = -1
		r = open(t, dir, sink, opts)
		if err := r.Forget(timeout(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
		if holds(t, dir, 0) {
			t.Error("the record is still in the spare file")
		}
	})
}
