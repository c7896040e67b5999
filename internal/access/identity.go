package access

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/orgd/orgd/internal/durable"
	"github.com/orgd/orgd/internal/ident"
)

// maxHeader is more than the header of a segment takes, in bytes.
const maxHeader = 256

// headed returns whose the segment is by its header. ok is false if it has none
// that can be read: it is empty, damaged, or an older release wrote it.
func (s *spool) headed(g *segment) (spoolID string, number int64, ok bool, err error) {
	if g.size == 0 {
		return "", 0, false, nil
	}
	f, err := os.Open(s.path(g.number))
	if err != nil {
		return "", 0, false, err
	}
	defer f.Close()
	b := make([]byte, maxHeader)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", 0, false, err
	}
	spoolID, number, ok = parseHeader(b[:n])
	return spoolID, number, ok, nil
}

// identify finds out the id of the spool: its file says it, and so do the
// segments. Where they disagree, requests would be counted twice or not at all,
// so that is an error. first says that the spool has just been made.
func (s *spool) identify(log *slog.Logger) (first bool, err error) {
	name := filepath.Join(s.dir, idFile)
	b, err := os.ReadFile(name)
	missing := errors.Is(err, os.ErrNotExist)
	if err != nil && !missing {
		return false, err
	}
	said := strings.TrimSpace(string(b))
	if !ident.Valid(said) {
		said = ""
	}
	headed, nameless, err := s.owner(said)
	if err != nil {
		return false, err
	}
	s.id = cmp.Or(said, headed)
	switch {
	case said != "" && (headed == "" || headed == said):
		return false, durable.Settle(name)
	case said != "":
		return false, fmt.Errorf(`%s says that this is the spool %s, and its segments are those of %s.
If that file was damaged or replaced, write %s into it; if the segments came from another directory, move them away`, name, said, headed, headed)
	case headed != "":
		log.Warn("the file with the id of the spool was missing or damaged; its segments tell the id, and it is written again", "file", name, "spool", headed)
	case nameless != "":
		return false, fmt.Errorf(`%s is missing or damaged, and what %s holds could be counted twice without it.
Restore that file from a copy. If none is left, move the files *%s away: what they hold and the database does not is lost then`, name, nameless, segmentExt)
	case !missing:
		return false, fmt.Errorf("%s does not hold the id of a spool; restore it from a copy, or remove it: there is nothing in the spool that is not stored", name)
	default:
		s.id = ident.New("spool_")
		first = true
	}
	return first, durable.Write(name, []byte(s.id+"\n"))
}

// owner returns the id that the headers of the segments say, and the name of a
// segment that has something in it and no header; empty for none. It is an error
// if they are of several spools, or if one has another's number.
func (s *spool) owner(said string) (id, nameless string, err error) {
	for i := range s.segments {
		g := &s.segments[i]
		name := s.path(g.number)
		of, number, ok, err := s.headed(g)
		switch {
		case err != nil:
			return "", "", err
		case !ok && g.size > 0:
			nameless = name
		case !ok:
		case number != g.number:
			return "", "", fmt.Errorf("%s is a copy of the segment %d under another name; move it away, or its requests are counted twice", name, number)
		case id != "" && id != of:
			if of == said {
				of = id
				name = "a segment before " + name
			}
			return "", "", fmt.Errorf("%s is of the spool %s, which is not the one in this directory; move it away, or its requests may be counted twice", name, of)
		default:
			id = of
		}
	}
	return id, nameless, nil
}

// lastRun returns the run that last had this directory. ok is false if the file
// that says it is not there: an older release had it, or somebody has removed it
// to say that this is the directory to go on with.
func lastRun(dir string) (r Run, ok bool, err error) {
	name := filepath.Join(dir, runFile)
	b, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return r, false, nil
	} else if err != nil {
		return r, false, err
	}
	if n, err := fmt.Sscanf(string(b), "%d %s\n", &r.Number, &r.Nonce); err != nil || n != 2 || r.Number < 1 || !ident.Valid(r.Nonce) {
		return r, false, fmt.Errorf("%s is damaged; if no other process uses a copy of this directory, remove that file", name)
	}
	return r, true, nil
}

// take makes this process the one that stores what is in the spool. It fails if
// the spool has gone on in another directory: the stored position says nothing
// about this one then, and nobody but the operator can tell what is to be done.
func (r *Recorder) take(ctx context.Context) error {
	s, log := &r.spool, r.opts.Logger
	r.id = s.id
	state, err := r.sink.SpoolState(ctx, r.id)
	if err != nil {
		return err
	}
	last, ok, err := lastRun(s.dir)
	if err != nil {
		return err
	}
	if !ok {
		last = state.Run
	}
	run := Run{Number: last.Number + 1, Nonce: ident.New("run_"), Before: last.Nonce}
	if run.Follows(state.Run) {
		if err := durable.Write(filepath.Join(s.dir, runFile), fmt.Appendf(nil, "%d %s\n", run.Number, run.Nonce)); err != nil {
			return err
		}
		if state, err = r.sink.TakeSpool(ctx, r.id, run, place(s.dir), r.opts.Now()); err != nil {
			return err
		}
		if was := state.Run.Number; 0 < was && was < last.Number {
			log.Warn("the database knows an earlier start of the spool than its directory does; was it restored from a backup?",
				"spool", r.id, "start", last.Number, "known_start", was)
		}
	}
	if run.Follows(state.Run) {
		r.run, r.stored = run, state.Position
		return nil
	}
	return fmt.Errorf(`the spool %s has gone on in another directory, of which this one is a copy or a backup.
If that directory is still there, go on with it. To start here, move %s away: what it holds and
the database lacks is then not counted. Only if no other directory of this spool is left and nothing may be lost, remove
%s instead: what the spool holds after the stored position is then stored`, r.id, s.dir, filepath.Join(s.dir, runFile))
}

// place names the machine and the directory, for people.
func place(dir string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	if path, err := filepath.Abs(dir); err == nil {
		dir = path
	}
	return host + ":" + dir
}
