package audit

import (
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/note"

	"github.com/orgd/orgd/internal/problem"
)

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
