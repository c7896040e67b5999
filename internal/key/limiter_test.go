package key

import (
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestLimiter(t *testing.T) {
	l, now := NewLimiter(), grantNow
	rl := RateLimit{Requests: 3, PeriodSeconds: 30} // one token in 10 seconds
	for _, tt := range []struct {
		after      time.Duration
		key        string
		limit      RateLimit
		ok         bool
		remaining  int
		reset      time.Duration
		retryAfter time.Duration
	}{
		{0, "a", rl, true, 2, 10 * time.Second, 0},
		{0, "a", rl, true, 1, 20 * time.Second, 0},
		{0, "a", rl, true, 0, 30 * time.Second, 0},
		{0, "a", rl, false, 0, 30 * time.Second, 10 * time.Second},
		{0, "b", rl, true, 2, 10 * time.Second, 0}, // a key of its own
		{4 * time.Second, "a", rl, false, 0, 26 * time.Second, 6 * time.Second},
		{6 * time.Second, "a", rl, true, 0, 30 * time.Second, 0},
		{time.Hour, "a", rl, true, 2, 10 * time.Second, 0},                       // never fuller than full
		{0, "a", RateLimit{1, 30}, true, 0, 30 * time.Second, 0},                 // a smaller bucket holds less
		{0, "a", RateLimit{1, 30}, false, 0, 30 * time.Second, 30 * time.Second}, //
		{0, "a", RateLimit{30, 30}, false, 0, 30 * time.Second, time.Second},     // a larger one fills faster
		{time.Second, "a", RateLimit{30, 30}, true, 0, 30 * time.Second, 0},
	} {
		now = now.Add(tt.after)
		ok, remaining, reset, retryAfter := l.Allow(tt.key, tt.limit, now)
		got := fmt.Sprint(ok, remaining, reset, retryAfter)
		if want := fmt.Sprint(tt.ok, tt.remaining, tt.reset, tt.retryAfter); got != want {
			t.Errorf("at %s, key %s, %v: %s, want %s", now.Format(time.TimeOnly), tt.key, tt.limit, got, want)
		}
	}
}

// In no stretch of time does a key get more than a bucketful and what flows in
// meanwhile, and a caller who waits for as long as it is told is let through.
func TestLimiterKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, now := NewLimiter(), grantNow
		rl := RateLimit{rapid.IntRange(1, 1000).Draw(t, "requests"), rapid.IntRange(1, 86400).Draw(t, "period")}
		allowed := 0
		for range rapid.IntRange(1, 50).Draw(t, "calls") {
			ok, remaining, reset, retryAfter := l.Allow("a", rl, now)
			if ok {
				allowed++
			}
			if remaining < 0 || remaining >= rl.Requests || reset < 0 || ok != (retryAfter == 0) {
				t.Fatalf("ok %t, remaining %d, reset %s, retry after %s", ok, remaining, reset, retryAfter)
			}
			if !ok {
				now = now.Add(retryAfter)
				if ok, _, _, _ := l.Allow("a", rl, now); !ok {
					t.Fatalf("refused after waiting for %s", retryAfter)
				}
				allowed++
			}
			if most := float64(rl.Requests) + now.Sub(grantNow).Seconds()*float64(rl.Requests)/float64(rl.PeriodSeconds); float64(allowed) > most+1e-6 {
				t.Fatalf("%d requests in %s, at most %f are allowed", allowed, now.Sub(grantNow), most)
			}
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(rl.PeriodSeconds)*1e9/int64(rl.Requests)).Draw(t, "pause")))
		}
	})
}

func (l *Limiter) size() (n int) {
	for i := range l.shards {
		n += len(l.shards[i].buckets)
	}
	return n
}

func TestLimiterMemoryIsBounded(t *testing.T) {
	t.Run("idle keys are dropped", func(t *testing.T) {
		l, now := NewLimiter(), grantNow
		for i := range 100_000 {
			now = now.Add(time.Millisecond)
			l.Allow(strconv.Itoa(i), RateLimit{1, 1}, now) // full again after 1,000 others
		}
		if n := l.size(); n > 10_000 {
			t.Errorf("%d buckets for 1,000 keys in use", n)
		}
	})
	t.Run("a key in use keeps its count", func(t *testing.T) {
		l := NewLimiter()
		l.Allow("a", RateLimit{1, 3600}, grantNow)
		for i := range 100_000 {
			l.Allow(strconv.Itoa(i), RateLimit{1, 1}, grantNow.Add(time.Duration(i)*time.Millisecond))
		}
		if ok, _, _, _ := l.Allow("a", RateLimit{1, 3600}, grantNow.Add(100*time.Second)); ok {
			t.Error("a bucket that was not full was dropped")
		}
	})
	t.Run("too many keys at once", func(t *testing.T) {
		l := NewLimiter()
		for i := range 2 * limiterShards * maxShardBuckets {
			l.Allow(strconv.Itoa(i), RateLimit{1, 86400}, grantNow)
		}
		if n := l.size(); n > limiterShards*maxShardBuckets {
			t.Errorf("%d buckets", n)
		}
	})
}

func TestLimiterIsConcurrent(t *testing.T) {
	l := NewLimiter()
	var allowed atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				if ok, _, _, _ := l.Allow("a", RateLimit{100, 86400}, grantNow); ok {
					allowed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := allowed.Load(); n != 100 {
		t.Errorf("%d of 100 requests were let through", n)
	}
}

func BenchmarkLimiter(b *testing.B) {
	l := NewLimiter()
	rl := RateLimit{1000, 60}
	ids := make([]string, 1000)
	for i := range ids {
		ids[i] = "key_" + strconv.Itoa(i)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			l.Allow(ids[i%len(ids)], rl, grantNow)
		}
	})
}
