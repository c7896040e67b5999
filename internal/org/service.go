package org

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/maypok86/otter/v2"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/problem"
)

// Service applies the rules of the organization tree. It is safe for
// concurrent use.
type Service struct {
	store         Store
	now           func() time.Time
	newID         ident.Source
	rand          io.Reader
	restoreWindow time.Duration
	operatorHash  [32]byte
	// monthCloseAfter is how long after its end a month takes late events.
	monthCloseAfter time.Duration

	orgs   *otter.Cache[string, *Snapshot]
	keys   *otter.Cache[string, *keySnapshot]
	bounds *otter.Cache[string, *bounds] // by path
	meters *otter.Cache[string, *rootMeters]
	quotas *otter.Cache[string, *rootQuota]
	kept   *otter.Cache[string, *keptAnswers]
	ends   *logEnds
	spool  Spool
	gauges *gauges
	// turns are those of writes in the store, together those of changes that it may
	// make together, settling those of changes of settings that did not come through
	// at once, bulk those of many events.
	turns, together, settling, bulk turns

	keyring *audit.Keyring
	changed *News // of audit logs
	visible *News // of access events
	imports imports
	refused sync.Map // ids of logs that are signed no further
}

// Config is what a Service works with.
type Config struct {
	Store         Store
	Now           func() time.Time
	NewID         ident.Source
	Rand          io.Reader     // crypto/rand.Reader outside tests; safe for concurrent use
	RestoreWindow time.Duration // how long a deleted organization can be restored
	OperatorHash  [32]byte      // SHA-256 of the operator key
	Spool         Spool
	Keyring       *audit.Keyring // the keys that sign the audit logs
	// MonthCloseAfter is how long after its end a month still takes late
	// events; zero for DefaultMonthCloseAfter, negative for not at all.
	MonthCloseAfter time.Duration
	// AuditNews and AccessNews are told of what the service makes visible in the
	// logs of a root; nil for news of its own.
	AuditNews, AccessNews *News
}

// NewService returns a service.
func NewService(c Config) (*Service, error) {
	orgs, err := otter.New(&otter.Options[string, *Snapshot]{MaximumSize: 20_000})
	if err != nil {
		return nil, err
	}
	keys, err := otter.New(&otter.Options[string, *keySnapshot]{MaximumSize: 20_000})
	if err != nil {
		return nil, err
	}
	limits, err := otter.New(&otter.Options[string, *bounds]{MaximumSize: 20_000})
	if err != nil {
		return nil, err
	}
	meters, err := otter.New(&otter.Options[string, *rootMeters]{MaximumSize: 20_000})
	if err != nil {
		return nil, err
	}
	quotas, err := otter.New(&otter.Options[string, *rootQuota]{MaximumSize: 20_000})
	if err != nil {
		return nil, err
	}
	kept, err := otter.New(&otter.Options[string, *keptAnswers]{MaximumSize: 20_000})
	if err != nil {
		return nil, err
	}
	closeAfter := c.MonthCloseAfter
	if closeAfter == 0 {
		closeAfter = DefaultMonthCloseAfter
	}
	together := 0
	if c.Store.WritersPerRoot() > 0 {
		together = maxTurns
	}
	return &Service{meters: meters, quotas: quotas, kept: kept, ends: &logEnds{byRoot: map[string]logEnd{}}, monthCloseAfter: max(closeAfter, 0), store: c.Store, now: c.Now, newID: c.NewID, rand: c.Rand,
		restoreWindow: c.RestoreWindow, operatorHash: c.OperatorHash, orgs: orgs, keys: keys,
		bounds: limits, spool: c.Spool, gauges: newGauges(), turns: turns{most: c.Store.WritersPerRoot()}, together: turns{most: together}, settling: turns{most: 1}, bulk: turns{most: 1},
		keyring: c.Keyring, changed: cmp.Or(c.AuditNews, NewNews(nil)), visible: cmp.Or(c.AccessNews, NewNews(nil))}, nil
}

// Call is one request to the service: who makes it, from where, and under
// which conditions. A change asks again, under the lock of its root, whether
// the Actor may still do so with the Secret from the Address.
type Call struct {
	Actor      *auth.Actor
	Secret     [32]byte   // the hash of the token that the actor presented
	Address    netip.Addr // where the actor presented it
	RequestID  string
	IP         string
	UserAgent  string
	IfMatch    string       // the If-Match header; empty for none
	Idempotent *Idempotency // nil for none
}

// Idempotency makes a mutation happen once for all requests with the same
// key. Render turns the mutation's result into the answer that is stored in
// the mutation's own transaction, sealed; it must be deterministic.
type Idempotency struct {
	Key         string
	RequestHash []byte
	Render      func(result any, receipt audit.Receipt) (sealed []byte, err error)

	size int64 // of what was stored
}

// Now returns the time of an operation: UTC, cut to microseconds.
func (s *Service) Now() time.Time { return s.now().UTC().Truncate(time.Microsecond) }

// errUnchanged ends a mutation that turned out to change nothing.
var errUnchanged = errors.New("nothing changed")

// change is a mutation under way.
type change struct {
	Tx
	call *Call
	// at is the time of the change. It is taken under the first lock and never
	// before the last entry of a log that is locked, whatever the clock does, so
	// that entries of a log are in the order of their times.
	at    time.Time
	now   func() time.Time
	ends  *logEnds
	newID ident.Source
	heads map[string]*audit.Head
	// present returns the actor of the call as it is in this transaction; nil
	// where nothing is locked, and so nothing decided for good.
	present func(tx Tx, call *Call) (*auth.Actor, error)
	// rootOf returns the root that an organization was last seen in, or "".
	rootOf func(id string) string
}

// change runs one mutation. It is the only way to change what the audit trail
// covers: fn
// returns the audit entries of what it changed, and state and entries are
// committed in one transaction. If fn returns no entry, nothing that it wrote
// is kept. The receipt is that of the last entry; it is zero if nothing
// changed.
func (s *Service) change(ctx context.Context, call *Call, fn func(tx *change) (result any, entries []audit.Draft, err error)) (audit.Receipt, error) {
	var receipt audit.Receipt
	var roots []string
	err := s.writeTogether(ctx, call, func(tx Tx) error {
		receipt = audit.Receipt{}
		own := *call // its actor is brought up to date
		c := &change{Tx: tx, call: &own, at: s.Now(), now: s.Now, ends: s.ends, newID: s.newID, heads: map[string]*audit.Head{}, present: s.present, rootOf: s.rootOf}
		result, entries, err := fn(c)
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			return errUnchanged
		}
		if receipt, roots, err = c.append(entries, s.rand); err != nil {
			return err
		}
		return remember(tx, c.call, c.at, result, receipt)
	})
	if errors.Is(err, errUnchanged) {
		return audit.Receipt{}, nil
	}
	if err == nil && call.Idempotent != nil {
		s.noteKept(call.Actor.RootID, call.Idempotent.size)
	}
	// If the outcome is unknown the log may have grown: who signs looks.
	s.changed.Tell(roots...)
	return receipt, err
}

// write runs a transaction of a call that may wait for others of the actor's
// root.
func (s *Service) write(ctx context.Context, call *Call, fn func(Tx) error) error {
	leave, err := s.turns.take(ctx, call.Actor.RootID)
	if err != nil {
		return err
	}
	defer leave()
	return s.store.Write(ctx, fn)
}

// writeTogether is write for a change that locks the actor's root, if it has one,
// and nothing else. Those that come at the same time may share a transaction.
func (s *Service) writeTogether(ctx context.Context, call *Call, fn func(Tx) error) error {
	rootID := call.Actor.RootID
	if rootID == "" {
		return s.store.Write(ctx, fn)
	}
	if s.together.most == 0 {
		return s.store.WriteTogether(ctx, rootID, fn)
	}
	leave, err := s.together.take(ctx, rootID)
	if err != nil {
		return err
	}
	defer leave()
	waiting, cancel := context.WithTimeoutCause(ctx, turnWait, errTurn)
	defer cancel()
	err = s.store.WriteTogether(waiting, rootID, fn)
	if errors.Is(err, context.DeadlineExceeded) && context.Cause(waiting) == errTurn {
		err = tooManyTurns()
	}
	return err
}

// precheck runs checks of a change before the change, on what is committed and
// without a lock. They run again in the change itself: what they find may not
// last.
func (s *Service) precheck(ctx context.Context, call *Call, fn func(c *change) error) error {
	own := *call
	var err error
	if own.Actor, err = s.presentNow(ctx, call); err != nil {
		return err
	}
	return s.store.Read(ctx, func(tx Tx) error {
		return fn(&change{Tx: readOnly{tx}, call: &own, heads: map[string]*audit.Head{}, rootOf: s.rootOf})
	})
}

// readOnly is a Tx that takes no lock.
type readOnly struct{ Tx }

func (readOnly) Lock(string) (*audit.Head, error) { return &audit.Head{}, nil }

// remember stores the answer to a call that carries an Idempotency-Key, in the
// transaction of what it did.
func remember(tx Tx, call *Call, at time.Time, result any, receipt audit.Receipt) error {
	idem := call.Idempotent
	if idem == nil {
		return nil
	}
	answer, err := idem.Render(result, receipt)
	if err != nil {
		return err
	}
	r := &Replay{RequestHash: idem.RequestHash, Answer: answer, CreatedAt: at}
	err = tx.PutIdempotent(call.Actor.RootID, call.Actor.ID, idem.Key, at.Add(-idempotencyWindow), r)
	idem.size = r.Size(idem.Key)
	if errors.Is(err, ErrReplay) {
		e := problem.New(problem.RequestInFlight, "A request with this Idempotency-Key was just being processed.").
			WithFix("Send the same request again to get its answer.").WithCause(err)
		e.RetryAfter = time.Second
		return e
	}
	return err
}

// append gives the entries their places in the logs of their roots, which it
// returns.
func (c *change) append(entries []audit.Draft, rand io.Reader) (receipt audit.Receipt, roots []string, err error) {
	records := map[string][]audit.Record{}
	for i := range entries {
		rootID, _, _ := strings.Cut(entries[i].Path, "/")
		head, ok := c.heads[rootID]
		if !ok {
			return receipt, nil, errors.New("audit entry for a root that was not locked: " + rootID)
		}
		rec, err := head.Append(&entries[i], rand)
		if err != nil {
			return receipt, nil, err
		}
		if records[rootID] == nil {
			roots = append(roots, rootID)
		}
		records[rootID] = append(records[rootID], rec)
		receipt = audit.Receipt{Origin: audit.Origin(head.LogID, head.Epoch), Seq: rec.Seq, LeafHash: rec.LeafHash}
	}
	for _, rootID := range roots {
		if err := c.AppendAudit(c.heads[rootID], records[rootID]); err != nil {
			return receipt, nil, err
		}
		if own := records[rootID]; c.ends != nil {
			c.ends.put(rootID, logEnd{c.heads[rootID].Root, own[len(own)-1].Timestamp})
		}
	}
	return receipt, roots, nil
}

// lock serializes this change with all others of the same root. Whatever the
// change decides by must be read after it. That is so for the actor too: once
// the lock is there, the call has the actor as it is now, or lock fails with
// what Service.Authenticate would say. A root in which the actor has nothing
// is never locked, whoever names it: nobody can make others wait there.
func (c *change) lock(rootID string) error { return c.lockFor(rootID, "") }

// lockFor is lock for a change that then reads the organization soon.
func (c *change) lockFor(rootID, soon string) error {
	if c.heads[rootID] != nil {
		return nil
	}
	if !c.within(rootID) {
		return NotFound()
	}
	first := len(c.heads) == 0
	if first && c.present != nil {
		c.ahead(soon)
	}
	head, err := c.Lock(rootID)
	if err != nil {
		return err
	}
	if first && c.now != nil {
		c.at = c.now()
	}
	if c.ends != nil {
		last, err := c.lastEntry(head)
		if err != nil {
			return err
		}
		c.at = later(c.at, last)
	}
	c.heads[rootID] = head
	if first && c.present != nil {
		c.call.Actor, err = c.present(c.Tx, c.call)
	}
	return err
}

// ahead has the store read with the lock what is read after it: the actor, and
// an organization.
func (c *change) ahead(soon string) {
	a := c.call.Actor
	if a.Kind == auth.KindKey {
		c.Ahead(a.ID, [2]string{a.OrgID, soon})
	} else {
		c.Ahead("", [2]string{soon})
	}
}

// logEnd is the time of the last entry of a log whose tree has the root hash.
type logEnd struct {
	root audit.Hash
	at   time.Time
}

// logEnds remembers the ends of logs, those of maxLogEnds roots at most. It is safe
// for concurrent use.
type logEnds struct {
	mu     sync.Mutex
	byRoot map[string]logEnd
}

const maxLogEnds = 20_000

func (e *logEnds) get(rootID string) (end logEnd, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	end, ok = e.byRoot[rootID]
	return end, ok
}

func (e *logEnds) put(rootID string, end logEnd) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.byRoot) >= maxLogEnds {
		clear(e.byRoot) // they are looked up again
	}
	e.byRoot[rootID] = end
}

// lastEntry returns the time of the newest entry of a root's logs.
func (c *change) lastEntry(head *audit.Head) (time.Time, error) {
	if end, ok := c.ends.get(head.RootID); ok && end.root == head.Root && head.Size > 0 {
		return end.at, nil
	}
	at, err := c.LastAudit(head.RootID)
	if errors.Is(err, ErrAbsent) {
		return time.Time{}, nil
	}
	return at, err
}

// within reports whether the actor can see anything in a root.
func (c *change) within(rootID string) bool {
	return c.call.Actor.Everywhere() || c.call.Actor.RootID == rootID
}

// target finds the organization that a change is about, locks its root, and
// checks again, inside the transaction, what the surface has checked before:
// visibility, permissions and precondition.
func (c *change) target(id string, permissions ...string) (*Organization, error) {
	o, err := c.locked(id)
	if err != nil {
		return nil, err
	}
	if o == nil || o.DeletedAt != nil || !c.call.Actor.Sees(o.Path) {
		return nil, NotFound()
	}
	return o, c.call.Actor.Demand(o.Path, permissions...)
}

// locked locks the root of the organization and returns the organization,
// live or deleted, as it is under that lock; nil if there is none in a root in
// which the actor sees something.
func (c *change) locked(id string) (*Organization, error) {
	// An organization never leaves its root. Only where an id has been freed
	// and used again is the remembered root the wrong one.
	if rootID := c.rootOf(id); rootID != "" && c.within(rootID) {
		if err := c.lockFor(rootID, id); err != nil && !errors.Is(err, ErrAbsent) {
			return nil, err
		}
	}
	o, err := c.Org(id)
	if err == nil && !c.within(o.RootID) {
		return nil, nil
	}
	if err == nil && c.heads[o.RootID] == nil {
		if err = c.lock(o.RootID); err == nil {
			o, err = c.Org(id)
		}
	}
	if errors.Is(err, ErrAbsent) {
		return nil, nil
	}
	return o, err
}

// entry drafts the audit entry of a change to o, or to something that o owns.
func (c *change) entry(o *Organization, action string, target audit.Target, changes []audit.Change) audit.Draft {
	a := c.call.Actor
	return audit.Draft{ID: c.newID("aud_"), Timestamp: c.at, OrgID: o.ID, Path: o.Path, Action: action,
		Actor:  audit.Actor{Type: string(a.Kind), ID: a.ID, Name: a.Name},
		Target: target, Changes: changes,
		RequestID: c.call.RequestID, IP: c.call.IP, UserAgent: c.call.UserAgent}
}

// orgEntry drafts the entry of a change to the organization itself.
func (c *change) orgEntry(o *Organization, action string, changes []audit.Change) audit.Draft {
	return c.entry(o, action, audit.Target{Type: "organization", ID: o.ID}, changes)
}

// NotFound is the one answer for organizations that do not exist and for those
// that the actor cannot see.
func NotFound() *problem.Error {
	return problem.New(problem.NotFound, "There is no such organization, or this key cannot see it.")
}

// ETag returns the strong entity tag of the organization's representation.
func (o *Organization) ETag() string { return etag("org", []*Organization{o}) }

// etag hashes all that a representation made from organizations depends on.
func etag(kind string, orgs []*Organization) string {
	h := sha256.New()
	h.Write([]byte(kind))
	var buf [16]byte
	for _, o := range orgs {
		h.Write([]byte{0})
		h.Write([]byte(o.Path))
		binary.BigEndian.PutUint64(buf[:], uint64(o.Version))
		binary.BigEndian.PutUint64(buf[8:], uint64(o.CreatedAt.UnixMicro()))
		h.Write(buf[:])
	}
	return `"` + base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:12]) + `"`
}

// CheckMatch checks an If-Match header (RFC 9110, section 13.1.1) against the
// entity tag of the resource as it is.
func CheckMatch(ifMatch, etag string) error {
	if ifMatch == "" || strings.TrimSpace(ifMatch) == "*" {
		return nil
	}
	for tag := range strings.SplitSeq(ifMatch, ",") {
		if strings.TrimSpace(tag) == etag {
			return nil
		}
	}
	return problem.New(problem.PreconditionFailed, "The resource has changed: its ETag is now %s.", etag).
		WithFix("Read the resource again and repeat the change with its new ETag.").With("etag", etag)
}

// matchNothing checks an If-Match header against a resource that does not
// exist, as absent says: none matches that, not even *.
func matchNothing(ifMatch string, absent *problem.Error) error {
	if ifMatch == "" {
		return nil
	}
	return problem.New(problem.PreconditionFailed, "%s", absent.Detail).WithFix("Leave out If-Match.")
}

// value returns v as JSON.
func value(v any) jsontext.Value {
	b, err := json.Marshal(v)
	if err != nil {
		panic("org: value that is not JSON: " + err.Error())
	}
	return b
}

// set returns the change that gives pointer a first value; nothing for an
// empty one.
func set(changes []audit.Change, pointer string, v any, empty bool) []audit.Change {
	if empty {
		return changes
	}
	return append(changes, audit.Change{Pointer: pointer, New: value(v)})
}

// replaced appends the change from old to new, nothing if they are equal.
// Empty values count as absent.
func replaced(changes []audit.Change, pointer, old, new string) []audit.Change {
	if old == new {
		return changes
	}
	c := audit.Change{Pointer: pointer}
	if old != "" {
		c.Old = value(old)
	}
	if new != "" {
		c.New = value(new)
	}
	return append(changes, c)
}

func replacedList(changes []audit.Change, pointer string, old, new []string) []audit.Change {
	if slices.Equal(old, new) {
		return changes
	}
	c := audit.Change{Pointer: pointer}
	if len(old) > 0 {
		c.Old = value(old)
	}
	if len(new) > 0 {
		c.New = value(new)
	}
	return append(changes, c)
}
