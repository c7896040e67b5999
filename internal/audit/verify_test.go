package audit

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/mod/sumdb/note"

	"github.com/orgd/orgd/internal/problem"
)

// trail is a log as a store would keep it.
type trail struct {
	t       testing.TB
	head    *Head
	records []Record // of all epochs
	version int64    // of the key that signs
	at      time.Time
	undo    []func(size int) // brings back what a backup of that size still has
}

func newTrail(t testing.TB, drafts ...*Draft) *trail {
	tr := &trail{t: t, head: NewHead("root", testLogID), version: 1, at: time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)}
	tr.append(drafts...)
	return tr
}

func (tr *trail) append(drafts ...*Draft) {
	tr.records = append(tr.records, appendAll(tr.t, tr.head, drafts...)...)
}

// log appends an entry about the log.
func (tr *trail) log(action string, changes []Change, err error) {
	tr.t.Helper()
	if err != nil {
		tr.t.Fatal(err)
	}
	tr.append(tr.evidence(action, changes))
}

func (tr *trail) evidence(action string, changes []Change) *Draft {
	tr.at = tr.at.Add(time.Minute)
	return &Draft{ID: "aud_x", Timestamp: tr.at, OrgID: "root", Path: "root/", Action: action,
		Actor: Actor{Type: "system", ID: "system", Name: "system"}, Target: Target{"audit_log", testLogID}, Changes: changes}
}

func (tr *trail) key() *Key { return testKey(tr.t, tr.head.LogID, tr.head.Epoch, tr.version) }

func (tr *trail) sign(keys ...note.Signer) []byte {
	if len(keys) == 0 {
		keys = []note.Signer{tr.key()}
	}
	return sign(tr.t, tr.head, keys...)
}

// erase erases values of one record and records that.
func (tr *trail) erase(i int, slots ...string) {
	tr.t.Helper()
	before, erasure := tr.records[i].Values, len(tr.records)
	tr.undo = append(tr.undo, func(size int) {
		if i < size && erasure >= size {
			tr.records[i].Values = before
		}
	})
	if err := tr.records[i].Erase(slots); err != nil {
		tr.t.Fatal(err)
	}
	var places []Place
	for _, s := range slots {
		places = append(places, Place{tr.records[i].Epoch, tr.records[i].Seq, s})
	}
	changes, err := Erasure("request of the subject", places)
	tr.log(ActionErasure, changes, err)
}

func (tr *trail) rotate(overlap time.Duration) {
	from := tr.key()
	tr.version++
	changes, err := RotateKey(from, tr.key(), tr.at.Add(overlap))
	tr.log(ActionKeyRotated, changes, err)
}

// lose drops the last entries, as a restored backup does, and opens an epoch.
func (tr *trail) lose(n int) {
	checkpoint := tr.sign()
	old := &Head{RootID: "root", LogID: tr.head.LogID, Epoch: tr.head.Epoch, Root: EmptyRoot}
	for _, r := range tr.records[:len(tr.records)-n] {
		if r.Epoch == old.Epoch {
			old.Extend(r.LeafHash)
		}
	}
	tr.records = tr.records[:len(tr.records)-n]
	for _, undo := range slices.Backward(tr.undo) {
		undo(len(tr.records))
	}
	tr.version = 1 // a backup has the key of its time
	for _, r := range tr.records {
		if r.Action == ActionKeyRotated {
			tr.version++
		}
	}
	head, changes, err := OpenEpoch(old, checkpoint, "a backup was restored", nil)
	tr.head = head
	tr.log(ActionEpochOpened, changes, err)
}

// export returns the export of the records from one on.
func (tr *trail) export(from int, checkpoint []byte) []byte {
	return exportOf(tr.t, tr.records[from:], "root", tr.head.LogID, tr.key().Verifier(), checkpoint)
}

func (tr *trail) whole() []byte { return tr.export(0, tr.sign()) }

func exportOf(t testing.TB, records []Record, rootID, logID, key string, checkpoint []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	x, err := NewExport(&buf, rootID, logID, key, records[0].Epoch, records[0].Seq)
	if err != nil {
		t.Fatal(err)
	}
	for i := range records {
		if err := x.Entry(&records[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.Checkpoint(checkpoint); err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func receiptOf(r *Record) Receipt {
	return Receipt{Origin(testLogID, r.Epoch), r.Seq, r.LeafHash}
}

func firstKey(t testing.TB) Expect {
	return Expect{Keys: []string{testKey(t, testLogID, 0, 1).Verifier()}}
}

func verify(t testing.TB, export []byte, expect Expect) *Report {
	t.Helper()
	report, err := Verify(bytes.NewReader(export), expect)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func mustHold(t testing.TB, export []byte, expect Expect) *Report {
	t.Helper()
	report := verify(t, export, expect)
	if !report.OK() {
		t.Fatalf("failures %+v", report.Failures)
	}
	return report
}

func mustFail(t testing.TB, export []byte, expect Expect, want Check) Failure {
	t.Helper()
	report := verify(t, export, expect)
	if report.OK() || report.Failures[0].Check != want {
		t.Fatalf("failures %+v, want %s", report.Failures, want)
	}
	return report.Failures[0]
}

func TestVerify(t *testing.T) {
	tr := newTrail(t, samples(6)...)
	kept := tr.sign()
	tr.append(samples(3)...)
	statement := []byte(`{"month":"2026-10","orgs":[]}`)
	tr.log(ActionMonthClosed, ClosedMonth("2026-10", sha256.Sum256(statement)), nil)
	tr.erase(0, "actor/name", "changes/0/new", "ip")
	expect := firstKey(t)
	expect.Checkpoints = [][]byte{kept, sign(t, NewHead("root", testLogID), tr.key()), tr.sign()}
	expect.Receipts = []Receipt{receiptOf(&tr.records[0]), receiptOf(&tr.records[7])}
	expect.Statements = [][]byte{statement}
	var progress int64
	expect.Progress = func(n int64) { progress = n }
	r := mustHold(t, tr.whole(), expect)
	if r.Entries != 11 || r.Size != 11 || r.Erased != 3 || r.Values == 0 || r.Receipts != 2 || r.Statements != 1 || len(r.Checkpoints) != 4 || progress != 11 {
		t.Errorf("report %+v", r)
	}
	if r.RootID != "root" || r.LogID != testLogID {
		t.Errorf("report %+v", r)
	}
}

func TestVerifyResumed(t *testing.T) {
	tr := newTrail(t, samples(4)...)
	first := tr.whole()
	tr.append(samples(3)...)
	second := tr.export(4, tr.sign())
	if r := mustHold(t, slices.Concat(first, second), firstKey(t)); r.Entries != 7 || len(r.Checkpoints) != 2 {
		t.Errorf("report %+v", r)
	}
	// The first part still shows a value that was erased in between.
	tr.erase(1, "ip")
	third := tr.export(7, tr.sign())
	mustHold(t, slices.Concat(first, second, third), firstKey(t))
	mustHold(t, tr.whole(), firstKey(t))

	// To resume when there is nothing new adds nothing.
	mustHold(t, slices.Concat(first, exportNothing(t, tr, first), second), firstKey(t))

	mustFail(t, second, firstKey(t), CheckSequence)
	mustFail(t, slices.Concat(first, third), firstKey(t), CheckSequence)
	mustFail(t, slices.Concat(first, first), firstKey(t), CheckSequence)
	mustFail(t, slices.Concat(first, second[:len(second)/2]), firstKey(t), CheckTransfer)
}

// exportNothing returns the export that goes on after first, which has all.
func exportNothing(t *testing.T, tr *trail, first []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	x, err := NewExport(&buf, "root", testLogID, tr.key().Verifier(), 0, 4)
	if err != nil {
		t.Fatal(err)
	}
	checkpoint, err := parseLine[exportCheckpoint](bytes.Split(first, []byte("\n"))[5])
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(x.Checkpoint([]byte(checkpoint.Checkpoint)), x.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestVerifyEpochs(t *testing.T) {
	tr := newTrail(t, samples(6)...)
	kept := tr.sign()
	early := receiptOf(&tr.records[1])
	lost := receiptOf(&tr.records[5])
	tr.append(sample(6))
	tr.lose(3)
	tr.append(samples(2)...)
	tr.erase(1, "ip")
	tr.erase(0, "user_agent")
	expect := firstKey(t)
	expect.Receipts = []Receipt{early}
	r := mustHold(t, tr.whole(), expect)
	if r.Epoch != 1 || r.Size != 5 || r.Entries != 9 || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "had 7 entries and 4 were left") {
		t.Errorf("report %+v", r)
	}
	expect.Receipts = []Receipt{lost}
	mustFail(t, tr.whole(), expect, CheckReceipt)
	expect = firstKey(t)
	expect.Checkpoints = [][]byte{kept}
	mustFail(t, tr.whole(), expect, CheckTree)
	// The new epoch without the old one is not the log.
	mustFail(t, tr.export(4, tr.sign()), firstKey(t), CheckSequence)
	// A key of the new epoch shows that there is one.
	expect = Expect{Keys: []string{tr.key().Verifier()}}
	mustHold(t, tr.whole(), expect)
	mustFail(t, newTrail(t, samples(2)...).whole(), expect, CheckSequence)

	// Leaving out, or altering, an entry of the old epoch is noticed by what
	// the new one began with.
	mustFail(t, exportOf(t, slices.Delete(slices.Clone(tr.records), 3, 4), "root", testLogID, tr.key().Verifier(), tr.sign()), firstKey(t), CheckTree)
}

// The key of a log was lost, and an epoch opened with another one. Both keys
// together prove all of the log, the new one what it goes on from; the old one
// alone is no longer enough, and the new one vouches for no signature of before.
func TestVerifyLostKey(t *testing.T) {
	open := func(declared bool) (tr *trail, old, another *Key, kept []byte) {
		tr = newTrail(t, samples(3)...)
		tr.rotate(time.Minute)
		old, kept = tr.key(), tr.sign()
		another, err := DeriveKey(bytes.Repeat([]byte{8}, SeedSize), testLogID, 1, tr.version+1)
		if err != nil {
			t.Fatal(err)
		}
		key := another
		if !declared {
			key = nil
		}
		head, changes, err := OpenEpoch(tr.head, kept, "the seed was lost", key)
		tr.head = head
		tr.log(ActionEpochOpened, changes, err)
		tr.append(samples(2)...)
		return tr, old, another, kept
	}
	expect := func(keys ...*Key) (e Expect) {
		for _, k := range keys {
			e.Keys = append(e.Keys, k.Verifier())
		}
		return e
	}
	tr, old, another, kept := open(true)
	export := exportOf(t, tr.records, "root", testLogID, another.Verifier(), tr.sign(another))
	both := expect(old, another)
	both.Checkpoints = [][]byte{kept}
	if r := mustHold(t, export, both); len(r.Checkpoints) != 3 || !strings.Contains(strings.Join(r.Notes, "\n"), "has another one, "+another.Verifier()) {
		t.Errorf("with both keys: %+v", r)
	}
	if r := mustHold(t, export, expect(another)); len(r.Checkpoints) != 1 || !strings.Contains(strings.Join(r.Notes, "\n"), "were not checked") {
		t.Errorf("with the new key: %+v", r)
	}
	if f := mustFail(t, export, expect(old), CheckSignature); f.Epoch != 1 || !strings.Contains(f.Detail, "another key") {
		t.Errorf("with the old key: %+v", f)
	}
	kepts := expect(another)
	kepts.Checkpoints = [][]byte{kept}
	mustFail(t, export, kepts, CheckSignature)
	// What is before the new epoch is checked all the same.
	mustFail(t, exportOf(t, slices.Delete(slices.Clone(tr.records), 3, 4), "root", testLogID, another.Verifier(), tr.sign(another)), expect(another), CheckTree)

	// A signature of the old key that does not hold is noticed by who has it.
	forged := newTrail(t, samples(3)...)
	head, changes, err := OpenEpoch(forged.head, forged.sign(testKey(t, testLogID, 0, 9)), "", another)
	forged.head = head
	forged.log(ActionEpochOpened, changes, err)
	mustFail(t, exportOf(t, forged.records, "root", testLogID, another.Verifier(), forged.sign(another)), expect(testKey(t, testLogID, 0, 1), another), CheckSignature)

	// Unless the entry says so, an epoch has the keys of the one before.
	tr, _, another, _ = open(false)
	mustFail(t, exportOf(t, tr.records, "root", testLogID, another.Verifier(), tr.sign(another)), expect(another), CheckSignature)
	if _, _, err := OpenEpoch(tr.head, tr.sign(), "", another); err == nil {
		t.Error("an epoch was opened with the key of another one")
	}
}

func TestVerifyRotation(t *testing.T) {
	tr := newTrail(t, samples(2)...)
	old := tr.key()
	before := tr.sign()
	tr.rotate(3 * time.Minute)
	changes := []Change{{Pointer: "/x", New: jsontext.Value("1")}}
	tr.log("test", changes, nil)
	both := tr.sign(old, tr.key())
	onlyOldInTime := tr.sign(old)
	expectOld := firstKey(t)
	expectNew := Expect{Keys: []string{tr.key().Verifier()}}
	for name, checkpoint := range map[string][]byte{"both keys": both, "the old key, in time": onlyOldInTime, "the new key": tr.sign()} {
		for _, expect := range []Expect{expectOld, expectNew} {
			expect.Checkpoints = [][]byte{before}
			if r := verify(t, tr.export(0, checkpoint), expect); !r.OK() {
				t.Errorf("%s: %+v", name, r.Failures)
			}
		}
	}
	for range 4 {
		tr.log("test", changes, nil)
	}
	expectOld.Checkpoints = [][]byte{before, both, onlyOldInTime}
	mustHold(t, tr.whole(), expectOld)
	mustHold(t, tr.export(0, tr.sign(old, tr.key())), expectNew)
	f := mustFail(t, tr.export(0, tr.sign(old)), expectOld, CheckSignature)
	if !strings.Contains(f.Detail, "rotated out") {
		t.Errorf("failure %+v", f)
	}
	mustFail(t, tr.export(0, tr.sign(old)), expectNew, CheckSignature)

	// Who holds no key cannot rotate to their own.
	forged := newTrail(t, samples(2)...)
	thief := testKey(t, testLogID, 0, 99)
	c, err := RotateKey(testKey(t, testLogID, 0, 98), thief, forged.at)
	forged.log(ActionKeyRotated, c, err)
	mustFail(t, forged.export(0, forged.sign(thief)), firstKey(t), CheckSignature)
	r := KeyRotation{From: old.Verifier(), To: thief.Verifier(), EndsAt: forged.at.Format(timeFormat)}
	half, err := note.Sign(&note.Note{Text: r.text()}, thief)
	if err != nil {
		t.Fatal(err)
	}
	r.Endorsement = string(half)
	forged = newTrail(t, samples(2)...)
	forged.log(ActionKeyRotated, []Change{{Pointer: "/key", New: jsonValue(r)}}, nil)
	mustFail(t, forged.export(0, forged.sign(thief)), firstKey(t), CheckEvidence)
}

// forge rebuilds the log from altered records, hashes and root and all; only
// the signature cannot be made anew.
func (tr *trail) forge(records []Record) (export []byte) {
	h := NewHead("root", testLogID)
	for _, r := range records {
		h.Extend(sha256.Sum256(append([]byte{0}, r.Leaf...)))
	}
	forged := resignWith(tr.sign(), h.Checkpoint())
	return exportOf(tr.t, records, "root", testLogID, tr.key().Verifier(), forged)
}

// resignWith puts another text above the signatures of a checkpoint.
func resignWith(signed []byte, c Checkpoint) []byte {
	return append([]byte(c.text()), signed[bytes.Index(signed, []byte("\n\n"))+1:]...)
}

func TestAttacks(t *testing.T) {
	build := func() *trail {
		tr := newTrail(t, samples(9)...)
		tr.erase(4, "ip")
		return tr
	}
	replace := func(b []byte, old, new string) []byte {
		out := bytes.Replace(b, []byte(old), []byte(new), 1)
		if bytes.Equal(out, b) {
			t.Fatalf("%q is not in %q", old, b)
		}
		return out
	}
	for _, tt := range []struct {
		name   string
		attack func(tr *trail) []byte
		want   Check
	}{
		{"a leaf edited", func(tr *trail) []byte {
			tr.records[3].Leaf = replace(tr.records[3].Leaf, "organization.updated", "organization.deleted")
			return tr.whole()
		}, CheckTree},
		{"a leaf edited, and its hashes up to the root", func(tr *trail) []byte {
			tr.records[3].Leaf = replace(tr.records[3].Leaf, "organization.updated", "organization.deleted")
			return tr.forge(tr.records)
		}, CheckSignature},
		{"a value edited", func(tr *trail) []byte {
			tr.records[0].Values = replace(tr.records[0].Values, "Jane", "John")
			return tr.whole()
		}, CheckCommitment},
		{"the last entry deleted", func(tr *trail) []byte {
			return exportOf(t, tr.records[:len(tr.records)-1], "root", testLogID, tr.key().Verifier(), tr.sign())
		}, CheckTree},
		{"the last entry deleted, and its hashes", func(tr *trail) []byte {
			tr.append(sample(0))
			return tr.forge(tr.records[:10])
		}, CheckSignature},
		{"the first entry deleted", func(tr *trail) []byte { return tr.export(1, tr.sign()) }, CheckSequence},
		{"two entries swapped", func(tr *trail) []byte {
			tr.records[5], tr.records[6] = tr.records[6], tr.records[5]
			return tr.whole()
		}, CheckSequence},
		{"two entries swapped, with their numbers", func(tr *trail) []byte {
			a, b := tr.records[1], tr.records[5]
			a.Leaf, b.Leaf = replace(a.Leaf, `"seq":1`, `"seq":5`), replace(b.Leaf, `"seq":5`, `"seq":1`)
			tr.records[1], tr.records[5] = b, a
			return tr.forge(tr.records)
		}, CheckCommitment},
		{"an entry repeated", func(tr *trail) []byte {
			tr.records = slices.Insert(tr.records, 3, tr.records[3])
			return tr.whole()
		}, CheckSequence},
		{"an entry of another log", func(tr *trail) []byte {
			other := NewHead("root", strings.Repeat("0", 32))
			tr.records[3] = appendAll(t, other, samples(4)...)[3]
			return tr.whole()
		}, CheckBelonging},
		{"an entry of another root, relabelled", func(tr *trail) []byte {
			other := NewHead("toor", testLogID)
			d := sample(0)
			d.Path = "toor/team/"
			for range 3 {
				appendAll(t, other, d)
			}
			r := appendAll(t, other, d)[0]
			r.Leaf = replace(r.Leaf, `["toor","team"]`, `["root","team"]`)
			tr.records[3] = r
			return tr.forge(tr.records)
		}, CheckCommitment},
		{"a value removed without an erasure", func(tr *trail) []byte {
			if err := tr.records[2].Erase([]string{"changes/0/new"}); err != nil {
				t.Fatal(err)
			}
			return tr.whole()
		}, CheckErasure},
		{"a value removed, the erasure of another one claimed for it", func(tr *trail) []byte {
			tr.records[9].Values = replace(tr.records[9].Values, "0/4/ip", "0/5/ip")
			return tr.whole()
		}, CheckCommitment},
		{"an erasure entry forged at the end", func(tr *trail) []byte {
			if err := tr.records[2].Erase([]string{"changes/0/new"}); err != nil {
				t.Fatal(err)
			}
			signed := tr.sign()
			changes, err := Erasure("forged", []Place{{0, 2, "changes/0/new"}})
			tr.log(ActionErasure, changes, err)
			return tr.export(0, signed)
		}, CheckTree},
		{"an erasure of what comes later", func(tr *trail) []byte {
			changes, err := Erasure("in advance", []Place{{0, 11, "ip"}})
			tr.log(ActionErasure, changes, err)
			tr.append(sample(0))
			if err := tr.records[11].Erase([]string{"ip"}); err != nil {
				t.Fatal(err)
			}
			return tr.whole()
		}, CheckErasure},
		{"an erasure entry that lists nothing any more", func(tr *trail) []byte {
			tr.records[9].Values = []byte("{}")
			return tr.whole()
		}, CheckErasure},
		{"a key's signature over another log", func(tr *trail) []byte {
			other := newTrail(t, samples(10)...)
			return tr.export(0, other.sign())
		}, CheckTree},
		{"signed by another key", func(tr *trail) []byte {
			return exportOf(t, tr.records, "root", testLogID, tr.key().Verifier(), tr.sign(testKey(t, testLogID, 0, 2)))
		}, CheckSignature},
		{"the export names another key", func(tr *trail) []byte {
			return exportOf(t, tr.records, "root", testLogID, testKey(t, testLogID, 0, 2).Verifier(), tr.sign())
		}, CheckSignature},
		{"of another log altogether", func(tr *trail) []byte {
			id := strings.Repeat("0", 32)
			h := NewHead("root", id)
			key := testKey(t, id, 0, 1)
			return exportOf(t, appendAll(t, h, samples(3)...), "root", id, key.Verifier(), sign(t, h, key))
		}, CheckBelonging},
		{"an epoch opened out of nothing", func(tr *trail) []byte {
			_, changes, err := OpenEpoch(tr.head, tr.sign(), "", nil)
			tr.log(ActionEpochOpened, changes, err)
			return tr.whole()
		}, CheckSequence},
		{"a folded entry with an altered change", func(tr *trail) []byte {
			d := sample(0)
			d.Changes = nil
			for i := range 2000 {
				d.Changes = append(d.Changes, Change{Pointer: fmt.Sprintf("/setting/%d", i), New: jsontext.Value("1")})
			}
			tr.append(d)
			tr.records[10].Values = replace(tr.records[10].Values, "/setting/7\"", "/setting/8\"")
			return tr.whole()
		}, CheckCommitment},
		{"no checkpoint", func(tr *trail) []byte {
			lines := bytes.SplitAfter(tr.whole(), []byte("\n"))
			return reseal(slices.Concat(slices.Delete(lines, 11, 12)...))
		}, CheckTree},
		{"nothing", func(*trail) []byte { return nil }, CheckTransfer},
		{"cut in a line", func(tr *trail) []byte { return tr.whole()[:1500] }, CheckTransfer},
		{"cut between lines", func(tr *trail) []byte {
			return slices.Concat(bytes.SplitAfter(tr.whole(), []byte("\n"))[:5]...)
		}, CheckTransfer},
		{"without its last newline", func(tr *trail) []byte { b := tr.whole(); return b[:len(b)-1] }, CheckTransfer},
		{"CRLF", func(tr *trail) []byte { return bytes.ReplaceAll(tr.whole(), []byte("\n"), []byte("\r\n")) }, CheckForm},
		{"a line without end", func(tr *trail) []byte { return append(tr.whole(), make([]byte, maxLine+1<<17)...) }, CheckTransfer},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := build()
			mustHold(t, tr.whole(), firstKey(t))
			mustFail(t, tt.attack(tr), firstKey(t), tt.want)
		})
	}
}

// TestRewritten checks what only somebody who kept something can notice: the
// holder of the key rewrote the log and signed it again.
func TestRewritten(t *testing.T) {
	genuine := newTrail(t, samples(9)...)
	rewritten := newTrail(t, append(samples(4), append([]*Draft{sample(3)}, samples(9)[5:]...)...)...)
	mustHold(t, rewritten.whole(), firstKey(t))
	expect := firstKey(t)
	expect.Checkpoints = [][]byte{genuine.sign()}
	mustFail(t, rewritten.whole(), expect, CheckTree)
	expect = firstKey(t)
	expect.Receipts = []Receipt{receiptOf(&genuine.records[4])}
	f := mustFail(t, rewritten.whole(), expect, CheckReceipt)
	if f.Seq != 4 {
		t.Errorf("failure %+v", f)
	}
	short := newTrail(t)
	short.head, short.records = NewHead("root", testLogID), nil
	for i := range 5 {
		short.head.Extend(genuine.records[i].LeafHash)
		short.records = append(short.records, genuine.records[i])
	}
	expect.Checkpoints, expect.Receipts = [][]byte{genuine.sign()}, []Receipt{receiptOf(&genuine.records[8])}
	if r := verify(t, short.whole(), expect); len(r.Failures) != 2 {
		t.Errorf("failures %+v", r.Failures)
	}
	expect = firstKey(t)
	expect.Statements = [][]byte{[]byte("{}")}
	mustFail(t, genuine.whole(), expect, CheckStatement)
}

func TestCompare(t *testing.T) {
	long := newTrail(t, samples(3000)...)
	short := &trail{t: t, head: NewHead("root", testLogID), version: 1}
	for i := range 2100 {
		short.head.Extend(long.records[i].LeafHash)
		short.records = append(short.records, long.records[i])
	}
	fork := &trail{t: t, head: NewHead("root", testLogID), version: 1}
	for i := range 1500 {
		fork.head.Extend(long.records[i].LeafHash)
		fork.records = append(fork.records, long.records[i])
	}
	fork.append(samples(900)...)
	for _, tt := range []struct {
		name    string
		a, b    *trail
		common  int64
		differs bool
		seq     int64
	}{
		{"the same", long, long, 3000, false, 0},
		{"one goes further", short, long, 2100, false, 0},
		{"the other goes further", long, short, 2100, false, 0},
		{"a fork", fork, long, 1500, true, 1500},
	} {
		c, err := Compare(bytes.NewReader(tt.a.whole()), bytes.NewReader(tt.b.whole()), firstKey(t))
		if err != nil {
			t.Fatal(err)
		}
		if !c.First.OK() || !c.Second.OK() || c.Common != tt.common || c.Differs != tt.differs || c.Seq != tt.seq || c.OK() == tt.differs {
			t.Errorf("%s: %+v", tt.name, c)
		}
	}
	bad := bytes.Replace(long.whole(), []byte("Jane"), []byte("John"), 1)
	if c, err := Compare(bytes.NewReader(bad), bytes.NewReader(long.whole()), firstKey(t)); err != nil || c.OK() || c.First.OK() || !c.Second.OK() {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestVerifyUnusable(t *testing.T) {
	tr := newTrail(t, samples(2)...)
	for name, expect := range map[string]Expect{
		"no key":            {},
		"a bad key":         {Keys: []string{"x"}},
		"keys of two logs":  {Keys: []string{tr.key().Verifier(), testKey(t, strings.Repeat("0", 32), 0, 1).Verifier()}},
		"a bad checkpoint":  {Keys: firstKey(t).Keys, Checkpoints: [][]byte{[]byte("x")}},
		"a bad witness key": {Keys: firstKey(t).Keys, Witnesses: []string{"x"}},
		"a bad statement":   {Keys: firstKey(t).Keys, Statements: [][]byte{[]byte("{ }")}},
	} {
		if _, err := Verify(bytes.NewReader(tr.whole()), expect); !problem.Is(err, problem.InvalidRequest) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	cause := errors.New("disk on fire")
	r := io.MultiReader(bytes.NewReader(tr.whole()[:1000]), iotest.ErrReader(cause))
	if _, err := Verify(r, firstKey(t)); !errors.Is(err, cause) {
		t.Errorf("error %v", err)
	}
}

// TestVerifyStops checks that a long export with a hole near its beginning is
// given up there.
// Lines of any length make an export, wherever in it they stand.
func TestVerifyLongLines(t *testing.T) {
	drafts := samples(12)
	for n, d := range drafts {
		value := jsontext.Value(`"` + strings.Repeat("x", 50_000+n*7_000) + `"`)
		d.Changes = []Change{{Pointer: "/name", Old: value, New: value}}
	}
	tr := newTrail(t, drafts...)
	mustHold(t, tr.whole(), firstKey(t))
}

func TestVerifyStops(t *testing.T) {
	tr := newTrail(t, samples(5000)...)
	checkpoint := tr.sign()
	tr.records = slices.Delete(tr.records, 7, 8)
	f := mustFail(t, tr.export(0, checkpoint), firstKey(t), CheckSequence)
	if f.Seq != 8 || f.Line != 9 {
		t.Errorf("failure %+v", f)
	}
	if r := verify(t, tr.export(0, checkpoint), firstKey(t)); r.Entries != 7 || len(r.Failures) != 1 {
		t.Errorf("report %+v", r)
	}
}

func TestErase(t *testing.T) {
	tr := newTrail(t, samples(2)...)
	r := &tr.records[0]
	slots, err := r.Holding(subject(t, "JANE@example.com").In)
	if err != nil || !slices.Equal(slots, []string{"actor/name", "ip", "user_agent"}) {
		t.Errorf("slots %q, %v", slots, err)
	}
	x := func(text string) bool { return strings.Contains(text, "x") && !strings.Contains(text, "@") }
	if slots, err := r.Holding(x); err != nil || !slices.Equal(slots, []string{"changes/1/new"}) {
		t.Errorf("slots %q, %v", slots, err)
	}
	before := bytes.Clone(r.Values)
	if err := r.Erase([]string{"ip", "changes/7/new"}); err == nil || !bytes.Equal(before, r.Values) {
		t.Errorf("error %v, values %s", err, r.Values)
	}
	if err := r.Erase([]string{"ip", "changes/0/old"}); err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{"192.0.2.7", "Old name"} {
		if bytes.Contains(r.Values, []byte(gone)) {
			t.Errorf("%s is still there", gone)
		}
	}
	e, err := r.Entry()
	if err != nil || !slices.Equal(e.Erased, []string{"changes/0/old", "ip"}) || e.UserAgent != "curl/8" {
		t.Errorf("entry %+v, %v", e, err)
	}
	if err := r.Erase([]string{"ip"}); err == nil {
		t.Error("erased twice")
	}

	changes, err := Erasure("basis", []Place{{0, 0, "ip"}})
	tr.log(ActionErasure, changes, err)
	evidence := &tr.records[2]
	if slots, err := evidence.Holding(subject(t, "basis").In); err != nil || len(slots) != 0 {
		t.Errorf("slots of evidence %q, %v", slots, err)
	}
	if err := evidence.Erase([]string{"changes/0/new"}); err == nil {
		t.Error("evidence was erased")
	}
	if err := evidence.Erase([]string{"actor/name"}); err != nil {
		t.Error(err)
	}
	for _, bad := range [][]Place{{{0, 0, "mail"}}, {{-1, 0, "ip"}}, {{0, 0, "changes/x/new"}}, {{0, 0, "changes/01/new"}}, make([]Place, MaxErased+1)} {
		if _, err := Erasure("basis", bad); err == nil {
			t.Errorf("%d places %+v accepted", len(bad), bad[:min(len(bad), 1)])
		}
	}
}

func FuzzParsePlace(f *testing.F) {
	f.Add("0/17/changes/0/new")
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ParsePlace(s); err == nil && p.String() != s {
			t.Errorf("%q parsed as %q", s, p)
		}
	})
}

func TestPendingKey(t *testing.T) {
	for _, at := range []position{{0, 0}, {1<<12 - 1, 1<<36 - 1}, {3, 70_000}} {
		for _, s := range []slot{{slotActorName, 0}, {slotChanges, 0}, {slotNew, 0}, {slotOld, 0}, {slotNew, 4000}, {slotOld, 4001}, {slotIP, 0}, {slotUserAgent, 0}} {
			k, ok := pendingKey(at, s)
			if gotAt, gotSlot := pendingPlace(k); !ok || gotAt != at || gotSlot != s {
				t.Errorf("%v %v became %v %v", at, s, gotAt, gotSlot)
			}
		}
	}
	if _, ok := pendingKey(position{1 << 12, 0}, slot{}); ok {
		t.Error("too large an epoch fits")
	}
}

// reseal makes the last lines of exports count and hash what is before them,
// as somebody does who alters an export on purpose.
func reseal(export []byte) []byte {
	var out, part []byte
	entries := int64(0)
	for line := range bytes.Lines(export) {
		switch {
		case bytes.HasPrefix(line, endPrefix) && bytes.HasSuffix(line, []byte("\n")):
			var end exportEnd
			end.End.Entries = entries
			end.End.SHA256 = Hash(sha256.Sum256(part)).String()
			out = append(append(append(out, part...), jsonValue(end)...), '\n')
			part, entries = nil, 0
			continue
		case bytes.HasPrefix(line, []byte(`{"leaf":`)):
			entries++
		}
		part = append(part, line...)
	}
	return append(out, part...)
}

// mutate returns a copy of b that differs from it.
func mutate(rnd *mathrand.Rand, b []byte) []byte {
	for {
		out := bytes.Clone(b)
		i, j := rnd.IntN(len(b)), rnd.IntN(len(b))
		lines := bytes.SplitAfter(out, []byte("\n"))
		lines = lines[:len(lines)-1]
		x, y := rnd.IntN(len(lines)), rnd.IntN(len(lines))
		switch rnd.IntN(12) {
		case 0: // a bit
			out[i] ^= 1 << rnd.IntN(8)
		case 1: // a byte
			out[i] = byte(rnd.IntN(256))
		case 2: // a byte of the kind that is there anyway
			out[i] = b[j]
		case 3: // a byte removed
			out = slices.Delete(out, i, i+1)
		case 4: // a byte inserted
			out = slices.Insert(out, i, b[j])
		case 5: // cut
			out = out[:i]
		case 6: // a run removed
			out = slices.Delete(out, min(i, j), max(i, j))
		case 7: // a run repeated
			n := min(rnd.IntN(200), len(b)-i)
			out = slices.Insert(out, i, b[i:i+n]...)
		case 8: // a line removed
			out = slices.Concat(slices.Delete(lines, x, x+1)...)
		case 9: // a line repeated elsewhere
			out = slices.Concat(slices.Insert(slices.Clone(lines), y, lines[x])...)
		case 10: // two lines swapped
			lines[x], lines[y] = lines[y], lines[x]
			out = slices.Concat(lines...)
		case 11: // a run overwritten by another
			n := min(rnd.IntN(60), len(b)-i, len(b)-j)
			copy(out[i:], b[j:j+n])
		}
		if !bytes.Equal(out, b) {
			return out
		}
	}
}

// mutableTrail has one of everything in few bytes: two exports in a row.
func mutableTrail(t testing.TB) (first, both []byte, expect Expect) {
	tr := newTrail(t, sample(0))
	first = tr.whole()
	tr.append(sample(1))
	tr.erase(1, "ip")
	tr.rotate(time.Minute)
	return first, slices.Concat(first, tr.export(1, tr.sign())), firstKey(t)
}

// TestMutations alters exports at random. Half of them are made to look
// consistent again, so that it is not the last line alone that catches them.
func TestMutations(t *testing.T) {
	total := 100_000
	if testing.Short() {
		total = 5_000
	}
	const parts = 4
	for part := range parts {
		t.Run(fmt.Sprint(part), func(t *testing.T) {
			t.Parallel()
			first, export, expect := mutableTrail(t)
			mustHold(t, export, expect)
			rnd := mathrand.New(mathrand.NewPCG(uint64(part), 4))
			for i := 0; i < total/parts; i++ {
				bad := mutate(rnd, export)
				if part%2 == 1 {
					bad = reseal(bad)
				}
				if bytes.Equal(bad, export) || bytes.Equal(bad, first) {
					continue // an export as it was, or the whole of an earlier one
				}
				if verify(t, bad, expect).OK() {
					t.Fatalf("mutation %d is not noticed:\n%s\nof\n%s", i, bad, export)
				}
			}
		})
	}
}

// TestNoFalseAlarm verifies logs of random histories.
func TestNoFalseAlarm(t *testing.T) {
	total := 1000
	if testing.Short() {
		total = 100
	}
	for seed := range total {
		rnd := mathrand.New(mathrand.NewPCG(uint64(seed), 5))
		tr := newTrail(t, sample(rnd.IntN(4)))
		expect := firstKey(t)
		var export []byte
		exported := 0
		for range rnd.IntN(20) {
			switch i := rnd.IntN(len(tr.records)); rnd.IntN(10) {
			case 0:
				slots, err := tr.records[i].Holding(func(string) bool { return true })
				if err != nil {
					t.Fatal(err)
				}
				if len(slots) > 0 {
					tr.erase(i, slots[rnd.IntN(len(slots))])
				}
			case 1:
				tr.rotate(time.Duration(rnd.IntN(5)) * time.Minute)
			case 2:
				if exported == 0 && len(expect.Checkpoints)+len(expect.Receipts) == 0 {
					tr.lose(rnd.IntN(2) * rnd.IntN(int(tr.head.Size)))
				}
			case 3:
				expect.Checkpoints = append(expect.Checkpoints, tr.sign())
			case 4:
				expect.Receipts = append(expect.Receipts, receiptOf(&tr.records[i]))
			case 5:
				if exported < len(tr.records) {
					export = append(export, tr.export(exported, tr.sign())...)
					exported = len(tr.records)
				}
			default:
				tr.append(sample(rnd.IntN(100)))
			}
		}
		tr.append(sample(0))
		export = append(export, tr.export(exported, tr.sign())...)
		if r := verify(t, export, expect); !r.OK() {
			t.Fatalf("seed %d: %+v", seed, r.Failures)
		}
	}
}

func FuzzVerify(f *testing.F) {
	_, export, expect := mutableTrail(f)
	f.Add(export)
	f.Fuzz(func(t *testing.T, b []byte) {
		if r := verify(t, b, expect); r.OK() && r.Entries == 0 && len(r.Checkpoints) == 0 {
			t.Errorf("nothing was checked, and all held: %+v", r)
		}
	})
}

// longExport returns the export of n entries.
func longExport(b *testing.B, n int) []byte {
	b.Helper()
	var buf bytes.Buffer
	h := NewHead("root", testLogID)
	key := testKey(b, testLogID, 0, 1)
	x, err := NewExport(&buf, "root", testLogID, key.Verifier(), 0, 0)
	if err != nil {
		b.Fatal(err)
	}
	for i := range n {
		r, err := h.Append(sample(i), rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		if err := x.Entry(&r); err != nil {
			b.Fatal(err)
		}
	}
	if err := errors.Join(x.Checkpoint(sign(b, h, key)), x.Close()); err != nil {
		b.Fatal(err)
	}
	return buf.Bytes()
}

// BenchmarkVerify reports the time for one entry.
func BenchmarkVerify(b *testing.B) {
	export := longExport(b, 100_000)
	b.ReportAllocs()
	b.SetBytes(int64(len(export)))
	for b.Loop() {
		mustHold(b, export, firstKey(b))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100_000, "ns/entry")
}
