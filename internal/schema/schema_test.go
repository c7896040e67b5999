package schema

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/problem"
)

// Each keyword lets values through that satisfy it, and says of others what is
// wrong and where.
func TestKeywords(t *testing.T) {
	tested := map[string]bool{}
	for _, tt := range []struct {
		keyword, schema, valid, invalid string
		errors                          string // of the invalid value: pointers and details
	}{
		{"true", `true`, `{"a":1}`, ``, ``},
		{"false", `false`, ``, `{}`, ` is not allowed`},
		{"type", `{"type":"string"}`, `"x"`, `1`, ` must be of the type string; it is of the type number`},
		{"type", `{"type":["integer","null"]}`, `1.0`, `1.5`, ` must be of the type integer or null; it is of the type number`},
		{"type", `{"type":["boolean","array"]}`, `false`, `{}`, ` must be of the type boolean or array; it is of the type object`},
		{"const", `{"const":{"a":[1,"x"]}}`, `{"a":[1.0,"x"]}`, `{"a":["x",1]}`, ` must be the object in the schema`},
		{"enum", `{"enum":[1,"a",null]}`, `1e0`, `"b"`, ` must be one of 1, "a", null`},
		{"enum", `{"enum":["` + strings.Repeat("x", 150) + `","` + strings.Repeat("y", 150) + `",1,2]}`, `2`, `3`,
			` must be one of "` + strings.Repeat("x", 100) + `…", "` + strings.Repeat("y", 92) + `…`},
		{"enum", `{"enum":[]}`, ``, `1`, ` must be one of none`},
		{"format", `{"format":"ipv4"}`, `"10.0.0.1"`, `"10.0.0.256"`, ` is not a valid ipv4`},
		{"format", `{"format":"regex"}`, `"a+\\u00e4"`, `"a(?=b)"`, ` uses a look-ahead, (?=…), which this server's patterns (RE2) do not have`},
		{"format", `{"format":"x-own"}`, `"anything"`, ``, ``},

		{"allOf", `{"allOf":[{"minimum":1},{"maximum":2}]}`, `1`, `3`, ` must be at most 2`},
		{"anyOf", `{"anyOf":[{"type":"string"},{"minimum":2}]}`, `2`, `1`, ` must be at least 2| must be of the type string; it is of the type number`},
		{"oneOf", `{"oneOf":[{"type":"integer"},{"minimum":2}]}`, `1`, `3`, ` must match exactly one of the schemas in oneOf; it matches several`},
		{"oneOf", `{"oneOf":[{"type":"string"},{"type":"null"}]}`, `"x"`, `1`, ` must be of the type null; it is of the type number| must be of the type string; it is of the type number`},
		{"not", `{"not":{"type":"null"}}`, `1`, `null`, ` must not match the schema in not`},
		{"if", `{"if":{"required":["a"]},"then":{"required":["b"]},"else":{"required":["c"]}}`, `{"a":1,"b":1}`, `{"a":1}`, `/b is required`},
		{"then", `{"then":{"required":["b"]}}`, `{}`, ``, ``},
		{"else", `{"if":{"required":["a"]},"else":{"required":["c"]}}`, `{"c":1}`, `{}`, `/c is required`},
		{"$ref", `{"properties":{"a":{"$ref":"#/$defs/x%2520~1~0/0"}},"$defs":{"x%20/~":[{"type":"null"}]}}`, ``, ``, `schema`},
		{"$ref", `{"properties":{"a":{"$ref":"#/x-note/x%2520~1~0/0"}},"x-note":{"x%20/~":[{"type":"null"}]}}`, `{"a":null}`, `{"a":1}`, `/a must be of the type null; it is of the type number`},
		{"$ref", `{"properties":{"a":{"$ref":"#"}},"additionalProperties":false}`, `{"a":{"a":{}}}`, `{"a":{"b":1}}`, `/a/b is not allowed: the schema does not know this setting`},
		{"$ref", `{"$ref":"#"}`, ``, `1`, ` cannot be checked: the schema refers to itself in a circle`},
		{"$anchor", `{"properties":{"a":{"$ref":"#x"}},"$defs":{"y":{"$anchor":"x","minimum":1}}}`, `{"a":1}`, `{"a":0}`, `/a must be at least 1`},
		{"$dynamicAnchor", `{"properties":{"a":{"$ref":"#x"}},"$defs":{"y":{"$dynamicAnchor":"x","minimum":1}}}`, `{"a":1}`, `{"a":0}`, `/a must be at least 1`},

		{"properties", `{"properties":{"x/y":{"type":"null"},"z":false}}`, `{"x/y":null}`, `{"x/y":1,"z":2}`, `/x~1y must be of the type null; it is of the type number|/z is not allowed`},
		{"patternProperties", `{"patternProperties":{"^s_":{"type":"string"}}}`, `{"s_a":"","t":1}`, `{"s_a":1}`, `/s_a must be of the type string; it is of the type number`},
		{"additionalProperties", `{"properties":{"a":{}},"patternProperties":{"^b":{}},"additionalProperties":{"type":"null"}}`, `{"a":1,"b":1,"c":null}`, `{"c":1}`, `/c must be of the type null; it is of the type number`},
		{"propertyNames", `{"propertyNames":{"maxLength":2,"enum":["ab","abc"]}}`, `{"ab":1}`, `{"abc":1}`, `/abc has a name that cannot be used: the name must have at most 2 characters; it has 3`},
		{"minProperties", `{"minProperties":1}`, `{"a":1}`, `{}`, ` must have at least 1 members; it has 0`},
		{"maxProperties", `{"maxProperties":1}`, `{"a":1}`, `{"a":1,"b":2}`, ` must have at most 1 members; it has 2`},
		{"required", `{"required":["a","b/c"]}`, `{"a":1,"b/c":1}`, `{}`, `/a is required|/b~1c is required`},
		{"dependentRequired", `{"dependentRequired":{"size":["unit"]}}`, `{"unit":1}`, `{"size":1}`, `/unit is required, since "size" is set`},
		{"dependentSchemas", `{"dependentSchemas":{"a":{"minProperties":2}}}`, `{"b":1}`, `{"a":1}`, ` must have at least 2 members; it has 1`},
		{"dependencies", `{"dependencies":{"a":["b"],"c":{"minProperties":2}}}`, `{"a":1,"b":1}`, `{"a":1,"c":1}`, `/b is required, since "a" is set`},
		{"unevaluatedProperties", `{"allOf":[{"properties":{"a":{}}}],"anyOf":[{"required":["x"],"properties":{"b":{}}},{}],"unevaluatedProperties":false}`, `{"a":1}`, `{"a":1,"b":1}`, `/b is not allowed: the schema does not know this setting`},

		{"prefixItems", `{"prefixItems":[{"type":"null"},false]}`, `[null]`, `[1,1]`, `/0 must be of the type null; it is of the type number|/1 is not allowed`},
		{"items", `{"prefixItems":[{}],"items":{"type":"null"}}`, `[1,null]`, `[1,2]`, `/1 must be of the type null; it is of the type number`},
		{"contains", `{"contains":{"minimum":2}}`, `[1,2]`, `[1]`, ` must contain at least 1 of the items that the schema in contains describes; it contains 0`},
		{"minContains", `{"contains":{"minimum":2},"minContains":2}`, `[2,3]`, `[1,2]`, ` must contain at least 2 of the items that the schema in contains describes; it contains 1`},
		{"maxContains", `{"contains":{"minimum":2},"minContains":0,"maxContains":1}`, `[]`, `[2,3]`, ` must contain at most 1 of the items that the schema in contains describes; it contains 2`},
		{"minItems", `{"minItems":1}`, `[1]`, `[]`, ` must have at least 1 items; it has 0`},
		{"maxItems", `{"maxItems":1.0}`, `[1]`, `[1,2]`, ` must have at most 1 items; it has 2`},
		{"uniqueItems", `{"uniqueItems":true}`, `[1,"1",{"a":1},[1],{"a":2}]`, `[{"a":1,"b":2},0,{"b":2.0,"a":1}]`, ` must not have the same item twice; those at 0 and 2 are equal`},
		{"unevaluatedItems", `{"prefixItems":[{}],"contains":{"type":"string"},"unevaluatedItems":{"type":"null"}}`, `[1,"x",null]`, `[1,"x",2]`, `/2 must be of the type null; it is of the type number`},

		{"minLength", `{"minLength":2}`, `"äö"`, `"ä"`, ` must have at least 2 characters; it has 1`},
		{"maxLength", `{"maxLength":2}`, `"äö"`, `"äöü"`, ` must have at most 2 characters; it has 3`},
		{"pattern", `{"pattern":"^\\u00e4\\/$"}`, `"ä/"`, `"a/"`, ` must match the pattern ^\u00e4\/$`},
		{"minimum", `{"minimum":9007199254740993}`, `9007199254740993`, `9007199254740992`, ` must be at least 9007199254740993`},
		{"maximum", `{"maximum":-0.5}`, `-0.50`, `0`, ` must be at most -0.5`},
		{"exclusiveMinimum", `{"exclusiveMinimum":1e2}`, `101`, `100`, ` must be more than 1e2`},
		{"exclusiveMaximum", `{"exclusiveMaximum":0}`, `-1e-300`, `0.0`, ` must be less than 0`},
		{"multipleOf", `{"multipleOf":0.01}`, `19.99`, `0.005`, ` must be a multiple of 0.01`},
		{"multipleOf", `{"multipleOf":7e-300}`, `1.4e300`, `1.5e300`, ` must be a multiple of 7e-300`},

		{"$schema", `{"$schema":"https://json-schema.org/draft/2020-12/schema#","$id":"https://example.com/s#","$comment":"","title":"","description":"","default":1,"examples":[1],"deprecated":true,"readOnly":false,"writeOnly":true,"contentEncoding":"base64","contentMediaType":"x","contentSchema":{},"$defs":{},"definitions":{},"$vocabulary":{"https://example.com/v":true},"$recursiveAnchor":"x","x-owner":{"type":5}}`, `1`, ``, ``},
	} {
		tested[tt.keyword] = true
		t.Run(tt.keyword, func(t *testing.T) {
			s, p := Compile(jsontext.Value(tt.schema))
			if tt.errors == "schema" {
				if p == nil {
					t.Errorf("%s is accepted", tt.schema)
				}
				return
			}
			if p != nil {
				t.Fatalf("%s: %v %v", tt.schema, p, p.Fields)
			}
			for _, value := range []string{tt.valid, tt.invalid} {
				if value == "" {
					continue
				}
				want := tt.errors
				if value == tt.valid {
					want = ""
				}
				r := s.Check("", jsontext.Value(value), Budget{Steps: steps})
				var got []string
				for _, f := range r.Fields {
					got = append(got, f.Pointer+" "+f.Detail)
				}
				if strings.Join(got, "|") != want || r.Outcome != Done {
					t.Errorf("%s against %s: %d %q, want %q", value, tt.schema, r.Outcome, got, want)
				}
			}
		})
	}
	for _, k := range keywords {
		if !tested[k] && !slices.Contains([]string{"title", "default", "contentSchema"}, k) {
			t.Errorf("nothing tests %s", k)
		}
	}
}

// What is not a schema is refused where it is wrong, all of it at once.
func TestCompileRefuses(t *testing.T) {
	for _, tt := range []struct{ schema, pointers string }{
		{`5`, ``}, {`"x"`, ``}, {`null`, ``}, {`[]`, ``},
		{`{"type":"text"}`, `/type`}, {`{"type":[]}`, `/type`}, {`{"type":["null","null"]}`, `/type`}, {`{"type":5}`, `/type`},
		{`{"enum":1}`, `/enum`}, {`{"format":1}`, `/format`}, {`{"title":1,"description":2,"$comment":3}`, `/$comment /description /title`},
		{`{"allOf":[]}`, `/allOf`}, {`{"anyOf":{}}`, `/anyOf`}, {`{"oneOf":[1,{},"x"]}`, `/oneOf/0 /oneOf/2`}, {`{"not":1}`, `/not`},
		{`{"if":1,"then":2,"else":3}`, `/else /if /then`},
		{`{"properties":[],"patternProperties":1,"dependentSchemas":null}`, `/dependentSchemas /patternProperties /properties`},
		{`{"properties":{"a/b":{"additionalProperties":0}}}`, `/properties/a~1b/additionalProperties`},
		{`{"required":"a"}`, `/required`}, {`{"required":["a",1,"a"]}`, `/required/1 /required/2`},
		{`{"dependentRequired":{"a":"b"}}`, `/dependentRequired/a`}, {`{"dependencies":{"a":[1],"b":2}}`, `/dependencies/a/0 /dependencies/b`},
		{`{"minItems":-1,"maxItems":1.5,"minLength":"1"}`, `/maxItems /minItems /minLength`},
		{`{"minimum":"1","maximum":null,"multipleOf":0}`, `/maximum /minimum /multipleOf`}, {`{"multipleOf":-1}`, `/multipleOf`},
		{`{"uniqueItems":1,"deprecated":0}`, `/deprecated /uniqueItems`}, {`{"examples":1}`, `/examples`},
		{`{"pattern":1}`, `/pattern`}, {`{"pattern":"("}`, `/pattern`}, {`{"patternProperties":{"[":{}}}`, `/patternProperties/[`},
		{`{"$defs":{"a":{"pattern":"("}}}`, `/$defs/a/pattern`}, {`{"contentSchema":{"minLength":-1}}`, `/contentSchema/minLength`},
		{`{"$id":"#x"}`, `/$id`}, {`{"$id":1}`, `/$id`}, {`{"allOf":[{"$id":"https://example.com"}]}`, `/allOf/0/$id`},
		{`{"$schema":"https://json-schema.org/draft/2019-09/schema"}`, `/$schema`}, {`{"not":{"$schema":1}}`, `/not/$schema`},
		{`{"$anchor":"1"}`, `/$anchor`}, {`{"$defs":{"a":{"$anchor":"x"},"b":{"$anchor":"x"}}}`, `/$defs/b/$anchor`},
		{`{"$ref":1}`, `/$ref`}, {`{"$ref":"x"}`, `/$ref`}, {`{"$ref":"#x"}`, `/$ref`}, {`{"$ref":"#/a"}`, `/$ref`}, {`{"$ref":"#%zz"}`, `/$ref`},
		{`{"$ref":"#/title","title":"x"}`, `/title`}, {`{"$ref":"#/enum/1","enum":[1]}`, `/$ref`},
		{`{"$dynamicRef":"#x","not":{"$recursiveRef":"#"}}`, `/$dynamicRef /not/$recursiveRef`},
		{`{"$vocabulary":{"x":true}}`, `/$vocabulary/x`},
	} {
		_, p := Compile(jsontext.Value(tt.schema))
		if p == nil {
			t.Errorf("%s is accepted", tt.schema)
			continue
		}
		var got []string
		for _, f := range p.Fields {
			got = append(got, f.Pointer)
		}
		if p.Code != problem.InvalidBody || strings.Join(got, " ") != tt.pointers {
			t.Errorf("%s: %v at %v, want %s", tt.schema, p, p.Fields, tt.pointers)
		}
	}
	// Values that are data are not looked at.
	if _, p := Compile(jsontext.Value(`{"const":{"$ref":"https://example.com","type":5},"enum":[{"$id":1}],"default":{"$schema":"x"}}`)); p != nil {
		t.Errorf("data is taken for schemas: %v", p.Fields)
	}
}

// What regular expressions of ECMA-262 have and RE2 has not is called by its
// name; what RE2 writes otherwise is translated.
func TestPatternsOfECMA(t *testing.T) {
	for _, tt := range []struct{ pattern, says string }{
		{`a(?=b)`, "uses a look-ahead, (?=…), which this server's patterns (RE2) do not have"},
		{`^(?!x)`, "uses a negative look-ahead, (?!…), which"},
		{`(?<=a)b`, "uses a look-behind, (?<=…), which"},
		{`(?<!a)b`, "uses a negative look-behind, (?<!…), which"},
		{`(a)\1`, `uses a back reference, \1, which`},
		{`(?<n>a)\k<n>`, `uses a back reference, \k<…>, which`},
		{`\ud83d`, `uses half of a surrogate pair, \ud83d, which`},
		{`\u{DC00}`, `uses half of a surrogate pair, \u{DC00}, which`},
		{`\p{Emoji}`, `uses the property \p{Emoji}, which this server's patterns (RE2) do not have`},
		{`\p{Script_Extensions=Greek}`, `uses the property \p{Script_Extensions=Greek}, which`},
		{`a{1001}`, `repeats as {1001} says, which`},
		{`(a{100}){100}`, `repeats as`},
		{`(?x)a`, `uses (?x, which`},
		{`(`, "is not a regular expression: missing closing )"},
		{`a**`, "is not a regular expression: invalid nested repetition operator"},
		{`\c`, `is not a regular expression: \c is to be followed by a letter`},
		{`\u12`, `is not a regular expression: \u is to be followed by four hexadecimal digits`},
		{`\u{110000}`, `is not a regular expression: \u{…} is to hold`},
		{`\`, "is not a regular expression: it ends with a backslash"},
	} {
		for _, schema := range []string{`{"allOf":[{"pattern":` + quote(tt.pattern) + `}]}`, `{"allOf":[{"patternProperties":{` + quote(tt.pattern) + `:{}}}]}`} {
			at := "/allOf/0/pattern"
			if strings.Contains(schema, "Properties") {
				at += "Properties/" + escapeToken.Replace(tt.pattern)
			}
			_, p := Compile(jsontext.Value(schema))
			if p == nil || p.Fields[0].Pointer != at || !strings.HasPrefix(p.Fields[0].Detail, tt.says) {
				t.Errorf("%s: %+v, want %q at %s", schema, p, tt.says, at)
			}
		}
	}
	for _, tt := range []struct{ pattern, matches, not string }{
		{`^\/$`, "/", `\`},
		{`^\d+\-\D$`, "12-x", "12-1"},
		{`^\u00e4[\u00e0-\u00ff]$`, "äö", "aö"},
		{`^\ud83d\ude00$`, "😀", "😁"},
		{`^[\ud83d\ude00-\ud83d\ude02]$`, "😁", "😃"},
		{`^\u{1F600}$`, "😀", "u"},
		{`^\cJ$`, "\n", "J"},
		{`^[\b\0]+$`, "\b\x00", "b"},
		{`^\x41\0$`, "A\x00", "A0"},
		{`^\p{L}\P{L}$`, "ä1", "1ä"},
		{`^\p{General_Category=Lu}\p{Script=Greek}\p{sc=Latin}$`, "Äαb", "äαb"},
		{`^(?<year>\d{4})$`, "2026", "26"},
		{`^(?<$ü>a)(?<$ü>b)$`, "ab", "ba"},
		{`^[^-a\]]$`, "b", "]"},
		{`a{,2}`, "a{,2}", "aa"},
		{`(?i)^ÄB[c-e]$`, "äbD", "äbF"},
		{`\bfoo\B`, "a foob", "a foo"},
	} {
		p, _, err := compilePattern(tt.pattern, patternSize{MaxPatterns, maxRanges})
		if err != nil {
			t.Errorf("%s: %v", tt.pattern, err)
			continue
		}
		var m machine
		if !m.match(p, tt.matches, func(int) {}) || m.match(p, tt.not, func(int) {}) {
			t.Errorf("%s does not match %q, or matches %q", tt.pattern, tt.matches, tt.not)
		}
	}
}

// A check stops when its time is over, at once and without a verdict.
func TestCheckExpires(t *testing.T) {
	s, p := Compile(jsontext.Value(doubling(60)))
	if p != nil {
		t.Fatal(p)
	}
	asked := 0
	r := s.Check("", jsontext.Value(`{}`), Budget{Steps: math.MaxInt, Expired: func() bool { asked++; return asked == 5 }})
	if r.Outcome != Expired || asked != 5 || r.Steps > 6*stepsBetweenLooks || r.Fields != nil {
		t.Errorf("%+v after %d questions", r, asked)
	}
}

// A check that is too much names what it was too much of.
func TestCheckNamesTheKeyword(t *testing.T) {
	texts := `[` + list(1000, func(i int) string { return fmt.Sprintf(`"aaaaaaaaaaaaaaaaaaaa%d"`, i) }) + `]`
	for _, tt := range []struct{ schema, value, keyword string }{
		{`{"items":{"pattern":"^(?:a*c?){1000}b$"}}`, texts, "pattern"},
		{`{"allOf":[` + list(500, func(int) string { return `{"uniqueItems":true}` }) + `]}`, texts, "uniqueItems"},
		{`{"items":{"anyOf":[` + list(500, func(int) string { return `{"type":"null"}` }) + `]}}`, texts, "anyOf"},
		{doubling(60), `{}`, "$ref"},
		{`{}`, texts, ""},
	} {
		s, p := Compile(jsontext.Value(tt.schema))
		if p != nil {
			t.Fatal(p)
		}
		budget := Budget{Steps: 500_000}
		if tt.keyword == "" {
			budget.Steps = 1000
		}
		if r := s.Check("", jsontext.Value(tt.value), budget); r.Outcome != TooMuch || r.Keyword != tt.keyword {
			t.Errorf("%.50s: %+v, want %q", tt.schema, r, tt.keyword)
		}
	}
}

// Size says what a compiled schema takes in memory, within a factor.
func TestSize(t *testing.T) {
	for name, schema := range map[string]string{
		"properties":    `{"properties":{` + list(2000, func(i int) string { return fmt.Sprintf(`"p%d":{"type":"string"}`, i) }) + `}}`,
		"small schemas": `{"allOf":[` + list(4000, func(int) string { return `{"not":{}}` }) + `]}`,
		"values":        `{"enum":[` + list(9000, func(i int) string { return fmt.Sprint(i) }) + `]}`,
		"patterns":      `{"allOf":[` + list(1500, func(i int) string { return fmt.Sprintf(`{"pattern":"^[a-z]+%d$"}`, i) }) + `]}`,
		"a pattern":     `{"pattern":"(?:a*c?){1000}(?:a*c?){1000}(?:a*c?){1000}"}`,
		"classes":       `{"pattern":"` + strings.Repeat(`\\pL\\pN`, 90) + `"}`,
		"a long name":   `{"properties":{"` + strings.Repeat("x", 30_000) + `":{"allOf":[` + list(1500, func(int) string { return `{"minimum":1}` }) + `]}}}`,
		"names":         `{"required":[` + list(6000, func(i int) string { return fmt.Sprintf(`"%d"`, i) }) + `]}`,
	} {
		const copies = 8
		kept := make([]*Schema, copies)
		heap := func() uint64 {
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		before := heap()
		for i := range kept {
			var p *problem.Error
			if kept[i], p = Compile(jsontext.Value(schema)); p != nil {
				t.Fatal(name, p)
			}
		}
		took := int(heap()-before) / copies
		size := kept[0].Size()
		t.Logf("%s: %d bytes of text, %d KiB, said to be %d KiB", name, len(schema), took>>10, size>>10)
		if took > size*3/2 || took < size/4 {
			t.Errorf("%s: a schema takes %d bytes, said to be %d", name, took, size)
		}
		runtime.KeepAlive(kept)
	}
}

func FuzzCheck(f *testing.F) {
	f.Add([]byte(`{"type":"object","properties":{"a":{"$ref":"#/$defs/x"}},"$defs":{"x":{"enum":[1]}}}`), []byte(`{"a":1}`))
	f.Add([]byte(`{"$id":"https://json-schema.org/draft/2020-12/schema","unevaluatedItems":{"format":"regex"}}`), []byte(`["(?<=a)"]`))
	f.Add([]byte(`{"$ref":"#","allOf":[{"$ref":"#"}]}`), []byte(`{}`))
	f.Add([]byte(doubling(20)), []byte(`{}`))
	f.Add([]byte(`{"patternProperties":{"(?i)^[\\ud83d\\ude00-\\uffff]{2,5}$":{"uniqueItems":true,"multipleOf":0.07}}}`), []byte(`{"x":[1e300,1E300],"y":1e-300}`))
	f.Fuzz(func(t *testing.T, schema, value []byte) {
		if len(schema) > 64<<10 || len(value) > 64<<10 || !utf8.Valid(schema) || !jsontext.Value(value).IsValid() {
			return
		}
		var s *Schema
		var p *problem.Error
		if took, bytes := cost(func() { s, p = Compile(schema) }); took > maxTook || bytes > maxBytes {
			t.Fatalf("compiling takes %v and %d bytes", took, bytes)
		}
		if p != nil {
			if p.Code != problem.InvalidBody || len(p.Fields) == 0 || len(p.Fields) > MaxFields {
				t.Fatalf("error %v with %d fields", p, len(p.Fields))
			}
			return
		}
		var r Result
		if took, bytes := cost(func() { r = s.Check("", value, Budget{Steps: steps}) }); took > maxTook || bytes > maxBytes {
			t.Fatalf("checking takes %v and %d bytes", took, bytes)
		}
		if len(r.Fields) > MaxFields {
			t.Fatalf("%d errors", len(r.Fields))
		}
	})
}
