package access

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/orgd/orgd/internal/ident"
)

// used returns the directory of a spool that has stored the records 0 to 9, and
// holds 10 to 19, which are not stored, as a crash leaves it.
func used(t *testing.T, sink *memorySink) (dir, id string) {
	t.Helper()
	dir = t.TempDir()
	opts := fast()
	opts.SegmentBytes = 1200
	r := open(t, dir, sink, opts)
	record(t, r, 0, 10)
	drain(t, r)
	sink.set(fail, nil)
	record(t, r, 10, 20)
	crash(r)
	sink.set(nil, nil)
	return dir, r.id
}

// withoutHeaders makes the segments of dir those of an older release.
func withoutHeaders(t *testing.T, dir string) {
	t.Helper()
	s := spool{dir: dir}
	if err := s.list(); err != nil {
		t.Fatal(err)
	}
	for _, g := range s.segments {
		b, err := os.ReadFile(s.path(g.number))
		if err != nil || len(b) == 0 {
			continue
		}
		_, n, err := nextRecord(b)
		if err == nil {
			err = os.WriteFile(s.path(g.number), b[n:], 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever becomes of the files that say which spool a directory holds, its
// requests are stored once, or the start is refused with the way out.
func TestTheIDIsLostOrChanged(t *testing.T) {
	write := func(dir, name, content string) error {
		return os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600)
	}
	for _, c := range []struct {
		name    string
		break_  func(t *testing.T, dir, id string) error
		refused string // the beginning of the way out; empty if it starts
		logged  string
	}{
		{"nothing", func(*testing.T, string, string) error { return nil }, "", ""},
		{"id lost", func(_ *testing.T, dir, _ string) error { return os.Remove(filepath.Join(dir, idFile)) }, "", "its segments tell the id"},
		{"id emptied", func(_ *testing.T, dir, _ string) error { return write(dir, idFile, "") }, "", "its segments tell the id"},
		{"id damaged", func(_ *testing.T, dir, id string) error { return write(dir, idFile, id[:8]+"\x00"+id[9:]) }, "", "its segments tell the id"},
		{"id with a letter flipped", func(_ *testing.T, dir, id string) error { return write(dir, idFile, id[:9]+"0"+id[10:]+"z\n") },
			"If that file was damaged or replaced, write spool_", ""},
		{"id of another spool", func(_ *testing.T, dir, _ string) error { return write(dir, idFile, ident.New("spool_")) },
			"If that file was damaged or replaced, write spool_", ""},
		{"segment of another spool", func(t *testing.T, dir, _ string) error {
			other, _ := spooled(t, 3)
			b, err := os.ReadFile(filepath.Join(other, fmt.Sprintf(segmentName, 1)))
			return errors.Join(err, os.WriteFile(filepath.Join(dir, fmt.Sprintf(segmentName, 900)), b, 0o600))
		}, "move it away", ""},
		{"segment of another spool with its number", func(t *testing.T, dir, _ string) error {
			b := appendHeader(nil, ident.New("spool_"), 900)
			return os.WriteFile(filepath.Join(dir, fmt.Sprintf(segmentName, 900)), b, 0o600)
		}, "move it away", ""},
		{"segment copied under another name", func(t *testing.T, dir, _ string) error {
			b, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf(segmentName, segments(t, dir)[0])))
			return errors.Join(err, os.WriteFile(filepath.Join(dir, fmt.Sprintf(segmentName, 900)), b, 0o600))
		}, "move it away", ""},
		{"older release", func(t *testing.T, dir, _ string) error {
			withoutHeaders(t, dir)
			return os.Remove(filepath.Join(dir, runFile))
		}, "", ""},
		{"older release, id lost", func(t *testing.T, dir, _ string) error {
			withoutHeaders(t, dir)
			return os.Remove(filepath.Join(dir, idFile))
		}, "Restore that file from a copy.", ""},
		{"run lost", func(_ *testing.T, dir, _ string) error { return os.Remove(filepath.Join(dir, runFile)) }, "", ""},
		{"run damaged", func(_ *testing.T, dir, _ string) error { return write(dir, runFile, "1\n") }, "remove that file", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			sink := newMemorySink()
			dir, id := used(t, sink)
			if c.name == "older release" { // whose positions are of files without headers
				sink = newMemorySink()
			}
			before := len(sink.ids())
			if err := c.break_(t, dir, id); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			opts := fast()
			opts.Logger = slog.New(slog.NewTextHandler(&log, nil))
			r, err := OpenRecorder(t.Context(), dir, sink, opts)
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Fatalf("the start: %v, want %q", err, c.refused)
				}
				if len(sink.ids()) != before {
					t.Errorf("a refused start has stored something")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer crash(r)
			record(t, r, 20, 25)
			drain(t, r)
			ids := sink.ids()
			slices.Sort(ids)
			if len(slices.Compact(ids)) != len(sink.ids()) {
				t.Errorf("stored twice: %v", ids)
			}
			if want := 25; before > 0 && len(ids) != want {
				t.Errorf("%d are stored, want %d", len(ids), want)
			}
			if !slices.Contains(ids, "19") || !slices.Contains(ids, "24") || r.ID() != id {
				t.Errorf("the spool %s has stored %v", r.ID(), ids)
			}
			if !strings.Contains(log.String(), c.logged) {
				t.Errorf("the log lacks %q:\n%s", c.logged, &log)
			}
		})
	}
}

// Of two directories with one spool in them the one that goes on has it. The
// other stores nothing under its id from then on, also where the positions
// happen to agree, and says so.
func TestTwoDirectoriesWithOneSpool(t *testing.T) {
	sink := newMemorySink()
	dir := t.TempDir()
	first := open(t, dir, sink, fast())
	record(t, first, 0, 3)
	drain(t, first)
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	second := open(t, copied, sink, fast()) // while the first one runs
	record(t, second, 3, 4)
	drain(t, second)
	if err := first.Record(testRecord(5)); err != nil { // which is as long as 3
		t.Fatal(err)
	}
	if err := first.Drain(timeout(t, 50e6)); err == nil {
		t.Error("what the first one recorded counts as stored")
	}
	wantIDs(t, sink, 0, 4)
	crash(first)

	for range 3 { // a refused start changes nothing
		if _, err := OpenRecorder(t.Context(), dir, sink, fast()); err == nil || !strings.Contains(err.Error(), "has gone on in another directory") {
			t.Fatalf("a copy of a spool was opened: %v", err)
		}
	}
	record(t, second, 4, 6)
	drain(t, second)
	crash(second)
	wantIDs(t, sink, 0, 6)
	record(t, open(t, copied, sink, fast()), 6, 7)
}

// A directory restored from a backup says nothing about what came after it. The
// operator can say that it is the one to go on with: then it does, after what is
// stored.
func TestASpoolRestoredFromABackup(t *testing.T) {
	sink := newMemorySink()
	dir := t.TempDir()
	r := open(t, dir, sink, fast())
	record(t, r, 0, 3)
	drain(t, r)
	crash(r)
	backup := t.TempDir()
	if err := os.CopyFS(backup, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	r = open(t, dir, sink, fast())
	record(t, r, 3, 6)
	drain(t, r)
	crash(r)
	if _, err := OpenRecorder(t.Context(), backup, sink, fast()); err == nil || !strings.Contains(err.Error(), "spool.run") {
		t.Fatalf("a backup was opened: %v", err)
	}
	if err := os.Remove(filepath.Join(backup, runFile)); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		r = open(t, backup, sink, fast())
		record(t, r, 6+n, 7+n)
		drain(t, r)
		crash(r)
	}
	wantIDs(t, sink, 0, 9)
	// The directory that was left is the copy now.
	if _, err := OpenRecorder(t.Context(), dir, sink, fast()); err == nil {
		t.Fatal("both directories were opened")
	}
}

// A database that is restored from a backup knows an earlier start. It gets what
// the spool still has.
func TestADatabaseThatKnowsAnEarlierStart(t *testing.T) {
	sink := newMemorySink()
	dir := t.TempDir()
	r := open(t, dir, sink, fast())
	record(t, r, 0, 3)
	drain(t, r)
	position, run := sink.positions[r.ID()], sink.runs[r.ID()]
	for range 3 {
		crash(r)
		r = open(t, dir, sink, fast())
	}
	record(t, r, 3, 5)
	drain(t, r)
	for _, restart := range []bool{true, false} {
		sink.mu.Lock()
		sink.positions[r.ID()], sink.runs[r.ID()], sink.events = position, run, sink.events[:3]
		sink.mu.Unlock()
		if restart {
			crash(r)
			r = open(t, dir, sink, fast())
		} else {
			record(t, r, 5, 6)
		}
		drain(t, r)
		wantIDs(t, sink, 0, 5+map[bool]int{false: 1}[restart])
	}
}
