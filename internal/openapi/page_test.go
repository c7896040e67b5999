package openapi_test

import (
	"crypto/sha256"
	"encoding/base64"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"golang.org/x/net/html"

	"github.com/orgd/orgd/api"
	"github.com/orgd/orgd/internal/openapi"
	"github.com/orgd/orgd/internal/problem"
)

// The reference page shows every call and every error code, loads nothing from
// anywhere, runs only what its policy names, and none of its links is broken.
func TestPage(t *testing.T) {
	body, csp, err := openapi.Page(api.YAML)
	if err != nil {
		t.Fatal(err)
	}
	root, err := html.Parse(strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	ids, links := map[string]bool{}, []string{}
	for n := range root.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		for _, a := range n.Attr {
			switch {
			case a.Key == "id":
				if ids[a.Val] {
					t.Errorf("the id %q is used twice", a.Val)
				}
				ids[a.Val] = true
			case a.Key == "href" && n.Data == "a":
				links = append(links, a.Val)
			case a.Key == "href" && a.Val == "data:,":
			case a.Key == "href", a.Key == "src", a.Key == "srcset", a.Key == "action":
				t.Errorf("<%s> loads %s", n.Data, a.Val)
			case a.Key == "style", strings.HasPrefix(a.Key, "on"):
				t.Errorf("<%s> has %s, which the policy forbids", n.Data, a.Key)
			}
		}
		if n.Data == "style" || n.Data == "script" {
			h := sha256.Sum256([]byte(n.FirstChild.Data))
			want := n.Data + "-src 'sha256-" + base64.StdEncoding.EncodeToString(h[:]) + "'"
			if !strings.Contains(csp, want) {
				t.Errorf("the policy %s lacks %s", csp, want)
			}
			if m := regexp.MustCompile(`url\(|@import|https?:`).FindString(n.FirstChild.Data); m != "" {
				t.Errorf("<%s> has %s", n.Data, m)
			}
		}
	}
	if !strings.HasPrefix(csp, "default-src 'none'; ") || strings.Contains(csp, "unsafe") {
		t.Errorf("the policy is %s", csp)
	}
	for _, link := range links {
		if id, ok := strings.CutPrefix(link, "#"); ok && !ids[id] {
			t.Errorf("the link %s leads nowhere", link)
		} else if !ok && link != "openapi.yaml" && link != "openapi.json" {
			t.Errorf("the link %s leads elsewhere", link)
		}
	}
	var doc struct {
		Paths map[string]map[string]yaml.Node
	}
	if err := yaml.Unmarshal(api.YAML, &doc); err != nil {
		t.Fatal(err)
	}
	operations := 0
	for path, item := range doc.Paths {
		for method, n := range item {
			var op struct {
				OperationID string `yaml:"operationId"`
			}
			if method == "parameters" || n.Decode(&op) != nil || op.OperationID == "" {
				continue
			}
			operations++
			if !ids[op.OperationID] {
				t.Errorf("%s %s (%s) is not on the page", method, path, op.OperationID)
			}
		}
	}
	if operations < 30 {
		t.Errorf("only %d operations were found", operations)
	}
	for _, code := range problem.Codes() {
		if !ids["error-"+string(code)] {
			t.Errorf("the code %s is not on the page", code)
		}
	}
	text := html.UnescapeString(string(body))
	for _, sample := range []string{"/forward_auth?permission=app:orders:read&meter=api_calls", "?reason=Made+after+the+backup"} {
		if !strings.Contains(text, sample) {
			t.Errorf("no sample has %s", sample)
		}
	}
	if m := regexp.MustCompile(`\$ORGD_URL/[^"]*[?][^"]*=[&"]`).FindString(text); m != "" {
		t.Errorf("a sample has an empty parameter: %s", m)
	}
	if strings.Contains(string(body), "ZgotmplZ") {
		t.Error("the template refused a value")
	}
}
