package client

import (
	"testing"
	"time"
)

func TestGuardForgets(t *testing.T) {
	g := NewGuard(New("http://127.0.0.1:1", ""), GuardOptions{MaxEntries: 3, TTL: time.Hour})
	if g.opts.TTL != maxGuardTTL {
		t.Errorf("TTL %v", g.opts.TTL)
	}
	until := time.Now().Add(time.Minute)
	for i := range 10 {
		k := guardKey{ip: string(rune('a' + i))}
		g.remember(k, guardEntry{&Verdict{Valid: true}, until})
		if g.remembered(k) == nil || len(g.entries) > 3 {
			t.Errorf("after %d: %d entries", i+1, len(g.entries))
		}
		g.remember(k, guardEntry{&Verdict{Valid: true}, until.Add(-time.Hour)})
		if g.remembered(k) != nil {
			t.Error("an entry outlives its time")
		}
	}
}
