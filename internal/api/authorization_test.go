package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/api"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/web"
)

// A sample is a request that succeeds on a live organization: ORG and KEY
// stand for the organization and for a key of it, NEW for an unused id.
type sample struct {
	path, body, contentType string
	// elsewhere is set where the call is not about the organization in its
	// path: then every valid key with the permission may make it.
	elsewhere bool
	operator  bool // only the operator may make it
}

var samples = map[string]sample{
	"whoAmI":                    {path: "/org", elsewhere: true},
	"listOrgs":                  {path: "/orgs", elsewhere: true},
	"createOrg":                 {path: "/orgs", body: `{"id":"NEW","name":"New","parent_id":"ORG"}`},
	"importOrgs":                {path: "/orgs/import?parent_id=ORG", body: "id,name\nNEW,New\n", contentType: "text/csv"},
	"getOrg":                    {path: "/orgs/ORG"},
	"updateOrg":                 {path: "/orgs/ORG", body: `{"name":"Changed"}`},
	"deleteOrg":                 {path: "/orgs/ORG?cascade=true"},
	"restoreOrg":                {path: "/orgs/ORG/restore"},
	"moveOrg":                   {path: "/orgs/ORG/move", body: `{"parent_id":"OTHER"}`},
	"listChildren":              {path: "/orgs/ORG/children"},
	"createChild":               {path: "/orgs/ORG/children", body: `{"id":"NEW","name":"New"}`},
	"listAncestors":             {path: "/orgs/ORG/ancestors"},
	"listDescendants":           {path: "/orgs/ORG/descendants"},
	"getCustomizations":         {path: "/orgs/ORG/customizations"},
	"putCustomizations":         {path: "/orgs/ORG/customizations", body: `{"customizations":{"a":1}}`},
	"getCustomizationSchema":    {path: "/orgs/ORG/customization_schema"},
	"putCustomizationSchema":    {path: "/orgs/ORG/customization_schema", body: `{"type":"object"}`},
	"deleteCustomizationSchema": {path: "/orgs/ORG/customization_schema"},
	"listTags":                  {path: "/orgs/ORG/tags"},
	"putTag":                    {path: "/orgs/ORG/tags/blue"},
	"deleteTag":                 {path: "/orgs/ORG/tags/red"},
	"listKeys":                  {path: "/orgs/ORG/api_keys"},
	"createKey":                 {path: "/orgs/ORG/api_keys", body: `{"name":"New"}`},
	"getKey":                    {path: "/orgs/ORG/api_keys/KEY"},
	"updateKey":                 {path: "/orgs/ORG/api_keys/KEY", body: `{"name":"Changed"}`},
	"rotateKey":                 {path: "/orgs/ORG/api_keys/KEY/rotate"},
	"revokeKey":                 {path: "/orgs/ORG/api_keys/KEY"},
	"getAccessLog":              {path: "/orgs/ORG/access_log"},
	"ingestAccessLog":           {path: "/orgs/ORG/access_log", body: `{"user":"jo","action":"LOGIN","status":"SUCCESS"}`},
	"getAccessLogRetention":     {path: "/orgs/ORG/access_log/retention"},
	"putAccessLogRetention":     {path: "/orgs/ORG/access_log/retention", body: `{"days":30}`},
	"getChildrenAudit":          {path: "/orgs/ORG/children_audit"},
	"getStatement":              {path: "/orgs/ORG/consumption/statement?month=2026-10"},
	"eraseSubject":              {path: "/orgs/ORG/audit_erasures", body: `{"subject":"jane@example.com","basis":"Request 7"}`},
	"getConsumption":            {path: "/orgs/ORG/consumption"},
	"getAuditEntry":             {path: "/orgs/ORG/children_audit/ENTRY"},
	"getAuditProof":             {path: "/orgs/ORG/children_audit/ENTRY/proof"},
	"getAuditCheckpoint":        {path: "/orgs/ORG/audit_log/checkpoint"},
	"getAuditKey":               {path: "/orgs/ORG/audit_log/key"},
	"getAuditConsistency":       {path: "/orgs/ORG/audit_log/consistency?from=1"},
	"getAuditTile":              {path: "/orgs/ORG/audit_log/tile/0/000.p/1"},
	"exportAuditLog":            {path: "/orgs/ORG/audit_log/export"},
	"openAuditEpoch":            {path: "/orgs/ORG/audit_log/epochs", body: `{"reason":"test"}`, operator: true},
	"rotateAuditKey":            {path: "/orgs/ORG/audit_log/rotate_key", operator: true},
	"listRefusedAuditLogs":      {path: "/refused_audit_logs", elsewhere: true, operator: true},
	"abandonAuditLog":           {path: "/refused_audit_logs/none?reason=test", elsewhere: true, operator: true},
	"giveUpSpool":               {path: "/spools/none?reason=test", elsewhere: true, operator: true},
	"listLimits":                {path: "/orgs/ORG/limits"},
	"getLimit":                  {path: "/orgs/ORG/limits/api_calls"},
	"putLimit":                  {path: "/orgs/ORG/limits/api_calls", body: `{"limit":5,"enforcement":"hard"}`},
	"deleteLimit":               {path: "/orgs/ORG/limits/api_calls"},
	"verify":                    {path: "/verify", body: `{"key":"SECRET"}`, elsewhere: true},
	"forwardAuth":               {path: "/forward_auth?org=ORG&permission=orgs:read&meter=api_calls"},
	"getConsumptionHistory":     {path: "/orgs/ORG/consumption/history"},
	"getDailyConsumption":       {path: "/orgs/ORG/consumption/daily"},
	"listChildConsumption":      {path: "/orgs/ORG/consumption/children"},
	"listAdjustments":           {path: "/orgs/ORG/consumption/adjustments"},
	"createAdjustment":          {path: "/orgs/ORG/consumption/adjustments", body: `{"meter":"api_calls","quantity":1,"reason":"test"}`},
	"ingestUsage":               {path: "/orgs/ORG/consumption/events", body: `{"id":"NEW","meter":"api_calls","quantity":1}`},
	"ingestEvents":              {path: "/api/v1/events", body: `{"specversion":"1.0","id":"NEW","source":"test","type":"api_calls","data":{"quantity":1}}`, elsewhere: true},
	"listMeters":                {path: "/orgs/ORG/meters"},
	"getQuota":                  {path: "/orgs/ORG/quota"},
	"putQuota":                  {path: "/orgs/ORG/quota", body: `{"streams":5}`, operator: true},
	"deleteQuota":               {path: "/orgs/ORG/quota", operator: true},
	"getMeter":                  {path: "/orgs/ORG/meters/api_calls"},
	"putMeter":                  {path: "/orgs/ORG/meters/tokens", body: `{"unit":"tokens","aggregation":"sum"}`},
	"deleteMeter":               {path: "/orgs/ORG/meters/tokens"},
}

// open are the operations that need no key.
var openOperations = map[string]string{
	"serviceStatus": "/service_status", "healthz": "/healthz", "readyz": "/readyz", "metrics": "/metrics",
	"openapiJSON": "/openapi.json", "openapiYAML": "/openapi.yaml", "docs": "/docs",
}

// A fixture is one tree: root → parent → (own → (child, other), sibling), and
// a second root.
type fixture struct {
	s      *testkit.Server
	clock  *clock
	prefix string
	keyOf  map[string]string // organization → id of a key in it
}

func newFixture(s *testkit.Server, prefix string) *fixture {
	f := &fixture{s: s, prefix: prefix, keyOf: map[string]string{}}
	rows := "id,parent_id,name,tags\n"
	for _, r := range [][2]string{{"root", ""}, {"parent", "root"}, {"own", "parent"}, {"child", "own"}, {"other", "own"}, {"sibling", "parent"}, {"foreign", ""}} {
		parent := r[1]
		if parent != "" {
			parent = prefix + parent
		}
		rows += fmt.Sprintf("%s,%s,%s,red\n", prefix+r[0], parent, r[0])
	}
	s.Must(http.StatusOK, "POST", "/orgs/import", s.OperatorKey, rows, "Content-Type", "text/csv")
	for _, o := range []string{"parent", "own", "child", "sibling", "foreign"} {
		_, f.keyOf[o] = s.NewKey(prefix+o, `"permissions":["orgs:read"]`)
	}
	return f
}

// keys are the ways in which a key of the organization own differs from one
// that has all power.
var keys = []struct {
	name    string
	members string
	after   func(f *fixture, keyID string)
}{
	{"enough", `"permissions":["admin"]`, nil},
	{"too little permission", `"permissions":["app:nothing"]`, nil},
	{"self reach", `"permissions":["admin"],"reach":"self"`, nil},
	{"expired", `"permissions":["admin"],"expires_at":"EXPIRY"`, func(f *fixture, _ string) { f.clock.forward(time.Minute) }},
	{"revoked", `"permissions":["admin"]`, func(f *fixture, id string) {
		f.s.Must(200, "DELETE", "/orgs/"+f.prefix+"own/api_keys/"+id, f.s.OperatorKey, "")
	}},
	{"deleted organization", `"permissions":["admin"]`, func(f *fixture, _ string) {
		f.s.Must(200, "DELETE", "/orgs/"+f.prefix+"own?cascade=true", f.s.OperatorKey, "")
	}},
}

// expected returns the status that the rules give, 0 for any success.
func expected(operation string, sm sample, keyName, target string) int {
	switch keyName {
	case "expired", "revoked", "deleted organization":
		return http.StatusUnauthorized
	}
	if operation == "whoAmI" {
		return 0
	}
	if sm.operator && sm.elsewhere {
		return http.StatusForbidden
	}
	if sm.elsewhere {
		if keyName == "too little permission" {
			return http.StatusForbidden
		}
		return 0
	}
	visible := target == "own" || target == "child" && keyName != "self reach"
	if operation == "restoreOrg" {
		// What is deleted is restored by whoever sees its parent and its
		// siblings.
		visible = target == "child" && keyName != "self reach"
	}
	namesOrgInBody := operation == "createOrg" || operation == "importOrgs"
	switch {
	case operation == "forwardAuth" && (!visible || keyName == "too little permission"):
		// Proxies know no 404.
		return http.StatusForbidden
	case namesOrgInBody && (keyName == "too little permission" || keyName == "self reach"):
		return http.StatusForbidden // what the key may do is checked before the body is read
	case !visible:
		return http.StatusNotFound
	case keyName == "too little permission", sm.operator:
		return http.StatusForbidden
	}
	switch operation {
	case "createChild":
		if keyName == "self reach" {
			return http.StatusForbidden // the key would not reach what it makes
		}
	case "deleteOrg":
		if keyName == "self reach" {
			return http.StatusForbidden // the key does not reach what would be deleted below
		}
	case "moveOrg":
		if target == "own" {
			return http.StatusForbidden // the key does not reach the old parent
		}
	case "putLimit", "deleteLimit":
		if target == "own" {
			return http.StatusForbidden // limits are set from above
		}
	case "listChildConsumption":
		if keyName == "self reach" {
			return http.StatusForbidden
		}
	case "updateKey", "rotateKey":
		if keyName == "self reach" {
			return http.StatusForbidden // the key to change reaches further
		}
	case "getCustomizationSchema", "putCustomizationSchema", "deleteCustomizationSchema", "getAuditTile", "exportAuditLog", "getStatement",
		"getAccessLogRetention", "putAccessLogRetention",
		"getQuota", "listMeters", "getMeter", "putMeter", "deleteMeter":
		return http.StatusConflict // visible and permitted, but not a root
	}
	return 0
}

// Every call, for a key in each state, on an organization in each relation to
// the key: nobody gets further than the rules allow, and what cannot be seen
// looks exactly like what does not exist.
func TestAuthorizationOfEveryRoute(t *testing.T) {
	c := &clock{}
	s := testkit.Start(t, "sqlite", c.use)
	n := 0
	for _, rt := range new(api.API).Routes() {
		if rt.Rule.Open {
			path, ok := openOperations[rt.Operation]
			if !ok {
				t.Errorf("the route %s %s needs no key, and no test says that this is meant", rt.Method, rt.Pattern)
				continue
			}
			s.Must(200, rt.Method, path, "", "")
			continue
		}
		sm, ok := samples[rt.Operation]
		if !ok {
			t.Errorf("the route %s %s has no authorization test", rt.Method, rt.Pattern)
			continue
		}
		for _, k := range keys {
			n++
			f := newFixture(s, fmt.Sprintf("f%d-", n))
			f.clock = c
			members := strings.ReplaceAll(k.members, "EXPIRY", c.now().Add(time.Minute).UTC().Format(time.RFC3339Nano))
			secret, id := s.NewKey(f.prefix+"own", members)
			if k.after != nil {
				k.after(f, id)
			}
			f.check(t, &rt, sm, k.name, secret)
		}
	}
}

func (f *fixture) check(t *testing.T, rt *web.Route, sm sample, keyName, secret string) {
	t.Helper()
	var absent string
	// Own comes last, since some calls remove it.
	for _, target := range []string{"absent", "foreign", "parent", "sibling", "child", "own"} {
		keyID := f.keyOf[target]
		if keyID == "" {
			keyID = f.keyOf["own"]
		}
		if rt.Operation == "restoreOrg" && keyName != "deleted organization" && target == "child" {
			f.s.Must(200, "DELETE", "/orgs/"+f.prefix+target, f.s.OperatorKey, "")
		}
		if rt.Operation == "restoreOrg" && target == "own" {
			continue // a key cannot outlive its organization
		}
		if (rt.Operation == "getLimit" || rt.Operation == "deleteLimit") && (target == "child" || target == "own") && keyName != "deleted organization" {
			f.s.Must(200, "PUT", "/orgs/"+f.prefix+target+"/limits/api_calls", f.s.OperatorKey, `{"limit":7,"enforcement":"soft"}`)
		}
		entryID := "aud_none"
		if strings.Contains(sm.path, "ENTRY") && target != "absent" && (keyName != "deleted organization" || target != "own" && target != "child") {
			entries := f.s.Must(http.StatusOK, "GET", "/orgs/"+f.prefix+target+"/children_audit?scope=self&limit=1", f.s.OperatorKey, "").JSON().([]any)
			entryID = entries[0].(map[string]any)["id"].(string)
		}
		fill := strings.NewReplacer("ORG", f.prefix+target, "KEY", keyID, "NEW", f.prefix+"new-"+target, "OTHER", f.prefix+"other", "ENTRY", entryID)
		headers := []string{"X-Request-Id", "req_same"}
		if sm.contentType != "" {
			headers = append(headers, "Content-Type", sm.contentType)
		}
		a := f.s.Do(rt.Method, fill.Replace(sm.path), secret, fill.Replace(sm.body), headers...)
		want := expected(rt.Operation, sm, keyName, target)
		if want == 0 && a.Status >= 300 || want != 0 && a.Status != want {
			t.Errorf("%s with a key that is: %s, on its %s: status %d, want %d: %s", rt.Operation, keyName, target, a.Status, want, a.Body)
		}
		if a.Status == http.StatusNotFound || rt.Operation == "forwardAuth" && a.Status == http.StatusForbidden && (target != "own" && target != "child" || keyName == "self reach" && target == "child") {
			if target == "absent" {
				absent = string(a.Body)
			} else if string(a.Body) != absent {
				t.Errorf("%s with a key that is: %s: its %s can be told from an absent one:\n%s\n%s", rt.Operation, keyName, target, a.Body, absent)
			}
		}
	}
}
