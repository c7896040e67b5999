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
	opts.SegmentBytes = 1 << 20
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
