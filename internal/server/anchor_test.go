package server

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/evidence"
	"github.com/orgd/orgd/internal/problem"
)

// signedLog returns a signed log of n entries.
func signedLog(t testing.TB, rootID, logID string, epoch int64, n int) *evidence.LogState {
	t.Helper()
	h := audit.NewHead(rootID, logID)
	h.Epoch = epoch
	for i := range n {
		h.Extend(audit.Hash{byte(i)})
	}
	k, err := audit.DeriveKey(make([]byte, audit.SeedSize), logID, epoch, 1)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := audit.SignCheckpoint(h, k)
	if err != nil {
		t.Fatal(err)
	}
	return &evidence.LogState{Head: h, Signature: &evidence.Signature{Size: h.Size, Checkpoint: signed, SignedAt: time.Unix(1_700_000_000, 0).UTC()}}
}

func TestAnchor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "anchor")
	var log bytes.Buffer
	open := func() *anchor {
		t.Helper()
		a, err := openAnchor(path, time.Now, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.file.Close() })
		return a
	}
	one, two := strings.Repeat("1", 32), strings.Repeat("2", 32)
	want := func(a *anchor, logID string, l *evidence.LogState) {
		t.Helper()
		c, ok := a.Anchored(logID)
		if l == nil && !ok {
			return
		}
		if l == nil || c != l.Head.Checkpoint() {
			t.Errorf("anchored of %s: %+v %t", logID, c, ok)
		}
	}
	a := open()
	want(a, one, nil)
	first, second := signedLog(t, "r", one, 0, 3), signedLog(t, "r", one, 0, 5)
	other, later := signedLog(t, "q", two, 0, 9), signedLog(t, "q", two, 1, 2)
	for _, l := range []*evidence.LogState{first, second, first, other, later} {
		if err := a.Keep([]*evidence.LogState{l}); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range []*anchor{a, open()} {
		want(a, one, second)
		want(a, two, later)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v %v", info.Mode(), err)
	}

	// A crash cut the last line short: what comes after it counts.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"at":"2026-11-25T09:30:00Z","root_id":"r","checkpo`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	third := signedLog(t, "r", one, 0, 6)
	a = open()
	if !strings.Contains(log.String(), "cannot be read") {
		t.Error("nobody is told of a line that is cut short")
	}
	if err := a.Keep([]*evidence.LogState{third}); err != nil {
		t.Fatal(err)
	}
	want(open(), one, third)

	if err := a.abandon(two, "test"); err != nil {
		t.Fatal(err)
	}
	for _, a := range []*anchor{a, open()} {
		want(a, one, third)
		want(a, two, nil)
	}
}

// A file that has grown large is kept, and what is in use begins a new one.
func TestAnchorBeginsAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "anchor")
	var lines bytes.Buffer
	for n := 0; lines.Len() < maxAnchor; n++ {
		fmt.Fprintf(&lines, `{"at":"2026-11-25T09:30:00Z","root_id":"r","checkpoint":"%s"}`+"\n", strings.Repeat("x", 4000))
	}
	if err := os.WriteFile(path, lines.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	id := strings.Repeat("1", 32)
	a, err := openAnchor(path, time.Now, log)
	if err != nil {
		t.Fatal(err)
	}
	defer a.file.Close()
	l := signedLog(t, "r", id, 0, 3)
	if err := a.Keep([]*evidence.LogState{l}); err != nil {
		t.Fatal(err)
	}
	if files, err := filepath.Glob(path + "*"); err != nil || len(files) != 2 {
		t.Errorf("the files are %v %v", files, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > 10_000 {
		t.Errorf("the new file has %d bytes, %v", info.Size(), err)
	}
	b, err := openAnchor(path, time.Now, log)
	if err != nil {
		t.Fatal(err)
	}
	defer b.file.Close()
	if c, ok := b.Anchored(id); !ok || c != l.Head.Checkpoint() {
		t.Errorf("anchored: %+v %t", c, ok)
	}
}

// After a write that has failed, which the disk may lack although the file shows
// it, what is in use begins a new file, and the old one is kept.
func TestAnchorAfterFailedWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "anchor")
	log := slog.New(slog.DiscardHandler)
	a, err := openAnchor(path, time.Now, log)
	if err != nil {
		t.Fatal(err)
	}
	id := strings.Repeat("1", 32)
	first, second := signedLog(t, "r", id, 0, 3), signedLog(t, "r", id, 0, 5)
	if err := a.Keep([]*evidence.LogState{first}); err != nil {
		t.Fatal(err)
	}
	a.file.Close()
	if err := a.Keep([]*evidence.LogState{second}); err == nil {
		t.Fatal("a failed write is not told")
	}
	if c, _ := a.Anchored(id); c != first.Head.Checkpoint() {
		t.Errorf("after the failure %+v is anchored", c)
	}
	a.file, err = os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Keep([]*evidence.LogState{second}); err != nil {
		t.Fatal(err)
	}
	defer a.file.Close()
	if files, err := filepath.Glob(path + "*"); err != nil || len(files) != 2 {
		t.Errorf("the files are %v %v", files, err)
	}
	b, err := openAnchor(path, time.Now, log)
	if err != nil {
		t.Fatal(err)
	}
	defer b.file.Close()
	if c, ok := b.Anchored(id); !ok || c != second.Head.Checkpoint() {
		t.Errorf("anchored: %+v %t", c, ok)
	}
}

// Who abandons a log whose anchor cannot be written is told whether it may be
// abandoned all the same. When the anchor can be written again, the request that is
// repeated does it.
func TestAnchorCannotTellThatALogIsAbandoned(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the files that fail are those of Linux")
	}
	id, kept := strings.Repeat("1", 32), strings.Repeat("2", 32)
	for name, test := range map[string]struct {
		file func(t *testing.T, path string) *os.File // takes the place of the anchor's
		code problem.Code
		// found says whether a start afterwards finds the log abandoned.
		found bool
	}{
		// A pipe takes what is written, and no sync.
		"written, not synced": {func(t *testing.T, path string) *os.File {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			go func() { // to what the start reads
				b := make([]byte, 1000)
				n, _ := r.Read(b)
				appendTo(t, path, b[:n])
			}()
			return w
		}, problem.OutcomeUnknown, true},
		"full": {func(t *testing.T, path string) *os.File {
			f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			return f
		}, problem.StorageFull, false},
		"not writable": {func(t *testing.T, path string) *os.File {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			return f
		}, problem.Unavailable, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "anchor")
			open := func() *anchor {
				t.Helper()
				a, err := openAnchor(path, time.Now, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { a.file.Close() })
				return a
			}
			a := open()
			if err := a.Keep([]*evidence.LogState{signedLog(t, "r", id, 0, 3), signedLog(t, "q", kept, 0, 2)}); err != nil {
				t.Fatal(err)
			}
			c := newCheckpointer(nil, a, nil, time.Hour, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
			c.refused[id] = evidence.Refusal{RootID: "r", LogID: id, Missing: true}
			a.file.Close()
			a.file = test.file(t, path)
			if err := c.Abandon(id, "gone"); !problem.Is(err, test.code) {
				t.Fatalf("error %v, want %s", err, test.code)
			}
			if len(c.Refused()) != 1 {
				t.Error("it is not known any more that the log is refused")
			}
			abandoned := func() bool { _, ok := open().Anchored(id); return !ok }
			for start := time.Now(); abandoned() != test.found; time.Sleep(time.Millisecond) {
				if time.Since(start) > 10*time.Second {
					t.Fatalf("a start finds the log abandoned: %t", !test.found)
				}
			}
			// What keeps the next file from being begun changes nothing either.
			if err := os.Mkdir(path+".new", 0o700); err != nil {
				t.Fatal(err)
			}
			if err := c.Abandon(id, "gone"); !problem.Is(err, problem.Unavailable) {
				t.Errorf("error %v, want %s", err, problem.Unavailable)
			}
			if err := os.Remove(path + ".new"); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				err := c.Abandon(id, "gone")
				if len(c.Refused()) != 0 || err != nil && !problem.Is(err, problem.NotFound) {
					t.Errorf("error %v with %d refused logs", err, len(c.Refused()))
				}
			}
			b := open()
			if _, ok := b.Anchored(id); ok {
				t.Error("the log is not abandoned")
			}
			if _, ok := b.Anchored(kept); !ok {
				t.Error("another log is abandoned")
			}
		})
	}
}

func appendTo(t *testing.T, path string, b []byte) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		t.Error(err)
	}
}
