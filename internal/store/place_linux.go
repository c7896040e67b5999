package store

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// placeOf names a file as the file system knows it: by its inode, and by when that
// was made where the file system tells. Device numbers change with a restart.
func placeOf(path string) ([]byte, error) {
	var s unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_INO|unix.STATX_BTIME, &s); err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%d %d.%09d\n", s.Ino, s.Btime.Sec, s.Btime.Nsec), nil
}
