package api

import (
	"slices"

	"github.com/orgd/orgd/internal/web"
)

// What bulk bodies become.
var (
	importSwell = web.Swell{Times: 4, Item: 512, MaxItems: 100_000}
	usageSwell  = web.Swell{Times: 3, Item: 1 << 10, MaxItems: maxEvents}
	accessSwell = web.Swell{Times: 5, Item: 1 << 10, MaxItems: maxAccessEvents}
)

// pages are the operations whose answers may be long.
var pages = map[string]bool{
	"listOrgs": true, "listChildren": true, "listAncestors": true, "listDescendants": true, "listKeys": true, "listTags": true,
	"getCustomizations": true, "getChildrenAudit": true, "getAccessLog": true, "getAuditEntry": true, "getAuditTile": true,
	"listLimits": true, "listAdjustments": true, "listChildConsumption": true, "getConsumptionHistory": true, "getDailyConsumption": true,
}

// expensive says of which operations few are worked on at the same time: those
// that read, compute or write a multiple of what they answer.
var expensive = map[string]func(r *web.Request) bool{
	"getOrg":               past,
	"listChildren":         past,
	"listDescendants":      past,
	"getCustomizations":    func(r *web.Request) bool { return asks(r, "as_of", "explain") },
	"getChildrenAudit":     exports,
	"getAccessLog":         exports,
	"exportAuditLog":       always,
	"getAuditConsistency":  always,
	"getAuditProof":        always,
	"getAuditTile":         func(r *web.Request) bool { return r.PathValue("level") == "entries" },
	"getStatement":         always,
	"listChildConsumption": always,
	"eraseSubject":         always,
	"importOrgs":           always,
}

func always(*web.Request) bool { return true }

// past reports whether a request asks for what was.
func past(r *web.Request) bool { return asks(r, "as_of") }

// asks reports whether the query has one of the parameters, however it is
// written.
func asks(r *web.Request, names ...string) bool {
	if r.URL.RawQuery == "" {
		return false
	}
	return slices.ContainsFunc(names, r.URL.Query().Has)
}

// exports reports whether a request asks for a whole log, which is streamed.
func exports(r *web.Request) bool {
	if r.URL.RawQuery == "" && r.Header["Accept"] == nil {
		return false
	}
	values := r.URL.Query()
	if values.Has("limit") || values.Has("cursor") || values.Has("follow") {
		return false
	}
	switch values.Get("format") {
	case formatJSON:
		return false
	case "":
		return accepted(r.Header["Accept"]) != formatJSON
	}
	return true
}

// bounded says of each route what its requests take of the budget.
func bounded(routes []web.Route) []web.Route {
	for i := range routes {
		rt := &routes[i]
		rt.Expensive = expensive[rt.Operation]
		if pages[rt.Operation] {
			rt.Room = web.PageRoom
		}
	}
	return routes
}
