package server_test

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// Two processes on one database: what one of them changes binds the other
// within a second.
func TestTwoServersOnOneDatabase(t *testing.T) {
	database := testkit.Postgres(t)
	first := testkit.Start(t, "sqlite", func(c *server.Config) { c.Database = database })
	second := testkit.Start(t, "sqlite", func(c *server.Config) { c.Database, c.OperatorKey = database, first.OperatorKey })
	op := first.OperatorKey
	first.Must(201, "POST", "/orgs", op, `{"id":"r","name":"Root"}`)
	first.Must(201, "POST", "/orgs/r/children", op, `{"id":"c","name":"Child"}`)

	// until asks the second server until it answers with the status.
	until := func(what string, status int, key string) {
		t.Helper()
		for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
			late := time.Since(start) > time.Second
			if second.Do("GET", "/orgs/c", key, "").Status == status {
				return
			}
			if late {
				t.Fatalf("%s does not bind the other server after a second", what)
			}
		}
	}
	for range 5 {
		key, id := first.NewKey("r", "")
		until("a new key", 200, key)
		first.Must(200, "DELETE", "/orgs/r/api_keys/"+id, op, "")
		until("a revocation", 401, key)
	}
	key, id := first.NewKey("c", "")
	until("a new key", 200, key)
	first.Must(200, "DELETE", "/orgs/c", op, "")
	until("a delete", 401, key)
	first.Must(200, "POST", "/orgs/c/restore", op, "")
	until("a restore", 200, key)
	first.Must(200, "POST", "/orgs/c/api_keys/"+id+"/rotate", op, `{"overlap_seconds":0}`)
	until("a rotation", 401, key)

	// One Idempotency-Key at both at the same time: it happens once.
	for n := range 10 {
		answers := make([]*testkit.Answer, 8)
		var wg sync.WaitGroup
		for i := range answers {
			s := []*testkit.Server{first, second}[i%2]
			wg.Go(func() {
				a, err := s.TryDo("POST", "/orgs/r/children", op, `{"name":"Once"}`, "Idempotency-Key", fmt.Sprint("both-", n))
				if err != nil {
					t.Error(err)
				}
				answers[i] = a
			})
		}
		wg.Wait()
		created := ""
		for _, a := range answers {
			switch {
			case a == nil:
			case a.Status == 409 && a.String("code") == "request_in_flight" && a.Header.Get("Retry-After") == "1":
			case a.Status != 201 || created != "" && a.String("id") != created:
				t.Errorf("%d %s, before %s", a.Status, a.Body, created)
			default:
				created = a.String("id")
			}
		}
		if created == "" {
			t.Error("nobody was answered")
		}
	}
	if n := len(second.Must(200, "GET", "/orgs/r/children?limit=1000", op, "").JSON().([]any)); n != 11 {
		t.Errorf("%d children, want 11", n)
	}
	// A cursor of one is good for the other.
	next := testkit.NextPage(first.Must(200, "GET", "/orgs/r/children?limit=1", op, ""))
	second.Must(200, "GET", next, op, "")
}

// When PostgreSQL goes away, requests that need it get 503 with Retry-After;
// when it is back, so is orgd, without a restart, and nothing that was
// answered is lost.
func TestPostgresGoesAndComes(t *testing.T) {
	cluster := testkit.NewPostgresCluster(t)
	s := testkit.Start(t, "sqlite", func(c *server.Config) { c.Database = cluster.URL })
	op := s.OperatorKey
	s.Must(201, "POST", "/orgs", op, `{"id":"r","name":"Root"}`)
	key, _ := s.NewKey("r", `"permissions":["admin"]`)
	s.Must(200, "GET", "/readyz", "", "")
	var over atomic.Bool
	var acknowledged, unknown []string
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; !over.Load(); i++ {
			id := fmt.Sprint("c", i)
			a, err := s.TryDo("POST", "/orgs/r/children", key, `{"id":"`+id+`","name":"Child"}`)
			switch {
			case err != nil:
				t.Error(err)
				return
			case a.Status == 201:
				acknowledged = append(acknowledged, id)
			case a.Status == 503 && a.String("code") == "outcome_unknown":
				unknown = append(unknown, id)
			case a.Status != 503:
				t.Errorf("%d %s", a.Status, a.Body)
				return
			default:
				time.Sleep(10 * time.Millisecond)
			}
		}
	})
	time.Sleep(100 * time.Millisecond)
	for range 2 {
		cluster.Kill()
		for _, call := range [][3]string{{"GET", "/orgs/r/children", ""}, {"PATCH", "/orgs/r", `{"description":"x"}`}, {"GET", "/orgs?name=x", ""}, {"GET", "/orgs/r/consumption", ""}} {
			a := s.Must(503, call[0], call[1], key, call[2])
			if wait, err := strconv.Atoi(a.Header.Get("Retry-After")); a.String("code") != "unavailable" || err != nil || wait < 1 {
				t.Errorf("%s %s: %v %s", call[0], call[1], a.Header, a.Body)
			}
		}
		s.Must(200, "GET", "/healthz", "", "")
		// The database is looked at several times a second.
		for deadline := time.Now().Add(time.Second); s.Do("GET", "/readyz", "", "").Status == 200; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Error("PostgreSQL is gone, and the server says that it is ready")
				break
			}
		}
		s.Must(503, "GET", "/readyz", "", "")
		if a := s.Must(200, "GET", "/service_status", "", ""); a.String("status") != "degraded" || a.String("checks", "database", "status") != "failed" {
			t.Errorf("status: %s", a.Body)
		}
		if err := cluster.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(15 * time.Second); s.Do("PATCH", "/orgs/r", key, `{"description":"`+time.Now().String()+`"}`).Status != 200; {
			if time.Now().After(deadline) {
				t.Fatal("PostgreSQL is back, and changes are still refused")
			}
			time.Sleep(20 * time.Millisecond)
		}
		// That the database is the one that takes the changes is looked at several
		// times a second.
		for deadline := time.Now().Add(5 * time.Second); s.Do("GET", "/readyz", "", "").Status != 200; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("changes are made, and the server does not say that it is ready")
			}
		}
		s.Must(200, "GET", "/orgs/r/consumption", key, "")
	}
	over.Store(true)
	wg.Wait()
	for _, id := range acknowledged {
		s.Must(200, "GET", "/orgs/"+id, key, "")
	}
	t.Logf("%d changes were acknowledged, of %d the outcome was unknown", len(acknowledged), len(unknown))
	if len(acknowledged) == 0 {
		t.Error("no change was acknowledged")
	}
}

// A server reads a log in order to sign it, and before it has compared that with
// its anchor another one signs more. What the other has signed comes into the
// anchor too, but not in the meantime: the log would seem to lack it, and be
// refused for as long as the other signs it.
func TestSignedElsewhereMeanwhile(t *testing.T) {
	database := testkit.Postgres(t)
	one := testkit.Start(t, "sqlite", func(c *server.Config) { c.Database, c.SignInterval = database, time.Hour })
	two := testkit.Start(t, "sqlite", func(c *server.Config) {
		c.Database, c.OperatorKey, c.SignInterval = database, one.OperatorKey, -1
	})

	var once sync.Once
	meanwhile := false
	one.Store.Trace(func(text string) {
		if !strings.Contains(text, "FROM audit_checkpoints WHERE root_id = $1 AND epoch = $2") {
			return
		}
		once.Do(func() { // the snapshot has been taken
			meanwhile = true
			two.Must(200, "PATCH", "/orgs/r", two.OperatorKey, `{"name":"Second"}`)
			if err := two.SignAuditLogs(t.Context()); err != nil {
				t.Error(err)
			}
			time.Sleep(2500 * time.Millisecond) // the anchor of the first is brought up each second
		})
	})
	two.Must(201, "POST", "/orgs", two.OperatorKey, `{"id":"r","name":"Root"}`)
	if err := one.SignAuditLogs(t.Context()); err != nil {
		t.Fatal(err)
	}
	one.Store.Trace(nil)
	if !meanwhile {
		t.Fatal("the first server has signed nothing")
	}
	if a := one.Must(200, "GET", "/refused_audit_logs", one.OperatorKey, ""); len(a.JSON().([]any)) > 0 {
		t.Errorf("refused: %s", a.Body)
	}
	if a := one.Must(200, "GET", "/service_status", "", ""); a.String("checks", "audit_log", "status") != "ok" {
		t.Errorf("/service_status says %s", a.Body)
	}
}

// A log that two servers refuse goes on at both when a new epoch is opened at one.
func TestNewEpochElsewhere(t *testing.T) {
	database := testkit.Postgres(t)
	one := testkit.Open(t, "sqlite", func(c *server.Config) { c.Database, c.SignInterval = database, time.Hour })
	two := testkit.Open(t, "sqlite", func(c *server.Config) {
		c.Database, c.OperatorKey, c.SignInterval = database, one.OperatorKey, -1
	})
	sign := func() {
		t.Helper()
		for _, s := range []*testkit.Server{two, one} {
			if err := s.SignAuditLogs(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	op := one.OperatorKey
	two.Must(201, "POST", "/orgs", op, `{"id":"r","name":"Root"}`)
	sign()
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), `UPDATE audit_checkpoints SET size = size + 1`); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two", "three"} {
		two.Must(200, "PATCH", "/orgs/r", op, `{"name":"`+name+`"}`)
	}
	sign()
	refused := func(s *testkit.Server) int {
		return len(s.Must(200, "GET", "/refused_audit_logs", op, "").JSON().([]any))
	}
	if a, b := refused(one), refused(two); a != 1 || b != 1 {
		t.Fatalf("refused: %d and %d", a, b)
	}
	two.Must(201, "POST", "/orgs/r/audit_log/epochs", op, `{"reason":"a test"}`)
	if err := two.SignAuditLogs(t.Context()); err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); refused(one) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Since(begin) > 5*time.Second {
			t.Fatal("the other server still refuses the log")
		}
	}
}
