package store

import (
	"errors"
	"syscall"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/util/vfsutil"
	"github.com/ncruces/go-sqlite3/vfs"
)

// registerVFS registers a VFS that is like the named one, but says SQLITE_FULL
// when a full disk keeps it from writing to a WAL. Without it, that would be
// an I/O error like any other. It returns the name of the new VFS.
func registerVFS(name string) string {
	vfs.Register("orgd"+name, fullVFS{vfs.Find(name)})
	return "orgd" + name
}

type fullVFS struct{ vfs.VFS }

func (v fullVFS) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	f, out, err := vfsutil.WrapOpenFilename(v.VFS, name, flags)
	if err == nil && flags&vfs.OPEN_WAL != 0 {
		f = walFile{f}
	}
	return f, out, err
}

// walFile needs none of the optional interfaces: they matter for the
// database's own file.
type walFile struct{ vfs.File }

func (f walFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		err = vfs.SystemError(err, sqlite3.FULL)
	}
	return n, err
}
