package server

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/durable"
	"github.com/orgd/orgd/internal/evidence"
	"github.com/orgd/orgd/internal/problem"
)

// anchor is the append-only file that keeps, outside of the database, every
// checkpoint that this server has signed, one a line:
//
//	{"at":"2026-11-25T09:30:00Z","root_id":"acme","checkpoint":"orgd.audit/…"}
//
// A log that was given up is marked as such:
//
//	{"at":"2026-11-25T09:30:00Z","root_id":"acme","log_id":"…","abandoned":"a backup was restored"}
//
// It implements evidence.Anchors and is safe for concurrent use.
type anchor struct {
	now  func() time.Time
	path string

	mu   sync.Mutex
	file *os.File
	torn bool // the last line may lack its end
	// unsafe says that a write or a sync has failed: what the file shows may not
	// be on the disk, and will not get there by further syncs.
	unsafe bool
	last   map[string]*anchored // by the ids of their audit logs
}

type anchorLine struct {
	At         time.Time `json:"at"`
	RootID     string    `json:"root_id"`
	Checkpoint string    `json:"checkpoint,omitzero"`
	LogID      string    `json:"log_id,omitzero"`
	Abandoned  string    `json:"abandoned,omitzero"`
}

// anchored is the last checkpoint of a log in the file.
type anchored struct {
	rootID string
	epoch  int64
	audit.Checkpoint
	signed []byte
}

// maxAnchor is the size, in bytes, from which a new file is begun at the next
// start, so that a start does not take long.
const maxAnchor = 16 << 20

// openAnchor opens the file, which it creates with mode 0600 if need be, and
// reads it. A line that is not whole, as a crash can leave it, is passed over.
//
// A file that has grown large is kept under another name, with the time behind
// it, and a new one begins with the last checkpoint of each log.
func openAnchor(path string, now func() time.Time, log *slog.Logger) (*anchor, error) {
	a, size, err := readAnchor(path, now, log)
	if err != nil || size < maxAnchor {
		return a, err
	}
	if err := a.beginAgain(); err != nil {
		log.Warn("the audit anchor has grown large, and a new one cannot be begun", "file", path, "bytes", size, "error", err)
	}
	return a, nil
}

// beginAgain puts a new file with what is in use in the place of the file.
func (a *anchor) beginAgain() error {
	path := a.path
	next := path + ".new"
	f, err := durable.Open(next, os.O_RDWR|os.O_TRUNC|os.O_APPEND)
	if err != nil {
		return err
	}
	b := &anchor{now: a.now, path: path, file: f, last: a.last}
	var lines []anchorLine
	for _, l := range a.last {
		lines = append(lines, anchorLine{At: a.now().UTC(), RootID: l.rootID, Checkpoint: string(l.signed)})
	}
	err = b.append(lines...)
	if err == nil {
		// The old file stays until the new one is whole.
		err = durable.Exchange(path, path+"."+a.now().UTC().Format("20060102T150405Z"), next)
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(next))
	}
	old := a.file
	a.file, a.torn, a.unsafe = f, false, false
	return old.Close()
}

func readAnchor(path string, now func() time.Time, log *slog.Logger) (_ *anchor, size int64, err error) {
	// What is appended to it counts for nothing if the file can go.
	f, err := durable.Create(path, os.O_RDWR|os.O_APPEND)
	if err != nil {
		return nil, 0, fmt.Errorf("the anchor of the audit logs cannot be opened: %w", err)
	}
	a := &anchor{now: now, path: path, file: f, last: map[string]*anchored{}}
	in := bufio.NewReaderSize(f, 1<<16)
	for n := 1; ; n++ {
		line, err := in.ReadBytes('\n')
		size += int64(len(line))
		if len(line) > 0 && !a.read(line) {
			log.Warn("a line of the audit anchor cannot be read", "file", path, "line", n)
		}
		if err == io.EOF {
			a.torn = len(line) > 0
			return a, size, nil
		}
		if err != nil {
			f.Close()
			return nil, 0, fmt.Errorf("the anchor of the audit logs cannot be read: %w", err)
		}
	}
}

// read takes in a line; false if it is not one.
func (a *anchor) read(line []byte) bool {
	var l anchorLine
	if json.Unmarshal(line, &l, json.RejectUnknownMembers(true)) != nil {
		return false
	}
	if l.Abandoned != "" {
		delete(a.last, l.LogID)
		return true
	}
	return a.take(l.RootID, []byte(l.Checkpoint)) == nil
}

// take makes a checkpoint the last one of its log, unless there is a later one.
func (a *anchor) take(rootID string, signed []byte) error {
	c, err := audit.ParseCheckpoint(signed)
	if err != nil {
		return err
	}
	logID, epoch, err := audit.ParseOrigin(c.Origin)
	if err != nil {
		return err
	}
	if old := a.last[logID]; old == nil || cmp.Or(cmp.Compare(old.epoch, epoch), cmp.Compare(old.Size, c.Size)) < 0 {
		a.last[logID] = &anchored{rootID: rootID, epoch: epoch, Checkpoint: c, signed: signed}
	}
	return nil
}

// Anchored implements evidence.Anchors.
func (a *anchor) Anchored(logID string) (audit.Checkpoint, bool) {
	if l := a.lastOf(logID); l != nil {
		return l.Checkpoint, true
	}
	return audit.Checkpoint{}, false
}

// lastOf returns what is anchored of an audit log; nil if nothing is.
func (a *anchor) lastOf(logID string) *anchored {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last[logID]
}

// Keep implements evidence.Anchors.
func (a *anchor) Keep(signed []*evidence.LogState) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	lines := make([]anchorLine, len(signed))
	for i, l := range signed {
		lines[i] = anchorLine{At: l.Signature.SignedAt, RootID: l.Head.RootID, Checkpoint: string(l.Signature.Checkpoint)}
	}
	if err := a.append(lines...); err != nil {
		return err
	}
	for _, l := range signed {
		if err := a.take(l.Head.RootID, l.Signature.Checkpoint); err != nil {
			return err
		}
	}
	return nil
}

// abandon forgets a log that the database no longer has. If that cannot be
// written, the error is problem.OutcomeUnknown where the line may be in the file
// all the same, for the next start to read, and says otherwise that nothing was
// changed.
func (a *anchor) abandon(logID, reason string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.last[logID]
	if l == nil {
		return nil
	}
	if err := a.append(anchorLine{At: a.now().UTC(), RootID: l.rootID, LogID: logID, Abandoned: reason}); err != nil {
		return notAbandoned(err)
	}
	delete(a.last, logID)
	return nil
}

// notAbandoned is what an error of append means to who abandons a log.
func notAbandoned(err error) error {
	var p *problem.Error
	switch {
	case errors.Is(err, errMaybe):
		p = problem.New(problem.OutcomeUnknown, "The audit anchor's disk has failed to confirm a write; the audit log may or may not be abandoned.").
			WithFix("Repeat the request: what it does is done once. See the server's log for what is wrong with the disk.")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		p = problem.New(problem.StorageFull, "The disk of the audit anchor is full; the audit log was not abandoned.").
			WithFix("Make room on that disk and repeat the request.")
	default:
		p = problem.New(problem.Unavailable, "The audit anchor cannot be written; the audit log was not abandoned.").
			WithFix("See the server's log for what is wrong with the file, and repeat the request.")
		p.RetryAfter = time.Second
	}
	return p.WithCause(err)
}

// errMaybe is in an error of append if the lines may be in the file.
var errMaybe = errors.New("what was written may be there")

// append writes lines and returns once they are on disk. After a failure it
// goes on in a new file. The error holds errMaybe if whoever reads the file may
// find the last of the lines in it.
func (a *anchor) append(lines ...anchorLine) error {
	if a.unsafe {
		if err := a.beginAgain(); err != nil {
			return fmt.Errorf("the anchor of the audit logs cannot be written anew after a failed write: %w", err)
		}
	}
	var b bytes.Buffer
	if a.torn {
		b.WriteByte('\n')
	}
	for i := range lines {
		line, err := json.Marshal(&lines[i])
		if err != nil {
			return err
		}
		b.Write(line)
		b.WriteByte('\n')
	}
	n, err := a.file.Write(b.Bytes())
	if n > 0 {
		a.torn = n < b.Len()
	}
	if err == nil {
		err = a.file.Sync()
	}
	if err != nil {
		a.unsafe = true
		if n >= b.Len()-1 { // a line counts without its end too
			err = errors.Join(err, errMaybe)
		}
		return fmt.Errorf("the anchor of the audit logs cannot be written: %w", err)
	}
	return nil
}

// all returns the ids of the anchored logs with their roots.
func (a *anchor) all() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	roots := make(map[string]string, len(a.last))
	for id, l := range a.last {
		roots[id] = l.rootID
	}
	return roots
}

func (a *anchor) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return errors.Join(a.file.Sync(), a.file.Close())
}
