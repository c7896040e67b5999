package audit

import (
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/mod/sumdb/note"

	"github.com/orgd/orgd/internal/problem"
)

// Actions of entries that are evidence about the log itself or by way of it.
// Their changed values are never erased, or the log could no longer be checked.
const (
	ActionEpochOpened = "log.epoch_opened"   // always leaf 0 of an epoch that follows another
	ActionKeyRotated  = "log.key_rotated"    // another key signs from now on
	ActionErasure     = "erasure"            // values of earlier entries were erased
	ActionMonthClosed = "consumption.closed" // a month's statement is final
)

func isEvidence(action []byte) bool {
	switch string(action) {
	case ActionEpochOpened, ActionKeyRotated, ActionErasure, ActionMonthClosed:
		return true
	}
	return false
}

// MaxErased is the number of places that one erasure entry can list.
const MaxErased = 100_000

func jsonValue(v any) jsontext.Value {
	b, err := json.Marshal(v)
	if err != nil {
		panic("audit: value that is not JSON: " + err.Error())
	}
	return b
}

// Erasure returns the changes of an erasure entry: the places of the values
// that were erased, at most MaxErased, and the basis on which that was done.
// There are no places if values were erased outside of the log only. It must
// not say whose values they were.
func Erasure(basis string, places []Place) ([]Change, error) {
	if len(places) > MaxErased {
		return nil, fmt.Errorf("audit: an erasure entry lists at most %d places, not %d", MaxErased, len(places))
	}
	list := make([]string, len(places))
	for i, p := range places {
		list[i] = p.String()
		if _, err := ParsePlace(list[i]); err != nil {
			return nil, err
		}
	}
	return []Change{{Pointer: "/basis", New: jsonValue(basis)}, {Pointer: "/erased", New: jsonValue(list)}}, nil
}

// EpochOpening says why an epoch was opened, and from where it goes on.
type EpochOpening struct {
	Reason string `json:"reason"`
	// Checkpoint is the last signed checkpoint of the epoch before.
	Checkpoint string `json:"checkpoint"`
	// KeptSize and KeptRoot are what is left of the epoch before: less than
	// the checkpoint says after an old backup was restored.
	KeptSize int64  `json:"kept_size"`
	KeptRoot string `json:"kept_root"` // hexadecimal
	// Key is the verifier key that signs the new epoch if those of the epoch
	// before could not be had. Nothing but this entry vouches for it.
	Key string `json:"key,omitzero"`
}

// OpenEpoch returns the head of the epoch that follows old, and the changes of
// the entry that must become its leaf 0. Checkpoint is the last signed
// checkpoint of old's epoch. Key is nil if the keys of that epoch go on
// signing, otherwise the one that signs from now on.
func OpenEpoch(old *Head, checkpoint []byte, reason string, key *Key) (*Head, []Change, error) {
	c, err := ParseCheckpoint(checkpoint)
	if err != nil {
		return nil, nil, err
	}
	if c.Origin != Origin(old.LogID, old.Epoch) {
		return nil, nil, problem.New(problem.InvalidRequest, "The checkpoint is of %s, not of this log's epoch.", c.Origin)
	}
	h := NewHead(old.RootID, old.LogID)
	h.Epoch = old.Epoch + 1
	o := EpochOpening{Reason: reason, Checkpoint: string(checkpoint), KeptSize: old.Size, KeptRoot: old.Root.String()}
	if key != nil {
		if key.Name() != Origin(h.LogID, h.Epoch) {
			return nil, nil, fmt.Errorf("audit: the key of %s cannot sign epoch %d", key.Name(), h.Epoch)
		}
		o.Key = key.Verifier()
	}
	return h, []Change{{Pointer: "/epoch", New: jsonValue(o)}}, nil
}

// KeyRotation says that the key To signs from now on, and From no longer from
// EndsAt on: a checkpoint of a size that includes an entry with a later time
// must bear a signature of another key than From.
type KeyRotation struct {
	From   string `json:"from"` // verifier keys
	To     string `json:"to"`
	EndsAt string `json:"ends_at"` // RFC 3339, UTC, with six digits of the second
	// Endorsement is a note over the three, signed by both keys, so that
	// whoever trusts one can trust the other.
	Endorsement string `json:"endorsement"`
}

func (r *KeyRotation) text() string {
	return "orgd.audit/key-rotation/v1\n" + r.From + "\n" + r.To + "\n" + r.EndsAt + "\n"
}

// RotateKey returns the changes of the entry that records a rotation.
func RotateKey(from, to *Key, endsAt time.Time) ([]Change, error) {
	if from.Name() != to.Name() || from.Verifier() == to.Verifier() {
		return nil, fmt.Errorf("audit: cannot rotate from %s to %s", from.Verifier(), to.Verifier())
	}
	r := KeyRotation{From: from.Verifier(), To: to.Verifier(), EndsAt: endsAt.UTC().Format(timeFormat)}
	signed, err := note.Sign(&note.Note{Text: r.text()}, from, to)
	if err != nil {
		return nil, err
	}
	r.Endorsement = string(signed)
	return []Change{{Pointer: "/key", New: jsonValue(r)}}, nil
}

// endorsed returns the two keys of the rotation if both have signed it and
// both are of the log's epoch.
func (r *KeyRotation) endorsed(origin string) (from, to publicKey, ok bool) {
	keys := [2]publicKey{}
	var list []note.Verifier
	for i, vkey := range []string{r.From, r.To} {
		logID, epoch, key, err := parseVerifierKey(vkey)
		if err != nil || Origin(logID, epoch) != origin {
			return from, to, false
		}
		keys[i] = key
		list = append(list, key.verifier(origin))
	}
	n, err := note.Open([]byte(r.Endorsement), note.VerifierList(list...))
	ok = err == nil && n.Text == r.text() && len(n.Sigs) == 2 && len(n.UnverifiedSigs) == 0 &&
		keys[0] != keys[1] && validTime([]byte(r.EndsAt))
	return keys[0], keys[1], ok
}

type closedMonth struct {
	Month  string `json:"month"`
	SHA256 string `json:"sha256"` // hexadecimal
}

// ClosedMonth returns the changes of the entry that makes a month's statement
// final: canonical JSON (RFC 8785), of which the SHA-256 is given.
func ClosedMonth(month string, statement Hash) []Change {
	return []Change{{Pointer: "/statement", New: jsonValue(closedMonth{month, statement.String()})}}
}

func isCanonical(b []byte) bool {
	v := jsontext.Value(b).Clone()
	return v.Canonicalize() == nil && string(v) == string(b)
}
