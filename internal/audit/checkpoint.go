package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
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
	for line := range bytes.Lines(signatures) {
		if _, _, _, ok := parseSignature(line); !ok {
			return Checkpoint{}, errCheckpoint("a line behind its text is not a signature.")
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
	c, _, _, err := openCheckpoint(signed, list, nil)
	return c, err
}

// openCheckpoint checks the signatures of a checkpoint. It returns those of
// the log's keys and those of the witnesses whose signature holds, each as the
// indexes into its list. At least one of the log's keys must have signed, under
// the name of the origin: what a key is follows from the list in which it was
// given and from its signature, never from its name, which a witness may share.
func openCheckpoint(signed []byte, logKeys, witnesses []note.Verifier) (c Checkpoint, byLog, byWitness []int, err error) {
	c, err = ParseCheckpoint(signed)
	if err != nil {
		return Checkpoint{}, nil, nil, err
	}
	var known []note.Verifier
	var place []int
	for i, v := range logKeys {
		if v.Name() == c.Origin {
			known, place = append(known, v), append(place, i)
		}
	}
	if len(known) == 0 {
		return Checkpoint{}, nil, nil, problem.New(problem.InvalidRequest, "The checkpoint is of the log %s, and no key of that log was given.", c.Origin)
	}
	holds, ok := signatures(c, signed, append(known, witnesses...))
	if !ok {
		return Checkpoint{}, nil, nil, problem.New(problem.InvalidRequest, "A signature of the checkpoint does not hold for the key that it names.")
	}
	for i, held := range holds {
		switch {
		case !held:
		case i < len(known):
			byLog = append(byLog, place[i])
		default:
			byWitness = append(byWitness, i-len(known))
		}
	}
	switch {
	case len(byLog) == 0 && len(byWitness) == 0:
		return Checkpoint{}, nil, nil, problem.New(problem.InvalidRequest, "No signature of the checkpoint holds for a known key of the log.")
	case len(byLog) == 0:
		return Checkpoint{}, nil, nil, problem.New(problem.InvalidRequest, "The checkpoint is not signed by a known key of the log, only by others.")
	}
	return c, byLog, byWitness, nil
}

// maxSignatures is how many signatures of a checkpoint are looked at, as many
// as C2SP signed-note asks of a verifier at least.
const maxSignatures = 100

// signatures tells of each verifier whether the checkpoint has a signature of
// its key. A line is a key's if it has the name and the key hash, and holds for
// it; keys that share both, by chance or by design, are told apart by the
// signature. Lines of unknown keys are passed over. ok is false if a line has the
// name and the hash of known keys and holds for none of them.
func signatures(c Checkpoint, signed []byte, verifiers []note.Verifier) (holds []bool, ok bool) {
	holds = make([]bool, len(verifiers))
	_, lines, _ := bytes.Cut(signed, []byte("\n\n"))
	msg := []byte(c.text())
	n := 0
	for line := range bytes.Lines(lines) {
		if n++; n > maxSignatures {
			return holds, false
		}
		name, hash, sig, whole := parseSignature(line)
		if !whole {
			return holds, false
		}
		named, held := false, false
		for i, v := range verifiers {
			if v.Name() != name || v.KeyHash() != hash {
				continue
			}
			named = true
			if v.Verify(msg, sig) {
				holds[i], held = true, true
			}
		}
		if named && !held {
			return holds, false
		}
	}
	return holds, true
}

// parseSignature reads a signature line of a note: "— name base64(hash, signature)".
func parseSignature(line []byte) (name string, hash uint32, sig []byte, ok bool) {
	fields := strings.Split(string(line), " ")
	if len(fields) != 3 || fields[0] != "—" || fields[1] == "" {
		return "", 0, nil, false
	}
	text, ended := strings.CutSuffix(fields[2], "\n")
	// Base64 has more than one spelling of the same bytes; a note has one.
	b, err := strictBase64.DecodeString(text)
	if !ended || err != nil || len(b) < 5 || base64.StdEncoding.EncodeToString(b) != text {
		return "", 0, nil, false
	}
	return fields[1], binary.BigEndian.Uint32(b), b[4:], true
}

// AddCosignatures adds to a signed checkpoint those signatures of a witness's
// answer to add-checkpoint (C2SP tlog-witness) that hold for one of the
// witnesses' keys (NewWitnessVerifier), one of each key that has none yet.
// Others are left out, so that no witness fills a checkpoint. It fails if none
// holds.
func AddCosignatures(signed, answer []byte, witnesses ...note.Verifier) ([]byte, error) {
	if len(answer) > maxCheckpoint {
		return nil, errors.New("audit: the witness's answer is too long")
	}
	c, err := ParseCheckpoint(signed)
	if err != nil {
		return nil, err
	}
	have, _ := signatures(c, signed, witnesses)
	out := bytes.Clone(signed)
	added := false
	msg := []byte(c.text())
	for line := range bytes.Lines(answer) {
		name, hash, sig, ok := parseSignature(line)
		if !ok {
			continue
		}
		for i, w := range witnesses {
			if w.Name() != name || w.KeyHash() != hash || !w.Verify(msg, sig) {
				continue
			}
			added = true
			if !have[i] {
				have[i] = true
				out = append(out, line...)
			}
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
