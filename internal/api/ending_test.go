package api_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/api"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/tree"
	"github.com/orgd/orgd/internal/usage"
)

// endings are the ways in which the right of a key of the organization parent
// to act on own, below it, can end.
var endings = []struct {
	name    string
	members string
	end     func(s *testkit.Server, c *clock, prefix, keyID string)
	status  int               // of a call about own
	code    problem.Code      // of a change of own
	still   func(sample) bool // calls that may be made for all that
}{
	{"the key is revoked", "", func(s *testkit.Server, _ *clock, p, id string) {
		s.Must(200, "DELETE", "/orgs/"+p+"parent/api_keys/"+id, s.OperatorKey, "")
	}, 401, problem.Unauthorized, nil},
	{"the key expires", `"expires_at":"EXPIRY"`, func(_ *testkit.Server, c *clock, _, _ string) { c.forward(time.Hour + time.Second) }, 401, problem.Unauthorized, nil},
	{"the secret is replaced", "", func(s *testkit.Server, _ *clock, p, id string) {
		s.Must(200, "POST", "/orgs/"+p+"parent/api_keys/"+id+"/rotate", s.OperatorKey, `{"overlap_seconds":0}`)
	}, 401, problem.Unauthorized, nil},
	{"its organization is deleted", "", func(s *testkit.Server, _ *clock, p, _ string) {
		s.Must(200, "DELETE", "/orgs/"+p+"parent?cascade=true", s.OperatorKey, "")
	}, 401, problem.Unauthorized, nil},
	{"an organization above it is deleted", "", func(s *testkit.Server, _ *clock, p, _ string) {
		s.Must(200, "DELETE", "/orgs/"+p+"root?cascade=true", s.OperatorKey, "")
	}, 401, problem.Unauthorized, nil},
	{"its permissions are taken away", "", func(s *testkit.Server, _ *clock, p, id string) {
		s.Must(200, "PATCH", "/orgs/"+p+"parent/api_keys/"+id, s.OperatorKey, `{"permissions":["app:nothing"]}`)
	}, 403, problem.PermissionDenied, nil},
	{"its addresses are narrowed", "", func(s *testkit.Server, _ *clock, p, id string) {
		s.Must(200, "PATCH", "/orgs/"+p+"parent/api_keys/"+id, s.OperatorKey, `{"allowed_cidrs":["192.0.2.0/24"]}`)
	}, 403, problem.PermissionDenied, nil},
	{"its reach is narrowed", "", func(s *testkit.Server, _ *clock, p, id string) {
		s.Must(200, "PATCH", "/orgs/"+p+"parent/api_keys/"+id, s.OperatorKey, `{"reach":"self"}`)
	}, 404, problem.NotFound, func(sm sample) bool { return sm.elsewhere }},
	{"the organization moves out of its reach", "", func(s *testkit.Server, _ *clock, p, _ string) {
		s.Must(200, "POST", "/orgs/"+p+"own/move", s.OperatorKey, `{"parent_id":"`+p+`root"}`)
	}, 404, problem.NotFound, func(sm sample) bool { return sm.elsewhere }},
}

// halfway makes a request of which the server reads the body already, runs
// meanwhile, and sends the body only then.
func halfway(t *testing.T, s *testkit.Server, method, path, key, body, contentType string, meanwhile func()) int {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: orgd\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n",
		method, path, key, contentType, len(body))
	in := bufio.NewReader(conn)
	// A server asks for the body when it begins to read it.
	if line, err := in.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") {
		t.Fatalf("%s %s: the server does not ask for the body: %s %v", method, path, line, err)
	}
	if _, err := in.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	meanwhile()
	io.WriteString(conn, body)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// Whoever sends the beginning of a request while they may make it, and the
// rest when they may not any more, may not. The first one shows that the
// request would have been made.
func TestARightEndsWhileTheBodyComes(t *testing.T) {
	onBothWith(t, func(t *testing.T, s *testkit.Server, c *clock) {
		n := 0
		for _, rt := range new(api.API).Routes() {
			sm := samples[rt.Operation]
			if sm.body == "" || rt.Method == "GET" || sm.operator {
				continue
			}
			switch rt.Operation {
			case "putCustomizationSchema", "putAccessLogRetention", "putMeter":
				continue // about roots, which do not move
			}
			contentType := sm.contentType
			switch {
			case rt.Operation == "ingestEvents":
				contentType = "application/cloudevents+json"
			case contentType == "":
				contentType = "application/json"
			}
			for i := -1; i < len(endings); i++ {
				n++
				f := newFixture(s, fmt.Sprintf("f%d-", n))
				members := ""
				if i >= 0 {
					members = strings.ReplaceAll(endings[i].members, "EXPIRY", c.now().Add(time.Hour).UTC().Format(time.RFC3339Nano))
				}
				secret, id := s.NewKey(f.prefix+"parent", strings.TrimSuffix(`"permissions":["admin"],`+members, ","))
				fill := strings.NewReplacer("ORG", f.prefix+"own", "KEY", f.keyOf["own"], "NEW", f.prefix+"new", "OTHER", f.prefix+"sibling", "SECRET", secret)
				if i < 0 {
					status := halfway(t, s, rt.Method, fill.Replace(sm.path), secret, fill.Replace(sm.body), contentType, func() {})
					if status >= 300 {
						t.Fatalf("%s: status %d although nothing has ended", rt.Operation, status)
					}
					continue
				}
				e := &endings[i]
				if rt.Operation == "updateKey" && e.members != "" {
					continue // the key to change outlives this one, which may not change it
				}
				want := e.status
				status := halfway(t, s, rt.Method, fill.Replace(sm.path), secret, fill.Replace(sm.body), contentType, func() { e.end(s, c, f.prefix, id) })
				switch {
				case e.still != nil && e.still(sm):
					continue
				case want == 404 && (rt.Operation == "createOrg" || rt.Operation == "importOrgs") && status == 403:
					// A key that reaches only its own organization creates nothing.
				case status != want:
					t.Errorf("%s while %s: status %d, want %d", rt.Operation, e.name, status, want)
				}
			}
		}
	})
}

// changesOfOwn are changes of an organization, or of something that it has, as
// the service makes them for a call that has been let through.
var changesOfOwn = map[string]func(t *testing.T, s *testkit.Server, call *org.Call, prefix, keyID string) error{
	"create key": func(t *testing.T, s *testkit.Server, call *org.Call, p, _ string) error {
		_, _, err := s.Tree.CreateKey(t.Context(), call, p+"own", auth.Request{Name: "late"})
		return err
	},
	"rotate key": func(t *testing.T, s *testkit.Server, call *org.Call, p, keyID string) error {
		_, _, err := s.Tree.RotateKey(t.Context(), call, p+"own", keyID, 0)
		return err
	},
	"update": func(t *testing.T, s *testkit.Server, call *org.Call, p, _ string) error {
		name := "Late"
		_, _, err := s.Tree.Update(t.Context(), call, p+"own", tree.OrgUpdate{Members: []string{"name"}, To: org.Organization{Name: name}})
		return err
	},
	"create child": func(t *testing.T, s *testkit.Server, call *org.Call, p, _ string) error {
		_, _, err := s.Tree.CreateChild(t.Context(), call, p+"own", org.Organization{ID: p + "late", Name: "Late"})
		return err
	},
	"move": func(t *testing.T, s *testkit.Server, call *org.Call, p, _ string) error {
		_, _, err := s.Tree.Move(t.Context(), call, p+"own", p+"sibling")
		return err
	},
	"put limit": func(t *testing.T, s *testkit.Server, call *org.Call, p, _ string) error {
		_, _, err := s.Metering.PutLimit(t.Context(), call, p+"own", usage.APICalls, usage.One, usage.Soft)
		return err
	},
	"put customizations": func(t *testing.T, s *testkit.Server, call *org.Call, p, _ string) error {
		_, _, err := s.Tree.PutCustomizations(t.Context(), call, p+"own", tree.SettingsPut{Values: []byte(`{"late":true}`)})
		return err
	},
	"delete": func(t *testing.T, s *testkit.Server, call *org.Call, p, _ string) error {
		_, _, err := s.Tree.Delete(t.Context(), call, p+"own", tree.DeleteOptions{Cascade: true})
		return err
	},
	"adjust": func(t *testing.T, s *testkit.Server, call *org.Call, p, _ string) error {
		_, _, err := s.Metering.Adjust(t.Context(), call, p+"own", metering.NewAdjustment{Month: usage.MonthOf(s.Service.Now()), Meter: usage.APICalls, Quantity: usage.One, Reason: "late"})
		return err
	},
}

// endedCall returns a call that was let through before the right of its actor
// ended.
func endedCall(t *testing.T, s *testkit.Server, secret string) *org.Call {
	t.Helper()
	ip := netip.MustParseAddr("127.0.0.1")
	login, err := s.Service.Authenticate(t.Context(), secret, ip)
	if err != nil {
		t.Fatal(err)
	}
	return &org.Call{Actor: login.Actor, Secret: key.HashToken(secret), Address: ip, RequestID: "req_late", IP: "127.0.0.1"}
}

// A change is made by what its actor may do when it is made, not by what they
// could do when they asked: it waits for others, and they may have taken the
// right away.
func TestARightEndsBeforeTheChange(t *testing.T) {
	onBothWith(t, func(t *testing.T, s *testkit.Server, c *clock) { endBeforeChange(t, s, s, c) })
}

// So it is for a process that has not heard yet of what another one did.
func TestARightEndsInAnotherProcess(t *testing.T) {
	t.Parallel()
	url := testkit.Postgres(t)
	c := &clock{}
	one := testkit.Start(t, "", c.use, behindProxy, func(sc *server.Config) { sc.Database = url })
	two := testkit.Open(t, "", c.use, behindProxy, func(sc *server.Config) { sc.Database, sc.OperatorKey = url, one.OperatorKey })
	endBeforeChange(t, two, one, c)
}

func endBeforeChange(t *testing.T, acting, other *testkit.Server, c *clock) {
	n := 0
	for name, change := range changesOfOwn {
		for i := -1; i < len(endings); i++ {
			n++
			f := newFixture(other, fmt.Sprintf("g%d-", n))
			members := ""
			if i >= 0 {
				members = strings.ReplaceAll(endings[i].members, "EXPIRY", c.now().Add(time.Hour).UTC().Format(time.RFC3339Nano))
			}
			secret, id := other.NewKey(f.prefix+"parent", strings.TrimSuffix(`"permissions":["admin"],`+members, ","))
			call := endedCall(t, acting, secret)
			// What the process remembers is what it knew before.
			acting.Must(200, "GET", "/orgs/"+f.prefix+"own", secret, "")
			if i < 0 {
				if err := change(t, acting, call, f.prefix, f.keyOf["own"]); err != nil {
					t.Errorf("%s: %v although nothing has ended", name, err)
				}
				continue
			}
			endings[i].end(other, c, f.prefix, id)
			err := change(t, acting, call, f.prefix, f.keyOf["own"])
			if name == "put customizations" && problem.Is(err, problem.NotFound) {
				continue // it looks before the change, and what is deleted is not there
			}
			if !problem.Is(err, endings[i].code) {
				t.Errorf("%s after %s: %v, want %s", name, endings[i].name, err, endings[i].code)
			}
		}
	}
}

// Changes that stand in one line see what those before them have done, although
// it is not committed yet: of many creations of keys and one revocation all
// that come after it fail, and the trail says in which order they were.
func TestNothingIsMadeAfterTheRevocation(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"r","name":"Root"}`)
		for round := range 5 {
			secret, id := s.NewKey("r", `"permissions":["admin"]`)
			answers := together(t, 30, func(i int) (*testkit.Answer, error) {
				if i == 15 {
					return s.TryDo("DELETE", "/orgs/r/api_keys/"+id, s.OperatorKey, "")
				}
				return s.TryDo("POST", "/orgs/r/api_keys", secret, fmt.Sprintf(`{"name":"n%d"}`, i))
			})
			got := statuses(answers)
			if got[200] != 1 || got[201]+got[401] != 29 {
				t.Errorf("round %d: %v", round, got)
			}
			revoked := false
			for _, e := range s.Must(200, "GET", "/orgs/r/children_audit?limit=100", s.OperatorKey, "").JSON().([]any) {
				entry := e.(map[string]any)
				actor, target := entry["actor"].(map[string]any)["id"], entry["target"].(map[string]any)["id"]
				if target == id && entry["action"] == "api_key.revoked" {
					revoked = true // what follows is older
				}
				if actor == id && !revoked {
					t.Errorf("round %d: %s was made with a key that was revoked before", round, target)
				}
			}
			if !revoked {
				t.Errorf("round %d: no revocation in the trail", round)
			}
		}
	})
}
