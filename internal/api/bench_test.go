package api_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// nowhere is a ResponseWriter that costs nothing.
type nowhere struct{ header http.Header }

func (w nowhere) Header() http.Header         { return w.header }
func (w nowhere) WriteHeader(int)             {}
func (w nowhere) Write(b []byte) (int, error) { return len(b), nil }

// BenchmarkForwardAuth is one decision without the network: with its event and
// its count in the spool.
func BenchmarkForwardAuth(b *testing.B) {
	s := testkit.Start(b, "sqlite", trusting, func(c *server.Config) {
		c.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	})
	s.Must(200, "POST", "/orgs/import", s.OperatorKey, limitTree, "Content-Type", "text/csv")
	key, _ := s.NewKey("leaf", `"permissions":["app:orders:read"]`)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		r := httptest.NewRequest("GET", "/forward_auth?permission=app:orders:read&meter=api_calls&quantity=1&action=READ_ORDERS", nil)
		r.RemoteAddr = "127.0.0.1:4711"
		r.Header = http.Header{"Authorization": {"Bearer " + key}, "X-Original-Method": {"GET"}, "X-Original-Uri": {"/orders/4711?page=2"},
			"X-Forwarded-For": {"203.0.113.7"}, "User-Agent": {"shop/1.0"}}
		w := nowhere{http.Header{}}
		for pb.Next() {
			clear(w.header)
			s.Handler().ServeHTTP(w, r)
			if w.header.Get("X-Orgd-Org-Id") != "leaf" {
				panic(fmt.Sprintf("the answer has the header %v", w.header))
			}
		}
	})
}
