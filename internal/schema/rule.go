package schema

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// rule is a keyword, or several that belong together, of one schema.
type rule interface {
	// check reports whether v satisfies the rule. If not, it has noted why.
	check(e *evaluation, v *value) bool
}

// typeRule is type.
type typeRule struct {
	kinds   []jsontext.Kind // 't' for both booleans
	integer bool            // integers are allowed, if not all numbers are
	text    string
}

func (r *typeRule) check(e *evaluation, v *value) bool {
	kind := v.kind
	if kind == 'f' {
		kind = 't'
	}
	if slices.Contains(r.kinds, kind) || r.integer && kind == '0' && e.decimal(v).isInteger() {
		return true
	}
	return e.fail("must be of the type %s; it is of the type %s", r.text, typeName(kind))
}

func typeName(kind jsontext.Kind) string {
	switch kind {
	case 'n':
		return "null"
	case 't', 'f':
		return "boolean"
	case '0':
		return "number"
	case '"':
		return "string"
	case '[':
		return "array"
	}
	return "object"
}

func (e *evaluation) decimal(v *value) decimal {
	e.charge(2 + len(v.text)/4)
	return parseDecimal(v.text)
}

// enumRule is enum, and const, which is an enum of one.
type enumRule struct {
	ids  []int32 // sorted
	text string  // of the values, cut
}

func (r *enumRule) check(e *evaluation, v *value) bool {
	e.charge(2)
	if _, ok := slices.BinarySearch(r.ids, v.id); ok {
		return true
	}
	return e.fail("must be %s", r.text)
}

type formatRule struct {
	name  string
	valid func(v any) error
}

func (r *formatRule) check(e *evaluation, v *value) bool {
	if v.kind != '"' {
		return true
	}
	e.chargeTo("format")
	e.charge(20 + 4*len(v.text))
	if r.valid(v.text) == nil {
		return true
	}
	return e.fail("is not a valid %s", r.name)
}

// maxRegex is how large a pattern that is a setting may be, with the format
// regex.
var maxRegex = patternSize{instructions: maxInstructions - 1, ranges: 20_000}

// regexRule is the format regex.
type regexRule struct{}

func (regexRule) check(e *evaluation, v *value) bool {
	if v.kind != '"' {
		return true
	}
	e.chargeTo("format")
	e.charge(1000 + 50*len(v.text))
	_, size, err := parsePattern(v.text, maxRegex)
	e.charge(4 * size.ranges)
	if err != nil {
		return e.fail("%v", err)
	}
	return true
}

type refRule struct{ to *node }

func (r *refRule) check(e *evaluation, v *value) bool {
	e.chargeTo("$ref")
	return e.inPlace(r.to, v)
}

type allRule struct{ of []*node }

func (r *allRule) check(e *evaluation, v *value) bool {
	valid := true
	for _, n := range r.of {
		e.chargeTo("allOf")
		if !e.inPlace(n, v) {
			if e.quiet {
				return false
			}
			valid = false
		}
	}
	return valid
}

type anyRule struct{ of []*node }

func (r *anyRule) check(e *evaluation, v *value) bool {
	if e.holds(func() bool {
		valid := false
		for _, n := range r.of {
			e.chargeTo("anyOf")
			if e.inPlace(n, v) {
				if valid = true; e.tracked() < 0 {
					break
				}
			}
		}
		return valid
	}) {
		return true
	}
	e.explain(r.of, v)
	return false
}

// explain notes why v satisfies none of the schemas.
func (e *evaluation) explain(none []*node, v *value) {
	if e.quiet {
		return
	}
	for _, n := range none {
		e.inPlace(n, v)
	}
}

type oneRule struct{ of []*node }

func (r *oneRule) check(e *evaluation, v *value) bool {
	matched := 0
	e.holds(func() bool {
		for _, n := range r.of {
			e.chargeTo("oneOf")
			if e.inPlace(n, v) {
				if matched++; matched > 1 {
					break
				}
			}
		}
		return matched == 1
	})
	switch matched {
	case 0:
		e.explain(r.of, v)
		return false
	case 1:
		return true
	}
	return e.fail("must match exactly one of the schemas in oneOf; it matches several")
}

type notRule struct{ not *node }

func (r *notRule) check(e *evaluation, v *value) bool {
	e.chargeTo("not")
	if !e.holds(func() bool { return e.inPlace(r.not, v) }) {
		return true
	}
	return e.fail("must not match the schema in not")
}

type ifRule struct{ when, then, other *node }

func (r *ifRule) check(e *evaluation, v *value) bool {
	e.chargeTo("if")
	next := r.other
	if e.holds(func() bool { return e.inPlace(r.when, v) }) {
		next = r.then
	}
	return next == nil || e.inPlace(next, v)
}

// countRule is minProperties and maxProperties, minItems and maxItems.
type countRule struct {
	kind     jsontext.Kind
	min, max int // max is -1 for none
}

func (r *countRule) check(e *evaluation, v *value) bool {
	if v.kind != r.kind {
		return true
	}
	e.charge(1)
	what := "items"
	if r.kind == '{' {
		what = "members"
	}
	switch n := len(v.elems); {
	case n < r.min:
		return e.fail("must have at least %d %s; it has %d", r.min, what, n)
	case r.max >= 0 && n > r.max:
		return e.fail("must have at most %d %s; it has %d", r.max, what, n)
	}
	return true
}

// requiredRule is required, and dependentRequired for one member.
type requiredRule struct {
	with  string // the member that needs them, if dependent
	given bool   // with is meant
	names []string
}

func (r *requiredRule) check(e *evaluation, v *value) bool {
	if v.kind != '{' {
		return true
	}
	e.chargeTo("required")
	if r.given {
		if e.name(r.with, len(v.names)); v.index(r.with) < 0 {
			return true
		}
	}
	valid := true
	for _, name := range r.names {
		if e.name(name, len(v.names)); v.index(name) >= 0 {
			continue
		}
		if valid = false; e.quiet {
			return false
		}
		if r.given {
			e.failAt(named(name), "is required, since %s is set", quoted(r.with))
		} else {
			e.failAt(named(name), "is required")
		}
	}
	return valid
}

// membersRule is properties, patternProperties and additionalProperties.
type membersRule struct {
	names    []string // sorted
	nodes    []*node
	patterns []memberPattern
	others   *node // nil for none
}

type memberPattern struct {
	pattern *pattern
	node    *node
}

func (r *membersRule) check(e *evaluation, v *value) bool {
	if v.kind != '{' {
		return true
	}
	valid := true
	if len(r.patterns) == 0 && r.others == nil && len(r.names) < len(v.names) {
		for j, name := range r.names {
			e.chargeTo("properties")
			if e.name(name, len(v.names)); !r.member(e, v, v.index(name), j) {
				valid = false
			}
			if !valid && e.quiet {
				return false
			}
		}
		return valid
	}
	for i, name := range v.names {
		e.chargeTo("properties")
		e.name(name, len(r.names))
		j, ok := slices.BinarySearch(r.names, name)
		if ok && !r.member(e, v, i, j) {
			valid = false
		}
		for _, p := range r.patterns {
			e.chargeTo("patternProperties")
			if !e.machine.match(p.pattern, name, e.charger) {
				continue
			}
			ok = true
			e.mark(i)
			if !e.inside(p.node, v, i) {
				valid = false
			}
		}
		if !ok && r.others != nil {
			e.chargeTo("additionalProperties")
			e.mark(i)
			if r.others.never {
				valid = e.failAt(named(name), "is not allowed: the schema does not know this setting")
			} else if !e.inside(r.others, v, i) {
				valid = false
			}
		}
		if !valid && e.quiet {
			return false
		}
	}
	return valid
}

// member checks the member i of v, which may not be there, against property j.
func (r *membersRule) member(e *evaluation, v *value, i, j int) bool {
	if i < 0 {
		return true
	}
	e.mark(i)
	return e.inside(r.nodes[j], v, i)
}

type namesRule struct{ node *node }

func (r *namesRule) check(e *evaluation, v *value) bool {
	if v.kind != '{' {
		return true
	}
	valid := true
	about := e.about
	e.about = "has a name that cannot be used: the name "
	for _, name := range v.names {
		e.chargeTo("propertyNames")
		e.charge(4 + len(name)/8)
		as := &value{kind: '"', text: name}
		if e.ids != nil {
			e.ids.put(as)
		}
		e.path = append(e.path, named(name))
		if !e.evaluate(r.node, as, false, false) {
			valid = false
		}
		e.path = e.path[:len(e.path)-1]
		if !valid && e.quiet {
			break
		}
	}
	e.about = about
	return valid
}

// dependentRule is dependentSchemas for one member.
type dependentRule struct {
	with string
	node *node
}

func (r *dependentRule) check(e *evaluation, v *value) bool {
	if v.kind != '{' {
		return true
	}
	e.chargeTo("dependentSchemas")
	if e.name(r.with, len(v.names)); v.index(r.with) < 0 {
		return true
	}
	return e.inPlace(r.node, v)
}

// itemsRule is prefixItems and items.
type itemsRule struct {
	prefix []*node
	rest   *node // nil for none
}

func (r *itemsRule) check(e *evaluation, v *value) bool {
	if v.kind != '[' {
		return true
	}
	valid := true
	for i := range v.elems {
		n := r.rest
		if i < len(r.prefix) {
			n = r.prefix[i]
		} else if n == nil {
			break
		}
		e.chargeTo("items")
		e.mark(i)
		if !e.inside(n, v, i) {
			if valid = false; e.quiet {
				return false
			}
		}
	}
	return valid
}

type uniqueRule struct{}

func (uniqueRule) check(e *evaluation, v *value) bool {
	if v.kind != '[' || len(v.elems) < 2 {
		return true
	}
	e.chargeTo("uniqueItems")
	e.charge(8 * len(v.elems))
	first := make(map[int32]int, len(v.elems))
	for i, item := range v.elems {
		if j, ok := first[item.id]; ok {
			return e.fail("must not have the same item twice; those at %d and %d are equal", j, i)
		}
		first[item.id] = i
	}
	return true
}

// containsRule is contains, minContains and maxContains.
type containsRule struct {
	node     *node
	min, max int // max is -1 for none
}

func (r *containsRule) check(e *evaluation, v *value) bool {
	if v.kind != '[' {
		return true
	}
	n := 0
	e.holds(func() bool {
		for i := range v.elems {
			e.chargeTo("contains")
			if e.inside(r.node, v, i) {
				e.mark(i)
				n++
			}
		}
		return true
	})
	switch {
	case n < r.min:
		return e.fail("must contain at least %d of the items that the schema in contains describes; it contains %d", r.min, n)
	case r.max >= 0 && n > r.max:
		return e.fail("must contain at most %d of the items that the schema in contains describes; it contains %d", r.max, n)
	}
	return true
}

// unevaluatedRule is unevaluatedProperties or unevaluatedItems.
type unevaluatedRule struct {
	kind jsontext.Kind
	node *node
}

func (r *unevaluatedRule) check(e *evaluation, v *value) bool {
	if v.kind != r.kind {
		return true
	}
	valid := true
	seen := e.tracked()
	for i := range v.elems {
		e.chargeTo("unevaluatedProperties")
		e.charge(1)
		if e.seen[seen+i/64]&(1<<(i%64)) != 0 {
			continue
		}
		if r.node.never {
			valid = e.failAt(tokenOf(v, i), "is not allowed: the schema does not know this setting")
		} else if !e.inside(r.node, v, i) {
			valid = false
		}
		if !valid && e.quiet {
			return false
		}
		e.mark(i)
	}
	return valid
}

// lengthRule is minLength and maxLength.
type lengthRule struct{ min, max int } // max is -1 for none

func (r *lengthRule) check(e *evaluation, v *value) bool {
	if v.kind != '"' {
		return true
	}
	e.charge(1 + len(v.text)/16)
	switch n := utf8.RuneCountInString(v.text); {
	case n < r.min:
		return e.fail("must have at least %d characters; it has %d", r.min, n)
	case r.max >= 0 && n > r.max:
		return e.fail("must have at most %d characters; it has %d", r.max, n)
	}
	return true
}

type patternRule struct{ pattern *pattern }

func (r *patternRule) check(e *evaluation, v *value) bool {
	if v.kind != '"' {
		return true
	}
	e.chargeTo("pattern")
	if e.machine.match(r.pattern, v.text, e.charger) {
		return true
	}
	return e.fail("must match the pattern %s", shorten(r.pattern.text, 200))
}

// boundRule is minimum, maximum, exclusiveMinimum and exclusiveMaximum.
type boundRule struct {
	bound decimal
	text  string
	words string
	// holds is about how the value compares with the bound.
	holds func(cmp int) bool
}

func (r *boundRule) check(e *evaluation, v *value) bool {
	if v.kind != '0' {
		return true
	}
	d := e.decimal(v)
	e.charge(1 + min(len(v.text), len(r.text))/16)
	if r.holds(d.cmp(r.bound)) {
		return true
	}
	return e.fail("must be %s %s", r.words, shorten(r.text, 60))
}

type multipleRule struct {
	of   *divisor
	text string
}

func (r *multipleRule) check(e *evaluation, v *value) bool {
	if v.kind != '0' {
		return true
	}
	e.chargeTo("multipleOf")
	if r.of.divides(e.decimal(v), e.charger) {
		return true
	}
	return e.fail("must be a multiple of %s", shorten(r.text, 60))
}

// quoted returns s in quotes, cut.
func quoted(s string) string {
	b, _ := jsontext.AppendQuote(nil, strings.ToValidUTF8(shorten(s, 100), ""))
	return string(b)
}
