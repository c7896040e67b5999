package store

import (
	"encoding/binary"
	"errors"
	"syscall"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"
)

// walFile is the file of a write-ahead log. A commit writes many small pieces
// to it: for each page a frame header and the page itself. Between gather and
// release, walFile keeps consecutive writes and makes them at once, which takes
// a fraction of the time.
//
// Other connections look at the frames of a commit only after the last of
// them, which says that it is the last (https://sqlite.org/fileformat2.html,
// section 4.1). By then all of them are in the file.
//
// walFile says SQLITE_FULL when a full disk keeps it from writing; without it,
// that would be an I/O error like any other. What makes a commit count is written
// last: if the disk was too full, the commit is not in the file.
//
// It needs none of the optional interfaces of the file beneath: they matter
// for the database's own file.
type walFile struct {
	vfs.File
	failed    func(error) // hears of what may leave a hole in the log
	gathering bool
	off       int64  // where kept belongs
	kept      []byte // what is not in the file yet
	last      bool   // the last frame header was that of a commit's last frame
}

const (
	frameHeaderSize = 24
	maxKept         = 1 << 20 // bytes
)

// gather lets the file keep what a commit writes. The caller must release it
// after the commit.
func (f *walFile) gather() { f.gathering, f.last = true, false }

// release forgets what is left of a commit that failed.
func (f *walFile) release() { f.gathering, f.kept = false, f.kept[:0] }

func (f *walFile) WriteAt(p []byte, off int64) (int, error) {
	if !f.gathering || len(f.kept) > 0 && off != f.off+int64(len(f.kept)) {
		if err := f.flush(); err != nil {
			return 0, err
		}
	}
	if !f.gathering {
		n, err := f.File.WriteAt(p, off)
		return n, f.writeError(err)
	}
	if len(f.kept) == 0 {
		f.off = off
	}
	f.kept = append(f.kept, p...)
	if len(p) == frameHeaderSize {
		f.last = binary.BigEndian.Uint32(p[4:]) != 0 // the size of the database after the commit
		return len(p), nil
	}
	if f.last || len(f.kept) >= maxKept {
		f.gathering = !f.last
		if err := f.flush(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (f *walFile) flush() error {
	if len(f.kept) == 0 {
		return nil
	}
	_, err := f.File.WriteAt(f.kept, f.off)
	f.kept = f.kept[:0]
	return f.writeError(err)
}

func (f *walFile) writeError(err error) error {
	if full(err) {
		return vfs.SystemError(err, sqlite3.FULL)
	}
	return f.note(err)
}

// full reports whether a write has failed for want of space. It then has no part
// in any commit, and leaves no hole: what was there is still to be overwritten.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func (f *walFile) note(err error) error {
	if err != nil {
		f.failed(err)
	}
	return err
}

func (f *walFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.flush(); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *walFile) Sync(flags vfs.SyncFlag) error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.note(f.File.Sync(flags))
}

func (f *walFile) Size() (int64, error) {
	if err := f.flush(); err != nil {
		return 0, err
	}
	return f.File.Size()
}

func (f *walFile) Truncate(size int64) error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.note(f.File.Truncate(size))
}

// commit ends the transaction of a connection that was opened with the VFS of
// registerVFS.
func (c *sqliteConn) commit() error {
	journal, err := c.c.FileControl("main", sqlite3.FCNTL_JOURNAL_POINTER)
	if err != nil {
		return err
	}
	if f, ok := journal.(*walFile); ok {
		f.gather()
		defer f.release()
	}
	_, err = c.exec(`COMMIT`)
	return err
}
