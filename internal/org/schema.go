package org

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/orgd/orgd/internal/problem"
)

// Limits of a customization schema. The steps bound the work of one check, so
// that a schema whose references multiply cannot hold a writer up.
const (
	MaxSchemaSize  = 64 << 10 // bytes, as it was sent
	maxSchemaDepth = 64
	maxSchemaSteps = 100_000
)

const (
	draft2020 = "https://json-schema.org/draft/2020-12/schema"
	schemaURL = "urn:orgd:customization-schema"
)

// Schema is a compiled JSON Schema (draft 2020-12) for customizations. It is
// safe for concurrent use.
type Schema struct {
	compiled *jsonschema.Schema
	maxEnum  int // members of the longest enum

	mu    sync.Mutex // one check at a time counts
	steps int
}

// compiledSchemas remembers the schemas that were compiled last: compiling
// takes many times as long as checking, and each write needs the schema of its
// root. Its size is bounded by the text of the schemas in it.
var compiledSchemas = struct {
	sync.Mutex
	byHash map[[sha256.Size]byte]*Schema
	size   int
}{byHash: map[[sha256.Size]byte]*Schema{}}

const maxCompiledSize = 1 << 20

// CompileSchema compiles a JSON Schema, draft 2020-12. format is asserted. A
// schema stands alone: references to other documents and $dynamicRef are
// refused. The error is InvalidBody.
func CompileSchema(text []byte) (*Schema, *problem.Error) {
	if len(text) > MaxSchemaSize {
		return nil, problem.Body("", "must be at most %d bytes; it has %d", MaxSchemaSize, len(text))
	}
	hash := sha256.Sum256(text)
	cache := &compiledSchemas
	cache.Lock()
	s := cache.byHash[hash]
	cache.Unlock()
	if s != nil {
		return s, nil
	}
	s, p := compileSchema(text)
	if p != nil {
		return nil, p
	}
	cache.Lock()
	defer cache.Unlock()
	if cache.size += len(text); cache.size > maxCompiledSize {
		clear(cache.byHash)
		cache.size = len(text)
	}
	cache.byHash[hash] = s
	return s, nil
}

func compileSchema(text []byte) (*Schema, *problem.Error) {
	v := jsontext.Value(text)
	if !v.IsValid() {
		if _, err := parseTree(v); err != nil {
			return nil, problem.Body("", "is not valid JSON: %v", err)
		}
	}
	switch v.Kind() {
	case '{', 't', 'f':
	default:
		return nil, problem.Body("", "must be a JSON Schema: an object, true or false")
	}
	if at, err := checkTokens(v, maxSchemaDepth); err != nil {
		return nil, problem.Body(at, "%v", err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, problem.Body("", "is not valid JSON: %v", err)
	}
	if p := checkKeywords("", doc); p != nil {
		return nil, p
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	c.UseLoader(noLoader{})
	if err := c.AddResource(schemaURL, doc); err != nil {
		return nil, problem.Body("", "is not a JSON Schema: %v", err)
	}
	compiled, err := c.Compile(schemaURL)
	if err != nil {
		return nil, schemaProblem(err)
	}
	s := &Schema{compiled: compiled}
	s.count(compiled, map[*jsonschema.Schema]bool{})
	return s, nil
}

// noLoader loads nothing: a schema never makes the server open a file or a
// connection.
type noLoader struct{}

func (noLoader) Load(url string) (any, error) {
	return nil, errors.New("references stay inside the schema")
}

// checkKeywords refuses the keywords that a standalone schema has no use for,
// at the first one by pointer. It looks at every object, also at one that is
// only data, such as the value of const.
func checkKeywords(pointer string, v any) *problem.Error {
	switch v := v.(type) {
	case []any:
		for i, e := range v {
			if p := checkKeywords(fmt.Sprintf("%s/%d", pointer, i), e); p != nil {
				return p
			}
		}
	case map[string]any:
		names := make([]string, 0, len(v))
		for name := range v {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			at := pointer + "/" + escapePointer(name)
			text, isString := v[name].(string)
			switch {
			case !isString:
			case name == "$ref" && !strings.HasPrefix(text, "#"):
				return problem.Body(at, "refers to another document; only references inside the schema (#…) are allowed").
					WithFix("Copy the referenced schema into $defs and refer to it as #/$defs/….")
			case name == "$dynamicRef", name == "$recursiveRef":
				return problem.Body(at, "is not supported; use $ref")
			case name == "$schema" && strings.TrimSuffix(text, "#") != draft2020:
				return problem.Body(at, "must be %s", draft2020)
			case name == "$id" && pointer != "":
				return problem.Body(at, "is allowed at the top level only")
			}
			if p := checkKeywords(at, v[name]); p != nil {
				return p
			}
		}
	}
	return nil
}

func schemaProblem(err error) *problem.Error {
	var invalid *jsonschema.SchemaValidationError
	var failed *jsonschema.ValidationError
	if errors.As(err, &invalid) && errors.As(invalid.Err, &failed) {
		p := problem.New(problem.InvalidBody, "This is not a JSON Schema of draft 2020-12.")
		p.Fields = validationFields("", failed)
		return p
	}
	return problem.Body("", "is not a JSON Schema that can be used: %s", strings.ReplaceAll(err.Error(), schemaURL, ""))
}

// count makes every schema object that is reached from sch count a step when
// a value is checked against it, and finds the longest enum.
func (s *Schema) count(sch *jsonschema.Schema, seen map[*jsonschema.Schema]bool) {
	if sch == nil || seen[sch] {
		return
	}
	seen[sch] = true
	if sch.Enum != nil {
		s.maxEnum = max(s.maxEnum, len(sch.Enum.Values))
	}
	format := sch.Format
	counted := &jsonschema.Format{Validate: func(v any) error {
		if s.steps++; s.steps > maxSchemaSteps {
			panic(errTooManySteps)
		}
		if format == nil {
			return nil
		}
		return format.Validate(v)
	}}
	if format != nil {
		counted.Name = format.Name
	}
	sch.Format = counted
	for _, sub := range []*jsonschema.Schema{sch.Ref, sch.Not, sch.If, sch.Then, sch.Else, sch.PropertyNames,
		sch.UnevaluatedProperties, sch.Contains, sch.Items2020, sch.UnevaluatedItems, sch.ContentSchema} {
		s.count(sub, seen)
	}
	for _, subs := range [][]*jsonschema.Schema{sch.AllOf, sch.AnyOf, sch.OneOf, sch.PrefixItems} {
		for _, sub := range subs {
			s.count(sub, seen)
		}
	}
	for _, sub := range sch.Properties {
		s.count(sub, seen)
	}
	for _, sub := range sch.PatternProperties {
		s.count(sub, seen)
	}
	for _, sub := range sch.DependentSchemas {
		s.count(sub, seen)
	}
	if sub, ok := sch.AdditionalProperties.(*jsonschema.Schema); ok {
		s.count(sub, seen)
	}
	for _, dependency := range sch.Dependencies {
		if sub, ok := dependency.(*jsonschema.Schema); ok {
			s.count(sub, seen)
		}
	}
}

var errTooManySteps = errors.New("the check takes too many steps")

// Check checks settings in effect, which Effective returned. The error is
// SchemaViolation; its pointers start with /customizations.
func (s *Schema) Check(effective jsontext.Value) *problem.Error {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(effective))
	if err != nil {
		return problem.Body("/customizations", "is not valid JSON: %v", err)
	}
	if values(v)*s.maxEnum > 20*maxSchemaSteps {
		err = errTooManySteps
	} else {
		err = s.validate(v)
	}
	if err == nil {
		return nil
	}
	p := problem.New(problem.SchemaViolation, "The settings that would be in effect do not satisfy the schema of the root organization.")
	var failed *jsonschema.ValidationError
	switch {
	case errors.Is(err, errTooManySteps):
		p.Detail = "Checking these settings against the schema of the root organization takes too much work."
		p.Fix = "Simplify the schema: references that multiply and long enumerations cost the most."
		p.Fields = []problem.Field{{Pointer: "/customizations", Detail: err.Error()}}
	case errors.As(err, &failed):
		p.Fields = validationFields("/customizations", failed)
	}
	return p
}

func (s *Schema) validate(v any) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = 0
	defer func() {
		if r := recover(); r == errTooManySteps {
			err = errTooManySteps
		} else if r != nil {
			panic(r)
		}
	}()
	return s.compiled.Validate(v)
}

// values counts the values in v, v itself included.
func values(v any) int {
	n := 1
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			n += values(e)
		}
	case map[string]any:
		for _, e := range v {
			n += values(e)
		}
	}
	return n
}

var english = message.NewPrinter(language.English)

// maxFieldDetail bounds the detail of a field, in bytes.
const maxFieldDetail = 500

// validationFields returns what failed, leaf by leaf, sorted by pointer.
func validationFields(prefix string, failed *jsonschema.ValidationError) []problem.Field {
	var fields []problem.Field
	var walk func(e *jsonschema.ValidationError)
	walk = func(e *jsonschema.ValidationError) {
		pointer := prefix
		for _, token := range e.InstanceLocation {
			pointer += "/" + escapePointer(token)
		}
		add := func(name, detail string) {
			if name != "" {
				name = "/" + escapePointer(name)
			}
			if len(detail) > maxFieldDetail {
				detail = strings.ToValidUTF8(detail[:maxFieldDetail], "") + "…"
			}
			fields = append(fields, problem.Field{Pointer: pointer + name, Detail: detail})
		}
		switch k := e.ErrorKind.(type) {
		case *kind.OneOf:
			if len(k.Subschemas) > 0 {
				add("", "must match exactly one of the schemas in oneOf; it matches several")
				return
			}
		case *kind.Not:
			add("", "must not match the schema in not")
			return
		case *kind.FalseSchema:
			add("", "is not allowed")
			return
		case *kind.AdditionalProperties:
			for _, name := range k.Properties {
				add(name, "is not allowed: the schema does not know this setting")
			}
			return
		case *kind.Required:
			for _, name := range k.Missing {
				add(name, "is required")
			}
			return
		}
		for _, cause := range e.Causes {
			walk(cause)
		}
		if len(e.Causes) == 0 {
			add("", e.ErrorKind.LocalizedString(english))
		}
	}
	walk(failed)
	slices.SortFunc(fields, func(a, b problem.Field) int {
		return cmp.Or(strings.Compare(a.Pointer, b.Pointer), strings.Compare(a.Detail, b.Detail))
	})
	fields = slices.CompactFunc(fields, func(a, b problem.Field) bool { return a == b })
	return fields[:min(len(fields), maxFields)]
}
