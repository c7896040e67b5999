package settings

import (
	"reflect"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/problem"
)

// What is checked against what an organization hands down is checked as if all
// that is above it were merged again.
func TestInheritedAgreesWithCheck(t *testing.T) {
	texts := []string{``, `{}`, `{"required":["a"]}`, `{"properties":{"a":{"type":"object"},"b":{"type":"number"}}}`, `{"additionalProperties":{"not":{"type":"null"}}}`}
	rapid.Check(t, func(t *rapid.T) {
		layers := somePath(t)
		above, own := layers[:len(layers)-1], layers[len(layers)-1]
		var text []byte
		var schema *Schema
		if s := rapid.SampledFrom(texts).Draw(t, "schema"); s != "" {
			text = []byte(s)
			var p *problem.Error
			if schema, p = CompileSchema(text); p != nil {
				t.Fatal(p)
			}
		}
		in := Inherit(layers[0].OrgID, schema)
		for _, layer := range above {
			in = in.Below(layer)
		}
		_, want := Check(t.Context(), above, own, jsontext.Value("{}"), text)
		if got := in.Check(t.Context(), own); !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v below %+v: %v, want %v", own, above, got, want)
		}
	})
}

// Handing down costs what has to be merged: without a schema only the locks are
// looked at.
func TestInheritedCost(t *testing.T) {
	root := Layer{OrgID: "r", Values: jsontext.Value(`{"a":1}`), Locked: []string{"/a", "/bc"}}
	schema, p := CompileSchema([]byte(`{}`))
	if p != nil {
		t.Fatal(p)
	}
	for _, tt := range []struct {
		name string
		in   *Inherited
		want int
	}{
		{"nothing", &Inherited{}, 0},
		{"locks", Inherit("r", nil).Below(root), len("/a/bc")},
		{"locks, what is in effect and the own values", Inherit("r", schema).Below(root), len("/a/bc" + `{"a":1}` + `{"b":2}`)},
	} {
		if got := tt.in.Cost(jsontext.Value(`{"b":2}`)); got != tt.want {
			t.Errorf("%s: %d bytes, want %d", tt.name, got, tt.want)
		}
	}
}
