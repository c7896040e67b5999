package store

import (
	"bytes"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// cachedIsOnDisk returns errNotOnDisk if the page cache shows other bytes of
// parts of a file than the disk has; nil for the parts means all of it. A file
// system without O_DIRECT cannot be asked, and is believed.
func cachedIsOnDisk(path string, parts []span) error {
	cached, err := os.Open(path)
	if err != nil {
		return err
	}
	defer cached.Close()
	direct, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return err
	}
	defer direct.Close()
	if parts == nil {
		info, err := cached.Stat()
		if err != nil {
			return err
		}
		parts = []span{{0, info.Size()}}
	}
	// A mapping is aligned as O_DIRECT asks for.
	onDisk, err := unix.Mmap(-1, 0, directSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer unix.Munmap(onDisk)
	shown := make([]byte, directSize)
	for _, part := range parts {
		for off := part.from / directUnit * directUnit; off < part.to; off += directSize {
			want := min(directSize, (part.to-off+directUnit-1)/directUnit*directUnit)
			n, err := cached.ReadAt(shown[:want], off)
			if err != nil && err != io.EOF {
				return err
			}
			m, err := direct.ReadAt(onDisk[:want], off)
			if errors.Is(err, unix.EINVAL) {
				return nil
			}
			if err != nil && err != io.EOF {
				return err
			}
			if !bytes.Equal(shown[:n], onDisk[:m]) {
				return errNotOnDisk
			}
		}
	}
	return nil
}

const (
	directSize = 1 << 20
	// directUnit is a multiple of what disks ask offsets and lengths to be one of.
	directUnit = 4096
)
