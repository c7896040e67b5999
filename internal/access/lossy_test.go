package access

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// lossyDisk is a file system as Linux has them: what a failed sync could not
// write is in memory only from then on, and later syncs say that all is well.
type lossyDisk struct {
	mu       sync.Mutex
	files    []*lossyFile
	failSync int   // the next syncs
	failNext error // the next write
}

type lossyFile struct {
	*os.File
	disk    *lossyDisk
	info    os.FileInfo
	kept    *os.File   // keeps the inode from being another file's
	dropped [][2]int64 // stretches that are in memory only
	synced  int64
}

func (d *lossyDisk) open(name string) (file, error) {
	f, err := openFile(name)
	if err != nil {
		return nil, err
	}
	l := &lossyFile{File: f.(*os.File), disk: d}
	d.mu.Lock()
	defer d.mu.Unlock()
	if l.info, err = l.Stat(); err != nil {
		return nil, err
	}
	d.files = append(d.files, l)
	l.kept, err = os.Open(name)
	return l, err
}

func (f *lossyFile) Write(b []byte) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if err := f.disk.failNext; err != nil {
		f.disk.failNext = nil
		n, _ := f.File.Write(b[:len(b)/2])
		return n, err
	}
	return f.File.Write(b)
}

func (f *lossyFile) Sync() error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	from := f.synced
	f.synced = info.Size()
	if f.disk.failSync > 0 {
		f.disk.failSync--
		f.dropped = append(f.dropped, [2]int64{from, f.synced})
		return syscall.EIO
	}
	return nil
}

// powerLoss takes away what is in memory only. A file that has taken the place
// of another one was synced before that.
func (d *lossyDisk) powerLoss(t *testing.T) {
	t.Helper()
	for _, l := range d.files {
		defer l.kept.Close()
		info, err := os.Stat(l.Name())
		if errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(info, l.info) {
			continue
		}
		f, err := os.OpenFile(l.Name(), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, gone := range l.dropped {
			if _, err := f.WriteAt(make([]byte, gone[1]-gone[0]), gone[0]); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(f.Truncate(l.synced), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// safe waits until everything recorded is on the disk, as far as r knows.
func safe(t *testing.T, r *Recorder) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		r.removing.Lock()
		r.mu.Lock()
		s := &r.spool
		done := len(s.unsafe)+len(s.sealed) == 0 && !s.written
		r.mu.Unlock()
		r.removing.Unlock()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("what was recorded does not become safe")
		}
	}
}

// What was answered and synced, or should have been, outlives a loss of power
// after a failed sync: the segment is written again elsewhere, and nothing is
// appended to it any more. The same after a failed write.
func TestAFailedSync(t *testing.T) {
	for _, c := range []struct {
		name    string
		fault   func(d *lossyDisk)
		refused bool
	}{
		{"none", func(*lossyDisk) {}, false},
		{"one sync", func(d *lossyDisk) { d.failSync = 1 }, false},
		{"several syncs", func(d *lossyDisk) { d.failSync = 4 }, false},
		{"write", func(d *lossyDisk) { d.failNext = syscall.EIO }, true},
		{"write and sync", func(d *lossyDisk) { d.failNext, d.failSync = syscall.EIO, 2 }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			sink := newMemorySink()
			sink.before = fail // the database is away for all that time
			d := &lossyDisk{}
			dir := t.TempDir()
			opts := fast()
			opts.open = d.open
			opts.SyncInterval = 5 * time.Millisecond
			r := open(t, dir, sink, opts)
			record(t, r, 0, 3)
			safe(t, r)
			d.mu.Lock()
			c.fault(d)
			d.mu.Unlock()
			n := 3
			if c.refused {
				if err := r.Record(testRecord(n)); err == nil {
					t.Fatal("a record that could not be written is accepted")
				}
			}
			for range 3 {
				record(t, r, n, n+3)
				n += 3
				safe(t, r)
			}
			begun := len(segments(t, dir))
			crash(r)
			d.powerLoss(t)
			if want := c.name != "none"; (begun > 1) != want {
				t.Errorf("%d segments were begun", begun)
			}
			sink.set(nil, nil)
			r = open(t, dir, sink, fast())
			drain(t, r)
			if r.Damaged() != 0 {
				t.Errorf("%d segments are damaged", r.Damaged())
			}
			wantIDs(t, sink, 0, n)
		})
	}
}

// While a segment cannot be written again either, it is known to be unsafe; once
// the database has what it holds, it is not.
func TestAnUnsafeSegmentThatIsStored(t *testing.T) {
	sink := newMemorySink()
	sink.before = fail
	d := &lossyDisk{failSync: 1}
	opts := fast()
	opts.open = d.open
	opts.SyncInterval = -1
	r := open(t, t.TempDir(), sink, opts)
	defer d.powerLoss(t)
	record(t, r, 0, 3)
	if err := os.Mkdir(r.spool.path(1)+newExt, 0o700); err != nil { // in the way of the copy
		t.Fatal(err)
	}
	for range 2 {
		if err := r.syncFiles(); err == nil || len(r.spool.unsafe) != 1 {
			t.Fatalf("the failed sync: %v, unsafe %v", err, r.spool.unsafe)
		}
	}
	record(t, r, 3, 5)
	sink.set(nil, nil)
	drain(t, r)
	if err := r.syncFiles(); err != nil || len(r.spool.unsafe) != 0 {
		t.Fatalf("once it is stored: %v, unsafe %v", err, r.spool.unsafe)
	}
	wantIDs(t, sink, 0, 5)
}
