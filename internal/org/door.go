package org

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/problem"
)

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

// errUnchanged ends a mutation that turned out to change nothing.
var errUnchanged = errors.New("nothing changed")

// Check is what decides whether a change may be made, for the function that asks and
// no longer. Inside of a change all of it is as it is under the locks.
type Check struct {
	View
	Call   *Call // its Actor is as it is under the first lock, once there is one
	change *Change
	// rootOf returns the root that an organization was last seen in, or "".
	rootOf func(id string) string
}

// Change is a mutation under way, for the function that makes it and no longer.
type Change struct {
	Check
	Tx
	// At is the time of the change. It is taken under the first lock and never
	// before the last entry of a log that is locked, whatever the clock does, so
	// that entries of a log are in the order of their times.
	At    time.Time
	NewID ident.Source
	now   func() time.Time
	ends  *logEnds
	heads map[string]*audit.Head
	// present returns the actor of the call as it is in this transaction.
	present func(v View, call *Call) (*auth.Actor, error)
}

// Change runs one mutation. It is the only way to change what the audit trail
// covers, for this package and for every other: fn
// returns the audit entries of what it changed, and state and entries are
// committed in one transaction. If fn returns no entry, nothing that it wrote
// is kept. The receipt is that of the last entry; it is zero if nothing
// changed.
func (s *Service) Change(ctx context.Context, call *Call, fn func(c *Change) (result any, entries []audit.Draft, err error)) (audit.Receipt, error) {
	var receipt audit.Receipt
	var roots []string
	err := s.writeTogether(ctx, call, func(tx Tx) error {
		receipt = audit.Receipt{}
		own := *call // its actor is brought up to date
		c := &Change{Check: Check{View: tx, Call: &own, rootOf: s.rootOf}, Tx: tx, At: s.Now(), NewID: s.newID, now: s.Now, ends: s.ends, heads: map[string]*audit.Head{}, present: s.present}
		c.change = c
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
		return remember(tx, c.Call, c.At, result, receipt)
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

// Precheck runs checks of a change before the change, on what is committed and
// without a lock. They run again in the change itself: what they find may not
// last.
func (s *Service) Precheck(ctx context.Context, call *Call, fn func(c *Check) error) error {
	own := *call
	var err error
	if own.Actor, err = s.presentNow(ctx, call); err != nil {
		return err
	}
	return s.store.Read(ctx, func(v View) error { return fn(&Check{View: v, Call: &own, rootOf: s.rootOf}) })
}

// Deliver runs a write that leaves no entry in the audit trail and holds no lock of a
// root: events that somebody sends. fn gets the call with its actor as it is in the
// transaction, and returns the organization's path at which it has demanded the
// permission; that the actor still holds it there is asked again at the end.
func (s *Service) Deliver(ctx context.Context, call *Call, permission string, fn func(tx Tx, present *Call) (result any, path string, err error)) error {
	return s.write(ctx, call, func(tx Tx) error {
		at := s.Now()
		present, err := s.presentCall(tx, call)
		if err != nil {
			return err
		}
		result, path, err := fn(tx, present)
		if err != nil {
			return err
		}
		if err := s.stays(tx, present, permission, path); err != nil {
			return err
		}
		return remember(tx, present, at, result, audit.Receipt{})
	})
}

// bulkEvents is from how many events on a transaction takes so long that a root
// has only one of them under way: SQLite has one writer for all.
const bulkEvents = 500

// BulkTurn waits for the turn of a call with so many events.
func (s *Service) BulkTurn(ctx context.Context, call *Call, events int) (leave func(), err error) {
	if events < bulkEvents {
		return func() {}, nil
	}
	return s.bulk.take(ctx, call.Actor.RootID)
}

// SettleTurn waits for the turn of a root in which one change of settings at a time is
// worked out anew.
func (s *Service) SettleTurn(ctx context.Context, rootID string) (leave func(), err error) {
	return s.settling.take(ctx, rootID)
}

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
func (c *Change) append(entries []audit.Draft, rand io.Reader) (receipt audit.Receipt, roots []string, err error) {
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
		own := records[rootID]
		c.ends.put(rootID, logEnd{c.heads[rootID].Root, own[len(own)-1].Timestamp})
	}
	return receipt, roots, nil
}

// LockRoot serializes this change with all others of the same root. Whatever the
// change decides by must be read after it. That is so for the actor too: once
// the lock is there, the call has the actor as it is now, or LockRoot fails with
// what Service.Authenticate would say. A root in which the actor has nothing
// is never locked, whoever names it: nobody can make others wait there.
func (c *Change) LockRoot(rootID string) error { return c.lockFor(rootID, "") }

// lockFor is LockRoot for a change that then reads the organization soon.
func (c *Change) lockFor(rootID, soon string) error {
	if c.heads[rootID] != nil {
		return nil
	}
	if !c.within(rootID) {
		return NotFound()
	}
	first := len(c.heads) == 0
	if first {
		c.ahead(soon)
	}
	head, err := c.Lock(rootID)
	if err != nil {
		return err
	}
	if first {
		c.At = c.now()
	}
	last, err := c.lastEntry(head)
	if err != nil {
		return err
	}
	c.At = Later(c.At, last)
	c.heads[rootID] = head
	if first {
		c.Call.Actor, err = c.present(c.Tx, c.Call)
	}
	return err
}

// ahead has the store read with the lock what is read after it: the actor, and
// an organization.
func (c *Change) ahead(soon string) {
	a := c.Call.Actor
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
func (c *Change) lastEntry(head *audit.Head) (time.Time, error) {
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
func (c *Check) within(rootID string) bool {
	return c.Call.Actor.Everywhere() || c.Call.Actor.RootID == rootID
}

// Target finds the organization that a change is about and checks, again, what the
// surface has checked before: visibility and permissions. In a change it locks its root
// first.
func (c *Check) Target(id string, permissions ...string) (*Organization, error) {
	o, err := c.Locked(id)
	if err != nil {
		return nil, err
	}
	if o == nil || o.DeletedAt != nil || !c.Call.Actor.Sees(o.Path) {
		return nil, NotFound()
	}
	return o, c.Call.Actor.Demand(o.Path, permissions...)
}

// Locked returns the organization, live or deleted, in a change as it is under the
// lock of its root; nil if there is none in a root in which the actor sees something.
func (c *Check) Locked(id string) (*Organization, error) {
	// An organization never leaves its root. Only where an id has been freed
	// and used again is the remembered root the wrong one.
	if rootID := c.rootOf(id); c.change != nil && rootID != "" && c.within(rootID) {
		if err := c.change.lockFor(rootID, id); err != nil && !errors.Is(err, ErrAbsent) {
			return nil, err
		}
	}
	o, err := c.Org(id)
	if err == nil && !c.within(o.RootID) {
		return nil, nil
	}
	if err == nil && c.change != nil && c.change.heads[o.RootID] == nil {
		if err = c.change.LockRoot(o.RootID); err == nil {
			o, err = c.Org(id)
		}
	}
	if errors.Is(err, ErrAbsent) {
		return nil, nil
	}
	return o, err
}

// Entry drafts the audit entry of a change to o, or to something that o owns.
func (c *Change) Entry(o *Organization, action string, target audit.Target, changes []audit.Change) audit.Draft {
	a := c.Call.Actor
	return audit.Draft{ID: c.NewID("aud_"), Timestamp: c.At, OrgID: o.ID, Path: o.Path, Action: action,
		Actor:  audit.Actor{Type: string(a.Kind), ID: a.ID, Name: a.Name},
		Target: target, Changes: changes,
		RequestID: c.Call.RequestID, IP: c.Call.IP, UserAgent: c.Call.UserAgent}
}

// OrgEntry drafts the entry of a change to the organization itself.
func (c *Change) OrgEntry(o *Organization, action string, changes []audit.Change) audit.Draft {
	return c.Entry(o, action, audit.Target{Type: "organization", ID: o.ID}, changes)
}

func Later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// StartLog starts the audit log of a new root, or the next epoch of one that was
// closed, in which the entries of the change then are.
func (c *Change) StartLog(head *audit.Head) error {
	if err := c.NewLog(head); err != nil {
		return err
	}
	c.heads[head.RootID] = head
	return nil
}

// LogHead returns the head of the audit log of a root that the change has locked.
func (c *Change) LogHead(rootID string) *audit.Head { return c.heads[rootID] }
