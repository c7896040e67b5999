package metering

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
)

// Spool is where requests are recorded on their way to the store.
type Spool interface {
	// ID names the spool in the store.
	ID() string
	// Run tells which start of a process on the spool this is.
	Run() access.Run
	// Drain returns once everything that was recorded before the call is
	// stored.
	Drain(ctx context.Context) error
	// Since returns a time before which no request began that is still to be
	// recorded.
	Since() time.Time
}

// Charge is what something adds to the consumption of the organization at the
// end of Path and of all its ancestors.
type Charge struct {
	RootID   string
	Path     string
	Month    usage.Month
	Meter    string
	Quantity usage.Decimal
}

const (
	// gaugeRefresh is the age at which a gauge in use is read again in the
	// background.
	gaugeRefresh = 400 * time.Millisecond
	// gaugeTrust is the age up to which a gauge is believed. What other
	// processes have admitted meanwhile is not in it.
	gaugeTrust = time.Second
	// maxGaugeReads is how often one charge waits for a gauge to be read: after
	// the first time it may be too old again, or its limits may have changed.
	maxGaugeReads = 5
	// gaugeIdle is how long a gauge is kept after its last use.
	gaugeIdle = 10 * time.Minute
)

// gaugeKey names the consumption that a limit bounds: that of a subtree.
type gaugeKey struct {
	rootID string
	orgID  string
	month  usage.Month
	meter  string
}

// gauge is what a subtree has consumed of a meter in a month, as far as this
// process knows: what the store held when it was last read, and what this
// process has let through and the store did not hold then.
//
// Within one process a gauge never shows too little: what was recorded counts
// until a snapshot of the store is known to hold it, by the position of the
// spool in the same snapshot.
type gauge struct {
	loaded   bool
	stored   usage.Decimal   // in the store, when it was last read
	position access.Position // of this process's spool in that snapshot
	readAt   time.Time
	usedAt   time.Time

	pending usage.Decimal // let through and not in stored: the sum of all that follows and of what is under way
	// recorded waits in the spool.
	recorded []recordedCharge
	// committed was stored by a transaction of its own. It is dropped by the
	// first read that begins after it.
	committed usage.Decimal
	// lowered is how often a transaction has taken something off, and readOf
	// how often when the last read began. What was taken off shows when the
	// store is read, and not before: until a commit is certain it has not
	// happened, and a read may have seen it already. So a gauge never shows too
	// little, and nothing is refused by one that may show too much.
	lowered, readOf int
}

type recordedCharge struct {
	end      access.Position
	quantity usage.Decimal
}

// recentCharges are those that were recorded since there are gauges and may not
// be stored. A gauge that is loaded takes from them what is not in its snapshot
// and was recorded before the gauge was there, and so waits for no writer.
type recentCharges struct {
	mu   sync.Mutex
	list []recentCharge
	// complete says that whatever is not in the list is stored.
	complete  bool
	overflows int
}

type recentCharge struct {
	end      access.Position
	path     string
	month    usage.Month
	meter    string
	quantity usage.Decimal
	counted  *Reservation // in the gauges of this
}

// maxRecent bounds the list. Beyond it a new gauge waits for the spool.
const maxRecent = 50_000

func (r *recentCharges) add(counted *Reservation, used []access.Usage, end access.Position) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list)+len(used) > maxRecent {
		r.list, r.complete = nil, false
		r.overflows++
	}
	for i := range used {
		u := &used[i]
		r.list = append(r.list, recentCharge{end, u.Path, usage.MonthOf(u.At), u.Meter, u.Quantity, counted})
	}
}

// stored drops what is stored. It returns false if there may be more than what is
// left, or that was not in the list.
func (r *recentCharges) stored(position access.Position) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = slices.DeleteFunc(r.list, func(c recentCharge) bool { return !position.Before(c.end) })
	return r.complete
}

// of returns what is left of a gauge's consumption that the gauge does not have.
func (r *recentCharges) of(k gaugeKey, g *gauge) (recorded []recordedCharge) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.list {
		if c := &r.list[i]; c.month == k.month && c.meter == k.meter && holdsID(c.path, k.orgID) && !c.counted.holdsIn(g) {
			recorded = append(recorded, recordedCharge{c.end, c.quantity})
		}
	}
	return recorded
}

func (r *Reservation) holdsIn(g *gauge) bool {
	return r != nil && slices.ContainsFunc(r.holds, func(h hold) bool { return h.gauge == g })
}

// holdsID reports whether an organization is on a path.
func holdsID(path, id string) bool {
	return strings.HasPrefix(path, id+"/") || strings.Contains(path, "/"+id+"/")
}

// catchUp returns once what is recorded and not stored is in the list.
func (r *recentCharges) catchUp(ctx context.Context, spool Spool) error {
	r.mu.Lock()
	complete, overflows := r.complete, r.overflows
	r.mu.Unlock()
	if complete {
		return nil
	}
	if err := spool.Drain(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.complete = r.overflows == overflows
	return nil
}

// maxRecorded is the number of charges that wait in the spool for which a
// gauge keeps positions of their own. Later ones join the last one: they are
// counted for longer than needed, never for less.
const maxRecorded = 100_000

// errNoGauge says that what a hard limit needs to know has not been read.
var errNoGauge = errors.New("org: a hard limit whose gauge is not loaded")

type gauges struct {
	mu      sync.Mutex
	all     map[gaugeKey]*gauge
	reading chan struct{} // holds a token while nobody reads the store for gauges
	refresh bool          // a refresh in the background is under way
	any     atomic.Bool   // there are gauges
	recent  recentCharges
}

func newGauges() *gauges {
	g := &gauges{all: map[gaugeKey]*gauge{}, reading: make(chan struct{}, 1)}
	g.reading <- struct{}{}
	return g
}

// fits reports whether the gauge can grow by quantity without exceeding limit.
func (g *gauge) fits(quantity, limit usage.Decimal) bool {
	sum, err := g.stored.Add(g.pending)
	if err == nil {
		sum, err = sum.Add(quantity)
	}
	return err == nil && sum <= limit
}

// used returns what a gauge shows, nil if it is not known.
func (g *gauges) used(k gaugeKey) *usage.Decimal {
	g.mu.Lock()
	defer g.mu.Unlock()
	one := g.all[k]
	if one == nil || !one.loaded {
		return nil
	}
	sum := one.stored + one.pending
	return &sum
}

// forget drops the gauges of organizations that are gone: whoever takes their
// ids has consumed nothing.
func (g *gauges) forget(rootID string, orgIDs []string) {
	gone := make(map[string]bool, len(orgIDs))
	for _, id := range orgIDs {
		gone[id] = true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for k := range g.all {
		if k.rootID == rootID && gone[k.orgID] {
			delete(g.all, k)
		}
	}
}

// hold is what the charges of a reservation add to one gauge, all together.
type hold struct {
	gauge    *gauge
	limit    *usage.Limit // the tightest of those that were known for the gauge
	month    usage.Month
	quantity usage.Decimal
}

// pending returns what a hold adds to its gauge before it is stored: never less
// than nothing.
func (h *hold) pending() usage.Decimal { return max(h.quantity, 0) }

// Reservation is what has been let through under hard limits and is not
// stored yet. Exactly one of its methods must be called in the end. They may
// be called on nil, which is a reservation under no limit.
type Reservation struct {
	gauges *gauges
	holds  []hold
}

// Recorded says that the charges are in the spool, in the record that ends at
// end.
func (r *Reservation) Recorded(end access.Position) {
	if r == nil {
		return
	}
	r.gauges.mu.Lock()
	defer r.gauges.mu.Unlock()
	for i := range r.holds {
		g, quantity := r.holds[i].gauge, r.holds[i].pending()
		switch n := len(g.recorded); {
		case g.loaded && !g.position.Before(end):
			g.pending -= quantity
		case n >= maxRecorded:
			last := &g.recorded[n-1]
			last.quantity += quantity
			if last.end.Before(end) {
				last.end = end
			}
		default:
			g.recorded = append(g.recorded, recordedCharge{end, quantity})
		}
	}
}

// Recorded says that a request that used this, and was let through with the
// reservation, is in the spool, in the record that ends at end.
func (s *Service) Recorded(r *Reservation, used []access.Usage, end access.Position) {
	if len(used) > 0 && s.gauges.any.Load() {
		s.gauges.recent.add(r, used, end)
	}
	r.Recorded(end)
}

// Committed says that a transaction has stored the charges, or that it is
// unknown whether it has.
func (r *Reservation) Committed() {
	if r == nil {
		return
	}
	r.gauges.mu.Lock()
	defer r.gauges.mu.Unlock()
	for i := range r.holds {
		h := &r.holds[i]
		if h.gauge.committed += h.pending(); h.quantity < 0 {
			h.gauge.lowered++
		}
	}
}

// Release gives the charges up.
func (r *Reservation) Release() {
	if r == nil {
		return
	}
	r.gauges.mu.Lock()
	defer r.gauges.mu.Unlock()
	for i := range r.holds {
		r.holds[i].gauge.pending -= r.holds[i].pending()
	}
}

// Admit lets charges through if all of them together fit into every hard limit
// that binds them, and reserves their place. The error is
// problem.LimitExceeded, naming the limit, if they do not.
//
// It reads the store if it must, so it cannot be used within a transaction:
// see watchLimits and reserve.
func (s *Service) Admit(ctx context.Context, charges ...Charge) (*Reservation, error) {
	var known map[string]*bounds
	for attempt := 0; ; attempt++ {
		r, err := s.reserve(charges, true, known)
		if err != errNoGauge {
			return r, err
		}
		if attempt == maxGaugeReads {
			return nil, gaugesLate()
		}
		if known, err = s.watchLimits(ctx, charges...); err != nil {
			return nil, err
		}
	}
}

// gaugesLate is the error for charges that no read of the gauges was young
// enough for.
func gaugesLate() error {
	e := problem.New(problem.Unavailable, "What was consumed under a limit cannot be read fast enough.").WithFix("Try again in a moment.")
	e.RetryAfter = time.Second
	return e
}

// watchLimits reads what reserve has to know to decide on charges of the same
// paths, months and meters; only their quantities may differ. It returns the
// limits that bind them, by path, as they are now.
func (s *Service) watchLimits(ctx context.Context, charges ...Charge) (map[string]*bounds, error) {
	known := map[string]*bounds{}
	var keys []gaugeKey
	for i := range charges {
		c := &charges[i]
		b := known[c.Path]
		if b == nil {
			var err error
			if b, err = s.boundsOf(ctx, c.RootID, c.Path); err != nil {
				return nil, err
			}
			known[c.Path] = b
		}
		for j := range b.limits {
			if l := &b.limits[j]; l.Enforcement == usage.Hard && l.Meter == c.Meter {
				keys = append(keys, gaugeKey{c.RootID, l.OrgID, c.Month, c.Meter})
			}
		}
	}
	if len(keys) == 0 {
		return known, nil
	}
	return known, s.loadGauges(ctx, keys)
}

// Count reserves charges without asking whether they fit. It never fails: what
// it cannot find out now is counted when the gauges are read the next time.
func (s *Service) Count(ctx context.Context, charges ...Charge) *Reservation {
	if !s.gauges.any.Load() {
		return nil
	}
	for i := range charges {
		_, _ = s.boundsOf(ctx, charges[i].RootID, charges[i].Path)
	}
	r, _ := s.reserve(charges, false, nil)
	return r
}

// reserve adds charges to the gauges of the hard limits that bind them, in one
// step, without I/O. With check it adds nothing unless all fit: errNoGauge if
// what has to be known is not, problem.LimitExceeded if they do not. What some
// charges take off makes room for others of the same call, and for those of
// other calls once it is stored.
//
// known are limits, by path, that the caller has just found to hold. Others
// are known only while nothing in their tree changes.
func (s *Service) reserve(charges []Charge, check bool, known map[string]*bounds) (*Reservation, error) {
	var r *Reservation
	var now time.Time
	var place map[*gauge]int // of a gauge in the holds; only of several charges
	kick := false
	for i := range charges {
		c := &charges[i]
		b := known[c.Path]
		if b == nil {
			cached, ok := s.bounds.GetIfPresent(c.Path)
			if !ok || check && cached.generation != s.store.Generation(c.RootID) {
				if check {
					return nil, errNoGauge
				}
				continue
			}
			b = cached
		}
		for j := range b.limits {
			l := &b.limits[j]
			if l.Enforcement != usage.Hard || l.Meter != c.Meter {
				continue
			}
			if r == nil {
				r = &Reservation{gauges: s.gauges}
				now = s.now()
				s.gauges.mu.Lock()
				defer s.gauges.mu.Unlock()
			}
			g := s.gauges.all[gaugeKey{c.RootID, l.OrgID, c.Month, c.Meter}]
			switch {
			case check && (g == nil || !g.loaded || now.Sub(g.readAt) >= gaugeTrust):
				return nil, errNoGauge
			case g == nil:
				continue
			}
			n, ok := place[g]
			if !ok {
				n = len(r.holds)
				r.holds = append(r.holds, hold{gauge: g, limit: l, month: c.Month})
				if len(charges) > 1 {
					if place == nil {
						place = map[*gauge]int{}
					}
					place[g] = n
				}
			}
			h := &r.holds[n]
			if l.Amount < h.limit.Amount {
				h.limit = l
			}
			sum, err := h.quantity.Add(c.Quantity)
			if err != nil && check {
				return nil, exceeded(l, c.Month, now)
			}
			h.quantity = sum
		}
	}
	if r == nil {
		return nil, nil
	}
	for i := range r.holds {
		h := &r.holds[i]
		switch g := h.gauge; {
		case !check || h.quantity <= 0 || g.fits(h.quantity, h.limit.Amount):
		case g.lowered != g.readOf:
			return nil, errNoGauge
		default:
			return nil, exceeded(h.limit, h.month, now)
		}
	}
	for i := range r.holds {
		g := r.holds[i].gauge
		g.pending += r.holds[i].pending()
		g.usedAt = now
		kick = kick || now.Sub(g.readAt) > gaugeRefresh
	}
	if kick {
		s.refreshGauges()
	}
	return r, nil
}

// refreshGauges reads the gauges in use again, in the background. The caller
// holds the lock of the gauges.
func (s *Service) refreshGauges() {
	g := s.gauges
	if g.refresh {
		return
	}
	g.refresh = true
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		// An error shows at the next charge that finds its gauge too old.
		_ = s.readGauges(ctx, gaugeRefresh)
		g.mu.Lock()
		g.refresh = false
		g.mu.Unlock()
	}()
}

// loadGauges returns once the gauges are loaded and young enough.
func (s *Service) loadGauges(ctx context.Context, keys []gaugeKey) error {
	now := s.now()
	g := s.gauges
	// From here on what is recorded is noted.
	g.any.Store(true)
	g.mu.Lock()
	known := true
	for _, k := range keys {
		one := g.all[k]
		if one == nil {
			one = new(gauge)
			g.all[k] = one
		}
		one.usedAt = now
		known = known && one.loaded && now.Sub(one.readAt) < gaugeRefresh && one.lowered == one.readOf
	}
	g.mu.Unlock()
	if known {
		return nil
	}
	if err := g.recent.catchUp(ctx, s.spool); err != nil {
		return err
	}
	return s.readGauges(ctx, gaugeRefresh)
}

// readGauges reads every gauge in use whose last read is older than age. One
// caller reads for all.
func (s *Service) readGauges(ctx context.Context, age time.Duration) error {
	g := s.gauges
	select {
	case <-g.reading:
		defer func() { g.reading <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	type read struct {
		key       gaugeKey
		gauge     *gauge
		committed usage.Decimal
		lowered   int
		total     usage.Decimal
	}
	var reads []read
	now := s.now()
	g.mu.Lock()
	for k, one := range g.all {
		switch {
		case now.Sub(one.usedAt) > gaugeIdle && one.pending == one.committed:
			delete(g.all, k)
		case now.Sub(one.usedAt) > gaugeTrust && one.loaded && len(one.recorded) == 0:
		case !one.loaded || now.Sub(one.readAt) > age || one.lowered != one.readOf:
			reads = append(reads, read{key: k, gauge: one, committed: one.committed, lowered: one.lowered})
		}
	}
	g.mu.Unlock()
	if len(reads) == 0 {
		return nil
	}
	var position access.Position
	err := s.store.Read(ctx, func(v View) (err error) {
		if position, err = v.SpoolPosition(s.spool.ID()); err != nil {
			return err
		}
		for i := range reads {
			k := &reads[i].key
			if reads[i].total, err = v.Consumed(k.rootID, k.orgID, k.month, k.meter); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	complete := g.recent.stored(position)
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range reads {
		one := reads[i].gauge
		if !one.loaded {
			if !complete {
				continue // what was recorded before the gauge was there may be nowhere
			}
			for _, c := range g.recent.of(reads[i].key, one) {
				one.recorded = append(one.recorded, c)
				one.pending += c.quantity
			}
		}
		one.loaded, one.stored, one.position, one.readAt = true, reads[i].total, position, now
		one.readOf = reads[i].lowered
		one.committed -= reads[i].committed
		one.pending -= reads[i].committed
		waiting := one.recorded[:0]
		for _, c := range one.recorded {
			if position.Before(c.end) {
				waiting = append(waiting, c)
			} else {
				one.pending -= c.quantity
			}
		}
		one.recorded = waiting
	}
	return nil
}

// CountCall counts a call of orgd itself, made at a time, for the organization of
// the actor who makes it: an API call is what it consumes, whatever its limits. What
// it returns is to be recorded, or the reservation to be released.
func (s *Service) CountCall(ctx context.Context, a *auth.Actor, at time.Time) ([]access.Usage, *Reservation) {
	return []access.Usage{{RootID: a.RootID, Path: a.Path, At: at, Meter: usage.APICalls, Quantity: usage.One}},
		s.Count(ctx, Charge{RootID: a.RootID, Path: a.Path, Month: usage.MonthOf(at), Meter: usage.APICalls, Quantity: usage.One})
}
