package api_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// Whoever names an organization that they do not see takes no lock of its root:
// not for a moment, since a large request can hold it for long. Here somebody
// else holds these locks, and whoever wants one of them waits.
func TestNothingIsLockedForThoseWhoDoNotSeeIt(t *testing.T) {
	t.Parallel()
	url := testkit.Postgres(t)
	s := testkit.Start(t, "", func(c *server.Config) { c.Database = url })
	op := s.OperatorKey
	for _, root := range []string{"mine", "victim"} {
		s.Must(201, "POST", "/orgs", op, `{"id":"`+root+`","name":"Root"}`)
		for _, child := range []string{"a", "b", "gone"} {
			s.Must(201, "POST", "/orgs/"+root+"/children", op, `{"id":"`+root+`-`+child+`","name":"Child"}`)
		}
		s.Must(200, "DELETE", "/orgs/"+root+"-gone", op, "")
	}
	mine, _ := s.NewKey("mine", `"permissions":["admin"]`)
	victim, _ := s.NewKey("victim", `"permissions":["admin"]`)
	month := time.Now().UTC().Format("2006-01")
	s.Must(200, "POST", "/orgs/victim/consumption/events", victim, `{"id":"e","meter":"api_calls","quantity":1}`)
	// The rows are remembered now, as they are for a customer in use.
	s.Must(200, "GET", "/orgs/victim", victim, "")
	s.Must(200, "GET", "/orgs/victim-a", victim, "")

	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, lock := range []string{
		`SELECT 1 FROM audit_heads WHERE root_id = 'victim' FOR UPDATE`,
		`SELECT 1 FROM usage_months WHERE root_id = 'victim' FOR UPDATE`,
		`SELECT 1 FROM orgs WHERE root_id = 'victim' FOR UPDATE`,
	} {
		if tag, err := tx.Exec(t.Context(), lock); err != nil || tag.RowsAffected() == 0 {
			t.Fatal(lock, tag, err)
		}
	}

	rows := "id,name,parent_id\nx,x,victim\n"
	for _, tt := range []struct {
		status                  int
		method, path, key, body string
		headers                 []string
	}{
		{400, "POST", "/orgs/import?dry_run=true", mine, rows, []string{"Content-Type", "text/csv"}},
		{400, "POST", "/orgs/import", mine, rows, []string{"Content-Type", "text/csv"}},
		{400, "POST", "/orgs/import", mine, "id,name,parent_id\nx,x,victim-gone\n", []string{"Content-Type", "text/csv"}},
		{404, "POST", "/orgs/import?parent_id=victim", mine, "id,name\nx,x\n", []string{"Content-Type", "text/csv"}},
		{404, "POST", "/orgs", mine, `{"id":"x","name":"X","parent_id":"victim"}`, nil},
		{404, "POST", "/orgs/victim/children", mine, `{"id":"x","name":"X"}`, nil},
		{404, "POST", "/orgs/mine-a/move", mine, `{"parent_id":"victim-a"}`, nil},
		{404, "POST", "/orgs/mine-a/move?dry_run=true", mine, `{"parent_id":"victim-a"}`, nil},
		{404, "POST", "/orgs/victim-a/move", mine, `{"parent_id":"mine-b"}`, nil},
		{404, "POST", "/orgs/victim-gone/restore", mine, "", nil},
		{404, "POST", "/orgs/victim-a/restore", mine, "", nil},
		{404, "POST", "/orgs/victim/audit_erasures", mine, `{"subject":"jane@example.com","basis":"7"}`, nil},
		{404, "DELETE", "/orgs/victim-a?dry_run=true", mine, "", nil},
		{404, "PATCH", "/orgs/victim-a", mine, `{"name":"X"}`, nil},
		{404, "PUT", "/orgs/victim-a/limits/api_calls", mine, `{"limit":1,"enforcement":"hard"}`, nil},
		{400, "POST", "/orgs/mine/consumption/events", mine, `{"id":"e","org_id":"victim-a","meter":"api_calls","quantity":1}`, nil},
		{400, "POST", "/api/v1/events", mine, `{"specversion":"1.0","id":"f","source":"test","type":"api_calls","subject":"victim","data":{"quantity":1}}`, []string{"Content-Type", "application/cloudevents+json"}},
		{400, "POST", "/orgs/mine/access_log", mine, `{"user":"jo","action":"LOGIN","status":"SUCCESS","org_id":"victim"}`, nil},
		{404, "POST", "/orgs/victim/consumption/adjustments", mine, fmt.Sprintf(`{"meter":"api_calls","quantity":1,"reason":"x","month":%q}`, month), nil},
	} {
		done := make(chan *testkit.Answer, 1)
		go func() {
			a, err := s.TryDo(tt.method, tt.path, tt.key, tt.body, tt.headers...)
			if err != nil {
				a = &testkit.Answer{Body: []byte(err.Error())}
			}
			done <- a
		}()
		select {
		case a := <-done:
			if a.Status != tt.status {
				t.Errorf("%s %s: status %d, want %d: %s", tt.method, tt.path, a.Status, tt.status, a.Body)
			}
		case <-time.After(15 * time.Second):
			t.Errorf("%s %s waits for a lock of the victim", tt.method, tt.path)
		}
	}

	// The owner does wait: these are the locks that its own changes take.
	waits := make(chan *testkit.Answer, 1)
	go func() {
		a, _ := s.TryDo("PATCH", "/orgs/victim", victim, `{"name":"Changed"}`)
		waits <- a
	}()
	select {
	case <-waits:
		t.Error("the victim's own change did not wait: this test holds no lock that matters")
	case <-time.After(300 * time.Millisecond):
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := <-waits; a == nil || a.Status != 200 {
		t.Errorf("the victim's own change: %+v", a)
	}
}

// However many changes of one customer wait for the lock of its root, on
// PostgreSQL too there is a connection for everybody else.
func TestChangesThatWaitLeaveConnections(t *testing.T) {
	t.Parallel()
	url := testkit.Postgres(t)
	s := testkit.Start(t, "", func(c *server.Config) { c.Database = url })
	keys := map[string]string{}
	for _, root := range []string{"busy", "other"} {
		s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"`+root+`","name":"Root"}`)
		keys[root], _ = s.NewKey(root, `"permissions":["admin"]`)
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT 1 FROM audit_heads WHERE root_id = 'busy' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	const waiting = 60
	got := make(chan int, waiting)
	for i := range waiting {
		go func() {
			a, err := s.TryDo("PATCH", "/orgs/busy", keys["busy"], fmt.Sprintf(`{"description":"%d"}`, i))
			if err != nil {
				got <- 0
				return
			}
			got <- a.Status
		}()
	}
	time.Sleep(500 * time.Millisecond)
	for range 10 {
		begin := time.Now()
		s.Must(200, "PATCH", "/orgs/other", keys["other"], fmt.Sprintf(`{"description":"%d"}`, begin.UnixNano()))
		s.Must(200, "GET", "/orgs/other/children", keys["other"], "")
		s.Must(200, "GET", "/readyz", "", "")
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("another customer waits %v", took)
		}
	}
	// Those that wait longer than they can are told so, and that nothing was changed.
	time.Sleep(5 * time.Second)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	counts := map[int]int{}
	for range waiting {
		counts[<-got]++
	}
	if counts[200]+counts[503] != waiting || counts[200] == 0 || counts[503] == 0 {
		t.Errorf("the answers of those that waited: %v", counts)
	}
}

// A key that is revoked while its events are stored, after they were let
// through and before they are committed, has stored none: each kind of events
// waits for the change that somebody else makes to the key, and then heeds it.
func TestEventsHeedAChangeOfTheirKeyUntilTheyAreCommitted(t *testing.T) {
	t.Parallel()
	url := testkit.Postgres(t)
	s := testkit.Start(t, "", func(c *server.Config) { c.Database = url })
	s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"a","name":"A"}`)
	s.Must(201, "POST", "/orgs/a/children", s.OperatorKey, `{"id":"a-b","name":"B"}`)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	other, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(t.Context())
	stored := func() (n int) {
		t.Helper()
		err := other.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM usage_events) + (SELECT count(*) FROM access_events WHERE action = 'LOGIN')`).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	const usage = `[{"id":"e1","meter":"api_calls","quantity":5},{"id":"e2","meter":"api_calls","quantity":5}]`
	for _, tt := range []struct {
		name, change, path, body string
		status                   int
	}{
		{"usage, revoked", `UPDATE api_keys SET revoked_at = 1 WHERE id = $1`, "/orgs/a/consumption/events", usage, 401},
		{"usage, expired", `UPDATE api_keys SET expires_at = 1 WHERE id = $1`, "/orgs/a/consumption/events", usage, 401},
		{"usage, narrowed", `UPDATE api_keys SET permissions = '["orgs:read"]' WHERE id = $1`, "/orgs/a/consumption/events", usage, 403},
		{"usage, of less reach", `UPDATE api_keys SET reach = 'self' WHERE id = $1`, "/orgs/a/consumption/events", usage, 409},
		{"access, revoked", `UPDATE api_keys SET revoked_at = 1 WHERE id = $1`, "/orgs/a/access_log", `{"user":"jo","action":"LOGIN","status":"SUCCESS"}`, 401},
		{"access, narrowed", `UPDATE api_keys SET permissions = '[]' WHERE id = $1`, "/orgs/a/access_log", `{"user":"jo","action":"LOGIN","status":"SUCCESS"}`, 403},
		{"usage, only used", `UPDATE api_keys SET last_used_at = 1 WHERE id = $1`, "/orgs/a/consumption/events", usage, 200},
	} {
		secret, id := s.NewKey("a", `"permissions":["admin"]`)
		s.Must(200, "GET", "/orgs/a", secret, "")
		var permissions string
		if err := other.QueryRow(t.Context(), `SELECT permissions FROM api_keys WHERE id = $1`, id).Scan(&permissions); err != nil {
			t.Fatal(err)
		}
		if err := s.Recorder.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if tag, err := tx.Exec(t.Context(), tt.change, id); err != nil || tag.RowsAffected() != 1 {
			t.Fatal(tt.name, tag, err)
		}
		before := stored()
		answer := make(chan *testkit.Answer, 1)
		go func() {
			a, err := s.TryDo("POST", tt.path, secret, tt.body)
			if err != nil {
				a = &testkit.Answer{Body: []byte(err.Error())}
			}
			answer <- a
		}()
		select {
		case a := <-answer:
			t.Errorf("%s: %d before the change of the key was decided", tt.name, a.Status)
			answer <- a
		case <-time.After(200 * time.Millisecond):
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		a := <-answer
		if a.Status != tt.status {
			t.Errorf("%s: status %d, want %d: %s", tt.name, a.Status, tt.status, a.Body)
		}
		if n := stored() - before; n > 0 != (tt.status == 200) {
			t.Errorf("%s: %d events were stored", tt.name, n)
		}
		// As the audit trail knows it.
		if _, err := other.Exec(t.Context(), `UPDATE api_keys SET revoked_at = 0, expires_at = 0, reach = 'subtree', permissions = $2 WHERE id = $1`, id, permissions); err != nil {
			t.Fatal(err)
		}
	}
}
