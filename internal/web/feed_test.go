package web

import (
	"testing"

	"github.com/orgd/orgd/internal/problem"
)

func TestFeedsAreCounted(t *testing.T) {
	var f feeds
	for n := range maxFeeds {
		if err := f.enter(string(rune('a' + n%(maxFeeds/maxFeedsPerKey)))); err != nil {
			t.Fatalf("feed %d: %v", n, err)
		}
	}
	if err := f.enter("a"); !problem.Is(err, problem.RateLimited) {
		t.Errorf("one more of a key: %v", err)
	}
	if err := f.enter("other"); !problem.Is(err, problem.Unavailable) {
		t.Errorf("one more of all: %v", err)
	}
	f.leave("a")
	if err := f.enter("other"); err != nil {
		t.Errorf("with room again: %v", err)
	}
}
