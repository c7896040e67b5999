// Package trail tells what has happened: the audit trail and what it says of the
// past, the access log, and what an erasure takes out of both.
package trail

import (
	"cmp"
	"context"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/org"
)

// Service reads and keeps the logs. It is safe for concurrent use.
type Service struct {
	orgs    *org.Service
	store   Store
	newID   ident.Source
	visible *org.News // of access events
}

// Config is what a Service works with.
type Config struct {
	Orgs  *org.Service
	Store Store
	NewID ident.Source
	// AccessNews is told of the access events that the service makes visible; nil
	// for news of its own.
	AccessNews *org.News
}

// NewService returns a service.
func NewService(c Config) *Service {
	return &Service{orgs: c.Orgs, store: c.Store, newID: c.NewID, visible: cmp.Or(c.AccessNews, org.NewNews(nil))}
}

// check is what decides whether a change may be made, with what this package sees of the
// transaction.
type check struct {
	*org.Check
	View
}

// change is a mutation under way, with this package's side of its transaction.
type change struct {
	*org.Change
	Tx
}

// change is org.Service.Change.
func (s *Service) change(ctx context.Context, call *org.Call, fn func(c *change) (result any, entries []audit.Draft, err error)) (audit.Receipt, error) {
	return s.orgs.Change(ctx, call, func(c *org.Change) (any, []audit.Draft, error) { return fn(&change{c, s.store.TxOf(c.Tx)}) })
}
