//go:build unix && !linux

package store

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// placeOf names a file as the file system knows it.
func placeOf(path string) ([]byte, error) {
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%d\n", s.Ino), nil
}
