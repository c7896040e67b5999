package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"
)

// oracle is another implementation of JSON Schema, without bounds.
func oracle(text []byte) (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	c.UseLoader(noLoader{})
	if err := c.AddResource("urn:oracle", doc); err != nil {
		return nil, err
	}
	return c.Compile("urn:oracle")
}

type noLoader struct{}

func (noLoader) Load(string) (any, error) { return nil, errors.New("nothing is loaded") }

// agree checks one value against one schema here and there.
func agree(t interface{ Fatalf(string, ...any) }, schema, instance []byte) {
	want, err := oracle(schema)
	got, p := Compile(schema)
	if (err == nil) != (p == nil) {
		t.Fatalf("Compile(%s) = %v, the oracle says %v", schema, p, err)
	}
	if err != nil {
		return
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(instance))
	if err != nil {
		t.Fatalf("%s: %v", instance, err)
	}
	failed := want.Validate(v)
	r := got.Check("", instance, Budget{Steps: 10_000_000})
	if r.Outcome != Done || (failed == nil) != (len(r.Fields) == 0) {
		t.Fatalf("%s\nagainst %s\nis %+v, the oracle says %v", instance, schema, r, failed)
	}
}

// gen makes schemas of all keywords, and values that meet them often.
type gen struct{ t *rapid.T }

func (g gen) pick(label string, of ...string) string { return rapid.SampledFrom(of).Draw(g.t, label) }

func (g gen) n(label string, max int) int { return rapid.IntRange(0, max).Draw(g.t, label) }

func (g gen) name() string { return g.pick("name", `a`, `b`, `c`, `aa`, `x/y`, `~`, `%20`) }

func (g gen) scalar() string {
	return g.pick("scalar", `null`, `true`, `false`, `0`, `-0.0`, `1`, `1.0`, `10e-1`, `2`, `1.5`, `-3`, `1e2`, `0.1`, `0.30`,
		`12345678901234567890`, `12345678901234567890.5`, `""`, `"a"`, `"ab"`, `"b"`, `"äö"`, `"a\nb"`, `"2020-02-29"`, `"127.0.0.1"`, `"1"`)
}

func (g gen) value(depth int) string {
	if depth == 0 {
		return g.scalar()
	}
	switch g.n("kind", 5) {
	case 0, 1, 2:
		return g.object(func() string { return g.value(depth - 1) })
	case 3:
		return g.array(0, func() string { return g.value(depth - 1) })
	}
	return g.scalar()
}

func (g gen) object(of func() string) string {
	seen := map[string]bool{}
	var members []string
	for range g.n("members", 3) {
		if name := g.name(); !seen[name] {
			seen[name] = true
			members = append(members, fmt.Sprintf("%q:%s", name, of()))
		}
	}
	return "{" + strings.Join(members, ",") + "}"
}

func (g gen) array(min int, of func() string) string {
	items := make([]string, min+g.n("items", 3))
	for i := range items {
		items[i] = of()
	}
	return "[" + strings.Join(items, ",") + "]"
}

func (g gen) names() string {
	return g.pick("names", `[]`, `["a"]`, `["a","b"]`, `["c"]`)
}

func (g gen) patternText() string {
	return g.pick("pattern", `^a`, `b$`, `a*b?`, `^[a-b]{1,2}$`, `(a|b)c`, `\\w+`, `^$`, `.`, `\\bb`, `(?i)A`, `ö`, `^(?:a|ab)(?:c|bcd)*$`, `(?m)^b$`)
}

func (g gen) schema(depth int) string {
	if depth == 0 {
		return g.pick("leaf", `true`, `false`, `{}`, `{"type":"string"}`, `{"type":["integer","null"]}`, `{"minimum":1}`, `{"required":["a"]}`, `{"const":1}`, `{"$ref":"#/$defs/d"}`)
	}
	sub := func() string { return g.schema(depth - 1) }
	var members []string
	seen := map[string]bool{}
	for range g.n("keywords", 4) {
		k := rapid.SampledFrom(keywords).Draw(g.t, "keyword")
		if seen[k] {
			continue
		}
		seen[k] = true
		members = append(members, fmt.Sprintf("%q:%s", k, g.keyword(k, sub)))
	}
	return "{" + strings.Join(members, ",") + "}"
}

var keywords = strings.Fields(`type enum const allOf anyOf oneOf not if then else $ref properties patternProperties additionalProperties
	unevaluatedProperties propertyNames minProperties maxProperties required dependentRequired dependentSchemas dependencies
	prefixItems items unevaluatedItems contains minContains maxContains minItems maxItems uniqueItems minLength maxLength pattern format
	minimum maximum exclusiveMinimum exclusiveMaximum multipleOf title default contentSchema
	allOf anyOf properties unevaluatedProperties unevaluatedItems contains if then`)

func (g gen) keyword(k string, sub func() string) string {
	switch k {
	case "type":
		return g.pick("type", `"object"`, `"array"`, `"string"`, `"number"`, `"integer"`, `["object","array"]`, `["integer","boolean","null"]`)
	case "enum":
		return g.array(0, func() string { return g.value(1) })
	case "const", "default":
		return g.value(1)
	case "allOf", "anyOf", "oneOf", "prefixItems":
		return g.array(1, sub)
	case "$ref":
		return g.pick("ref", `"#"`, `"#/$defs/d"`, `"#/$defs/e"`, `"#anchor"`, `"#/$defs/x~1y"`, `"#/x-note/0"`)
	case "properties", "dependentSchemas":
		return g.object(sub)
	case "dependencies":
		return g.object(func() string {
			if g.n("names or schema", 1) == 0 {
				return g.names()
			}
			return sub()
		})
	case "patternProperties":
		return `{"` + g.patternText() + `":` + sub() + `}`
	case "dependentRequired":
		return g.object(g.names)
	case "required":
		return g.names()
	case "uniqueItems":
		return g.pick("bool", "true", "false")
	case "pattern":
		return `"` + g.patternText() + `"`
	case "format":
		return g.pick("format", `"date"`, `"ipv4"`, `"regex"`, `"uri"`, `"unknown"`)
	case "title":
		return `"t"`
	case "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum":
		return g.pick("bound", `0`, `1`, `1.5`, `-2`, `1e2`, `12345678901234567890`)
	case "multipleOf":
		return g.pick("divisor", `1`, `0.1`, `2`, `1.5`, `1e-3`, `12345678901234567890`, `3`)
	case "minContains", "maxContains", "minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties":
		return g.pick("count", `0`, `1`, `2`, `2.0`, `1e1`)
	}
	return sub()
}

// Everything that is valid elsewhere is valid here, and the other way round.
func TestCheckAgreesWithTheOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := gen{t}
		root := g.schema(3)
		rest := `"$defs":{"d":` + g.schema(1) + `,"e":{"$anchor":"anchor","properties":{"a":{"$ref":"#/$defs/d"}}},"x/y":` + g.schema(1) + `},"x-note":[` + g.schema(1) + `]}`
		if root == "{}" {
			root = "{" + rest
		} else {
			root = strings.TrimSuffix(root, "}") + "," + rest
		}
		for range 5 {
			agree(t, []byte(root), []byte(g.value(3)))
		}
	})
}

// The cases that the oracle's module brings along for this draft, but for those
// of schemas that do not stand alone, and of content, which is not asserted.
func TestCasesOfTheOracle(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/santhosh-tekuri/jsonschema/v6").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "testdata", "Extra-Test-Suite", "tests", "draft2020-12")
	cases := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "contentSchema.json" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var groups []struct {
			Description string
			Schema      json.RawMessage
			Tests       []struct {
				Description string
				Data        json.RawMessage
				Valid       bool
			}
		}
		if err := json.Unmarshal(text, &groups); err != nil {
			return err
		}
		for _, g := range groups {
			s, p := Compile(jsontext.Value(g.Schema))
			if p != nil {
				if !strings.Contains(string(g.Schema), `"http://`) && !strings.Contains(string(g.Schema), `"$id"`) {
					t.Errorf("%s: %s: %v %v", d.Name(), g.Description, p, p.Fields)
				}
				continue
			}
			for _, tt := range g.Tests {
				cases++
				if r := s.Check("", jsontext.Value(tt.Data), Budget{Steps: steps}); r.Outcome != Done || (len(r.Fields) == 0) != tt.Valid {
					t.Errorf("%s: %s: %s: %+v", d.Name(), g.Description, tt.Description, r)
				}
			}
		}
		return nil
	})
	if err != nil || cases < 20 {
		t.Errorf("%d cases in %s: %v", cases, dir, err)
	}
}

// A pattern matches what it matches elsewhere.
func TestMatchAgreesWithRegexp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b strings.Builder
		for range rapid.IntRange(0, 8).Draw(t, "parts") {
			b.WriteString(rapid.SampledFrom([]string{"a", "b", "ö", ".", "[a-c]", "[^a]", "(?:", ")", "(", "|", "*", "+", "?", "{2}", "{0,3}",
				"{2,}", "^", "$", `\b`, `\B`, `\d`, `\w`, `\s`, "(?i)", "(?s)", "(?m)", `\n`, "*?", "[[:digit:]x]", `\pL`, `\Q.\E`, `\z`, `\A`, "[]a]"}).Draw(t, "part"))
		}
		text := b.String()
		want, err := regexp.Compile(text)
		got, _, p := compilePattern(text, patternSize{MaxPatterns, maxRanges})
		if (err == nil) != (p == nil) {
			t.Fatalf("%q: %v, regexp says %v", text, p, err)
		}
		if err != nil {
			return
		}
		if _, size, _ := parsePattern(text, patternSize{MaxPatterns, maxRanges}); len(got.prog.Inst) > size.instructions {
			t.Fatalf("%q is compiled to %d instructions, although %d were counted", text, len(got.prog.Inst), size.instructions)
		}
		var m machine
		for range 5 {
			s := rapid.StringOf(rapid.RuneFrom([]rune("abcABö1 \n_.]"))).Draw(t, "text")
			if is := m.match(got, s, func(int) {}); is != want.MatchString(s) {
				t.Fatalf("%q matches %q: %v", text, s, is)
			}
		}
	})
}
