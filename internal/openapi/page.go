package openapi

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"go.yaml.in/yaml/v3"

	"github.com/orgd/orgd/internal/problem"
)

// The reference page is one document: its style and its script stand in it,
// and it loads nothing.
var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string

	pageTemplate = template.Must(template.New("page").Parse(pageHTML))
)

// page is what the reference page shows.
type page struct {
	Title, Version string
	Intro          template.HTML
	CSS            template.CSS
	JS             template.JS
	Groups         []group
	Schemas        []schema
	Headers        []field
	Codes          []code
}

// group is the calls of one tag.
type group struct {
	Name, Anchor string
	Description  template.HTML
	Operations   []operation
}

// operation is one call.
type operation struct {
	ID, Method, Path, Summary string
	Words                     string // what the search looks at besides the name
	Same                      []same
	Description               template.HTML
	Open                      bool // takes no key
	Operator                  bool // takes the operator key
	Permissions               []string
	Parameters                []parameters
	BodyRequired              bool
	Body                      []content
	Answers                   []answer
	Errors                    []answer
	Curl                      string
	Examples                  []example // of the first answer
}

// same is an operation that does the same with another method.
type same struct{ ID, Method string }

// parameters is the parameters of a call in one place: path, query or
// header.
type parameters struct {
	In     string
	Fields []field
}

// field is a parameter, a header or a member of an object.
type field struct {
	Name        string
	Note        string // "required" in a request, "may be absent" in an answer
	Type        template.HTML
	Description template.HTML
	Below       []field // the members of an object that has no name of its own
}

// content is a body in one or several media types.
type content struct {
	Types    []string
	Type     template.HTML
	Fields   []field
	Examples []example
}

type answer struct {
	Status      string
	Description template.HTML
	Headers     []field
	Content     []content
}

type example struct {
	Title string
	Text  template.HTML
}

type schema struct {
	Name        string
	Description template.HTML
	Type        template.HTML
	Fields      []field
}

type code struct {
	Status int
	Code   string
	Title  string
}

// Page returns the reference page of an API description, and the content
// security policy under which it works: nothing but its own style and script.
func Page(doc []byte) (body []byte, csp string, err error) {
	root, err := parseYAML(doc)
	if err != nil {
		return nil, "", err
	}
	d := document{root}
	info := d.get(root, "info")
	p := page{Title: text(d.get(info, "title")), Version: text(d.get(info, "version")), Intro: prose(text(d.get(info, "description"))),
		CSS: template.CSS(pageCSS), JS: template.JS(pageJS)}
	groups := map[string]int{}
	for _, tag := range items(d.get(root, "tags")) {
		name := text(d.get(tag, "name"))
		groups[name] = len(p.Groups)
		p.Groups = append(p.Groups, group{Name: name, Anchor: anchor("tag", name), Description: prose(text(d.get(tag, "description")))})
	}
	for path, item := range members(d.get(root, "paths")) {
		for method, op := range members(item) {
			if !slices.Contains(methods, method) {
				continue
			}
			o := d.operation(strings.ToUpper(method), path, item, op)
			if other := text(d.get(op, "x-same-as")); other != "" {
				first := p.find(other)
				if first == nil {
					return nil, "", fmt.Errorf("the operation %s is the same as %s, which does not come before it", o.ID, other)
				}
				first.Same = append(first.Same, same{o.ID, o.Method})
				continue
			}
			tags := items(d.get(op, "tags"))
			if len(tags) == 0 {
				return nil, "", fmt.Errorf("the operation %s has no tag", o.ID)
			}
			i, ok := groups[text(tags[0])]
			if !ok {
				return nil, "", fmt.Errorf("the operation %s has the tag %q, which is not described", o.ID, text(tags[0]))
			}
			p.Groups[i].Operations = append(p.Groups[i].Operations, o)
			d.collectHeaders(op, &p.Headers)
		}
	}
	requests := map[string]bool{}
	for _, item := range members(d.get(root, "paths")) {
		for _, op := range members(item) {
			d.collectSchemas(d.get(op, "requestBody"), requests)
		}
	}
	for name, n := range members(d.get(d.get(root, "components"), "schemas")) {
		p.Schemas = append(p.Schemas, schema{Name: name, Description: prose(text(d.get(n, "description"))), Type: d.typeOf(n), Fields: d.fields(n, requests[name], 0)})
	}
	for _, c := range problem.Codes() {
		p.Codes = append(p.Codes, code{c.Status(), string(c), c.Title()})
	}
	slices.SortFunc(p.Codes, func(a, b code) int {
		if a.Status != b.Status {
			return a.Status - b.Status
		}
		return strings.Compare(a.Code, b.Code)
	})
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, p); err != nil {
		return nil, "", err
	}
	csp = "default-src 'none'; img-src data:; style-src " + cspHash(pageCSS) + "; script-src " + cspHash(pageJS) +
		"; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	return b.Bytes(), csp, nil
}

// find returns an operation of the page, nil if it is not there.
func (p *page) find(id string) *operation {
	for _, g := range p.Groups {
		for i := range g.Operations {
			if g.Operations[i].ID == id {
				return &g.Operations[i]
			}
		}
	}
	return nil
}

var methods = []string{"get", "post", "put", "patch", "delete", "head", "options"}

func cspHash(s string) string {
	h := sha256.Sum256([]byte(s))
	return "'sha256-" + base64.StdEncoding.EncodeToString(h[:]) + "'"
}

func anchor(kind, name string) string {
	return kind + "-" + strings.ReplaceAll(strings.ToLower(name), " ", "-")
}

// document reads an OpenAPI document.
type document struct{ root *yaml.Node }

// resolve follows aliases and references within the document.
func (d document) resolve(n *yaml.Node) *yaml.Node {
	for n != nil {
		if n.Kind == yaml.AliasNode {
			n = n.Alias
			continue
		}
		ref, ok := strings.CutPrefix(text(member(n, "$ref")), "#/")
		if !ok {
			return n
		}
		n = d.root
		for part := range strings.SplitSeq(ref, "/") {
			n = member(n, part)
		}
	}
	return nil
}

// get returns a member of an object, nil if there is none; both are resolved.
func (d document) get(n *yaml.Node, name string) *yaml.Node {
	return d.resolve(member(d.resolve(n), name))
}

// member returns a member of n as it stands there.
func member(n *yaml.Node, name string) *yaml.Node {
	for k, v := range members(n) {
		if k == name {
			return v
		}
	}
	return nil
}

func members(n *yaml.Node) func(yield func(string, *yaml.Node) bool) {
	return func(yield func(string, *yaml.Node) bool) {
		if n == nil || n.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if !yield(n.Content[i].Value, n.Content[i+1]) {
				return
			}
		}
	}
}

func items(n *yaml.Node) []*yaml.Node {
	if n == nil || n.Kind != yaml.SequenceNode {
		return nil
	}
	return n.Content
}

func text(n *yaml.Node) string {
	if n == nil || n.Kind != yaml.ScalarNode {
		return ""
	}
	return n.Value
}

func (d document) operation(method, path string, item, op *yaml.Node) operation {
	o := operation{ID: text(d.get(op, "operationId")), Method: method, Path: path, Summary: text(d.get(op, "summary")),
		Description: prose(text(d.get(op, "description")))}
	if security := d.get(op, "security"); security != nil && len(security.Content) == 0 {
		o.Open = true
	}
	o.Operator = text(d.get(op, "x-operator")) == "true"
	for _, p := range items(d.get(op, "x-permissions")) {
		o.Permissions = append(o.Permissions, text(p))
	}
	given := append(slices.Clone(items(d.get(item, "parameters"))), items(d.get(op, "parameters"))...)
	for _, where := range []string{"path", "query", "header"} {
		in := parameters{In: where}
		for _, p := range given {
			if name := text(d.get(p, "name")); text(d.get(p, "in")) == where && !everywhere(name) {
				in.Fields = append(in.Fields, d.field(name, p))
			}
		}
		if len(in.Fields) > 0 {
			o.Parameters = append(o.Parameters, in)
		}
	}
	body := d.get(op, "requestBody")
	o.BodyRequired = text(d.get(body, "required")) == "true"
	o.Body = d.content(body, true)
	for status, n := range members(d.get(op, "responses")) {
		n = d.resolve(n)
		a := answer{Status: status, Description: inline(text(d.get(n, "description")))}
		if status >= "400" {
			o.Errors = append(o.Errors, a)
			continue
		}
		a.Content = d.content(n, false)
		for name, h := range members(d.get(n, "headers")) {
			if !everywhere(name) {
				a.Headers = append(a.Headers, d.field(name, h))
			}
		}
		o.Answers = append(o.Answers, a)
	}
	if len(o.Answers) > 0 {
		for _, c := range o.Answers[0].Content {
			for _, e := range c.Examples {
				e.Title = "Answer " + o.Answers[0].Status + ": " + e.Title
				o.Examples = append(o.Examples, e)
			}
		}
	}
	o.Curl = d.curl(method, path, given, body, o.Open)
	o.Words = strings.ToLower(strings.Join([]string{method, path, o.ID, o.Summary, strings.Join(o.Permissions, " ")}, " "))
	return o
}

// everywhere reports whether nearly every request or answer has the header:
// the page describes it once.
func everywhere(name string) bool {
	return name == "X-Request-Id" || strings.HasPrefix(name, "RateLimit")
}

// collectHeaders adds the headers of the operation's answers that are not in
// fields yet.
func (d document) collectHeaders(op *yaml.Node, fields *[]field) {
	for _, n := range members(d.get(op, "responses")) {
		for name, h := range members(d.get(n, "headers")) {
			if !slices.ContainsFunc(*fields, func(f field) bool { return f.Name == name }) {
				*fields = append(*fields, d.field(name, h))
			}
		}
	}
}

// collectSchemas adds the names of the schemas that n refers to, directly or
// through others.
func (d document) collectSchemas(n *yaml.Node, names map[string]bool) {
	if n == nil {
		return
	}
	if name, ok := strings.CutPrefix(text(member(n, "$ref")), "#/components/schemas/"); ok && !names[name] {
		names[name] = true
		d.collectSchemas(d.resolve(n), names)
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	for _, below := range n.Content {
		d.collectSchemas(below, names)
	}
}

// field returns a parameter or a header.
func (d document) field(name string, n *yaml.Node) field {
	n = d.resolve(n)
	f := field{Name: name, Type: d.typeOf(member(n, "schema"))}
	if text(d.get(n, "required")) == "true" {
		f.Note = noteRequired
	}
	f.Description = inline(text(d.get(n, "description")))
	if e := d.get(n, "example"); e != nil {
		f.Description += " " + template.HTML("Example: <code>"+template.HTMLEscapeString(plain(e))+"</code>")
	}
	return f
}

// content returns the bodies of a request or an answer. Media types with the
// same body share one.
func (d document) content(n *yaml.Node, request bool) []content {
	var all []content
	var seen []*yaml.Node
	for mediaType, c := range members(d.get(n, "content")) {
		c = d.resolve(c)
		if i := slices.Index(seen, c); i >= 0 {
			all[i].Types = append(all[i].Types, mediaType)
			continue
		}
		schema := member(c, "schema")
		dc := content{Types: []string{mediaType}, Type: d.typeOf(schema)}
		// The members of a request are shown where it is, those of an answer
		// where its schema is.
		if schema != nil && member(schema, "$ref") == nil || request {
			dc.Fields = d.fields(d.resolve(schema), request, 0)
		}
		if e := d.get(c, "example"); e != nil {
			dc.Examples = append(dc.Examples, example{Title: mediaType, Text: show(e)})
		}
		for _, e := range members(d.get(c, "examples")) {
			if v := d.get(e, "value"); v != nil {
				dc.Examples = append(dc.Examples, example{Title: text(d.get(e, "summary")), Text: show(v)})
			}
		}
		all, seen = append(all, dc), append(seen, c)
	}
	return all
}

// What a field says of itself.
const (
	noteRequired = "required"
	noteAbsent   = "may be absent"
)

// maxFieldDepth bounds how deep members are shown within members.
const maxFieldDepth = 4

// fields returns the members of an object, or of the objects in an array.
func (d document) fields(schema *yaml.Node, request bool, depth int) []field {
	schema = d.resolve(schema)
	if depth > maxFieldDepth {
		return nil
	}
	var fields []field
	for _, part := range items(d.get(schema, "allOf")) {
		fields = append(fields, d.fields(part, request, depth)...)
	}
	var required []string
	for _, r := range items(d.get(schema, "required")) {
		required = append(required, text(r))
	}
	for name, p := range members(d.get(schema, "properties")) {
		f := field{Name: name, Type: d.typeOf(p)}
		if is := slices.Contains(required, name); is && request {
			f.Note = noteRequired
		} else if !is && !request {
			f.Note = noteAbsent
		}
		description := text(member(p, "description"))
		if description == "" {
			description = text(d.get(p, "description"))
		}
		f.Description = inline(description)
		if member(p, "$ref") == nil {
			f.Below = d.fields(p, request, depth+1)
		}
		fields = append(fields, f)
	}
	for _, nested := range []string{"items", "additionalProperties"} {
		if in := member(schema, nested); in != nil && member(in, "$ref") == nil {
			fields = append(fields, d.fields(in, request, depth)...)
		}
	}
	for _, alternative := range []string{"oneOf", "anyOf"} {
		for _, a := range items(d.get(schema, alternative)) {
			if member(a, "$ref") == nil {
				fields = append(fields, d.fields(a, request, depth)...)
			}
		}
	}
	return fields
}

// typeOf describes a schema in a few words, with links to those that have a
// name.
func (d document) typeOf(schema *yaml.Node) template.HTML {
	if schema == nil {
		return "any"
	}
	if name, ok := strings.CutPrefix(text(member(schema, "$ref")), "#/components/schemas/"); ok {
		name = template.HTMLEscapeString(name)
		return template.HTML(`<a href="#schema-` + name + `">` + name + `</a>`)
	}
	schema = d.resolve(schema)
	for _, alternative := range []string{"oneOf", "anyOf"} {
		if of := items(d.get(schema, alternative)); len(of) > 0 {
			var parts []string
			for _, a := range of {
				parts = append(parts, string(d.typeOf(a)))
			}
			return template.HTML(strings.Join(slices.Compact(parts), " or "))
		}
	}
	if of := items(d.get(schema, "allOf")); len(of) > 0 {
		var parts []string
		for _, a := range of {
			if member(a, "$ref") != nil {
				parts = append(parts, string(d.typeOf(a)))
			}
		}
		return template.HTML(strings.Join(append(parts, "more"), " and "))
	}
	if v := d.get(schema, "const"); v != nil {
		return "<code>" + template.HTML(template.HTMLEscapeString(plain(v))) + "</code>"
	}
	var types []string
	t := d.get(schema, "type")
	for _, one := range items(t) {
		types = append(types, text(one))
	}
	if len(types) == 0 && text(t) != "" {
		types = []string{text(t)}
	}
	if len(types) == 0 {
		types = []string{"any"}
	}
	if format := text(d.get(schema, "format")); format != "" {
		types[0] = format
		if format == "date-time" {
			types[0] = "time"
		}
	}
	result := template.HTMLEscapeString(strings.Join(types, " or "))
	if in := member(schema, "items"); in != nil {
		result = strings.Replace(result, "array", "array of "+string(d.typeOf(in)), 1)
	}
	if in := member(schema, "additionalProperties"); in != nil && in.Kind == yaml.MappingNode {
		result = strings.Replace(result, "object", "object of "+string(d.typeOf(in)), 1)
	}
	if enum := items(d.get(schema, "enum")); len(enum) > 0 && len(enum) <= 12 {
		var values []string
		for _, v := range enum {
			values = append(values, "<code>"+template.HTMLEscapeString(plain(v))+"</code>")
		}
		result = strings.Join(values, " or ")
	}
	for _, bound := range [...][2]string{{"minimum", "at least "}, {"maximum", "at most "}, {"default", "default "}} {
		if v := d.get(schema, bound[0]); v != nil {
			result += ", " + bound[1] + template.HTMLEscapeString(plain(v))
		}
	}
	if v := d.get(schema, "maxLength"); v != nil {
		result += ", at most " + template.HTMLEscapeString(text(v)) + " characters"
	}
	if v := d.get(schema, "maxItems"); v != nil {
		result += ", at most " + template.HTMLEscapeString(text(v))
	}
	return template.HTML(result)
}

// curl returns a command that makes the call, with the parameters of the query
// that it needs and those that the document marks.
func (d document) curl(method, path string, given []*yaml.Node, body *yaml.Node, open bool) string {
	var query []string
	for _, p := range given {
		name, example := text(d.get(p, "name")), text(d.get(p, "example"))
		if list := items(d.get(p, "example")); len(list) > 0 {
			example = text(list[0])
		} else if example == "" {
			example = text(d.get(d.get(p, "schema"), "example"))
		}
		switch text(d.get(p, "in")) {
		case "path":
			if example != "" {
				path = strings.NewReplacer("{"+name+"}", example, "{"+name+"...}", example).Replace(path)
			}
		case "query":
			if text(d.get(p, "required")) == "true" || text(d.get(p, "x-in-sample")) == "true" {
				query = append(query, name+"="+strings.ReplaceAll(url.QueryEscape(example), "%3A", ":"))
			}
		}
	}
	address := "$ORGD_URL" + path
	if len(query) > 0 {
		address = `"` + address + "?" + strings.Join(query, "&") + `"`
	}
	var b strings.Builder
	b.WriteString("curl ")
	var data string
	for mediaType, c := range members(d.get(body, "content")) {
		e := d.get(c, "example")
		if e == nil {
			for _, one := range members(d.get(c, "examples")) {
				e = d.get(one, "value")
				break
			}
		}
		if e == nil {
			continue
		}
		flag := "-d"
		if strings.Contains(plain(e), "\n") {
			flag = "--data-binary"
		}
		data = fmt.Sprintf(" \\\n  -H 'Content-Type: %s' \\\n  %s '%s'", mediaType, flag, strings.ReplaceAll(plain(e), "'", `'\''`))
		break
	}
	if method != "GET" && (method != "POST" || data == "") {
		b.WriteString("-X " + method + " ")
	}
	b.WriteString(address)
	if !open {
		b.WriteString(" \\\n  -H \"Authorization: Bearer $ORGD_KEY\"")
	}
	return b.String() + data
}

// plain returns a value on one line, a string as it is.
func plain(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode {
		return n.Value
	}
	var b bytes.Buffer
	if err := writeJSON(jsontext.NewEncoder(&b, jsontext.SpaceAfterColon(true), jsontext.SpaceAfterComma(true)), n); err != nil {
		panic("openapi: example that is not JSON: " + err.Error())
	}
	return strings.TrimSpace(b.String())
}

// lineWidth is how long an array or object of an example may be on one line.
const lineWidth = 64

// show returns an example as coloured JSON; a string is shown as it is.
func show(n *yaml.Node) template.HTML {
	var b strings.Builder
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" {
		return template.HTML(template.HTMLEscapeString(strings.ReplaceAll(n.Value, "\r\n", "\n")))
	}
	showJSON(&b, n, "")
	return template.HTML(b.String())
}

func showJSON(b *strings.Builder, n *yaml.Node, indent string) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	span := func(class, s string) {
		fmt.Fprintf(b, `<span class="%s">%s</span>`, class, template.HTMLEscapeString(s))
	}
	if n.Kind == yaml.ScalarNode {
		class := "v"
		if n.ShortTag() == "!!str" || n.ShortTag() == "!!timestamp" {
			class = "s"
		}
		span(class, quoted(scalar(n)))
		return
	}
	open, end, step := "{", "}", 2
	if n.Kind == yaml.SequenceNode {
		open, end, step = "[", "]", 1
	}
	flat := len(indent)+len(plain(n)) <= lineWidth && indent != "" || len(n.Content) == 0
	b.WriteString(open)
	for i := 0; i < len(n.Content); i += step {
		if i > 0 {
			b.WriteString(",")
			if flat {
				b.WriteString(" ")
			}
		}
		if !flat {
			b.WriteString("\n" + indent + "  ")
		}
		if step == 2 {
			span("k", quoted(jsontext.String(n.Content[i].Value)))
			b.WriteString(": ")
		}
		below := indent + "  "
		showJSON(b, n.Content[i+step-1], below)
	}
	if !flat {
		b.WriteString("\n" + indent)
	}
	b.WriteString(end)
}

// quoted returns a scalar as JSON text.
func quoted(t jsontext.Token) string {
	if t.Kind() != '"' {
		return t.String()
	}
	b, err := jsontext.AppendQuote(nil, t.String())
	if err != nil {
		panic("openapi: example that is not UTF-8: " + err.Error())
	}
	return string(b)
}

// prose renders paragraphs and lists of a description.
func prose(s string) template.HTML {
	var b strings.Builder
	for paragraph := range strings.SplitSeq(strings.TrimSpace(s), "\n\n") {
		paragraph = strings.TrimSpace(paragraph)
		switch {
		case paragraph == "":
		case strings.HasPrefix(paragraph, "- "):
			b.WriteString("<ul>")
			for item := range strings.SplitSeq("\n"+paragraph, "\n- ") {
				if item != "" {
					b.WriteString("<li>" + string(inline(item)) + "</li>")
				}
			}
			b.WriteString("</ul>\n")
		default:
			b.WriteString("<p>" + string(inline(paragraph)) + "</p>\n")
		}
	}
	return template.HTML(b.String())
}

// inline renders code and bold text of a description.
func inline(s string) template.HTML {
	var b strings.Builder
	for i, part := range strings.Split(s, "`") {
		part = template.HTMLEscapeString(part)
		if i%2 == 1 {
			b.WriteString("<code>" + part + "</code>")
			continue
		}
		for j, bold := range strings.Split(part, "**") {
			if j%2 == 1 {
				bold = "<strong>" + bold + "</strong>"
			}
			b.WriteString(bold)
		}
	}
	return template.HTML(b.String())
}
