package api_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// The ids of events are names that their sender gives them. A neighbour that has
// used one takes it from nobody, and nobody learns that it did.
func TestIdsOfEventsAreTheirSenders(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		s, _ := metered(t, engine, "2026-11-14T12:00:00Z")
		const may = `"permissions":["consumption:write","access_log:write","access_log:read"]`
		eu, euID := s.NewKey("eu", may)
		eu2, _ := s.NewKey("eu", may)
		us, _ := s.NewKey("us", may)
		shop, _ := s.NewKey("shop", may)
		acme, _ := s.NewKey("acme", may)
		event := `{"id":"invoice-1001","source":"billing","meter":"storage_used","quantity":%d,"org_id":%q}`
		cloud := `{"specversion":"1.0","id":"invoice-1001","source":"billing","type":"storage_used","subject":%q,"data":{"quantity":%d}}`
		login := `{"id":"login-1","user":%q,"action":"LOGIN","status":"SUCCESS","org_id":%q}`
		send := func(who, key, orgID string, quantity int, accepted float64) {
			t.Helper()
			counted(t, s.Must(200, "POST", "/orgs/"+orgID+"/consumption/events", key, fmt.Sprintf(event, quantity, orgID)), accepted, 1-accepted)
			counted(t, s.Must(200, "POST", "/orgs/"+orgID+"/consumption/events", key, fmt.Sprintf(cloud, orgID, quantity), "Content-Type", cloudEvents), 0, 1)
			counted(t, s.Must(200, "POST", "/orgs/"+orgID+"/access_log", key, fmt.Sprintf(login, who, orgID)), accepted, 1-accepted)
		}
		send("us", us, "us", 1, 1)
		send("eu", eu, "eu", 500, 1)
		send("shop", shop, "shop", 20, 1)
		send("acme", acme, "shop", 30, 1)
		send("operator", s.OperatorKey, "lab", 7, 1)
		wantQuantities(t, s, "2026-11", "storage_used", map[string]string{"us": "1 0 1", "eu": "500 37 537", "shop": "30 0 30"})

		// A sender is who it is whichever of its keys it uses.
		send("eu", eu, "eu", 500, 0)
		send("eu", eu2, "eu", 500, 0)
		rotated := s.Must(200, "POST", "/orgs/eu/api_keys/"+euID+"/rotate", s.OperatorKey, `{}`).String("secret")
		send("eu", rotated, "eu", 500, 0)
		send("operator", s.OperatorKey, "lab", 7, 0)
		wantQuantities(t, s, "2026-11", "storage_used", map[string]string{"us": "1 0 1", "eu": "500 37 537"})
		for key, want := range map[string]string{us: "us/us", eu2: "eu/eu", shop: "shop/acme shop/shop"} {
			orgID := map[string]string{us: "us", eu2: "eu", shop: "shop"}[key]
			if got := rows(s.Must(200, "GET", "/orgs/"+orgID+"/access_log?action=LOGIN", key, ""), "org_id", "user"); got != map[string]string{
				"us/us": "us us", "eu/eu": "eu eu", "shop/acme shop/shop": "shop acme; shop shop"}[want] {
				t.Errorf("the logins of %s: %s", orgID, got)
			}
		}

		// In another root the operator is another sender.
		counted(t, s.Must(200, "POST", "/orgs/other/consumption/events", s.OperatorKey, fmt.Sprintf(event, 3, "other")), 1, 0)
		counted(t, s.Must(200, "POST", "/orgs/other/consumption/events", s.OperatorKey, fmt.Sprintf(event, 3, "other")), 0, 1)
	})
}

// Who gets the id of a purged organization has sent nothing yet.
func TestIdsOfEventsAreNotInherited(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		s, clock := metered(t, engine, "2026-11-14T12:00:00Z")
		purged := func() {
			t.Helper()
			s.Must(200, "DELETE", "/orgs/shop", s.OperatorKey, "")
			clock.set(clock.now().Add(31 * 24 * time.Hour))
			if _, err := s.Tree.PurgeExpired(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.Must(201, "POST", "/orgs/us/children", s.OperatorKey, `{"id":"shop","name":"Another shop"}`)
		}
		for range 2 {
			shop, _ := s.NewKey("shop", `"permissions":["consumption:write","access_log:write"]`)
			for n := range 2 {
				counted(t, s.Must(200, "POST", "/orgs/shop/consumption/events", shop, `{"id":"1","meter":"storage_used","quantity":1}`), float64(1-n), float64(n))
				counted(t, s.Must(200, "POST", "/orgs/shop/access_log", shop, `{"id":"1","user":"u","action":"LOGIN","status":"SUCCESS"}`), float64(1-n), float64(n))
			}
			purged()
		}
	})
}

// One Idempotency-Key is for one request, and what is in its header fields is
// part of it.
func TestIdempotencyCoversHeaders(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		s, _ := metered(t, engine, "2026-11-14T12:00:00Z")
		op := s.OperatorKey
		send := func(status int, id, key string, more ...string) *testkit.Answer {
			t.Helper()
			return s.Must(status, "POST", "/orgs/acme/consumption/events", op, `{"quantity":1}`, append([]string{"ce-specversion", "1.0", "ce-id", id, "ce-source", "gw",
				"ce-type", "api_calls", "ce-subject", "shop", "Idempotency-Key", key}, more...)...)
		}
		counted(t, send(200, "1", "k"), 1, 0)
		counted(t, send(200, "1", "k"), 1, 0)
		for _, a := range []*testkit.Answer{send(409, "2", "k"), send(409, "1", "k", "ce-subject", "lab"), send(409, "1", "k", "ce-time", "2026-11-14T11:00:00Z")} {
			if a.String("code") != "idempotency_key_reused" {
				t.Errorf("another event with the same key: %s", a.Body)
			}
		}
		counted(t, send(200, "2", "k2"), 1, 0)
		wantQuantities(t, s, "2026-11", "api_calls", map[string]string{"shop": "2 0 2", "lab": "0 0 0"})

		etag := s.Must(200, "GET", "/orgs/shop", op, "").Header.Get("ETag")
		s.Must(200, "POST", "/orgs/shop/move", op, `{"parent_id":"us"}`, "Idempotency-Key", "m", "If-Match", etag)
		s.Must(409, "POST", "/orgs/shop/move", op, `{"parent_id":"us"}`, "Idempotency-Key", "m", "If-Match", `"another"`)
		s.Must(409, "POST", "/orgs/shop/move", op, `{"parent_id":"us"}`, "Idempotency-Key", "m")
	})
}

// An event that names an organization which its sender does not see takes no
// lock of that one's root and leaves nothing there: it is refused at once, as
// one that names nobody is, whatever goes on in that root.
func TestForeignRootsAreLeftAlone(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		url := ""
		s := testkit.Start(t, "", func(c *server.Config) {
			if engine == "postgres" {
				url = testkit.Postgres(t)
				c.Database = url
			}
		})
		s.Must(200, "POST", "/orgs/import", s.OperatorKey, "id,parent_id,name\nmine,,Mine\nvictim,,Victim\nbelow,victim,Below\n", "Content-Type", "text/csv")
		key, _ := s.NewKey("mine", `"permissions":["consumption:write","access_log:write"]`)
		s.Must(200, "POST", "/orgs/mine/consumption/events", key, `{"id":"0","meter":"storage_used","quantity":1}`)

		ask := func(when string) {
			t.Helper()
			for _, orgID := range []string{"victim", "below", "nobody"} {
				for _, x := range []struct{ path, body, mediaType, pointer string }{
					{"/orgs/mine/consumption/events", `[{"id":"1","meter":"storage_used","quantity":1},{"id":"2","meter":"storage_used","quantity":1,"org_id":"` + orgID + `"}]`, "application/json", "/org_id"},
					{"/api/v1/events", `{"specversion":"1.0","id":"1","source":"x","type":"storage_used","subject":"` + orgID + `","data":{"quantity":1}}`, cloudEvents, "/subject"},
					{"/orgs/mine/access_log", `{"user":"u","action":"LOGIN","status":"SUCCESS","org_id":"` + orgID + `"}`, "application/json", "/org_id"},
				} {
					begin := time.Now()
					a := s.Must(400, "POST", x.path, key, x.body, "Content-Type", x.mediaType)
					if took := time.Since(begin); took > 3*time.Second {
						t.Errorf("%s, %s of %s: refused after %s", when, x.path, orgID, took)
					}
					errors, _ := a.JSON("errors").([]any)
					if a.String("code") != "event_invalid" || len(errors) != 1 || errors[0].(map[string]any)["pointer"] != x.pointer {
						t.Errorf("%s, %s of %s: %s", when, x.path, orgID, a.Body)
					}
				}
			}
		}
		ask("on a quiet server")
		var months []metering.Month
		if err := testkit.Whole(s.Store).Read(t.Context(), func(tx testkit.Tx) (err error) {
			months, err = tx.Months("victim")
			return err
		}); err != nil || len(months) != 0 {
			t.Errorf("months of the foreign root: %v, %v", months, err)
		}

		s.Must(200, "POST", "/orgs/victim/consumption/events", s.OperatorKey, `{"id":"0","meter":"storage_used","quantity":1}`)
		if engine == "postgres" {
			conn, err := pgx.Connect(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(context.Background())
			hold, err := conn.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer hold.Rollback(context.Background())
			for _, lock := range []string{`SELECT 1 FROM usage_months WHERE root_id = 'victim' FOR UPDATE`, `SELECT 1 FROM audit_heads WHERE root_id = 'victim' FOR UPDATE`,
				`SELECT 1 FROM orgs WHERE root_id = 'victim' FOR UPDATE`, `INSERT INTO access_heads (root_id, last) VALUES ('victim', 1) ON CONFLICT (root_id) DO UPDATE SET last = access_heads.last`} {
				if _, err := hold.Exec(t.Context(), lock); err != nil {
					t.Fatal(err)
				}
			}
		}
		ask("while the root is locked")
	})
}
