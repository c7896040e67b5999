package store_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/util/vfsutil"
	"github.com/ncruces/go-sqlite3/vfs"

	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/testkit"
)

// cacheVFS has files as Linux has them on ext4: what is written is in the page
// cache until a sync brings it to the disk. A sync that fails forgets which
// pages were to be written; the cache goes on showing them, and later syncs
// succeed.
type cacheVFS struct {
	vfs.VFS

	mu    sync.Mutex
	disks map[string]*diskFile // by base name
	// fault is asked before an operation (write, sync, truncate) on a file; it
	// is kept for those that follow if it returns true.
	fault func(op, name string) bool
	lasts bool // faults do not go away by themselves
}

const cachePage = 4096

// diskFile is what the disk has of a file.
type diskFile struct {
	pages map[int64][]byte // those that only the cache has under -1 - n
	size  int64
	dirty map[int64]bool // pages that only the cache has
}

func newCacheVFS() *cacheVFS {
	return &cacheVFS{VFS: vfs.Find(""), disks: map[string]*diskFile{}}
}

// clone returns a VFS with the same disk and the same cache; v.mu is held.
func (v *cacheVFS) clone() *cacheVFS {
	c := newCacheVFS()
	for name, d := range v.disks {
		c.disks[name] = &diskFile{pages: maps.Clone(d.pages), size: d.size, dirty: maps.Clone(d.dirty)}
	}
	return c
}

func (v *cacheVFS) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	f, flags, err := vfsutil.WrapOpenFilename(v.VFS, name, flags)
	if err != nil || flags&(vfs.OPEN_WAL|vfs.OPEN_MAIN_DB) == 0 {
		return f, flags, err
	}
	base := filepath.Base(name.String())
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.disks[base] == nil {
		v.disks[base] = &diskFile{pages: map[int64][]byte{}, dirty: map[int64]bool{}}
	}
	return &cachedFile{f, v, base, v.disks[base]}, flags, nil
}

// failNext makes the next such operation fail.
func (v *cacheVFS) failNext(op, name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fault = func(o, n string) bool { return o == op && n == name }
}

func (v *cacheVFS) repair() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fault = nil
}

func (v *cacheVFS) fails(op, name string) bool {
	if v.fault == nil || !v.fault(op, name) {
		return false
	}
	if !v.lasts {
		v.fault = nil
	}
	return true
}

// cut returns a directory with what is left after a loss of power: of what was
// not synced any page may be there or not.
func (v *cacheVFS) cut(t *testing.T, r *rand.Rand) string {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	dir := t.TempDir()
	for name, d := range v.disks {
		b := make([]byte, d.size)
		for n, page := range d.pages {
			if off := n * cachePage; off < d.size {
				copy(b[off:], page)
			}
		}
		for n := range d.dirty {
			if r.IntN(2) == 0 {
				continue
			}
			if page := d.pages[-1-n]; page != nil {
				if end := n*cachePage + int64(len(page)); end > int64(len(b)) {
					b = append(b, make([]byte, end-int64(len(b)))...)
				}
				copy(b[n*cachePage:], page)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

type cachedFile struct {
	vfs.File
	v    *cacheVFS
	name string
	disk *diskFile
}

func (f *cachedFile) Unwrap() vfs.File               { return f.File }
func (f *cachedFile) SharedMemory() vfs.SharedMemory { return vfsutil.WrapSharedMemory(f.File) }

// page returns a page of the cache.
func (f *cachedFile) page(n int64) []byte {
	b := make([]byte, cachePage)
	read, _ := f.File.ReadAt(b, n*cachePage)
	return b[:read]
}

func (f *cachedFile) WriteAt(p []byte, off int64) (int, error) {
	f.v.mu.Lock()
	defer f.v.mu.Unlock()
	failed := f.v.fails("write", f.name)
	n, err := f.File.WriteAt(p, off)
	for page := off / cachePage; page <= (off+int64(len(p))-1)/cachePage; page++ {
		f.disk.dirty[page] = true
		f.disk.pages[-1-page] = f.page(page) // as the cache has it
	}
	if failed {
		f.disk.forget()
		return 0, &fs.PathError{Op: "write", Path: f.name, Err: syscall.EIO}
	}
	return n, err
}

// forget is what a failed write-back does.
func (d *diskFile) forget() {
	for page := range d.dirty {
		delete(d.pages, -1-page)
	}
	clear(d.dirty)
}

func (f *cachedFile) Sync(flags vfs.SyncFlag) error {
	f.v.mu.Lock()
	defer f.v.mu.Unlock()
	d := f.disk
	size, err := f.File.Size()
	if err != nil {
		return err
	}
	failed := f.v.fails("sync", f.name)
	if failed {
		d.forget()
	}
	for page := range d.dirty {
		d.pages[page] = f.page(page)
		delete(d.pages, -1-page)
	}
	clear(d.dirty)
	d.size = size // metadata is in the journal of the file system
	for page := range d.pages {
		if page >= 0 && page*cachePage >= size {
			delete(d.pages, page)
		}
	}
	if failed {
		return &fs.PathError{Op: "sync", Path: f.name, Err: syscall.EIO}
	}
	return nil
}

func (f *cachedFile) Truncate(size int64) error {
	f.v.mu.Lock()
	defer f.v.mu.Unlock()
	if f.v.fails("truncate", f.name) {
		return &fs.PathError{Op: "truncate", Path: f.name, Err: syscall.EIO}
	}
	for page := range f.disk.dirty {
		if page*cachePage >= size {
			delete(f.disk.dirty, page)
			delete(f.disk.pages, -1-page)
		}
	}
	return f.File.Truncate(size)
}

// insertMany adds organizations that fill many pages.
func insertMany(s *store.Store, from, n int) error {
	return testkit.Whole(s).Write(context.Background(), func(tx testkit.Tx) error {
		for i := range n {
			if err := insertOrg(tx, fmt.Sprintf("r/%06d-%s/", from+i, strings.Repeat("x", 200))); err != nil {
				return err
			}
		}
		return nil
	})
}

// TestSQLiteFailedWrite: whatever is acknowledged after a write that failed is
// there after a loss of power, at any moment; also after the process was killed
// and another has gone on.
func TestSQLiteFailedWrite(t *testing.T) {
	const db, wal = "orgd.db", "orgd.db-wal"
	empty := func(s *store.Store) {
		ctx, cancel := context.WithTimeout(context.Background(), 400*time.Millisecond)
		defer cancel()
		s.Scrub(ctx)
	}
	update1 := func(t *testing.T, s *store.Store) { update(s, "r") }
	for _, test := range []struct {
		name string
		// fail has an operation fail.
		fail func(t *testing.T, v *cacheVFS, s *store.Store)
		// What is lost without protection, if the process lives on and if it is killed.
		loses, losesKilled bool
	}{
		{"sync of a commit", func(t *testing.T, v *cacheVFS, s *store.Store) {
			v.failNext("sync", wal)
			update1(t, s)
		}, true, true},
		{"write of a frame", func(t *testing.T, v *cacheVFS, s *store.Store) {
			v.failNext("write", wal)
			update1(t, s)
		}, false, false}, // the next commit writes the same place
		{"sync of the log before a checkpoint", func(t *testing.T, v *cacheVFS, s *store.Store) {
			v.failNext("sync", wal)
			empty(s)
		}, false, false}, // there is nothing that was not synced
		{"sync of the database", func(t *testing.T, v *cacheVFS, s *store.Store) {
			// A reader of an old state lets the checkpoint copy a part of the log.
			if err := insertMany(s, 0, 300); err != nil {
				t.Fatal(err)
			}
			err := testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) error {
				if _, err := tx.Org("r"); err != nil {
					return err
				}
				if err := insertMany(s, 300, 300); err != nil {
					return err
				}
				empty(s)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			v.failNext("sync", db)
			empty(s)
			empty(s)
		}, true, false}, // the next process copies the whole log
		{"write to the database", func(t *testing.T, v *cacheVFS, s *store.Store) {
			v.failNext("write", db)
			empty(s)
		}, false, false}, // the next checkpoint writes the same pages
		{"truncation of the log", func(t *testing.T, v *cacheVFS, s *store.Store) {
			v.failNext("truncate", wal)
			empty(s)
		}, false, false},
	} {
		for _, protected := range []bool{true, false} {
			for _, killed := range []bool{false, true} {
				loses := test.loses && !killed || test.losesKilled && killed
				if !protected && !loses {
					continue
				}
				t.Run(fmt.Sprintf("%s/protected=%v/killed=%v", test.name, protected, killed), func(t *testing.T) {
					lost := loseOnFault(t, protected, killed, test.fail)
					switch {
					case protected && lost != "":
						t.Error(lost)
					case !protected && lost == "":
						t.Error("the control has lost nothing")
					}
				})
			}
		}
	}
}

// loseOnFault returns what is lost, empty for nothing.
func loseOnFault(t *testing.T, protected, killed bool, fail func(*testing.T, *cacheVFS, *store.Store)) (lost string) {
	v := newCacheVFS()
	name := strings.NewReplacer("/", "-", "=", "-", " ", "-").Replace(t.Name())
	vfs.Register(name, v)
	defer vfs.Unregister(name)
	o := store.Options{VFS: name}
	if !protected {
		o = store.Trusting(o)
	}
	dir := t.TempDir()
	s, err := store.OpenSQLite(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	plantRoot(t, s, "r")
	acknowledged := int64(0)
	change := func() {
		// A change that is refused is repeated, as its caller would.
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			err := update(s, "r")
			if err == nil {
				acknowledged++
				return
			}
			if !problem.Is(err, problem.Unavailable) || time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	check := func() {
		if missing := missingAfter(t, v.cut(t, r), acknowledged); missing != "" && lost == "" {
			lost = missing
		}
	}
	for range 5 {
		change()
	}
	check()
	v.lasts = killed // so that nothing is mended before the kill
	fail(t, v, s)
	if killed {
		// What is in the page cache stays.
		copied := t.TempDir()
		v.mu.Lock() // a moment, between two writes
		for _, name := range []string{"orgd.db", "orgd.db-wal"} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err == nil {
				err = os.WriteFile(filepath.Join(copied, name), b, 0o600)
			}
			if err != nil {
				t.Error(err)
			}
		}
		v2 := v.clone()
		v.mu.Unlock()
		defer s.Close()
		vfs.Register(name+"2", v2)
		defer vfs.Unregister(name + "2")
		o.VFS = name + "2"
		if s, err = store.OpenSQLite(t.Context(), copied, o); err != nil {
			t.Fatal(err)
		}
		v = v2
	}
	for range 4 {
		for range 3 {
			change()
		}
		check()
	}
	if err := s.Scrub(t.Context()); err != nil {
		t.Error(err)
	}
	check()
	change()
	check()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	return lost
}

// missingAfter opens what a loss of power has left and returns what it lacks.
func missingAfter(t *testing.T, dir string, acknowledged int64) string {
	t.Helper()
	s, err := store.OpenSQLite(t.Context(), dir, store.Options{})
	if err != nil {
		return err.Error()
	}
	var n int64
	err = testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) error {
		head, err := tx.Head("r", "", -1)
		if err == nil {
			n = head.Size
		}
		return err
	})
	if err = errors.Join(err, s.Close()); err != nil {
		return err.Error()
	}
	if n < acknowledged {
		return fmt.Sprintf("%d of %d changes are there", n, acknowledged)
	}
	c, err := sqlite3.Open("file:" + filepath.ToSlash(filepath.Join(dir, "orgd.db")))
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	if got := list(t, c, `PRAGMA integrity_check`); got != "ok" {
		return got
	}
	return ""
}

// TestSQLiteUnsettled: while it is not known whether a change was made, nothing
// reads the state from before it, and nothing is changed; and the change that is
// read afterwards is there after a loss of power.
func TestSQLiteUnsettled(t *testing.T) {
	v := newCacheVFS()
	v.lasts = true
	s := openOn(t, v)
	plantRoot(t, s, "r")
	read := func() (version int64, err error) {
		err = testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) error {
			o, err := tx.Org("r")
			if err == nil {
				version = o.Version
			}
			return err
		})
		return version, err
	}
	if _, err := read(); err != nil {
		t.Fatal(err)
	}
	v.failNext("sync", "orgd.db-wal")
	generation := s.OrgGeneration("r", "r")
	if err := update(s, "r"); !problem.Is(err, problem.OutcomeUnknown) {
		t.Fatalf("error %v", err)
	}
	if s.OrgGeneration("r", "r") == generation {
		t.Error("what was cached before would be served")
	}
	generation = s.OrgGeneration("r", "r")
	var p *problem.Error
	if err := update(s, "r"); !problem.Is(err, problem.Unavailable) || !errors.As(err, &p) || p.RetryAfter == 0 {
		t.Errorf("a change: error %v", err)
	}
	start := time.Now()
	if _, err := read(); !problem.Is(err, problem.Unavailable) || !errors.As(err, &p) || p.RetryAfter == 0 {
		t.Errorf("a read: error %v", err)
	}
	if took := time.Since(start); took < time.Second || took > 10*time.Second {
		t.Errorf("the read waited %v", took)
	}
	if err := s.Ping(t.Context()); !problem.Is(err, problem.Unavailable) {
		t.Errorf("ping: error %v", err)
	}
	if err := s.Scrub(t.Context()); !problem.Is(err, problem.Unavailable) {
		t.Errorf("scrub: error %v", err)
	}
	v.repair()
	version, err := read() // waits, and nobody changes anything meanwhile
	if err != nil {
		t.Fatal(err)
	}
	if s.OrgGeneration("r", "r") == generation {
		t.Error("what was cached meanwhile would be served")
	}
	if missing := missingAfter(t, v.cut(t, rand.New(rand.NewPCG(1, 2))), version-1); missing != "" {
		t.Error(missing)
	}
	if err := s.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if err := update(s, "r"); err != nil {
		t.Error(err)
	}
}
