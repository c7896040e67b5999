package org

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/problem"
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
		{"a dangling reference", `{"$ref":"#/$defs/none"}`, ""},
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
			case strings.Contains(fmt.Sprint(err, err.Fields), schemaURL):
				t.Errorf("the error shows an address that the caller did not write: %v %v", err, err.Fields)
			}
		})
	}
}

func TestSchemaCheck(t *testing.T) {
	const schema = `{
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
	s, p := CompileSchema([]byte(schema))
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
		err := s.Check(jsontext.Value(tt.settings))
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

// A schema whose references double at every level, or that compares many
// values with many, is refused when it is used and not before it has cost
// much.
func TestSchemaCheckIsBounded(t *testing.T) {
	var doubling strings.Builder
	doubling.WriteString(`{"$ref":"#/$defs/d0","$defs":{`)
	for i := range 60 {
		fmt.Fprintf(&doubling, `"d%d":{"allOf":[{"$ref":"#/$defs/d%d"},{"$ref":"#/$defs/d%d"}]},`, i, i+1, i+1)
	}
	doubling.WriteString(`"d60":{"type":"object"}}}`)

	long := strings.TrimSuffix(strings.Repeat("1,", 10000), ",")
	var enum strings.Builder
	for i := range 10000 {
		fmt.Fprintf(&enum, ",%d", i+2)
	}
	for _, tt := range []struct{ name, schema, settings string }{
		{"doubling", doubling.String(), `{}`},
		{"doubling by depth", `{"allOf":[{"properties":{"a":{"$ref":"#"}}},{"properties":{"a":{"$ref":"#"}}}]}`,
			strings.Repeat(`{"a":`, 31) + `{}` + strings.Repeat(`}`, 31)},
		{"many with many", `{"additionalProperties":{"items":{"enum":[` + enum.String()[1:] + `]}}}`, `{"a":[` + long + `]}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, p := CompileSchema([]byte(tt.schema))
			if p != nil {
				t.Fatal(p)
			}
			if err := s.Check(jsontext.Value(tt.settings)); err == nil || err.Code != problem.SchemaViolation || err.Fix == "" {
				t.Errorf("Check = %v, want a SchemaViolation with a fix", err)
			}
			if err := s.Check(jsontext.Value(`{"a":null}`)); tt.name == "many with many" && err != nil {
				t.Errorf("small settings are refused: %v", err)
			}
		})
	}
}

func TestCompileSchemaRemembers(t *testing.T) {
	text := func(i int) []byte { return []byte(fmt.Sprintf(`{"$comment":"%d %s"}`, i, strings.Repeat("x", 60<<10))) }
	first, err := CompileSchema(text(0))
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := CompileSchema(text(0)); again != first {
		t.Error("the same schema is compiled twice in a row")
	}
	for i := range 50 {
		if _, err := CompileSchema(text(i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(compiledSchemas.byHash); n > maxCompiledSize/(60<<10) {
		t.Errorf("%d schemas are kept", n)
	}
}

func FuzzCompileSchema(f *testing.F) {
	f.Add([]byte(`{"type":"object","properties":{"a":{"$ref":"#/$defs/x"}},"$defs":{"x":{"enum":[1]}}}`), []byte(`{"a":1}`))
	f.Add([]byte(`{"$id":"https://json-schema.org/draft/2020-12/schema","unevaluatedItems":{"format":"regex"}}`), []byte(`{}`))
	f.Add([]byte(`{"$ref":"#"}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, schema, settings []byte) {
		s, p := CompileSchema(schema)
		if p != nil {
			if p.Code != problem.InvalidBody || len(p.Fields) == 0 {
				t.Fatalf("error %v %v", p, p.Fields)
			}
			return
		}
		v, p := CheckSettings("", settings)
		if p != nil {
			return
		}
		if p := s.Check(v); p != nil && (p.Code != problem.SchemaViolation || len(p.Fields) == 0) {
			t.Fatalf("error %v %v", p, p.Fields)
		}
	})
}
