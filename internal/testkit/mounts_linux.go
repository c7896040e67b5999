package testkit

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// NewTwoMounts mounts one directory twice, so that a lock that is taken through one
// of the mounts is not known to the other: on overlayfs a lock belongs to the
// mount's own file, while what is written and mapped is that of the directory below.
// Network file systems that are mounted with local locks do the same. It takes root:
// without it the test is skipped, and with CI=true it fails.
func NewTwoMounts(t testing.TB) (mounts [2]string) {
	t.Helper()
	below := t.TempDir()
	give := func(what string, err error) {
		t.Helper()
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s: %v", what, err)
		}
		t.Skipf("%s: %v", what, err)
	}
	mount := func(source, target, kind, options string) {
		t.Helper()
		if err := unix.Mount(source, target, kind, 0, options); err != nil {
			give("mounting "+kind, err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	mount("tmpfs", below, "tmpfs", "mode=0700") // overlayfs may not lie on what a container has as its root
	path := func(name string) string {
		path := filepath.Join(below, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	lower, upper := path("lower"), path("upper")
	for i := range mounts {
		mounts[i] = path(fmt.Sprint("mount", i+1))
		mount("overlay", mounts[i], "overlay", fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, path(fmt.Sprint("work", i+1))))
	}
	for i, mounted := range mounts {
		f, err := os.OpenFile(filepath.Join(mounted, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			give(fmt.Sprintf("a lock is known to the other mount (%d)", i+1), err)
		}
	}
	return mounts
}
