package store

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// machine names the running system: locks hold between its processes.
func machine() string {
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		return strings.TrimSpace(string(b))
	}
	name, _ := os.Hostname()
	return name
}

// mountOf names the file system that a directory is in, as it is mounted.
func mountOf(dir string) string {
	var s unix.Stat_t
	if err := unix.Stat(dir, &s); err != nil {
		return "0"
	}
	return fmt.Sprint(s.Dev)
}

// tryRangeLock is tryLock with a lock of another kind, which network file systems
// may know where they do not know the first. It belongs to the open file.
func tryRangeLock(f *os.File) (locked bool, err error) {
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	return true, nil // a file system without such locks
}

var fileSystems = map[int64]string{
	0x6969: "NFS", 0xff534d42: "CIFS", 0xfe534d42: "SMB", 0x65735546: "FUSE", 0x01021997: "9p", 0x794c7630: "overlayfs",
	0xef53: "ext4", 0x58465342: "XFS", 0x9123683e: "Btrfs", 0x01021994: "tmpfs", 0x2fc12fc1: "ZFS", 0x00c36400: "Ceph",
	0x6a656a63: "virtiofs", 0x5346414f: "AFS", 0x786f4256: "vboxsf", 0xf2f52010: "F2FS",
}

// fileSystem names the kind of file system that a directory is in.
func fileSystem(dir string) string {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return "unknown"
	}
	kind := int64(s.Type) & 0xffffffff
	if name, ok := fileSystems[kind]; ok {
		return name
	}
	return fmt.Sprintf("of type %#x", kind)
}
