//go:build unix

package durable

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Only the owner reads what is made, whatever the umask, and what was there
// with another mode.
func TestModes(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o077, 0o277} {
		dir := home(t)
		path := filepath.Join(dir, "written")
		wide := filepath.Join(dir, "wide")
		if err := os.WriteFile(wide, nil, 0o666); err != nil {
			t.Fatal(err)
		}
		before := syscall.Umask(umask)
		err := Write(path, nil)
		f, openErr := Open(filepath.Join(dir, "opened"), os.O_WRONLY)
		g, wideErr := Open(wide, os.O_WRONLY)
		mkdirErr := MkdirAll(filepath.Join(dir, "made"))
		syscall.Umask(before)
		if err != nil || openErr != nil || wideErr != nil || mkdirErr != nil {
			t.Fatal(err, openErr, wideErr, mkdirErr)
		}
		f.Close()
		g.Close()
		for _, name := range []string{"written", "opened", "wide", "made"} {
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			want := fs.FileMode(0o600)
			if info.IsDir() {
				want = 0o700
			}
			if got := info.Mode().Perm(); got != want && !(info.IsDir() && got == want&^fs.FileMode(umask)) {
				t.Errorf("umask %03o: %s has the mode %v", umask, name, got)
			}
		}
	}
}
