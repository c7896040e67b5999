// Package schema compiles JSON Schemas (draft 2020-12) and checks values
// against them within bounds: of time, of memory, and of what is reported,
// whatever the schema and the value are. Schemas of strangers are checked on
// behalf of strangers, so nothing here may cost more than its text allows for.
//
// Compiling costs what the text of the schema is long, and the patterns in it
// are measured before they are built. Checking is charged for what each keyword
// looks at and stops where its budget ends.
//
// format is asserted. A schema stands alone: references to other documents and
// $dynamicRef are refused.
package schema

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/orgd/orgd/internal/problem"
)

// MaxPatterns bounds what the patterns of one schema are compiled to: in
// instructions, which take 40 bytes each.
const MaxPatterns = 20_000

// maxRanges bounds the ranges of characters in the patterns of one schema.
const maxRanges = 200_000

const draft2020 = "https://json-schema.org/draft/2020-12/schema"

// Schema is a compiled JSON Schema. It is safe for concurrent use.
type Schema struct {
	root     *node
	ids      *ids
	compares bool // some keyword compares values
	size     int
}

// Size returns about how many bytes the compiled schema takes.
func (s *Schema) Size() int { return s.size }

// node is one schema object or boolean.
type node struct {
	never bool
	// first are what is checked first; if one of them fails, the rest is left.
	first  []rule
	rules  []rule
	tracks bool // some of the rules are about what others have not evaluated
}

// What parts of a compiled schema take in memory, about, in bytes.
const (
	pointerSize = 8
	nodeSize    = 80
	ruleSize    = 100
)

// Compile compiles a JSON Schema. The error is InvalidBody and names what is
// wrong and where, at most MaxFields of it.
func Compile(text jsontext.Value) (*Schema, *problem.Error) {
	root, err := read(text)
	if err != nil {
		return nil, problem.Body("", "is not valid JSON: %v", err)
	}
	switch root.kind {
	case '{', 't', 'f':
	default:
		return nil, problem.Body("", "must be a JSON Schema: an object, true or false")
	}
	c := &compiler{root: root, ids: newIDs(nil), nodes: map[*value]*node{}, anchors: map[string]*node{},
		left: patternSize{instructions: MaxPatterns, ranges: maxRanges}, size: 1000}
	s := &Schema{root: c.schema(root, nil), ids: c.ids}
	for len(c.refs) > 0 && !c.full {
		r := c.refs[len(c.refs)-1]
		c.refs = c.refs[:len(c.refs)-1]
		c.resolve(r)
	}
	if fields := c.report.sorted(); len(fields) > 0 {
		p := problem.New(problem.InvalidBody, "This is not a JSON Schema of draft 2020-12 that this server can use.")
		if len(fields) == 1 {
			p = problem.Body(fields[0].Pointer, "%s", fields[0].Detail)
		}
		p.Fields, p.Fix = fields, c.fix
		return nil, p
	}
	s.compares = c.compares
	s.size = c.size + c.ids.size + 64*len(c.ids.of)
	return s, nil
}

// compiler is one schema being compiled.
type compiler struct {
	root     *value
	ids      *ids
	compares bool
	nodes    map[*value]*node
	anchors  map[string]*node // by name
	refs     []reference
	left     patternSize // that patterns may still have
	size     int
	report   report
	full     bool
	fix      string
	formats  map[string]func(any) error
}

// place is where in the schema a value is.
type place struct {
	up *place
	token
}

func (p *place) path() []token {
	var tokens []token
	for ; p != nil; p = p.up {
		tokens = append(tokens, p.token)
	}
	slices.Reverse(tokens)
	return tokens
}

// reference is a $ref that is still to be resolved.
type reference struct {
	to string
	at *place
	by *refRule
}

func (c *compiler) fail(at *place, format string, args ...any) {
	if !c.full {
		c.full = c.report.add(at.path(), fmt.Sprintf(format, args...))
	}
}

// anything and nothing are the schemas true and false.
var anything, nothing = &node{}, &node{never: true}

// schema compiles a schema; where v is none, it says so.
func (c *compiler) schema(v *value, at *place) *node {
	c.size += pointerSize
	switch {
	case v.kind == 't' || v.kind == '{' && len(v.names) == 0:
		return anything
	case v.kind == 'f':
		return nothing
	case v.kind != '{':
		c.fail(at, "must be a schema: an object, true or false")
		return nothing
	}
	n := c.nodes[v]
	if n == nil {
		n = &node{}
		c.nodes[v] = n
		c.size += nodeSize
		c.keywords(n, v, at)
	}
	return n
}

// schemaObject is a schema object being compiled.
type schemaObject struct {
	*compiler
	node *node
	v    *value
	at   *place // of v

	members                              membersRule
	items                                itemsRule
	contains                             *node
	minContains, maxContains             int
	when, then, other                    *node
	minLength, maxLength                 int
	minItems, maxItems                   int
	minProperties, maxProperties         int
	unevaluatedProperties, unevaluatedAt *node
	kinds, enum, constant, format        rule
}

func (c *compiler) keywords(n *node, v *value, at *place) {
	o := &schemaObject{compiler: c, node: n, v: v, at: at, minContains: 1, maxContains: -1, maxLength: -1, maxItems: -1, maxProperties: -1}
	for i, name := range v.names {
		if c.full {
			return
		}
		o.keyword(name, v.elems[i], &place{at, named(name)})
	}
	o.finish()
}

// finish puts the rules of the schema in the order in which they are checked.
func (o *schemaObject) finish() {
	for _, r := range []rule{o.kinds, o.constant, o.enum, o.format} {
		if r != nil {
			o.node.first = append(o.node.first, r)
		}
	}
	add := func(r rule, given bool) {
		if given {
			o.node.rules = append(o.node.rules, r)
			o.size += ruleSize
		}
	}
	members, items := o.members, o.items
	add(&countRule{'{', o.minProperties, o.maxProperties}, o.minProperties > 0 || o.maxProperties >= 0)
	add(&countRule{'[', o.minItems, o.maxItems}, o.minItems > 0 || o.maxItems >= 0)
	add(&lengthRule{o.minLength, o.maxLength}, o.minLength > 0 || o.maxLength >= 0)
	add(&members, members.names != nil || members.patterns != nil || members.others != nil)
	add(&items, items.prefix != nil || items.rest != nil)
	add(&containsRule{o.contains, o.minContains, o.maxContains}, o.contains != nil)
	add(&ifRule{o.when, o.then, o.other}, o.when != nil)
	// These ask what all others have evaluated.
	add(&unevaluatedRule{'{', o.unevaluatedProperties}, o.unevaluatedProperties != nil)
	add(&unevaluatedRule{'[', o.unevaluatedAt}, o.unevaluatedAt != nil)
	o.node.tracks = o.unevaluatedProperties != nil || o.unevaluatedAt != nil
}

func (o *schemaObject) rule(r rule, size int) {
	o.node.rules = append(o.node.rules, r)
	o.size += ruleSize + size
}

// keyword compiles one keyword. What the draft does not know is no error: it
// may be somebody's note.
func (o *schemaObject) keyword(name string, v *value, at *place) {
	switch name {
	case "$schema":
		if v.kind != '"' || strings.TrimSuffix(v.text, "#") != draft2020 {
			o.fail(at, "must be %s", draft2020)
		}
	case "$id":
		switch {
		case o.at != nil:
			o.fail(at, "is allowed at the top level only")
		case v.kind != '"' || strings.Contains(strings.TrimSuffix(v.text, "#"), "#") || !isURL(v.text):
			o.fail(at, "must be a URI reference without a fragment")
		}
	case "$ref":
		o.reference(v, at)
	case "$dynamicRef", "$recursiveRef":
		o.fail(at, "is not supported; use $ref")
	case "$anchor", "$dynamicAnchor":
		o.anchor(v, at)
	case "$recursiveAnchor":
		if v.kind != '"' || !isAnchor(v.text) {
			o.fail(at, "must be a name")
		}
	case "$vocabulary":
		for i := range o.object(v, at) {
			if k := v.elems[i].kind; k != 't' && k != 'f' || !isAbsolute(v.names[i]) {
				o.fail(&place{at, named(v.names[i])}, "must be true or false, with a URI as its name")
			}
		}
	case "$comment", "title", "description", "contentEncoding", "contentMediaType":
		if v.kind != '"' {
			o.fail(at, "must be a string")
		}
	case "default":
	case "examples":
		if v.kind != '[' {
			o.fail(at, "must be an array")
		}
	case "deprecated", "readOnly", "writeOnly":
		o.boolean(v, at)
	case "$defs", "definitions":
		o.schemas(v, at)
	case "contentSchema":
		o.schema(v, at)

	case "type":
		o.types(v, at)
	case "enum":
		if v.kind != '[' {
			o.fail(at, "must be an array")
			return
		}
		o.enum = o.oneOf(v.elems)
	case "const":
		o.constant = o.oneOf([]*value{v})
	case "format":
		o.formatName(v, at)

	case "allOf":
		o.rule(&allRule{o.list(v, at)}, 0)
	case "anyOf":
		o.rule(&anyRule{o.list(v, at)}, 0)
	case "oneOf":
		o.rule(&oneRule{o.list(v, at)}, 0)
	case "not":
		o.rule(&notRule{o.schema(v, at)}, 0)
	case "if":
		o.when = o.schema(v, at)
	case "then":
		o.then = o.schema(v, at)
	case "else":
		o.other = o.schema(v, at)

	case "properties":
		o.members.names, o.members.nodes = v.names, o.schemas(v, at)
		for _, name := range v.names {
			o.size += 24 + len(name)
		}
	case "patternProperties":
		for i, n := range o.schemas(v, at) {
			if p := o.pattern(v.names[i], &place{at, named(v.names[i])}); p != nil {
				o.members.patterns = append(o.members.patterns, memberPattern{p, n})
			}
		}
	case "additionalProperties":
		o.members.others = o.schema(v, at)
	case "unevaluatedProperties":
		o.unevaluatedProperties = o.schema(v, at)
	case "propertyNames":
		o.rule(&namesRule{o.schema(v, at)}, 0)
	case "minProperties":
		o.minProperties = o.count(v, at)
	case "maxProperties":
		o.maxProperties = o.count(v, at)
	case "required":
		names := o.names(v, at)
		o.rule(&requiredRule{names: names}, namesSize(names))
	case "dependentRequired":
		for i := range o.object(v, at) {
			o.dependent(v, i, at)
		}
	case "dependentSchemas":
		for i, n := range o.schemas(v, at) {
			o.rule(&dependentRule{v.names[i], n}, len(v.names[i]))
		}
	case "dependencies": // of earlier drafts, which this one describes too
		for i := range o.object(v, at) {
			if v.elems[i].kind == '[' {
				o.dependent(v, i, at)
			} else {
				n := o.schema(v.elems[i], &place{at, named(v.names[i])})
				o.rule(&dependentRule{v.names[i], n}, len(v.names[i]))
			}
		}

	case "prefixItems":
		o.items.prefix = o.list(v, at)
	case "items":
		o.items.rest = o.schema(v, at)
	case "unevaluatedItems":
		o.unevaluatedAt = o.schema(v, at)
	case "contains":
		o.contains = o.schema(v, at)
	case "minContains":
		o.minContains = o.count(v, at)
	case "maxContains":
		o.maxContains = o.count(v, at)
	case "minItems":
		o.minItems = o.count(v, at)
	case "maxItems":
		o.maxItems = o.count(v, at)
	case "uniqueItems":
		if o.boolean(v, at) {
			o.compares = true
			o.rule(uniqueRule{}, 0)
		}

	case "minLength":
		o.minLength = o.count(v, at)
	case "maxLength":
		o.maxLength = o.count(v, at)
	case "pattern":
		if v.kind != '"' {
			o.fail(at, "must be a string with a regular expression")
		} else if p := o.pattern(v.text, at); p != nil {
			o.rule(&patternRule{p}, 0)
		}

	case "minimum":
		o.bound(v, at, "at least", func(cmp int) bool { return cmp >= 0 })
	case "maximum":
		o.bound(v, at, "at most", func(cmp int) bool { return cmp <= 0 })
	case "exclusiveMinimum":
		o.bound(v, at, "more than", func(cmp int) bool { return cmp > 0 })
	case "exclusiveMaximum":
		o.bound(v, at, "less than", func(cmp int) bool { return cmp < 0 })
	case "multipleOf":
		if d := parseDecimal(v.text); v.kind != '0' || d.sign() <= 0 {
			o.fail(at, "must be a number greater than 0")
		} else {
			o.rule(&multipleRule{newDivisor(d), v.text}, 2*len(v.text))
		}
	}
}

// object returns the members of an object that a keyword takes.
func (o *schemaObject) object(v *value, at *place) []*value {
	if v.kind != '{' {
		o.fail(at, "must be an object")
		return nil
	}
	return v.elems
}

// schemas compiles an object whose members are schemas.
func (o *schemaObject) schemas(v *value, at *place) []*node {
	members := o.object(v, at)
	nodes := make([]*node, len(members))
	for i, m := range members {
		nodes[i] = o.schema(m, &place{at, named(v.names[i])})
	}
	return nodes
}

// list compiles an array of schemas.
func (o *schemaObject) list(v *value, at *place) []*node {
	if v.kind != '[' || len(v.elems) == 0 {
		o.fail(at, "must be an array of at least one schema")
		return nil
	}
	nodes := make([]*node, len(v.elems))
	for i, e := range v.elems {
		nodes[i] = o.schema(e, &place{at, token{index: i}})
	}
	return nodes
}

// names returns the strings of an array that has none twice.
func (o *schemaObject) names(v *value, at *place) []string {
	if v.kind != '[' {
		o.fail(at, "must be an array of strings")
		return nil
	}
	names := make([]string, len(v.elems))
	seen := make(map[string]bool, len(names))
	for i, e := range v.elems {
		switch {
		case e.kind != '"':
			o.fail(&place{at, token{index: i}}, "must be a string")
		case seen[e.text]:
			o.fail(&place{at, token{index: i}}, "is there twice")
		}
		names[i], seen[e.text] = e.text, true
	}
	return names
}

func namesSize(names []string) int {
	n := 0
	for _, name := range names {
		n += 16 + len(name)
	}
	return n
}

// dependent compiles member i of v: the names that a member needs.
func (o *schemaObject) dependent(v *value, i int, at *place) {
	names := o.names(v.elems[i], &place{at, named(v.names[i])})
	o.rule(&requiredRule{with: v.names[i], given: true, names: names}, len(v.names[i])+namesSize(names))
}

func (o *schemaObject) boolean(v *value, at *place) bool {
	if v.kind != 't' && v.kind != 'f' {
		o.fail(at, "must be true or false")
	}
	return v.kind == 't'
}

// count returns the number that a keyword takes.
func (o *schemaObject) count(v *value, at *place) int {
	d := parseDecimal(v.text)
	if v.kind != '0' || d.sign() < 0 || !d.isInteger() {
		o.fail(at, "must be an integer of at least 0")
		return 0
	}
	return d.clamped()
}

func (o *schemaObject) bound(v *value, at *place, words string, holds func(int) bool) {
	if v.kind != '0' {
		o.fail(at, "must be a number")
		return
	}
	o.rule(&boundRule{parseDecimal(v.text), v.text, words, holds}, 2*len(v.text))
}

var typeKinds = map[string]jsontext.Kind{"array": '[', "boolean": 't', "null": 'n', "number": '0', "object": '{', "string": '"'}

func (o *schemaObject) types(v *value, at *place) {
	list := []*value{v}
	if v.kind == '[' {
		list = v.elems
	}
	r := &typeRule{}
	var names []string
	for _, t := range list {
		kind, ok := typeKinds[t.text]
		switch {
		case t.kind != '"' || !ok && t.text != "integer" || slices.Contains(names, t.text):
			names = nil
		case ok:
			names, r.kinds = append(names, t.text), append(r.kinds, kind)
		default:
			names, r.integer = append(names, t.text), true
		}
		if names == nil {
			break
		}
	}
	if names == nil {
		o.fail(at, "must be one of array, boolean, integer, null, number, object and string, or an array of some of them")
		return
	}
	r.text = strings.Join(names, " or ")
	o.kinds = r
	o.size += ruleSize
}

// maxShown is how much of the values of an enum an error shows, in bytes.
const maxShown = 200

// oneOf compiles what a value is to be equal to.
func (o *schemaObject) oneOf(values []*value) rule {
	o.compares = true
	r := &enumRule{}
	var shown []string
	size := 0
	for _, v := range values {
		o.ids.put(v)
		r.ids = append(r.ids, v.id)
		if size < maxShown {
			s := v.show()
			shown, size = append(shown, s), size+len(s)
		}
	}
	slices.Sort(r.ids)
	if r.text = shorten(strings.Join(shown, ", "), maxShown); len(values) > 1 {
		r.text = "one of " + r.text
	}
	if len(shown) < len(values) && !strings.HasSuffix(r.text, "…") {
		r.text += ", …"
	}
	if len(values) == 0 {
		r.text = "one of none"
	}
	o.size += ruleSize + 4*cap(r.ids) + len(r.text)
	return r
}

// show returns a value as an error shows it.
func (v *value) show() string {
	switch v.kind {
	case '"':
		return quoted(v.text)
	case '0':
		return shorten(v.text, 60)
	case 'n':
		return "null"
	case 't':
		return "true"
	case 'f':
		return "false"
	}
	return "the " + typeName(v.kind) + " in the schema"
}

// formatNames are the formats that are asserted, regex apart. Others are notes.
var formatNames = []string{"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "iri", "iri-reference",
	"json-pointer", "period", "relative-json-pointer", "semver", "time", "uri", "uri-reference", "uri-template", "uuid"}

func (o *schemaObject) formatName(v *value, at *place) {
	switch {
	case v.kind != '"':
		o.fail(at, "must be a string")
	case v.text == "regex":
		o.format = regexRule{}
	case slices.Contains(formatNames, v.text):
		valid := o.formats[v.text]
		if valid == nil {
			valid = formatOf(v.text)
			if o.formats == nil {
				o.formats = map[string]func(any) error{}
			}
			o.formats[v.text] = valid
		}
		o.format = &formatRule{v.text, valid}
		o.size += ruleSize
	}
}

// formatOf returns the check of a format in formatNames. It takes a string and
// costs what the string is long.
func formatOf(name string) func(any) error {
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	const at = "urn:format"
	if err := c.AddResource(at, map[string]any{"format": name}); err != nil {
		panic("schema: " + err.Error())
	}
	return c.MustCompile(at).Format.Validate
}

// pattern compiles a regular expression; nil if it is none that can be used.
func (o *schemaObject) pattern(text string, at *place) *pattern {
	p, size, err := compilePattern(text, o.left)
	switch {
	case err == errPatternTooLarge:
		o.fail(at, "is too large a pattern: with its repetitions written out, the patterns of a schema are compiled to at most %d instructions in all, and name at most %d characters and ranges of them", MaxPatterns, maxRanges)
		o.fix = "Repeat less: {1,1000} writes its operand out 1000 times. maxLength bounds a length for nothing."
		return nil
	case err != nil:
		o.fail(at, "%v", err)
		return nil
	}
	o.left.instructions -= size.instructions
	o.left.ranges -= size.ranges
	o.size += p.size
	return p
}

func isAnchor(s string) bool {
	for i, c := range []byte(s) {
		letter := c == '_' || c|0x20 >= 'a' && c|0x20 <= 'z'
		if !letter && (i == 0 || c != '-' && c != '.' && (c < '0' || c > '9')) {
			return false
		}
	}
	return s != ""
}

func isURL(s string) bool {
	_, err := url.Parse(s)
	return err == nil && !strings.Contains(s, `\`)
}

func isAbsolute(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.IsAbs()
}

func (o *schemaObject) anchor(v *value, at *place) {
	switch {
	case v.kind != '"' || !isAnchor(v.text):
		o.fail(at, "must be a name: a letter or _, then letters, digits and - . _")
	case o.anchors[v.text] != nil && o.anchors[v.text] != o.node:
		o.fail(at, "is the anchor of another schema too")
	default:
		o.anchors[v.text] = o.node
	}
}

func (o *schemaObject) reference(v *value, at *place) {
	if v.kind != '"' {
		o.fail(at, "must be a string")
		return
	}
	if !strings.HasPrefix(v.text, "#") {
		o.fail(at, "refers to another document; only references inside the schema (#…) are allowed")
		o.fix = "Copy the referenced schema into $defs and refer to it as #/$defs/…."
		return
	}
	r := &refRule{}
	o.rule(r, 0)
	o.refs = append(o.refs, reference{v.text[1:], at, r})
}

// resolve finds what a $ref refers to. That may be a place that no keyword
// takes for a schema: then it is compiled now.
func (c *compiler) resolve(r reference) {
	to, err := url.PathUnescape(r.to)
	if err != nil {
		c.fail(r.at, "is not a valid reference: %v", err)
		return
	}
	if to != "" && to[0] != '/' {
		if r.by.to = c.anchors[to]; r.by.to == nil {
			c.fail(r.at, "refers to the anchor %s, which no schema here has", quoted(to))
		}
		return
	}
	v := c.root
	var at *place
	for name := range strings.SplitSeq(strings.TrimPrefix(to, "/"), "/") {
		if to == "" {
			break
		}
		name = strings.ReplaceAll(strings.ReplaceAll(name, "~1", "/"), "~0", "~")
		next := (*value)(nil)
		switch v.kind {
		case '{':
			next, at = v.get(name), &place{at, named(name)}
		case '[':
			if i, err := strconv.Atoi(name); err == nil && i >= 0 && i < len(v.elems) {
				next, at = v.elems[i], &place{at, token{index: i}}
			}
		}
		if next == nil {
			c.fail(r.at, "refers to nothing: there is no %s in this schema", quoted("#"+r.to))
			return
		}
		v = next
	}
	r.by.to = c.schema(v, at)
}
