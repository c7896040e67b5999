package store

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/util/vfsutil"
	"github.com/ncruces/go-sqlite3/vfs"

	"github.com/orgd/orgd/internal/durable"
)

// registerVFS registers a VFS that is like the named one, but for how it writes
// databases (databaseFile) and their WALs (walFile), and that only the owner can
// read the shared memory beside them. It returns the name of the new VFS, which
// the caller unregisters. failed hears of every failure that may leave a file in
// another state than SQLite believes.
func registerVFS(name string, failed func(error)) string {
	own := fmt.Sprintf("orgd%s-%d", name, vfsCount.Add(1))
	vfs.Register(own, orgdVFS{vfs.Find(name), failed})
	return own
}

var vfsCount atomic.Int64 // of those registered so far

type orgdVFS struct {
	vfs.VFS
	failed func(error)
}

func (v orgdVFS) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	if flags&vfs.OPEN_MAIN_DB != 0 && name != nil {
		// SQLite makes the shared memory with the umask's mode.
		shm, err := durable.Open(name.String()+"-shm", os.O_RDWR)
		if err != nil {
			return nil, flags, vfs.SystemError(err, sqlite3.CANTOPEN)
		}
		shm.Close()
	}
	f, out, err := vfsutil.WrapOpenFilename(v.VFS, name, flags)
	switch {
	case err != nil:
	case flags&vfs.OPEN_WAL != 0:
		f = &walFile{File: f, failed: v.failed}
	case flags&vfs.OPEN_MAIN_DB != 0:
		f = &databaseFile{File: f, failed: v.failed}
	}
	return f, out, err
}

// databaseFile is the file of a database. When SQLite moves rows from one page
// to another, it leaves copies of them behind in the unused middle of the page,
// which secure_delete does not reach: rows that are erased later would live on
// there. databaseFile writes zeros instead.
type databaseFile struct {
	vfs.File
	failed func(error)
	page   []byte
}

// maxClearPages is the number of pages up to which the first byte of a page
// tells a b-tree page, which has an unused middle, from pages without one:
// those start with the number of another page (https://sqlite.org/fileformat2.html).
// With pages of 4 KiB that is 128 GiB.
const maxClearPages = 2 << 24

func (f *databaseFile) WriteAt(p []byte, off int64) (int, error) {
	if from, to := unused(p, off); from < to {
		f.page = append(f.page[:0], p...)
		clear(f.page[from:to])
		p = f.page
	}
	n, err := f.File.WriteAt(p, off)
	if err != nil && !full(err) {
		f.failed(err)
	}
	return n, err
}

func (f *databaseFile) Sync(flags vfs.SyncFlag) error {
	err := f.File.Sync(flags)
	if err != nil {
		f.failed(err)
	}
	return err
}

func (f *databaseFile) Truncate(size int64) error {
	err := f.File.Truncate(size)
	if err != nil {
		f.failed(err)
	}
	return err
}

// unused returns where the unused middle of a page is, if it is not zeros
// already: between the pointers to its cells and the first of them. The two
// are equal if there is none, or if p is not a page.
func unused(p []byte, off int64) (from, to int) {
	size := int64(len(p))
	if size < 512 || size > 65536 || size&(size-1) != 0 || off%size != 0 || off/size >= maxClearPages {
		return 0, 0
	}
	header := 0
	if off == 0 {
		header = 100
	}
	switch p[header] {
	case 2, 5: // interior pages
		from = header + 12
	case 10, 13: // leaves
		from = header + 8
	default:
		return 0, 0
	}
	from += 2 * int(binary.BigEndian.Uint16(p[header+3:]))
	to = int(binary.BigEndian.Uint16(p[header+5:]))
	if to == 0 {
		to = 65536
	}
	if from >= to || to > len(p) {
		return 0, 0
	}
	for _, b := range p[from:to] {
		if b != 0 {
			return from, to
		}
	}
	return 0, 0
}

// The optional interfaces are those of the file beneath.

func (f *databaseFile) Unwrap() vfs.File               { return f.File }
func (f *databaseFile) LockState() vfs.LockLevel       { return vfsutil.WrapLockState(f.File) }
func (f *databaseFile) PersistWAL() bool               { return vfsutil.WrapPersistWAL(f.File) }
func (f *databaseFile) SetPersistWAL(keep bool)        { vfsutil.WrapSetPersistWAL(f.File, keep) }
func (f *databaseFile) PowersafeOverwrite() bool       { return vfsutil.WrapPowersafeOverwrite(f.File) }
func (f *databaseFile) SetPowersafeOverwrite(on bool)  { vfsutil.WrapSetPowersafeOverwrite(f.File, on) }
func (f *databaseFile) SizeHint(size int64) error      { return vfsutil.WrapSizeHint(f.File, size) }
func (f *databaseFile) HasMoved() (bool, error)        { return vfsutil.WrapHasMoved(f.File) }
func (f *databaseFile) SharedMemory() vfs.SharedMemory { return vfsutil.WrapSharedMemory(f.File) }
func (f *databaseFile) BeginAtomicWrite() error        { return vfsutil.WrapBeginAtomicWrite(f.File) }
func (f *databaseFile) CommitAtomicWrite() error       { return vfsutil.WrapCommitAtomicWrite(f.File) }
func (f *databaseFile) RollbackAtomicWrite() error     { return vfsutil.WrapRollbackAtomicWrite(f.File) }
