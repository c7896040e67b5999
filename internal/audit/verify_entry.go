package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
)

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
