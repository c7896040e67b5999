package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"

	"github.com/orgd/orgd/internal/durable"
	"github.com/orgd/orgd/internal/problem"
)

const (
	// healPause is the shortest time between two attempts to heal the write-ahead log.
	healPause = 250 * time.Millisecond
	// settleTime is how long a read waits for a commit whose outcome is unknown.
	settleTime = 2 * time.Second
	// healBusy is how long a healing checkpoint waits for readers.
	healBusy = 250 * time.Millisecond
)

// diskState says whether what SQLite has written can be relied on. It is safe
// for concurrent use.
//
// An operating system reports a failed write once, and forgets what it could
// not write: the file then has a hole, and later syncs succeed. In a log that
// means that all that comes after the hole is lost with the power, however often
// it was synced; in a database, that a checkpoint that was reported to have
// failed is half there. So after a failure nothing is changed until the log is
// whole again, see sqliteEngine.heal.
type diskState struct {
	log *slog.Logger
	// trusting ignores failures. It is for the controls of tests.
	trusting bool

	failure atomic.Pointer[diskFailure] // nil while all is well
	// unsettled is closed once it is known whether a commit was made whose
	// outcome was unknown; nil if there is none.
	unsettled atomic.Pointer[chan struct{}]

	mu       sync.Mutex
	failures int // so far
}

type diskFailure struct {
	err   error
	since time.Time
}

// failed notes that a write, a sync or a truncation has failed.
func (d *diskState) failed(err error) {
	if d.trusting {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failures++
	if d.failure.Load() == nil {
		d.failure.Store(&diskFailure{err, time.Now()})
		d.log.Error("the database's disk has failed to write: changes are refused until all that they rest on has been written again", "error", err)
	}
}

// unsettle makes reads wait until a commit is known to have been made or not.
func (d *diskState) unsettle(err error) {
	d.failed(err)
	if d.trusting {
		return
	}
	settled := make(chan struct{})
	d.unsettled.CompareAndSwap(nil, &settled)
}

func (d *diskState) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failures
}

// settle ends the state after a failure, unless there were more of them than
// the caller has seen.
func (d *diskState) settle(seen int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failures != seen {
		return false
	}
	if f := d.failure.Swap(nil); f != nil {
		d.log.Info("the database's disk works again: changes are made", "after", time.Since(f.since).Round(time.Millisecond).String())
	}
	if settled := d.unsettled.Swap(nil); settled != nil {
		close(*settled)
	}
	return true
}

// wait returns once no commit is unsettled, or fails after settleTime. It costs
// nothing while all is well.
func (d *diskState) wait(ctx context.Context) error {
	settled := d.unsettled.Load()
	if settled == nil {
		return nil
	}
	late := time.NewTimer(settleTime)
	defer late.Stop()
	select {
	case <-*settled:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-late.C:
		p := problem.New(problem.Unavailable, "The disk has failed to confirm a change; until it is known whether it was made, nothing can be read.")
		p.RetryAfter = time.Second
		return p
	}
}

// refusal is the error of a change while the disk has failed; nothing was
// changed.
func (d *diskState) refusal(cause error) error {
	if p := sqliteProblem(cause); problem.Is(p, problem.StorageFull) {
		return p
	}
	p := problem.New(problem.Unavailable, "The server's disk has failed to write; nothing was changed.").WithCause(cause)
	p.RetryAfter = time.Second
	return p
}

// sound returns why nothing can be changed at the moment; nil if it can.
func (d *diskState) sound() error {
	if f := d.failure.Load(); f != nil {
		return d.refusal(f.err)
	}
	return nil
}

// heal makes the write-ahead log whole after a failure; the writer goroutine calls it. It
// returns nil at once while all is well.
func (e *sqliteEngine) heal() error {
	if e.disk.failure.Load() == nil {
		return nil
	}
	if time.Since(e.healed) < healPause {
		return e.unhealed
	}
	seen := e.disk.count()
	err := e.renewWAL()
	if err == nil {
		// What is in the log now may be another value than anybody has read.
		e.generations.reset()
		if !e.disk.settle(seen) {
			err = errors.New("a further write has failed")
		}
	}
	e.healed, e.unhealed = time.Now(), err
	return err
}

// renewWAL brings all that is committed into the database, and begins a new
// write-ahead log.
//
// The page cache goes on showing what a failed write should have written. So what
// it has of both files is forgotten first, and the log read anew: from then on it
// is what the disk has of it, which is every commit that was acknowledged. What is
// in the log without having been synced is written once more before anything of
// it is copied: a loss of power on the way would else leave a database that is
// newer than the log that is played back over it. And nothing rests on either file
// before the disk has been asked for what was written, past the cache.
//
// The checkpoint copies the whole log, also what an earlier one has copied: that
// may be what the disk has lost.
func (e *sqliteEngine) renewWAL() (err error) {
	e.checkpoints.Lock()
	defer e.checkpoints.Unlock()
	for _, path := range []string{e.path + "-wal", e.path} {
		if err := durable.Forget(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := forgetIndex(e.path); err != nil {
		return err
	}
	if e.writer == nil {
		if e.writer, err = e.openWriter(); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			e.reopen()
		}
	}()
	if _, err := e.writer.exec(`BEGIN IMMEDIATE`); err != nil {
		return err
	}
	journal, err := e.writer.c.FileControl("main", sqlite3.FCNTL_JOURNAL_POINTER)
	if err != nil {
		return err
	}
	wal, ok := journal.(*walFile)
	if !ok {
		return errors.New("the database has no write-ahead log")
	}
	if err := rewrite(wal); err != nil {
		return err
	}
	copied, err := pagesIn(wal)
	if err != nil {
		return err
	}
	if _, err := e.writer.exec(`ROLLBACK`); err != nil {
		return err
	}
	if err := cachedIsOnDisk(e.path+"-wal", nil); err != nil {
		return err
	}
	if err := e.writer.checkpoint("FULL", healBusy); err != nil {
		return err
	}
	if err := cachedIsOnDisk(e.path, copied); err != nil {
		return err
	}
	if err := e.writer.checkpoint("TRUNCATE", healBusy); err != nil {
		return err
	}
	return wal.Sync(vfs.SYNC_FULL)
}

// errNotOnDisk says that the page cache shows what the disk does not have.
var errNotOnDisk = errors.New("the disk does not have what was written to it")

// span is a part of a file, in bytes.
type span struct{ from, to int64 }

// pagesIn returns which parts of the database a write-ahead log has pages for, in their
// order: those of its frames that have the salt of its header
// (https://sqlite.org/fileformat2.html, section 4.1).
func pagesIn(wal interface {
	io.ReaderAt
	Size() (int64, error)
}) ([]span, error) {
	size, err := wal.Size()
	if err != nil {
		return nil, err
	}
	var header [walHeaderSize]byte
	if size < walHeaderSize {
		return nil, nil
	}
	if _, err := wal.ReadAt(header[:], 0); err != nil {
		return nil, err
	}
	page := int64(binary.BigEndian.Uint32(header[8:]))
	numbers := map[int64]struct{}{}
	for off := int64(walHeaderSize); off+frameHeaderSize+page <= size; off += frameHeaderSize + page {
		var frame [frameHeaderSize]byte
		if _, err := wal.ReadAt(frame[:], off); err != nil {
			return nil, err
		}
		number := int64(binary.BigEndian.Uint32(frame[:]))
		if number == 0 || !bytes.Equal(frame[8:16], header[16:24]) {
			break
		}
		numbers[number] = struct{}{}
	}
	var spans []span
	for _, n := range slices.Sorted(maps.Keys(numbers)) {
		from := (n - 1) * page
		if last := len(spans) - 1; last >= 0 && spans[last].to == from {
			spans[last].to += page
		} else {
			spans = append(spans, span{from, from + page})
		}
	}
	return spans, nil
}

const walHeaderSize = 32

// rewrite writes a file once more, and syncs it.
func rewrite(f vfs.File) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), size-off)], off)
		if n == 0 {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if _, err := f.WriteAt(buf[:n], off); err != nil {
			return err
		}
		off += int64(n)
	}
	if size == 0 {
		return nil
	}
	return f.Sync(vfs.SYNC_FULL)
}

// forgetIndex makes the next transaction read the write-ahead log anew, and check it: it
// erases the header of what SQLite keeps of the log in shared memory
// (https://sqlite.org/walformat.html, section 2.1).
func forgetIndex(path string) error {
	f, err := os.OpenFile(path+"-shm", os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() < indexHeaderSize {
		return err
	}
	_, err = f.WriteAt(make([]byte, indexHeaderSize), 0)
	return err
}

const indexHeaderSize = 2 * 48 // both copies

// emptyWAL copies the write-ahead log into the database and cuts it to nothing. It reports
// busy if others kept it from doing so for the given time.
func (c *sqliteConn) emptyWAL(patience time.Duration) (busy bool, err error) {
	err = c.checkpoint("TRUNCATE", patience)
	if errors.Is(err, errBusyWAL) {
		return true, nil
	}
	return false, err
}

var errBusyWAL = errors.New("the write-ahead log is in use by a reader")

// checkpoint copies the write-ahead log into the database, in a mode of
// https://sqlite.org/pragma.html#pragma_wal_checkpoint. errBusyWAL: others kept
// it from copying all for the given time.
func (c *sqliteConn) checkpoint(mode string, patience time.Duration) error {
	// While it waits for readers, a checkpoint keeps writers waiting.
	if err := c.c.Exec(fmt.Sprintf(`PRAGMA busy_timeout = %d`, patience.Milliseconds())); err != nil {
		return err
	}
	var blocked, frames, copied int64
	err := c.query(into(&blocked, &frames, &copied), `PRAGMA wal_checkpoint(`+mode+`)`)
	if err = errors.Join(err, c.c.Exec(busyTimeout)); err == nil && blocked != 0 {
		return errBusyWAL
	}
	return err
}

const busyTimeout = `PRAGMA busy_timeout = 10000;`
