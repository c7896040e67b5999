package schema

import (
	"fmt"
	"math/bits"
	"runtime"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/problem"
)

// Budget bounds one check.
type Budget struct {
	// Steps is how much work a check may be. A step is one thing looked at: a
	// keyword, a name, an instruction of a pattern for one character of a text,
	// 16 bytes of a text. It takes some nanoseconds.
	Steps int
	// Expired is asked now and then whether to stop; nil for never.
	Expired func() bool
}

// Outcome is how a check has ended.
type Outcome int

const (
	Done    Outcome = iota // the fields say what is wrong; without any all is right
	TooMuch                // it would have taken more steps than the budget has
	Expired
)

// Result is what a check has found.
type Result struct {
	Outcome Outcome
	// Fields are what is wrong, in the order of their pointers: at most
	// MaxFields, and no more than maxFieldBytes of text or one.
	Fields []problem.Field
	// Keyword is, of a check that is TooMuch, the keyword that has used up the
	// most of the budget; empty if it was the size of the value.
	Keyword string
	Steps   int // that the check took
}

// Limits of what one check reports.
const (
	MaxFields      = problem.MaxFields
	maxFieldBytes  = 64 << 10
	maxDetail      = 500 // bytes
	maxEvaluations = 1000
)

// Check checks a JSON value, whose errors have pointers that start with prefix.
// It is stopped when the budget is used up, and also when MaxFields errors are
// found.
func (s *Schema) Check(prefix string, v jsontext.Value, b Budget) (result Result) {
	e := &evaluation{schema: s, report: report{prefix: prefix}, left: b.Steps, expired: b.Expired}
	e.look, e.since = max(0, e.left-stepsBetweenLooks), e.left
	e.charger = e.charge
	defer func() {
		switch stopped := recover(); stopped {
		case nil, errFull:
			result.Fields = e.report.sorted()
		case errTooMuch:
			result.Outcome, result.Keyword = TooMuch, e.dearest()
		case errExpired:
			result.Outcome = Expired
		default:
			panic(stopped)
		}
		result.Steps = b.Steps - e.left
	}()
	e.charge(len(v) / 4)
	root, err := read(v)
	if err != nil {
		e.report.add(nil, "is not valid JSON: "+err.Error())
		return result
	}
	if s.compares {
		e.charge(len(v))
		e.ids = newIDs(s.ids)
		e.ids.put(root)
	}
	e.evaluate(s.root, root, false, false)
	return result
}

// stop ends a check from wherever it is.
type stop string

const (
	errFull    stop = "enough errors"
	errTooMuch stop = "too many steps"
	errExpired stop = "too much time"
)

const stepsBetweenLooks = 10_000

// evaluation is one check under way.
type evaluation struct {
	schema  *Schema
	ids     *ids
	expired func() bool
	left    int // steps
	look    int // when left is less, look at the time

	// keyword is what is charged now, and spent what was charged so far.
	keyword string
	since   int // left when keyword began
	spent   map[string]int

	report report
	path   []token
	about  string // what an error is about if not about the value at path
	quiet  bool   // nobody wants to know why

	frames  []frame
	seen    []uint64 // the bits of the frames that track
	machine machine
	charger func(steps int) // charge
}

// frame is one schema that is being applied to a value.
type frame struct {
	node *node
	same bool // the value is that of the frame before
	// seen is where in evaluation.seen the bits of the members or items begin
	// that keywords have evaluated; -1 if nobody wants to know.
	seen int
}

// charge takes steps off the budget, and ends the check if there are no more.
func (e *evaluation) charge(steps int) {
	if e.left -= steps; e.left < e.look {
		if e.left < 0 {
			panic(errTooMuch)
		}
		if e.expired != nil && e.expired() {
			panic(errExpired)
		}
		e.look = max(0, e.left-stepsBetweenLooks)
		// Who has a short thing to do need not wait until this is over.
		runtime.Gosched()
	}
}

// chargeTo says which keyword the steps from now on belong to.
func (e *evaluation) chargeTo(keyword string) {
	if e.keyword == keyword {
		return
	}
	if spent := e.since - e.left; spent > 0 {
		if e.spent == nil {
			e.spent = map[string]int{}
		}
		e.spent[e.keyword] += spent
	}
	e.keyword, e.since = keyword, e.left
}

// dearest returns the keyword that has taken the most steps.
func (e *evaluation) dearest() string {
	e.chargeTo("")
	best := ""
	for keyword, spent := range e.spent {
		if best == "" || spent > e.spent[best] || spent == e.spent[best] && keyword < best {
			best = keyword
		}
	}
	return best
}

// name charges for looking a name up among n.
func (e *evaluation) name(name string, n int) {
	e.charge(2 + len(name)/16 + bits.Len(uint(n)))
}

// evaluate reports whether v satisfies n. same says that v is the value of the
// frame on top, track that it is wanted which members or items are evaluated;
// if v satisfies n, they are evaluated for the frame on top too.
func (e *evaluation) evaluate(n *node, v *value, same, track bool) bool {
	e.charge(4)
	if n.never {
		return e.fail("is not allowed")
	}
	if len(n.first)+len(n.rules) == 0 {
		return true
	}
	if len(e.frames) >= maxEvaluations {
		e.chargeTo("$ref")
		panic(errTooMuch)
	}
	if same {
		for i := len(e.frames) - 1; i >= 0; i-- {
			e.charge(1)
			if e.frames[i].node == n {
				return e.fail("cannot be checked: the schema refers to itself in a circle")
			}
			if !e.frames[i].same {
				break
			}
		}
	}
	f, words := frame{node: n, same: same, seen: -1}, 0
	if track || n.tracks {
		words = (len(v.elems) + 63) / 64
		e.charge(words)
		f.seen = len(e.seen)
		e.seen = slices.Grow(e.seen, words)[:f.seen+words]
		clear(e.seen[f.seen:])
	}
	e.frames = append(e.frames, f)
	valid := e.apply(n, v)
	e.frames = e.frames[:len(e.frames)-1]
	if f.seen >= 0 {
		if outer := e.tracked(); valid && same && outer >= 0 {
			for i := range words {
				e.seen[outer+i] |= e.seen[f.seen+i]
			}
		}
		e.seen = e.seen[:f.seen]
	}
	return valid
}

func (e *evaluation) apply(n *node, v *value) bool {
	for _, r := range n.first {
		if !r.check(e, v) {
			return false
		}
	}
	valid := true
	for _, r := range n.rules {
		if !r.check(e, v) {
			if e.quiet {
				return false
			}
			valid = false
		}
	}
	return valid
}

// tracked returns where the bits of the frame on top are, -1 if it has none.
func (e *evaluation) tracked() int {
	if len(e.frames) == 0 {
		return -1
	}
	return e.frames[len(e.frames)-1].seen
}

// mark says that the member or item i of the value of the frame on top is
// evaluated.
func (e *evaluation) mark(i int) {
	if seen := e.tracked(); seen >= 0 {
		e.seen[seen+i/64] |= 1 << (i % 64)
	}
}

// inPlace applies n to the value of the frame on top.
func (e *evaluation) inPlace(n *node, v *value) bool {
	return e.evaluate(n, v, true, e.tracked() >= 0)
}

// inside applies n to the member or item i of v.
func (e *evaluation) inside(n *node, v *value, i int) bool {
	e.path = append(e.path, tokenOf(v, i))
	valid := e.evaluate(n, v.elems[i], false, false)
	e.path = e.path[:len(e.path)-1]
	return valid
}

// holds is a function that evaluates, without a word about why not.
func (e *evaluation) holds(evaluate func() bool) bool {
	quiet := e.quiet
	e.quiet = true
	valid := evaluate()
	e.quiet = quiet
	return valid
}

// fail notes an error at the value that is being checked, and returns false.
// Nothing is put together if nobody wants to know.
func (e *evaluation) fail(format string, args ...any) bool {
	if !e.quiet {
		e.note(format, args...)
	}
	return false
}

// failAt is fail for a member or item, which need not be there.
func (e *evaluation) failAt(t token, format string, args ...any) bool {
	if !e.quiet {
		e.path = append(e.path, t)
		e.note(format, args...)
		e.path = e.path[:len(e.path)-1]
	}
	return false
}

func (e *evaluation) note(format string, args ...any) {
	detail := e.about + fmt.Sprintf(format, args...)
	e.charge(100 + len(detail))
	for _, t := range e.path {
		e.charge(2 + len(t.name)/4)
	}
	if e.report.add(e.path, detail) {
		panic(errFull)
	}
}
