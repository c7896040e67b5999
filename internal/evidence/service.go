// Package evidence signs the audit logs of roots and proves what is in them:
// checkpoints, tiles, proofs, exports, the keys that sign and new epochs.
package evidence

import (
	"context"
	"sync"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
)

// Service signs and proves. It is safe for concurrent use.
type Service struct {
	orgs    *org.Service
	store   Store
	keyring *audit.Keyring
	refused sync.Map // ids of logs that are signed no further
}

// NewService returns a service that signs with the keys of the keyring.
func NewService(orgs *org.Service, store Store, keyring *audit.Keyring) *Service {
	return &Service{orgs: orgs, store: store, keyring: keyring}
}

// News tells of the roots whose logs have grown.
func (s *Service) News() *org.News { return s.orgs.AuditNews() }

// change is a mutation under way, with this package's side of its transaction.
type change struct {
	*org.Change
	Tx
}

// change is org.Service.Change.
func (s *Service) change(ctx context.Context, call *org.Call, fn func(c *change) (result any, entries []audit.Draft, err error)) (audit.Receipt, error) {
	return s.orgs.Change(ctx, call, func(c *org.Change) (any, []audit.Draft, error) { return fn(&change{c, s.store.TxOf(c.Tx)}) })
}
