package audit

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/orgd/orgd/internal/problem"
)

// maxCheckpoint is the length of the longest checkpoint that is accepted, in
// bytes: room for more than 16 signatures of any type.
const maxCheckpoint = 128 << 10

// Checkpoint is what a signed checkpoint says (C2SP tlog-checkpoint): the log
// named Origin had Size entries and the root hash Root.
type Checkpoint struct {
	Origin string
	Size   int64
	Root   Hash
}

// text returns the note's text: origin, size and root hash, one a line.
func (c Checkpoint) text() string {
	return c.Origin + "\n" + strconv.FormatInt(c.Size, 10) + "\n" + base64.StdEncoding.EncodeToString(c.Root[:]) + "\n"
}

// Checkpoint returns the unsigned checkpoint of the head.
func (h *Head) Checkpoint() Checkpoint {
	return Checkpoint{Origin: Origin(h.LogID, h.Epoch), Size: h.Size, Root: h.Root}
}

// SignCheckpoint returns the signed checkpoint of the head: a note with one
// signature of each signer. While a key is being rotated, both keys sign.
func SignCheckpoint(h *Head, signers ...note.Signer) ([]byte, error) {
	c := h.Checkpoint()
	if len(signers) == 0 {
		return nil, errors.New("audit: a checkpoint needs a signer")
	}
	for _, s := range signers {
		if s.Name() != c.Origin {
			return nil, fmt.Errorf("audit: the key of %s cannot sign a checkpoint of %s", s.Name(), c.Origin)
		}
	}
	return note.Sign(&note.Note{Text: c.text()}, signers...)
}

func errCheckpoint(format string, args ...any) *problem.Error {
	return problem.New(problem.InvalidRequest, "This is not a checkpoint: "+format, args...).
		WithFix("A checkpoint is what GET /orgs/{root}/audit_log/checkpoint returns, kept byte for byte.")
}

// ParseCheckpoint reads a signed checkpoint without checking its signatures:
// nobody vouches for what it returns. Extension lines are refused, for orgd
// never writes any.
func ParseCheckpoint(signed []byte) (Checkpoint, error) {
	if len(signed) > maxCheckpoint {
		return Checkpoint{}, errCheckpoint("it is longer than %d bytes.", maxCheckpoint)
	}
	text, signatures, ok := bytes.Cut(signed, []byte("\n\n"))
	if !ok || len(signatures) == 0 {
		return Checkpoint{}, errCheckpoint("it has no signatures.")
	}
	for line := range strings.Lines(string(signatures)) {
		fields := strings.Split(line, " ")
		if len(fields) != 3 || fields[0] != "—" || !strings.HasSuffix(line, "\n") {
			return Checkpoint{}, errCheckpoint("a line behind its text is not a signature.")
		}
		// The note package takes more than one spelling of the same bytes.
		if b, err := strictBase64.DecodeString(fields[2]); err != nil || base64.StdEncoding.EncodeToString(b)+"\n" != fields[2] {
			return Checkpoint{}, errCheckpoint("a signature is not in base64.")
		}
	}
	return parseCheckpointText(string(text) + "\n")
}

func parseCheckpointText(text string) (Checkpoint, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 4 {
		return Checkpoint{}, errCheckpoint("it does not have exactly three lines.")
	}
	size, ok := parseDecimal(lines[1])
	root, err := strictBase64.DecodeString(lines[2])
	c := Checkpoint{Origin: lines[0], Size: size}
	copy(c.Root[:], root)
	switch {
	case !ok:
		return Checkpoint{}, errCheckpoint("its size is not a decimal number.")
	case err != nil || c.text() != text:
		return Checkpoint{}, errCheckpoint("its root hash is not the base64 of 32 bytes.")
	}
	if _, _, err := ParseOrigin(c.Origin); err != nil {
		return Checkpoint{}, errCheckpoint("its first line is not the origin of an orgd audit log.")
	}
	if c.Size == 0 && c.Root != EmptyRoot {
		return Checkpoint{}, errCheckpoint("its root hash is not that of an empty log.")
	}
	return c, nil
}

// OpenCheckpoint checks the signatures of a checkpoint against the verifier
// keys (Key.Verifier) of its log, and returns what it says. At least one of
// the keys must have signed it; signatures of other keys, such as witnesses,
// are ignored, as C2SP signed-note demands.
func OpenCheckpoint(signed []byte, verifierKeys ...string) (Checkpoint, error) {
	var list []note.Verifier
	for _, vkey := range verifierKeys {
		logID, epoch, key, err := parseVerifierKey(vkey)
		if err != nil {
			return Checkpoint{}, err
		}
		list = append(list, key.verifier(Origin(logID, epoch)))
	}
	c, _, err := openCheckpoint(signed, list, nil)
	return c, err
}

// openCheckpoint checks the signatures of a checkpoint. It returns the
// verified ones of log keys first, then those of witnesses. At least one must
// be of a log key whose name is the origin.
func openCheckpoint(signed []byte, logKeys, witnesses []note.Verifier) (Checkpoint, []note.Signature, error) {
	c, err := ParseCheckpoint(signed)
	if err != nil {
		return Checkpoint{}, nil, err
	}
	var known []note.Verifier
	for _, v := range logKeys {
		if v.Name() == c.Origin {
			known = append(known, v)
		}
	}
	if len(known) == 0 {
		return Checkpoint{}, nil, problem.New(problem.InvalidRequest, "The checkpoint is of the log %s, and no key of that log was given.", c.Origin)
	}
	n, err := note.Open(signed, note.VerifierList(append(known, witnesses...)...))
	if err != nil {
		return Checkpoint{}, nil, problem.New(problem.InvalidRequest, "No signature of the checkpoint holds for a known key of the log.").WithCause(err)
	}
	if n.Text != c.text() {
		return Checkpoint{}, nil, errCheckpoint("its signatures are of another text.")
	}
	var byLog, byWitness []note.Signature
	for _, s := range n.Sigs {
		if s.Name == c.Origin {
			byLog = append(byLog, s)
		} else {
			byWitness = append(byWitness, s)
		}
	}
	if len(byLog) == 0 {
		return Checkpoint{}, nil, problem.New(problem.InvalidRequest, "The checkpoint is not signed by a known key of the log, only by others.")
	}
	return c, append(byLog, byWitness...), nil
}

// AddCosignatures adds to a signed checkpoint those signatures of a witness's
// answer to add-checkpoint (C2SP tlog-witness) that hold for one of the
// witnesses' keys (NewWitnessVerifier), and that it does not have yet. Others
// are left out. It fails if none holds.
func AddCosignatures(signed, answer []byte, witnesses ...note.Verifier) ([]byte, error) {
	if len(answer) > maxCheckpoint {
		return nil, errors.New("audit: the witness's answer is too long")
	}
	text, _, ok := bytes.Cut(signed, []byte("\n\n"))
	if !ok {
		return nil, errCheckpoint("it has no signatures.")
	}
	msg := append(bytes.Clone(text), '\n')
	out := bytes.Clone(signed)
	added := false
	for line := range bytes.Lines(answer) {
		n, err := note.Open(append(append(bytes.Clone(msg), '\n'), line...), note.VerifierList(witnesses...))
		if err != nil || len(n.Sigs) != 1 {
			continue
		}
		added = true
		if !bytes.Contains(out, append([]byte("\n"), line...)) {
			out = append(out, line...)
		}
	}
	if !added {
		return nil, errors.New("audit: no signature of the witness's answer holds for its key")
	}
	return out, nil
}

// FormatAddCheckpoint returns the body of an add-checkpoint request (C2SP
// tlog-witness): the size that the witness last cosigned, 0 if none, the
// consistency proof from it, empty if 0, and the signed checkpoint.
func FormatAddCheckpoint(oldSize int64, consistency []Hash, signed []byte) []byte {
	b := fmt.Appendf(nil, "old %d\n", oldSize)
	b = append(b, FormatHashes(consistency)...)
	return append(append(b, '\n'), signed...)
}
