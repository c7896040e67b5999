package tree

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/settings"
)

// A change whose basis never stays is given up after some attempts.
func TestSettledGivesUp(t *testing.T) {
	s := Service{orgs: &org.Service{}}
	attempts := 0
	err := s.settled(t.Context(), func() string { return "r" }, func() error { attempts++; return errBasisChanged })
	if !problem.Is(err, problem.Unavailable) || problem.From(err).RetryAfter == 0 || attempts != 1+maxAttempts {
		t.Errorf("%v after %d attempts", err, attempts)
	}
	attempts = 0
	err = s.settled(t.Context(), func() string { return "r" }, func() error {
		if attempts++; attempts < 3 {
			return errBasisChanged
		}
		return nil
	})
	if err != nil || attempts != 3 {
		t.Errorf("%v after %d attempts", err, attempts)
	}
	refused := problem.New(problem.Conflict, "no")
	if err := s.settled(t.Context(), func() string { return "r" }, func() error { return refused }); !errors.Is(err, refused) {
		t.Errorf("another error: %v", err)
	}
}

// Comparing settings costs what they are long, however long the pointers into
// them are.
func TestDiffIsBounded(t *testing.T) {
	long := strings.Repeat("n", 30_000)
	object := func(value int) jsontext.Value {
		var b strings.Builder
		fmt.Fprintf(&b, `{"%s":{"m":0`, long)
		for i := range 3000 {
			fmt.Fprintf(&b, `,"%d":%d`, i, value)
		}
		return jsontext.Value(b.String() + `}}`)
	}
	locked := []settings.Layer{{OrgID: "r", Values: jsontext.Value(`{}`), Locked: []string{"/a"}}}
	below := func(v jsontext.Value) jsontext.Value { return jsontext.Value(`{"a":` + string(v) + `}`) }
	for name, f := range map[string]func(){
		"equal":         func() { org.SettingsDiff(object(1), object(1)) },
		"all different": func() { org.SettingsDiff(object(1), object(2)) },
		"new":           func() { org.SettingsDiff(jsontext.Value("{}"), object(1)) },
		"below a lock":  func() { settings.CheckLocked(locked, below(object(1)), below(object(1))) },
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		if bytes := after.TotalAlloc - before.TotalAlloc; bytes > 8<<20 {
			t.Errorf("%s: %d MiB are allocated", name, bytes>>20)
		}
	}
	if changes := org.SettingsDiff(object(1), object(2)); len(changes) != 1 || changes[0].Pointer != "/customizations" {
		t.Errorf("%d changes", len(changes))
	}
}
