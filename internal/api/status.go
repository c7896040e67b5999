package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/common/expfmt"

	orgdapi "github.com/orgd/orgd/api"
	"github.com/orgd/orgd/internal/openapi"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/web"
)

var open = web.Rule{Open: true}

func (a *API) statusRoutes() []web.Route {
	return []web.Route{
		{Method: "DELETE", Pattern: "/spools/{spool_id}", Operation: "giveUpSpool", Action: "GIVE_UP_SPOOL", Rule: web.Rule{Operator: true}, Query: takes("reason"), Handle: a.giveUpSpool},
		{Method: "GET", Pattern: "/service_status", Listeners: []web.Listener{web.Admin}, Operation: "serviceStatus", Rule: open, Handle: a.serviceStatus},
		{Method: "GET", Pattern: "/healthz", Listeners: []web.Listener{web.Main, web.Proxies, web.Admin}, Operation: "healthz", Rule: open, Probe: true, Handle: a.healthz},
		{Method: "GET", Pattern: "/readyz", Listeners: []web.Listener{web.Main, web.Proxies, web.Admin}, Operation: "readyz", Rule: open, Probe: true, Handle: a.readyz},
		{Method: "GET", Pattern: "/metrics", Listeners: []web.Listener{web.Admin}, Operation: "metrics", Rule: open, Probe: true, Handle: a.getMetrics},
		{Method: "GET", Pattern: "/openapi.json", Operation: "openapiJSON", Rule: open, Handle: a.openapiJSON},
		{Method: "GET", Pattern: "/openapi.yaml", Operation: "openapiYAML", Rule: open, Handle: a.openapiYAML},
		{Method: "GET", Pattern: "/docs", Operation: "docs", Rule: open, Handle: a.docs},
	}
}

// Status tells how the server is.
type Status interface {
	// Ready fails if the server cannot answer requests now.
	Ready(ctx context.Context) error
	// Report describes the server and its parts.
	Report(ctx context.Context) Report
	// GiveUpSpool lets months be closed without what a spool may hold of them,
	// and logs that with the request that asks for it. NotFound if none waits for
	// the spool.
	GiveUpSpool(ctx context.Context, id, reason, requestID string) error
}

// Report is what /service_status says.
type Report struct {
	Status        string           `json:"status"` // "ok" or "degraded"
	Version       string           `json:"version"`
	Database      string           `json:"database"` // "sqlite" or "postgres"
	UptimeSeconds int64            `json:"uptime_seconds"`
	Checks        map[string]Check `json:"checks"`
}

// Check is the state of one part of the server.
type Check struct {
	Status string `json:"status"` // "ok" or "failed"
	Detail string `json:"detail,omitzero"`
}

func (a *API) serviceStatus(r *web.Request) (*web.Response, error) {
	return web.JSON(http.StatusOK, a.status.Report(r.Context())), nil
}

func (a *API) giveUpSpool(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	reason := q.text("reason")
	if q.err == nil && strings.TrimSpace(reason) == "" {
		q.fail(problem.Param("reason", "is missing: it must say why"))
	}
	if q.err != nil {
		return nil, q.err
	}
	if err := a.status.GiveUpSpool(r.Context(), r.PathValue("spool_id"), reason, r.ID); err != nil {
		return nil, err
	}
	r.Did = "The spool was given up"
	return web.JSON(http.StatusOK, struct {
		Message string `json:"message"`
	}{"Spool given up"}), nil
}

func (a *API) healthz(*web.Request) (*web.Response, error) {
	return web.JSON(http.StatusOK, struct {
		Status string `json:"status"`
	}{"ok"}), nil
}

func (a *API) readyz(r *web.Request) (*web.Response, error) {
	if err := a.status.Ready(r.Context()); err != nil {
		why := "The server cannot answer requests now."
		// What a problem says is for whoever asks; other errors may name more.
		var known *problem.Error
		if errors.As(err, &known) && known.Detail != "" {
			why += " " + known.Detail
		}
		return nil, problem.New(problem.Unavailable, "%s", why).WithFix("See /service_status.").WithCause(err)
	}
	return a.healthz(r)
}

func (a *API) getMetrics(*web.Request) (*web.Response, error) {
	families, err := a.metrics.Gather()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			return nil, err
		}
	}
	return &web.Response{Status: http.StatusOK, ContentType: "text/plain; version=0.0.4; charset=utf-8", Body: b.Bytes()}, nil
}

// document is the API description in the forms in which it is served.
type document struct {
	yaml, json, page []byte
	csp              string
}

// newDocument returns the description of a server whose calls are also below
// basePath, if that is not empty: then a client is told to prefer it, since a
// proxy may let nothing else through.
func newDocument(basePath string) (document, error) {
	d := document{yaml: orgdapi.YAML}
	if basePath != "" {
		const servers = "\nservers:\n"
		if bytes.Count(d.yaml, []byte(servers)) != 1 {
			return d, errors.New("the API description has no list of servers")
		}
		url, err := json.Marshal(basePath) // JSON is YAML
		if err != nil {
			return d, err
		}
		d.yaml = bytes.Replace(d.yaml, []byte(servers), fmt.Appendf(nil, "%s  - url: %s\n    description: This server, below its base path.\n", servers, url), 1)
	}
	var err error
	if d.json, err = openapi.JSON(d.yaml); err != nil {
		return d, err
	}
	d.page, d.csp, err = openapi.Page(d.yaml)
	return d, err
}

func (a *API) openapiJSON(*web.Request) (*web.Response, error) {
	return &web.Response{Status: http.StatusOK, ContentType: "application/json", Body: a.document.json, Public: true}, nil
}

func (a *API) openapiYAML(*web.Request) (*web.Response, error) {
	return &web.Response{Status: http.StatusOK, ContentType: "application/yaml", Body: a.document.yaml, Public: true}, nil
}

func (a *API) docs(*web.Request) (*web.Response, error) {
	resp := &web.Response{Status: http.StatusOK, ContentType: "text/html; charset=utf-8", Body: a.document.page, Public: true}
	return resp.With("Content-Security-Policy", a.document.csp), nil
}
