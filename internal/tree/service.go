// Package tree changes organizations and what they own beside their logs: it creates,
// moves, deletes, restores, purges and imports organizations, and has the rules of
// their settings and keys.
package tree

import (
	"context"
	"io"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/org"
)

// Service applies the rules of the organization tree. It is safe for concurrent use.
type Service struct {
	orgs          *org.Service
	store         org.Face[View, Tx]
	imported      org.Face[ImportView, ImportTx]
	now           func() time.Time
	newID         ident.Source
	rand          io.Reader
	restoreWindow time.Duration
	drain         func(ctx context.Context) error
	imports       imports
}

// Config is what a Service works with.
type Config struct {
	Orgs          *org.Service
	Store         org.Face[View, Tx]
	Imports       org.Face[ImportView, ImportTx]
	Now           func() time.Time
	NewID         ident.Source
	Rand          io.Reader     // crypto/rand.Reader outside tests; safe for concurrent use
	RestoreWindow time.Duration // how long a deleted organization can be restored
	// Drain returns once all that was recorded of requests before the call is
	// stored.
	Drain func(ctx context.Context) error
}

// NewService returns a service.
func NewService(c Config) *Service {
	return &Service{orgs: c.Orgs, store: c.Store, imported: c.Imports, now: c.Now, newID: c.NewID, rand: c.Rand, restoreWindow: c.RestoreWindow, drain: c.Drain}
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

// check returns what the change may be decided by.
func (c *change) check() *check { return &check{&c.Change.Check, c.Tx} }

// change is org.Service.Change.
func (s *Service) change(ctx context.Context, call *org.Call, fn func(c *change) (result any, entries []audit.Draft, err error)) (audit.Receipt, error) {
	return s.orgs.Change(ctx, call, func(c *org.Change) (any, []audit.Draft, error) { return fn(&change{c, s.store.TxOf(c.Tx)}) })
}

// precheck is org.Service.Precheck.
func (s *Service) precheck(ctx context.Context, call *org.Call, fn func(c *check) error) error {
	return s.orgs.Precheck(ctx, call, func(c *org.Check) error { return fn(&check{c, s.store.ViewOf(c.View)}) })
}
