package testkit

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What was synced is on the disk after a cut, and what was not can be lost;
// without barriers in the file system what was synced can be lost too.
func TestBlockDisk(t *testing.T) {
	for _, options := range []string{"", "barrier=0"} {
		t.Run(options, func(t *testing.T) {
			d := NewBlockDisk(t, 32, "ext4")
			if err := d.Mount("ext4", options); err != nil {
				t.Fatal(err)
			}
			unix.Sync()
			d.Record()
			write := func(name string, sync bool) {
				f, err := os.Create(filepath.Join(d.Dir, name))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if _, err := f.WriteString(name); err != nil {
					t.Fatal(err)
				}
				if sync {
					if err := errors.Join(f.Sync()); err != nil {
						t.Fatal(err)
					}
				}
			}
			write("synced", true)
			position := d.Position()
			write("not synced", false)
			cut := d.Cut(position, 0, rand.New(rand.NewPCG(1, 2)))
			if err := cut.Mount("ext4", ""); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(filepath.Join(cut.Dir, "synced"))
			if there := err == nil && string(b) == "synced"; there != (options == "") {
				t.Errorf("the synced file is %q, %v", b, err)
			}
			if _, err := os.Stat(filepath.Join(cut.Dir, "not synced")); err == nil {
				t.Error("what was not synced is there")
			}
			d.FailWrites(func(int) error { return unix.EIO })
			f, err := os.Create(filepath.Join(d.Dir, "fails"))
			if err == nil {
				f.WriteString("fails")
				err = f.Sync()
				f.Close()
			}
			if err == nil {
				t.Error("a disk that takes no writes syncs a file")
			}
		})
	}
}
