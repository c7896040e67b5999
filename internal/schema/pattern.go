package schema

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// pattern is a compiled regular expression. It is matched by a machine of our
// own, which follows all ways through the program at once, one rune at a time:
// it charges for each instruction that it looks at and can be stopped at any.
type pattern struct {
	text     string
	prog     *syntax.Prog
	anchored bool // a match starts at the start of the text
	size     int  // bytes in memory, about
}

// patternSize is what a regular expression is worth before it is compiled.
type patternSize struct {
	instructions int
	ranges       int // of characters: what they take to build and to keep
}

func (s patternSize) within(max patternSize) bool {
	return s.instructions <= max.instructions && s.ranges <= max.ranges
}

// parsePattern parses a regular expression in the syntax of RE2. What is
// written otherwise in ECMA-262 and means the same is understood too; what RE2
// does not have is named in the error. Nothing is built that is larger than
// max.
func parsePattern(text string, max patternSize) (*syntax.Regexp, patternSize, error) {
	var size patternSize
	re2, ranges, err := translate(text, max.ranges)
	if err != nil {
		return nil, size, err
	}
	size.ranges = ranges
	re, err := syntax.Parse(re2, syntax.Perl)
	if err != nil {
		return nil, size, syntaxError(err)
	}
	if size.instructions = 2 + instructions(re); !size.within(max) {
		return nil, size, errPatternTooLarge
	}
	return re, size, nil
}

var errPatternTooLarge = errors.New("is too large a pattern")

func syntaxError(err error) error {
	var e *syntax.Error
	if !errors.As(err, &e) {
		return fmt.Errorf("is not a regular expression: %v", err)
	}
	part := shorten(e.Expr, 60)
	switch e.Code {
	case syntax.ErrInvalidRepeatSize:
		return fmt.Errorf("repeats as %s says, which this server's patterns (RE2) do not have: they count to at most 1000, with counts inside of counts multiplied", part)
	case syntax.ErrInvalidPerlOp:
		return fmt.Errorf("uses %s, which this server's patterns (RE2) do not have", part)
	case syntax.ErrInvalidCharRange:
		if strings.HasPrefix(part, `\p`) || strings.HasPrefix(part, `\P`) {
			return fmt.Errorf("uses the property %s, which this server's patterns (RE2) do not have: they have general categories and scripts", part)
		}
	case syntax.ErrNestingDepth, syntax.ErrLarge:
		return errPatternTooLarge
	}
	return fmt.Errorf("is not a regular expression: %s: %s", e.Code, part)
}

// maxInstructions is where counting them stops.
const maxInstructions = 1 << 30

// instructions returns how many instructions re is compiled to at most. It
// counts on the parse tree, before repetitions are written out.
func instructions(re *syntax.Regexp) int {
	n := 0
	for _, sub := range re.Sub {
		n += instructions(sub)
	}
	switch re.Op {
	case syntax.OpLiteral:
		n = len(re.Rune)
	case syntax.OpCapture, syntax.OpStar:
		n += 2
	case syntax.OpPlus, syntax.OpQuest:
		n++
	case syntax.OpAlternate:
		n += len(re.Sub)
	case syntax.OpRepeat:
		if re.Max >= 0 {
			n = re.Max*n + re.Max - re.Min
		} else {
			n = max(re.Min, 1)*n + 2
		}
	}
	return min(max(n, 1), maxInstructions)
}

// compilePattern compiles a regular expression, see parsePattern.
func compilePattern(text string, max patternSize) (*pattern, patternSize, error) {
	re, size, err := parsePattern(text, max)
	if err != nil {
		return nil, size, err
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return nil, size, syntaxError(err)
	}
	p := &pattern{text: text, prog: prog, anchored: prog.StartCond()&syntax.EmptyBeginText != 0, size: 200 + 2*len(text)}
	for i := range prog.Inst {
		p.size += 40 + 4*cap(prog.Inst[i].Rune)
	}
	return p, size, nil
}

// machine is what matching needs beside the program, used again and again.
type machine struct {
	seen  []uint32 // the instructions reached at the present place, in their order
	at    []uint32 // the place of an instruction in seen
	now   []uint32 // where the ways go on at the present place
	stack []uint32
}

// match reports whether a part of s matches. It charges for what it does.
func (m *machine) match(p *pattern, s string, charge func(steps int)) bool {
	charge(4)
	if n := len(p.prog.Inst); len(m.at) < n {
		m.at, m.seen = make([]uint32, n), make([]uint32, 0, n)
	}
	m.now = append(m.now[:0], uint32(p.prog.Start))
	before := rune(-1)
	for {
		r, width := rune(-1), 0
		if len(s) > 0 {
			r, width = utf8.DecodeRuneInString(s)
		}
		if m.reach(p.prog, syntax.EmptyOpContext(before, r), charge) {
			return true
		}
		if width == 0 {
			return false
		}
		m.now = m.now[:0]
		for _, pc := range m.seen {
			if i := &p.prog.Inst[pc]; i.Op >= syntax.InstRune && matches(i, r) {
				m.now = append(m.now, i.Out)
			}
		}
		if !p.anchored {
			m.now = append(m.now, uint32(p.prog.Start))
		} else if len(m.now) == 0 {
			return false
		}
		before, s = r, s[width:]
	}
}

func matches(i *syntax.Inst, r rune) bool {
	switch i.Op {
	case syntax.InstRuneAny:
		return true
	case syntax.InstRuneAnyNotNL:
		return r != '\n'
	}
	return i.MatchRune(r)
}

// reach follows the ways in m.now up to where they need a rune, and reports
// whether one has ended.
func (m *machine) reach(prog *syntax.Prog, context syntax.EmptyOp, charge func(steps int)) bool {
	m.seen = m.seen[:0]
	for _, from := range m.now {
		m.stack = append(m.stack[:0], from)
		for len(m.stack) > 0 {
			pc := m.stack[len(m.stack)-1]
			m.stack = m.stack[:len(m.stack)-1]
			if j := m.at[pc]; int(j) < len(m.seen) && m.seen[j] == pc {
				continue
			}
			m.at[pc] = uint32(len(m.seen))
			m.seen = append(m.seen, pc)
			switch i := &prog.Inst[pc]; i.Op {
			case syntax.InstMatch:
				charge(len(m.seen))
				return true
			case syntax.InstAlt, syntax.InstAltMatch:
				m.stack = append(m.stack, i.Out, i.Arg)
			case syntax.InstCapture, syntax.InstNop:
				m.stack = append(m.stack, i.Out)
			case syntax.InstEmptyWidth:
				if syntax.EmptyOp(i.Arg)&^context == 0 {
					m.stack = append(m.stack, i.Out)
				}
			}
		}
	}
	charge(1 + len(m.now) + 2*len(m.seen))
	return false
}

// translate returns a regular expression of ECMA-262 as RE2 writes it, and how
// many ranges of characters RE2 will make of it at most, which may be max.
// Everything that RE2 understands as it is stays as it is.
func translate(s string, max int) (string, int, error) {
	t := &translator{s: s, folds: folds(s)}
	for t.i < len(s) {
		if err := t.next(); err != nil {
			return "", 0, err
		}
		if t.ranges > max {
			return "", 0, errPatternTooLarge
		}
	}
	return t.out.String(), t.ranges, nil
}

type translator struct {
	s      string
	i      int
	folds  bool
	ranges int
	out    strings.Builder

	inClass bool
	// from is the last character of the class, if a range may start with it;
	// otherwise -1.
	from rune
	dash bool // "-" came after from
}

// lastFold is after the last character that has another case. A range with all
// of them is not looked at character by character.
const lastFold = 0x20000

// propertyRanges is at least how many ranges a property of Unicode has.
const propertyRanges = 1000

// folds reports whether a part of the pattern may ignore case: then RE2 looks at
// each character of a range by itself.
func folds(s string) bool {
	for {
		_, rest, ok := strings.Cut(s, "(?")
		if !ok {
			return false
		}
		flags := rest[:len(rest)-len(strings.TrimLeft(rest, "imsU-"))]
		if strings.Contains(flags, "i") {
			return true
		}
		s = rest
	}
}

func lacks(what string) error {
	return fmt.Errorf("uses %s, which this server's patterns (RE2) do not have", what)
}

func (t *translator) next() error {
	rest := t.s[t.i:]
	switch {
	case rest[0] == '\\':
		return t.escape()
	case t.inClass && rest[0] == ']':
		t.inClass = false
		t.take(1)
		return nil
	case t.inClass:
		if strings.HasPrefix(rest, "[:") { // as RE2 has it
			if end := strings.Index(rest[:min(len(rest), 20)], ":]"); end > 0 {
				t.from = -1
				t.ranges += 20
				t.take(end + 2)
				return nil
			}
		}
		r, n := utf8.DecodeRuneInString(rest)
		t.class(r)
		t.take(n)
		return nil
	}
	for _, lack := range []struct{ opens, name string }{
		{"(?=", "a look-ahead, (?=…)"}, {"(?!", "a negative look-ahead, (?!…)"},
		{"(?<=", "a look-behind, (?<=…)"}, {"(?<!", "a negative look-behind, (?<!…)"},
	} {
		if strings.HasPrefix(rest, lack.opens) {
			return lacks(lack.name)
		}
	}
	switch {
	case strings.HasPrefix(rest, "(?<"):
		// A name changes nothing about what matches, and RE2 knows fewer names.
		if name, _, ok := strings.Cut(rest[3:min(len(rest), 100)], ">"); ok && name != "" && !strings.ContainsAny(name, "()[]\\") {
			t.i += len("(?<>") + len(name)
			t.out.WriteString("(")
			return nil
		}
	case rest[0] == '[':
		t.inClass, t.from, t.dash = true, -1, false
		t.ranges += 2
		n := len("[")
		if strings.HasPrefix(rest, "[^") {
			n++
		}
		if strings.HasPrefix(rest[n:], "]") { // in the first place it is itself
			t.class(']')
			n++
		}
		t.take(n)
		return nil
	}
	_, n := utf8.DecodeRuneInString(rest)
	t.ranges++
	t.take(n)
	return nil
}

// take copies the next n bytes.
func (t *translator) take(n int) {
	t.out.WriteString(t.s[t.i : t.i+n])
	t.i += n
}

// put writes re2 for the next n bytes.
func (t *translator) put(n int, re2 string) {
	t.out.WriteString(re2)
	t.i += n
}

// class counts a character of a class.
func (t *translator) class(r rune) {
	switch {
	case r == '-' && t.from >= 0 && !t.dash:
		t.dash = true
	case t.dash:
		t.ranges++
		if t.folds && (t.from > 'A' || r < lastFold) {
			t.ranges += int(max(0, min(r, lastFold)-t.from))
		}
		t.from, t.dash = -1, false
	default:
		t.ranges++
		t.from = r
	}
}

// rune writes a character in the way that RE2 has.
func (t *translator) rune(n int, r rune) {
	if t.inClass {
		t.class(r)
	}
	t.ranges++
	t.put(n, `\x{`+strconv.FormatInt(int64(r), 16)+`}`)
}

// escape translates what starts with a backslash.
func (t *translator) escape() error {
	rest := t.s[t.i:]
	if len(rest) == 1 {
		return errors.New(`is not a regular expression: it ends with a backslash`)
	}
	switch c := rest[1]; {
	case c >= '1' && c <= '9' && !t.inClass:
		return lacks(fmt.Sprintf(`a back reference, \%c`, c))
	case c == 'k' && !t.inClass:
		return lacks(`a back reference, \k<…>`)
	case c == '0' && (len(rest) == 2 || rest[2] < '0' || rest[2] > '9'):
		t.rune(2, 0)
		return nil
	case c == 'c':
		if len(rest) > 2 && unicode.IsLetter(rune(rest[2])) && rest[2] < utf8.RuneSelf {
			t.rune(3, rune(rest[2]%32))
			return nil
		}
		return errors.New(`is not a regular expression: \c is to be followed by a letter`)
	case c == 'u':
		return t.unicode(rest)
	case c == 'x':
		// RE2 reads it; its value is needed for the ranges.
		r, n := rune(-1), 2
		if digits, _, ok := strings.Cut(rest[:min(len(rest), 20)], "}"); ok && strings.HasPrefix(digits, `\x{`) {
			digits = digits[len(`\x{`):]
			if v, err := strconv.ParseUint(digits, 16, 21); err == nil {
				r, n = rune(v), len(digits)+4
			}
		} else if len(rest) >= 4 {
			if v, err := strconv.ParseUint(rest[2:4], 16, 8); err == nil {
				r, n = rune(v), 4
			}
		}
		if t.inClass && r >= 0 {
			t.class(r)
		}
		t.ranges++
		t.take(n)
		return nil
	case c == 'p' || c == 'P':
		t.property(rest)
		return nil
	case strings.ContainsRune("dDsSwW", rune(c)):
		t.ranges += 10
		t.from, t.dash = -1, false
		t.take(2)
		return nil
	case c == 'Q' && !t.inClass: // as RE2 has it: up to \E everything is itself
		n := len(rest)
		if end := strings.Index(rest, `\E`); end >= 0 {
			n = end + 2
		}
		t.ranges += n
		t.take(n)
		return nil
	case c == 'b' && t.inClass:
		t.rune(2, '\b')
		return nil
	}
	r, n := utf8.DecodeRuneInString(rest[1:])
	if t.inClass {
		t.class(r)
	}
	t.ranges++
	t.take(1 + n)
	return nil
}

// unicode translates \uXXXX, two of them that are one character, and \u{X…}.
func (t *translator) unicode(rest string) error {
	if strings.HasPrefix(rest, `\u{`) {
		digits, _, ok := strings.Cut(rest[3:], "}")
		v, err := strconv.ParseUint(digits, 16, 21)
		if !ok || err != nil || v > unicode.MaxRune {
			return errors.New(`is not a regular expression: \u{…} is to hold the hexadecimal number of a character`)
		}
		if utf16.IsSurrogate(rune(v)) {
			return lacks(fmt.Sprintf(`half of a surrogate pair, \u{%s}`, digits))
		}
		t.rune(len(digits)+4, rune(v))
		return nil
	}
	r, ok := codeUnit(rest)
	if !ok {
		return errors.New(`is not a regular expression: \u is to be followed by four hexadecimal digits`)
	}
	if utf16.IsSurrogate(r) {
		low, ok := codeUnit(rest[6:])
		pair := utf16.DecodeRune(r, low)
		if !ok || pair == unicode.ReplacementChar {
			return lacks(`half of a surrogate pair, ` + rest[:6])
		}
		t.rune(12, pair)
		return nil
	}
	t.rune(6, r)
	return nil
}

// codeUnit reads \uXXXX.
func codeUnit(s string) (rune, bool) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, false
	}
	v, err := strconv.ParseUint(s[2:6], 16, 16)
	return rune(v), err == nil
}

// property translates \p{General_Category=X} and \p{Script=X}, which RE2
// writes \p{X}.
func (t *translator) property(rest string) {
	t.ranges += propertyRanges
	if t.folds {
		t.ranges += propertyRanges
	}
	t.from, t.dash = -1, false
	name, _, ok := strings.Cut(rest[2:min(len(rest), 100)], "}")
	if !ok || !strings.HasPrefix(name, "{") {
		t.take(min(2, len(rest)))
		return
	}
	n := len(name) + 3
	if key, value, ok := strings.Cut(name[1:], "="); ok {
		switch key {
		case "General_Category", "gc", "Script", "sc":
			t.put(n, rest[:2]+"{"+value+"}")
			return
		}
	}
	t.take(n)
}

// shorten cuts s to at most n bytes.
func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
