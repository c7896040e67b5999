package api_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/usage"
)

// A clock is the real one, put forward.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time {
	return time.Now().Add(time.Duration(c.ahead.Load()))
}
func (c *clock) forward(d time.Duration) { c.ahead.Add(int64(d)) }
func (c *clock) use(sc *server.Config)   { sc.Now = c.now }

// behindProxy makes the server believe what the test says in X-Forwarded-For.
func behindProxy(c *server.Config) {
	c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
}

func texts(v any) []string {
	var out []string
	list, _ := v.([]any)
	for _, e := range list {
		s, _ := e.(string)
		out = append(out, s)
	}
	return out
}

// A key cannot make a key that can do more than itself, in any of the four
// ways, and what a request leaves out is taken from the creating key.
func TestKeysDoNotEscalate(t *testing.T) {
	s := testkit.Start(t, "sqlite", behindProxy)
	op := s.OperatorKey
	s.Must(201, "POST", "/orgs", op, `{"id":"r","name":"Root"}`)
	s.Must(201, "POST", "/orgs/r/children", op, `{"id":"c","name":"Child"}`)
	expiry := time.Now().Add(time.Hour).UTC().Truncate(time.Second).Format(time.RFC3339)
	limited, limitedID := s.NewKey("r", `"permissions":["keys:write","keys:read","orgs:read"],"reach":"self","allowed_cidrs":["10.1.0.0/16"],"rate_limit":{"requests":1000,"period_seconds":1},"expires_at":"`+expiry+`"`)
	from := []string{"X-Forwarded-For", "10.1.2.3"}

	a := s.Must(201, "POST", "/orgs/r/api_keys", limited, `{"name":"as the creator"}`, from...)
	if got := texts(a.JSON("permissions")); !slices.Equal(got, []string{"keys:read", "keys:write", "orgs:read"}) {
		t.Errorf("permissions %v", got)
	}
	if a.String("reach") != "self" || a.String("expires_at") != expiry || !slices.Equal(texts(a.JSON("allowed_cidrs")), []string{"10.1.0.0/16"}) ||
		a.JSON("rate_limit", "requests") != 1000.0 || a.String("created_by") != limitedID {
		t.Errorf("a key of which everything was left out: %s", a.Body)
	}
	equal := a.String("id")
	s.Must(201, "POST", "/orgs/r/api_keys", limited, `{"name":"less","permissions":["orgs:read"],"allowed_cidrs":["10.1.2.0/24"],"expires_at":"`+time.Now().Add(time.Minute).UTC().Format(time.RFC3339)+`"}`, from...)

	later := time.Now().Add(2 * time.Hour).UTC().Format(time.RFC3339)
	for pointer, members := range map[string]string{
		"/permissions":   `"permissions":["admin"]`,
		"/reach":         `"reach":"subtree"`,
		"/allowed_cidrs": `"allowed_cidrs":["10.0.0.0/8"]`,
		"/expires_at":    `"expires_at":"` + later + `"`,
	} {
		if a := s.Must(403, "POST", "/orgs/r/api_keys", limited, `{"name":"more",`+members+`}`, from...); pointers(a) != pointer || a.String("fix") == "" {
			t.Errorf("create with %s: %s", members, a.Body)
		}
		s.Must(403, "PATCH", "/orgs/r/api_keys/"+equal, limited, `{`+members+`}`, from...)
		// Nor can it take over a key that has more: a new secret would be as good.
		full := `"permissions":["orgs:read"],"reach":"self","allowed_cidrs":["10.1.0.0/16"],"expires_at":"` + expiry + `"`
		_, stronger := s.NewKey("r", without(full, pointer[1:])+","+members)
		for _, call := range [][3]string{{"POST", "/rotate", ""}, {"PATCH", "", `{"name":"mine now"}`}} {
			if a := s.Must(403, call[0], "/orgs/r/api_keys/"+stronger+call[1], limited, call[2], from...); a.String("code") != "permission_denied" {
				t.Errorf("%s a key with %s: %s", call[0], members, a.Body)
			}
		}
		s.Must(200, "DELETE", "/orgs/r/api_keys/"+stronger, limited, "", from...)
	}
	// All addresses and no expiry are more than some.
	s.Must(403, "POST", "/orgs/r/api_keys", limited, `{"name":"x","allowed_cidrs":[]}`, from...)
	_, forever := s.NewKey("r", `"permissions":["orgs:read"],"reach":"self","allowed_cidrs":["10.1.0.0/16"]`)
	s.Must(403, "POST", "/orgs/r/api_keys/"+forever+"/rotate", limited, "", from...)
	s.Must(200, "PATCH", "/orgs/r/api_keys/"+equal, limited, `{"name":"renamed"}`, from...)
	s.Must(404, "POST", "/orgs/c/api_keys", limited, `{"name":"below"}`, from...)

	// A rate limit is no power: a key may set any, for itself too.
	const fast = `"rate_limit":{"requests":1000000,"period_seconds":1}`
	s.Must(201, "POST", "/orgs/r/api_keys", limited, `{"name":"fast",`+fast+`}`, from...)
	if a := s.Must(200, "PATCH", "/orgs/r/api_keys/"+limitedID, limited, `{`+fast+`}`, from...); a.JSON("rate_limit", "requests") != 1e6 {
		t.Errorf("its own rate limit: %s", a.Body)
	}

	for _, body := range []string{`{}`, `{"name":""}`, `{"name":"x","permissions":["orgs:fly"]}`, `{"name":"x","reach":"all"}`, `{"name":"x","expires_at":"2020-01-01T00:00:00Z"}`,
		`{"name":"x","expires_at":"soon"}`, `{"name":"x","allowed_cidrs":["10.0.0.0/33"]}`, `{"name":"x","rate_limit":{"requests":0,"period_seconds":1}}`,
		`{"name":"x","rate_limit":{"requests":1}}`, `{"name":"x","secret":"mine"}`, `{"name":"x","id":"key_mine"}`} {
		s.Must(400, "POST", "/orgs/r/api_keys", op, body)
	}
}

// without returns JSON members less the one with a name.
func without(members, name string) string {
	var rest []string
	for _, m := range strings.Split(members, `,"`) {
		m = strings.TrimPrefix(m, `"`)
		if !strings.HasPrefix(m, name+`"`) {
			rest = append(rest, `"`+m)
		}
	}
	return strings.Join(rest, ",")
}

// After a rotation both secrets work for as long as the overlap says, and the
// key shows when and from where the old one was last used.
func TestRotation(t *testing.T) {
	onBothWith(t, func(t *testing.T, s *testkit.Server, c *clock) {
		op := s.OperatorKey
		s.Must(201, "POST", "/orgs", op, `{"id":"r","name":"Root"}`)
		first, id := s.NewKey("r", "")
		path := "/orgs/r/api_keys/" + id
		a := s.Must(200, "POST", path+"/rotate", op, `{"overlap_seconds":3600}`)
		second := a.String("secret")
		if a.String("id") != id || second == "" || second == first || a.String("hint") != second[len(second)-4:] || a.String("old_secret", "hint") != first[len(first)-4:] || a.JSON("old_secret", "last_used_at") != nil {
			t.Fatalf("rotated: %s", a.Body)
		}
		s.Must(200, "GET", "/orgs/r", second, "", "X-Forwarded-For", "192.0.2.2")
		s.Must(200, "GET", "/orgs/r", first, "", "X-Forwarded-For", "192.0.2.1")
		if err := s.Recorder.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		a = s.Must(200, "GET", path, op, "")
		if a.String("old_secret", "last_used_ip") != "192.0.2.1" || a.String("old_secret", "last_used_at") == "" || a.String("last_used_ip") == "" || a.String("secret") != "" {
			t.Errorf("a key whose old secret was used: %s", a.Body)
		}
		c.forward(59 * time.Minute)
		s.Must(200, "GET", "/orgs/r", first, "")
		c.forward(time.Minute)
		s.Must(401, "GET", "/orgs/r", first, "")
		s.Must(200, "GET", "/orgs/r", second, "")

		// Another rotation ends the secret before the last at once.
		third := s.Must(200, "POST", path+"/rotate", op, "").String("secret")
		fourth := s.Must(200, "POST", path+"/rotate", op, `{"overlap_seconds":60}`).String("secret")
		s.Must(401, "GET", "/orgs/r", second, "")
		s.Must(200, "GET", "/orgs/r", third, "")
		fifth := s.Must(200, "POST", path+"/rotate", op, `{"overlap_seconds":0}`).String("secret")
		s.Must(401, "GET", "/orgs/r", third, "")
		s.Must(401, "GET", "/orgs/r", fourth, "")
		s.Must(200, "GET", "/orgs/r", fifth, "")
		s.Must(400, "POST", path+"/rotate", op, `{"overlap_seconds":-1}`)
		s.Must(400, "POST", path+"/rotate", op, `{"overlap_seconds":2592001}`)

		// A revoked key is gone, with all its secrets.
		s.Must(200, "POST", path+"/rotate", op, "")
		s.Must(200, "DELETE", path, op, "")
		s.Must(401, "GET", "/orgs/r", fifth, "")
		for _, call := range [][2]string{{"GET", ""}, {"DELETE", ""}, {"POST", "/rotate"}} {
			s.Must(404, call[0], path+call[1], op, "")
		}
	})
}

// onBothWith is onBoth with a clock that can be put forward, behind a trusted
// proxy.
func onBothWith(t *testing.T, scenario func(t *testing.T, s *testkit.Server, c *clock)) {
	t.Parallel()
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			c := &clock{}
			scenario(t, testkit.Start(t, engine, c.use, behindProxy), c)
		})
	}
}

// A key works before its expiry, from its addresses, and at its rate.
func TestWhenAKeyWorks(t *testing.T) {
	c := &clock{}
	s := testkit.Start(t, "sqlite", c.use, behindProxy)
	op := s.OperatorKey
	began := usage.MonthOf(c.now())
	s.Must(201, "POST", "/orgs", op, `{"id":"r","name":"Root"}`)

	expiring, _ := s.NewKey("r", `"expires_at":"`+c.now().Add(time.Hour).UTC().Format(time.RFC3339Nano)+`"`)
	s.Must(200, "GET", "/orgs/r", expiring, "")
	c.forward(time.Hour)
	s.Must(401, "GET", "/orgs/r", expiring, "")

	bound, boundID := s.NewKey("r", `"allowed_cidrs":["192.0.2.0/24","2001:db8::/32"]`)
	for ip, status := range map[string]int{"192.0.2.255": 200, "192.0.3.0": 403, "2001:db8:ffff::1": 200, "2001:db9::1": 403, "::ffff:192.0.2.9": 200} {
		s.Must(status, "GET", "/orgs/r", bound, "", "X-Forwarded-For", ip)
	}
	s.Must(200, "PATCH", "/orgs/r/api_keys/"+boundID, op, `{"allowed_cidrs":["198.51.100.7"]}`)
	s.Must(403, "GET", "/orgs/r", bound, "", "X-Forwarded-For", "192.0.2.255")
	s.Must(200, "GET", "/orgs/r", bound, "", "X-Forwarded-For", "198.51.100.7")

	slow, slowID := s.NewKey("r", `"rate_limit":{"requests":3,"period_seconds":30}`)
	for i := range 3 {
		a := s.Must(200, "GET", "/orgs/r", slow, "")
		if want := fmt.Sprintf(`"key";r=%d;t=`, 2-i); !strings.HasPrefix(a.Header.Get("RateLimit"), want) || a.Header.Get("RateLimit-Policy") != `"key";q=3;w=30` {
			t.Errorf("request %d: RateLimit %s, RateLimit-Policy %s", i, a.Header.Get("RateLimit"), a.Header.Get("RateLimit-Policy"))
		}
	}
	a := s.Must(429, "GET", "/orgs/r", slow, "")
	wait, err := strconv.Atoi(a.Header.Get("Retry-After"))
	if err != nil || wait < 1 || wait > 10 || a.String("code") != "rate_limited" || !strings.HasPrefix(a.Header.Get("RateLimit"), `"key";r=0;t=`) {
		t.Errorf("429: %v %s", a.Header, a.Body)
	}
	s.Must(429, "GET", "/orgs/none", slow, "") // before anything else is looked at
	c.forward(time.Duration(wait) * time.Second)
	s.Must(200, "GET", "/orgs/r", slow, "")
	s.Must(429, "GET", "/orgs/r", slow, "")
	s.Must(200, "PATCH", "/orgs/r/api_keys/"+slowID, op, `{"rate_limit":null}`)
	if a := s.Must(200, "GET", "/orgs/r", slow, ""); a.Header.Get("RateLimit") != "" {
		t.Errorf("no limit any more, but RateLimit %s", a.Header.Get("RateLimit"))
	}
	// Refused requests are in the log and are not counted.
	events := s.Must(200, "GET", "/orgs/r/access_log?status=FAILURE", op, "").JSON().([]any)
	if len(events) != 3 {
		t.Errorf("%d events of the requests that were too many", len(events))
	}
	denied := s.Must(200, "GET", "/orgs/r/access_log?status=DENIED&api_key_id="+boundID, op, "").JSON().([]any)
	if len(denied) != 3 {
		t.Errorf("%d events of the requests from elsewhere", len(denied))
	}
	// 1 of the expiring key, 7 of the bound (3 of them denied), 5 of the slow.
	// A month may have ended meanwhile.
	months := slices.Compact([]usage.Month{began, usage.MonthOf(c.now())})
	got := 0.0
	for _, month := range months {
		got += s.Must(200, "GET", "/orgs/r/consumption?month="+string(month), op, "").JSON("meters", "api_calls", "own").(float64)
	}
	if got != 13 {
		t.Errorf("api_calls: %v", got)
	}
}

// A key that is used from many connections while it is revoked stops at once:
// no request that starts after the answer gets through.
func TestRevokedWhileUsed(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"r","name":"Root"}`)
		for _, ending := range []func(keyID string){
			func(id string) { s.Must(200, "DELETE", "/orgs/r/api_keys/"+id, s.OperatorKey, "") },
			func(id string) {
				s.Must(200, "POST", "/orgs/r/api_keys/"+id+"/rotate", s.OperatorKey, `{"overlap_seconds":0}`)
			},
			func(string) { s.Must(200, "DELETE", "/orgs/r?cascade=true", s.OperatorKey, "") },
		} {
			secret, id := s.NewKey("r", `"permissions":["admin"]`)
			var over atomic.Bool
			var before, after, late atomic.Int64
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for n := 0; n < 5; {
						started := over.Load()
						a, err := s.TryDo("GET", "/orgs/r", secret, "")
						if err != nil {
							t.Error(err)
							return
						}
						switch {
						case a.Status == 200 && started:
							late.Add(1)
							return
						case a.Status == 200:
							before.Add(1)
						case a.Status == 401:
							n++
							after.Add(1)
						case a.Status == 404 && !started:
							// the organization was deleted after the key was checked
						default:
							t.Errorf("status %d: %s", a.Status, a.Body)
							return
						}
					}
				})
			}
			for wait := time.Now(); before.Load() < 20 && time.Since(wait) < 10*time.Second; {
				time.Sleep(time.Millisecond)
			}
			ending(id)
			over.Store(true)
			wg.Wait()
			if late.Load() > 0 || before.Load() == 0 || after.Load() == 0 {
				t.Errorf("%d requests got through before, %d after the end, %d were refused", before.Load(), late.Load(), after.Load())
			}
		}
	})
}

// What a key was last used for shows, and does not change its entity tag.
func TestLastUse(t *testing.T) {
	onBothWith(t, func(t *testing.T, s *testkit.Server, c *clock) {
		s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"r","name":"Root"}`)
		secret, id := s.NewKey("r", "")
		path := "/orgs/r/api_keys/" + id
		a := s.Must(200, "GET", path, s.OperatorKey, "")
		if a.JSON("last_used_at") != nil || a.JSON("last_used_ip") != nil {
			t.Errorf("a key that was never used: %s", a.Body)
		}
		tag := a.Header.Get("ETag")
		s.Must(404, "GET", "/orgs/none", secret, "", "X-Forwarded-For", "192.0.2.77")
		if err := s.Recorder.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		a = s.Must(200, "GET", path, s.OperatorKey, "")
		at, err := time.Parse(time.RFC3339, a.String("last_used_at"))
		if err != nil || c.now().Sub(at) > time.Minute || a.String("last_used_ip") != "192.0.2.77" || a.Header.Get("ETag") != tag {
			t.Errorf("a key that was used: %v %s", a.Header, a.Body)
		}
		s.Must(200, "PATCH", path, s.OperatorKey, `{"name":"new"}`, "If-Match", tag)
		s.Must(412, "PATCH", path, s.OperatorKey, `{"name":"newer"}`, "If-Match", tag)
		s.Must(412, "POST", path+"/rotate", s.OperatorKey, "", "If-Match", tag)
		s.Must(412, "DELETE", path, s.OperatorKey, "", "If-Match", tag)
	})
}

// No secret is in the clear in anything that the server writes: neither a new
// key's, nor one in an answer that is kept to be replayed.
func TestSecretsAreNotStored(t *testing.T) {
	dir := t.TempDir()
	s := testkit.Start(t, "sqlite", func(c *server.Config) { c.DataDir = dir })
	op := s.OperatorKey
	s.Must(201, "POST", "/orgs", op, `{"id":"r","name":"Root"}`)
	first, id := s.NewKey("r", `"permissions":["admin"]`)
	created := s.Must(201, "POST", "/orgs/r/api_keys", first, `{"name":"marker-of-the-test"}`, "Idempotency-Key", "create-1")
	again := s.Must(201, "POST", "/orgs/r/api_keys", first, `{"name":"marker-of-the-test"}`, "Idempotency-Key", "create-1")
	if !bytes.Equal(created.Body, again.Body) || created.String("secret") == "" {
		t.Errorf("replayed: %s\nafter %s", again.Body, created.Body)
	}
	rotated := s.Must(200, "POST", "/orgs/r/api_keys/"+id+"/rotate", op, "", "Idempotency-Key", "rotate-1")
	if err := s.Recorder.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	found := false
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "operator.key" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		found = found || bytes.Contains(b, []byte("marker-of-the-test"))
		for _, secret := range []string{first, created.String("secret"), rotated.String("secret"), op} {
			// The random part alone would do as well.
			if bytes.Contains(b, []byte(secret[len(secret)-38:])) || bytes.Contains(b, []byte(secret[len(secret)-38:len(secret)-6])) {
				t.Errorf("%s holds a secret", path)
			}
		}
		return nil
	})
	if err != nil || !found {
		t.Errorf("the data directory was not searched: %v", err)
	}
	info, err := os.Stat(filepath.Join(dir, "operator.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("operator.key: %v %v", info, err)
	}
	// Nobody else gets the answer, nor does the same key with a new secret.
	second, _ := s.NewKey("r", `"permissions":["admin"]`)
	other := s.Must(http.StatusCreated, "POST", "/orgs/r/api_keys", second, `{"name":"marker-of-the-test"}`, "Idempotency-Key", "create-1")
	if other.String("secret") == created.String("secret") {
		t.Error("another key got the answer")
	}
	a := s.Must(409, "POST", "/orgs/r/api_keys", rotated.String("secret"), `{"name":"marker-of-the-test"}`, "Idempotency-Key", "create-1")
	if a.String("code") != "idempotency_key_reused" {
		t.Errorf("with a new secret: %s", a.Body)
	}
}

// What other programs send is kept without the secrets that are in it, in
// whatever encoding, by every way in; an id, which has to stay as it is, is
// refused.
func TestSecretsInEventsAreNotStored(t *testing.T) {
	dir := t.TempDir()
	s := testkit.Start(t, "sqlite", func(c *server.Config) { c.DataDir = dir })
	s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"r","name":"Root"}`)
	secret, _ := s.NewKey("r", `"permissions":["admin"]`)
	random := secret[len(secret)-38 : len(secret)-6]
	encoded := strings.ReplaceAll(secret, "_", "%5F")
	const password = "correct-horse"
	everywhere := encoded[:len(encoded)-6] + " https://ann:" + password + "@example.com/x marker-of-the-test"
	event := func(id, text string) string {
		return fmt.Sprintf(`{"id":%q,"user":%q,"action":%q,"status":"SUCCESS","user_agent":%[2]q,"path":%[2]q,"request_id":%[3]q}`, id, text, "https://ann:"+password+"@example.com/x")
	}
	s.Must(200, "POST", "/orgs/r/access_log", secret, event("one", everywhere))
	s.Must(200, "POST", "/orgs/r/access_log", secret, `[`+event("two", everywhere)+`]`)
	s.Must(200, "POST", "/orgs/r/access_log", secret, event("three", everywhere)+"\n", "Content-Type", "application/x-ndjson")
	s.Must(200, "POST", "/orgs/r/consumption/events", secret, fmt.Sprintf(`{"id":"four","source":%q,"meter":"api_calls","quantity":1}`, everywhere))
	s.Must(204, "POST", "/api/v1/events", secret, fmt.Sprintf(`{"specversion":"1.0","id":"five","source":%q,"type":"api_calls","subject":"r","data":{"quantity":1}}`,
		"https://ann:"+password+"@example.com/"+encoded), "Content-Type", "application/cloudevents+json")
	for path, body := range map[string]string{
		"/orgs/r/access_log":         event(encoded, "x"),
		"/orgs/r/consumption/events": fmt.Sprintf(`{"id":%q,"meter":"api_calls","quantity":1}`, "https://ann:"+password+"@example.com/"),
	} {
		if a := s.Must(400, "POST", path, secret, body); strings.Contains(string(a.Body), random) || strings.Contains(string(a.Body), password) {
			t.Errorf("%s repeats the secret: %s", path, a.Body)
		}
	}
	if err := s.Recorder.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	a := s.Must(200, "GET", "/orgs/r/access_log?limit=100", secret, "")
	// Five fields of three events.
	if body := string(a.Body); strings.Contains(body, random) || strings.Contains(body, password) || strings.Count(body, "https://…@example.com/x") != 15 {
		t.Errorf("the access log: %s", body)
	}
	found := false
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "operator.key" {
			return err
		}
		b, err := os.ReadFile(path)
		found = found || bytes.Contains(b, []byte("marker-of-the-test"))
		for _, what := range []string{random, password} {
			if bytes.Contains(b, []byte(what)) {
				t.Errorf("%s holds %s", path, what)
			}
		}
		return err
	})
	if err != nil || !found {
		t.Errorf("the data directory was not searched: %v", err)
	}
}
