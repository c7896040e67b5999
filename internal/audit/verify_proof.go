package audit

import (
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/orgd/orgd/internal/problem"
)

// VerifyProof checks the proof of one entry (Proof.Text): that it is in the
// log of a checkpoint signed by one of the keys, and that its values are those
// that it commits to. Receipts, statements and kept checkpoints of expect must
// be about this very entry or checkpoint. Erased values cannot be checked:
// the notes of the report name them.
func VerifyProof(text []byte, expect Expect) (*Report, error) {
	v, err := newVerifier(expect)
	if err != nil {
		return nil, err
	}
	p, err := ParseProof(text)
	if err != nil {
		v.fail(CheckForm, position{0, -1}, 0, "%s", problem.From(err).Detail)
		return v.report, nil
	}
	var it item
	new(entryChecker).check(appendEntryLine(nil, p.Leaf, p.Values), &it)
	if it.kind != kindEntry {
		v.fail(CheckForm, position{0, p.Seq}, 0, "%s", it.detail)
		return v.report, nil
	}
	r := v.report
	r.RootID, r.LogID, r.Entries, r.Values = it.rootID, it.logID, 1, it.values
	if it.check != "" {
		v.fail(it.check, it.at, 0, "%s", it.detail)
	}
	var absent []string
	for _, s := range it.absent {
		absent = append(absent, s.String())
	}
	if len(absent) > 0 {
		v.note("These values have been erased: %s. Whether an erasure entry covers them shows an export.", strings.Join(absent, ", "))
	}
	c, err := ParseCheckpoint(p.Checkpoint)
	if err != nil {
		v.fail(CheckForm, it.at, 0, "%s", problem.From(err).Detail)
		return r, nil
	}
	r.Epoch, r.Size = it.at.epoch, c.Size
	v.epoch = it.at.epoch
	switch {
	case it.logID != v.logID || c.Origin != Origin(it.logID, it.at.epoch):
		v.fail(CheckBelonging, it.at, 0, "the entry is of %s, its checkpoint of %s, the verifier key of the log %s", Origin(it.logID, it.at.epoch), c.Origin, v.logID)
	case it.at.n != p.Seq:
		v.fail(CheckSequence, it.at, 0, "the entry has the seq %d, but the proof is for %d", it.at.n, p.Seq)
	case tlog.CheckRecord(toTlog(p.Hashes), c.Size, tlog.Hash(c.Root), p.Seq, tlog.Hash(it.leafHash)) != nil:
		v.fail(CheckTree, it.at, 0, "the proof does not lead from the entry to the root hash of the checkpoint")
	}
	for _, k := range v.kept {
		if k.Checkpoint == c {
			v.checkpoints = append(v.checkpoints, k)
		} else {
			v.fail(CheckTree, it.at, 0, "the proof is for the checkpoint of size %d, not for the one kept of size %d; an export shows whether they are consistent", c.Size, k.Size)
		}
	}
	v.kept = nil
	v.receipt(&it, 0)
	if it.evidence != nil && it.evidence.action == ActionMonthClosed && it.check == "" {
		v.evidence(&it, 0)
	}
	v.started, v.tree.size = true, c.Size
	v.checkpoints = append(v.checkpoints, signedCheckpoint{Checkpoint: c, at: position{it.at.epoch, c.Size}, signed: p.Checkpoint})
	v.lastKey = 0
	v.finish()
	return r, nil
}
