// Package budget bounds what the customers of one process use at the same
// time, so that none of them can take what the others need. It is pure: it
// knows nothing of HTTP or storage, and all of it is in memory.
//
// A customer is the root of a tree. Of each resource a root may hold as much
// as is free several times over (dynamic thresholds, Choudhury and Hahne,
// 1998): a root that is alone gets nearly everything, two get half each, and
// something always stays free for one that comes later. A small minimum per
// root is kept out of what is shared, so that it can be had even when many
// roots have taken all they may.
package budget

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

// Resource is something of which a root may only use so much.
type Resource int

// The resources. The first four are held and given back, the last two are
// used up anew in every second.
const (
	Requests          Resource = iota // requests that are being answered
	Bytes                             // of request bodies and what they become, and of answers until they are sent
	Expensive                         // work that takes long: see Ticket.Begin
	Streams                           // followed logs, and answers of any length
	RequestsPerSecond                 // requests of any kind
	ChangesPerSecond                  // requests that may change something
	resources
)

// String returns the name that callers see.
func (r Resource) String() string {
	return [...]string{"requests_in_flight", "bytes_in_flight", "expensive_in_flight", "streams", "requests_per_second", "changes_per_second"}[r]
}

// Resources returns every resource.
func Resources() []Resource {
	return []Resource{Requests, Bytes, Expensive, Streams, RequestsPerSecond, ChangesPerSecond}
}

// Limits is a number for each resource. As the limits of one root, 0 stands
// for the share that a root gets without a limit.
type Limits [resources]int64

func (l *Limits) of(r Resource) int64 {
	if l == nil {
		return 0
	}
	return l[r]
}

const (
	// alpha is how many times of what is free a root may hold. A root that is
	// alone gets alpha/(alpha+1) of what is shared.
	alpha = 16
	// reserve is the part of a capacity, 1/reserve of it, that is not shared
	// but kept for the minimums.
	reserve = 16
	// maxWaiting is how much expensive work of one root may wait.
	maxWaiting = 8
	// maxWaitingAll is how much of all roots may wait.
	maxWaitingAll = 1024
	// maxWait is how long it waits.
	maxWait = 2 * time.Second

	shards        = 32
	minShardSweep = 64
)

// minimum is what a root gets of each resource even where others have taken
// all that is shared, as long as there is room at all.
var minimum = Limits{Requests: 2, Bytes: 1 << 20, Expensive: 1, Streams: 1, RequestsPerSecond: 10, ChangesPerSecond: 2}

// Budget is the budget of one process. All methods may be called on nil, which
// bounds nothing, and from many goroutines.
type Budget struct {
	roots    pool
	operator pool // who runs the server is not kept out by its customers

	seed   maphash.Seed
	shards [shards]shard
	own    Share // the operator's
}

// pool is what some roots share.
type pool struct {
	capacity  Limits // is never exceeded
	shared    Limits // without the reserve for minimums
	used      [resources]counter
	expensive queue
}

// counter is on a cache line of its own.
type counter struct {
	atomic.Int64
	_ [56]byte
}

type shard struct {
	mu      sync.Mutex
	shares  map[string]*Share
	sweepAt int // the number of shares at which those that hold nothing are dropped
}

// Share is what one root uses.
type Share struct {
	pool    *pool
	tickets atomic.Int64 // that may use it: without any it may be dropped
	used    [resources]atomic.Int64

	// Of the expensive work, under the lock of the queue.
	running int64
	waiting []*waiter
	listed  bool
}

// New returns a budget with these capacities for the roots. The operator has
// half as much to itself.
func New(capacity Limits) *Budget {
	b := &Budget{seed: maphash.MakeSeed()}
	half := capacity
	for r := range half {
		half[r] = max(half[r]/2, 1)
	}
	b.roots.init(capacity)
	b.operator.init(half)
	b.own.pool = &b.operator
	for i := range b.shards {
		b.shards[i] = shard{shares: map[string]*Share{}, sweepAt: minShardSweep}
	}
	return b
}

func (p *pool) init(capacity Limits) {
	p.capacity = capacity
	for _, r := range Resources() {
		p.shared[r] = capacity[r] - max(capacity[r]/reserve, min(minimum[r], capacity[r]/4))
	}
	p.expensive.capacity = capacity[Expensive]
	p.expensive.perRoot = perRootExpensive(capacity[Expensive])
}

// perRootExpensive leaves a place for others wherever there are two.
func perRootExpensive(capacity int64) int64 { return max(capacity*3/4, 1) }

// Default returns what a root gets of each resource if it has no limit of its
// own and is alone.
func (b *Budget) Default() Limits {
	if b == nil {
		return Limits{}
	}
	l := b.roots.shared
	for r := range l {
		l[r] = alone(l[r])
	}
	l[Expensive] = b.roots.expensive.perRoot
	return l
}

// alone returns what the first of all roots may hold of what is shared.
func alone(shared int64) int64 { return max(shared*alpha/(alpha+1), 1) }

// Capacity returns what all roots together may use.
func (b *Budget) Capacity() Limits {
	if b == nil {
		return Limits{}
	}
	return b.roots.capacity
}

// Used returns what all roots and the operator use at the time.
func (b *Budget) Used(now time.Time) Limits {
	var l Limits
	if b == nil {
		return l
	}
	for _, p := range []*pool{&b.roots, &b.operator} {
		for r := range l {
			l[r] += present(Resource(r), p.used[r].Load(), now)
		}
	}
	return l
}

// UsedBy returns what one root uses at the time.
func (b *Budget) UsedBy(root string, now time.Time) Limits {
	var l Limits
	if b == nil {
		return l
	}
	s := b.shard(root)
	s.mu.Lock()
	defer s.mu.Unlock()
	if share := s.shares[root]; share != nil {
		for r := range l {
			l[r] = present(Resource(r), share.used[r].Load(), now)
		}
	}
	return l
}

func (b *Budget) shard(root string) *shard {
	return &b.shards[maphash.String(b.seed, root)%shards]
}

// share returns the share of a root for one more ticket.
func (b *Budget) share(root string, now time.Time) *Share {
	if root == "" {
		b.own.tickets.Add(1)
		return &b.own
	}
	s := b.shard(root)
	s.mu.Lock()
	share := s.shares[root]
	if share == nil {
		if len(s.shares) >= s.sweepAt {
			s.sweep(now)
		}
		share = &Share{pool: &b.roots}
		s.shares[root] = share
	}
	share.tickets.Add(1)
	s.mu.Unlock()
	return share
}

// sweep drops shares that nobody holds and that have nothing to remember. A
// share gets its first ticket only under the lock that the caller has.
func (s *shard) sweep(now time.Time) {
	for root, share := range s.shares {
		if share.tickets.Load() == 0 && present(RequestsPerSecond, share.used[RequestsPerSecond].Load(), now) == 0 {
			delete(s.shares, root)
		}
	}
	s.sweepAt = max(2*len(s.shares), minShardSweep)
}

// rate reports whether a resource is used up anew in every second. The counter
// of one holds the second in its upper half and the number in its lower.
func (r Resource) rate() bool { return r >= RequestsPerSecond }

func secondOf(now time.Time) int64 { return (now.Unix() & 0x7fff_ffff) << 32 }

// present returns the number that a counter shows at the time.
func present(r Resource, counter int64, now time.Time) int64 {
	if !r.rate() {
		return counter
	}
	if counter&^0xffff_ffff != secondOf(now) {
		return 0
	}
	return counter & 0xffff_ffff
}

// add adds n to a counter if fits says so, given what the counter shows.
func add(c *atomic.Int64, r Resource, n int64, now time.Time, fits func(used int64) bool) bool {
	for {
		old := c.Load()
		used := present(r, old, now)
		if !fits(used) {
			return false
		}
		next := used + n
		if r.rate() {
			next |= secondOf(now)
		}
		if c.CompareAndSwap(old, next) {
			return true
		}
	}
}

// Reason says why something was refused.
type Reason int

const (
	OverLimit Reason = iota // the root has a limit of its own, and is at it
	OverShare               // the root holds as much as one root may
	NoRoom                  // there is no room, although the root holds next to nothing
	TooMuch                 // it would not fit if the root were alone and held nothing
)

// Refusal is the error of what does not fit.
type Refusal struct {
	Resource   Resource
	Reason     Reason
	Limit      int64         // with OverLimit, and the greatest size with TooMuch
	RetryAfter time.Duration // when to try again
}

func (r *Refusal) Error() string { return "budget: no room in " + r.Resource.String() }

// take charges n of a resource to the share. It allocates nothing unless it
// refuses.
func (s *Share) take(r Resource, n, limit int64, now time.Time) *Refusal {
	p := s.pool
	// What the pool shows may change meanwhile: then all that changes is who
	// of several got in. It never shows more than its capacity.
	all := present(r, p.used[r].Load(), now)
	own := func(used int64) bool {
		switch {
		case limit > 0:
			return used+n <= limit
		case used+n <= minimum[r]:
			return true
		}
		return used+n <= alpha*(p.shared[r]-all-n)
	}
	if !add(&s.used[r], r, n, now, own) {
		return s.refuse(r, n, limit, now)
	}
	room := p.shared[r]
	if present(r, s.used[r].Load(), now) <= minimum[r] {
		room = p.capacity[r]
	}
	if !add(&p.used[r].Int64, r, n, now, func(used int64) bool { return used+n <= room }) {
		s.used[r].Add(-n)
		return s.refuse(r, n, limit, now)
	}
	return nil
}

func (s *Share) refuse(r Resource, n, limit int64, now time.Time) *Refusal {
	f := &Refusal{Resource: r, Reason: OverShare, RetryAfter: time.Second}
	used := present(r, s.used[r].Load(), now)
	greatest := alone(s.pool.shared[r])
	if limit > 0 {
		greatest = min(limit, s.pool.shared[r])
	}
	switch {
	case n > max(greatest, min(minimum[r], s.pool.capacity[r])):
		f.Reason, f.Limit = TooMuch, greatest
	case limit > 0 && used+n > limit:
		f.Reason, f.Limit = OverLimit, limit
	case used+n <= minimum[r]:
		f.Reason = NoRoom
	}
	if r == Streams {
		f.RetryAfter = 15 * time.Second
	}
	return f
}

// put gives back what take took. Rates are never given back.
func (s *Share) put(r Resource, n int64) {
	s.pool.used[r].Add(-n)
	s.used[r].Add(-n)
}
