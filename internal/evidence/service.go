// Package evidence signs the audit logs of roots and proves what is in them:
// checkpoints, tiles, proofs, exports, the keys that sign and new epochs.
package evidence

import (
	"sync"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
)

// Service signs and proves. It is safe for concurrent use.
type Service struct {
	orgs    *org.Service
	store   org.Store
	keyring *audit.Keyring
	refused sync.Map // ids of logs that are signed no further
}

// NewService returns a service that signs with the keys of the keyring.
func NewService(orgs *org.Service, store org.Store, keyring *audit.Keyring) *Service {
	return &Service{orgs: orgs, store: store, keyring: keyring}
}

// News tells of the roots whose logs have grown.
func (s *Service) News() *org.News { return s.orgs.AuditNews() }
