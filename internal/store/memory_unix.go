//go:build unix

package store

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// sharesMemory reports whether files in a directory can be mapped into memory
// that is shared, as SQLite's write-ahead log needs it.
func sharesMemory(dir string, not bool) error {
	f, err := os.CreateTemp(dir, "orgd.probe-")
	if err != nil {
		return nil // that is another matter, and others say it
	}
	defer func() {
		f.Close()
		os.Remove(f.Name())
	}()
	size := os.Getpagesize()
	if f.Truncate(int64(size)) != nil {
		return nil
	}
	b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err == nil {
		err = unix.Munmap(b)
	}
	if not {
		err = unix.ENODEV
	}
	if err != nil {
		return fmt.Errorf("the data directory %s is on a file system (%s) whose files cannot be mapped into shared memory, which SQLite needs (%w); "+
			"use a local file system such as ext4, XFS or Btrfs, or keep the data in PostgreSQL (--database)", dir, fileSystem(dir), err)
	}
	return nil
}
