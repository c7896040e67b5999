package settings

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/problem"
)

// sameJSON reports whether a and b differ at most in the order of members.
func sameJSON(a, b jsontext.Value) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	a, b = a.Clone(), b.Clone()
	opt := jsontext.ReorderRawObjects(true)
	return a.Format(opt) == nil && b.Format(opt) == nil && string(a) == string(b)
}

var names = rapid.SampledFrom([]string{"a", "b", "c", "x/y", "~", "", "é"})

// anyValue draws a JSON value with at most depth levels of nesting. Few names
// make members of different values meet.
func anyValue(depth int, null bool) *rapid.Generator[jsontext.Value] {
	return rapid.Custom(func(t *rapid.T) jsontext.Value {
		leaves := []string{`1`, `1.0`, `12345678901234567890.5`, `"s"`, `""`, `true`, `[]`, `[1,{"a":2}]`}
		if null {
			leaves = append(leaves, `null`)
		}
		if depth == 0 || rapid.Bool().Draw(t, "leaf") {
			return jsontext.Value(rapid.SampledFrom(leaves).Draw(t, "value"))
		}
		return anyObject(depth-1, null).Draw(t, "object")
	})
}

func anyObject(depth int, null bool) *rapid.Generator[jsontext.Value] {
	return rapid.Custom(func(t *rapid.T) jsontext.Value {
		o := newObject()
		for _, name := range rapid.SliceOfNDistinct(names, 0, 4, rapid.ID[string]).Draw(t, "names") {
			o.put(name, stored(anyValue(depth, null).Draw(t, "member")))
		}
		return o.value()
	})
}

// The examples of RFC 7396, appendix A, and what this implementation adds.
func TestMergePatch(t *testing.T) {
	for _, tt := range []struct{ target, patch, want string }{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`["a","b"]`, `["c","d"]`, `["c","d"]`},
		{`{"a":"b"}`, `["c"]`, `["c"]`},
		{`{"a":"foo"}`, `null`, `null`},
		{`{"a":"foo"}`, `"bar"`, `"bar"`},
		{`{"e":null}`, `{"a":1}`, `{"e":null,"a":1}`},
		{`[1,2]`, `{"a":"b","c":null}`, `{"a":"b"}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
		// Numbers keep their text, members their place.
		{`{"z": 1.0, "a": 12345678901234567890}`, `{"n": 1e2, "z": 1.00}`, `{"z":1.00,"a":12345678901234567890,"n":1e2}`},
	} {
		got, err := MergePatch(jsontext.Value(tt.target), jsontext.Value(tt.patch))
		if err != nil || string(got) != tt.want {
			t.Errorf("MergePatch(%s, %s) = %s, %v; want %s", tt.target, tt.patch, got, err, tt.want)
		}
	}
	if got, err := MergePatch(nil, jsontext.Value(`{"a":{"b":null}}`)); err != nil || string(got) != `{"a":{}}` {
		t.Errorf("MergePatch of nothing = %s, %v", got, err)
	}
	for _, bad := range []string{``, `{`, `{"a":1,"a":2}`, `{} {}`, `{"a":"\ud800"}`, "{\"a\":\"\xff\"}"} {
		if got, err := MergePatch(jsontext.Value(`{}`), jsontext.Value(bad)); err == nil {
			t.Errorf("MergePatch accepts the patch %q: %s", bad, got)
		}
	}
}

func TestMergePatchAgreesWithAnotherImplementation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		target := anyObject(3, false).Draw(t, "target")
		patch := anyObject(3, true).Draw(t, "patch")
		want, err := jsonpatch.MergePatch(target, patch)
		if err != nil {
			t.Fatal(err)
		}
		got, err := MergePatch(target, patch)
		if err != nil {
			t.Fatal(err)
		}
		if !sameJSON(got, want) {
			t.Fatalf("MergePatch(%s, %s) = %s, want %s", target, patch, got, want)
		}
	})
}

func FuzzMergePatch(f *testing.F) {
	f.Add([]byte(`{"a":{"b":1,"c":"x"}}`), []byte(`{"a":{"b":null,"d":[{}]}}`))
	f.Add([]byte(`[1]`), []byte(`{"\u0061":1e5}`))
	f.Fuzz(func(t *testing.T, target, patch []byte) {
		got, err := MergePatch(target, patch)
		if valid := jsontext.Value(target).IsValid() && jsontext.Value(patch).IsValid(); target != nil && valid != (err == nil) {
			t.Fatalf("valid: %v, error: %v", valid, err)
		}
		if err != nil {
			return
		}
		again, err := MergePatch(got, patch)
		if err != nil || string(again) != string(got) {
			t.Fatalf("applying %s again to %s gives %s, %v", patch, got, again, err)
		}
	})
}

func TestCheckValues(t *testing.T) {
	nested := func(n int) string { return strings.Repeat(`{"a":`, n) + `1` + strings.Repeat(`}`, n) }
	sized := func(n int) string { return `{"a":"` + strings.Repeat("x", n-len(`{"a":""}`)) + `"}` }
	for _, tt := range []struct {
		name, in string
		pointer  string // of the error; "ok" for none
		want     string
	}{
		{"empty", ` { } `, "ok", `{}`},
		{"compact", "{ \"a\" : [ 1.50 , null ] }", "ok", `{"a":[1.50,null]}`},
		{"shortest strings", `{"\u0061":"\u00e9\u0000"}`, "ok", "{\"a\":\"é\\u0000\"}"},
		{"deep", nested(32), "ok", nested(32)},
		{"too deep", nested(33), "/customizations" + strings.Repeat("/a", 32), ""},
		{"too deep in arrays", `{"a":` + strings.Repeat("[", 32) + strings.Repeat("]", 32) + `}`, "/customizations/a" + strings.Repeat("/0", 31), ""},
		{"large", sized(64 << 10), "ok", sized(64 << 10)},
		{"too large", sized(64<<10 + 1), "/customizations", ""},
		{"space does not count", "{" + strings.Repeat(" ", 70<<10) + "}", "ok", `{}`},
		{"largest double", `{"a":1.7976931348623157e308}`, "ok", `{"a":1.7976931348623157e308}`},
		{"infinite", `{"a":[0,1e309]}`, "/customizations/a/1", ""},
		{"huge exponent", `{"a":1e999999999}`, "/customizations/a", ""},
		{"tiny", `{"a":1e-400}`, "/customizations/a", ""},
		{"zero", `{"a":0e-999999999}`, "ok", `{"a":0e-999999999}`},
		{"control in a name", `{"a":{"b\u0007":1}}`, "/customizations/a", ""},
		{"array", `[]`, "/customizations", ""},
		{"null", `null`, "/customizations", ""},
		{"nothing", ``, "/customizations", ""},
		{"twice", `{"a":{"b":1,"b":2}}`, "/customizations/a/b", ""},
		{"lone surrogate", `{"a":"\ud800"}`, "/customizations/a", ""},
		{"bad UTF-8", "{\"a\":\"\xff\"}", "/customizations/a", ""},
		{"trailing data", `{} {}`, "/customizations", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := CheckValues("/customizations", jsontext.Value(tt.in))
			switch {
			case tt.pointer == "ok":
				if err != nil || string(got) != tt.want {
					t.Errorf("= %.100s, %v; want %.100s", got, err, tt.want)
				}
			case err == nil:
				t.Errorf("accepted: %.100s", got)
			case err.Code != problem.InvalidBody || err.Fields[0].Pointer != tt.pointer:
				t.Errorf("error %v at %q, want one at %q", err, err.Fields[0].Pointer, tt.pointer)
			}
		})
	}
}

func TestCheckLocks(t *testing.T) {
	got, err := CheckLocks("/locked", []string{"/b", "/a~1b/c", "/b", "/"})
	if err != nil || !slices.Equal(got, []string{"/", "/a~1b/c", "/b"}) {
		t.Errorf("CheckLocks = %q, %v", got, err)
	}
	for _, bad := range []string{"", "a", "/a~", "/a~2", "/\x00", "/\xff", "/" + strings.Repeat("a", 1024)} {
		if _, err := CheckLocks("/locked", []string{"/ok", bad}); err == nil || err.Fields[0].Pointer != "/locked/1" {
			t.Errorf("CheckLocks(%.20q) = %v, want an error at /locked/1", bad, err)
		}
	}
	var many []string
	for i := range 101 {
		many = append(many, fmt.Sprintf("/%d", i))
	}
	if _, err := CheckLocks("/locked", many); err == nil {
		t.Error("CheckLocks accepts 101 pointers")
	}
}

// path makes layers of values and locks, alternately, of the organizations
// o0, o1, ….
func path(valuesAndLocks ...string) []Layer {
	var layers []Layer
	for i := 0; i < len(valuesAndLocks); i += 2 {
		layers = append(layers, Layer{OrgID: fmt.Sprintf("o%d", i/2), Values: jsontext.Value(valuesAndLocks[i]),
			Locked: strings.Fields(valuesAndLocks[i+1])})
	}
	return layers
}

func TestEffective(t *testing.T) {
	for _, tt := range []struct {
		name    string
		layers  []Layer
		want    string
		sources map[string]string
	}{
		{"nothing", nil, `{}`, map[string]string{}},
		{"own", path(`{"a":1}`, ""), `{"a":1}`, map[string]string{"/a": "o0"}},
		{"objects merge", path(`{"a":{"b":1,"c":2}}`, "", `{"a":{"c":3,"d":4}}`, ""),
			`{"a":{"b":1,"c":3,"d":4}}`, map[string]string{"/a/b": "o0", "/a/c": "o1", "/a/d": "o1"}},
		{"arrays replace", path(`{"a":[1,2]}`, "", `{"a":[3]}`, ""), `{"a":[3]}`, map[string]string{"/a": "o1"}},
		{"an object replaces a value", path(`{"a":1}`, "", `{"a":{"b":1}}`, ""), `{"a":{"b":1}}`, map[string]string{"/a/b": "o1"}},
		{"a value replaces an object", path(`{"a":{"b":1}}`, "", `{"a":"x"}`, ""), `{"a":"x"}`, map[string]string{"/a": "o1"}},
		{"null is a value", path(`{"a":{"b":1}}`, "", `{"a":null}`, ""), `{"a":null}`, map[string]string{"/a": "o1"}},
		{"an empty string is a value", path(`{"a":"x"}`, "", `{"a":""}`, ""), `{"a":""}`, map[string]string{"/a": "o1"}},
		{"an empty object merges", path(`{"a":{"b":1}}`, "", `{"a":{}}`, ""), `{"a":{"b":1}}`, map[string]string{"/a/b": "o0"}},
		{"an empty object has a source", path(`{}`, "", `{"a":{}}`, "", `{}`, ""), `{"a":{}}`, map[string]string{"/a": "o1"}},
		{"names are escaped", path(`{"a/b":{"~":1}}`, ""), `{"a/b":{"~":1}}`, map[string]string{"/a~1b/~0": "o0"}},

		{"a lock keeps a value", path(`{"a":1,"b":1}`, "/a", `{"a":2,"b":2}`, ""), `{"a":1,"b":2}`, map[string]string{"/a": "o0", "/b": "o1"}},
		{"a lock keeps absence", path(`{}`, "/a", `{"a":2}`, ""), `{}`, map[string]string{}},
		{"a lock keeps a whole object", path(`{"a":{"b":1}}`, "/a", `{"a":{"c":2}}`, ""), `{"a":{"b":1}}`, map[string]string{"/a/b": "o0"}},
		{"nothing above a lock replaces it", path(`{"a":{"b":1}}`, "/a/b", `{"a":null}`, "", `{"a":[]}`, ""), `{"a":{"b":1}}`, map[string]string{"/a/b": "o0"}},
		{"beside a lock", path(`{"a":{"b":1}}`, "/a/b", `{"a":{"b":2,"c":3}}`, ""), `{"a":{"b":1,"c":3}}`, map[string]string{"/a/b": "o0", "/a/c": "o1"}},
		{"a lock binds its descendants only", path(`{"a":1}`, "", `{"a":2}`, "/a", `{"a":3}`, ""), `{"a":2}`, map[string]string{"/a": "o1"}},
		{"what a lock empties is not there", path(`{}`, "/a/b", `{"a":{"b":1}}`, ""), `{}`, map[string]string{}},
		{"grandchildren too", path(`{"a":1}`, "/a", `{}`, "", `{"a":3}`, ""), `{"a":1}`, map[string]string{"/a": "o0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Effective(tt.layers); string(got) != tt.want {
				t.Errorf("Effective = %s, want %s", got, tt.want)
			}
			got, sources, _ := Explain(tt.layers, 1<<20)
			if string(got) != tt.want || !maps.Equal(sources, tt.sources) {
				t.Errorf("Explain = %s, %v; want %s, %v", got, sources, tt.want, tt.sources)
			}
		})
	}
}

// lookup returns the value at a pointer through objects, nil if there is none.
func lookup(v jsontext.Value, pointer string) jsontext.Value {
	t := stored(v)
	for token := range jsontext.Pointer(pointer).Tokens() {
		t = t.get(token)
	}
	return t.value()
}

var somePointers = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
	var p jsontext.Pointer
	for _, name := range rapid.SliceOfN(names, 1, 3).Draw(t, "pointer") {
		p = p.AppendToken(name)
	}
	return string(p)
}), 0, 3)

func somePath(t *rapid.T) []Layer {
	var layers []Layer
	for i := range rapid.IntRange(1, 4).Draw(t, "layers") {
		layers = append(layers, Layer{OrgID: fmt.Sprintf("o%d", i), Values: anyObject(2, true).Draw(t, "values"),
			Locked: somePointers.Draw(t, "locked")})
	}
	return layers
}

func TestEffectiveProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		layers := somePath(t)
		result, sources, _ := Explain(layers, 1<<20)
		for i, layer := range layers {
			above := Effective(layers[:i+1])
			for _, lock := range layer.Locked {
				if was, is := lookup(above, lock), lookup(result, lock); !sameJSON(was, is) {
					t.Fatalf("%s, locked by %s, was %s there and is %s at the end", lock, layer.OrgID, was, is)
				}
			}
		}
		for pointer, id := range sources {
			i := slices.IndexFunc(layers, func(l Layer) bool { return l.OrgID == id })
			if own, is := lookup(layers[i].Values, pointer), lookup(result, pointer); !sameJSON(own, is) {
				t.Fatalf("%s is %s and said to come from %s, which has %s", pointer, is, id, own)
			}
		}
		if changes := Diff("", jsontext.Value(`{}`), result); len(changes) > 0 && len(sources) == 0 {
			t.Fatalf("%s has no sources", result)
		}
	})
}

func TestCheckLocked(t *testing.T) {
	for _, tt := range []struct {
		name          string
		ancestors     []Layer
		before, after string
		pointer       string // of the error; empty for none
		owner         string
	}{
		{"no locks", path(`{"a":1}`, ""), `{}`, `{"a":2}`, "", ""},
		{"another setting", path(`{}`, "/a"), `{}`, `{"b":2}`, "", ""},
		{"set", path(`{}`, "/a"), `{}`, `{"a":2}`, "/a", "o0"},
		{"set to the inherited value", path(`{"a":2}`, "/a"), `{}`, `{"a":2}`, "/a", "o0"},
		{"set to null", path(`{}`, "/a"), `{}`, `{"a":null}`, "/a", "o0"},
		{"set to an empty object", path(`{}`, "/a"), `{}`, `{"a":{}}`, "/a", "o0"},
		{"alter", path(`{}`, "/a"), `{"a":1}`, `{"a":2}`, "/a", "o0"},
		{"leave", path(`{}`, "/a"), `{"a":1,"b":1}`, `{"b":2,"a":1}`, "", ""},
		{"remove", path(`{}`, "/a"), `{"a":1}`, `{}`, "", ""},
		{"under", path(`{}`, "/a"), `{}`, `{"a":{"b":1}}`, "/a", "o0"},
		{"alter under", path(`{}`, "/a"), `{"a":{"b":1,"c":1}}`, `{"a":{"b":1,"c":2}}`, "/a/c", "o0"},
		{"add under", path(`{}`, "/a"), `{"a":{"b":1}}`, `{"a":{"b":1,"c":2}}`, "/a/c", "o0"},
		{"remove under", path(`{}`, "/a"), `{"a":{"b":1,"c":1}}`, `{"a":{"b":1}}`, "", ""},
		{"remove all under", path(`{}`, "/a"), `{"a":{"b":1}}`, `{"a":{}}`, "", ""},
		{"above", path(`{}`, "/a/b"), `{}`, `{"a":"x"}`, "/a", "o0"},
		{"leave above", path(`{}`, "/a/b"), `{"a":"x"}`, `{"a":"x"}`, "", ""},
		{"an object above", path(`{}`, "/a/b"), `{"a":"x"}`, `{"a":{"c":1}}`, "", ""},
		{"in an object above", path(`{}`, "/a/b"), `{"a":{"c":1}}`, `{"a":{"c":1,"b":2}}`, "/a/b", "o0"},
		{"the nearer ancestor's lock", path(`{}`, "/a", `{}`, "/b"), `{}`, `{"b":1}`, "/b", "o1"},
		{"the highest owner", path(`{}`, "/a", `{}`, "/a"), `{}`, `{"a":1}`, "/a", "o0"},
		{"escaped", path(`{}`, "/x~1y/~0"), `{}`, `{"x/y":{"~":1}}`, "/x~1y/~0", "o0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := CheckLocked(tt.ancestors, jsontext.Value(tt.before), jsontext.Value(tt.after))
			if tt.pointer == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if err == nil {
				t.Fatal("accepted")
			}
			if err.Code != problem.SettingLocked || err.Extra["locked_by"] != tt.owner || err.Fields[0].Pointer != "/customizations"+tt.pointer ||
				!strings.Contains(err.Detail, tt.owner) || !strings.Contains(err.Detail, err.Extra["lock"].(string)) {
				t.Errorf("error %v with %v at %v; want one at %s by %s", err, err.Extra, err.Fields, tt.pointer, tt.owner)
			}
		})
	}
}

// Locks that let a new organization's settings pass leave all of them in
// effect, and the other way round: what is in effect without exception passes.
func TestCheckLockedAgreesWithEffective(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		layers := somePath(t)
		own := layers[len(layers)-1]
		ancestors := layers[:len(layers)-1]
		refused := CheckLocked(ancestors, jsontext.Value(`{}`), own.Values) != nil
		_, sources, _ := Explain(layers, 1<<20)
		var overruled bool
		var walk func(pointer string, v *tree)
		walk = func(pointer string, v *tree) {
			if len(v.members) > 0 {
				for _, name := range v.names {
					walk(pointer+"/"+escapePointer(name), v.members[name])
				}
			} else if id, ok := sources[pointer]; v.isObject() && pointer != "" {
				// An empty object merges into one with members, and has no source then.
				overruled = overruled || !stored(lookupOr(Effective(layers), pointer)).isObject()
			} else if pointer != "" {
				overruled = overruled || !ok || id != own.OrgID
			}
		}
		walk("", stored(own.Values))
		if overruled && !refused {
			t.Fatalf("%s passes below %v but is not all in effect: %v", own.Values, ancestors, sources)
		}
	})
}

func lookupOr(v jsontext.Value, pointer string) jsontext.Value {
	if found := lookup(v, pointer); found != nil {
		return found
	}
	return jsontext.Value("null")
}

func TestDiff(t *testing.T) {
	// What an entry of the audit log shows of changes.
	type change struct {
		Pointer string         `json:"pointer"`
		Old     jsontext.Value `json:"old,omitzero"`
		New     jsontext.Value `json:"new,omitzero"`
	}
	marshal := func(changes []Change) ([]byte, error) {
		var shown []change
		for _, c := range changes {
			shown = append(shown, change(c))
		}
		return json.Marshal(shown)
	}
	for _, tt := range []struct{ old, new, want string }{
		{`{}`, `{}`, `[]`},
		{`{"a":1,"b":{"c":2,"d":3}}`, `{"b":{"d":3,"c":2},"a":1}`, `[]`},
		{`{"a":[{"x":1,"y":2}]}`, `{"a":[{"y":2,"x":1}]}`, `[]`},
		{`{"a":1}`, `{"a":2}`, `[{"pointer":"/p/a","old":1,"new":2}]`},
		{`{"a":1}`, `{"a":1.0}`, `[{"pointer":"/p/a","old":1,"new":1.0}]`},
		{`{"a":1}`, `{}`, `[{"pointer":"/p/a","old":1}]`},
		{`{}`, `{"a":{"b":1}}`, `[{"pointer":"/p/a","new":{"b":1}}]`},
		{`{"a":null}`, `{}`, `[{"pointer":"/p/a","old":null}]`},
		{`{"a":{"b":1}}`, `{"a":"x"}`, `[{"pointer":"/p/a","old":{"b":1},"new":"x"}]`},
		{`{"b":{"z":1,"~/":2},"a":0}`, `{"b":{"z":2,"~/":3},"c":0}`,
			`[{"pointer":"/p/a","old":0},{"pointer":"/p/b/z","old":1,"new":2},{"pointer":"/p/b/~0~1","old":2,"new":3},{"pointer":"/p/c","new":0}]`},
	} {
		got, err := marshal(Diff("/p", jsontext.Value(tt.old), jsontext.Value(tt.new)))
		if err != nil || string(got) != tt.want {
			t.Errorf("Diff(%s, %s) =\n%s, %v; want\n%s", tt.old, tt.new, got, err, tt.want)
		}
	}
	if got, err := marshal(Diff("", nil, jsontext.Value(`{}`))); err != nil || string(got) != `[{"pointer":"","new":{}}]` {
		t.Errorf("Diff of nothing and {} = %s, %v", got, err)
	}
}

func TestApplyReproducesDiff(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old := anyObject(3, true).Draw(t, "old")
		new := anyObject(3, true).Draw(t, "new")
		changes := Diff("", old, new)
		got, err := Apply(changes, old)
		if err != nil || !sameJSON(got, new) {
			t.Fatalf("Apply(%v, %s) = %s, %v; want %s", changes, old, got, err, new)
		}
		if sameJSON(old, new) != (len(changes) == 0) {
			t.Fatalf("Diff(%s, %s) = %v", old, new, changes)
		}
		for i, c := range changes {
			rest := slices.Delete(slices.Clone(changes), i, i+1)
			if without, err := Apply(rest, old); err != nil || sameJSON(without, new) {
				t.Fatalf("the change %v is not needed, or %v", c, err)
			}
		}
	})
}

func TestApply(t *testing.T) {
	v := func(s string) jsontext.Value {
		if s == "" {
			return nil
		}
		return jsontext.Value(s)
	}
	for _, tt := range []struct {
		name, value, pointer, old, new string
		want                           string
		ok                             bool
	}{
		{"make objects on the way", `{}`, "/a/b", "", `1`, `{"a":{"b":1}}`, true},
		{"replace all", `{"a":1}`, "", `{"a":1}`, `[]`, `[]`, true},
		{"start", "", "/a", "", `1`, `{"a":1}`, true},
		{"another old value", `{"a":1}`, "/a", `2`, `3`, "", false},
		{"a value that should be absent", `{"a":1}`, "/a", "", `3`, "", false},
		{"an absent value", `{}`, "/a/b", `1`, "", "", false},
		{"inside an array", `{"a":[1]}`, "/a/0", `1`, `2`, "", false},
		{"not a pointer", `{}`, "a", "", `1`, "", false},
		{"malformed", `{}`, "/a", "", `{`, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Apply([]Change{{Pointer: tt.pointer, Old: v(tt.old), New: v(tt.new)}}, v(tt.value))
			if (err == nil) != tt.ok || string(got) != tt.want {
				t.Errorf("= %s, %v; want %s, ok %v", got, err, tt.want, tt.ok)
			}
		})
	}
}

// An answer that says where each value comes from is bounded, whatever its
// pointers are: a few settings below long names have pointers without end.
func TestExplainIsBounded(t *testing.T) {
	long := strings.Repeat("n", 1000)
	deep := strings.Repeat(`{"`+long+`":`, 30) + "{"
	var members []string
	for n := range 3000 {
		members = append(members, fmt.Sprintf(`"m%d":0`, n))
	}
	deep += strings.Join(members, ",") + strings.Repeat("}", 31)
	values, p := CheckValues("", jsontext.Value(deep))
	if p != nil {
		t.Fatal(p)
	}
	var wide []string
	for n := range 5000 {
		wide = append(wide, fmt.Sprintf(`"m%d":0`, n))
	}
	many := jsontext.Value("{" + strings.Join(wide, ",") + "}")
	for name, tt := range map[string]struct {
		layers []Layer
		whole  bool
	}{
		"one below long names":  {[]Layer{{OrgID: "r", Values: values}}, false},
		"many below long names": {slices.Repeat([]Layer{{OrgID: "r", Values: values}}, 32), false},
		"many members":          {slices.Repeat([]Layer{{OrgID: "r", Values: many}}, 32), true},
	} {
		result, sources, whole := Explain(tt.layers, MaxSources)
		if whole != tt.whole || whole && len(sources) != len(wide) || !whole && (result != nil || sources != nil) {
			t.Errorf("%s: whole %t, %d sources", name, whole, len(sources))
		}
	}
}
