package audit

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/mod/sumdb/note"

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
