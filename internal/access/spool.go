package access

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/orgd/orgd/internal/durable"
)

const (
	idFile      = "spool.id"
	runFile     = "spool.run"
	lockName    = "spool.lock"
	segmentExt  = ".spool"
	damagedExt  = ".damaged"
	newExt      = ".new" // of durable.Write
	readAtOnce  = 1 << 20
	segmentName = "%020d" + segmentExt

	// spareName is an empty file that has the disk space of a segment and
	// becomes the next one.
	spareName = "spare"
	// reserveMargin is room for the record that goes past a segment's limit.
	reserveMargin = 64 << 10
)

// file is what a spool needs of the file that it appends to.
type file interface {
	Write(b []byte) (int, error)
	Truncate(size int64) error
	Sync() error
	Close() error
}

func openFile(name string) (file, error) {
	f, err := durable.Open(name, os.O_WRONLY|os.O_APPEND)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// sealedFile is the file of a segment that gets no more records.
type sealedFile struct {
	file
	number int64
}

// segment is one file of a spool.
type segment struct {
	number  int64
	size    int64 // of its complete records, in bytes
	records int64 // those that are not stored yet
}

// spool is a directory of segments. Records are appended to the last one. It
// is guarded by its Recorder's mutex.
type spool struct {
	dir      string
	id       string
	open     func(name string) (file, error)
	limit    int64 // the size from which on a segment gets no more records
	segments []segment
	active   file      // the last segment
	begun    time.Time // when it was started, or opened again
	// torn says that the last segment may hold bytes after its size, which
	// a failed write left there.
	torn bool
	// written says that the last segment has records that were not synced.
	written bool
	// created says that a segment was created and the directory not synced.
	created bool
	// failed says that a write of the last segment failed, which gets no more
	// records then.
	failed bool
	// sealed holds the files before the last one that were not synced.
	sealed []sealedFile
	// unsafe holds the numbers of segments of which a sync failed: what they
	// hold can be read until the next loss of power, and no later sync makes it
	// durable. They are written again; see Recorder.rewrite.
	unsafe []int64
	// spare says that there is a spare file with its space reserved, and
	// ahead that the last segment has its own.
	spare, ahead bool
}

func (s *spool) path(number int64) string {
	return filepath.Join(s.dir, fmt.Sprintf(segmentName, number))
}

func (s *spool) last() *segment { return &s.segments[len(s.segments)-1] }

// end is the position after the last record.
func (s *spool) end() Position {
	last := s.last()
	return Position{last.number, last.size}
}

// find returns the index of the first segment that is not before number.
func (s *spool) find(number int64) int {
	i, _ := slices.BinarySearchFunc(s.segments, number, func(g segment, n int64) int {
		return int(min(1, max(-1, g.number-n)))
	})
	return i
}

// after returns how many bytes and records lie after p and are not stored.
func (s *spool) after(p Position) (size, records int64) {
	for _, g := range s.segments[s.find(p.Segment):] {
		size += g.size
		if g.number == p.Segment {
			size -= min(p.Offset, g.size)
		}
		records += g.records
	}
	return size, records
}

// append writes b, which is one record, with one call of write(2), together with
// the header if the segment is empty, and returns how many bytes that took.
// After an error nothing of b will ever be read.
func (s *spool) append(b []byte) (written int64, err error) {
	if s.torn {
		if err := s.active.Truncate(s.last().size); err != nil {
			return 0, fmt.Errorf("cutting off a failed write: %w", err)
		}
		s.torn = false
		s.reserve()
	}
	if size := s.last().size; size >= s.limit || s.failed && size > 0 {
		if err := s.roll(s.last().number + 1); err != nil {
			return 0, err
		}
	}
	if s.last().size == 0 {
		b = append(appendHeader(nil, s.id, s.last().number), b...)
	}
	n, err := s.active.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		// Cutting a file off gives up what is reserved behind its end.
		if s.torn = s.active.Truncate(s.last().size) != nil; !s.torn {
			s.reserve()
		}
		s.failed = true
		return 0, err
	}
	s.last().size += int64(len(b))
	s.last().records++
	s.written = true
	return int64(len(b)), nil
}

// roll starts a new segment. The one before it is complete from then on.
func (s *spool) roll(number int64) error {
	if s.torn {
		return errors.New("the last segment has a failed write at its end")
	}
	if s.spare {
		s.spare = false
		if err := os.Rename(filepath.Join(s.dir, spareName), s.path(number)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	f, err := s.open(s.path(number))
	if err != nil {
		return err
	}
	if s.active != nil {
		s.sealed = append(s.sealed, sealedFile{s.active, s.last().number})
	}
	s.active, s.written, s.created, s.failed, s.begun = f, false, true, false, time.Now()
	s.reserve()
	s.segments = append(s.segments, segment{number: number})
	return nil
}

// reserved is the disk space that a segment takes ahead of its records.
func (s *spool) reserved() int64 { return s.limit + reserveMargin }

// reserve reserves space for the rest of the last segment. Where that fails,
// records are refused as soon as the disk is full, and that is all.
func (s *spool) reserve() {
	if f, ok := s.active.(*os.File); ok {
		s.ahead = reserve(f, s.reserved()) == nil
	}
}

// makeSpare makes the spare file, so that at least a segment's worth of
// records can be written to a full disk. Of the locks it needs sparing alone, while
// there is no spare. An error means that there is no space for it now, or, if it is
// errors.ErrUnsupported, that the file system reserves none.
func (s *spool) makeSpare() error {
	name := filepath.Join(s.dir, spareName)
	f, err := durable.Open(name, os.O_WRONLY)
	if err != nil {
		return err
	}
	// A loss of power may have undone its renaming; and it gives up what an earlier
	// process has reserved beyond what is reserved now.
	if err = f.Truncate(0); err == nil {
		err = reserve(f, s.reserved())
	}
	if err := errors.Join(err, f.Close()); err != nil {
		// What was reserved in part would be lacking elsewhere.
		os.Remove(name)
		return err
	}
	return nil
}

// drop forgets the segments before p and returns them. The segment of p is
// kept, so that a position before the first segment shows that some are gone.
func (s *spool) drop(p Position) []segment {
	n := min(s.find(p.Segment), len(s.segments)-1)
	dropped := s.segments[:n]
	s.segments = slices.Clone(s.segments[n:])
	return dropped
}

// closeSealed closes the files that are complete without syncing them.
func (s *spool) closeSealed() {
	for _, f := range s.sealed {
		f.Close()
	}
	s.sealed = nil
}

// reopen opens the segments before the last one, so that they are synced: the
// process that wrote them may have ended before it did that.
func (s *spool) reopen() error {
	for _, g := range s.segments[:len(s.segments)-1] {
		f, err := s.open(s.path(g.number))
		if err != nil {
			return err
		}
		s.sealed = append(s.sealed, sealedFile{f, g.number})
	}
	return nil
}

// copy puts a new file with the records of a segment in the place of its file.
// The error is one of isDamage if the records cannot be read as they were
// written.
func (s *spool) copy(g segment) error {
	f, err := os.Open(s.path(g.number))
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, g.size)
	if _, err := io.ReadFull(f, b); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errShort
	} else if err != nil {
		return err
	}
	for rest := b; len(rest) > 0; {
		_, n, err := nextRecord(rest)
		if err != nil {
			return err
		}
		rest = rest[n:]
	}
	return durable.Write(s.path(g.number), b)
}

// list finds the segments of the directory. Sizes are those of the files.
func (s *spool) list() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		var number int64
		if _, err := fmt.Sscanf(e.Name(), segmentName, &number); err != nil || e.Name() != fmt.Sprintf(segmentName, number) {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		s.segments = append(s.segments, segment{number: number, size: info.Size()})
	}
	return nil
}

// count sets the number of records after p of every segment. Those behind a
// damage do not count.
func (s *spool) count(p Position) error {
	var r reader
	defer r.close()
	for i := range s.segments {
		g := &s.segments[i]
		g.records = 0
		pos := Position{Segment: g.number}
		if g.number < p.Segment {
			continue
		} else if g.number == p.Segment {
			pos.Offset = p.Offset
		}
		for pos.Offset < g.size {
			payload, n, err := r.next(s.path(g.number), pos, g.size)
			if isDamage(err) {
				break
			} else if err != nil {
				return fmt.Errorf("%s at byte %d: %w", s.path(g.number), pos.Offset, err)
			}
			if !isHeader(payload) {
				g.records++
			}
			pos.Offset += int64(n)
		}
	}
	return nil
}

// isDamage says that err is about the bytes of a segment, so that trying
// again cannot help.
func isDamage(err error) bool {
	return errors.Is(err, errShort) || errors.Is(err, errDamaged) || errors.Is(err, os.ErrNotExist)
}

// tail looks at the end of a segment that was being written when its process
// ended. It returns the size of the complete records, and whether what follows
// them, if anything, is damaged rather than the start of one more write: an
// incomplete record, or zeros, which a file system may leave after a loss of
// power.
func tail(name string) (size, total int64, damaged bool, err error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, 0, false, err
	}
	total = int64(len(b))
	for len(b) > 0 {
		_, n, err := nextRecord(b)
		switch {
		case errors.Is(err, errVersion):
			return 0, 0, false, fmt.Errorf("%s at byte %d: %w", name, size, err)
		case errors.Is(err, errShort):
			return size, total, false, nil
		case err != nil:
			return size, total, len(bytes.Trim(b, "\x00")) > 0, nil
		}
		size += int64(n)
		b = b[n:]
	}
	return size, total, false, nil
}

// reader reads the records of segments one after the other, through a buffer
// of bounded size.
type reader struct {
	f      *os.File
	number int64
	off    int64 // of the start of buf within the segment
	buf    []byte
}

// next returns the payload of the record at p of a segment whose complete
// records have the given size, and the size of the record. The payload is
// valid until the next call. errShort, errDamaged and os.ErrNotExist say that
// the segment cannot be read on from p.
func (r *reader) next(name string, p Position, size int64) ([]byte, int, error) {
	if r.f == nil || r.number != p.Segment {
		r.close()
		f, err := os.Open(name)
		if err != nil {
			return nil, 0, err
		}
		r.f, r.number, r.off, r.buf = f, p.Segment, 0, r.buf[:0]
	}
	if p.Offset < r.off || p.Offset > r.off+int64(len(r.buf)) {
		r.off, r.buf = p.Offset, r.buf[:0]
	}
	for {
		payload, n, err := nextRecord(r.buf[p.Offset-r.off:])
		if !errors.Is(err, errShort) || r.off+int64(len(r.buf)) >= size {
			return payload, n, err
		}
		want := int(min(int64(max(n, readAtOnce)), size-p.Offset))
		r.off, r.buf = p.Offset, slices.Grow(r.buf[:0], want)[:want]
		got, err := r.f.ReadAt(r.buf, p.Offset)
		r.buf = r.buf[:got]
		if errors.Is(err, io.EOF) {
			return nextRecord(r.buf) // the file has become shorter
		} else if err != nil {
			return nil, 0, err
		}
	}
}

func (r *reader) close() {
	if r.f != nil {
		r.f.Close()
	}
	r.f, r.buf = nil, r.buf[:0]
}
