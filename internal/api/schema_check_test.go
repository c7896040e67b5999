package api_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// hold keeps all changes of a root waiting until release, on SQLite those of
// all roots.
func hold(t *testing.T, s *testkit.Server, rootID string) (release func()) {
	t.Helper()
	held, let, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	nothing := errors.New("nothing is kept")
	go func() {
		defer close(done)
		var once sync.Once
		err := testkit.Whole(s.Store).Write(t.Context(), func(tx testkit.Tx) error {
			if _, err := tx.Lock(rootID); err != nil {
				return err
			}
			once.Do(func() { close(held) })
			<-let
			return nothing
		})
		if !errors.Is(err, nothing) {
			t.Error(err)
		}
	}()
	<-held
	release = sync.OnceFunc(func() { close(let); <-done })
	t.Cleanup(release)
	return release
}

// items returns n values with commas between them.
func items(n int, of func(i int) string) string {
	all := make([]string, n)
	for i := range all {
		all[i] = of(i)
	}
	return strings.Join(all, ",")
}

// put makes a PUT for nothing but its status, without a look at its answer, which
// would take longer than the server takes.
func put(s *testkit.Server, path, key, body string) (status int, err error) {
	req, err := http.NewRequest("PUT", s.URL+path, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// attacks are schemas and settings that would take more work than a check may.
var attacks = []struct{ name, schema, settings string }{
	{"a pattern that repeats much over a long text", `{"properties":{"a":{"pattern":"^(?:a*c?){1000}(?:a*c?){1000}(?:a*c?){1000}b$"}}}`, `{"a":"` + strings.Repeat("a", 60_000) + `"}`},
	{"long lists of names, often", `{"properties":{"a":{"anyOf":[` + items(500, func(int) string { return `{"$ref":"#/$defs/r"}` }) + `]}},"$defs":{"r":{"required":[` +
		items(5000, func(i int) string { return fmt.Sprintf(`"%d"`, i) }) + `]}}}`, `{"a":{` + items(4999, func(i int) string { return fmt.Sprintf(`"%d":0`, i) }) + `}}`},
	{"unique items, often", `{"properties":{"a":{"allOf":[` + items(2500, func(int) string { return `{"uniqueItems":true}` }) + `]}}}`, `{"a":[` + items(10_000, func(i int) string { return fmt.Sprint(i) }) + `]}`},
	{"patterns for the names of many", `{"patternProperties":{` + items(1200, func(i int) string { return fmt.Sprintf(`"^x*%d$":false`, i) }) + `}}`, `{` + items(5000, func(i int) string { return fmt.Sprintf(`"xxx%d":0`, 1200+i) }) + `}`},
	{"references that double", `{"$ref":"#/$defs/d0","$defs":{` + items(40, func(i int) string {
		return fmt.Sprintf(`"d%d":{"allOf":[{"$ref":"#/$defs/d%d"},{"$ref":"#/$defs/d%d"}]}`, i, i+1, i+1)
	}) + `,"d40":{}}}`, `{"a":1}`},
	{"long numbers, often", `{"properties":{"a":{"allOf":[` + items(2500, func(int) string { return `{"multipleOf":7}` }) + `]}}}`, `{"a":1` + strings.Repeat("0", 300) + `.` + strings.Repeat("7", 60_000) + `}`},
}

// While one customer's settings are checked with as much work as there is, the
// changes of others are made at once.
func TestChecksHoldNobodyUp(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		s.Must(201, "POST", "/orgs", op, `{"id":"victim","name":"Victim"}`)
		victim, _ := s.NewKey("victim", `"permissions":["admin"]`)

		// What is too large to compile never becomes a schema.
		s.Must(201, "POST", "/orgs", op, `{"id":"attacker","name":"Attacker"}`)
		pattern := `^` + strings.Repeat(`(?:a*c?){1000}`, 30) + `b$`
		a := s.Must(400, "PUT", "/orgs/attacker/customization_schema", op, `{"properties":{"a":{"pattern":"`+pattern+`"}}}`)
		if a.String("code") != "invalid_body" || !strings.Contains(pointers(a), "/properties/a/pattern") || !strings.Contains(string(a.Body), "too large a pattern") || a.String("fix") == "" {
			t.Errorf("a schema with a pattern that is too large: %s", a.Body)
		}

		end := make(chan struct{})
		var attack []func()
		for i, tt := range attacks {
			root := fmt.Sprintf("attacker-%d", i)
			s.Must(201, "POST", "/orgs", op, `{"id":"`+root+`","name":"Attacker"}`)
			s.Must(200, "PUT", "/orgs/"+root+"/customization_schema", op, tt.schema)
			key, _ := s.NewKey(root, `"permissions":["admin"]`)
			// Each call that takes settings is refused with words.
			for _, call := range [][3]string{
				{"PUT", "/orgs/" + root + "/customizations", `{"customizations":` + tt.settings + `}`},
				{"PATCH", "/orgs/" + root, `{"customizations":` + tt.settings + `}`},
				{"POST", "/orgs/" + root + "/children", `{"name":"Child","customizations":` + tt.settings + `}`},
			} {
				a := s.Do(call[0], call[1], key, call[2])
				for range 50 { // the machine may be too busy to end the check
					if a.Status != 503 || a.Header.Get("Retry-After") == "" {
						break
					}
					a = s.Do(call[0], call[1], key, call[2])
				}
				if a.Status != 400 || a.String("code") != "schema_violation" || !strings.Contains(a.String("detail"), "too much work") || a.String("fix") == "" || !strings.Contains(string(a.Body), "most of it for") {
					t.Errorf("%s: %s %s: %s", tt.name, call[0], call[1], a.Body)
				}
			}
			attack = append(attack, func() {
				for {
					select {
					case <-end:
						return
					default:
					}
					if status, err := put(s, "/orgs/"+root+"/customizations", key, `{"customizations":`+tt.settings+`}`); err != nil || status != 400 && status != 503 {
						t.Errorf("%s: %d %v", tt.name, status, err)
						return
					}
				}
			})
		}
		var attackers sync.WaitGroup
		for _, f := range attack[:3] {
			attackers.Go(f)
		}
		var longest time.Duration
		for i := range 20 {
			begun := time.Now()
			s.Must(200, "PATCH", "/orgs/victim", victim, fmt.Sprintf(`{"name":"Victim %d","customizations":{"n":%d}}`, i, i))
			longest = max(longest, time.Since(begun))
		}
		close(end)
		attackers.Wait()
		t.Logf("a change of another customer took %v at most", longest)
		if longest > 5*time.Second {
			t.Errorf("a change of another customer took %v", longest)
		}
	})
}

// Settings are worked out and checked before the transaction: what is refused
// needs no lock and no writer.
func TestSettingsAreCheckedBeforeTheTransaction(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		plant(s, "r", "a r")
		s.Must(200, "PUT", "/orgs/r/customizations", op, `{"customizations":{},"locked":["/locked"]}`)
		s.Must(200, "PUT", "/orgs/r/customization_schema", op, `{"properties":{"n":{"type":"integer"}}}`)
		stale := s.Must(200, "GET", "/orgs/a/customizations", op, "").Header.Get("ETag")
		s.Must(200, "PATCH", "/orgs/a", op, `{"name":"A","customizations":{"n":1}}`)
		hold(t, s, "r")
		for _, tt := range []struct {
			status               int
			method, path, member string
			headers              []string
		}{
			{400, "PUT", "/orgs/a/customizations", `{"n":"x"}`, nil},
			{400, "PATCH", "/orgs/a", `{"n":"x"}`, nil},
			{400, "POST", "/orgs/a/children", `{"n":"x"}`, nil},
			{409, "PUT", "/orgs/a/customizations", `{"locked":1}`, nil},
			{409, "PATCH", "/orgs/a", `{"locked":1}`, nil},
			{409, "POST", "/orgs/a/children", `{"locked":1}`, nil},
			{412, "PUT", "/orgs/a/customizations", `{"n":"x"}`, []string{"If-Match", stale}},
			{400, "PATCH", "/orgs/a", `{"big":"` + strings.Repeat("x", 65<<10) + `"}`, nil},
		} {
			begun := time.Now()
			body := `{"customizations":` + tt.member + `}`
			if tt.method == "POST" {
				body = `{"name":"Child",` + body[1:]
			}
			a := s.Must(tt.status, tt.method, tt.path, op, body, tt.headers...)
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("%s %s waits for the transaction: %v %s", tt.method, tt.path, took, a.Body)
			}
		}
	})
}

// What settings were checked against is still so when they are written, or they
// are checked again.
func TestSettingsThatChangeMeanwhile(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		plant(s, "r", "a r", "b a")
		reset := func() {
			s.Must(200, "PUT", "/orgs/r/customization_schema", op, `{"properties":{"n":{"type":"integer"}}}`)
			s.Must(200, "PUT", "/orgs/a/customizations", op, `{"customizations":{},"locked":[]}`)
			s.Must(200, "PUT", "/orgs/b/customizations", op, `{"customizations":{"old":1}}`)
		}
		newSchema := [3]string{"PUT", "/orgs/r/customization_schema", `{"properties":{"n":{"maximum":4}}}`}
		newLock := [3]string{"PUT", "/orgs/a/customizations", `{"customizations":{},"locked":["/n"]}`}
		above := [3]string{"PATCH", "/orgs/a", `{"customizations":{"m":1}}`}
		beside := [3]string{"PATCH", "/orgs/b", `{"customizations":{"other":1,"old":null}}`}
		name := [3]string{"PATCH", "/orgs/b", `{"name":"Meanwhile"}`}
		put := [3]string{"PUT", "/orgs/b/customizations", `{"customizations":{"n":5}}`}
		patch := [3]string{"PATCH", "/orgs/b", `{"customizations":{"n":5}}`}
		create := [3]string{"POST", "/orgs/b/children", `{"name":"Child","customizations":{"n":5}}`}
		for _, tt := range []struct {
			first, then [3]string
			status      int    // of then
			effective   string // of b after it
		}{
			{newSchema, put, 400, `{"old":1}`}, {newSchema, patch, 400, `{"old":1}`}, {newSchema, create, 400, `{"old":1}`},
			{newLock, put, 409, `{"old":1}`}, {newLock, patch, 409, `{"old":1}`}, {newLock, create, 409, `{"old":1}`},
			{above, put, 200, `{"m":1,"n":5}`}, {above, patch, 200, `{"m":1,"n":5,"old":1}`}, {above, create, 201, `{"m":1,"old":1}`},
			{beside, put, 200, `{"n":5}`}, {beside, patch, 200, `{"n":5,"other":1}`}, {beside, create, 201, `{"other":1}`},
			{name, put, 200, `{"n":5}`}, {name, patch, 200, `{"n":5,"old":1}`}, {name, create, 201, `{"old":1}`},
		} {
			run := func(wait time.Duration) (wrong error) {
				reset()
				release := hold(t, s, "r")
				var calls sync.WaitGroup
				wrongs := make([]error, 2)
				for i, call := range [][3]string{tt.first, tt.then} {
					calls.Go(func() {
						a, err := s.TryDo(call[0], call[1], op, call[2])
						switch status := []int{200, tt.status}[i]; {
						case err != nil:
							wrongs[i] = err
						case a.Status != status:
							wrongs[i] = fmt.Errorf("%v: %d %s, want %d", call, a.Status, a.Body, status)
						case call == put && status == 200 && !same(a, tt.effective, "effective"):
							wrongs[i] = fmt.Errorf("%v: %s, want %s", call, a.Body, tt.effective)
						}
					})
					time.Sleep(wait)
				}
				release()
				calls.Wait()
				if a := s.Must(200, "GET", "/orgs/b/customizations", op, ""); !same(a, tt.effective, "effective") {
					wrongs = append(wrongs, fmt.Errorf("then %s, want %s", a.Body, tt.effective))
				}
				return errors.Join(wrongs...)
			}
			// On a busy machine the second call may get the lock before the first.
			var wrong error
			for wait := 40 * time.Millisecond; wait < time.Second; wait *= 2 {
				if wrong = run(wait); wrong == nil {
					break
				}
			}
			if wrong != nil {
				t.Errorf("%v, then %v: %v", tt.first, tt.then, wrong)
			}
		}

		// Many that change the same settings come through one after the other.
		reset()
		answers := together(t, 24, func(i int) (*testkit.Answer, error) {
			return s.TryDo("PATCH", "/orgs/b", op, fmt.Sprintf(`{"customizations":{"k%d":%d}}`, i, i))
		})
		if n := statuses(answers); n[200] != 24 {
			t.Errorf("24 changes of the same settings: %v", n)
		}
		want := `{"old":1,` + items(24, func(i int) string { return fmt.Sprintf(`"k%d":%d`, i, i) }) + `}`
		if a := s.Must(200, "GET", "/orgs/b/customizations", op, ""); !same(a, want, "customizations") {
			t.Errorf("after 24 changes: %s", a.Body)
		}
	})
}

// A schema from before there were bounds may be beyond them. Then settings are
// refused with words, until there is another; all else goes on.
func TestSchemaThatIsTooLargeAlready(t *testing.T) {
	s := testkit.Open(t, "sqlite")
	op := s.OperatorKey
	plant(s, "r", "a r")
	large := `{"properties":{"a":{"pattern":"` + strings.Repeat(`(?:a*c?){1000}`, 30) + `"}}}`
	if err := testkit.Whole(s.Store).Write(t.Context(), func(tx testkit.Tx) error { return tx.PutSchema("r", []byte(large)) }); err != nil {
		t.Fatal(err)
	}
	a := s.Must(400, "PATCH", "/orgs/a", op, `{"customizations":{"n":1}}`)
	if a.String("code") != "schema_violation" || !strings.Contains(a.String("detail"), "/properties/a/pattern is too large a pattern") || a.String("fix") == "" {
		t.Errorf("settings below a schema that is too large: %s", a.Body)
	}
	s.Must(200, "PATCH", "/orgs/a", op, `{"name":"Other"}`)
	s.Must(200, "GET", "/orgs/r/customization_schema", op, "")
	s.Must(200, "PUT", "/orgs/r/customization_schema", op, `{}`)
	s.Must(200, "PATCH", "/orgs/a", op, `{"customizations":{"n":1}}`)
}
