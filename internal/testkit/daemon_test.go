package testkit

import (
	"net"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"
)

// What is between a test and its database lets it through, and PgBouncer in
// transaction mode is what it should be: a lock of the session is of another
// session a moment later.
func TestDaemons(t *testing.T) {
	database := Postgres(t)
	ctx := t.Context()
	for _, mode := range []string{"session", "transaction"} {
		u := PgBouncer(t, database, mode, "max_client_conn = 50")
		var held [2]bool
		var conns []*pgx.Conn
		for i := range held {
			c, err := pgx.ParseConfig(u)
			if err != nil {
				t.Fatal(err)
			}
			c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
			conn, err := pgx.ConnectConfig(ctx, c)
			if err != nil {
				t.Fatalf("%s: %v", mode, err)
			}
			conns = append(conns, conn)
			if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock(4711)`).Scan(&held[i]); err != nil {
				t.Fatalf("%s: %v", mode, err)
			}
		}
		if want := mode == "transaction"; !held[0] || held[1] != want {
			t.Errorf("in %s mode two clients get one session's lock: %v", mode, held)
		}
		for _, conn := range conns {
			conn.Close(ctx)
		}
	}
	c, err := pgx.ParseConfig(database)
	if err != nil {
		t.Fatal(err)
	}
	_, port := splitAddress(t, Balancer(t, []string{FreeAddress(t), hostPort(c)}))
	c.Host, c.Port = "127.0.0.1", uint16(port)
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
}

func hostPort(c *pgx.ConnConfig) string { return net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port))) }
