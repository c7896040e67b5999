package access

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orgd/orgd/internal/problem"
)

// On a full disk, recording goes on for at least a segment; and when there is
// space again it goes on without a restart, with that reserve restored.
func TestAFullDiskTakesASegmentMore(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("mounting a small file system: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	fill := filepath.Join(dir, "fill")

	sink := newMemorySink()
	opts := fast()
	opts.SegmentBytes, opts.MaxBytes = 1<<20, 1<<30
	opts.SyncInterval = time.Millisecond
	r := open(t, filepath.Join(dir, "spool"), sink, opts)
	n := 0
	for round := range 3 {
		f, err := os.Create(fill)
		if err != nil {
			t.Fatal(err)
		}
		for b := make([]byte, 1<<20); len(b) > 0; {
			if _, err := f.Write(b); err != nil {
				b = b[:len(b)/2]
			}
		}
		f.Close()
		sink.set(fail, nil)
		first := n
		_, before := r.Lag()
		for {
			err := r.Record(testRecord(n))
			if problem.Is(err, problem.StorageFull) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if _, after := r.Lag(); after-before < opts.SegmentBytes {
			t.Errorf("round %d: a full disk took %d bytes (%d records), want at least %d", round, after-before, n-first, opts.SegmentBytes)
		}
		if err := os.Remove(fill); err != nil {
			t.Fatal(err)
		}
		sink.set(nil, nil)
		record(t, r, n, n+1)
		n++
		drain(t, r)
		for { // until the background has made the reserve again
			r.mu.Lock()
			reserved := r.spool.spare && r.spool.ahead
			r.mu.Unlock()
			if reserved {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	wantIDs(t, sink, 0, n)
}

// What may wait and what is reserved follow from the size of the disk, unless they
// are given.
func TestTheSpoolSuitsItsDisk(t *testing.T) {
	for _, test := range []struct {
		size          string
		segment, most int64
	}{
		{"32m", 1 << 20, 4 << 20},
		{"128m", 4 << 20, 16 << 20},
		{"512m", 16 << 20, 64 << 20},
		{"16g", 16 << 20, 1 << 30},
	} {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+test.size); err != nil {
			t.Skipf("mounting a small file system: %v", err)
		}
		defer unix.Unmount(dir, unix.MNT_DETACH)
		r := open(t, filepath.Join(dir, "spool"), newMemorySink(), fast())
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
			t.Fatal(err)
		}
		if used := int64(s.Blocks-s.Bfree) * s.Bsize; used > 2*(test.segment+reserveMargin)+32<<10 {
			t.Errorf("%s: the spool takes %d bytes", test.size, used)
		}
		if r.opts.SegmentBytes != test.segment || r.opts.MaxBytes != test.most {
			t.Errorf("%s: segments of %d, and %d may wait", test.size, r.opts.SegmentBytes, r.opts.MaxBytes)
		}
		if r := open(t, filepath.Join(dir, "other"), newMemorySink(), Options{MaxBytes: 2 << 30, Logger: quiet}); r.opts.MaxBytes != 2<<30 {
			t.Errorf("%s: %d may wait, and not what was asked for", test.size, r.opts.MaxBytes)
		}
	}
}

// The space of the spare file is free while it is lent, and taken again after that;
// more than it has is not lent.
func TestTheSpareIsLent(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("mounting a small file system: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	opts := fast()
	opts.SegmentBytes, opts.SyncInterval = 1<<20, time.Hour
	r := open(t, filepath.Join(dir, "spool"), newMemorySink(), opts)
	free := func() int64 {
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
			t.Fatal(err)
		}
		return int64(s.Bavail) * s.Bsize
	}
	before, used := free(), 0
	for range 2 {
		r.Lend(1<<20, func() {
			used++
			if got := free() - before; got < 1<<20 {
				t.Errorf("%d bytes are lent", got)
			}
		})
		if got := free(); got != before {
			t.Errorf("%d bytes are free after the loan, and %d were before", got, before)
		}
	}
	r.Lend(2<<20, func() { t.Error("more was lent than there is") })
	if used != 2 {
		t.Errorf("lent %d times", used)
	}
}
