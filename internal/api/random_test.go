package api_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// Many clients change one tree at random, with everything that can be done to
// it, while deleted organizations are purged. Whatever happens, the tree stays
// a tree, the trail folds to the state, and no request fails on the server.
func TestRandomChanges(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			c := &clock{}
			s := testkit.Start(t, engine, c.use)
			op := s.OperatorKey
			plant(s, append(chain("o", "", 6), "p o0", "q p")...)
			const clients, changes, names = 4, 150, 25
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			var mu sync.Mutex
			done := map[string]int{}
			var wg sync.WaitGroup
			for n := range clients {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(seed, uint64(n)))
					id := func() string { return fmt.Sprint("o", 1+r.IntN(names)) }
					parent := func() string { // the root is never deleted for long
						if r.IntN(3) == 0 {
							return "o0"
						}
						return id()
					}
					keyID := ""
					for i := range changes {
						var method, path, body string
						switch r.IntN(14) {
						case 0, 1, 2:
							method, path = "POST", "/orgs/"+parent()+"/children"
							body = fmt.Sprintf(`{"id":"%s","name":"N%d","type":"%s","tags":["t%d"],"customizations":{"a":{"b":%d}}}`,
								id(), i, []string{"organization", "group", "user"}[r.IntN(3)], r.IntN(3), i)
						case 3, 4, 5:
							method, path, body = "POST", "/orgs/"+id()+"/move", `{"parent_id":"`+parent()+`"}`
						case 6:
							method, path = "DELETE", "/orgs/"+id()
						case 7:
							method, path = "DELETE", "/orgs/"+id()+"?cascade=true"
							if r.IntN(10) == 0 {
								if _, err := s.TryDo("DELETE", "/orgs/o0?cascade=true", op, ""); err != nil {
									t.Error(err)
								}
								method, path = "POST", "/orgs/o0/restore"
							}
						case 8, 9:
							method, path = "POST", "/orgs/"+id()+"/restore"
						case 10:
							method, path = "PATCH", "/orgs/"+id()
							body = []string{`{"name":"New","tags":["x","y"]}`, `{"customizations":{"a":null,"c":[1,{"d":""}]}}`, `{"description":"","external_id":"e1"}`,
								`{"customizations":{"a":{"e":{}}},"external_id":null,"tags":null}`}[r.IntN(4)]
						case 11:
							method, path = "PUT", "/orgs/"+id()+"/customizations"
							body = []string{`{"customizations":{}}`, `{"customizations":{"a":1},"locked":["/a"]}`, `{"customizations":{"c":null},"locked":[]}`}[r.IntN(3)]
						case 12:
							method, path, body = "POST", "/orgs/o0/api_keys", `{"name":"k","rate_limit":{"requests":5,"period_seconds":1}}`
						case 13:
							method, path = "DELETE", "/orgs/o0/api_keys/"+keyID
							if r.IntN(2) == 0 {
								method, path = "POST", "/orgs/import?parent_id="+parent()
							}
						}
						headers := []string{}
						if strings.HasPrefix(path, "/orgs/import") {
							body = fmt.Sprintf("id,name,parent_id\n%s,I,\n%s-%d-%d,J,\n", id(), id(), n, i)
							headers = []string{"Content-Type", "text/csv"}
						}
						if keyID == "" && method == "DELETE" && strings.HasSuffix(path, "/") {
							continue
						}
						a, err := s.TryDo(method, path, op, body, headers...)
						if err != nil || a.Status >= 500 {
							t.Errorf("%s %s %s: %v %v", method, path, body, err, a)
							return
						}
						if a.Status == 201 && strings.HasSuffix(path, "/api_keys") {
							keyID = a.String("id")
						}
						mu.Lock()
						done[fmt.Sprintf("%s %v", method, a.Status < 300)]++
						mu.Unlock()
						if n == 0 && i%40 == 39 {
							c.forward(16 * 24 * time.Hour)
							if _, err := s.Tree.PurgeExpired(t.Context()); err != nil {
								t.Error(err)
							}
						}
					}
				})
			}
			wg.Wait()
			t.Log(done)
			for _, method := range []string{"POST", "DELETE", "PATCH", "PUT"} {
				if done[method+" true"] == 0 {
					t.Errorf("no %s was successful", method)
				}
			}
		})
	}
}
