package trail

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

// maxHistory bounds the audit entries that one request reads to rebuild a past
// state, and maxHistoryBytes what it reads of them.
const (
	maxHistory      = 50_000
	maxHistoryBytes = 32 << 20
)

// past rebuilds the state of a root's organizations at a moment from the
// audit trail. What an organization was follows from its own entries; where it
// was, and whether it lived, from its own and its ancestors'.
//
// It reads the store a page at a time and holds no transaction in between: what
// the past was does not change. Between two pages the work can end, see
// WithRecheck.
type past struct {
	ctx     context.Context
	store   Store
	rootID  string
	at      time.Time
	before  int64                        // the position in the log after all that had been made
	states  map[string]*org.Organization // nil for one that did not exist
	pages   map[string]org.AuditPage     // the newest entries of organizations that were read ahead
	entries int                          // that were read
	bytes   int                          // of them
}

func longHistory() error {
	return problem.New(problem.Conflict, "The audit trail holds too many or too large changes to rebuild this state: more than %d, or %d MiB of them.",
		maxHistory, maxHistoryBytes>>20).WithFix("Read the changes themselves from children_audit.")
}

// run runs fn on the store.
func (p *past) run(fn func(View) error) error {
	if err := org.GoOn(p.ctx); err != nil {
		return err
	}
	return p.store.ReadHeavy(p.ctx, fn)
}

// own returns an organization as its own entries say; nil if it did not exist.
// Its path and depth are not set right.
func (p *past) own(id string) (*org.Organization, error) {
	if o, ok := p.states[id]; ok {
		return o, nil
	}
	o, err := p.rebuild(id)
	if err != nil {
		return nil, err
	}
	p.states[id] = o
	return o, nil
}

// chain returns the organizations from the root down to one of them, with
// their paths; nil if that one did not exist or was deleted.
func (p *past) chain(id string) ([]*org.Organization, error) {
	var chain []*org.Organization
	for next := id; next != "" && len(chain) <= org.MaxDepth; {
		o, err := p.own(next)
		if err != nil {
			return nil, err
		}
		if o == nil || o.DeletedAt != nil {
			return nil, nil
		}
		chain = append(chain, o)
		next = o.ParentID
	}
	slices.Reverse(chain)
	for i := range chain {
		var parent *org.Organization
		if i > 0 {
			parent = chain[i-1]
		}
		chain[i] = below(parent, chain[i])
	}
	return chain, nil
}

// below returns o in its place below its parent.
func below(parent, o *org.Organization) *org.Organization {
	out := *o
	out.Path, out.Depth = o.ID+"/", 0
	if parent != nil {
		out.Path, out.Depth = parent.Path+o.ID+"/", parent.Depth+1
	}
	return &out
}

// reached reports whether an organization below these others, itself the last,
// was then where the actor reaches: below all the organizations that are above
// the key's own now and below that one itself, or for the reach self the key's
// own. So whoever has taken an organization over by a move does not see through
// a key of it what those above it set before.
func (p *past) reached(a *auth.Actor, chain []*org.Organization) (bool, error) {
	if a.Everywhere() {
		return true, nil
	}
	place, ok := a.Place()
	ids := org.SplitPath(place.Path)
	if !ok || len(chain) < len(ids) || place.Self && len(chain) > len(ids) {
		return false, nil
	}
	var now []*org.Organization
	err := p.run(func(v View) (err error) {
		now, err = v.OrgsByID(ids)
		return err
	})
	if err != nil {
		return false, err
	}
	created := make(map[string]time.Time, len(now))
	for _, o := range now {
		if o.ID != ids[len(ids)-1] || o.Path == place.Path {
			created[o.ID] = o.CreatedAt
		}
	}
	for i, id := range ids {
		at, ok := created[id]
		if !ok || chain[i].ID != id || !chain[i].CreatedAt.Equal(at) {
			return false, nil
		}
	}
	return true, nil
}

// visible returns the chain of an organization that the actor sees now, if it
// was in the actor's reach at that time too. Whether it was elsewhere, not at
// all, or another one with its id, the answer is the same.
func (p *past) visible(actor *auth.Actor, now *org.Organization) ([]*org.Organization, error) {
	chain, err := p.chain(now.ID)
	if err != nil {
		return nil, err
	}
	there := len(chain) > 0 && chain[len(chain)-1].CreatedAt.Equal(now.CreatedAt)
	if there {
		if there, err = p.reached(actor, chain); err != nil {
			return nil, err
		}
	}
	if !there {
		return nil, problem.New(problem.NotFound, "There was no such organization at that time, or this key did not reach it.")
	}
	return chain, nil
}

// readPast runs fn on the past of a root. History tells more than the present:
// it takes audit:read too.
func (s *Service) readPast(ctx context.Context, actor *auth.Actor, now *org.Organization, at time.Time, fn func(*past) error) error {
	if err := actor.Demand(now.Path, key.AuditRead); err != nil {
		return err
	}
	rootID := now.RootID
	p := &past{ctx: ctx, store: s.store, rootID: rootID, at: at, states: map[string]*org.Organization{}, pages: map[string]org.AuditPage{}}
	present := s.orgs.Now()
	err := p.run(func(v View) (err error) {
		if at.After(present) {
			// Entries may be later than the clock says now, if it went back.
			last, err := v.LastAudit(rootID)
			if err != nil && !errors.Is(err, org.ErrAbsent) {
				return err
			}
			if at.After(last) {
				return problem.Param("as_of", "is in the future")
			}
		}
		p.before, err = v.AuditPositionAt(rootID, at)
		return err
	})
	if err != nil {
		return err
	}
	return fn(p)
}

// OrgAt returns an organization, which the actor sees now, as it was. The
// error is ValuesErased if a value of it has been erased.
func (s *Service) OrgAt(ctx context.Context, actor *auth.Actor, now *org.Organization, at time.Time) (*org.Organization, error) {
	var o *org.Organization
	err := s.readPast(ctx, actor, now, at, func(p *past) error {
		chain, err := p.visible(actor, now)
		if err != nil {
			return err
		}
		o = chain[len(chain)-1]
		return notErased(o.ID, o.Erased())
	})
	return o, err
}

// CustomizationsAt returns an organization's settings as they were, and those
// in effect then. The error is ValuesErased if a value of them has been erased.
func (s *Service) CustomizationsAt(ctx context.Context, actor *auth.Actor, now *org.Organization, at time.Time, explain bool) (*org.Customizations, error) {
	var out *org.Customizations
	err := s.readPast(ctx, actor, now, at, func(p *past) error {
		chain, err := p.visible(actor, now)
		if err != nil {
			return err
		}
		for _, o := range chain {
			if err := notErased(o.ID, o.ErasedSettings()); err != nil {
				return err
			}
		}
		out, err = org.CustomizationsOf(chain, explain)
		return err
	})
	return out, err
}

// PastPage is a page of organizations as they were. Next is the position for
// the page after it, empty at the end; a page may be short, even empty, and
// still have a Next.
type PastPage struct {
	Orgs []*org.Organization // Organization.Erased tells what has been erased of them
	Next string
}

// DescendantsAt returns a page of the descendants that an organization, which
// the actor sees now, had, depth first and siblings by id, down to depth levels
// below it, 0 for all.
//
// maxBytes bounds the page as in queries.
func (s *Service) DescendantsAt(ctx context.Context, actor *auth.Actor, now *org.Organization, at time.Time, depth int, after string, limit, maxBytes int) (PastPage, error) {
	var page PastPage
	err := s.readPast(ctx, actor, now, at, func(p *past) error {
		chain, err := p.visible(actor, now)
		if err != nil {
			return err
		}
		top := chain[len(chain)-1]
		if !actor.SeesBelow(now.Path) {
			return nil
		}
		maxDepth := org.MaxDepth
		if depth > 0 {
			maxDepth = top.Depth + depth
		}
		page, err = p.walk(top, maxDepth, after, limit, maxBytes)
		return err
	})
	return page, err
}

// pastFrame is an organization whose children are being walked.
type pastFrame struct {
	org  *org.Organization
	ids  []string // children that were fetched
	next string   // the child after which to go on
	more bool     // there may be children after ids
}

// walk lists what was below top. A position is the ids from top's child down
// to where the walk has come, with a slash behind each; without the last slash
// the walk goes on beside that organization, not below it.
func (p *past) walk(top *org.Organization, maxDepth int, after string, limit, maxBytes int) (PastPage, error) {
	stack := []*pastFrame{{org: top, more: true}}
	if after != "" {
		ids := org.SplitPath(after)
		for i, id := range ids {
			frame := stack[len(stack)-1]
			frame.next = id
			if i == len(ids)-1 && !strings.HasSuffix(after, "/") {
				break
			}
			o, err := p.own(id)
			if err != nil {
				return PastPage{}, err
			}
			if o == nil {
				break
			}
			stack = append(stack, &pastFrame{org: below(frame.org, o), more: true})
		}
	}
	var page PastPage
	size := 0
	position := func(slash string) string { return stack[len(stack)-1].org.Path[len(top.Path):] + slash }
	for len(stack) > 0 {
		frame := stack[len(stack)-1]
		if len(frame.ids) == 0 && frame.more && frame.org.Depth < maxDepth {
			err := p.run(func(v View) (err error) {
				frame.ids, frame.next, frame.more, err = v.ChildrenAt(p.rootID, frame.org.ID, p.at, frame.next, 100)
				return err
			})
			if err != nil {
				return PastPage{}, err
			}
			p.entries += len(frame.ids) + 1
			if ahead := frame.ids[:min(len(frame.ids), limit-len(page.Orgs))]; len(ahead) > 1 {
				if err := p.prefetch(ahead); err != nil {
					return PastPage{}, err
				}
			}
			if len(frame.ids) == 0 && frame.more {
				// One look at many that were not there then.
				page.Next = position(frame.next)
				return page, nil
			}
		}
		if len(frame.ids) == 0 {
			stack = stack[:len(stack)-1]
			continue
		}
		id := frame.ids[0]
		frame.ids = frame.ids[1:]
		o, err := p.own(id)
		if problem.Is(err, problem.Conflict) && len(page.Orgs) > 0 {
			return page, nil // Next is behind the one before
		} else if err != nil {
			return PastPage{}, err
		}
		if o == nil || o.DeletedAt != nil {
			page.Next = position(id)
		} else {
			o = below(frame.org, o)
			page.Orgs = append(page.Orgs, o)
			size += org.OrgSize(o)
			stack = append(stack, &pastFrame{org: o, more: true})
			page.Next = position("")
		}
		if len(page.Orgs) == limit || size >= maxBytes || p.entries > maxHistory/2 || p.bytes > maxHistoryBytes/2 {
			return page, nil
		}
	}
	page.Next = ""
	return page, nil
}

// maxFields bounds the fields of an error.
const maxFields = 100

// notErased is the error for a state of which values have been erased.
func notErased(id string, pointers []string) error {
	if len(pointers) == 0 {
		return nil
	}
	err := problem.New(problem.ValuesErased, "The organization %s cannot be shown as it was then: values have been erased since.", id).
		WithFix("Ask for a later time, or read what is left from children_audit.")
	for _, pointer := range pointers[:min(len(pointers), maxFields)] {
		err.Fields = append(err.Fields, problem.Field{Pointer: pointer, Detail: "has been erased"})
	}
	return err
}
