package settings

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/schema"
)

func TestCompileSchema(t *testing.T) {
	for _, tt := range []struct {
		name, schema string
		pointer      string // of the error; "ok" for none
	}{
		{"empty", `{}`, "ok"},
		{"true", `true`, "ok"},
		{"false", ` false`, "ok"},
		{"draft 2020-12", `{"$schema":"https://json-schema.org/draft/2020-12/schema","$id":"https://example.com/s","type":"object"}`, "ok"},
		{"a reference inside", `{"$defs":{"a":{"type":"string"}},"properties":{"a":{"$ref":"#/$defs/a"}}}`, "ok"},
		{"an anchor", `{"$defs":{"a":{"$anchor":"x","type":"string"}},"properties":{"a":{"$ref":"#x"}}}`, "ok"},
		{"settings with the names of keywords", `{"properties":{"$ref":{"type":"string"},"$id":{},"const":{"type":"string"}}}`, "ok"},
		{"recursive", `{"properties":{"a":{"$ref":"#"}}}`, "ok"},
		{"an unknown keyword", `{"x-owner":"me"}`, "ok"},

		{"not JSON", `{`, ""},
		{"nothing", ``, ""},
		{"a string", `"x"`, ""},
		{"a member twice", `{"type":"object","type":"object"}`, ""},
		{"trailing data", `{} {}`, ""},
		{"too large", `{"description":"` + strings.Repeat("x", 64<<10) + `"}`, ""},
		{"too deep", strings.Repeat(`{"not":`, 65) + `{}` + strings.Repeat(`}`, 65), strings.Repeat("/not", 64)},
		{"a remote reference", `{"properties":{"a":{"$ref":"https://example.com/s"}}}`, "/properties/a/$ref"},
		{"a file", `{"$ref":"file:///etc/passwd"}`, "/$ref"},
		{"a relative reference", `{"allOf":[{"$ref":"other.json#/a"}]}`, "/allOf/0/$ref"},
		{"the metaschema", `{"$ref":"https://json-schema.org/draft/2020-12/schema"}`, "/$ref"},
		{"a remote reference below the name of a keyword", `{"properties":{"const":{"$ref":"https://example.com/s"}}}`, "/properties/const/$ref"},
		{"a dynamic reference", `{"$dynamicRef":"#x"}`, "/$dynamicRef"},
		{"another draft", `{"$schema":"http://json-schema.org/draft-07/schema#"}`, "/$schema"},
		{"an unknown dialect", `{"$schema":"https://example.com/dialect"}`, "/$schema"},
		{"an inner $id", `{"properties":{"a":{"$id":"https://example.com/a"}}}`, "/properties/a/$id"},
		{"a huge number", `{"multipleOf":1e-999999999}`, "/multipleOf"},
		{"a wrong keyword value", `{"properties":{"a":{"type":"text"}}}`, "/properties/a/type"},
		{"a bad pattern", `{"properties":{"a":{"pattern":"("}}}`, "/properties/a/pattern"},
		{"a dangling reference", `{"$ref":"#/$defs/none"}`, "/$ref"},
		{"a look-ahead", `{"properties":{"a":{"pattern":"^(?!x)"}}}`, "/properties/a/pattern"},
		{"a pattern that is too large", `{"patternProperties":{"` + strings.Repeat("(?:a*c?){1000}", 30) + `":{}}}`, "/patternProperties/" + strings.Repeat("(?:a*c?){1000}", 30)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := CompileSchema([]byte(tt.schema))
			switch {
			case tt.pointer == "ok":
				if err != nil || s == nil {
					t.Errorf("refused: %v", err)
				}
			case err == nil:
				t.Error("accepted")
			case err.Code != problem.InvalidBody || len(err.Fields) == 0 || err.Fields[0].Pointer != tt.pointer || err.Fields[0].Detail == "":
				t.Errorf("error %v with %v, want one at %q", err, err.Fields, tt.pointer)
			case strings.Contains(fmt.Sprint(err, err.Fields), "urn:"):
				t.Errorf("the error shows an address that the caller did not write: %v %v", err, err.Fields)
			}
		})
	}
}

func TestSchemaCheck(t *testing.T) {
	const text = `{
		"$schema": "https://json-schema.org/draft/2020-12/schema",
		"type": "object",
		"required": ["plan"],
		"properties": {
			"plan": {"enum": ["free", "pro"]},
			"seats": {"type": "integer", "minimum": 1, "maximum": 9007199254740993},
			"branding": {"$ref": "#/$defs/branding"},
			"x/y": {"type": "boolean"},
			"hosts": {"type": "array", "items": {"type": "string", "format": "hostname"}, "uniqueItems": true},
			"mode": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
			"old": false,
			"notnull": {"not": {"type": "null"}},
			"price": {"multipleOf": 0.01}
		},
		"additionalProperties": false,
		"$defs": {"branding": {
			"type": "object",
			"properties": {"logo_url": {"type": "string", "format": "uri", "pattern": "^https://"}},
			"unevaluatedProperties": {"type": "string"}
		}}
	}`
	s, p := CompileSchema([]byte(text))
	if p != nil {
		t.Fatal(p)
	}
	for _, tt := range []struct {
		settings string
		pointers string // of the error, separated by spaces
	}{
		{`{"plan":"pro"}`, ""},
		{`{"plan":"pro","seats":5,"branding":{"logo_url":"https://example.com/a.png","color":"red"},"hosts":["a.example","b.example"],"mode":1,"notnull":1,"price":19.99}`, ""},
		{`{"plan":"pro","seats":1.0}`, ""},
		{`{}`, "/plan"},
		{`{"plan":"gold"}`, "/plan"},
		{`{"plan":"pro","seats":0}`, "/seats"},
		{`{"plan":"pro","seats":1.5}`, "/seats"},
		{`{"plan":"pro","seats":9007199254740993}`, ""},
		{`{"plan":"pro","seats":9007199254740994}`, "/seats"},
		{`{"plan":"pro","branding":{"logo_url":"ftp://example.com","size":1}}`, "/branding/logo_url /branding/size"},
		{`{"plan":"pro","branding":{"logo_url":"https://"}}`, ""},
		{`{"plan":"pro","branding":{"logo_url":"https://a b"}}`, "/branding/logo_url"},
		{`{"plan":"pro","x/y":1}`, "/x~1y"},
		{`{"plan":"pro","hosts":["a.example","-"]}`, "/hosts/1"},
		{`{"plan":"pro","hosts":["a.example","a.example"]}`, "/hosts"},
		{`{"plan":"pro","mode":[]}`, "/mode /mode"},
		{`{"plan":"pro","old":1}`, "/old"},
		{`{"plan":"pro","notnull":null}`, "/notnull"},
		{`{"plan":"pro","price":0.005}`, "/price"},
		{`{"plan":"pro","Seats":1,"~":2}`, "/Seats /~0"},
		{`{"plan":null,"seats":"x"}`, "/plan /seats"},
	} {
		err := violation(s.compiled.Check(checkedAt, jsontext.Value(tt.settings), schema.Budget{Steps: maxCheckSteps}))
		if tt.pointers == "" {
			if err != nil {
				t.Errorf("Check(%s) = %v %v", tt.settings, err, err.Fields)
			}
			continue
		}
		if err == nil {
			t.Errorf("Check(%s) accepts it, want errors at %s", tt.settings, tt.pointers)
			continue
		}
		var got []string
		for _, f := range err.Fields {
			got = append(got, strings.TrimPrefix(f.Pointer, "/customizations"))
			if f.Detail == "" || !strings.HasPrefix(f.Pointer, "/customizations/") {
				t.Errorf("Check(%s) has the field %+v", tt.settings, f)
			}
		}
		if err.Code != problem.SchemaViolation || strings.Join(got, " ") != tt.pointers {
			t.Errorf("Check(%s) = %v %+v, want errors at %s", tt.settings, err, err.Fields, tt.pointers)
		}
	}
}

// A schema whose check would cost much is refused when it is used, and has not
// cost much by then.
func TestSchemaCheckIsBounded(t *testing.T) {
	var doubling strings.Builder
	doubling.WriteString(`{"$ref":"#/$defs/d0","$defs":{`)
	for i := range 60 {
		fmt.Fprintf(&doubling, `"d%d":{"allOf":[{"$ref":"#/$defs/d%d"},{"$ref":"#/$defs/d%d"}]},`, i, i+1, i+1)
	}
	doubling.WriteString(`"d60":{"type":"object"}}}`)

	for _, tt := range []struct{ name, schema, settings, keyword string }{
		{"doubling", doubling.String(), `{}`, "$ref"},
		{"doubling by depth", `{"allOf":[{"properties":{"a":{"$ref":"#"}}},{"properties":{"a":{"$ref":"#"}}}]}`,
			strings.Repeat(`{"a":`, 31) + `{}` + strings.Repeat(`}`, 31), "allOf"},
		{"a pattern over a long text", `{"additionalProperties":{"pattern":"^(?:a*c?){1000}(?:a*c?){1000}b$"}}`, `{"a":"` + strings.Repeat("a", 60_000) + `"}`, "pattern"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, p := CompileSchema([]byte(tt.schema))
			if p != nil {
				t.Fatal(p)
			}
			err := violation(s.compiled.Check(checkedAt, jsontext.Value(tt.settings), schema.Budget{Steps: maxCheckSteps}))
			if err == nil || err.Code != problem.SchemaViolation || err.Fix == "" || err.Fields[0].Detail != "takes too much work to check, most of it for "+tt.keyword {
				t.Errorf("Check = %v %v, want a SchemaViolation with a fix", err, err.Fields)
			}
			// A machine that does not get to it says so, and promises that nothing has happened.
			err = violation(s.compiled.Check(checkedAt, jsontext.Value(tt.settings), schema.Budget{Steps: maxCheckSteps, Expired: func() bool { return true }}))
			if err == nil || err.Code != problem.Unavailable || err.RetryAfter == 0 || err.Fix == "" {
				t.Errorf("Check = %v, want Unavailable", err)
			}
		})
	}
	// What does not take long is never out of time.
	s, p := CompileSchema([]byte(`{"properties":{"a":{"enum":["x"]}}}`))
	if p != nil {
		t.Fatal(p)
	}
	if err := violation(s.compiled.Check(checkedAt, jsontext.Value(`{"a":"x"}`), schema.Budget{Steps: maxCheckSteps, Expired: func() bool { return true }})); err != nil {
		t.Errorf("a short check: %v", err)
	}
}

// Schemas that were used last are kept, within a size in memory, whatever they
// look like.
func TestCompiledSchemasAreBounded(t *testing.T) {
	texts := map[string]func(i int) string{
		"text": func(i int) string { return fmt.Sprintf(`{"$comment":"%d %s"}`, i, strings.Repeat("x", 59<<10)) },
		"small schemas": func(i int) string {
			return fmt.Sprintf(`{"title":"%d","allOf":[%s{}]}`, i, strings.Repeat(`{"not":{}},`, 5300))
		},
		"a long name": func(i int) string {
			return fmt.Sprintf(`{"properties":{"%d%s":{"allOf":[%s{}]}}}`, i, strings.Repeat("n", 29<<10), strings.Repeat(`{"not":{}},`, 2700))
		},
		"large patterns": func(i int) string {
			return fmt.Sprintf(`{"title":"%d%s","pattern":"(?:a*c?){1000}(?:a*c?){1000}(?:a*c?){1000}"}`, i, strings.Repeat("x", 58<<10))
		},
		"values": func(i int) string { return fmt.Sprintf(`{"enum":[%d%s]}`, 100_000+i, numbers(8600)) },
	}
	for name, text := range texts {
		t.Run(name, func(t *testing.T) {
			heap := func() int {
				runtime.GC()
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return int(m.HeapAlloc)
			}
			cache := schemaCache{max: maxCompiledSize}
			before := heap()
			for i := range 50 {
				if len(text(i)) > MaxSchemaSize {
					t.Fatalf("%d bytes", len(text(i)))
				}
				if _, p := cache.compile([]byte(text(i))); p != nil {
					t.Fatal(p)
				}
			}
			grown := heap() - before
			t.Logf("%d KiB are kept of 50 schemas, %d of them", grown>>10, len(cache.byHash))
			if again, _ := cache.compile([]byte(text(49))); again != cache.get(sha256.Sum256([]byte(text(49)))) {
				t.Error("the last schema is not kept")
			}
			if grown > maxCompiledSize*3/2 || cache.size > maxCompiledSize {
				t.Errorf("%d KiB are kept of 50 schemas, said to be %d", grown>>10, cache.size>>10)
			}
		})
	}
}

func numbers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, ",%d", i)
	}
	return b.String()
}

// The schema that has not been used for the longest goes first, and one that
// is larger than all that may be kept does not push the others out.
func TestSchemaCacheForgetsTheOldest(t *testing.T) {
	compile := func(text string) *Schema {
		compiled, p := schema.Compile(jsontext.Value(text))
		if p != nil {
			t.Fatal(p)
		}
		return &Schema{compiled}
	}
	small, large := compile(`{"minimum":1}`), compile(`{"enum":[0`+numbers(5000)+`]}`)
	c := schemaCache{max: small.compiled.Size() * 3}
	hash := func(i byte) (h [32]byte) { h[0] = i; return h }
	for i := range byte(3) {
		c.put(hash(i), small)
	}
	c.get(hash(0))
	c.put(hash(0), small)
	c.put(hash(9), large)
	c.put(hash(3), small)
	for i, want := range map[byte]bool{0: true, 1: false, 2: true, 3: true, 9: false} {
		if got := c.get(hash(i)) != nil; got != want {
			t.Errorf("schema %d is kept: %v", i, got)
		}
	}
	if c.size != 3*small.compiled.Size() || c.used.Len() != 3 {
		t.Errorf("%d bytes of %d schemas", c.size, c.used.Len())
	}
}

// However many long checks a root has, they take turns, and what is quick to check
// waits for none of them.
func TestLongChecksTakeTurns(t *testing.T) {
	s, p := CompileSchema([]byte(`{"additionalProperties":{"pattern":"^(?:a*c?){1000}b$"}}`))
	if p != nil {
		t.Fatal(p)
	}
	long, short := jsontext.Value(`{"a":"`+strings.Repeat("a", 60_000)+`"}`), jsontext.Value(`{"a":"b"}`)
	for range max(1, runtime.GOMAXPROCS(0)-1) { // a root's turns
		if err := longChecks.Take(t.Context(), "busy"); err != nil {
			t.Fatal(err)
		}
		defer longChecks.Give("busy")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Check(ctx, "busy", long); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a long check that has no turn: %v", err)
	}
	if err := s.Check(t.Context(), "busy", short); err != nil {
		t.Errorf("a quick check: %v", err)
	}
	if err := s.Check(t.Context(), "other", long); !problem.Is(err, problem.SchemaViolation) {
		t.Errorf("a long check of another root: %v", err)
	}
}

func FuzzCompileSchema(f *testing.F) {
	f.Add([]byte(`{"type":"object","properties":{"a":{"$ref":"#/$defs/x"}},"$defs":{"x":{"enum":[1]}}}`), []byte(`{"a":1}`))
	f.Add([]byte(`{"$id":"https://json-schema.org/draft/2020-12/schema","unevaluatedItems":{"format":"regex"}}`), []byte(`{}`))
	f.Add([]byte(`{"$ref":"#"}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, text, settings []byte) {
		s, p := CompileSchema(text)
		if p != nil {
			if p.Code != problem.InvalidBody || len(p.Fields) == 0 {
				t.Fatalf("error %v %v", p, p.Fields)
			}
			return
		}
		v, p := CheckValues("", settings)
		if p != nil {
			return
		}
		if p := violation(s.compiled.Check(checkedAt, v, schema.Budget{Steps: maxCheckSteps})); p != nil && p.Code != problem.Unavailable && (p.Code != problem.SchemaViolation || len(p.Fields) == 0) {
			t.Fatalf("error %v %v", p, p.Fields)
		}
	})
}
