package store_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/testkit"
)

// TestSQLiteFailedBlock: on ext4, a block whose first write has failed stays one
// that was never written, although later writes and syncs of it succeed. Whatever
// is acknowledged after such a failure, of the log or of a part that the database
// grows by, is there after a loss of power; also if readers keep the log from
// being replaced.
func TestSQLiteFailedBlock(t *testing.T) {
	for _, of := range []string{"log", "database"} {
		for _, test := range []struct{ protected, reading bool }{{true, false}, {true, true}, {false, false}} {
			t.Run(fmt.Sprintf("%s/protected=%v/reading=%v", of, test.protected, test.reading), func(t *testing.T) {
				lost, healed := 0, 0
				for _, failing := range []int{1, 2, 4, 7} {
					missing, whole := loseBlock(t, of == "database", test.protected, test.reading, failing)
					if whole {
						healed++
					}
					if missing == "" {
						continue
					}
					lost++
					if test.protected {
						t.Errorf("write %d has failed: %s", failing, missing)
					}
				}
				t.Logf("%d lost, %d went on", lost, healed)
				if of == "log" && !test.protected && lost == 0 {
					t.Error("the control has lost nothing")
				}
				if healed < 2 {
					t.Errorf("the file system has gone on after %d failures", healed)
				}
			})
		}
	}
}

// loseBlock returns what is lost if a write of the disk fails, empty for nothing,
// and whether the file system has gone on: where it cannot write its own journal,
// it does not.
func loseBlock(t *testing.T, checkpoints, protected, reading bool, failing int) (missing string, goesOn bool) {
	t.Helper()
	disk := testkit.NewBlockDisk(t, 64, "ext4", "-E", "nodiscard")
	defer disk.Close()
	if err := disk.Mount("ext4", ""); err != nil {
		t.Fatal(err)
	}
	var o store.Options
	if !protected {
		o = store.Trusting(o)
	}
	s, err := store.OpenSQLite(t.Context(), filepath.Join(disk.Dir, "data"), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	plantRoot(t, s, "r")
	unix.Sync()
	disk.Record()

	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			if reading {
				testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) error {
					_, err := tx.Org("r")
					time.Sleep(400 * time.Millisecond) // longer than a checkpoint waits
					return err
				})
			}
		}
	}()
	defer func() { close(stop); <-stopped }()

	acknowledged, grown := int64(0), 0
	goesOn = true
	// change repeats a change until it is made.
	change := func(fn func() error) {
		for deadline := time.Now().Add(10 * time.Second); goesOn; time.Sleep(10 * time.Millisecond) {
			err := fn()
			if err == nil {
				return
			}
			if goesOn = !readOnly(disk.Dir); goesOn && (time.Now().After(deadline) ||
				!problem.Is(err, problem.Unavailable) && !problem.Is(err, problem.OutcomeUnknown)) {
				t.Fatalf("write %d has failed: %v", failing, err)
			}
		}
	}
	// arm makes one of the next writes fail.
	arm := func() {
		first := 0
		disk.FailWrites(func(write int) error {
			if first == 0 {
				first = write
			}
			if write == first+failing-1 {
				return unix.EIO
			}
			return nil
		})
	}
	for n := range 12 {
		if n == 2 && !checkpoints {
			arm()
		}
		change(func() error { grown++; return insertMany(s, grown*100, 100) })
		if checkpoints && n%3 == 2 {
			if n == 2 {
				arm()
			}
			change(func() error { return s.Scrub(t.Context()) })
		}
		change(func() error { return update(s, "r") })
		if goesOn {
			acknowledged++
		}
	}
	disk.FailWrites(nil)
	cut := disk.Cut(disk.Position(), 0, rand.New(rand.NewPCG(1, 2)))
	defer cut.Close()
	if err := cut.Mount("ext4", ""); err != nil {
		return err.Error(), goesOn
	}
	left := t.TempDir()
	for _, name := range []string{"orgd.db", "orgd.db-wal"} {
		b, err := os.ReadFile(filepath.Join(cut.Dir, "data", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(left, name), b, 0o600)
		}
		if err != nil {
			return err.Error(), goesOn
		}
	}
	return missingAfter(t, left, acknowledged), goesOn
}

// readOnly reports whether a file system takes no changes any more.
func readOnly(dir string) bool {
	err := os.WriteFile(filepath.Join(dir, "probe"), nil, 0o600)
	return errors.Is(err, unix.EROFS)
}

// A log that cannot be copied, since others have filled the disk, is copied once
// the store can borrow what it grows the database by, and gives more back. With too
// little to borrow nothing of the disk is touched.
func TestALogOnAFullDisk(t *testing.T) {
	disk := testkit.NewDisk(t, "32")
	dir := filepath.Join(disk.Dir, "data")
	s := openSQLite(t, dir, store.Options{})
	plantRoot(t, s, "r")
	wal := func() int64 {
		info, err := os.Stat(filepath.Join(dir, "orgd.db-wal"))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	for wal() < 1<<20 {
		if err := update(s, "r"); err != nil {
			t.Fatal(err)
		}
	}
	disk.Fill()
	refused := func() {
		t.Helper()
		for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if err := update(s, "r"); !problem.Is(err, problem.StorageFull) {
				t.Fatalf("on a full disk: %v", err)
			}
		}
		if size := wal(); size < 1<<20 {
			t.Errorf("the log of %d bytes was copied into nothing", size)
		}
	}
	refused()
	asked := int64(0)
	s.BorrowFrom(func(bytes int64, use func()) { asked = bytes })
	refused()
	if asked <= 0 || asked > wal() {
		t.Errorf("the store wants to borrow %d bytes for a log of %d", asked, wal())
	}
	fill := filepath.Join(disk.Dir, "fill")
	s.BorrowFrom(func(bytes int64, use func()) {
		info, err := os.Stat(fill)
		if err == nil {
			err = os.Truncate(fill, info.Size()-(bytes+4095)/4096*4096)
		}
		if err != nil {
			t.Error(err)
		}
		use()
		f, err := os.OpenFile(fill, os.O_WRONLY, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		if err := unix.Fallocate(int(f.Fd()), 0, 0, info.Size()); err != nil {
			t.Errorf("what was borrowed is not given back: %v", err)
		}
	})
	for end := time.Now().Add(5 * time.Second); update(s, "r") != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("changes are refused although there was space to borrow")
		}
	}
}
