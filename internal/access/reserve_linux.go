package access

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// reserve gives f disk space for size bytes without changing its length, so
// that writing them cannot fail for lack of space. errors.ErrUnsupported: the
// file system cannot do that.
func reserve(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err
	}
}
