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
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/seal"
	"github.com/orgd/orgd/internal/web"
)

// API holds what the handlers work with.
type API struct {
	service  *org.Service
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
	return &API{service: c.Service, metering: c.Metering, flusher: c.Flusher, limiter: c.Limiter, queries: queries, status: c.Status, signer: c.Signer, now: c.Now, basePath: c.BasePath,
		sealer: sealer, document: doc, metrics: c.Metrics, budget: c.Budget}, nil
}

// Routes returns every call of the API. Nothing else is served.
func (a *API) Routes() []web.Route {
	const o = "org_id"
	needs := func(permissions ...string) web.Rule { return web.Rule{Target: o, Permissions: permissions} }
	and := func(rule web.Rule, may func(*web.Request) error) web.Rule {
		rule.May = may
		return rule
	}
	return bounded(slices.Concat(a.forwardAuthRoutes(), a.verifyRoutes(), a.limitRoutes(), a.auditLogRoutes(), a.accessRoutes(), []web.Route{
		{Method: "GET", Pattern: "/org", Operation: "whoAmI", Action: "WHO_AM_I", Handle: a.whoAmI},
		{Method: "GET", Pattern: "/orgs", Operation: "listOrgs", Action: "LIST_ORGS", Rule: web.Rule{Permissions: []string{key.OrgsRead}}, Handle: a.listOrgs},
		{Method: "POST", Pattern: "/orgs", Operation: "createOrg", Action: "CREATE_ORG", Rule: web.Rule{Permissions: []string{key.OrgsWrite}, May: mayCreate}, Handle: a.createOrg},
		{Method: "POST", Pattern: "/orgs/import", Operation: "importOrgs", Action: "IMPORT_ORGS", Rule: web.Rule{Permissions: []string{key.OrgsWrite}, May: mayCreate}, MaxBody: web.MaxBulkBody, Swell: importSwell, Handle: a.importOrgs},
		{Method: "GET", Pattern: "/orgs/{org_id}", Operation: "getOrg", Action: "GET_ORG", Rule: needs(key.OrgsRead), Handle: a.getOrg},
		{Method: "PATCH", Pattern: "/orgs/{org_id}", Operation: "updateOrg", Action: "UPDATE_ORG", Rule: needs(key.OrgsWrite), Handle: a.updateOrg},
		{Method: "DELETE", Pattern: "/orgs/{org_id}", Operation: "deleteOrg", Action: "DELETE_ORG", Rule: and(needs(key.OrgsDelete), a.mayDelete), Handle: a.deleteOrg},
		{Method: "POST", Pattern: "/orgs/{org_id}/restore", Operation: "restoreOrg", Action: "RESTORE_ORG", Rule: web.Rule{Target: o, Check: a.checkRestore}, Handle: a.restoreOrg},
		{Method: "POST", Pattern: "/orgs/{org_id}/move", Operation: "moveOrg", Action: "MOVE_ORG", Rule: and(needs(key.OrgsWrite), mayMove), Handle: a.moveOrg},
		{Method: "GET", Pattern: "/orgs/{org_id}/children", Operation: "listChildren", Action: "LIST_CHILDREN", Rule: needs(key.OrgsRead), Handle: a.listChildren},
		{Method: "POST", Pattern: "/orgs/{org_id}/children", Operation: "createChild", Action: "CREATE_ORG", Rule: and(needs(key.OrgsWrite), mayCreate), Handle: a.createChild},
		{Method: "GET", Pattern: "/orgs/{org_id}/ancestors", Operation: "listAncestors", Action: "LIST_ANCESTORS", Rule: needs(key.OrgsRead), Handle: a.listAncestors},
		{Method: "GET", Pattern: "/orgs/{org_id}/descendants", Operation: "listDescendants", Action: "LIST_DESCENDANTS", Rule: needs(key.OrgsRead), Handle: a.listDescendants},
		{Method: "GET", Pattern: "/orgs/{org_id}/customizations", Operation: "getCustomizations", Action: "GET_CUSTOMIZATIONS", Rule: needs(key.CustomizationsRead), Handle: a.getCustomizations},
		{Method: "PUT", Pattern: "/orgs/{org_id}/customizations", Operation: "putCustomizations", Action: "PUT_CUSTOMIZATIONS", Rule: needs(key.CustomizationsWrite), Handle: a.putCustomizations},
		{Method: "GET", Pattern: "/orgs/{org_id}/customization_schema", Operation: "getCustomizationSchema", Action: "GET_CUSTOMIZATION_SCHEMA", Rule: needs(key.CustomizationsRead), Handle: a.getSchema},
		{Method: "PUT", Pattern: "/orgs/{org_id}/customization_schema", Operation: "putCustomizationSchema", Action: "PUT_CUSTOMIZATION_SCHEMA", Rule: needs(key.CustomizationsWrite), Handle: a.putSchema},
		{Method: "DELETE", Pattern: "/orgs/{org_id}/customization_schema", Operation: "deleteCustomizationSchema", Action: "DELETE_CUSTOMIZATION_SCHEMA", Rule: needs(key.CustomizationsWrite), Handle: a.deleteSchema},
		{Method: "GET", Pattern: "/orgs/{org_id}/tags", Operation: "listTags", Action: "LIST_TAGS", Rule: needs(key.OrgsRead), Handle: a.listTags},
		{Method: "PUT", Pattern: "/orgs/{org_id}/tags/{tag}", Operation: "putTag", Action: "PUT_TAG", Rule: needs(key.TagsWrite), Handle: a.putTag},
		{Method: "DELETE", Pattern: "/orgs/{org_id}/tags/{tag}", Operation: "deleteTag", Action: "DELETE_TAG", Rule: needs(key.TagsWrite), Handle: a.deleteTag},
		{Method: "GET", Pattern: "/orgs/{org_id}/api_keys", Operation: "listKeys", Action: "LIST_KEYS", Rule: needs(key.KeysRead), Handle: a.listKeys},
		{Method: "POST", Pattern: "/orgs/{org_id}/api_keys", Operation: "createKey", Action: "CREATE_KEY", Rule: needs(key.KeysWrite), Handle: a.createKey},
		{Method: "GET", Pattern: "/orgs/{org_id}/api_keys/{key_id}", Operation: "getKey", Action: "GET_KEY", Rule: needs(key.KeysRead), Handle: a.getKey},
		{Method: "PATCH", Pattern: "/orgs/{org_id}/api_keys/{key_id}", Operation: "updateKey", Action: "UPDATE_KEY", Rule: and(needs(key.KeysWrite), a.mayChangeKey), Handle: a.updateKey},
		{Method: "DELETE", Pattern: "/orgs/{org_id}/api_keys/{key_id}", Operation: "revokeKey", Action: "REVOKE_KEY", Rule: needs(key.KeysWrite), Handle: a.revokeKey},
		{Method: "POST", Pattern: "/orgs/{org_id}/api_keys/{key_id}/rotate", Operation: "rotateKey", Action: "ROTATE_KEY", Rule: and(needs(key.KeysWrite), a.mayChangeKey), Handle: a.rotateKey},
		{Method: "GET", Pattern: "/orgs/{org_id}/children_audit", Operation: "getChildrenAudit", Action: "GET_CHILDREN_AUDIT", Rule: needs(key.AuditRead), Handle: a.getChildrenAudit},

		{Method: "DELETE", Pattern: "/spools/{spool_id}", Operation: "giveUpSpool", Action: "GIVE_UP_SPOOL", Rule: web.Rule{Operator: true}, Handle: a.giveUpSpool},
		{Method: "GET", Pattern: "/service_status", Listeners: []web.Listener{web.Admin}, Operation: "serviceStatus", Rule: open, Handle: a.serviceStatus},
		{Method: "GET", Pattern: "/healthz", Listeners: []web.Listener{web.Main, web.Proxies, web.Admin}, Operation: "healthz", Rule: open, Probe: true, Handle: a.healthz},
		{Method: "GET", Pattern: "/readyz", Listeners: []web.Listener{web.Main, web.Proxies, web.Admin}, Operation: "readyz", Rule: open, Probe: true, Handle: a.readyz},
		{Method: "GET", Pattern: "/metrics", Listeners: []web.Listener{web.Admin}, Operation: "metrics", Rule: open, Probe: true, Handle: a.getMetrics},
		{Method: "GET", Pattern: "/openapi.json", Operation: "openapiJSON", Rule: open, Handle: a.openapiJSON},
		{Method: "GET", Pattern: "/openapi.yaml", Operation: "openapiYAML", Rule: open, Handle: a.openapiYAML},
		{Method: "GET", Pattern: "/docs", Operation: "docs", Rule: open, Handle: a.docs},
	}, a.trailRoutes(), a.consumptionRoutes(), a.meterRoutes(), a.usageEventRoutes(), a.quotaRoutes()))
}

var open = web.Rule{Open: true}

// catchUpTimeout bounds how long a reader waits for what was just recorded.
const catchUpTimeout = 10 * time.Second

// caughtUp returns once all requests that were answered before this one show
// in the logs and in the consumption; Unavailable if that takes too long.
func (a *API) caughtUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpTimeout)
	defer cancel()
	return a.flusher.Drain(ctx)
}
