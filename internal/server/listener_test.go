package server_test

import (
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// Which listener serves what. Where a call is not served it does not exist: the
// answer is that of a path that nothing has.
func TestListeners(t *testing.T) {
	const decision, metrics, status = "/forward_auth?permission=app:x", "/metrics", "/service_status"
	for _, tt := range []struct {
		name           string
		proxies, admin bool
		main           []string
		atProxies      []string
		atAdmin        []string
	}{
		{"one listener", false, false, []string{decision, "/healthz", metrics, status, "/org", "/readyz"}, nil, nil},
		{"one for proxies", true, false, []string{"/healthz", metrics, status, "/org", "/readyz"}, []string{decision, "/healthz", "/readyz"}, nil},
		{"one for operators", false, true, []string{decision, "/healthz", "/org", "/readyz"}, nil, []string{"/healthz", metrics, status, "/readyz"}},
		{"both", true, true, []string{"/healthz", "/org", "/readyz"}, []string{decision, "/healthz", "/readyz"}, []string{"/healthz", metrics, status, "/readyz"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var proxies, admin string
			open := func(to *net.Listener, url *string) {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				*to, *url = l, "http://"+l.Addr().String()
			}
			s := testkit.Start(t, "sqlite", func(c *server.Config) {
				c.BasePath = "/api/v1"
				if tt.proxies {
					open(&c.Proxies, &proxies)
				}
				if tt.admin {
					open(&c.Admin, &admin)
				}
			})
			s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"acme","name":"Acme"}`)
			key, _ := s.NewKey("acme", `"permissions":["app:x"]`)
			get := func(url string) (int, http.Header, string) {
				t.Helper()
				r, err := http.NewRequest("GET", url, nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Authorization", "Bearer "+key)
				r.Header.Set("X-Request-Id", "same")
				resp, err := http.DefaultClient.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatal(err)
				}
				resp.Header.Del("Date")
				return resp.StatusCode, resp.Header, string(b)
			}
			for _, place := range []struct {
				name, url string
				serves    []string
			}{{"main", s.URL, tt.main}, {"proxies'", proxies, tt.atProxies}, {"operators'", admin, tt.atAdmin}} {
				if place.url == "" {
					continue
				}
				_, absentHeader, absent := get(place.url + "/nothing")
				for _, base := range []string{"", "/api/v1"} {
					for _, path := range []string{decision, "/forward_auth;permission=app:x/orders", "/forward_auth/orders", metrics, status, "/healthz", "/readyz", "/org", "/openapi.json"} {
						served := slices.Contains(place.serves, path) || place.name == "main" && path == "/openapi.json" ||
							strings.HasPrefix(path, "/forward_auth") && slices.Contains(place.serves, decision)
						code, header, body := get(place.url + base + path)
						if served && code != 200 {
							t.Errorf("the %s listener answers %s with %d %s", place.name, base+path, code, body)
						}
						if served {
							continue
						}
						if code != 404 || body != absent || !equalHeaders(header, absentHeader) {
							t.Errorf("the %s listener tells %s from a path that nothing has:\n%d %v %s\n%v %s", place.name, base+path, code, header, body, absentHeader, absent)
						}
					}
				}
			}
			// What is open to everybody names no version and no numbers there.
			if tt.admin {
				for _, path := range []string{"/healthz", "/readyz"} {
					if _, _, body := get(s.URL + path); body != `{"status":"ok"}` {
						t.Errorf("%s says %s", path, body)
					}
				}
			}
		})
	}
}

func equalHeaders(a, b http.Header) bool {
	if len(a) != len(b) {
		return false
	}
	for name := range a {
		if !slices.Equal(a[name], b[name]) {
			return false
		}
	}
	return true
}

// All listeners stop together.
func TestListenersStop(t *testing.T) {
	var urls []string
	s := testkit.Open(t, "sqlite", func(c *server.Config) {
		for _, to := range []*net.Listener{&c.Proxies, &c.Admin} {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			*to, urls = l, append(urls, l.Addr().String())
		}
	})
	s.Stop()
	for _, address := range append(urls, strings.TrimPrefix(s.URL, "http://")) {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			t.Errorf("%s still takes connections", address)
		}
	}
}
