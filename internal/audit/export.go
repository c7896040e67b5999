package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/go-json-experiment/json"
)

// An export is NDJSON, each line in exactly one form, ended by a newline:
//
//	{"export":1,"root_id":"acme","log_id":"…","origin":"orgd.audit/…/0","key":"<verifier key>","epoch":0,"seq":0}
//	{"leaf":{…},"values":{…}}
//	…
//	{"checkpoint":"orgd.audit/…/0\n2\n…\n\n— orgd.audit/…/0 …\n"}
//	{"end":{"entries":2,"sha256":"…"}}
//
// epoch and seq in the first line are the place of the first entry. A
// checkpoint stands right after the last entry that it covers; the last one
// covers all. The last line counts the entries and has the SHA-256, in
// hexadecimal, of all bytes before it, which tells a transfer that went wrong
// from a log that was rewritten.
//
// To resume, export again from the next seq, and put the new export behind the
// old one: a sequence of exports that follow on each other is verified as one.
// The entries of an epoch that was opened follow those of the epoch before.

// ExportHeader is the first line of an export.
type ExportHeader struct {
	Version int    `json:"export"` // 1
	RootID  string `json:"root_id"`
	LogID   string `json:"log_id"`
	Origin  string `json:"origin"` // of Epoch
	Key     string `json:"key"`    // verifier key of the log
	Epoch   int64  `json:"epoch"`  // of the first entry
	Seq     int64  `json:"seq"`    // of the first entry
}

type exportEnd struct {
	End struct {
		Entries int64  `json:"entries"`
		SHA256  string `json:"sha256"`
	} `json:"end"`
}

type exportCheckpoint struct {
	Checkpoint string `json:"checkpoint"`
}

// Export writes an export. It is used by one goroutine, and unusable after an
// error.
type Export struct {
	w       *bufio.Writer
	hash    hash.Hash
	line    []byte
	entries int64
}

// NewExport starts an export from the given place. Key is the verifier key of
// the log.
func NewExport(w io.Writer, rootID, logID, key string, epoch, seq int64) (*Export, error) {
	x := &Export{w: bufio.NewWriterSize(w, 1<<16), hash: sha256.New()}
	header := ExportHeader{1, rootID, logID, Origin(logID, epoch), key, epoch, seq}
	return x, x.write(append(jsonValue(header), '\n'))
}

// Entry writes the next entry.
func (x *Export) Entry(r *Record) error {
	x.line = append(appendEntryLine(x.line[:0], r.Leaf, r.Values), '\n')
	x.entries++
	return x.write(x.line)
}

// Checkpoint writes a signed checkpoint, which must be of the size that the
// log has after the last entry written. The last thing before Close must be a
// checkpoint.
func (x *Export) Checkpoint(signed []byte) error {
	return x.write(append(jsonValue(exportCheckpoint{string(signed)}), '\n'))
}

// Close ends the export. It does not close the underlying writer.
func (x *Export) Close() error {
	var end exportEnd
	end.End.Entries = x.entries
	end.End.SHA256 = Hash(x.hash.Sum(nil)).String()
	if err := x.write(append(jsonValue(end), '\n')); err != nil {
		return err
	}
	return x.w.Flush()
}

func (x *Export) write(line []byte) error {
	x.hash.Write(line)
	_, err := x.w.Write(line)
	return err
}

// appendEntryLine appends an entry as it stands in exports and proofs.
func appendEntryLine(b, leaf, values []byte) []byte {
	b = append(append(b, `{"leaf":`...), leaf...)
	b = append(append(b, `,"values":`...), values...)
	return append(b, '}')
}

// cutEntryLine takes apart what appendEntryLine makes. It does not look into
// the two parts.
func cutEntryLine(line []byte) (leaf, values []byte, ok bool) {
	p := scanner{b: line}
	p.lit(`{"leaf":`)
	if !p.failed && len(p.b) > 0 && p.b[0] == '{' {
		leaf = p.value()
	}
	p.lit(`,"values":`)
	if p.failed || len(p.b) == 0 || p.b[len(p.b)-1] != '}' {
		return nil, nil, false
	}
	return leaf, p.b[:len(p.b)-1], leaf != nil
}

// parseLine parses a line that is neither an entry nor in more than one form.
func parseLine[T any](line []byte) (T, error) {
	var v T
	if err := json.Unmarshal(line, &v, json.RejectUnknownMembers(true)); err != nil {
		return v, errors.New("a line of an export that cannot be read")
	}
	if again, err := json.Marshal(v); err != nil || !bytes.Equal(again, line) {
		return v, fmt.Errorf("a line of an export that is not in its one form")
	}
	return v, nil
}
