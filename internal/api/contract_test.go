package api_test

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/api"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/testkit"
)

// The API description and the table of routes name the same calls, and the
// description knows every error code.
func TestDescriptionAndRoutesAgree(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	var doc struct {
		OpenAPI string                    `json:"openapi"`
		Paths   map[string]map[string]any `json:"paths"`
	}
	raw := s.Must(http.StatusOK, "GET", "/openapi.json", "", "").Body
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1.") {
		t.Errorf("the description is OpenAPI %s", doc.OpenAPI)
	}
	described := map[string]string{}
	for path, item := range doc.Paths {
		for method, v := range item {
			op, ok := v.(map[string]any)
			if !ok {
				continue // parameters of the path
			}
			id, _ := op["operationId"].(string)
			described[strings.ToUpper(method)+" "+path] = id
			security, ok := op["security"].([]any)
			openInDoc := ok && len(security) == 0
			i := slices.IndexFunc(routes(), func(r route) bool { return r.Operation == id })
			if i < 0 {
				continue
			}
			rt := routes()[i]
			if rt.open != openInDoc {
				t.Errorf("%s needs no key: %v, by the description %v", id, rt.open, openInDoc)
			}
			if operatorInDoc, _ := op["x-operator"].(bool); rt.operator != operatorInDoc {
				t.Errorf("%s is for the operator: %v, by the description %v", id, rt.operator, operatorInDoc)
			}
			// A route with a check of its own may demand more than its rule says.
			if in := permissionsOf(op); !slices.Equal(in, rt.permissions) && !rt.checks {
				t.Errorf("%s takes the permissions %v, by the description %v", id, rt.permissions, in)
			}
		}
	}
	for _, rt := range routes() {
		if rt.method == "" {
			// Every method that a description can name is described.
			for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
				call := method + " " + rt.pattern
				if !strings.HasPrefix(described[call], rt.Operation) {
					t.Errorf("%s is the operation %s, by the description %q", call, rt.Operation, described[call])
				}
				delete(described, call)
			}
			continue
		}
		call := rt.method + " " + rt.pattern
		if described[call] != rt.Operation {
			t.Errorf("%s is the operation %s, by the description %q", call, rt.Operation, described[call])
		}
		delete(described, call)
	}
	for call := range described {
		t.Errorf("%s is described and not served", call)
	}
	for _, code := range problem.Codes() {
		if !strings.Contains(string(raw), `"`+string(code)+`"`) {
			t.Errorf("the description does not name the error code %s", code)
		}
	}
}

type route struct {
	method, pattern, Operation string
	open, operator, checks     bool
	permissions                []string
}

// permissionsOf returns the permissions that an operation takes by its
// description.
func permissionsOf(op map[string]any) []string {
	var permissions []string
	list, _ := op["x-permissions"].([]any)
	for _, p := range list {
		permissions = append(permissions, p.(string))
	}
	return permissions
}

func routes() []route {
	var all []route
	for _, r := range new(api.API).Routes() {
		all = append(all, route{r.Method, strings.Replace(r.Pattern, "...}", "}", 1), r.Operation, r.Rule.Open, r.Rule.Operator, r.Rule.Check != nil, r.Rule.Permissions})
	}
	return all
}

// What the query of a call may have is data of its route. It is what the description
// says, and everything else is refused, with the names of what is taken.
func TestParametersOfEveryRoute(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	var doc struct {
		Paths      map[string]map[string]any `json:"paths"`
		Components struct {
			Parameters map[string]map[string]any `json:"parameters"`
		} `json:"components"`
	}
	if err := json.Unmarshal(s.Must(http.StatusOK, "GET", "/openapi.json", "", "").Body, &doc); err != nil {
		t.Fatal(err)
	}
	inQuery := func(list any) (names []string) {
		parameters, _ := list.([]any)
		for _, p := range parameters {
			p := p.(map[string]any)
			if ref, ok := p["$ref"].(string); ok {
				p = doc.Components.Parameters[ref[strings.LastIndexByte(ref, '/')+1:]]
			}
			if p["in"] == "query" {
				names = append(names, p["name"].(string))
			}
		}
		return names
	}
	described := map[string][]string{}
	for _, item := range doc.Paths {
		for _, v := range item {
			if op, ok := v.(map[string]any); ok {
				described[op["operationId"].(string)] = slices.Sorted(slices.Values(append(inQuery(item["parameters"]), inQuery(op["parameters"])...)))
			}
		}
	}
	f := newFixture(s, "p-")
	admin, _ := s.NewKey("p-root", `"permissions":["admin"]`)
	entry := s.Must(http.StatusOK, "GET", "/orgs/p-root/children_audit?scope=self&limit=1", s.OperatorKey, "").JSON().([]any)[0].(map[string]any)["id"].(string)
	s.Must(http.StatusOK, "DELETE", "/orgs/p-child", s.OperatorKey, "")
	entries := len(s.Must(http.StatusOK, "GET", "/orgs/p-root/children_audit?limit=1000", s.OperatorKey, "").JSON().([]any))
	for _, rt := range new(api.API).Routes() {
		var names []string
		for _, p := range rt.Query {
			names = append(names, p.Name)
		}
		if in := described[rt.Operation]; !slices.Equal(slices.Sorted(slices.Values(names)), in) {
			t.Errorf("%s takes the parameters %v, by the description %v", rt.Operation, names, in)
		}
		for _, p := range rt.Following {
			if !slices.Contains(names, p.Name) {
				t.Errorf("%s takes %s only to follow", rt.Operation, p.Name)
			}
		}
		if rt.Rule.Open {
			continue
		}
		sm, org, secret := samples[rt.Operation], "p-root", admin
		if sm.operator || rt.Operation == "putLimit" || rt.Operation == "deleteLimit" || rt.Operation == "moveOrg" {
			secret = s.OperatorKey
		}
		if rt.Operation == "restoreOrg" {
			org = "p-child"
		}
		fill := strings.NewReplacer("ORG", org, "KEY", f.keyOf["own"], "NEW", "p-new", "OTHER", "p-other", "ENTRY", entry)
		if rt.Operation == "getKey" || rt.Operation == "updateKey" || rt.Operation == "rotateKey" || rt.Operation == "revokeKey" {
			fill = strings.NewReplacer("ORG", "p-own", "KEY", f.keyOf["own"])
		}
		path := fill.Replace(sm.path) + "?zoom=1"
		if strings.Contains(sm.path, "?") {
			path = fill.Replace(sm.path) + "&zoom=1"
		}
		contentType := sm.contentType
		if contentType == "" {
			contentType = "application/json"
		}
		a := s.Do(cmp.Or(rt.Method, "GET"), path, secret, fill.Replace(sm.body), "Content-Type", contentType)
		fix := ""
		if len(names) > 0 {
			fix = "It takes " + strings.Join(names, ", ") + "."
		}
		if a.Status != http.StatusBadRequest || a.String("detail") != "The parameter zoom is not one that this call takes." || a.String("fix") != fix {
			t.Errorf("%s with an unknown parameter: status %d: %s", rt.Operation, a.Status, a.Body)
		}
	}
	if n := len(s.Must(http.StatusOK, "GET", "/orgs/p-root/children_audit?limit=1000", s.OperatorKey, "").JSON().([]any)); n != entries {
		t.Errorf("%d audit entries, %d after all that was refused", entries, n)
	}
}

// Whoever reads the description learns what each member of a body means.
func TestMembersAreDescribed(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	var doc any
	if err := json.Unmarshal(s.Must(http.StatusOK, "GET", "/openapi.json", "", "").Body, &doc); err != nil {
		t.Fatal(err)
	}
	members := 0
	var walk func(at string, v any)
	walk = func(at string, v any) {
		switch v := v.(type) {
		case []any:
			for i, item := range v {
				walk(fmt.Sprint(at, "/", i), item)
			}
		case map[string]any:
			properties, _ := v["properties"].(map[string]any)
			for name, p := range properties {
				members++
				schema, ok := p.(map[string]any)
				if !ok {
					t.Errorf("%s/properties/%s is no schema", at, name)
				} else if schema["description"] == nil && schema["$ref"] == nil && schema["const"] == nil {
					t.Errorf("%s/properties/%s has no description", at, name)
				}
			}
			for name, item := range v {
				if name != "example" && name != "examples" {
					walk(at+"/"+name, item)
				}
			}
		}
	}
	walk("", doc)
	if members < 100 {
		t.Errorf("only %d members were found", members)
	}
}
