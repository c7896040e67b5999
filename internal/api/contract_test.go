package api_test

import (
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
