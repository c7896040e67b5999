package trail

import (
	"context"
	"errors"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

// AuditHead returns the head of a root's audit log.
func (s *Service) AuditHead(ctx context.Context, rootID string) (head *audit.Head, err error) {
	err = s.store.Read(ctx, func(v View) (err error) {
		head, err = v.Head(rootID, "", -1)
		return err
	})
	return head, err
}

// AuditFeed returns the audit entries from the position q.After on, in the
// order of their log, and the position after them. more says that there may be
// others now.
func (s *Service) AuditFeed(ctx context.Context, q org.AuditQuery) (entries []*audit.Entry, position int64, more bool, err error) {
	q.Ascending = true
	// Most of the time there is nothing, which is quickly seen.
	head, err := s.AuditHead(ctx, q.RootID)
	if err != nil {
		return nil, 0, false, err
	}
	if org.AuditPosition(head.Epoch, head.Size) <= q.After {
		return nil, q.After, false, nil
	}
	page := org.AuditPage{Next: -1}
	err = s.store.ReadHeavy(ctx, func(v View) error {
		head, err := v.Head(q.RootID, "", -1)
		if err != nil {
			return err
		}
		position = max(org.AuditPosition(head.Epoch, head.Size), q.After)
		page, err = v.AuditEntries(q)
		return err
	})
	if err != nil {
		return nil, 0, false, err
	}
	if page.Next >= 0 {
		position, more = page.Next, true
	}
	entries, err = entriesOf(page.Records)
	return entries, position, more, err
}

func entriesOf(records []audit.Record) ([]*audit.Entry, error) {
	entries := make([]*audit.Entry, len(records))
	var err error
	for i := range records {
		if entries[i], err = records[i].Entry(); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// AuditEntry returns an entry that the audit list of the organization shows to
// the actor.
func (s *Service) AuditEntry(ctx context.Context, actor *auth.Actor, snap *org.Snapshot, entryID string) (*audit.Entry, error) {
	var rec *audit.Record
	err := s.store.Read(ctx, func(v View) (err error) {
		rec, err = v.AuditEntry(snap.RootID, entryID)
		return err
	})
	if errors.Is(err, org.ErrAbsent) || err == nil && !snap.Shows(actor, rec) {
		return nil, problem.New(problem.NotFound, "There is no such audit entry, or it is not one of this organization.")
	} else if err != nil {
		return nil, err
	}
	return rec.Entry()
}

// AuditEntries returns one page of audit entries. The organization that q
// names must be one that the actor sees.
func (s *Service) AuditEntries(ctx context.Context, q org.AuditQuery) ([]*audit.Entry, int64, error) {
	var page org.AuditPage
	err := s.store.ReadHeavy(ctx, func(v View) (err error) {
		page, err = v.AuditEntries(q)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	entries, err := entriesOf(page.Records)
	return entries, page.Next, err
}
