package store_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/store"
)

// Of two processes that no lock keeps apart, because each has the directory on a
// mount of its own, one does not start, and one that has lost the directory
// changes nothing any more.
func TestSQLiteTwoMounts(t *testing.T) {
	dir := t.TempDir()
	first, err := store.OpenSQLite(t.Context(), dir, store.OnMount("1"))
	if err != nil {
		t.Fatal(err)
	}
	plantRoot(t, first, "r")
	if second, err := store.OpenSQLite(t.Context(), dir, store.OnMount("2")); err == nil {
		second.Close()
		t.Fatal("a second process has the directory")
	} else if !strings.Contains(err.Error(), "another process is using it") || !strings.Contains(err.Error(), dir) {
		t.Errorf("error %v", err)
	}
	if err := update(first, "r"); err != nil {
		t.Fatal(err)
	}

	thaw := store.Freeze(first)
	second, err := store.OpenSQLite(t.Context(), dir, store.OnMount("2"))
	if err != nil {
		thaw()
		t.Fatal(err)
	}
	if err := update(first, "r"); !problem.Is(err, problem.Unavailable) {
		t.Errorf("a change by who has lost the directory: error %v", err)
	}
	thaw()
	for range 2 {
		if err := update(second, "r"); err != nil {
			t.Errorf("a change by who has it: %v", err)
		}
		if err := first.Ping(t.Context()); !problem.Is(err, problem.Unavailable) {
			t.Errorf("ping: error %v", err)
		}
		if err := first.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := size(t, second, "r"); n != 3 {
		t.Errorf("%d changes are there", n)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}

	// Who has stopped keeps nobody waiting, who was killed elsewhere does for a while.
	start := time.Now()
	third, err := store.OpenSQLite(t.Context(), dir, store.OnMount("3"))
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("a start after a stop took %v", took)
	}
	if err := third.Close(); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "orgd.owner"), []byte("elsewhere 1 x\n00000000000000000007\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	s := openSQLite(t, dir, store.Options{})
	if took := time.Since(start); took < 3*time.Second {
		t.Errorf("a start after a process was killed elsewhere took %v", took)
	}
	if n := size(t, s, "r"); n != 3 {
		t.Errorf("%d changes are there", n)
	}
}

// A file system that SQLite cannot work on is named.
func TestSQLiteWithoutSharedMemory(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there is none")
	}
	_, err := store.OpenSQLite(t.Context(), t.TempDir(), store.WithoutSharedMemory())
	if err == nil || !strings.Contains(err.Error(), "file system (") || !strings.Contains(err.Error(), "use a local file system") {
		t.Errorf("error %v", err)
	}
}
