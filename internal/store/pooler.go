package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// PoolerError says that a database URL leads through a pooler that gives each
// transaction another session.
type PoolerError struct{}

func (*PoolerError) Error() string {
	return "the database URL leads through a pooler that gives each transaction another session (PgBouncer's pool_mode=transaction); " +
		"that works if orgd also has a URL that leads to the database itself: --database-direct or ORGD_DATABASE_DIRECT"
}

// poolerConnections is how many connections are made, at most, to find out what
// a pooler does.
const poolerConnections = 8

// checkPooler returns a *PoolerError if a session can be taken from the
// connection between its transactions.
//
// A pooler shows in the process id that a connection is told at its start, which
// is not that of the server. Whether it keeps sessions is tried: the session of
// the connection, which is idle, is free for others then; somebody who holds it
// in a transaction keeps it from the connection.
func checkPooler(ctx context.Context, c *pgx.Conn, config *pgx.ConnConfig) error {
	config = config.Copy()
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	pid := func(c *pgx.Conn, text string) (pid uint32, err error) {
		err = c.QueryRow(ctx, text, pgx.QueryExecModeSimpleProtocol).Scan(&pid)
		return pid, err
	}
	own, err := pid(c, `SELECT pg_backend_pid()`)
	if err != nil || own == c.PgConn().PID() {
		return err
	}
	for range poolerConnections {
		other, err := pgx.ConnectConfig(ctx, config.Copy())
		if err != nil {
			break // it gives no more; what was found out so far counts
		}
		defer other.Close(ctx)
		if _, err := other.Exec(ctx, `BEGIN`); err != nil {
			return fmt.Errorf("the pooler cannot be used: %w", err)
		}
		taken, err := pid(other, `SELECT pg_backend_pid()`)
		if err != nil {
			return fmt.Errorf("the pooler cannot be used: %w", err)
		}
		if taken == own {
			return &PoolerError{}
		}
	}
	return nil
}
