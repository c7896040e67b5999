package testkit

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Disk is a file system of bounded size.
type Disk struct {
	Dir string
	t   testing.TB
}

// NewDisk mounts a file system of so many MiB until the test ends. That takes
// root: without it the test is skipped, and with CI=true it fails.
func NewDisk(t testing.TB, sizeMiB string) *Disk {
	t.Helper()
	d := &Disk{Dir: t.TempDir(), t: t}
	if err := unix.Mount("tmpfs", d.Dir, "tmpfs", 0, "size="+sizeMiB+"m,mode=0700"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("mounting a small file system: %v", err)
		}
		t.Skipf("mounting a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d.Dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return d
}

// Fill takes all the space that is left, to the last byte.
func (d *Disk) Fill() {
	d.t.Helper()
	f, err := os.OpenFile(filepath.Join(d.Dir, "fill"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	for b := make([]byte, 1<<20); len(b) > 0; {
		if _, err := f.Write(b); errors.Is(err, unix.ENOSPC) {
			b = b[:len(b)/2]
		} else if err != nil {
			d.t.Fatal(err)
		}
	}
}

// Free gives back what Fill took.
func (d *Disk) Free() {
	d.t.Helper()
	if err := os.Remove(filepath.Join(d.Dir, "fill")); err != nil {
		d.t.Fatal(err)
	}
}
