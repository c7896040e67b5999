package api_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/testkit"
)

// same reports whether a member of an answer is this JSON.
func same(a *testkit.Answer, want string, path ...string) bool {
	got, err := json.Marshal(a.JSON(path...), json.Deterministic(true))
	w := jsontext.Value(want)
	return err == nil && w.Canonicalize() == nil && string(got) == string(w)
}

// Settings are inherited from the root down: objects merge, anything else
// replaces; explain says where each value comes from.
func TestInheritance(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		plant(s, "r", "a r", "b a")
		put := func(id, values string) {
			t.Helper()
			s.Must(200, "PUT", "/orgs/"+id+"/customizations", op, `{"customizations":`+values+`}`)
		}
		put("r", `{"branding":{"logo":"r.png","color":"red"},"langs":["en","de"],"size":1,"on":true}`)
		put("a", `{"branding":{"color":"blue","font":{"name":"x"}},"langs":["fr"],"on":null,"title":""}`)
		put("b", `{"branding":{"font":"none"},"size":{"w":1},"empty":{}}`)
		a := s.Must(200, "GET", "/orgs/b/customizations?explain=true", op, "")
		if !same(a, `{"branding":{"logo":"r.png","color":"blue","font":"none"},"langs":["fr"],"size":{"w":1},"on":null,"title":"","empty":{}}`, "effective") {
			t.Errorf("in effect: %s", a.Body)
		}
		if !same(a, `{"branding":{"font":"none"},"size":{"w":1},"empty":{}}`, "customizations") {
			t.Errorf("own: %s", a.Body)
		}
		if !same(a, `{"/branding/logo":"r","/branding/color":"a","/branding/font":"b","/langs":"a","/on":"a","/title":"a","/size/w":"b","/empty":"b"}`, "sources") {
			t.Errorf("sources: %s", a.Body)
		}
		if a := s.Must(200, "GET", "/orgs/b/customizations", op, ""); a.JSON("sources") != nil {
			t.Errorf("sources although nobody asked: %s", a.Body)
		}
		if a := s.Must(200, "GET", "/orgs/b", op, ""); !same(a, `{"branding":{"font":"none"},"size":{"w":1},"empty":{}}`, "customizations") {
			t.Errorf("an organization shows its own: %s", a.Body)
		}
		// A key that sees b alone sees what is in effect there.
		self, _ := s.NewKey("b", `"permissions":["customizations:read"],"reach":"self"`)
		if a := s.Must(200, "GET", "/orgs/b/customizations", self, ""); !same(a, `["fr"]`, "effective", "langs") {
			t.Errorf("through a key of b: %s", a.Body)
		}

		// PATCH merges: null removes a member, which is inherited again; {} and
		// "" are values; an absent member stays.
		s.Must(200, "PATCH", "/orgs/a", op, `{"customizations":{"branding":{"color":null},"on":null,"langs":null,"new":{"x":null,"y":1}}}`)
		a = s.Must(200, "GET", "/orgs/a/customizations", op, "")
		if !same(a, `{"branding":{"font":{"name":"x"}},"title":"","new":{"y":1}}`, "customizations") ||
			!same(a, `{"branding":{"logo":"r.png","color":"red","font":{"name":"x"}},"langs":["en","de"],"size":1,"on":true,"title":"","new":{"y":1}}`, "effective") {
			t.Errorf("after a merge: %s", a.Body)
		}
		s.Must(200, "PATCH", "/orgs/a", op, `{"customizations":{"title":null,"branding":{}}}`)
		s.Must(200, "PATCH", "/orgs/a", op, `{"customizations":{"branding":"none","new":{}}}`)
		if a := s.Must(200, "GET", "/orgs/a", op, ""); !same(a, `{"branding":"none","new":{"y":1}}`, "customizations") {
			t.Errorf("after more merges: %s", a.Body)
		}
		s.Must(200, "PATCH", "/orgs/a", op, `{"customizations":{}}`)
		for _, bad := range []string{`null`, `[]`, `"x"`, `1`} {
			s.Must(400, "PATCH", "/orgs/a", op, `{"customizations":`+bad+`}`)
			s.Must(400, "PUT", "/orgs/a/customizations", op, `{"customizations":`+bad+`}`)
		}
		// PUT replaces: null is a value there, and what is left out is inherited.
		put("a", `{"size":null}`)
		a = s.Must(200, "GET", "/orgs/b/customizations", op, "")
		if !same(a, `"red"`, "effective", "branding", "color") {
			t.Errorf("after a put: %s", a.Body)
		}
		put("b", `{}`)
		if a := s.Must(200, "GET", "/orgs/b/customizations", op, ""); !same(a, `null`, "effective", "size") || !same(a, `{}`, "customizations") {
			t.Errorf("null is inherited as null: %s", a.Body)
		}
		// Numbers keep every digit.
		put("b", `{"n":12345678901234567890.123456789,"m":1e300,"z":-0}`)
		if a := s.Must(200, "GET", "/orgs/b/customizations", op, ""); !strings.Contains(string(a.Body), `"n":12345678901234567890.123456789,"m":1e300,"z":-0`) {
			t.Errorf("numbers: %s", a.Body)
		}
		// 64 KiB of compact JSON is the most.
		fits := `{"x":"` + strings.Repeat("a", 64<<10-8) + `"}`
		put("b", fits)
		s.Must(400, "PUT", "/orgs/b/customizations", op, `{"customizations":`+strings.Replace(fits, "aa", "aaa", 1)+`}`)
		s.Must(400, "PATCH", "/orgs/b", op, `{"customizations":{"y":1}}`)
		put("b", `{}`)
	})
}

// What an ancestor locked cannot be set below it, by any call.
func TestLocks(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		plant(s, "r", "a r", "b a", "free r")
		s.Must(200, "PUT", "/orgs/b/customizations", op, `{"customizations":{"branding":{"logo":"b.png","color":"red"},"x~y/z":1}}`)
		s.Must(200, "PUT", "/orgs/a/customizations", op, `{"customizations":{"branding":{"logo":"a.png"}},"locked":["/branding/logo","/x~0y~1z","/list"]}`)
		// What was set below before has no effect any more, and is kept.
		a := s.Must(200, "GET", "/orgs/b/customizations?explain=true", op, "")
		if !same(a, `"a.png"`, "effective", "branding", "logo") || !same(a, `"b.png"`, "customizations", "branding", "logo") || a.String("sources", "/branding/logo") != "a" {
			t.Errorf("below a lock: %s", a.Body)
		}
		for _, tt := range []struct{ method, path, body, pointer string }{
			{"PUT", "/orgs/b/customizations", `{"customizations":{"branding":{"logo":"new.png"}}}`, "/branding/logo"},
			{"PATCH", "/orgs/b", `{"customizations":{"branding":{"logo":"new.png"}}}`, "/branding/logo"},
			{"PATCH", "/orgs/b", `{"customizations":{"branding":"none"}}`, "/branding"},
			{"PATCH", "/orgs/b", `{"customizations":{"x~y/z":2}}`, "/x~0y~1z"},
			{"PATCH", "/orgs/b", `{"customizations":{"list":{"0":1}}}`, "/list"},
			{"POST", "/orgs/b/children", `{"name":"New","customizations":{"branding":{"logo":"new.png"}}}`, "/branding/logo"},
			{"POST", "/orgs", `{"name":"New","parent_id":"a","customizations":{"list":[]}}`, "/list"},
		} {
			a := s.Must(409, tt.method, tt.path, op, tt.body)
			text := string(a.Body)
			if a.String("code") != "setting_locked" || !strings.Contains(text, tt.pointer) || !strings.Contains(text, `"a"`) && !strings.Contains(text, " a") {
				t.Errorf("%s %s %s: %s", tt.method, tt.path, tt.body, text)
			}
		}
		a = s.Must(400, "POST", "/orgs/import?parent_id=b", op, `{"id":"i","name":"I","customizations":{"list":1}}`+"\n", "Content-Type", "application/x-ndjson")
		if !strings.Contains(string(a.Body), "/list") {
			t.Errorf("import below a lock: %s", a.Body)
		}
		// Beside the lock, above it, at it, and elsewhere all is free; and what
		// is set below may be removed.
		s.Must(200, "PATCH", "/orgs/b", op, `{"customizations":{"branding":{"color":"blue"}}}`)
		s.Must(200, "PATCH", "/orgs/free", op, `{"customizations":{"branding":{"logo":"free.png"}}}`)
		s.Must(200, "PATCH", "/orgs/r", op, `{"customizations":{"branding":{"logo":"r.png"}}}`)
		s.Must(200, "PATCH", "/orgs/a", op, `{"customizations":{"branding":{"logo":"a2.png"}}}`)
		s.Must(200, "PATCH", "/orgs/b", op, `{"customizations":{"branding":{"logo":null}}}`)
		if a := s.Must(200, "GET", "/orgs/b/customizations", op, ""); !same(a, `"a2.png"`, "effective", "branding", "logo") {
			t.Errorf("the owner of a lock changes the value: %s", a.Body)
		}
		// A PUT without locks leaves them; an empty list removes them.
		s.Must(200, "PUT", "/orgs/a/customizations", op, `{"customizations":{}}`)
		s.Must(409, "PATCH", "/orgs/b", op, `{"customizations":{"list":1}}`)
		if a := s.Must(200, "PUT", "/orgs/a/customizations", op, `{"customizations":{},"locked":[]}`); !same(a, `[]`, "locked") {
			t.Errorf("no locks: %s", a.Body)
		}
		s.Must(200, "PATCH", "/orgs/b", op, `{"customizations":{"list":1}}`)
		for _, bad := range []string{`["branding"]`, `["/a~2"]`, `[""]`, `[5]`, `"x"`, `["/a","/a"]`} {
			if a := s.Do("PUT", "/orgs/a/customizations", op, `{"customizations":{},"locked":`+bad+`}`); a.Status != 400 && bad != `["/a","/a"]` {
				t.Errorf("locked %s: %d %s", bad, a.Status, a.Body)
			}
		}
		// A root's lock at the top locks all below it.
		s.Must(200, "PUT", "/orgs/r/customizations", op, `{"customizations":{"branding":{}},"locked":["/branding"]}`)
		s.Must(409, "PATCH", "/orgs/free", op, `{"customizations":{"branding":{"logo":"x"}}}`)
	})
}

// From the moment that a root has a schema, a write whose effective result
// does not satisfy it is refused with pointers.
func TestCustomizationSchema(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		plant(s, "r", "a r", "b a")
		s.Must(404, "GET", "/orgs/r/customization_schema", op, "")
		s.Must(404, "DELETE", "/orgs/r/customization_schema", op, "")
		s.Must(200, "PUT", "/orgs/b/customizations", op, `{"customizations":{"size":"set before"}}`)
		const schema = `{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","properties":{"size":{"type":"integer","minimum":1},"branding":{"type":"object","properties":{"logo":{"type":"string","maxLength":5}},"required":["logo"]}},"dependentRequired":{"size":["unit"]}}`
		if a := s.Must(200, "PUT", "/orgs/r/customization_schema", op, schema); string(a.Body) != schema {
			t.Errorf("schema: %s", a.Body)
		}
		if a := s.Must(200, "GET", "/orgs/r/customization_schema", op, ""); string(a.Body) != schema {
			t.Errorf("schema: %s", a.Body)
		}
		for _, tt := range []struct{ method, path, body, pointer string }{
			{"PATCH", "/orgs/a", `{"customizations":{"size":"big","unit":"m"}}`, "/customizations/size"},
			{"PUT", "/orgs/a/customizations", `{"customizations":{"size":0,"unit":"m"}}`, "/customizations/size"},
			{"PATCH", "/orgs/a", `{"customizations":{"branding":{"logo":"too long"}}}`, "/customizations/branding/logo"},
			{"PATCH", "/orgs/a", `{"customizations":{"branding":{}}}`, "/customizations/branding"},
			{"POST", "/orgs/a/children", `{"name":"x","customizations":{"size":-1,"unit":"m"}}`, "/customizations/size"},
		} {
			if a := s.Must(400, tt.method, tt.path, op, tt.body); a.String("code") != "schema_violation" || !strings.Contains(pointers(a), tt.pointer) {
				t.Errorf("%s %s %s: %s", tt.method, tt.path, tt.body, a.Body)
			}
		}
		// It is the effective result that counts: the unit may come from above.
		s.Must(400, "PATCH", "/orgs/a", op, `{"customizations":{"size":3}}`)
		s.Must(200, "PATCH", "/orgs/r", op, `{"customizations":{"unit":"m"}}`)
		s.Must(200, "PATCH", "/orgs/a", op, `{"customizations":{"size":3}}`)
		// What was there before is checked when it is written next.
		s.Must(200, "PATCH", "/orgs/b", op, `{"name":"No settings in this change"}`)
		s.Must(400, "PATCH", "/orgs/b", op, `{"customizations":{"other":1}}`)
		s.Must(200, "PATCH", "/orgs/b", op, `{"customizations":{"size":null}}`)
		// Below a root there is no schema, and not everything is one.
		for _, method := range []string{"GET", "PUT", "DELETE"} {
			s.Must(409, method, "/orgs/a/customization_schema", op, map[string]string{"PUT": schema}[method])
		}
		for _, bad := range []string{`5`, `null`, `"x"`, `{"type":"objekt"}`, `{"$ref":"https://example.com/other.json"}`, `{"properties":5}`, `{"pattern":"("}`, `{"$schema":"http://json-schema.org/draft-07/schema#","x":1}`} {
			if a := s.Do("PUT", "/orgs/r/customization_schema", op, bad); a.Status != 400 && !strings.Contains(bad, "draft-07") {
				t.Errorf("schema %s: %d %s", bad, a.Status, a.Body)
			}
		}
		s.Must(200, "PUT", "/orgs/r/customization_schema", op, schema)
		s.Must(200, "DELETE", "/orgs/r/customization_schema", op, "")
		s.Must(200, "PATCH", "/orgs/a", op, `{"customizations":{"size":"big"}}`)
	})
}

// Tags are a set, kept in order.
func TestTags(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		s.Must(201, "POST", "/orgs", op, `{"id":"r","name":"Root","tags":["b","a","b"]}`)
		check := func(want string) {
			t.Helper()
			a := s.Must(200, "GET", "/orgs/r/tags", op, "")
			b := s.Must(200, "GET", "/orgs/r", op, "")
			if got := strings.Join(texts(a.JSON()), " "); got != want || strings.Join(texts(b.JSON("tags")), " ") != want {
				t.Errorf("tags %s, want %s; organization %s", got, want, b.Body)
			}
		}
		check("a b")
		s.Must(200, "PUT", "/orgs/r/tags/env:prod", op, "")
		if a := s.Must(200, "PUT", "/orgs/r/tags/a", op, ""); a.Header.Get("Orgd-Audit-Receipt") != "" {
			t.Error("a tag that was there was audited again")
		}
		check("a b env:prod")
		s.Must(200, "DELETE", "/orgs/r/tags/b", op, "")
		s.Must(404, "DELETE", "/orgs/r/tags/b", op, "")
		s.Must(404, "DELETE", "/orgs/r/tags/A", op, "")
		check("a env:prod")
		for _, bad := range []string{"-a", "a%20b", "%C3%A9", strings.Repeat("a", 65), "a%2Fb", "a;b"} {
			if a := plain(t, s, "PUT", "/orgs/r/tags/"+bad, op, ""); a.Status != 400 {
				t.Errorf("tag %s: %d %s", bad, a.Status, a.Body)
			}
		}
		for i := range 48 {
			s.Must(200, "PUT", fmt.Sprintf("/orgs/r/tags/t%02d", i), op, "")
		}
		s.Must(400, "PUT", "/orgs/r/tags/one-more", op, "")
		s.Must(200, "PATCH", "/orgs/r", op, `{"tags":null}`)
		check("")
		// Many at the same time: none is lost.
		answers := together(t, 16, func(i int) (*testkit.Answer, error) {
			return s.TryDo("PUT", fmt.Sprintf("/orgs/r/tags/p%02d", i), op, "")
		})
		if n := statuses(answers); n[200] != 16 {
			t.Errorf("sixteen tags at once: %v", n)
		}
		if got := len(texts(s.Must(200, "GET", "/orgs/r/tags", op, "").JSON())); got != 16 {
			t.Errorf("%d tags after sixteen were put at once", got)
		}
		// Tags need their own permission.
		key, _ := s.NewKey("r", `"permissions":["orgs:read","orgs:write"]`)
		s.Must(403, "PUT", "/orgs/r/tags/x", key, "")
		s.Must(403, "PATCH", "/orgs/r", key, `{"tags":["x"]}`)
		s.Must(403, "PATCH", "/orgs/r", key, `{"customizations":{"x":1}}`)
		s.Must(403, "POST", "/orgs/r/children", key, `{"name":"x","tags":["x"]}`)
		s.Must(403, "POST", "/orgs/r/children", key, `{"name":"x","customizations":{"x":1}}`)
		s.Must(403, "POST", "/orgs/import", key, "id,name,tags\nx,X,t\n", "Content-Type", "text/csv")
		s.Must(200, "PATCH", "/orgs/r", key, `{"name":"Allowed"}`)
	})
}
