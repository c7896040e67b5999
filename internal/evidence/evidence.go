package evidence

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/mod/sumdb/note"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

// LogState is an epoch of a log with its last signature.
type LogState struct {
	Head      *audit.Head
	Signature *Signature // size 0 if it was never signed
}

// Origin names the epoch of the log.
func (l *LogState) Origin() string { return audit.Origin(l.Head.LogID, l.Head.Epoch) }

// signed returns what the last signature says.
func (l *LogState) signed() audit.Checkpoint {
	c, err := audit.ParseCheckpoint(l.Signature.Checkpoint)
	if err != nil {
		return audit.Checkpoint{Origin: l.Origin(), Root: audit.EmptyRoot}
	}
	return c
}

func readLog(v View, rootID, logID string, epoch int64) (*LogState, error) {
	head, err := v.Head(rootID, logID, epoch)
	if err != nil {
		return nil, err
	}
	sig, err := v.Signature(head)
	if errors.Is(err, org.ErrAbsent) {
		sig, err = &Signature{}, nil
	}
	if err != nil {
		return nil, err
	}
	return &LogState{Head: head, Signature: sig}, nil
}

func hashSource(v View, head *audit.Head) audit.HashSource {
	return func(level int, from, to int64) ([]audit.Hash, error) { return v.LogHashes(head, level, from, to) }
}

// Anchors keeps what was signed outside of the store.
type Anchors interface {
	// Anchored returns the last checkpoint of a log that was kept.
	Anchored(logID string) (audit.Checkpoint, bool)
	// Keep returns once the checkpoints are kept durably.
	Keep(signed []*LogState) error
}

// A Refusal says why a log was not signed.
type Refusal struct {
	RootID, LogID string
	Err           error
	Missing       bool // the store does not have the log at all
}

// UnsignedHeads returns heads with entries that are not signed; see
// Tx.UnsignedHeads.
func (s *Service) UnsignedHeads(ctx context.Context, rootID string, after *audit.Head, limit int) (heads []*audit.Head, err error) {
	err = s.store.Read(ctx, func(v View) (err error) {
		heads, err = v.UnsignedHeads(rootID, after, limit)
		return err
	})
	return heads, err
}

// SignedLogs returns logs that were signed at or after a time, by any server,
// the earliest first, at most limit.
func (s *Service) SignedLogs(ctx context.Context, since time.Time, limit int) (logs []*LogState, err error) {
	err = s.store.Read(ctx, func(v View) error {
		logs = nil
		heads, err := v.SignedHeads(since, limit)
		if err != nil {
			return err
		}
		for _, h := range heads {
			sig, err := v.Signature(h)
			if err != nil {
				return err
			}
			logs = append(logs, &LogState{Head: h, Signature: sig})
		}
		return nil
	})
	return logs, err
}

// SignLogs signs logs as they are now, after it has checked that each still
// has all that was signed of it before, by its last signature and by its
// anchor. A signature is first kept by the anchors and then stored and
// published. Logs of which that does not hold, or whose key is not at hand,
// are refused.
func (s *Service) SignLogs(ctx context.Context, heads []*audit.Head, anchors Anchors) (signed []*LogState, refused []Refusal, err error) {
	at := s.orgs.Now()
	err = s.store.Read(ctx, func(v View) error {
		signed, refused = nil, nil
		for _, h := range heads {
			l, err := readLog(v, h.RootID, h.LogID, h.Epoch)
			if err != nil {
				return err
			}
			done, err := s.sign(v, l, anchors, at)
			var p *problem.Error
			switch {
			case errors.As(err, &p):
				refused = append(refused, Refusal{RootID: h.RootID, LogID: h.LogID, Err: err})
			case err != nil:
				return err
			case done:
				signed = append(signed, l)
			}
		}
		return nil
	})
	if err != nil || len(signed) == 0 {
		return nil, refused, err
	}
	if err := anchors.Keep(signed); err != nil {
		return nil, refused, err
	}
	var stored []*LogState
	err = s.store.Write(ctx, func(tx Tx) error {
		stored = nil
		for _, l := range signed {
			err := tx.PutSignature(l.Head, l.Signature)
			if errors.Is(err, org.ErrStale) {
				continue // another server has signed as much or more
			}
			if err != nil {
				return err
			}
			stored = append(stored, l)
		}
		return nil
	})
	return stored, refused, err
}

// sign checks a log and replaces its signature; false if it is signed as it is.
func (s *Service) sign(v View, l *LogState, anchors Anchors, at time.Time) (bool, error) {
	if l.Signature.Keys.Now.Version == 0 {
		l.Signature.Keys.Now = KeyName{Seed: s.keyring.Newest(), Version: 1}
	}
	if err := s.checkLog(v, l, anchors); err != nil {
		return false, err
	}
	if l.Signature.Size >= l.Head.Size {
		return false, nil
	}
	keys := l.Signature.Keys
	var signers []note.Signer
	for _, name := range signersAt(keys, at) {
		k, err := s.keyring.Key(name.Seed, l.Head.LogID, l.Head.Epoch, name.Version)
		if err != nil {
			return false, err
		}
		signers = append(signers, k)
	}
	checkpoint, err := audit.SignCheckpoint(l.Head, signers...)
	if err != nil {
		return false, err
	}
	l.Signature = &Signature{Size: l.Head.Size, Checkpoint: checkpoint, SignedAt: at, Keys: keys}
	return true, nil
}

// signersAt returns the keys that sign at a time.
func signersAt(k LogKeys, now time.Time) []KeyName {
	if k.Old.Version > 0 && now.Before(k.OldUntil) {
		return []KeyName{k.Now, k.Old}
	}
	return []KeyName{k.Now}
}

// checkLog checks that a log goes on from its last signature and its anchor.
func (s *Service) checkLog(v View, l *LogState, anchors Anchors) error {
	hashes := hashSource(v, l.Head)
	if l.Signature.Size > 0 {
		if _, err := s.signingKey(l); err != nil {
			return err
		}
		if err := audit.CheckAnchor(l.Head, l.signed(), hashes); err != nil {
			return err
		}
	}
	anchored, ok := anchors.Anchored(l.Head.LogID)
	if !ok || anchored == l.signed() {
		return nil
	}
	_, epoch, err := audit.ParseOrigin(anchored.Origin)
	if err != nil {
		return err
	}
	if epoch < l.Head.Epoch {
		return s.checkOpening(v, l, anchored)
	}
	return audit.CheckAnchor(l.Head, anchored, hashes)
}

// checkOpening checks that the log's epoch was opened by somebody who knew all
// that had been anchored of an earlier one.
func (s *Service) checkOpening(v View, l *LogState, anchored audit.Checkpoint) error {
	_, epoch, err := audit.ParseOrigin(anchored.Origin)
	if err != nil {
		return err
	}
	page, err := v.AuditEntries(org.AuditQuery{RootID: l.Head.RootID, OrgID: l.Head.RootID, Path: l.Head.RootID + "/", Scope: org.ScopeSubtree,
		Ascending: true, After: org.AuditPosition(epoch+1, 0), Limit: 1})
	if err != nil {
		return err
	}
	fail := problem.New(problem.Conflict, "The audit log %s goes on from less than its last signed checkpoint, which is of %s with %d entries.",
		l.Origin(), anchored.Origin, anchored.Size).WithFix("Restore the database with all that was signed.")
	if len(page.Records) != 1 {
		return fail
	}
	e, err := page.Records[0].Entry()
	if err != nil {
		return err
	}
	for _, c := range e.Changes {
		var o audit.EpochOpening
		if e.Action != audit.ActionEpochOpened || c.Pointer != "/epoch" || json.Unmarshal(c.New, &o) != nil {
			continue
		}
		if last, err := audit.ParseCheckpoint([]byte(o.Checkpoint)); err == nil && last.Origin == anchored.Origin && last.Size >= anchored.Size {
			return nil
		}
	}
	return fail
}

// signingKey returns the key that has signed the last checkpoint of a log,
// the newer one if there were two.
func (s *Service) signingKey(l *LogState) (*audit.Key, error) {
	for _, name := range []KeyName{l.Signature.Keys.Now, l.Signature.Keys.Old} {
		if name.Version == 0 {
			break
		}
		k, err := s.keyring.Key(name.Seed, l.Head.LogID, l.Head.Epoch, name.Version)
		if err != nil {
			return nil, err
		}
		if c, err := audit.OpenCheckpoint(l.Signature.Checkpoint, k.Verifier()); err == nil && c.Size == l.Signature.Size && c.Origin == l.Origin() {
			return k, nil
		}
	}
	return nil, problem.New(problem.Conflict, "The last stored checkpoint of the audit log %s is not one that its key has signed.", l.Origin()).
		WithFix("Restore the database with all that was signed.")
}

// CheckAnchor checks that the store still has what is anchored of a log, with
// nothing to sign; it returns nil if so.
func (s *Service) CheckAnchor(ctx context.Context, rootID, logID string, anchors Anchors) (*Refusal, error) {
	r := &Refusal{RootID: rootID, LogID: logID}
	err := s.store.Read(ctx, func(v View) error {
		l, err := readLog(v, rootID, logID, -1)
		if errors.Is(err, org.ErrAbsent) {
			r.Missing = true
			return problem.New(problem.Conflict, "The audit log %s of the root %s was signed, but the database does not have it.", logID, rootID).
				WithFix("If an old backup was restored on purpose, give the log up: orgd audit new-epoch --reason …")
		}
		if err != nil {
			return err
		}
		return s.checkLog(v, l, anchors)
	})
	if p := (*problem.Error)(nil); !errors.As(err, &p) || p.Code == problem.Unavailable && p.RetryAfter > 0 {
		return nil, err
	}
	r.Err = err
	return r, nil
}

// LogHead returns the head of the open log of a root.
func (s *Service) LogHead(ctx context.Context, rootID string) (h *audit.Head, err error) {
	err = s.store.Read(ctx, func(v View) (err error) {
		h, err = v.Head(rootID, "", -1)
		return err
	})
	if errors.Is(err, org.ErrAbsent) {
		err = org.NotFound()
	}
	return h, err
}

// AddCosignatures adds the answer of a witness to a checkpoint that was signed
// when the log had the given size. It does nothing if the log has been signed
// again since.
func (s *Service) AddCosignatures(ctx context.Context, head *audit.Head, size int64, answer []byte, witnesses ...note.Verifier) error {
	err := s.store.Write(ctx, func(tx Tx) error {
		sig, err := tx.Signature(head)
		if err != nil || sig.Size != size {
			return err
		}
		checkpoint, err := audit.AddCosignatures(sig.Checkpoint, answer, witnesses...)
		if err != nil {
			return err
		}
		return tx.PutCosignatures(head, size, checkpoint)
	})
	if errors.Is(err, org.ErrStale) {
		return nil
	}
	return err
}

// Log returns an epoch of the open log of a root, as it was last signed. A
// negative epoch stands for the last one. It waits a little for the first
// signature.
func (s *Service) Log(ctx context.Context, rootID string, epoch int64) (l *LogState, err error) {
	err = s.await(ctx, func() (err error) {
		l, err = s.logNow(ctx, rootID, epoch)
		return err
	})
	return l, err
}

func (s *Service) logNow(ctx context.Context, rootID string, epoch int64) (l *LogState, err error) {
	err = s.store.Read(ctx, func(v View) (err error) {
		l, err = s.signedLog(v, rootID, epoch)
		return err
	})
	return l, err
}

func (s *Service) signedLog(v View, rootID string, epoch int64) (*LogState, error) {
	l, err := readLog(v, rootID, "", epoch)
	if errors.Is(err, org.ErrAbsent) {
		return nil, problem.New(problem.NotFound, "The audit log has no epoch %d.", epoch)
	}
	if err != nil {
		return nil, err
	}
	if l.Signature.Size == 0 {
		return nil, s.unsigned(l.Head.LogID)
	}
	return l, nil
}

// SetRefused tells whether a log is signed no further, so that nobody waits for
// that.
func (s *Service) SetRefused(logID string, refused bool) {
	if refused {
		s.refused.Store(logID, true)
	} else {
		s.refused.Delete(logID)
	}
}

// unsigned is the error for what no signature covers. It has a RetryAfter if
// one is due.
func (s *Service) unsigned(logID string) *problem.Error {
	if _, refused := s.refused.Load(logID); refused {
		return problem.New(problem.Unavailable, "The audit log is not signed any further: the database lacks what was signed before, or the server the key.").
			WithFix("Ask the operator, who sees more in /refused_audit_logs.")
	}
	p := problem.New(problem.Unavailable, "The audit log has not been signed that far yet.").
		WithFix("Repeat the request after a second. If that does not help, see /service_status.")
	p.RetryAfter = time.Second
	return p
}

// VerifierKey returns the verifier key of the last signature of a log.
func (s *Service) VerifierKey(l *LogState) (string, error) {
	k, err := s.signingKey(l)
	if err != nil {
		return "", err
	}
	return k.Verifier(), nil
}

// readSigned runs fn with an epoch of a log as it was last signed.
func (s *Service) readSigned(ctx context.Context, rootID string, epoch int64, fn func(v View, l *LogState) error) error {
	return s.await(ctx, func() error {
		return s.store.ReadHeavy(ctx, func(v View) error {
			l, err := s.signedLog(v, rootID, epoch)
			if err != nil {
				return err
			}
			return fn(v, l)
		})
	})
}

// Tile returns a tile of hashes or a bundle of entries of the part of a log
// that is signed.
func (s *Service) Tile(ctx context.Context, rootID string, epoch int64, t audit.Tile) (b []byte, err error) {
	err = s.readSigned(ctx, rootID, epoch, func(v View, l *LogState) error {
		if !t.In(l.Signature.Size) {
			return problem.New(problem.NotFound, "The log has %d signed entries; it does not have this tile.", l.Signature.Size)
		}
		if !t.Entries {
			b, err = hashSource(v, l.Head).Read(t)
			return err
		}
		from, to := t.Range()
		leaves, err := v.Leaves(l.Head, from, to)
		if err != nil {
			return err
		}
		for _, leaf := range leaves {
			b = audit.AppendBundle(b, leaf)
		}
		return nil
	})
	return b, err
}

// Consistency returns the proof that the signed log of size to goes on from
// that of size from. A negative to stands for all that is signed.
func (s *Service) Consistency(ctx context.Context, rootID string, epoch, from, to int64) (proof []audit.Hash, err error) {
	err = s.readSigned(ctx, rootID, epoch, func(v View, l *LogState) error {
		if to < 0 {
			to = l.Signature.Size
		}
		if to > l.Signature.Size {
			return problem.Param("to", "is greater than the size of the last checkpoint, %d", l.Signature.Size)
		}
		if from > to {
			return problem.Param("from", "is greater than %d", to)
		}
		proof, err = audit.ProveConsistency(from, to, hashSource(v, l.Head))
		return err
	})
	return proof, err
}

// ProveGrowth returns the proof that a log, as it was when it had the head,
// goes on from what it was at size from.
func (s *Service) ProveGrowth(ctx context.Context, head *audit.Head, from int64) (proof []audit.Hash, err error) {
	err = s.store.Read(ctx, func(v View) (err error) {
		proof, err = audit.ProveConsistency(from, head.Size, hashSource(v, head))
		return err
	})
	return proof, err
}

// LastSignature returns the last signature of the epoch with the head.
func (s *Service) LastSignature(ctx context.Context, head *audit.Head) (sig *Signature, err error) {
	err = s.store.Read(ctx, func(v View) (err error) {
		sig, err = v.Signature(head)
		return err
	})
	return sig, err
}

// Waiting for a signature that is due.
const (
	signWait = 2 * time.Second
	signPoll = 50 * time.Millisecond
)

// await calls fn until it does not return the error unsigned, for at most
// signWait.
func (s *Service) await(ctx context.Context, fn func() error) error {
	for end := time.Now().Add(signWait); ; {
		err := fn()
		if p := (*problem.Error)(nil); err == nil || !errors.As(err, &p) || p.Code != problem.Unavailable || p.RetryAfter == 0 || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(signPoll):
		}
	}
}

// ProveEntry returns an entry that belongs to what the actor sees of an
// organization, with the proof that it is in the signed log. It waits a little
// for the signature of an entry that was just made.
func (s *Service) ProveEntry(ctx context.Context, actor *auth.Actor, snap *org.Snapshot, entryID string) (p *audit.Proof, err error) {
	err = s.await(ctx, func() error {
		return s.store.Read(ctx, func(v View) error {
			rec, err := v.AuditEntry(snap.RootID, entryID)
			if errors.Is(err, org.ErrAbsent) || err == nil && !snap.Shows(actor, rec) {
				return problem.New(problem.NotFound, "There is no such audit entry, or it is not one of this organization.")
			}
			if err != nil {
				return err
			}
			l, err := s.signedLog(v, snap.RootID, rec.Epoch)
			if err != nil {
				return err
			}
			if rec.Seq >= l.Signature.Size {
				return s.unsigned(l.Head.LogID)
			}
			p = &audit.Proof{Leaf: rec.Leaf, Values: rec.Values, Seq: rec.Seq, Checkpoint: l.Signature.Checkpoint}
			p.Hashes, err = audit.ProveEntry(l.Signature.Size, rec.Seq, hashSource(v, l.Head))
			return err
		})
	})
	return p, err
}

// LogExport is an export of a log that is about to be written.
type LogExport struct {
	service    *Service
	rootID     string
	epoch, seq int64
	until      *LogState
	key        string
}

// ExportLog prepares the export of all signed entries of a root's log from a
// place on. It waits a little for the signature of what is in the log now.
func (s *Service) ExportLog(ctx context.Context, rootID string, epoch, seq int64) (*LogExport, error) {
	x := &LogExport{service: s, rootID: rootID, epoch: epoch, seq: seq}
	now, err := s.LogHead(ctx, rootID)
	if err != nil {
		return nil, err
	}
	if org.AuditPosition(epoch, seq) > org.AuditPosition(now.Epoch, now.Size) {
		return nil, problem.Param("seq", "lies behind the end of the log, which is entry %d of epoch %d", now.Size, now.Epoch)
	}
	err = s.await(ctx, func() (err error) {
		if x.until, err = s.logNow(ctx, rootID, -1); err == nil && x.end() < org.AuditPosition(now.Epoch, now.Size) {
			err = s.unsigned(now.LogID)
		}
		return err
	})
	// What is signed can be had of a log that is signed no further.
	if err != nil && (x.until == nil || x.end() < org.AuditPosition(epoch, seq)) {
		return nil, err
	}
	x.key, err = s.VerifierKey(x.until)
	return x, err
}

// end returns the position after the last entry of the export.
func (x *LogExport) end() int64 { return org.AuditPosition(x.until.Head.Epoch, x.until.Signature.Size) }

// exportPage is how many entries an export reads at a time, and exportBytes
// about how many bytes of them.
const (
	exportPage  = 500
	exportBytes = 1 << 20
)

// Write writes the export, in constant memory. Nothing is being read while it
// writes, and it ends when GoOn says so.
func (x *LogExport) Write(ctx context.Context, w io.Writer) error {
	out, err := audit.NewExport(w, x.rootID, x.until.Head.LogID, x.key, x.epoch, x.seq)
	if err != nil {
		return err
	}
	q := org.AuditQuery{RootID: x.rootID, OrgID: x.rootID, Path: x.rootID + "/", Scope: org.ScopeSubtree, Ascending: true, Limit: exportPage, MaxBytes: exportBytes,
		After: org.AuditPosition(x.epoch, x.seq)}
	for {
		end := x.end()
		if q.After, err = x.entries(ctx, out, q, end); err != nil {
			return err
		}
		// A value that was erased while this export was written is missing
		// from it: it must have the entry that says so.
		erased, err := x.erasedSince(ctx, q)
		if err != nil {
			return err
		}
		if erased < 0 {
			break
		}
		if err := x.service.await(ctx, func() (err error) {
			if x.until, err = x.service.logNow(ctx, x.rootID, -1); err == nil && x.end() <= erased {
				err = x.service.unsigned(x.until.Head.LogID)
			}
			return err
		}); err != nil {
			return err
		}
	}
	if err := out.Checkpoint(x.until.Signature.Checkpoint); err != nil {
		return err
	}
	return out.Close()
}

// entries writes the entries from q.After to before end, and returns the place
// after the last one.
func (x *LogExport) entries(ctx context.Context, out *audit.Export, q org.AuditQuery, end int64) (int64, error) {
	for q.After < end {
		page, err := x.page(ctx, q)
		if err != nil {
			return 0, err
		}
		for i := range page.Records {
			r := &page.Records[i]
			if org.AuditPosition(r.Epoch, r.Seq) >= end {
				return end, nil
			}
			if err := out.Entry(r); err != nil {
				return 0, err
			}
		}
		if page.Next < 0 {
			if last := len(page.Records) - 1; last < 0 || org.AuditPosition(page.Records[last].Epoch, page.Records[last].Seq)+1 != end {
				return 0, errors.New("the audit log of " + x.rootID + " has lost entries that were signed")
			}
			return end, nil
		}
		q.After = page.Next
	}
	return end, nil
}

func (x *LogExport) page(ctx context.Context, q org.AuditQuery) (page org.AuditPage, err error) {
	if err := org.GoOn(ctx); err != nil {
		return page, err
	}
	err = x.service.store.ReadHeavy(ctx, func(v View) (err error) {
		page, err = v.AuditEntries(q)
		return err
	})
	return page, err
}

// erasedSince returns the place of the last erasure from q.After on, -1 if
// there is none.
func (x *LogExport) erasedSince(ctx context.Context, q org.AuditQuery) (int64, error) {
	q.Action = audit.ActionErasure
	found := int64(-1)
	for {
		page, err := x.page(ctx, q)
		if err != nil {
			return 0, err
		}
		if n := len(page.Records); n > 0 {
			found = org.AuditPosition(page.Records[n-1].Epoch, page.Records[n-1].Seq)
		}
		if page.Next < 0 {
			return found, nil
		}
		q.After = page.Next
	}
}

// logEntry drafts an entry about the log itself.
func logEntry(c *change, rootID, action string, changes []audit.Change) (audit.Draft, error) {
	o, err := c.Org(rootID)
	if err != nil {
		return audit.Draft{}, err
	}
	return c.Entry(o, action, audit.Target{Type: "audit_log", ID: c.LogHead(rootID).LogID}, changes), nil
}

// RotatedLogKey is what a rotation of a log's key led to.
type RotatedLogKey struct {
	Key          string    `json:"key"` // the verifier key of the new key
	OldKeyEndsAt time.Time `json:"old_key_ends_at"`
}

// RotateLogKey lets another key sign a root's log from now on: one of the newest
// seed. The old key signs too until overlap has passed.
func (s *Service) RotateLogKey(ctx context.Context, call *org.Call, rootID string, overlap time.Duration) (rotated *RotatedLogKey, receipt audit.Receipt, err error) {
	receipt, err = s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		o, err := c.Target(rootID, key.AuditRead)
		if err != nil {
			return nil, nil, err
		}
		if err := org.CheckRoot(o); err != nil {
			return nil, nil, err
		}
		head := c.LogHead(o.RootID)
		sig, err := c.Signature(head)
		if errors.Is(err, org.ErrAbsent) {
			return nil, nil, s.unsigned(head.LogID)
		}
		if err != nil {
			return nil, nil, err
		}
		keys := LogKeys{Now: KeyName{Seed: s.keyring.Newest(), Version: sig.Keys.Now.Version + 1}, Old: sig.Keys.Now, OldUntil: c.At.Add(overlap)}
		from, err := s.keyring.Key(keys.Old.Seed, head.LogID, head.Epoch, keys.Old.Version)
		if err != nil {
			return nil, nil, err
		}
		// The key before the present one goes: nothing may rest on it any more.
		if _, err := audit.OpenCheckpoint(sig.Checkpoint, from.Verifier()); err != nil {
			p := problem.New(problem.Conflict, "The audit log has not been signed with its present key yet, which it got by the last rotation.").
				WithFix("Try again once it has been signed, which takes a few seconds at most.")
			p.RetryAfter = time.Second
			return nil, nil, p
		}
		to, err := s.keyring.Key(keys.Now.Seed, head.LogID, head.Epoch, keys.Now.Version)
		if err != nil {
			return nil, nil, err
		}
		rotated = &RotatedLogKey{Key: to.Verifier(), OldKeyEndsAt: keys.OldUntil}
		changes, err := audit.RotateKey(from, to, keys.OldUntil)
		if err != nil {
			return nil, nil, err
		}
		if err := c.PutKeys(head, keys); err != nil {
			return nil, nil, err
		}
		entry, err := logEntry(c, o.RootID, audit.ActionKeyRotated, changes)
		return rotated, []audit.Draft{entry}, err
	})
	return rotated, receipt, err
}

// OpenEpoch opens a new epoch of a log that can no longer be signed, since the
// store does not have what was signed last. The checkpoint is the last one
// that was signed. The keys of the log go on signing; if the server lacks the
// seed of the present one, the next key of its newest seed does, and the entry
// says so.
func (s *Service) OpenEpoch(ctx context.Context, call *org.Call, rootID string, checkpoint []byte, reason string) (origin string, receipt audit.Receipt, err error) {
	receipt, err = s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		if err := c.LockRoot(rootID); err != nil {
			return nil, nil, err
		}
		old := c.LogHead(rootID)
		sig, err := c.Signature(old)
		if errors.Is(err, org.ErrAbsent) {
			sig, err = &Signature{Keys: LogKeys{Now: KeyName{Seed: s.keyring.Newest(), Version: 1}}}, nil
		}
		if err != nil {
			return nil, nil, err
		}
		if len(checkpoint) == 0 {
			return nil, nil, problem.New(problem.Conflict, "Nothing of %s has been signed: there is no checkpoint that a new epoch could go on from.", audit.Origin(old.LogID, old.Epoch)).
				WithFix("Give the server the seed %s, with which this epoch began, in audit.key or ORGD_AUDIT_KEY.", sig.Keys.Now.Seed)
		}
		keys, fresh, err := s.nextKeys(sig.Keys, old)
		if err != nil {
			return nil, nil, err
		}
		head, changes, err := audit.OpenEpoch(old, checkpoint, reason, fresh)
		if err != nil {
			return nil, nil, err
		}
		if err := errors.Join(c.CloseLog(old, c.At), c.StartLog(head)); err != nil {
			return nil, nil, err
		}
		// Nothing is signed yet.
		if err := c.PutSignature(head, &Signature{SignedAt: c.At, Keys: keys}); err != nil {
			return nil, nil, err
		}
		origin = audit.Origin(head.LogID, head.Epoch)
		entry, err := logEntry(c, rootID, audit.ActionEpochOpened, changes)
		return origin, []audit.Draft{entry}, err
	})
	return origin, receipt, err
}

// nextKeys returns the keys that sign the epoch after old's, which the keys
// sign: the same, but for an old one that the server lacks. If it lacks the
// present one, it is a key that never signed the log before, which is returned
// as fresh.
func (s *Service) nextKeys(keys LogKeys, old *audit.Head) (_ LogKeys, fresh *audit.Key, err error) {
	if !s.keyring.Has(keys.Now.Seed) {
		keys = LogKeys{Now: KeyName{Seed: s.keyring.Newest(), Version: keys.Now.Version + 1}}
		fresh, err = s.keyring.Key(keys.Now.Seed, old.LogID, old.Epoch+1, keys.Now.Version)
	} else if !s.keyring.Has(keys.Old.Seed) {
		keys = LogKeys{Now: keys.Now}
	}
	return keys, fresh, err
}
