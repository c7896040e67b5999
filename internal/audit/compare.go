package audit

import (
	"cmp"
	"io"
)

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
