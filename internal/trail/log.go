package trail

import (
	"context"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
)

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
