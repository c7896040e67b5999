// Package trail tells what has happened: the audit trail and what it says of the
// past, the access log, and what an erasure takes out of both.
package trail

import (
	"cmp"

	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/org"
)

// Service reads and keeps the logs. It is safe for concurrent use.
type Service struct {
	orgs    *org.Service
	store   org.Store
	newID   ident.Source
	visible *org.News // of access events
}

// Config is what a Service works with.
type Config struct {
	Orgs  *org.Service
	Store org.Store
	NewID ident.Source
	// AccessNews is told of the access events that the service makes visible; nil
	// for news of its own.
	AccessNews *org.News
}

// NewService returns a service.
func NewService(c Config) *Service {
	return &Service{orgs: c.Orgs, store: c.Store, newID: c.NewID, visible: cmp.Or(c.AccessNews, org.NewNews(nil))}
}
