//go:build linux

package faults

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orgd/orgd/internal/testkit"
)

// settled is how long before a loss of power a request must have been answered
// so that the access log must have it: a second by what is promised, and what a
// machine that is busy adds.
const settled = 2 * time.Second

// worked is orgd's work on a disk that is recorded.
type worked struct {
	*testkit.BlockDisk
	j            *journal
	w            *world
	made, ending int // positions: when the world was made, and when orgd was killed
}

// work lets clients work on a new disk for some time, while disturb, if there
// is one, does something to it, and kills orgd.
func work(t *testing.T, blockSize, options string, d time.Duration, disturb func(*testkit.BlockDisk)) *worked {
	t.Helper()
	disk := testkit.NewBlockDisk(t, 512, "ext4", "-b", blockSize, "-E", "nodiscard")
	if err := disk.Mount("ext4", options); err != nil {
		t.Fatal(err)
	}
	unix.Sync()
	disk.Record()
	out := &worked{BlockDisk: disk, j: newJournal()}
	out.j.position = disk.Position
	p := start(t, filepath.Join(disk.Dir, "data"))
	out.w = makeWorld(t, p, 2, 8)
	out.made = disk.Position()
	stop := out.w.load(out.j, p.at)
	if disturb != nil {
		time.Sleep(d / 3)
		disturb(disk)
	}
	time.Sleep(d)
	p.kill()
	stop()
	out.ending = disk.Position()
	return out
}

// after checks what a cut at a position leaves.
func (x *worked) after(t *testing.T, j *journal, position int, kept float64) (f found) {
	t.Helper()
	cut := x.Cut(position, kept, rand.New(rand.NewPCG(uint64(position), uint64(kept*100))))
	defer cut.Close()
	u := until{position, x.TimeOf(position).Add(-settled)}
	err := cut.Mount("ext4", "")
	if err != nil {
		return x.w.nothing(j, u, err)
	}
	p, err := tryStart(t, filepath.Join(cut.Dir, "data"))
	if err != nil {
		return x.w.nothing(j, u, err)
	}
	defer p.kill()
	if f = x.w.check(j, p.url, u); j == x.j && (f.broken > 0 || f.lost > 0) {
		t.Logf("after a cut at %d of %d with %v of what was not flushed: %s\n%s", position, x.ending, kept, f, tail(p.text()))
	}
	return f
}

// tail returns the last lines of a log, without those of requests.
func tail(log string) string {
	var kept []string
	for line := range strings.Lines(log) {
		if !strings.Contains(line, "msg=request ") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept[max(0, len(kept)-12):], "")
}

// The power is cut at any write, with any part of what was not flushed. In the
// control the file system does not flush.
func TestPowerCut(t *testing.T) {
	for _, blockSize := range []string{"4096", "1024"} {
		t.Run(blockSize, func(t *testing.T) {
			n := rounds(t, 10)
			cut := func(options string, n int) (f found) {
				x := work(t, blockSize, options, 2*time.Second, nil)
				for i := range n {
					position := x.ending - rand.IntN(x.ending-x.made)
					if i == 0 {
						position = x.ending
					}
					f.add(x.after(t, x.j, position, []float64{0, 0.5, 1}[i%3]))
				}
				t.Logf("%d writes and flushes", x.ending)
				return f
			}
			report(t, row{fmt.Sprintf("power cut, SQLite on ext4 with blocks of %s", blockSize), n, cut("", n), cut("barrier=0", 3)})
		})
	}
}

// The power is cut while orgd starts for the first time: it starts again.
func TestPowerCutAtTheFirstStart(t *testing.T) {
	n := rounds(t, 6)
	x := work(t, "4096", "", 0, nil)
	for i := range n {
		position := rand.IntN(x.made)
		cut := x.Cut(position, []float64{0, 0.5, 1}[i%3], rand.New(rand.NewPCG(uint64(i), 1)))
		if err := cut.Mount("ext4", ""); err != nil {
			t.Fatal(err)
		}
		if p, err := tryStart(t, filepath.Join(cut.Dir, "data")); err != nil {
			t.Errorf("after a cut at %d of %d: %v", position, x.made, err)
		} else {
			p.kill()
		}
		cut.Close()
	}
}

// One write, or a few, fail with an I/O error; orgd goes on, and later the power
// is cut.
func TestWriteError(t *testing.T) {
	for _, blockSize := range []string{"4096", "1024"} {
		t.Run(blockSize, func(t *testing.T) {
			n := rounds(t, 5)
			r := row{fault: fmt.Sprintf("I/O error of the disk, then a power cut, SQLite on ext4 with blocks of %s", blockSize), rounds: n}
			for i := range n {
				failed := 0
				x := work(t, blockSize, "", time.Second, func(d *testkit.BlockDisk) {
					at, many := 0, 1+i%2*3
					d.FailWrites(func(write int) error {
						if at == 0 {
							at = write + 1 + rand.IntN(20)
						}
						if write >= at && failed < many {
							failed++
							return unix.EIO
						}
						return nil
					})
				})
				x.FailWrites(nil)
				if failed == 0 {
					t.Error("no write failed")
				}
				for status, count := range x.j.strange {
					t.Errorf("%d answers are %s", count, status)
				}
				r.found.add(x.after(t, x.j, x.ending, 0))
				r.control.add(x.after(t, x.j.credulous(), x.ending, 0))
			}
			report(t, r)
		})
	}
}

// The disk gets full while clients write, and has space again later.
func TestFullDisk(t *testing.T) {
	n := rounds(t, 3)
	disk := testkit.NewDisk(t, "256")
	dir := filepath.Join(disk.Dir, "data")
	j := newJournal()
	p := start(t, dir)
	w := makeWorld(t, p, 2, 8)
	for range n {
		stop := w.load(j, p.at)
		time.Sleep(200 * time.Millisecond)
		disk.Fill()
		time.Sleep(500 * time.Millisecond)
		p.kill()
		stop()
		disk.Free()
		p = start(t, dir)
		stop = w.load(j, p.at)
		time.Sleep(200 * time.Millisecond)
		disk.Fill()
		time.Sleep(300 * time.Millisecond)
		disk.Free()
		time.Sleep(300 * time.Millisecond)
		stop()
	}
	for status, count := range j.strange {
		t.Errorf("%d answers are %s", count, status)
	}
	report(t, row{"full disk, with kill -9 and without", n, w.check(j, p.url, everything()), w.check(j.credulous(), p.url, everything())})
}

// The data directory is copied file by file under the load: the copy is refused,
// or has all that was acknowledged before it was begun. The control is a copy
// without the write-ahead log, which is noticed or lacks changes.
func TestTornCopy(t *testing.T) {
	n := rounds(t, 4)
	dir := filepath.Join(t.TempDir(), "data")
	p := start(t, dir)
	j := newJournal()
	w := makeWorld(t, p, 2, 8)
	stop := w.load(j, p.at)
	r := row{fault: "copy of a live data directory", rounds: n}
	refusals := 0
	for i := range n {
		time.Sleep(300 * time.Millisecond)
		before := newJournal()
		before.requests = j.all()
		copied := filepath.Join(t.TempDir(), "data")
		copyFiles(t, dir, copied, "", i)
		// At the same moment: what the log has is in the database a while later.
		bare := filepath.Join(t.TempDir(), "data")
		copyFiles(t, dir, bare, "-wal", 0)
		check := func(copied string, f *found) {
			q, err := tryStart(t, copied)
			if err != nil {
				t.Logf("refused: %v", err)
				refusals++
				return
			}
			defer q.kill()
			got := w.check(before, q.url, until{1 << 60, time.Time{}})
			got.foreign = 0 // what was sent while the copy was made
			f.add(got)
		}
		check(copied, &r.found)
		refusalsBefore := refusals
		check(bare, &r.control)
		if refusals > refusalsBefore {
			r.control.lost++ // it was noticed
		}
	}
	stop()
	r.acknowledged = max(r.acknowledged, j.count())
	t.Logf("%d copies were refused", refusals)
	report(t, r)
}

// copyFiles copies a directory as cp does, one file after the other, without
// files that end in but. Odd orders begin with the last file.
func copyFiles(t *testing.T, from, to, but string, order int) {
	t.Helper()
	entries, err := os.ReadDir(from)
	if err == nil {
		err = os.Mkdir(to, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		e := entries[i]
		if order%2 == 1 {
			e = entries[len(entries)-1-i]
		}
		if but != "" && strings.HasSuffix(e.Name(), but) {
			continue
		}
		if e.IsDir() {
			copyFiles(t, filepath.Join(from, e.Name()), filepath.Join(to, e.Name()), but, order)
			continue
		}
		b, err := os.ReadFile(filepath.Join(from, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, e.Name()), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
