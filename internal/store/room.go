package store

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/orgd/orgd/internal/durable"
)

// roomMargin is the free space that a group of changes is taken to need at most.
const roomMargin = 1 << 20

// A disk that has plenty of space has enough for plentyTime, however fast it is.
const (
	plenty     = 1 << 30
	plentyTime = 100 * time.Millisecond
)

// makeRoom empties the write-ahead log before a group of changes if the disk has less free
// space than the log and the group may need: what is in the log may all be new
// pages of the database, and a log that cannot be copied cannot be freed either.
// So a full disk is full of data, not of log, unless others fill it. Then the
// spool's spare file is lent, which is made again from what that frees.
//
// What keeps it from doing so is tried again; the group is made, or refused for
// want of space, all the same.
func (e *sqliteEngine) makeRoom() {
	if !e.full && time.Since(e.plenty) < plentyTime {
		return
	}
	info, err := os.Stat(e.path + "-wal")
	if err != nil || info.Size() == 0 || e.writer == nil || time.Since(e.emptied) < healPause {
		return
	}
	_, free, err := durable.Space(filepath.Dir(e.path))
	if err != nil {
		return
	}
	if !e.full && free > info.Size()+roomMargin {
		if free > info.Size()+plenty {
			e.plenty = time.Now()
		}
		return
	}
	lacks := int64(0)
	if grows, err := e.growth(); err != nil {
		return
	} else if grows > free {
		lacks = grows - free
	}
	done := false
	empty := func() {
		busy, err := e.emptyWAL(e.writer)
		done = err == nil && !busy
	}
	if lend := e.lend.Load(); lacks == 0 {
		empty()
	} else if lend != nil {
		(*lend)(lacks, empty)
	}
	if e.full = false; !done {
		e.full, e.emptied = true, time.Now()
	}
}

// growth is by how much the log makes the database's file longer.
func (e *sqliteEngine) growth() (int64, error) {
	var pages int64
	if err := e.writer.query(into(&pages), `PRAGMA page_count`); err != nil {
		return 0, err
	}
	info, err := os.Stat(e.path)
	if err != nil {
		return 0, err
	}
	return pages*pageSize - info.Size(), nil
}

// noSpace reports whether an error may be one of a full disk. SQLite says of a
// write to the database only that it has failed.
func noSpace(err error) bool {
	var code sqlite3.ErrorCode
	if errors.As(err, &code) {
		return code == sqlite3.FULL || code == sqlite3.IOERR || code == sqlite3.CANTOPEN
	}
	return full(err)
}

// startsWith is how much free space a start needs at most for a database: what the
// log makes it longer by, and a group of changes.
func startsWith(path string) int64 {
	wal, err := os.Open(path + "-wal")
	if err != nil {
		return roomMargin
	}
	defer wal.Close()
	longest := int64(0)
	if spans, err := pagesIn(readOnly{wal}); err == nil && len(spans) > 0 {
		longest = spans[len(spans)-1].to
	}
	if info, err := os.Stat(path); err == nil {
		longest -= info.Size()
	}
	return max(longest, 0) + roomMargin
}

// readOnly is as much of a file as pagesIn needs.
type readOnly struct{ *os.File }

func (f readOnly) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
