package auth

import (
	"hash/maphash"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/orgd/orgd/internal/key"
)

const (
	limiterShards = 32
	// A shard holds at most this many buckets: about 130,000 in all, some
	// 30 MB.
	maxShardBuckets = 4096
	minShardSweep   = 64
)

// Limiter counts the requests of every key that has a rate limit. It keeps one
// token bucket per key. Memory is bounded: buckets that are full again are
// dropped, which changes nothing; beyond 130,000 keys that are limited at the same
// moment, some of them start afresh. Limiter is safe for concurrent use.
//
// Processes that serve the same keys divide each limit, bucket and flow, equally
// among them: together they let no more through than it says, but for one request
// each where there are more of them than requests in a bucketful. A process that
// joins or leaves is noticed when processes tells; until then they may let through
// what one more has, or less. What was counted before a start is not known after
// it: so the bucket of a key that is older than the process starts with what has
// flowed into it since the start, and with one request at least.
type Limiter struct {
	started   time.Time
	processes func() int
	seed      maphash.Seed
	shards    [limiterShards]limiterShard
}

type limiterShard struct {
	mu      sync.Mutex
	buckets map[string]bucket
	sweepAt int // the number of buckets at which those that are full are dropped
}

type bucket struct {
	*rate.Limiter
	limit     key.RateLimit
	processes int
}

// NewLimiter returns a limiter without buckets of a process that started then and
// shares each limit with others: processes says how many there are, itself
// included, and is called for each request. With the zero time every bucket
// starts full.
func NewLimiter(started time.Time, processes func() int) *Limiter {
	l := &Limiter{started: started, processes: processes, seed: maphash.MakeSeed()}
	for i := range l.shards {
		l.shards[i] = limiterShard{buckets: map[string]bucket{}, sweepAt: minShardSweep}
	}
	return l
}

// Allow takes one token from the bucket of the key, which was created then, if
// there is one. It returns how many whole tokens are left, the time until the
// bucket is full, and, if there was no token, the time until there is one. A limit
// or a number of processes that differs from the last call's takes effect at once:
// tokens stay, up to the new size.
func (l *Limiter) Allow(keyID string, created time.Time, rl key.RateLimit, now time.Time) (ok bool, remaining int, reset, retryAfter time.Duration) {
	s := &l.shards[maphash.String(l.seed, keyID)%limiterShards]
	n := max(l.processes(), 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	perSecond := float64(rl.Requests) / float64(rl.PeriodSeconds) / float64(n)
	size := max(rl.Requests/n, 1)
	b, known := s.buckets[keyID]
	switch {
	case !known:
		if len(s.buckets) >= s.sweepAt {
			s.sweep(now)
		}
		b = bucket{rate.NewLimiter(rate.Limit(perSecond), size), rl, n}
		if created.Before(l.started) {
			flowed := max(int(perSecond*now.Sub(l.started).Seconds()), 1)
			b.AllowN(now, max(size-flowed, 0))
		}
		s.buckets[keyID] = b
	case b.limit != rl || b.processes != n:
		b.SetLimitAt(now, rate.Limit(perSecond))
		b.SetBurstAt(now, size)
		b.limit, b.processes = rl, n
		s.buckets[keyID] = b
	}
	ok = b.AllowN(now, 1)
	tokens := min(b.TokensAt(now), float64(size))
	if !ok {
		retryAfter = seconds((1 - tokens) / perSecond)
	}
	return ok, int(tokens), seconds((float64(size) - tokens) / perSecond), retryAfter
}

// sweep drops the buckets that are full again, and others if more than three
// quarters of the bound are left: the next sweep is then a quarter of it away.
func (s *limiterShard) sweep(now time.Time) {
	for id, b := range s.buckets {
		if b.TokensAt(now) >= float64(b.Burst()) {
			delete(s.buckets, id)
		}
	}
	for id := range s.buckets {
		if len(s.buckets) <= maxShardBuckets*3/4 {
			break
		}
		delete(s.buckets, id)
	}
	s.sweepAt = min(max(2*len(s.buckets), minShardSweep), maxShardBuckets)
}

// seconds rounds up, so that a caller who waits that long is not too early.
func seconds(s float64) time.Duration {
	return time.Duration(math.Ceil(max(s, 0) * float64(time.Second)))
}
