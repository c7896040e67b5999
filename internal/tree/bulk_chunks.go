package tree

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

// settleAttempts is how often an import is brought to its end before that is
// left to SettleImports.
const settleAttempts = 3

// importChunks creates the organizations of a plan chunk by chunk, each in a
// transaction of a few milliseconds between which others get their turn, and
// yet all of them or none:
//
//  1. The rows are staged. They have their ids, and do not exist for anybody.
//     If anything fails they are removed.
//  2. The transaction that makes the first chunk live decides. It checks, under
//     the locks of the roots, that all is as it was when the rows were checked.
//  3. The other chunks follow, parents first, each with its audit entries.
//     Nobody can delete or move what rows still wait below.
//
// How far an import is, is stored with each step. If the process ends in
// between, SettleImports removes what is staged of an import that is not
// decided, and completes one that is.
func (s *Service) importChunks(ctx context.Context, call *org.Call, plan *importPlan, ends []int, out *ImportResult) (audit.Receipt, error) {
	p := &PendingImport{ID: s.newID("imp_"), Actor: audit.Actor{Type: string(call.Actor.Kind), ID: call.Actor.ID, Name: call.Actor.Name},
		RequestID: call.RequestID, IP: call.IP, UserAgent: call.UserAgent, Chunks: len(ends)}
	s.imports.begin(p.ID)
	defer s.imports.end(p.ID)
	err := s.stage(ctx, p, plan, ends)
	if err == nil {
		err = s.confirming(ctx, call, plan, func(plan *importPlan) error {
			_, err := s.reveal(ctx, call, p, plan.confirm, out)
			return err
		})
	}
	// What is stored says how it goes on, whatever has failed. The client
	// cannot cancel it any more.
	ctx = context.WithoutCancel(ctx)
	var done bool
	var receipt audit.Receipt
	var unsettled error
	for attempt := range settleAttempts {
		if attempt > 0 {
			time.Sleep(100 * time.Millisecond)
		}
		if done, receipt, unsettled = s.settle(ctx, p.ID, call.Idempotent, out); unsettled == nil {
			break
		}
	}
	switch {
	case done:
		return receipt, nil
	case p.Revealed > 0 && unsettled == nil: // another process has completed it
		return receipt, nil
	case p.Revealed > 0:
		return audit.Receipt{}, problem.New(problem.OutcomeUnknown, "The import is decided, but not all of its organizations are there yet.").
			WithFix("Do not send it again: the server creates the others as soon as it can.").WithCause(unsettled)
	}
	return audit.Receipt{}, err
}

// stage stages the rows of a plan, in chunks that end at ends.
func (s *Service) stage(ctx context.Context, p *PendingImport, plan *importPlan, ends []int) error {
	from := 0
	for chunk, to := range ends {
		orgs := plan.orgs(from, to)
		err := s.imported.Write(ctx, func(tx ImportTx) error {
			var err error
			if chunk == 0 {
				err = tx.BeginImport(p)
			} else {
				err = tx.StepImport(p)
			}
			if err != nil {
				return err
			}
			return taken(tx.StageOrgs(p.ID, chunk, orgs))
		})
		if problem.Is(err, problem.OutcomeUnknown) {
			// Of the rows, not of the import: none of it will be there.
			e := problem.New(problem.Unavailable, "The database failed while the rows were written; nothing was imported.").WithCause(err)
			e.RetryAfter = time.Second
			return e
		}
		if err != nil {
			return err
		}
		if chunk > 0 {
			p.Step++
		}
		from = to
	}
	return nil
}

// reveal makes the next chunk of an import live, after what confirm checks; nil
// for nothing. The answer to the call is kept with the last chunk.
func (s *Service) reveal(ctx context.Context, call *org.Call, p *PendingImport, confirm func(*importChange) error, out *ImportResult) (audit.Receipt, error) {
	this, next := *call, *p
	next.Revealed++
	last := next.Revealed == p.Chunks
	if !last {
		this.Idempotent = nil
	}
	receipt, err := s.changeImport(ctx, &this, func(c *importChange) (any, []audit.Draft, error) {
		if confirm != nil {
			if err := confirm(c); err != nil {
				return nil, nil, err
			}
		}
		if err := c.StepImport(&next); err != nil {
			return nil, nil, err
		}
		orgs, err := c.StagedOrgs(p.ID, p.Revealed)
		if err != nil {
			return nil, nil, err
		}
		if len(orgs) == 0 {
			return nil, nil, errors.New("a chunk of the import " + p.ID + " is gone")
		}
		if err := s.lockRoots(c, orgs); err != nil {
			return nil, nil, err
		}
		entries := make([]audit.Draft, len(orgs))
		for i, o := range orgs {
			stamp(o, c.At)
			entries[i] = c.OrgEntry(o, "organization.created", created(o))
			entries[i].Actor = p.Actor
		}
		if err := c.RevealOrgs(orgs); err != nil {
			return nil, nil, err
		}
		if last {
			err = c.EndImport(p.ID)
		}
		return out, entries, err
	})
	if err == nil {
		next.Step++
		*p = next
	}
	return receipt, err
}

// lockRoots locks the roots of organizations, and starts the logs of those that
// are new roots. All that exist are locked first, so that the time of the
// change is after that of every entry in their logs.
func (s *Service) lockRoots(c *importChange, orgs []*org.Organization) error {
	var fresh []*org.Organization
	var roots []string
	for _, o := range orgs {
		if o.ParentID == "" {
			fresh = append(fresh, o)
		}
	}
	for _, o := range orgs {
		if o.ParentID != "" && !slices.ContainsFunc(fresh, func(root *org.Organization) bool { return root.ID == o.RootID }) {
			roots = append(roots, o.RootID)
		}
	}
	slices.Sort(roots)
	for _, rootID := range slices.Compact(roots) {
		if err := c.LockRoot(rootID); err != nil {
			return err
		}
	}
	for _, root := range fresh {
		if err := c.StartLog(audit.NewHead(root.ID, audit.NewLogID(s.rand))); err != nil {
			return err
		}
	}
	return nil
}

// settle brings an import under way to its end: done says that all of its
// organizations are there, otherwise nothing is left of it. idempotent is that
// of its call, nil if there is none or the call has ended. ErrStale: somebody
// else is at work on it.
func (s *Service) settle(ctx context.Context, id string, idempotent *org.Idempotency, out *ImportResult) (done bool, receipt audit.Receipt, err error) {
	var p *PendingImport
	err = s.imported.Read(ctx, func(v ImportView) (err error) {
		p, err = v.Import(id)
		return err
	})
	if errors.Is(err, org.ErrAbsent) {
		return false, receipt, nil
	} else if err != nil {
		return false, receipt, err
	}
	if p.Revealed == 0 {
		return false, receipt, s.unstage(ctx, p)
	}
	// It is decided: whoever made it may have lost the right to since.
	system := &org.Call{Actor: &auth.Actor{Kind: auth.KindSystem, ID: p.Actor.ID}, RequestID: p.RequestID, IP: p.IP, UserAgent: p.UserAgent,
		Idempotent: idempotent}
	for p.Revealed < p.Chunks {
		if err := ctx.Err(); err != nil {
			return false, receipt, err
		}
		if receipt, err = s.reveal(ctx, system, p, nil, out); err != nil {
			return false, receipt, err
		}
	}
	return true, receipt, nil
}

// unstage removes what is staged of an import.
func (s *Service) unstage(ctx context.Context, p *PendingImport) error {
	for ended := false; !ended; p.Step++ {
		if err := s.imported.Write(ctx, func(tx ImportTx) error {
			if err := tx.StepImport(p); err != nil {
				return err
			}
			n, err := tx.UnstageOrgs(p.ID, chunkRows)
			if err != nil {
				return err
			}
			if ended = n < chunkRows; ended {
				return tx.EndImport(p.ID)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// SettleImports brings those imports to their end that nobody is at work on: of
// this process, those that it does not know of; of other processes, those that
// have not gone on for patience. It returns how many it has settled.
func (s *Service) SettleImports(ctx context.Context, patience time.Duration) (n int, err error) {
	after, seen := "", map[string]bool{}
	for {
		var list []PendingImport
		if err := s.imported.Read(ctx, func(v ImportView) (err error) {
			list, err = v.Imports(after, 100)
			return err
		}); err != nil {
			return n, err
		}
		if len(list) == 0 {
			s.imports.forget(seen)
			return n, nil
		}
		for i := range list {
			p := &list[i]
			after, seen[p.ID] = p.ID, true
			if !s.imports.left(p, s.now(), patience) {
				continue
			}
			switch _, _, err := s.settle(ctx, p.ID, nil, nil); {
			case err == nil:
				n++
			case !errors.Is(err, org.ErrStale): // the next one may be settled all the same
				return n, err
			}
		}
	}
}

// imports are the imports under way as a process sees them.
type imports struct {
	mu      sync.Mutex
	own     map[string]bool
	sighted map[string]sighting // those of others
}

// sighting is when a step of an import was first seen.
type sighting struct {
	step int64
	at   time.Time
}

func (m *imports) begin(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.own == nil {
		m.own = map[string]bool{}
	}
	m.own[id] = true
}

func (m *imports) end(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.own, id)
}

// left reports whether nobody is at work on an import.
func (m *imports) left(p *PendingImport, now time.Time, patience time.Duration) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.own[p.ID] {
		return false
	}
	if m.sighted == nil {
		m.sighted = map[string]sighting{}
	}
	last, ok := m.sighted[p.ID]
	if !ok || last.step != p.Step {
		last = sighting{p.Step, now}
		m.sighted[p.ID] = last
	}
	return now.Sub(last.at) >= patience
}

// forget forgets the imports that are not among those that there are.
func (m *imports) forget(seen map[string]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.sighted {
		if !seen[id] {
			delete(m.sighted, id)
		}
	}
}

// undisturbed checks that no import waits to create organizations below o,
// which would be left without a parent.
func (c *change) undisturbed(o *org.Organization) error {
	awaited, err := c.Awaited(o.RootID, o.Path)
	if err == nil && awaited {
		e := problem.New(problem.Conflict, "An import below %s is just being completed.", o.ID).WithFix("Try again in a moment.")
		e.RetryAfter = time.Second
		return e
	}
	return err
}
