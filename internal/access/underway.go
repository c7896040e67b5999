package access

import (
	"sync"
	"time"
)

// underWay knows when the requests began that are not recorded yet. A request
// counts in the month in which it began, so that month may be closed only when
// it is recorded.
type underWay struct {
	mu    sync.Mutex
	began map[int64]int // how many, by the hour since 1970; every month ends with an hour
}

const hour = int64(time.Hour / time.Second)

// Begin says that a request begins now, and returns when that is. End must be
// called with that time once the request is recorded, or will not be.
func (r *Recorder) Begin() time.Time {
	u := &r.underWay
	u.mu.Lock()
	defer u.mu.Unlock()
	// The clock is read under the lock: whoever asks Since later and gets a later
	// time has seen this request.
	at := r.opts.Now()
	if u.began == nil {
		u.began = map[int64]int{}
	}
	u.began[at.Unix()/hour]++
	return at
}

// End says that the request that began at a time is recorded, or will not be.
func (r *Recorder) End(at time.Time) {
	u := &r.underWay
	u.mu.Lock()
	defer u.mu.Unlock()
	h := at.Unix() / hour
	if u.began[h]--; u.began[h] == 0 {
		delete(u.began, h)
	}
}

// Since returns a time before which no request began that is still to be
// recorded: the present, or the beginning of the hour in which the first of those
// under way began.
func (r *Recorder) Since() time.Time {
	u := &r.underWay
	u.mu.Lock()
	defer u.mu.Unlock()
	since := r.opts.Now()
	for h := range u.began {
		if began := time.Unix(h*hour, 0).UTC(); began.Before(since) {
			since = began
		}
	}
	return since
}
