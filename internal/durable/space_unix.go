//go:build linux || darwin || freebsd

package durable

import "golang.org/x/sys/unix"

// Space returns how large the file system of a path is, and how much of it is
// free for this process, in bytes.
func Space(path string) (size, free int64, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return 0, 0, err
	}
	return int64(s.Blocks) * int64(s.Bsize), int64(s.Bavail) * int64(s.Bsize), nil
}
