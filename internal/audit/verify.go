package audit

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/orgd/orgd/internal/problem"
)

// Expect is what a verifier knows from elsewhere, and checks a log against.
type Expect struct {
	// Keys are verifier keys of the log (Key.Verifier), at least one. Nothing
	// that an export or a proof says about keys is believed, except rotations
	// that one of these keys has signed. If a key was lost and an epoch opened
	// with another one, keys of that epoch or later ones are enough: what is
	// before is then checked by what the opening says was left, and its
	// signatures are not.
	Keys        []string
	Witnesses   []string  // verifier keys of witnesses whose cosignatures count
	Checkpoints [][]byte  // signed checkpoints that were kept from earlier
	Receipts    []Receipt // of changes that were made
	Statements  [][]byte  // statements of closed months, in canonical JSON
	// Progress, if set, is called now and then with the number of entries
	// checked so far.
	Progress func(entries int64)

	leaf func(epoch, seq int64, h Hash) // told of every leaf, in order
}

// Report says what was checked, and what did not hold.
type Report struct {
	RootID      string              `json:"root_id"`
	LogID       string              `json:"log_id"`
	Epoch       int64               `json:"epoch"`   // the last one
	Size        int64               `json:"size"`    // of the last epoch
	Entries     int64               `json:"entries"` // of all epochs
	Values      int64               `json:"values"`  // erasable values that match their commitments
	Erased      int64               `json:"erased"`  // absent values that an erasure entry covers
	Checkpoints []CheckedCheckpoint `json:"checkpoints"`
	Receipts    int                 `json:"receipts"`   // receipts that hold
	Statements  int                 `json:"statements"` // statements that are in the log
	Notes       []string            `json:"notes,omitempty"`
	// Failures is what did not hold, at most 100. If it is empty, everything
	// that was expected held.
	Failures []Failure `json:"failures,omitempty"`
}

// CheckedCheckpoint is a signed checkpoint that the log was found to match.
type CheckedCheckpoint struct {
	Origin string `json:"origin"`
	Size   int64  `json:"size"`
	Root   string `json:"root"` // hexadecimal
	Kept   bool   `json:"kept"` // one of Expect.Checkpoints
	// Witnesses names those whose cosignatures hold; as "name+hash" where the
	// name alone would be that of another key too.
	Witnesses []string `json:"witnesses"`
}

// OK reports whether everything held.
func (r *Report) OK() bool { return len(r.Failures) == 0 }

// Check names a kind of check that can fail.
type Check string

const (
	CheckForm       Check = "form"       // it is not an export or a proof in its one form
	CheckTransfer   Check = "transfer"   // the export is cut short, or not as it was written
	CheckSequence   Check = "sequence"   // an entry is missing, repeated or out of place
	CheckBelonging  Check = "belonging"  // something of another log or root
	CheckCommitment Check = "commitment" // a value is not the one that the leaf commits to
	CheckErasure    Check = "erasure"    // a value is absent without an erasure entry, or an erasure is invalid
	CheckEvidence   Check = "evidence"   // an entry about the log itself is invalid
	CheckTree       Check = "tree"       // the entries are not those of a checkpoint
	CheckSignature  Check = "signature"  // a checkpoint is not signed by a key that may
	CheckReceipt    Check = "receipt"    // the log does not have what a receipt says
	CheckStatement  Check = "statement"  // the log does not have a statement
)

// Failure is one thing that did not hold.
type Failure struct {
	Check  Check  `json:"check"`
	Epoch  int64  `json:"epoch"`
	Seq    int64  `json:"seq"`            // the entry; -1 if it is about none
	Line   int64  `json:"line,omitempty"` // of the export, 1-based; 0 if it is about none
	Detail string `json:"detail"`
}

const maxFailures = 100

// Verify checks an export. The result says what was checked and what did not
// hold; the error is non-nil only if r cannot be read or expect is unusable.
//
// It reads r once. Besides a fixed amount, memory grows only by some bytes for
// each value that has been erased.
func Verify(r io.Reader, expect Expect) (*Report, error) {
	v, err := newVerifier(expect)
	if err != nil {
		return nil, err
	}
	if err := v.run(r); err != nil {
		return nil, err
	}
	v.finish()
	return v.report, nil
}

// position is a place in the order of entries. As the size of a log it counts
// the entries before it.
type position struct{ epoch, n int64 }

func (p position) compare(q position) int {
	return cmp.Or(cmp.Compare(p.epoch, q.epoch), cmp.Compare(p.n, q.n))
}

type signedCheckpoint struct {
	Checkpoint
	at     position
	signed []byte
	kept   bool
	opens  bool // it stands in the entry that opens the next epoch
	line   int64
}

type keptReceipt struct {
	at   position
	hash Hash
}

type rotation struct {
	from, to publicKey
	endsAt   string
	at       position
	ended    bool
	end      position // the first entry after its end
}

// declaredKey is a key that an epoch was opened with, since that of the epoch
// before had been lost.
type declaredKey struct {
	epoch int64
	key   publicKey
}

type verifier struct {
	expect     Expect
	report     *Report
	logID      string
	keys       map[publicKey]bool
	firstKey   int64 // the earliest epoch that a given key names
	lastKey    int64 // the latest one
	witnesses  []note.Verifier
	statements map[string]bool // by hash; true once found

	kept     []signedCheckpoint // expected, by position
	receipts []keptReceipt      // expected, by position

	tree        compactRange
	epoch       int64
	started     bool // an export has begun
	open        bool // it has not ended
	part        int64
	covered     bool  // a checkpoint of this export covers all entries so far
	again       bool  // it repeats that of the export before: no entries may follow
	lastCovered int64 // size of the last checkpoint of this epoch that held
	headerKeys  []publicKey
	checkpoints []signedCheckpoint
	rotations   []rotation
	declared    []declaredKey
	lost        int64               // the keys of the epochs before it were lost, and none of them was given
	pending     map[uint64]struct{} // absent values that no erasure covers yet
}

func newVerifier(expect Expect) (*verifier, error) {
	v := &verifier{expect: expect, report: &Report{}, keys: map[publicKey]bool{}, pending: map[uint64]struct{}{}, statements: map[string]bool{}}
	if len(expect.Keys) == 0 {
		return nil, problem.New(problem.InvalidRequest, "A log can only be checked against its verifier key.").
			WithFix("Give the verifier key that GET /orgs/{root}/audit_log/key returned, obtained on a way that you trust.")
	}
	for _, vkey := range expect.Keys {
		logID, epoch, key, err := parseVerifierKey(vkey)
		if err != nil {
			return nil, err
		}
		if v.logID != "" && logID != v.logID {
			return nil, problem.New(problem.InvalidRequest, "The verifier keys are of different logs.")
		}
		if v.logID == "" {
			v.firstKey = epoch
		}
		v.logID, v.firstKey, v.lastKey = logID, min(v.firstKey, epoch), max(v.lastKey, epoch)
		v.keys[key] = true
	}
	for _, vkey := range expect.Witnesses {
		w, err := NewWitnessVerifier(vkey)
		if err != nil {
			return nil, err
		}
		if v.keys[publicKey(w.(*witness).public)] {
			return nil, problem.New(problem.InvalidRequest, "%q is the key of the log itself, not of a witness.", clip(vkey)).
				WithFix("Give the keys of witnesses that others run.")
		}
		if !slices.ContainsFunc(v.witnesses, func(o note.Verifier) bool { return sameWitness(o, w) }) {
			v.witnesses = append(v.witnesses, w)
		}
	}
	for _, signed := range expect.Checkpoints {
		c, err := ParseCheckpoint(signed)
		if err != nil {
			return nil, err
		}
		logID, epoch, err := ParseOrigin(c.Origin)
		if err != nil {
			return nil, err
		}
		if logID != v.logID {
			v.fail(CheckBelonging, position{epoch, -1}, 0, "the kept checkpoint of %s is of another log", c.Origin)
			continue
		}
		v.kept = append(v.kept, signedCheckpoint{Checkpoint: c, at: position{epoch, c.Size}, signed: signed, kept: true})
	}
	for _, r := range expect.Receipts {
		logID, epoch, err := ParseOrigin(r.Origin)
		if err != nil {
			return nil, err
		}
		if logID != v.logID {
			v.fail(CheckBelonging, position{epoch, r.Seq}, 0, "the receipt %q is of another log", r)
			continue
		}
		v.receipts = append(v.receipts, keptReceipt{position{epoch, r.Seq}, r.LeafHash})
	}
	for _, s := range expect.Statements {
		if !isCanonical(s) {
			return nil, problem.New(problem.InvalidRequest, "A statement is not in canonical JSON.").
				WithFix("Keep the statement byte for byte as it was served.")
		}
		sum := sha256.Sum256(s)
		v.statements[hex.EncodeToString(sum[:])] = false
	}
	slices.SortStableFunc(v.kept, func(a, b signedCheckpoint) int { return a.at.compare(b.at) })
	slices.SortStableFunc(v.receipts, func(a, b keptReceipt) int { return a.at.compare(b.at) })
	return v, nil
}

func (v *verifier) fail(check Check, at position, line int64, format string, args ...any) {
	if len(v.report.Failures) < maxFailures {
		v.report.Failures = append(v.report.Failures, Failure{check, at.epoch, at.n, line, fmt.Sprintf(format, args...)})
	}
}

func (v *verifier) note(format string, args ...any) {
	if len(v.report.Notes) < maxFailures {
		v.report.Notes = append(v.report.Notes, fmt.Sprintf(format, args...))
	}
}

// size is the position after the last entry; about is the same as a failure
// that concerns no entry.
func (v *verifier) size() position  { return position{v.epoch, v.tree.size} }
func (v *verifier) about() position { return position{v.epoch, -1} }

// item is what a worker found in one line of an export.
type item struct {
	kind     itemKind
	check    Check // of the failure, if any
	detail   string
	fatal    bool // nothing after this line can be checked
	leafHash Hash
	at       position
	rootID   string
	logID    string
	time     [len(timeFormat)]byte
	values   int64
	absent   []slot
	evidence *evidence
	text     []byte // of a line that is not an entry
	sum      Hash   // of an end line: of what precedes it
}

type itemKind uint8

const (
	kindEntry itemKind = iota
	kindHeader
	kindCheckpoint
	kindEnd
	kindBroken
)

// evidence is an entry about the log itself, with its changed values.
type evidence struct {
	action string
	values map[string]jsontext.Value // by pointer
}

// line takes the next line in order; it returns false if nothing after it can
// be checked.
func (v *verifier) line(it *item, line int64) bool {
	switch it.kind {
	case kindHeader:
		return v.header(it, line)
	case kindEntry:
		return v.entry(it, line)
	case kindCheckpoint:
		return v.checkpoint(it, line)
	case kindEnd:
		return v.end(it, line)
	}
	v.fail(it.check, v.about(), line, "%s", it.detail)
	return false
}

func (v *verifier) header(it *item, line int64) bool {
	h, err := parseLine[ExportHeader](it.text)
	if err != nil || h.Version != 1 || h.Origin != Origin(h.LogID, h.Epoch) {
		v.fail(CheckForm, v.about(), line, "the first line of an export is not in its one form")
		return false
	}
	if v.open {
		v.fail(CheckTransfer, v.about(), line, "an export begins before the one before it has ended")
		return false
	}
	if h.LogID != v.logID || v.started && h.RootID != v.report.RootID {
		v.fail(CheckBelonging, v.about(), line, "the export is of the log %s of %s, not of the one that was expected", h.LogID, h.RootID)
		return false
	}
	logID, epoch, key, err := parseVerifierKey(h.Key)
	if err != nil || logID != v.logID {
		v.fail(CheckBelonging, v.about(), line, "the export names a verifier key that is not of this log")
		return false
	}
	if len(v.headerKeys) == 0 || v.headerKeys[len(v.headerKeys)-1] != key {
		v.headerKeys = append(v.headerKeys, key)
	}
	at := position{h.Epoch, h.Seq}
	switch {
	case !v.started && h.Seq != 0:
		v.fail(CheckSequence, at, line, "the export begins with entry %d: put the exports of the entries before it in front", h.Seq)
		return false
	case !v.started:
		v.report.RootID, v.report.LogID, v.epoch = h.RootID, h.LogID, h.Epoch
	case at != v.size() && at != position{v.epoch + 1, 0}:
		v.fail(CheckSequence, at, line, "an export that begins with entry %d of epoch %d follows one that ended before entry %d of epoch %d", h.Seq, h.Epoch, v.tree.size, v.epoch)
		return false
	}
	if epoch < h.Epoch {
		v.fail(CheckBelonging, at, line, "the export names a verifier key of an earlier epoch")
	}
	first := !v.started
	v.started, v.open, v.part, v.covered, v.again = true, true, 0, false, false
	if first {
		v.reached()
	}
	return true
}

func (v *verifier) entry(it *item, line int64) bool {
	if !v.open {
		v.fail(CheckForm, it.at, line, "there is an entry outside of an export")
		return false
	}
	if it.rootID != v.report.RootID || it.logID != v.logID {
		v.fail(CheckBelonging, it.at, line, "the entry is of the log %s of %s", it.logID, it.rootID)
		return false
	}
	if v.again {
		v.fail(CheckForm, it.at, line, "the checkpoint before the entry repeats that of the export before")
		return false
	}
	opens := it.evidence != nil && it.evidence.action == ActionEpochOpened
	switch {
	case it.at == v.size() && !opens:
	case it.at == position{v.epoch + 1, 0} && opens && v.report.Entries > 0:
		if !v.openEpoch(it, line) {
			return false
		}
	case it.at == v.size() && v.report.Entries == 0:
		v.fail(CheckSequence, it.at, line, "the log goes on from an earlier epoch, which the export does not have")
		return false
	default:
		v.fail(CheckSequence, it.at, line, "entry %d of epoch %d stands where entry %d of epoch %d should", it.at.n, it.at.epoch, v.tree.size, v.epoch)
		return false
	}
	if it.check != "" {
		v.fail(it.check, it.at, line, "%s", it.detail)
		if it.fatal {
			return false
		}
	}
	v.report.Values += it.values
	for _, s := range it.absent {
		k, ok := pendingKey(it.at, s)
		if !ok {
			v.fail(CheckErasure, it.at, line, "this verifier cannot keep track of so many entries")
			return false
		}
		v.pending[k] = struct{}{}
	}
	v.tree.add(it.leafHash)
	v.report.Entries++
	v.part++
	v.covered = false
	if v.expect.leaf != nil {
		v.expect.leaf(it.at.epoch, it.at.n, it.leafHash)
	}
	if len(v.receipts) > 0 && v.receipts[0].at.compare(it.at) <= 0 {
		v.receipt(it, line)
	}
	if it.evidence != nil && !opens && it.check == "" {
		v.evidence(it, line)
	}
	for i := range v.rotations {
		if r := &v.rotations[i]; !r.ended && string(it.time[:]) > r.endsAt {
			r.ended, r.end = true, it.at
		}
	}
	v.reached()
	return true
}

func (v *verifier) receipt(it *item, line int64) {
	for len(v.receipts) > 0 && v.receipts[0].at.compare(it.at) <= 0 {
		switch {
		case v.receipts[0].at != it.at:
			v.fail(CheckReceipt, v.receipts[0].at, 0, "the log does not have the entry of the receipt with the leaf hash %s", v.receipts[0].hash)
		case v.receipts[0].hash == it.leafHash:
			v.report.Receipts++
		default:
			v.fail(CheckReceipt, it.at, line, "the entry is not the one of its receipt, which has the leaf hash %s", v.receipts[0].hash)
		}
		v.receipts = v.receipts[1:]
	}
}

// reached checks the kept checkpoints of the size that the log has now.
func (v *verifier) reached() {
	for len(v.kept) > 0 && v.kept[0].at.compare(v.size()) <= 0 {
		c := v.kept[0]
		v.kept = v.kept[1:]
		if c.at != v.size() {
			v.fail(CheckTree, position{c.at.epoch, -1}, 0, "the export does not have epoch %d, of which a checkpoint of size %d was kept", c.at.epoch, c.Size)
			continue
		}
		if root := v.tree.root(); root != c.Root {
			v.fail(CheckTree, v.about(), 0, "the first %d entries are not those of the checkpoint kept of that size: its root hash is %s, theirs is %s", c.Size, c.Root, root)
			continue
		}
		v.checkpoints = append(v.checkpoints, c)
	}
}

// missed reports what was expected of the epoch that ends, and is not there.
func (v *verifier) missed(epoch int64) {
	for len(v.kept) > 0 && v.kept[0].at.epoch <= epoch {
		v.fail(CheckTree, position{v.kept[0].at.epoch, -1}, 0, "the log has %d entries in epoch %d, fewer than the checkpoint kept of size %d", v.sizeOf(v.kept[0].at.epoch), v.kept[0].at.epoch, v.kept[0].Size)
		v.kept = v.kept[1:]
	}
	for len(v.receipts) > 0 && v.receipts[0].at.epoch <= epoch {
		v.fail(CheckReceipt, v.receipts[0].at, 0, "the log does not have the entry of the receipt with the leaf hash %s", v.receipts[0].hash)
		v.receipts = v.receipts[1:]
	}
}

func (v *verifier) sizeOf(epoch int64) int64 {
	if epoch == v.epoch {
		return v.tree.size
	}
	return 0
}

func (v *verifier) openEpoch(it *item, line int64) bool {
	var o EpochOpening
	c, err := Checkpoint{}, unmarshalEvidence(it.evidence, "/epoch", &o)
	if err == nil {
		c, err = ParseCheckpoint([]byte(o.Checkpoint))
	}
	if err != nil || c.Origin != Origin(v.logID, v.epoch) {
		v.fail(CheckEvidence, it.at, line, "the entry that opens the epoch does not hold the last checkpoint of the epoch before")
		return false
	}
	if root := v.tree.root(); o.KeptSize != v.tree.size || o.KeptRoot != root.String() {
		v.fail(CheckTree, position{v.epoch, -1}, line, "epoch %d has %d entries with the root hash %s, but epoch %d was opened when it had %d with %s",
			v.epoch, v.tree.size, root, v.epoch+1, o.KeptSize, o.KeptRoot)
		return false
	}
	if c.Size == v.tree.size && c.Root == v.tree.root() {
		v.checkpoints = append(v.checkpoints, signedCheckpoint{Checkpoint: c, at: v.size(), signed: []byte(o.Checkpoint), opens: true, line: line})
	}
	v.note("Epoch %d was opened at %s, when the last checkpoint of epoch %d had %d entries and %d were left. Reason given: %q",
		it.at.epoch, it.time[:], v.epoch, c.Size, o.KeptSize, o.Reason)
	if o.Key != "" {
		logID, epoch, key, err := parseVerifierKey(o.Key)
		if err != nil || logID != v.logID || epoch != it.at.epoch {
			v.fail(CheckEvidence, it.at, line, "the entry that opens the epoch names a key that is not of this epoch")
			return false
		}
		v.declared = append(v.declared, declaredKey{epoch, key})
		v.note("The key of epoch %d had been lost: epoch %d has another one, %s, for which no earlier key vouches.", v.epoch, epoch, o.Key)
		if epoch <= v.firstKey {
			v.lost = epoch
			v.note("No key of an earlier epoch than %d was given: the signatures of those epochs were not checked.", epoch)
		}
	}
	v.missed(v.epoch)
	v.epoch, v.tree, v.lastCovered = it.at.epoch, compactRange{}, 0
	v.reached()
	return true
}

func unmarshalEvidence(e *evidence, pointer string, into any) error {
	return json.Unmarshal(e.values[pointer], into, json.RejectUnknownMembers(true))
}

func (v *verifier) evidence(it *item, line int64) {
	switch it.evidence.action {
	case ActionErasure:
		var places []string
		if unmarshalEvidence(it.evidence, "/erased", &places) != nil {
			v.fail(CheckErasure, it.at, line, "the erasure entry does not list what was erased")
			return
		}
		for _, s := range places {
			p, err := ParsePlace(s)
			slot, _ := parseSlot(p.Slot)
			if err != nil || (position{p.Epoch, p.Seq}).compare(it.at) >= 0 {
				v.fail(CheckErasure, it.at, line, "the erasure entry lists %q, which is not a value of an entry before it", clip(s))
				return
			}
			if k, ok := pendingKey(position{p.Epoch, p.Seq}, slot); ok {
				if _, absent := v.pending[k]; absent {
					delete(v.pending, k)
					v.report.Erased++
				}
			}
		}
	case ActionKeyRotated:
		var r KeyRotation
		err := unmarshalEvidence(it.evidence, "/key", &r)
		from, to, ok := r.endorsed(Origin(v.logID, v.epoch))
		if err != nil || !ok || len(v.rotations) >= 1000 {
			v.fail(CheckEvidence, it.at, line, "the entry that rotates the key is not signed by both keys")
			return
		}
		v.rotations = append(v.rotations, rotation{from: from, to: to, endsAt: r.EndsAt, at: it.at})
		v.note("The key was rotated in entry %d of epoch %d, at %s; the old key ends at %s.", it.at.n, it.at.epoch, it.time[:], r.EndsAt)
	case ActionMonthClosed:
		var m closedMonth
		if unmarshalEvidence(it.evidence, "/statement", &m) != nil {
			v.fail(CheckEvidence, it.at, line, "the entry that closes a month does not hold the hash of its statement")
			return
		}
		if found, ok := v.statements[m.SHA256]; ok && !found {
			v.statements[m.SHA256] = true
			v.report.Statements++
		}
	}
}

// maxCheckpoints bounds how many checkpoints of an export are kept until its
// end, when it is known which keys may sign.
const maxCheckpoints = 10_000

func (v *verifier) checkpoint(it *item, line int64) bool {
	x, err := parseLine[exportCheckpoint](it.text)
	if err != nil || !v.open {
		v.fail(CheckForm, v.about(), line, "there is a checkpoint that is not in its one form, or out of place")
		return false
	}
	c, err := ParseCheckpoint([]byte(x.Checkpoint))
	if err != nil {
		v.fail(CheckForm, v.about(), line, "%s", problem.From(err).Detail)
		return false
	}
	switch {
	case c.Origin != Origin(v.logID, v.epoch):
		v.fail(CheckBelonging, v.about(), line, "the checkpoint is of %s", c.Origin)
		return false
	case c.Size != v.tree.size:
		v.fail(CheckTree, v.about(), line, "the checkpoint is of size %d, but %d entries precede it: entries were removed or added", c.Size, v.tree.size)
		return false
	case v.covered:
		v.fail(CheckForm, v.about(), line, "the checkpoint of size %d is repeated", c.Size)
		return false
	case len(v.checkpoints) >= maxCheckpoints:
		v.fail(CheckForm, v.about(), line, "there are more than %d checkpoints", maxCheckpoints)
		return false
	}
	if root := v.tree.root(); root != c.Root {
		v.fail(CheckTree, v.about(), line, "the checkpoint of size %d has the root hash %s, but the entries make %s: one of the entries %d to %d was altered",
			c.Size, c.Root, root, v.lastCovered, c.Size-1)
	} else {
		v.lastCovered = c.Size
	}
	v.covered, v.again = true, v.part == 0 && v.report.Entries > 0
	v.checkpoints = append(v.checkpoints, signedCheckpoint{Checkpoint: c, at: v.size(), signed: []byte(x.Checkpoint), line: line})
	return true
}

func (v *verifier) end(it *item, line int64) bool {
	x, err := parseLine[exportEnd](it.text)
	switch {
	case err != nil || !v.open:
		v.fail(CheckForm, v.about(), line, "the last line of an export is not in its one form, or out of place")
		return false
	case !v.covered:
		v.fail(CheckTree, v.about(), line, "no checkpoint covers the entries from %d on", v.lastCovered)
	case x.End.Entries != v.part:
		v.fail(CheckTransfer, v.about(), line, "the export has %d entries, but says %d", v.part, x.End.Entries)
	case x.End.SHA256 != it.sum.String():
		v.fail(CheckTransfer, v.about(), line, "the export is not as it was written: its SHA-256 is %s, but it says %s", it.sum, clip(x.End.SHA256))
	}
	v.open = false
	return true
}

// finish checks what can be decided only when all has been read.
func (v *verifier) finish() {
	r := v.report
	r.Epoch, r.Size = v.epoch, v.tree.size
	broken := len(r.Failures) > 0
	switch {
	case !v.started:
		if !broken {
			v.fail(CheckTransfer, v.about(), 0, "there is no export")
		}
		return
	case v.open && !broken:
		v.fail(CheckTransfer, v.about(), 0, "the export is cut short: its last line is missing")
	}
	if v.lastKey > v.epoch {
		v.fail(CheckSequence, position{v.lastKey, -1}, 0, "the export ends with epoch %d, but a verifier key of epoch %d was given", v.epoch, v.lastKey)
	}
	if !v.open {
		v.missed(1<<62 - 1)
		for _, k := range sortedKeys(v.pending) {
			at, s := pendingPlace(k)
			v.fail(CheckErasure, at, 0, "the value %s is absent, and no later erasure entry covers it", s)
		}
		for sum, found := range v.statements {
			if !found {
				v.fail(CheckStatement, v.about(), 0, "no entry of a closed month has the statement with the SHA-256 %s", sum)
			}
		}
	}
	v.trustRotations()
	for _, d := range v.declared {
		if !v.keys[d.key] {
			v.fail(CheckSignature, position{d.epoch, 0}, 0, "the epoch was opened with another key, since that of the epoch before had been lost, and no given key vouches for it")
		}
	}
	for _, key := range v.headerKeys {
		if !v.keys[key] {
			v.fail(CheckSignature, v.about(), 0, "the export names a verifier key that was not given, and that no given key vouches for")
		}
	}
	for i := range v.checkpoints {
		if c := &v.checkpoints[i]; !c.opens || c.at.epoch >= v.lost {
			v.signature(c)
		}
	}
}

func sortedKeys(m map[uint64]struct{}) []uint64 {
	keys := make([]uint64, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// trustRotations adds the keys that rotations lead to, forwards or backwards,
// from those that were given.
func (v *verifier) trustRotations() {
	for again := true; again; {
		again = false
		for _, r := range v.rotations {
			if v.keys[r.from] != v.keys[r.to] {
				v.keys[r.from], v.keys[r.to], again = true, true, true
			}
		}
	}
	for _, r := range v.rotations {
		if !v.keys[r.from] && r.at.epoch >= v.lost {
			v.fail(CheckSignature, r.at, 0, "the key is rotated between two keys that no given key vouches for")
		}
	}
}

func (v *verifier) signature(c *signedCheckpoint) {
	var keys []publicKey
	var list []note.Verifier
	for key := range v.keys {
		keys, list = append(keys, key), append(list, key.verifier(c.Origin))
	}
	_, byLog, byWitness, err := openCheckpoint(c.signed, list, v.witnesses)
	if err != nil {
		v.fail(CheckSignature, position{c.at.epoch, -1}, c.line, "the checkpoint of size %d: %s", c.Size, problem.From(err).Detail)
		return
	}
	out := CheckedCheckpoint{Origin: c.Origin, Size: c.Size, Root: c.Root.String(), Kept: c.kept, Witnesses: []string{}}
	for _, i := range byWitness {
		// A key of the log is no witness of it, whatever it is listed as.
		if w := v.witnesses[i].(*witness); !v.keys[publicKey(w.public)] {
			out.Witnesses = append(out.Witnesses, v.label(w, c.Origin))
		}
	}
	if !slices.ContainsFunc(byLog, func(i int) bool { return !v.ended(keys[i], c.at) }) {
		v.fail(CheckSignature, position{c.at.epoch, -1}, c.line, "the checkpoint of size %d is signed only by a key that had been rotated out by then", c.Size)
		return
	}
	v.report.Checkpoints = append(v.report.Checkpoints, out)
}

// label names a witness in the report: by its name, and by the hash of its key
// too if the name is also that of another witness or of the log.
func (v *verifier) label(w *witness, origin string) string {
	same := func(o note.Verifier) bool { return o.Name() == w.name && o != note.Verifier(w) }
	if w.name == origin || slices.ContainsFunc(v.witnesses, same) {
		return fmt.Sprintf("%s+%08x", w.name, w.hash)
	}
	return w.name
}

// ended reports whether the key may no longer sign a log of this size.
func (v *verifier) ended(key publicKey, size position) bool {
	for _, r := range v.rotations {
		if r.from == key && r.ended && size.compare(r.end) > 0 {
			return true
		}
	}
	return false
}

// A pending absent value is packed into 64 bits: 12 of the epoch, 36 of the
// seq, 16 of the slot.
func pendingKey(at position, s slot) (uint64, bool) {
	code := uint64(s.kind)
	if s.kind == slotNew || s.kind == slotOld {
		code = 16 + 2*uint64(s.index) + uint64(s.kind-slotNew)
	}
	if at.epoch >= 1<<12 || at.n >= 1<<36 || code >= 1<<16 {
		return 0, false
	}
	return uint64(at.epoch)<<52 | uint64(at.n)<<16 | code, true
}

func pendingPlace(k uint64) (position, slot) {
	at := position{int64(k >> 52), int64(k >> 16 & (1<<36 - 1))}
	code := k & (1<<16 - 1)
	if code < 16 {
		return at, slot{kind: slotKind(code)}
	}
	return at, slot{slotNew + slotKind(code&1), int(code-16) / 2}
}

// entryChecker checks lines of entries on their own. It is used by one
// goroutine.
type entryChecker struct {
	committer committer
	leaf      leaf
	scratch   []byte
	rootID    string
	logID     string
}

// check fills it with what the line of an entry holds.
func (c *entryChecker) check(line []byte, it *item) {
	text, values, ok := cutEntryLine(line)
	if !ok || c.leaf.parse(text) != nil {
		*it = item{kind: kindBroken, check: CheckForm, detail: "the line is not an entry in canonical form"}
		return
	}
	l := &c.leaf
	if c.rootID != string(l.path[0]) {
		c.rootID = string(l.path[0])
	}
	if c.logID != string(l.log) {
		c.logID = string(l.log)
	}
	*it = item{kind: kindEntry, at: position{l.epoch, l.seq}, rootID: c.rootID, logID: c.logID}
	copy(it.time[:], l.at)
	c.scratch = append(append(c.scratch[:0], 0), text...)
	it.leafHash = sha256.Sum256(c.scratch)
	evident := isEvidence(l.action)
	if evident {
		it.evidence = &evidence{action: string(l.action), values: map[string]jsontext.Value{}}
	}
	c.committer.reset(c.rootID, c.logID, l.epoch, l.seq)
	var salt [saltSize + 1]byte
	var sum [commitmentSize]byte
	if err := l.open(values, func(slot slot, commitment []byte, v *opened) error {
		if v == nil {
			if evident && slot.ofChange() {
				it.check, it.detail = CheckErasure, fmt.Sprintf("the value %s is absent, and values of such an entry are never erased", slot)
			} else {
				it.absent = append(it.absent, slot)
			}
			return nil
		}
		if _, err := strictBase64.Decode(salt[:], v.salt); err != nil {
			return err
		}
		h := c.committer.commit(slot, salt[:saltSize], v.text)
		if base64.StdEncoding.Encode(sum[:], h[:]); !bytes.Equal(sum[:], commitment) || !jsontext.Value(v.text).IsValid() {
			it.check, it.detail = CheckCommitment, fmt.Sprintf("the value %s is not the one that the entry commits to", slot)
			return nil
		}
		it.values++
		if evident && slot.kind == slotNew {
			it.evidence.values[string(l.changes[slot.index].pointer)] = bytes.Clone(v.text)
		}
		return nil
	}); err != nil {
		it.check, it.detail, it.fatal = CheckForm, "the values are not in canonical form, or not of this entry", true
	}
}

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

// Comparison is the result of comparing two exports of the same log.
type Comparison struct {
	First  *Report `json:"first"`
	Second *Report `json:"second"`
	Common int64   `json:"common"` // how many entries, from the first on, are the same
	// Differs says that the exports contradict each other after that; the
	// entry is Epoch and Seq. If it is false, one of them only goes further.
	Differs bool  `json:"differs"`
	Epoch   int64 `json:"epoch,omitempty"`
	Seq     int64 `json:"seq,omitempty"`
}

// OK reports whether both exports hold and do not contradict each other.
func (c *Comparison) OK() bool { return c.First.OK() && c.Second.OK() && !c.Differs }

// Compare verifies two exports, each against expect, and compares their
// entries. What expect says about kept checkpoints, receipts and statements
// must hold for both.
func Compare(a, b io.Reader, expect Expect) (*Comparison, error) {
	type leafAt struct {
		at   position
		hash Hash
	}
	type side struct {
		leaves chan []leafAt
		report *Report
		err    error
	}
	run := func(r io.Reader) *side {
		s := &side{leaves: make(chan []leafAt, 4)}
		e := expect
		var chunk []leafAt
		e.leaf = func(epoch, seq int64, h Hash) {
			if chunk = append(chunk, leafAt{position{epoch, seq}, h}); len(chunk) == 1024 {
				s.leaves <- chunk
				chunk = nil
			}
		}
		go func() {
			defer close(s.leaves)
			s.report, s.err = Verify(r, e)
			if len(chunk) > 0 {
				s.leaves <- chunk
			}
		}()
		return s
	}
	first := run(a)
	expect.Progress = nil // one of them is enough, and it need not be safe for two
	second := run(b)
	out := &Comparison{}
	var x, y []leafAt
	okX, okY := true, true
	for {
		if len(x) == 0 && okX {
			x, okX = <-first.leaves
		}
		if len(y) == 0 && okY {
			y, okY = <-second.leaves
		}
		if !okX && !okY {
			break
		}
		n := min(len(x), len(y))
		if !okX || !okY { // one has ended: the rest of the other is only read
			x, y = nil, nil
			continue
		}
		for i := 0; i < n && !out.Differs; i++ {
			if x[i] == y[i] {
				out.Common++
				continue
			}
			at := x[i].at
			if y[i].at.compare(at) < 0 {
				at = y[i].at
			}
			out.Differs, out.Epoch, out.Seq = true, at.epoch, at.n
		}
		x, y = x[n:], y[n:]
	}
	out.First, out.Second = first.report, second.report
	return out, cmp.Or(first.err, second.err)
}
