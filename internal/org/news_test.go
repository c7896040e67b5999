package org_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/org"
)

// heard reports whether a listener has news, and takes note of it.
func heard(l *org.Listener) bool {
	select {
	case <-l.Heard():
		return true
	default:
		return false
	}
}

// Every listener hears of its root, or of all, once for however much was told, and
// nobody waits for one that does not listen.
func TestNewsReachEveryListener(t *testing.T) {
	n := org.NewNews(nil)
	n.Tell("a") // before anybody listens
	one, other, b, all := n.Listen("a"), n.Listen("a"), n.Listen("b"), n.Listen("")
	defer all.Close()
	for range 3 {
		n.Tell("a", "c")
	}
	if !heard(one) || !heard(other) || !heard(all) || heard(b) {
		t.Error("news of a reach others than its two listeners and the one to all")
	}
	if heard(one) || heard(all) {
		t.Error("news are heard twice")
	}
	roots, more := all.Take()
	if slices.Sort(roots); !slices.Equal(roots, []string{"a", "c"}) || more {
		t.Errorf("the roots with news are %v, more: %v", roots, more)
	}
	if roots, more := all.Take(); len(roots) > 0 || more {
		t.Errorf("after that they are %v, more: %v", roots, more)
	}
	all.Put(roots, more)
	if back, _ := all.Take(); !heard(all) || len(back) != 2 {
		t.Errorf("what was given back is %v", back)
	}
	one.Close()
	one.Close()
	b.Close()
	n.Tell("a", "b")
	n.Tell()
	if heard(one) || heard(b) || !heard(other) || !heard(all) {
		t.Error("news reach listeners that were closed, or not the others")
	}
	other.Close()
}

// A listener to all remembers so many roots, and that there are more.
func TestNewsAreBounded(t *testing.T) {
	n := org.NewNews(nil)
	l := n.Listen("")
	defer l.Close()
	for i := range 20_000 {
		n.Tell(fmt.Sprint("r", i))
	}
	roots, more := l.Take()
	if len(roots) != 10_000 || !more {
		t.Errorf("%d roots are remembered, more: %v", len(roots), more)
	}
	n.Tell("r1")
	if roots, more := l.Take(); len(roots) != 1 || more {
		t.Errorf("%d roots are remembered after that, more: %v", len(roots), more)
	}
}

type brokenSink struct{ access.Sink }

func (brokenSink) Flush(context.Context, access.Batch) error { return errors.New("no answer") }

// News are told of the roots whose events a sink is given, also if it is not known
// whether they are stored: whoever hears of them looks.
func TestNewsOfStoredEvents(t *testing.T) {
	n := org.NewNews(nil)
	l := n.Listen("")
	defer l.Close()
	err := n.Sink(brokenSink{}).Flush(t.Context(), access.Batch{Events: []access.Event{{RootID: "b"}, {RootID: "a"}, {RootID: "b"}}})
	roots, _ := l.Take()
	if slices.Sort(roots); err == nil || !slices.Equal(roots, []string{"a", "b"}) {
		t.Errorf("%v, and the roots with news are %v", err, roots)
	}
}
