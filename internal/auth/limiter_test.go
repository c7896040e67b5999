package auth

import (
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/key"
)

func TestLimiter(t *testing.T) {
	l, now := NewLimiter(time.Time{}, one), grantNow
	rl := key.RateLimit{Requests: 3, PeriodSeconds: 30} // one token in 10 seconds
	for _, tt := range []struct {
		after      time.Duration
		key        string
		limit      key.RateLimit
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
		{time.Hour, "a", rl, true, 2, 10 * time.Second, 0},                                                    // never fuller than full
		{0, "a", key.RateLimit{Requests: 1, PeriodSeconds: 30}, true, 0, 30 * time.Second, 0},                 // a smaller bucket holds less
		{0, "a", key.RateLimit{Requests: 1, PeriodSeconds: 30}, false, 0, 30 * time.Second, 30 * time.Second}, //
		{0, "a", key.RateLimit{Requests: 30, PeriodSeconds: 30}, false, 0, 30 * time.Second, time.Second},     // a larger one fills faster
		{time.Second, "a", key.RateLimit{Requests: 30, PeriodSeconds: 30}, true, 0, 30 * time.Second, 0},
	} {
		now = now.Add(tt.after)
		ok, remaining, reset, retryAfter := l.Allow(tt.key, time.Time{}, tt.limit, now)
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
		l, now := NewLimiter(time.Time{}, one), grantNow
		rl := key.RateLimit{Requests: rapid.IntRange(1, 1000).Draw(t, "requests"), PeriodSeconds: rapid.IntRange(1, 86400).Draw(t, "period")}
		allowed := 0
		for range rapid.IntRange(1, 50).Draw(t, "calls") {
			ok, remaining, reset, retryAfter := l.Allow("a", time.Time{}, rl, now)
			if ok {
				allowed++
			}
			if remaining < 0 || remaining >= rl.Requests || reset < 0 || ok != (retryAfter == 0) {
				t.Fatalf("ok %t, remaining %d, reset %s, retry after %s", ok, remaining, reset, retryAfter)
			}
			if !ok {
				now = now.Add(retryAfter)
				if ok, _, _, _ := l.Allow("a", time.Time{}, rl, now); !ok {
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
		l, now := NewLimiter(time.Time{}, one), grantNow
		for i := range 100_000 {
			now = now.Add(time.Millisecond)
			l.Allow(strconv.Itoa(i), time.Time{}, key.RateLimit{Requests: 1, PeriodSeconds: 1}, now) // full again after 1,000 others
		}
		if n := l.size(); n > 10_000 {
			t.Errorf("%d buckets for 1,000 keys in use", n)
		}
	})
	t.Run("a key in use keeps its count", func(t *testing.T) {
		l := NewLimiter(time.Time{}, one)
		l.Allow("a", time.Time{}, key.RateLimit{Requests: 1, PeriodSeconds: 3600}, grantNow)
		for i := range 100_000 {
			l.Allow(strconv.Itoa(i), time.Time{}, key.RateLimit{Requests: 1, PeriodSeconds: 1}, grantNow.Add(time.Duration(i)*time.Millisecond))
		}
		if ok, _, _, _ := l.Allow("a", time.Time{}, key.RateLimit{Requests: 1, PeriodSeconds: 3600}, grantNow.Add(100*time.Second)); ok {
			t.Error("a bucket that was not full was dropped")
		}
	})
	t.Run("too many keys at once", func(t *testing.T) {
		l := NewLimiter(time.Time{}, one)
		for i := range 2 * limiterShards * maxShardBuckets {
			l.Allow(strconv.Itoa(i), time.Time{}, key.RateLimit{Requests: 1, PeriodSeconds: 86400}, grantNow)
		}
		if n := l.size(); n > limiterShards*maxShardBuckets {
			t.Errorf("%d buckets", n)
		}
	})
}

func TestLimiterIsConcurrent(t *testing.T) {
	l := NewLimiter(time.Time{}, one)
	var allowed atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				if ok, _, _, _ := l.Allow("a", time.Time{}, key.RateLimit{Requests: 100, PeriodSeconds: 86400}, grantNow); ok {
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
	l := NewLimiter(time.Time{}, one)
	rl := key.RateLimit{Requests: 1000, PeriodSeconds: 60}
	ids := make([]string, 1000)
	for i := range ids {
		ids[i] = "key_" + strconv.Itoa(i)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			l.Allow(ids[i%len(ids)], time.Time{}, rl, grantNow)
		}
	})
}

func one() int { return 1 }

// Processes divide a limit: together they let through what it says, whatever way
// the requests are spread, and after that what flows in. None lets nothing through.
func TestLimiterDividesAmongProcesses(t *testing.T) {
	for _, tt := range []struct {
		processes int
		limit     key.RateLimit
		first     int // in the first moment, of all
		later     int // in the hour after it
	}{
		{1, key.RateLimit{Requests: 60, PeriodSeconds: 60}, 60, 3600},
		{2, key.RateLimit{Requests: 60, PeriodSeconds: 60}, 60, 3600},
		{3, key.RateLimit{Requests: 100, PeriodSeconds: 60}, 99, 6000},
		{5, key.RateLimit{Requests: 2, PeriodSeconds: 60}, 5, 120}, // one each at least
	} {
		now := grantNow
		var all []*Limiter
		for range tt.processes {
			all = append(all, NewLimiter(time.Time{}, func() int { return tt.processes }))
		}
		take := func() (n int) {
			for _, l := range all {
				for {
					ok, _, _, _ := l.Allow("a", time.Time{}, tt.limit, now)
					if !ok {
						break
					}
					n++
				}
			}
			return n
		}
		if got := take(); got != tt.first {
			t.Errorf("%d processes let %d through at once of %v, want %d", tt.processes, got, tt.limit, tt.first)
		}
		later := 0
		for range 7200 {
			now = now.Add(time.Second / 2)
			later += take()
		}
		if later > tt.later || later < tt.later-tt.processes {
			t.Errorf("%d processes let %d through in an hour of %v, want %d", tt.processes, later, tt.limit, tt.later)
		}
	}
}

// A process that joins takes its share from the others at once, and one that
// leaves gives it back as it flows in.
func TestLimiterFollowsProcesses(t *testing.T) {
	n, now := 1, grantNow
	l := NewLimiter(time.Time{}, func() int { return n })
	rl := key.RateLimit{Requests: 60, PeriodSeconds: 60}
	if ok, remaining, _, _ := l.Allow("a", time.Time{}, rl, now); !ok || remaining != 59 {
		t.Errorf("alone %d remain", remaining)
	}
	n = 2
	if ok, remaining, _, _ := l.Allow("a", time.Time{}, rl, now); !ok || remaining != 29 {
		t.Errorf("with another %d remain", remaining)
	}
	n = 1
	if ok, remaining, reset, _ := l.Allow("a", time.Time{}, rl, now); !ok || remaining != 28 || reset != 32*time.Second {
		t.Errorf("alone again %d remain, all in %s", remaining, reset)
	}
}

// A start does not fill the bucket of a key that was there before: it has what
// has flowed in since, and one request at least.
func TestLimiterAfterStart(t *testing.T) {
	started := grantNow
	rl := key.RateLimit{Requests: 60, PeriodSeconds: 60}
	for _, tt := range []struct {
		created, first time.Duration // after the start
		remaining      int
	}{
		{-time.Hour, 0, 0},
		{-time.Hour, 10 * time.Second, 9},
		{-time.Hour, time.Hour, 59},
		{time.Second, 2 * time.Second, 59}, // it cannot have been used before
	} {
		l := NewLimiter(started, one)
		ok, remaining, _, _ := l.Allow("a", started.Add(tt.created), rl, started.Add(tt.first))
		if !ok || remaining != tt.remaining {
			t.Errorf("a key made %s after the start and used %s after it: %v, %d remain, want %d", tt.created, tt.first, ok, remaining, tt.remaining)
		}
	}
}
