package store_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/util/vfsutil"
	"github.com/ncruces/go-sqlite3/vfs"

	"github.com/orgd/orgd/internal/store"
)

// Whatever a transaction does before its commit, all of it is in the files
// after it: another connection sees it, and a copy of the files holds it. The
// cache is so small that SQLite writes pages before the commit, reads them
// back and writes them again.
func TestWAL(t *testing.T) {
	for _, synchronous := range []string{"FULL", "NORMAL", "OFF"} {
		for seed := range uint64(4) {
			t.Run(fmt.Sprint(synchronous, seed), func(t *testing.T) {
				testWAL(t, synchronous, rand.New(rand.NewPCG(seed, 0)))
			})
		}
	}
}

func testWAL(t *testing.T, synchronous string, r *rand.Rand) {
	dir := t.TempDir()
	uri := "file:" + filepath.ToSlash(filepath.Join(dir, "w.db")) + "?vfs=" + store.RegisterVFS("")
	open := func() *sqlite3.Conn {
		c, err := sqlite3.OpenFlags(uri, sqlite3.OPEN_READWRITE|sqlite3.OPEN_CREATE|sqlite3.OPEN_URI)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	exec := func(c *sqlite3.Conn, text string) {
		t.Helper()
		if err := c.Exec(text); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	setup := `PRAGMA journal_mode = WAL; PRAGMA cache_size = 10; PRAGMA cache_spill = 5; PRAGMA synchronous = ` + synchronous
	writer := open()
	exec(writer, setup+`; CREATE TABLE v (id INTEGER PRIMARY KEY, n INTEGER, filler BLOB); PRAGMA wal_autocheckpoint = 200`)
	reader := open()
	defer reader.Close()

	committed := map[int]int{}
	for step := range 150 {
		now := maps.Clone(committed)
		var saved map[int]int
		exec(writer, `BEGIN IMMEDIATE`)
		for range 1 + r.IntN(40) {
			switch r.IntN(12) {
			case 0:
				exec(writer, `SAVEPOINT s`)
				saved = maps.Clone(now)
			case 1:
				if saved != nil {
					exec(writer, `ROLLBACK TO s; RELEASE s`)
					now, saved = saved, nil
				}
			case 2:
				if got, want := content(t, writer), fmt.Sprint(now); got != want {
					t.Fatalf("step %d: the writer reads %s, not %s", step, got, want)
				}
			default:
				id, n := r.IntN(60), r.Int()>>32
				exec(writer, fmt.Sprintf(`INSERT INTO v (id, n, filler) VALUES (%d, %d, zeroblob(%d))
					ON CONFLICT (id) DO UPDATE SET n = excluded.n, filler = excluded.filler`, id, n, r.IntN(9000)))
				now[id] = n
			}
		}
		if got, want := content(t, reader), fmt.Sprint(committed); got != want {
			t.Fatalf("step %d: before the commit others read %s, not %s", step, got, want)
		}
		if r.IntN(4) == 0 {
			exec(writer, `ROLLBACK`)
		} else {
			if err := store.Commit(writer); err != nil {
				t.Fatal(err)
			}
			committed = now
		}
		if got, want := content(t, reader), fmt.Sprint(committed); got != want {
			t.Fatalf("step %d: others read %s, not %s", step, got, want)
		}
		switch r.IntN(12) {
		case 0: // what a process that is killed leaves behind
			copied := t.TempDir()
			for _, name := range []string{"w.db", "w.db-wal"} {
				b, err := os.ReadFile(filepath.Join(dir, name))
				if err == nil {
					err = os.WriteFile(filepath.Join(copied, name), b, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			c, err := sqlite3.Open("file:" + filepath.ToSlash(filepath.Join(copied, "w.db")))
			if err != nil {
				t.Fatal(err)
			}
			if got, want := content(t, c), fmt.Sprint(committed); got != want {
				t.Fatalf("step %d: a copy holds %s, not %s", step, got, want)
			}
			c.Close()
		case 1: // another connection empties the log
			exec(reader, `PRAGMA wal_checkpoint(TRUNCATE)`)
		case 2: // or writes to it
			exec(reader, `BEGIN IMMEDIATE; INSERT INTO v (id, n, filler) VALUES (100, 1, zeroblob(9000)); DELETE FROM v WHERE id = 100; COMMIT`)
		case 3:
			if err := writer.Close(); err != nil {
				t.Fatal(err)
			}
			writer = open()
			exec(writer, setup)
		}
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	if got := list(t, reader, `PRAGMA integrity_check`); got != "ok" {
		t.Error(got)
	}
}

// content returns the table as fmt prints the map that it holds.
func content(t *testing.T, c *sqlite3.Conn) string {
	return "map[" + list(t, c, `SELECT id || ':' || n FROM v ORDER BY id`) + "]"
}

func list(t *testing.T, c *sqlite3.Conn, query string) string {
	t.Helper()
	s, _, err := c.Prepare(query)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var rows []string
	for s.Step() {
		rows = append(rows, s.ColumnText(0))
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(rows, " ")
}

// A change costs one write to the log and one sync, however many pages it
// touches.
func TestWALWrites(t *testing.T) {
	v := &countingVFS{VFS: vfs.Find("")}
	s := openOn(t, v)
	plantRoot(t, s, "r")
	if err := update(s, "r"); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		writes, syncs := v.writes.Load(), v.syncs.Load()
		if err := update(s, "r"); err != nil {
			t.Fatal(err)
		}
		if w, n := v.writes.Load()-writes, v.syncs.Load()-syncs; w != 1 || n != 1 {
			t.Errorf("a change made %d writes and %d syncs", w, n)
		}
	}
}

// countingVFS counts the operations on WAL files.
type countingVFS struct {
	vfs.VFS
	writes, syncs atomic.Int64
}

func (v *countingVFS) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	f, flags, err := vfsutil.WrapOpenFilename(v.VFS, name, flags)
	if err == nil && flags&vfs.OPEN_WAL != 0 {
		f = &countingFile{f, v}
	}
	return f, flags, err
}

type countingFile struct {
	vfs.File
	v *countingVFS
}

func (f *countingFile) WriteAt(p []byte, off int64) (int, error) {
	f.v.writes.Add(1)
	return f.File.WriteAt(p, off)
}

func (f *countingFile) Sync(flags vfs.SyncFlag) error {
	f.v.syncs.Add(1)
	return f.File.Sync(flags)
}
