package api_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/errors"
	"github.com/pb33f/libopenapi/datamodel/high/base"
	v3 "github.com/pb33f/libopenapi/datamodel/high/v3"
	"github.com/pb33f/libopenapi/orderedmap"

	"github.com/orgd/orgd/api"
)

func model(t *testing.T) (*v3.Document, validator.Validator) {
	t.Helper()
	doc, err := libopenapi.NewDocument(api.YAML)
	if err != nil {
		t.Fatal(err)
	}
	m, err := doc.BuildV3Model()
	if err != nil {
		t.Fatal(err)
	}
	v, errs := validator.NewValidator(doc)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return &m.Model, v
}

type operation struct {
	method, path string
	*v3.Operation
	parameters []*v3.Parameter // with those of the path
}

func operations(m *v3.Document) []operation {
	var ops []operation
	for path, item := range m.Paths.PathItems.FromOldest() {
		for method, op := range item.GetOperations().FromOldest() {
			ops = append(ops, operation{strings.ToUpper(method), path, op, append(item.Parameters, op.Parameters...)})
		}
	}
	return ops
}

func (op *operation) has(in, name string) bool {
	for _, p := range op.parameters {
		if p.In == in && p.Name == name {
			return true
		}
	}
	return false
}

func TestDocumentIsValid(t *testing.T) {
	_, v := model(t)
	if ok, errs := v.ValidateDocument(); !ok {
		t.Error(describe(errs))
	}
}

// What holds for every call is in the description of every call.
func TestEveryOperation(t *testing.T) {
	m, _ := model(t)
	tags := map[string]bool{}
	for _, tag := range m.Tags {
		tags[tag.Name] = true
	}
	seen := map[string]bool{}
	for _, op := range operations(m) {
		t.Run(op.OperationId, func(t *testing.T) {
			if op.OperationId == "" || seen[op.OperationId] {
				t.Errorf("%s %s: operationId %q is missing or taken", op.method, op.path, op.OperationId)
			}
			seen[op.OperationId] = true
			if op.Summary == "" || len(op.Tags) != 1 || !tags[op.Tags[0]] {
				t.Errorf("summary %q, tags %q", op.Summary, op.Tags)
			}
			changes := op.method != http.MethodGet
			if x := op.Extensions.GetOrZero("x-changes"); x != nil {
				changes = changes && x.Value != "false"
			}
			unaudited := false // what is sent in is stored, and no change
			if x := op.Extensions.GetOrZero("x-audited"); x != nil {
				unaudited = x.Value == "false"
			}
			open := op.Security != nil && len(op.Security) == 0
			var want []string
			if !open {
				want = append(want, "400", "401", "403", "429", "500", "503")
				if !op.has("header", "X-Request-Id") {
					t.Error("does not take X-Request-Id")
				}
			}
			if op.method == http.MethodPost && changes != op.has("header", "Idempotency-Key") {
				t.Error("a POST that takes no Idempotency-Key, or takes one and changes nothing")
			}
			if op.method == http.MethodPost && changes {
				want = append(want, "409")
			}
			if op.has("path", "org_id") {
				want = append(want, "404")
			}
			if op.has("header", "If-Match") {
				want = append(want, "412")
			}
			if op.RequestBody != nil {
				want = append(want, "413", "415")
			}
			if op.method != http.MethodGet {
				want = append(want, "507")
			}
			if op.has("query", "cursor") != op.has("query", "limit") {
				t.Error("a page takes both limit and cursor")
			}
			for _, status := range want {
				if op.Responses.Codes.GetOrZero(status) == nil {
					t.Errorf("no answer %s", status)
				}
			}
			for status, resp := range op.Responses.Codes.FromOldest() {
				if resp.Headers.GetOrZero("X-Request-Id") == nil {
					t.Errorf("the answer %s has no X-Request-Id", status)
				}
				if status == "304" {
					continue
				}
				if problem := resp.Content != nil && resp.Content.GetOrZero("application/problem+json") != nil; problem != (status >= "400") {
					t.Errorf("the answer %s is application/problem+json: %t", status, problem)
				}
				if status >= "400" {
					continue
				}
				if link := resp.Headers.GetOrZero("Link") != nil; link != op.has("query", "cursor") {
					t.Errorf("the answer %s has the header Link: %t", status, link)
				}
				if receipt := resp.Headers.GetOrZero("Orgd-Audit-Receipt") != nil; receipt != (changes && !unaudited) {
					t.Errorf("the answer %s has the header Orgd-Audit-Receipt: %t", status, receipt)
				}
				if location := resp.Headers.GetOrZero("Location") != nil; location != (status == "201") {
					t.Errorf("the answer %s has the header Location: %t", status, location)
				}
			}
		})
	}
}

// Requests are closed, so that a misspelt member is found; answers are open,
// so that a member can be added to them.
func TestRequestsAreClosedAndAnswersOpen(t *testing.T) {
	m, _ := model(t)
	closed := func(s *base.Schema) bool {
		return s.AdditionalProperties != nil && s.AdditionalProperties.IsB() && !s.AdditionalProperties.B
	}
	for _, op := range operations(m) {
		if op.RequestBody != nil {
			for mediaType, content := range op.RequestBody.Content.FromOldest() {
				s := content.Schema.Schema()
				if orderedmap.Len(s.Properties) > 0 && !closed(s) {
					t.Errorf("%s: the body %s takes any member", op.OperationId, mediaType)
				}
			}
		}
		for status, resp := range op.Responses.Codes.FromOldest() {
			if status == "304" {
				continue
			}
			for _, content := range resp.Content.FromOldest() {
				walk(content.Schema, map[string]bool{}, func(at string, s *base.Schema) {
					if closed(s) {
						t.Errorf("%s: the answer %s is closed at %s", op.OperationId, status, at)
					}
				})
			}
		}
	}
}

// walk calls fn for a schema and all that it is made of.
func walk(p *base.SchemaProxy, seen map[string]bool, fn func(at string, s *base.Schema)) {
	at := p.GetReference()
	if at != "" && seen[at] {
		return
	}
	seen[at] = true
	s := p.Schema()
	fn(at, s)
	parts := append(append(append([]*base.SchemaProxy{}, s.AllOf...), s.AnyOf...), s.OneOf...)
	if s.Properties != nil {
		for _, property := range s.Properties.FromOldest() {
			parts = append(parts, property)
		}
	}
	if s.Items != nil && s.Items.IsA() {
		parts = append(parts, s.Items.A)
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.IsA() {
		parts = append(parts, s.AdditionalProperties.A)
	}
	for _, part := range parts {
		walk(part, seen, fn)
	}
}

// Every example of a body is one that its schema allows.
func TestExamples(t *testing.T) {
	m, v := model(t)
	for _, op := range operations(m) {
		path := strings.NewReplacer("{org_id}", "org-123", "{key_id}", "key_1", "{tag}", "beta", "{meter}", "tokens").Replace(op.path)
		if op.RequestBody != nil {
			for mediaType, content := range op.RequestBody.Content.FromOldest() {
				if !strings.HasSuffix(mediaType, "json") || strings.HasSuffix(mediaType, "ndjson") {
					continue
				}
				bodies := examples(t, content)
				if len(bodies) == 0 {
					t.Errorf("%s: the request has no example as %s", op.OperationId, mediaType)
				}
				for _, body := range bodies {
					req := httptest.NewRequest(op.method, path, bytes.NewReader(body))
					req.Header.Set("Content-Type", mediaType)
					if ok, errs := v.GetRequestBodyValidator().ValidateRequestBody(req); !ok {
						t.Errorf("%s: the example %s: %v", op.OperationId, body, describe(errs))
					}
				}
			}
		}
		for status, resp := range op.Responses.Codes.FromOldest() {
			if status == "304" {
				continue
			}
			for mediaType, content := range resp.Content.FromOldest() {
				if !strings.HasSuffix(mediaType, "json") || strings.HasSuffix(mediaType, "ndjson") {
					continue
				}
				bodies := examples(t, content)
				if len(bodies) == 0 && op.OperationId != "openapiJSON" {
					t.Errorf("%s: the answer %s has no example", op.OperationId, status)
				}
				for _, body := range bodies {
					rec := httptest.NewRecorder()
					rec.Header().Set("Content-Type", mediaType)
					var code int
					if _, err := fmt.Sscan(status, &code); err != nil {
						t.Fatal(err)
					}
					rec.WriteHeader(code)
					_, _ = rec.Write(body)
					if ok, errs := v.GetResponseBodyValidator().ValidateResponseBody(httptest.NewRequest(op.method, path, nil), rec.Result()); !ok {
						t.Errorf("%s: the example %s: %v", op.OperationId, body, describe(errs))
					}
				}
			}
		}
	}
}

func examples(t *testing.T, content *v3.MediaType) (bodies [][]byte) {
	t.Helper()
	add := func(decode func(any) error) {
		var v any
		if err := decode(&v); err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, body)
	}
	if content.Example != nil {
		add(content.Example.Decode)
	}
	for _, example := range orderedmap.SortAlpha(content.Examples).FromOldest() {
		add(example.Value.Decode)
	}
	return bodies
}

func describe(errs []*errors.ValidationError) (all []string) {
	for _, e := range errs {
		for _, s := range e.SchemaValidationErrors {
			all = append(all, s.FieldPath+" "+s.Reason)
		}
		if len(e.SchemaValidationErrors) == 0 {
			all = append(all, e.Message+": "+e.Reason)
		}
	}
	return all
}
