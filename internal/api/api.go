// Package api is orgd's JSON API: one table of routes, each with its
// authorization rule, and the handlers behind them.
package api

import (
	"context"
	"slices"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/budget"
	"github.com/orgd/orgd/internal/evidence"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/seal"
	"github.com/orgd/orgd/internal/trail"
	"github.com/orgd/orgd/internal/tree"
	"github.com/orgd/orgd/internal/web"
)

// API holds what the handlers work with.
type API struct {
	service  *org.Service
	tree     *tree.Service
	trail    *trail.Service
	evidence *evidence.Service
	metering *metering.Service
	flusher  Flusher
	limiter  *auth.Limiter
	queries  *otter.Cache[string, knownQuery] // of /forward_auth
	status   Status
	signer   Signer
	now      func() time.Time
	basePath string
	sealer   *seal.Sealer // of cursors
	document document
	metrics  prometheus.Gatherer
	budget   *budget.Budget
}

// Flusher makes what was recorded visible to readers.
type Flusher interface {
	// Drain returns once all that was recorded before the call is stored.
	Drain(ctx context.Context) error
	// Forget is Drain that also returns only once nothing of it is left where
	// it was recorded.
	Forget(ctx context.Context) error
}

// Config is what an API works with.
type Config struct {
	Service  *org.Service
	Tree     *tree.Service
	Trail    *trail.Service
	Evidence *evidence.Service
	Metering *metering.Service
	Flusher  Flusher
	Limiter  *auth.Limiter // of the keys that are verified; the server's own
	Status   Status
	Signer   Signer
	Now      func() time.Time
	BasePath string
	// Secret seals the cursors. Servers with the same secret take each other's.
	Secret  []byte
	Metrics prometheus.Gatherer
	Budget  *budget.Budget // the server's own; nil for none
}

// New returns the API.
func New(c Config) (*API, error) {
	sealer, err := seal.New(seal.Cursors, c.Secret, nil)
	if err != nil {
		return nil, err
	}
	doc, err := newDocument(c.BasePath)
	if err != nil {
		return nil, err
	}
	queries, err := otter.New(&otter.Options[string, knownQuery]{MaximumSize: maxQueries})
	if err != nil {
		return nil, err
	}
	return &API{service: c.Service, tree: c.Tree, trail: c.Trail, evidence: c.Evidence, metering: c.Metering, flusher: c.Flusher, limiter: c.Limiter, queries: queries, status: c.Status, signer: c.Signer, now: c.Now, basePath: c.BasePath,
		sealer: sealer, document: doc, metrics: c.Metrics, budget: c.Budget}, nil
}

// Routes returns every call of the API. Nothing else is served.
func (a *API) Routes() []web.Route {
	return bounded(slices.Concat(a.orgRoutes(), a.customizationRoutes(), a.keyRoutes(), a.auditRoutes(), a.auditLogRoutes(), a.eraseRoutes(),
		a.accessRoutes(), a.consumptionRoutes(), a.usageEventRoutes(), a.statementRoutes(), a.meterRoutes(), a.limitRoutes(), a.quotaRoutes(),
		a.verifyRoutes(), a.forwardAuthRoutes(), a.statusRoutes()))
}

// needs returns the rule of a call that is about the organization in its path and
// takes all of the permissions.
func needs(permissions ...string) web.Rule {
	return web.Rule{Target: "org_id", Permissions: permissions}
}

// needsAnd is needs with what the call takes beyond the permissions.
func needsAnd(may func(*web.Request) error, permissions ...string) web.Rule {
	return web.Rule{Target: "org_id", Permissions: permissions, May: may}
}

// Surfaces returns the surfaces that have a place of their own among the Routes.
func Surfaces() []*web.Surface { return []*web.Surface{proxySurface()} }

// catchUpTimeout bounds how long a reader waits for what was just recorded.
const catchUpTimeout = 10 * time.Second

// caughtUp returns once all requests that were answered before this one show
// in the logs and in the consumption; Unavailable if that takes too long.
func (a *API) caughtUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpTimeout)
	defer cancel()
	return a.flusher.Drain(ctx)
}
