package schema

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/problem"
)

// steps is the budget of these tests, which is that of the server.
const steps = 4_000_000

// cost returns how long f takes, and how much memory it asks for in all.
func cost(f func()) (time.Duration, uint64) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	begun := time.Now()
	f()
	took := time.Since(begun)
	runtime.ReadMemStats(&after)
	return took, after.TotalAlloc - before.TotalAlloc
}

// The bounds of one call, with room for a machine that is busy with other
// things. What is allocated in all is more than what is held at any time.
const (
	maxTook  = 3 * time.Second
	maxBytes = 32 << 20
)

func bounded(t *testing.T, what string, f func()) {
	t.Helper()
	took, bytes := cost(f)
	t.Logf("%s: %v, %d KiB", what, took, bytes>>10)
	if took > maxTook || bytes > maxBytes {
		t.Errorf("%s takes %v and allocates %d MiB", what, took, bytes>>20)
	}
}

// list returns n values, separated by commas.
func list(n int, of func(i int) string) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = of(i)
	}
	return strings.Join(parts, ",")
}

func doubling(n int) string {
	return `{"$ref":"#/$defs/d0","$defs":{` + list(n, func(i int) string {
		return fmt.Sprintf(`"d%d":{"allOf":[{"$ref":"#/$defs/d%d"},{"$ref":"#/$defs/d%d"}]}`, i, i+1, i+1)
	}) + fmt.Sprintf(`,"d%d":{"type":"object"}}}`, n)
}

func quote(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// No schema costs more than its bound, to compile or to check with.
func TestBounds(t *testing.T) {
	repeated := strings.Repeat(`(?:a*c?){1000}`, 30)
	required := `{"additionalProperties":{"$ref":"#"},"required":[` + list(5000, func(i int) string { return fmt.Sprintf(`"name%d"`, i) }) + `]}`
	objects := func(bytes int) string {
		return "{" + list(bytes/9, func(i int) string { return fmt.Sprintf(`"%04x":{}`, i) }) + "}"
	}
	numbers := "[" + list(10_000, func(i int) string { return fmt.Sprint(i) }) + "]"
	text60 := strings.Repeat("a", 60_000)
	digits := strings.Repeat("7", 60_000)
	long := strings.Repeat("n", 30_000)
	for _, tt := range []struct {
		name, schema, value string
		want                string // "" valid, "invalid", "too much", or what the schema is refused for
	}{
		{"a pattern with 30 long repetitions", `{"properties":{"a":{"pattern":"^` + repeated + `b$"}}}`, `{"a":"` + text60 + `"}`, "too large a pattern"},
		{"a name's pattern with 30 long repetitions", `{"patternProperties":{"^` + repeated + `b$":true}}`, `{}`, "too large a pattern"},
		{"many patterns that are large together", `{"allOf":[` + list(1500, func(i int) string { return fmt.Sprintf(`{"pattern":"x{%d}"}`, 900+i%100) }) + `]}`, `{}`, "too large a pattern"},
		{"nested repetitions", `{"pattern":"((((a{1,10}){1,10}){1,10}b){1,5}c)*"}`, `{}`, "repeat"},
		{"a pattern of large classes", `{"pattern":"` + strings.Repeat(`\\pL\\PM`, 5000) + `"}`, `{}`, "too large a pattern"},
		{"ranges without case", `{"pattern":"(?i)` + strings.Repeat(`[!-\uD83A\uDD43x]`, 3000) + `"}`, `{}`, "too large a pattern"},
		{"the largest pattern over the longest text", `{"additionalProperties":{"pattern":"^(?:a*c?){1000}(?:a*c?){1000}(?:a*c?){500}b$"}}`, `{"a":"` + text60 + `"}`, "too much"},
		{"many patterns over one text", `{"additionalProperties":{"allOf":[` + list(1200, func(i int) string { return fmt.Sprintf(`{"pattern":"a*b%d"}`, i) }) + `]}}`, `{"a":"` + text60 + `"}`, "too much"},

		{"a long list of names over 3 KB", required, objects(3 << 10), "invalid"},
		{"a long list of names over 21 KB", required, objects(21 << 10), "invalid"},
		{"a long list of names that nobody reports", `{"not":` + required + `,"$defs":{"x":1}}`, `{}`, "must be a schema"},
		{"names for each of many", `{"additionalProperties":{"dependentRequired":{"x":[` + list(6000, func(i int) string { return fmt.Sprintf(`"%d"`, i) }) + `]}}}`,
			"{" + list(4000, func(i int) string { return fmt.Sprintf(`"%d":{"x":0}`, i) }) + "}", "invalid"},
		{"many branches that ask for many names", `{"anyOf":[` + list(500, func(int) string { return `{"$ref":"#/$defs/r"}` }) + `],"$defs":{"r":{"required":[` +
			list(5000, func(i int) string { return fmt.Sprintf(`"%d"`, i) }) + `]}}}`, "{" + list(5000-1, func(i int) string { return fmt.Sprintf(`"%d":0`, i) }) + "}", "too much"},

		{"unique items", `{"properties":{"a":{"uniqueItems":true}}}`, `{"a":` + numbers + `}`, ""},
		{"unique large items", `{"properties":{"a":{"uniqueItems":true}}}`, `{"a":[` + list(15, func(i int) string { return `"` + strings.Repeat("a", 4000) + fmt.Sprint(i) + `"` }) + `]}`, ""},
		{"unique items, often", `{"properties":{"a":{"allOf":[` + list(2500, func(int) string { return `{"uniqueItems":true}` }) + `]}}}`, `{"a":` + numbers + `}`, "too much"},

		{"patterns for names × properties", `{"patternProperties":{` + list(1200, func(i int) string { return fmt.Sprintf(`"^x*%d":false`, i) }) + `}}`,
			"{" + list(5000, func(i int) string { return fmt.Sprintf(`"y%d":0`, i) }) + "}", "too much"},
		{"schemas for names × properties", `{"propertyNames":{"anyOf":[` + list(2500, func(i int) string { return fmt.Sprintf(`{"const":"x%d"}`, i) }) + `]}}`,
			"{" + list(5000, func(i int) string { return fmt.Sprintf(`"y%d":0`, i) }) + "}", "invalid"},

		{"a const of 60 KB", `{"additionalProperties":{"const":"` + text60 + `"}}`, `{"a":"` + text60 + `"}`, ""},
		{"a const of 60 KB, differing at its end", `{"additionalProperties":{"const":"` + text60 + `"}}`, `{"a":"` + text60[1:] + `b"}`, "invalid"},
		{"a const of 60 KB for many", `{"additionalProperties":{"items":{"const":[` + strings.Repeat(`{},`, 20_000) + `1]}}}`,
			`{"a":[` + strings.TrimSuffix(strings.Repeat(`[],`, 20_000), ",") + `]}`, "invalid"},
		{"many of an enum of many", `{"additionalProperties":{"items":{"enum":` + numbers + `}}}`, `{"a":` + numbers + `}`, ""},

		{"references that double", doubling(60), `{}`, "too much"},
		{"references that double by depth", `{"allOf":[{"properties":{"a":{"$ref":"#"}}},{"properties":{"a":{"$ref":"#"}}}]}`,
			strings.Repeat(`{"a":`, 31) + `{}` + strings.Repeat(`}`, 31), "too much"},
		{"references one after the other", `{"$ref":"#/$defs/d0","$defs":{` + list(1900, func(i int) string {
			return fmt.Sprintf(`"d%d":{"$ref":"#/$defs/d%d"}`, i, i+1)
		}) + `,"d1900":{"additionalProperties":{"$ref":"#"}}}}`, strings.Repeat(`{"a":`, 31) + `{}` + strings.Repeat(`}`, 31), "too much"},
		{"alternatives in alternatives", `{"anyOf":[` + list(200, func(int) string { return `{"$ref":"#/$defs/x"}` }) + `],"$defs":{"x":{"oneOf":[` +
			list(200, func(int) string { return `{"additionalProperties":{"not":{}}}` }) + `]}}}`, `{"a":[{},{}]}`, "too much"},
		{"what others have not evaluated", `{"unevaluatedProperties":false,"allOf":[` + list(4000, func(int) string { return `{"minimum":1}` }) + `]}`,
			"{" + list(5000, func(i int) string { return fmt.Sprintf(`"%d":0`, i) }) + "}", "invalid"},
		{"containing", `{"additionalProperties":{"allOf":[` + list(2500, func(int) string { return `{"contains":false}` }) + `]}}`, `{"a":` + numbers + `}`, "too much"},

		{"long numbers", `{"additionalProperties":{"items":{"multipleOf":` + digits[:9000] + `}}}`, `{"a":[` + list(6, func(int) string { return digits[:9100] }) + `]}`, "invalid"},
		{"long numbers, often", `{"additionalProperties":{"allOf":[` + list(2500, func(int) string { return `{"multipleOf":7}` }) + `]}}`, `{"a":` + digits + `}`, "too much"},
		{"large bounds", `{"additionalProperties":{"allOf":[` + list(2500, func(int) string { return `{"minimum":1}` }) + `]}}`, `{"a":` + digits + `}`, "too much"},

		{"regular expressions as settings", `{"additionalProperties":{"allOf":[` + list(2500, func(int) string { return `{"format":"regex"}` }) + `]}}`, `{"a":` + quote(strings.Repeat("(a|b)*", 10_000)) + `}`, "too much"},
		{"a regular expression of large classes", `{"additionalProperties":{"format":"regex"}}`, `{"a":` + quote(strings.Repeat(`\pL`, 15_000)) + `}`, "invalid"},
		{"formats of long texts", `{"additionalProperties":{"allOf":[` + list(2500, func(int) string { return `{"format":"json-pointer"}` }) + `]}}`, `{"a":"` + strings.Repeat("/", 60_000) + `"}`, "too much"},

		{"many schemas below a long name", `{"properties":{"` + long + `":{"allOf":[` + list(8000, func(int) string { return `{}` }) + `]}}}`, `{"` + long + `":1}`, ""},
		{"many errors below a long name", `{"properties":{"` + long + `":{"additionalProperties":false}}}`, `{"` + long + `":{` + list(3000, func(i int) string { return fmt.Sprintf(`"%d":0`, i) }) + `}}`, "invalid"},
		{"many mistakes", `{"allOf":[` + list(10_000, func(int) string { return `5` }) + `]}`, `{}`, "must be a schema"},
		{"many mistakes below a long name", `{"properties":{"` + long + `":{"allOf":[` + list(5000, func(int) string { return `5` }) + `]}}}`, `{}`, "must be a schema"},
		{"many references", `{"allOf":[` + list(3800, func(int) string { return `{"$ref":"#/x"}` }) + `],"x":{}}`, `{}`, ""},
		{"many references into a deep place", `{"allOf":[` + list(400, func(int) string { return `{"$ref":"#` + strings.Repeat("/x", 60) + `"}` }) + `],"x":` + strings.Repeat(`{"x":`, 60) + `1` + strings.Repeat(`}`, 60) + `}`, `{}`, ""},
		{"many small schemas", `{"allOf":[` + list(21_000, func(int) string { return `{}` }) + `]}`, `{}`, ""},
		{"many formats", `{"allOf":[` + list(3000, func(i int) string { return fmt.Sprintf(`{"format":"f%d"}`, i) }) + `]}`, `{}`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if len(tt.schema) > 64<<10 || len(tt.value) > 64<<10 {
				t.Fatalf("the schema has %d bytes, the value %d", len(tt.schema), len(tt.value))
			}
			var s *Schema
			var p *problem.Error
			bounded(t, "compiling", func() { s, p = Compile(jsontext.Value(tt.schema)) })
			if p != nil {
				if p.Code != problem.InvalidBody || len(p.Fields) > MaxFields || tt.want == "" || !strings.Contains(p.Fields[0].Detail, tt.want) {
					t.Errorf("the schema is refused: %.300v with %d fields", p, len(p.Fields))
				}
				return
			}
			var r Result
			bounded(t, "checking", func() { r = s.Check("/customizations", jsontext.Value(tt.value), Budget{Steps: steps}) })
			got := map[Outcome]string{Done: "", TooMuch: "too much"}[r.Outcome]
			if len(r.Fields) > 0 {
				got = "invalid"
			}
			size := 0
			for _, f := range r.Fields {
				size += len(f.Pointer) + len(f.Detail)
			}
			t.Logf("%d steps, %s, %s; %d KiB compiled", r.Steps, got, r.Keyword, s.Size()>>10)
			if got != tt.want {
				t.Errorf("the outcome is %q, want %q", got, tt.want)
			}
			if len(r.Fields) > MaxFields || size > 2*maxFieldBytes {
				t.Errorf("%d errors of %d bytes are reported", len(r.Fields), size)
			}
		})
	}
}
