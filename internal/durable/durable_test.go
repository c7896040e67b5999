package durable

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// recorded returns a disk that notes what is done to it, and fails at one step.
func recorded(failing string) (disk, *[]string) {
	var steps []string
	errFault := errors.New("the disk fails")
	note := func(step string, do func() error) error {
		steps = append(steps, step)
		if step == failing {
			return errFault
		}
		return do()
	}
	base, s := filepath.Base, system()
	return disk{
		write: func(f *os.File, b []byte) error {
			return note("write "+base(f.Name()), func() error { return s.write(f, b) })
		},
		sync: func(f *os.File) error { return note("sync "+base(f.Name()), func() error { return s.sync(f) }) },
		rename: func(from, to string) error {
			return note("rename "+base(from)+" "+base(to), func() error { return s.rename(from, to) })
		},
		link: func(from, to string) error {
			return note("link "+base(from)+" "+base(to), func() error { return s.link(from, to) })
		},
		mkdir: func(path string) error { return note("mkdir "+base(path), func() error { return s.mkdir(path) }) },
		syncDir: func(path string) error {
			return note("sync directory "+base(path), func() error { return s.syncDir(path) })
		},
	}, &steps
}

// home returns a new directory with a name of its own.
func home(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "home")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A file has its name only once it is on disk, and the name is on disk when the
// call returns. What fails on the way leaves the file that was there.
func TestWrite(t *testing.T) {
	steps := []string{"write f.new", "sync f.new", "rename f.new f", "sync directory home"}
	for i, failing := range append(steps, "") {
		path := filepath.Join(home(t), "f")
		if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
		d, got := recorded(failing)
		err := d.writeFile(path, []byte("new"))
		if want := steps[:min(i+1, len(steps))]; !slices.Equal(*got, want) || (err == nil) != (failing == "") {
			t.Errorf("failing at %q: %q and %v, want %q", failing, *got, err, want)
		}
		want := "old"
		if i >= 3 { // it has its name, which a loss of power may undo
			want = "new"
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("failing at %q: the file holds %q, %v", failing, b, err)
		}
		if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
			t.Errorf("failing at %q: %d files are left, %v", failing, len(entries), err)
		}
		if info, err := os.Stat(path); want == "new" && (err != nil || info.Mode() != 0o600) {
			t.Errorf("the mode is %v, %v", info.Mode(), err)
		}
	}
}

// A file that is opened or found is on disk under its name before anything relies
// on it.
func TestCreateAndSettle(t *testing.T) {
	path := filepath.Join(home(t), "f")
	for failing, want := range map[string]string{"": "", "sync f": "fails", "sync directory home": "fails"} {
		d, got := recorded(failing)
		f, err := d.create(path, os.O_WRONLY)
		if steps := strings.Join(*got, ", "); steps != "sync f, sync directory home" || (err == nil) != (want == "") {
			t.Errorf("create, failing at %q: %q, %v", failing, steps, err)
		}
		if err == nil {
			f.Close()
		}
		d, got = recorded(failing)
		if err := d.settle(path); strings.Join(*got, ", ") != "sync f, sync directory home" || (err == nil) != (want == "") {
			t.Errorf("settle, failing at %q: %q, %v", failing, *got, err)
		}
	}
	if err := Settle(filepath.Join(home(t), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestExchange(t *testing.T) {
	steps := []string{"link f kept", "rename next f", "sync directory home"}
	for i, failing := range append(steps, "") {
		dir := home(t)
		path := filepath.Join(dir, "f")
		if err := errors.Join(os.WriteFile(path, []byte("old"), 0o600), os.WriteFile(filepath.Join(dir, "next"), []byte("new"), 0o600)); err != nil {
			t.Fatal(err)
		}
		d, got := recorded(failing)
		err := d.exchange(path, filepath.Join(dir, "kept"), filepath.Join(dir, "next"))
		if want := steps[:min(i+1, len(steps))]; !slices.Equal(*got, want) || (err == nil) != (failing == "") {
			t.Errorf("failing at %q: %q and %v, want %q", failing, *got, err, want)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != map[bool]string{false: "old", true: "new"}[i >= 2] {
			t.Errorf("failing at %q: the file holds %q, %v", failing, b, err)
		}
	}
}

// A directory is in the one above it for good, and so on up to one that was there.
func TestMkdirAll(t *testing.T) {
	dir := home(t)
	d, got := recorded("")
	if err := d.mkdirAll(filepath.Join(dir, "a", "b")); err != nil {
		t.Fatal(err)
	}
	if want := "mkdir a, sync directory home, mkdir b, sync directory a"; strings.Join(*got, ", ") != want {
		t.Errorf("%q, want %q", *got, want)
	}
	d, got = recorded("")
	if err := d.mkdirAll(filepath.Join(dir, "a", "b")); err != nil || strings.Join(*got, ", ") != "sync directory a" {
		t.Errorf("again: %q, %v", *got, err)
	}
	d, got = recorded("sync directory a")
	if err := d.mkdirAll(filepath.Join(dir, "a", "c")); err == nil {
		t.Errorf("%q, and no error", *got)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := MkdirAll(filepath.Join(dir, "file", "x")); err == nil {
		t.Error("a directory is made in a file")
	}
	if err := MkdirAll(dir + "/"); err != nil {
		t.Error(err)
	}
}
