package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/ncruces/go-sqlite3/driver"
	"github.com/ncruces/go-sqlite3/util/vfsutil"
	"github.com/ncruces/go-sqlite3/vfs"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/store/storetest"
	"github.com/orgd/orgd/internal/store/storetest/usagetest"
	"github.com/orgd/orgd/internal/testkit"
)

func openSQLite(t testing.TB, dir string, o store.Options) *store.Store {
	t.Helper()
	s, err := store.OpenSQLite(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// openOn opens a store in a new directory whose files are those of a VFS.
func openOn(t *testing.T, v vfs.VFS) *store.Store {
	t.Helper()
	vfs.Register(t.Name(), v)
	t.Cleanup(func() { vfs.Unregister(t.Name()) })
	return openSQLite(t, t.TempDir(), store.Options{VFS: t.Name()})
}

func TestSQLite(t *testing.T) {
	open := func(t testing.TB) *store.Store { return openSQLite(t, t.TempDir(), store.Options{}) }
	storetest.Run(t, open)
	usagetest.Run(t, open)
}

func TestSQLiteOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new %41?d&i=r+#")
	s, err := store.OpenSQLite(t.Context(), dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	plantRoot(t, s, "r")
	for name, mode := range map[string]fs.FileMode{"": 0o700, "orgd.db": 0o600, "orgd.lock": 0o600, "orgd.db-wal": 0o600, "orgd.db-shm": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		} else if info.Mode().Perm() != mode {
			t.Errorf("%q has mode %v", name, info.Mode())
		}
	}
	if s.Kind() != store.SQLite {
		t.Error(s.Kind())
	}

	if _, err := store.OpenSQLite(t.Context(), dir, store.Options{}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a second process: error %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"read":  testkit.Whole(s).Read(t.Context(), func(testkit.Tx) error { return nil }),
		"write": testkit.Whole(s).Write(t.Context(), func(testkit.Tx) error { return nil }),
		"ping":  s.Ping(t.Context()),
	} {
		if !problem.Is(err, problem.Unavailable) {
			t.Errorf("%s after close: error %v", name, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	s = openSQLite(t, dir, store.Options{})
	if size(t, s, "r") != 0 {
		t.Error("the log has entries")
	}
}

// size returns the size of a root's log.
func size(t testing.TB, s *store.Store, rootID string) int64 {
	t.Helper()
	var n int64
	err := testkit.Whole(s).Write(t.Context(), func(tx testkit.Tx) error {
		head, err := tx.Lock(rootID)
		if err == nil {
			n = head.Size
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func insertOrg(tx testkit.Tx, path string) error {
	ids := org.SplitPath(path)
	return tx.InsertOrgs([]*org.Organization{{ID: ids[len(ids)-1], RootID: ids[0], ParentID: ids[0], Path: path,
		Depth: len(ids) - 1, Name: path, Version: 1}})
}

// TestSQLiteGroup: a change that fails does not hurt those that share its
// commit.
func TestSQLiteGroup(t *testing.T) {
	s := openSQLite(t, t.TempDir(), store.Options{})
	plantRoot(t, s, "r")
	failure := errors.New("no")
	k := &key.Key{ID: "k", OrgID: "r", RootID: "r", SecretHash: []byte{1}, Version: 1}
	for round := range 20 {
		id := func(name string) string { return fmt.Sprintf("r/%s-%d/", name, round) }
		kinds := []string{"good", "fails", "panics", "breaks", "good-2", "fails-2", "good-3"}
		var changes []func(testkit.Tx) error
		for _, kind := range kinds {
			changes = append(changes, func(tx testkit.Tx) error {
				if err := insertOrg(tx, id(kind)); err != nil {
					return err
				}
				switch kind {
				case "fails", "fails-2":
					return failure
				case "panics":
					panic("oh")
				case "breaks": // violates a constraint of the engine, and hides it
					tx.InsertKey(k)
					tx.InsertKey(k)
				}
				return nil
			})
		}
		for i, err := range store.Group(s, changes...) {
			good := strings.HasPrefix(kinds[i], "good")
			if good != (err == nil) {
				t.Errorf("%s: error %v", kinds[i], err)
			}
			err := testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) error {
				_, err := tx.Org(org.SplitPath(id(kinds[i]))[1])
				return err
			})
			if good != (err == nil) {
				t.Errorf("%s: read: error %v", kinds[i], err)
			}
		}
	}
}

// A change that fails without having changed anything disturbs nobody. Those
// that share a commit with one that has are made once, though they run twice,
// even if what they found then is not what they find now.
func TestSQLiteGroupRunsAgain(t *testing.T) {
	s := openSQLite(t, t.TempDir(), store.Options{})
	plantRoot(t, s, "r")
	failure := errors.New("no")
	runs := make([]int, 6)
	count := func(i int, fn func(tx testkit.Tx) error) func(tx testkit.Tx) error {
		return func(tx testkit.Tx) error {
			runs[i]++
			return fn(tx)
		}
	}
	insert := func(path string) func(tx testkit.Tx) error {
		return func(tx testkit.Tx) error { return insertOrg(tx, path) }
	}
	errs := store.Group(s,
		count(0, insert("r/a/")),
		count(1, insert("r/a/")), // is taken
		count(2, func(tx testkit.Tx) error { return change(tx, "r") }))
	if errs[0] != nil || errs[1] == nil || errs[2] != nil || runs[0] != 1 || runs[2] != 1 {
		t.Errorf("errors %v after %v runs", errs, runs)
	}
	errs = store.Group(s,
		count(3, func(tx testkit.Tx) error {
			if runs[3] > 1 { // of two failures the second is the one that is told
				return failure
			}
			return insertOrg(tx, "r/b/")
		}),
		count(4, func(tx testkit.Tx) error { return change(tx, "r") }),
		func(tx testkit.Tx) error { return errors.Join(change(tx, "r"), failure) },
		count(5, insert("r/b/")))
	if !errors.Is(errs[0], failure) || errs[1] != nil || !errors.Is(errs[2], failure) || errs[3] != nil {
		t.Errorf("errors %v", errs)
	}
	if !slices.Equal(runs[3:], []int{2, 2, 1}) {
		t.Errorf("%v runs", runs[3:])
	}
	if n := size(t, s, "r"); n != 2 {
		t.Errorf("%d entries", n)
	}
}

// TestSQLiteGroupHeads: the head of a log is written for the first change of a
// group and before its commit, and whatever looks at it sees each change.
func TestSQLiteGroupHeads(t *testing.T) {
	dir := t.TempDir()
	s := openSQLite(t, dir, store.Options{})
	plantRoot(t, s, "r")
	plantRoot(t, s, "q")
	failure := errors.New("no")
	append1 := func(rootID string) func(tx testkit.Tx) error {
		return func(tx testkit.Tx) error { return change(tx, rootID) }
	}
	expect := func(want int64) func(tx testkit.Tx) error {
		return func(tx testkit.Tx) error {
			head, err := tx.Head("r", "", -1)
			if err == nil && head.Size != want {
				err = fmt.Errorf("the log has %d entries, not %d", head.Size, want)
			}
			return err
		}
	}
	stale := func(tx testkit.Tx) error {
		head, err := tx.Lock("r")
		if err != nil {
			return err
		}
		head.Size += 2
		if err := tx.AppendAudit(head, make([]audit.Record, 1)); !errors.Is(err, org.ErrStale) {
			return fmt.Errorf("a stale head: %v", err)
		}
		return nil
	}
	for round := range int64(3) {
		n := 4 * round
		for i, err := range store.Group(s, append1("r"), append1("q"), append1("r"), expect(n+2), append1("r"), stale, append1("r"), expect(n+4)) {
			if err != nil {
				t.Errorf("change %d: %v", i, err)
			}
		}
		if err := testkit.Whole(s).Read(t.Context(), expect(n+4)); err != nil {
			t.Error(err)
		}
	}
	written := store.HeadsWritten(s)
	for _, err := range store.Group(s, slices.Repeat([]func(testkit.Tx) error{append1("r")}, 10)...) {
		if err != nil {
			t.Error(err)
		}
	}
	if n := store.HeadsWritten(s) - written; n != 2 {
		t.Errorf("the head was written %d times for ten changes", n)
	}
	fails := func(tx testkit.Tx) error { return errors.Join(change(tx, "r"), failure) }
	for _, at := range []int{0, 2, 1} { // first, after others, and soon after that with savepoints
		changes := slices.Repeat([]func(testkit.Tx) error{append1("r")}, 4)
		changes[at] = fails
		for i, err := range store.Group(s, changes...) {
			if (i == at) != (err != nil) {
				t.Errorf("change %d: %v", i, err)
			}
		}
	}
	for i, err := range store.Group(s, append1("q"),
		func(tx testkit.Tx) error {
			head, err := tx.Lock("q")
			if err != nil {
				return err
			}
			return store.ClosedLog(tx, head, audit.Record{RootID: "q", Seq: head.Size, ID: "aud_last", OrgID: "q", Path: "q/", Leaf: []byte("{}"), Values: []byte("{}")})
		},
		func(tx testkit.Tx) error {
			if _, err := tx.Lock("q"); !errors.Is(err, org.ErrAbsent) {
				return fmt.Errorf("a closed log was locked: %v", err)
			}
			return nil
		}) {
		if err != nil {
			t.Errorf("change %d around the end of a log: %v", i, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openSQLite(t, dir, store.Options{})
	if n := size(t, s, "r"); n != 3*4+10+3*3 {
		t.Errorf("the log has %d entries", n)
	}
}

// TestSQLiteGroupAnswers: a change that failed, or had nothing to do, because of
// another that shares its commit does not hear so if that commit fails.
func TestSQLiteGroupAnswers(t *testing.T) {
	v := &faultyVFS{VFS: vfs.Find("")}
	s := openOn(t, v)
	plantRoot(t, s, "r")
	there := errors.New("it is there already")
	insert := func(tx testkit.Tx) error {
		if _, err := tx.Org("a"); err == nil {
			return there
		}
		return insertOrg(tx, "r/a/")
	}
	full := error(syscall.ENOSPC)
	v.write.Store(&full)
	for i, err := range store.Group(s, insert, insert) {
		if !problem.Is(err, problem.StorageFull) {
			t.Errorf("change %d: %v", i, err)
		}
	}
	v.write.Store(nil)
	if errs := store.Group(s, insert, insert); errs[0] != nil || errs[1] != there {
		t.Errorf("errors %v", errs)
	}
}

// A panic while a row is read leaves the statement usable.
func TestSQLitePanicInScan(t *testing.T) {
	s := openSQLite(t, t.TempDir(), store.Options{})
	plantRoot(t, s, "r")
	if errs := store.Group(s, func(tx testkit.Tx) error { return store.LockPanics(tx, "r") }); errs[0] == nil {
		t.Error("no error")
	}
	if err := update(s, "r"); err != nil {
		t.Error(err)
	}
}

// TestSQLiteAbandoned: a change whose caller gives up while it waits is not
// made.
func TestSQLiteAbandoned(t *testing.T) {
	s := openSQLite(t, t.TempDir(), store.Options{})
	plantRoot(t, s, "r")
	started, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		testkit.Whole(s).Write(context.Background(), func(testkit.Tx) error {
			close(started)
			<-release
			return nil
		})
	})
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(cancel)
	err := testkit.Whole(s).Write(ctx, func(tx testkit.Tx) error { return insertOrg(tx, "r/a/") })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	close(release)
	wg.Wait()
	plantRoot(t, s, "later")
	err = testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Org("a"); return err })
	if !errors.Is(err, org.ErrAbsent) {
		t.Errorf("read: error %v", err)
	}
}

// faultyVFS makes the operations on WAL files fail.
type faultyVFS struct {
	vfs.VFS
	write, sync atomic.Pointer[error]
}

func (v *faultyVFS) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	f, flags, err := vfsutil.WrapOpenFilename(v.VFS, name, flags)
	if err == nil && flags&vfs.OPEN_WAL != 0 {
		f = &faultyFile{f, v}
	}
	return f, flags, err
}

type faultyFile struct {
	vfs.File
	v *faultyVFS
}

func (f *faultyFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.v.write.Load(); err != nil {
		n, _ := f.File.WriteAt(p[:len(p)/2], off)
		return n, &fs.PathError{Op: "write", Path: "wal", Err: *err}
	}
	return f.File.WriteAt(p, off)
}

func (f *faultyFile) Sync(flags vfs.SyncFlag) error {
	if err := f.v.sync.Load(); err != nil {
		return &fs.PathError{Op: "sync", Path: "wal", Err: *err}
	}
	return f.File.Sync(flags)
}

func TestSQLiteFaults(t *testing.T) {
	for _, test := range []struct {
		name        string
		write, sync error
		want        problem.Code
	}{
		{"disk full", syscall.ENOSPC, nil, problem.StorageFull},
		{"quota exceeded", syscall.EDQUOT, nil, problem.StorageFull},
		{"write fails", syscall.EIO, nil, problem.OutcomeUnknown},
		{"sync fails", nil, syscall.EIO, problem.OutcomeUnknown},
		{"disk full in sync", nil, syscall.ENOSPC, problem.OutcomeUnknown},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := &faultyVFS{VFS: vfs.Find("")}
			name := strings.ReplaceAll(t.Name(), "/", "-")
			vfs.Register(name, v)
			defer vfs.Unregister(name)
			dir := t.TempDir()
			s, err := store.OpenSQLite(t.Context(), dir, store.Options{VFS: name})
			if err != nil {
				t.Fatal(err)
			}
			plantRoot(t, s, "r")
			acknowledged, unknown := int64(0), int64(0)
			for range 3 {
				if err := update(s, "r"); err != nil {
					t.Fatal(err)
				}
				acknowledged++
				if test.write != nil {
					v.write.Store(&test.write)
				}
				if test.sync != nil {
					v.sync.Store(&test.sync)
				}
				generation := s.OrgGeneration("r", "r")
				for _, err := range store.Group(s,
					func(tx testkit.Tx) error { return change(tx, "r") },
					func(tx testkit.Tx) error { return change(tx, "r") },
				) {
					if !problem.Is(err, test.want) {
						t.Errorf("error %v", err)
					}
				}
				if test.want == problem.OutcomeUnknown {
					unknown += 2
					if s.OrgGeneration("r", "r") == generation {
						t.Error("the generation stayed, though the change may be there")
					}
				}
				read := func() error {
					return testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Org("r"); return err })
				}
				if test.want != problem.OutcomeUnknown {
					if err := read(); err != nil {
						t.Errorf("read: %v", err)
					}
				}
				v.write.Store(nil)
				v.sync.Store(nil)
				if err := read(); err != nil { // once it is known what was made
					t.Errorf("read: %v", err)
				}
			}
			if err := update(s, "r"); err != nil {
				t.Errorf("after the fault: %v", err)
			}
			acknowledged++
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			s = openSQLite(t, dir, store.Options{})
			if n := size(t, s, "r"); n < acknowledged || n > acknowledged+unknown {
				t.Errorf("%d changes, %d acknowledged, %d unknown", n, acknowledged, unknown)
			}
		})
	}
}

const killDir = "ORGD_TEST_KILL_DIR"

// TestSQLiteKillChild is the process that TestSQLiteKill kills. It says which
// changes have been acknowledged.
func TestSQLiteKillChild(t *testing.T) {
	dir := os.Getenv(killDir)
	if dir == "" {
		t.Skip("runs as a process of TestSQLiteKill")
	}
	s, err := store.OpenSQLite(t.Context(), dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, rootID := range killRoots {
		go func() {
			for {
				if err := update(s, rootID); err != nil {
					panic(err)
				}
				// One write call each: a line is complete or absent.
				os.Stdout.WriteString("acknowledged " + rootID + "\n")
			}
		}()
	}
	select {}
}

var killRoots = strings.Fields("a b c d e f g h")

// TestSQLiteKill: whatever was acknowledged is there after kill -9.
func TestSQLiteKill(t *testing.T) {
	dir := t.TempDir()
	s, err := store.OpenSQLite(t.Context(), dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, rootID := range killRoots {
		plantRoot(t, s, rootID)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	acknowledged := map[string]int64{}
	for round := range 5 {
		child := exec.Command(os.Args[0], "-test.run=^TestSQLiteKillChild$")
		child.Env = append(os.Environ(), killDir+"="+dir)
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); {
			if rootID, ok := strings.CutPrefix(lines.Text(), "acknowledged "); ok {
				acknowledged[rootID]++
				if n++; n == 200+37*round {
					child.Process.Kill()
				}
			}
		}
		child.Wait()
		s, err := store.OpenSQLite(t.Context(), dir, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, rootID := range killRoots {
			n := size(t, s, rootID)
			if n < acknowledged[rootID] {
				t.Errorf("round %d, %s: %d changes, %d were acknowledged", round, rootID, n, acknowledged[rootID])
			}
			acknowledged[rootID] = n
			var seqs []int64
			err := testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) error {
				q := org.AuditQuery{RootID: rootID, OrgID: rootID, Path: rootID + "/", Ascending: true, Limit: 1000}
				for q.After >= 0 {
					p, err := tx.AuditEntries(q)
					if err != nil {
						return err
					}
					for _, r := range p.Records {
						seqs = append(seqs, r.Seq)
					}
					q.After = p.Next
				}
				o, err := tx.Org(rootID)
				if err == nil && o.Version != n+1 {
					t.Errorf("%s: version %d after %d changes", rootID, o.Version, n)
				}
				return err
			})
			if err != nil || int64(len(seqs)) != n || !slices.IsSorted(seqs) {
				t.Errorf("%s: %d entries of %d, error %v", rootID, len(seqs), n, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A database that a newer orgd has migrated is not opened, and not touched.
func TestSQLiteNewer(t *testing.T) {
	dir := t.TempDir()
	s, err := store.OpenSQLite(t.Context(), dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := driver.Open("file:" + filepath.Join(dir, "orgd.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, TRUE)"); err != nil {
		t.Fatal(err)
	}
	if s, err := store.OpenSQLite(t.Context(), dir, store.Options{}); err == nil {
		s.Close()
		t.Error("it was opened")
	} else if !strings.Contains(err.Error(), "a newer orgd has used it") {
		t.Errorf("it was refused with %q", err)
	}
}
