package store_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/orgd/orgd/internal/store"
)

// grow makes changes of all kinds: some in few pages, some in many.
func grow(t *testing.T, s *store.Store, from, n int) {
	t.Helper()
	if err := insertMany(s, from, n); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := update(s, "r"); err != nil {
			t.Fatal(err)
		}
	}
}

func empty(t *testing.T, s *store.Store) {
	t.Helper()
	if err := s.Scrub(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A copy that was made file by file under a running server is refused, and not
// changed, if it is none of the states that the database ever had.
func TestSQLiteTornCopy(t *testing.T) {
	const db, wal = "orgd.db", "orgd.db-wal"
	for name, copying := range map[string]func(t *testing.T, s *store.Store, take func(name string, from, to float64)){
		"the database, then the log of a later state": func(t *testing.T, s *store.Store, take func(string, float64, float64)) {
			take(db, 0, 1)
			grow(t, s, 1000, 200)
			empty(t, s)
			grow(t, s, 2000, 10)
			take(wal, 0, 1)
		},
		"the log, then the database of a later state": func(t *testing.T, s *store.Store, take func(string, float64, float64)) {
			take(wal, 0, 1)
			grow(t, s, 200, 200)
			empty(t, s)
			take(db, 0, 1)
		},
		"the database in two parts, and the log": func(t *testing.T, s *store.Store, take func(string, float64, float64)) {
			take(db, 0, 0.5)
			grow(t, s, 1000, 200)
			empty(t, s)
			grow(t, s, 2000, 10)
			take(db, 0.5, 1)
			take(wal, 0, 1)
		},
		"the log alone": func(t *testing.T, s *store.Store, take func(string, float64, float64)) {
			grow(t, s, 1000, 10)
			take(wal, 0, 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, copied := t.TempDir(), t.TempDir()
			s := openSQLite(t, dir, store.Options{})
			plantRoot(t, s, "r")
			grow(t, s, 0, 100)
			empty(t, s)
			grow(t, s, 500, 10)
			copying(t, s, func(name string, from, to float64) {
				b, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				f, err := os.OpenFile(filepath.Join(copied, name), os.O_WRONLY|os.O_CREATE, 0o600)
				if err != nil {
					t.Fatal(err)
				}
				at := int(float64(len(b)) * from)
				if _, err := f.WriteAt(b[at:int(float64(len(b))*to)], int64(at)); err != nil {
					t.Fatal(err)
				}
				f.Close()
			})
			before := content0(t, copied)
			_, err := store.OpenSQLite(t.Context(), copied, store.Options{})
			if err == nil || !strings.Contains(err.Error(), "not whole") || !strings.Contains(err.Error(), "while the server is stopped") {
				t.Errorf("error %v", err)
			}
			if after := content0(t, copied); before != after {
				t.Error("the copy was changed")
			}
		})
	}
}

// content0 is what the files of a database hold.
func content0(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	for _, name := range []string{"orgd.db", "orgd.db-wal"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		fmt.Fprintf(&all, "%d %s ", len(b), b)
	}
	return all.String()
}

// A whole copy starts: of a server that was stopped or killed, and what a loss of
// power leaves. It is checked once, and so is a directory of an earlier version.
func TestSQLiteWholeCopy(t *testing.T) {
	dir := t.TempDir()
	s := openSQLite(t, dir, store.Options{})
	plantRoot(t, s, "r")
	grow(t, s, 0, 100)
	copyTo := func() string {
		copied := t.TempDir()
		for _, name := range []string{"orgd.db", "orgd.db-wal", "orgd.place"} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				if name == "orgd.db-wal" && os.IsNotExist(err) {
					continue
				}
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(copied, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return copied
	}
	open := func(dir string, checked bool) {
		t.Helper()
		var log bytes.Buffer
		s, err := store.OpenSQLite(t.Context(), dir, store.Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(log.String(), "the database is whole") != checked {
			t.Errorf("checked should be %v: %s", checked, &log)
		}
		if n := size(t, s, "r"); n != 20 {
			t.Errorf("%d entries", n)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	killed := copyTo()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	stopped := copyTo()
	for _, copied := range []string{killed, stopped} {
		open(copied, true)
		open(copied, false)
	}
	open(dir, false)
	if err := os.Remove(filepath.Join(dir, "orgd.place")); err != nil {
		t.Fatal(err)
	}
	open(dir, true)
}
