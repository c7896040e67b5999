package store_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/store"
)

// A copy that is written over the database keeps its file, as cp does, so the file's
// place says nothing. Beside a write-ahead log that an earlier process has left it
// is refused and not changed, if it is of another state than the log; without a log
// it is a backup that is put back, and starts.
func TestSQLiteCopyInPlace(t *testing.T) {
	for _, killed := range []bool{false, true} {
		dir := t.TempDir()
		path := filepath.Join(dir, "orgd.db")
		s := openSQLite(t, dir, store.Options{})
		plantRoot(t, s, "r")
		grow(t, s, 0, 100)
		empty(t, s)
		old, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		grow(t, s, 1000, 200)
		empty(t, s)
		grow(t, s, 2000, 10)
		log, err := os.ReadFile(path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		newer, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		put := func(name string, b []byte) {
			t.Helper()
			f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := io.Copy(f, bytes.NewReader(b)); err != nil {
				t.Fatal(err)
			}
		}
		if killed {
			// What a killed process leaves starts.
			put(path, newer)
			time.Sleep(10 * time.Millisecond)
			put(path+"-wal", log)
			s := openSQLite(t, dir, store.Options{})
			if n := size(t, s, "r"); n != 60 {
				t.Errorf("%d entries", n)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			put(path+"-wal", log)
			time.Sleep(10 * time.Millisecond)
		}
		put(path, old)
		before := content0(t, dir)
		s, err = store.OpenSQLite(t.Context(), dir, store.Options{})
		if !killed {
			if err != nil {
				t.Fatal(err)
			}
			if n := size(t, s, "r"); n != 20 {
				t.Errorf("%d entries", n)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "not whole") {
			t.Errorf("error %v", err)
		}
		if after := content0(t, dir); before != after {
			t.Error("the copy was changed")
		}
	}
}
