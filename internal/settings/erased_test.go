package settings

import (
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"
)

// The mark of an erased value stands in the place of any value, and where it
// stands nothing else is known.
func TestErased(t *testing.T) {
	mark, err := json.Marshal(ErasedText)
	if err != nil || !IsErased(mark) || IsErased(nil) || IsErased(jsontext.Value(`"erased"`)) {
		t.Fatalf("the mark is %s, %v", mark, err)
	}
	for _, tt := range []struct {
		marked, without string
		erased          []string
		equal, differs  []string
	}{
		{`{"a":1}`, `{"a":1}`, nil, []string{`{"a":1}`}, []string{`{"a":2}`, `{}`, `{"a":1,"b":1}`, `{`}},
		{`{"a":{"b~":E,"c":1}}`, `{"a":{"c":1}}`, []string{"/p/a/b~0"},
			[]string{`{"a":{"b~":{"x":1},"c":1}}`, `{"a":{"c":1}}`}, []string{`{"a":{"b~":1}}`, `{"a":1}`, `{"a":{"c":1,"d":1}}`}},
		{`E`, `{}`, []string{"/p"}, []string{`{}`, `{"a":1}`}, []string{`{`}},
	} {
		v := jsontext.Value(strings.ReplaceAll(tt.marked, "E", string(mark)))
		if got := Erased("/p", v); !slices.Equal(got, tt.erased) {
			t.Errorf("%s has the erased values %q, want %q", v, got, tt.erased)
		}
		if got := WithoutErased(v); string(got) != tt.without {
			t.Errorf("%s without what is erased is %s, want %s", v, got, tt.without)
		}
		for _, other := range tt.equal {
			if !EqualButErased(v, jsontext.Value(other)) {
				t.Errorf("%s is not %s", v, other)
			}
		}
		for _, other := range tt.differs {
			if EqualButErased(v, jsontext.Value(other)) {
				t.Errorf("%s is %s", v, other)
			}
		}
	}
}

// Where nothing is missing between changes, their new values alone tell what
// became of the settings.
func TestReplayIsApply(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := jsontext.Value("{}")
		var all []Change
		for range rapid.IntRange(0, 4).Draw(t, "changes") {
			next := anyObject(3, true).Draw(t, "next")
			all = append(all, Diff("", v, next)...)
			v = next
		}
		got, err := Replay(all)
		if err != nil || !sameJSON(got, v) {
			t.Fatalf("Replay(%v) = %s, %v; want %s", all, got, err, v)
		}
	})
}

// A change inside of a value that has been erased leaves it erased; one of all of
// it does not.
func TestReplayKeepsWhatIsErased(t *testing.T) {
	mark := jsontext.Value(erasedValue)
	got, err := Replay([]Change{{Pointer: "/a", New: mark}, {Pointer: "/a/b", New: jsontext.Value("1")},
		{Pointer: "/c", New: mark}, {Pointer: "/c", New: jsontext.Value("2")}, {Pointer: "/d", New: mark}, {Pointer: "/d"}})
	if want := `{"a":` + erasedValue + `,"c":2}`; err != nil || string(got) != want {
		t.Errorf("= %s, %v; want %s", got, err, want)
	}
	if _, err := Replay([]Change{{Pointer: "/a", New: jsontext.Value("{")}}); err == nil {
		t.Error("malformed values are accepted")
	}
}
