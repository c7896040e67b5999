// Package durable makes files and directories that are there after a loss of
// power, whole or not at all, and that only their owner can read, whatever the
// umask.
//
// A file is in its directory for good once the directory has been synced, too:
// a renamed file may else be gone, or have its old name again.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

const (
	fileMode = 0o600
	dirMode  = 0o700
)

// disk is what the functions of this package do to a disk.
type disk struct {
	write   func(f *os.File, content []byte) error
	sync    func(f *os.File) error
	rename  func(from, to string) error
	link    func(from, to string) error
	mkdir   func(path string) error
	syncDir func(path string) error
}

func system() disk {
	return disk{
		write:  func(f *os.File, content []byte) error { _, err := f.Write(content); return err },
		sync:   (*os.File).Sync,
		rename: os.Rename, link: os.Link,
		mkdir:   func(path string) error { return os.Mkdir(path, dirMode) },
		syncDir: SyncDir,
	}
}

// Write makes the file at path, or replaces it. When it returns nil, the file is
// on disk under its name; after an error there is what was there before, or the
// new file.
func Write(path string, content []byte) error { return system().writeFile(path, content) }

func (d disk) writeFile(path string, content []byte) error {
	f, err := Open(path+".new", os.O_WRONLY|os.O_TRUNC)
	if err != nil {
		return err
	}
	if err := d.write(f, content); err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return d.replace(f, path)
}

// Replace syncs and closes f, a file in the directory of path, and gives it that
// name. If it fails before that, f is removed.
func Replace(f *os.File, path string) error { return system().replace(f, path) }

func (d disk) replace(f *os.File, path string) error {
	err := errors.Join(d.sync(f), f.Close())
	if err == nil {
		err = d.rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return d.syncDir(filepath.Dir(path))
}

// Exchange gives the file at path the name kept, beside it, and the file at
// next, which is synced, the name path. There is a file at path throughout.
func Exchange(path, kept, next string) error { return system().exchange(path, kept, next) }

func (d disk) exchange(path, kept, next string) error {
	if err := d.link(path, kept); err != nil {
		return err
	}
	if err := d.rename(next, path); err != nil {
		return err
	}
	return d.syncDir(filepath.Dir(path))
}

// Sync makes what was written to f durable, with its name.
func Sync(f *os.File) error { return errors.Join(f.Sync(), SyncDir(filepath.Dir(f.Name()))) }

// Create is Open and makes the file durable under its name: it is there after a
// loss of power, with what is read from it, see Forget.
func Create(path string, flag int) (*os.File, error) { return system().create(path, flag) }

func (d disk) create(path string, flag int) (*os.File, error) {
	f, err := Open(path, flag)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(d.sync(f), forget(f), d.syncDir(filepath.Dir(path))); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Forget makes what is read from a file at path from then on what the disk has of
// it. After a write that has failed, a system's cache goes on showing what the
// disk does not have, and later syncs of it succeed: on ext4 even after the same
// has been written once more, since the blocks stay marked as never written. Best
// effort: what is being used at the moment stays in the cache. It does nothing
// where a system has no such call.
func Forget(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), forget(f), f.Close())
}

// Settle makes a file durable that is there, with its name, before anything
// relies on it: the process that made it may have ended too early. A file system
// that takes no changes has nothing to make durable.
func Settle(path string) error { return system().settle(path) }

func (d disk) settle(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(unlessFixed(d.sync(f)), f.Close(), unlessFixed(d.syncDir(filepath.Dir(path))))
}

// unlessFixed drops the errors of what this process cannot have changed.
func unlessFixed(err error) error {
	if errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.EINVAL) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}

// Open opens a file, which it creates if need be. Its mode is 0600 from then
// on, also if it was there with another. The name of a new file is durable after
// SyncDir.
func Open(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|os.O_CREATE, fileMode)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && info.Mode().Perm() != fileMode {
		if err := f.Chmod(fileMode); err != nil && info.Mode().Perm()&0o077 != 0 {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

// MkdirAll makes a directory with all that is missing above it. It is durable in
// the one above it, also if it was there: who made it may have ended too early.
func MkdirAll(path string) error { return system().mkdirAll(path) }

func (d disk) mkdirAll(path string) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return unlessFixed(d.syncDir(filepath.Dir(filepath.Clean(path))))
	}
	return d.mkdirMissing(path)
}

func (d disk) mkdirMissing(path string) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil
	}
	parent := filepath.Dir(filepath.Clean(path))
	if parent != path {
		if err := d.mkdirMissing(parent); err != nil {
			return err
		}
	}
	if err := d.mkdir(path); err != nil {
		if info, serr := os.Stat(path); serr == nil && info.IsDir() {
			return nil // somebody else was faster
		}
		return err
	}
	return d.syncDir(parent)
}
