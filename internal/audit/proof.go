package audit

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/orgd/orgd/internal/problem"
)

// maxProof is the number of hashes in the longest proof (C2SP tlog-witness).
const maxProof = 63

const proofHeader = "c2sp.org/tlog-proof@v1"

// Proof shows that one entry is in a log. It reveals that entry and nothing of
// others.
type Proof struct {
	Leaf       []byte
	Values     []byte
	Seq        int64
	Hashes     []Hash // the inclusion proof, from the leaf's sibling up (RFC 6962, section 2.1.1)
	Checkpoint []byte // signed
}

// ProveEntry returns the proof that the tree of the given size contains the
// entry seq.
func ProveEntry(size, seq int64, hashes tlog.HashReader) ([]Hash, error) {
	if seq < 0 || seq >= size {
		return nil, problem.New(problem.InvalidRequest, "The log of size %d has no entry %d.", size, seq)
	}
	p, err := tlog.ProveRecord(size, seq, hashes)
	return fromTlog(p), err
}

// ProveConsistency returns the proof that the tree of size to has the tree of
// size from as its beginning (RFC 6962, section 2.1.2). It is empty if from is
// 0 or equals to.
func ProveConsistency(from, to int64, hashes tlog.HashReader) ([]Hash, error) {
	if from < 0 || from > to {
		return nil, problem.New(problem.InvalidRequest, "There is no proof from size %d to size %d.", from, to).
			WithFix("Give sizes with 0 ≤ from ≤ to.")
	}
	if from == 0 || from == to {
		return nil, nil
	}
	p, err := tlog.ProveTree(to, from, hashes)
	return fromTlog(p), err
}

// VerifyConsistency checks that the log of checkpoint to has that of
// checkpoint from as its beginning. It says nothing about who signed them.
func VerifyConsistency(from, to Checkpoint, proof []Hash) error {
	fail := func(detail string) error {
		return problem.New(problem.InvalidRequest, "The checkpoints are not proved consistent: %s", detail)
	}
	switch {
	case from.Origin != to.Origin:
		return fail("they are of different logs.")
	case from.Size > to.Size:
		return fail("the second is of a smaller size.")
	case len(proof) > maxProof:
		return fail("the proof is too long.")
	case from.Size == 0:
		if len(proof) > 0 || from.Root != EmptyRoot || to.Size == 0 && to.Root != EmptyRoot {
			return fail("the proof from an empty log is empty.")
		}
		return nil
	}
	if tlog.CheckTree(toTlog(proof), to.Size, tlog.Hash(to.Root), from.Size, tlog.Hash(from.Root)) != nil {
		return fail("the proof does not lead from one root hash to the other.")
	}
	return nil
}

func fromTlog(in []tlog.Hash) []Hash {
	out := make([]Hash, len(in))
	for i, h := range in {
		out[i] = Hash(h)
	}
	return out
}

func toTlog(in []Hash) []tlog.Hash {
	out := make([]tlog.Hash, len(in))
	for i, h := range in {
		out[i] = tlog.Hash(h)
	}
	return out
}

// FormatHashes returns the hashes in base64, each followed by a newline.
func FormatHashes(hashes []Hash) []byte {
	var b []byte
	for _, h := range hashes {
		b = append(base64.StdEncoding.AppendEncode(b, h[:]), '\n')
	}
	return b
}

// ParseHashes parses what FormatHashes returns, at most 63 hashes.
func ParseHashes(b []byte) ([]Hash, error) {
	var hashes []Hash
	for line := range bytes.Lines(b) {
		text, ended := bytes.CutSuffix(line, []byte("\n"))
		if !ended || len(text) != commitmentSize || !validBase64(text) || len(hashes) == maxProof {
			return nil, problem.New(problem.InvalidRequest, "This is not a list of at most %d hashes in base64, one a line.", maxProof)
		}
		var h Hash
		b, err := base64.StdEncoding.DecodeString(string(text))
		if err != nil {
			return nil, err
		}
		copy(h[:], b)
		hashes = append(hashes, h)
	}
	return hashes, nil
}

// Text returns the proof as text in the form of C2SP tlog-proof. Its extra
// data is the entry, {"leaf":…,"values":…}, so that the text is all that
// somebody needs to check it, next to the log's verifier key.
func (p *Proof) Text() []byte {
	b := []byte(proofHeader + "\nextra ")
	b = base64.StdEncoding.AppendEncode(b, appendEntryLine(nil, p.Leaf, p.Values))
	b = append(b, "\nindex "...)
	b = append(strconv.AppendInt(b, p.Seq, 10), '\n')
	b = append(append(b, FormatHashes(p.Hashes)...), '\n')
	return append(b, p.Checkpoint...)
}

// ParseProof parses what Text returns, and nothing else. It checks the form
// alone: see VerifyProof.
func ParseProof(text []byte) (*Proof, error) {
	p, err := parseProof(text)
	if err != nil {
		return nil, problem.New(problem.InvalidRequest, "This is not the proof of an audit entry: %s.", err).
			WithFix("A proof is what GET /orgs/{org_id}/children_audit/{entry_id}/proof returns, kept byte for byte.")
	}
	return p, nil
}

func parseProof(text []byte) (*Proof, error) {
	head, checkpoint, ok := bytes.Cut(text, []byte("\n\n"))
	if len(text) > 2*(MaxLeaf+MaxValues) || !ok {
		return nil, errors.New("it has no checkpoint or is too long")
	}
	lines := strings.SplitN(string(head), "\n", 4)
	if len(lines) < 3 || lines[0] != proofHeader {
		return nil, errors.New("its first line is not " + proofHeader)
	}
	p := &Proof{Checkpoint: bytes.Clone(checkpoint)}
	extra, isExtra := strings.CutPrefix(lines[1], "extra ")
	entry, err := strictBase64.DecodeString(extra)
	if !isExtra || err != nil {
		return nil, errors.New("it does not hold the entry as its extra data")
	}
	if p.Leaf, p.Values, ok = cutEntryLine(entry); !ok {
		return nil, errors.New("its extra data is not an entry")
	}
	index, isIndex := strings.CutPrefix(lines[2], "index ")
	if p.Seq, ok = parseDecimal(index); !ok || !isIndex {
		return nil, errors.New("it has no index")
	}
	if len(lines) == 4 {
		if p.Hashes, err = ParseHashes([]byte(lines[3] + "\n")); err != nil {
			return nil, errors.New("its hashes are not hashes, or too many")
		}
	}
	if !bytes.Equal(p.Text(), text) {
		return nil, errors.New("it is not in its one form")
	}
	return p, nil
}
