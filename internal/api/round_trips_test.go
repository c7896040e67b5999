package api_test

import (
	"fmt"
	"net"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// turns counts the round trips between clients and a server: how often a client
// has said something after the server had answered.
func turns(t *testing.T, serverAddress string) (address string, count *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	count = &atomic.Int64{}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := net.Dial("tcp", serverAddress)
				if err != nil {
					return
				}
				defer out.Close()
				var asked atomic.Bool
				forward := func(to, from net.Conn, seen func()) {
					defer to.Close()
					buf := make([]byte, 64<<10)
					for {
						n, err := from.Read(buf)
						if err != nil {
							return
						}
						seen()
						if _, err := to.Write(buf[:n]); err != nil {
							return
						}
					}
				}
				go forward(in, out, func() { asked.Store(false) })
				forward(out, in, func() {
					if asked.CompareAndSwap(false, true) {
						count.Add(1)
					}
				})
			}()
		}
	}()
	return l.Addr().String(), count
}

// What a call costs on PostgreSQL is round trips more than all else: a change takes
// at most four of them, and what is cached none.
func TestRoundTrips(t *testing.T) {
	var count *atomic.Int64
	s := testkit.Start(t, "postgres", func(c *server.Config) {
		u, err := url.Parse(c.Database)
		if err != nil {
			t.Fatal(err)
		}
		u.Host, count = turns(t, u.Host)
		c.Database = u.String()
	})
	s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"acme","name":"Acme"}`)
	s.Must(201, "POST", "/orgs/acme/children", s.OperatorKey, `{"id":"team","name":"Team"}`)
	own, _ := s.NewKey("team", `"permissions":["admin"]`)
	above, _ := s.NewKey("acme", `"permissions":["admin"]`)
	n := 0
	for _, test := range []struct {
		name, method, path, key, body string
		status                        int
		most                          int64
	}{
		{"update by its own key", "PATCH", "/orgs/team", own, `{"name":"Team %d"}`, 200, 4},
		{"update by a key above", "PATCH", "/orgs/team", above, `{"name":"Team %d"}`, 200, 4},
		{"update by the operator", "PATCH", "/orgs/team", s.OperatorKey, `{"name":"Team %d"}`, 200, 4},
		{"customizations", "PUT", "/orgs/team/customizations", own, `{"customizations":{"n":%d}}`, 200, 14},
		{"child", "POST", "/orgs/team/children", own, `{"id":"child-%d","name":"Child"}`, 201, 14},
		{"tags", "PUT", "/orgs/team/tags/blue-%d", own, "", 200, 6},
		{"organization", "GET", "/orgs/team", own, "", 200, 4},
		{"decision", "GET", "/forward_auth", own, "", 200, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			fewest := int64(1 << 62)
			for range 12 {
				n++
				path, body := test.path, test.body
				if body != "" {
					body = fmt.Sprintf(body, n)
				} else if test.method == "PUT" {
					path = fmt.Sprintf(path, n)
				}
				before := count.Load()
				answer := s.Do(test.method, path, test.key, body)
				if fewest = min(fewest, count.Load()-before); answer.Status != test.status {
					t.Fatalf("%d: %s", answer.Status, answer.Body)
				}
				time.Sleep(5 * time.Millisecond)
			}
			t.Logf("%d round trips", fewest)
			if fewest > test.most {
				t.Errorf("%d round trips, want at most %d", fewest, test.most)
			}
		})
	}
}
