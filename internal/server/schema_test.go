package server_test

import (
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// A server whose database a newer one has changed for itself answers nothing any
// more but that it lives, and says why.
func TestServerOfOldSchemaStops(t *testing.T) {
	s := testkit.Open(t, "postgres")
	s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"acme","name":"Acme"}`)
	key, _ := s.NewKey("acme", `"permissions":["admin"]`)
	s.Must(200, "GET", "/orgs/acme", key, "")
	if err := testkit.Whole(s.Store).Write(t.Context(), func(tx testkit.Tx) error { return tx.ReplaceMark("compatible_from", "1000") }); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	for s.Do("GET", "/readyz", "", "").Status == 200 {
		if time.Since(begun) > 5*time.Second {
			t.Fatal("it goes on")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("it stopped after %s", took)
	}
	for _, call := range []struct{ method, path string }{{"GET", "/orgs/acme"}, {"GET", "/forward_auth?permission=x"}, {"POST", "/orgs"}, {"GET", "/readyz"}} {
		if a := s.Do(call.method, call.path, key, ""); a.Status != 503 || a.Header.Get("Retry-After") == "" || !strings.Contains(a.String("detail"), "it takes servers that know the schema 1000, and this one knows") {
			t.Errorf("%s %s is %d %s", call.method, call.path, a.Status, a.Body)
		}
	}
	s.Must(200, "GET", "/healthz", "", "")
}
