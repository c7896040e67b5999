package store

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/orgd/orgd/internal/org"
)

// batchSize bounds what is queued at once.
const batchSize = 1000

// postgresConn is a transaction on a connection. A round trip to the server can
// take longer than all that the server does for a change, so as few as can be are
// made: a transaction begins with its first statement, what needs no answer goes
// with the next statement that does, and the last of it with the commit. The
// server runs all that was sent together in turn, and nothing of it after the
// first error.
type postgresConn struct {
	ctx     context.Context
	conn    *pgx.Conn
	texts   *sync.Map
	waiting []statement // to be sent before whatever comes next
	begun   bool        // something was sent
}

// stateNone is what onlyIfOne makes the server say.
const stateNone = "22012"

// onlyIfOne returns a statement that fails, with stateNone, unless the given one
// changes a row: what was sent together with it, even a commit, is not done then.
func onlyIfOne(text string) string {
	return `WITH changed AS (` + text + ` RETURNING 1) SELECT 1 / count(*) FROM changed`
}

func (c *postgresConn) text(text string) string {
	if t, ok := c.texts.Load(text); ok {
		return t.(string)
	}
	t := postgresDialect.query(text)
	c.texts.Store(text, t)
	return t
}

// send sends what waits and, if it is not empty, one statement more, in one round
// trip, and has read read the answer to that.
func (c *postgresConn) send(ctx context.Context, read func(pgx.BatchResults) error, text string, args ...any) error {
	batch := &pgx.Batch{}
	waiting := c.waiting
	for i := range waiting {
		batch.Queue(waiting[i].text, waiting[i].args...)
	}
	if text != "" {
		batch.Queue(text, args...)
	}
	c.waiting, c.begun = nil, true
	results := c.conn.SendBatch(ctx, batch)
	err := answers(results, waiting)
	if err == nil && text != "" {
		err = read(results)
	}
	if closing := results.Close(); err == nil {
		err = closing
	}
	return err
}

func answers(results pgx.BatchResults, waiting []statement) error {
	for i := range waiting {
		s := &waiting[i]
		var err error
		if s.answered == nil {
			_, err = results.Exec()
		} else {
			err = scanRows(results.Query, s.answered)
		}
		var answer *pgconn.PgError
		if s.must && errors.As(err, &answer) && answer.Code == stateNone {
			return org.ErrStale
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func scanRows(query func() (pgx.Rows, error), scan func(row) error) error {
	rows, err := query()
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// later has a statement sent with the next one.
func (c *postgresConn) later(s statement) error {
	if s.text = c.text(s.text); s.must {
		s.text = onlyIfOne(s.text)
	}
	if c.waiting = append(c.waiting, s); len(c.waiting) < batchSize {
		return nil
	}
	return c.send(c.ctx, nil, "")
}

func (c *postgresConn) exec(text string, args ...any) (n int64, err error) {
	if len(c.waiting) == 0 {
		tag, err := c.conn.Exec(c.ctx, c.text(text), args...)
		return tag.RowsAffected(), err
	}
	err = c.send(c.ctx, func(results pgx.BatchResults) error {
		tag, err := results.Exec()
		n = tag.RowsAffected()
		return err
	}, c.text(text), args...)
	return n, err
}

// execEach sends the statements without waiting for the answers in between, and
// for none of them if nobody wants to know what they have changed.
func (c *postgresConn) execEach(text string, n int, args func(i int) []any, changed func(i int, rows int64) error) error {
	if changed == nil {
		for i := range n {
			if err := c.later(statement{text: text, args: args(i)}); err != nil {
				return err
			}
		}
		return nil
	}
	text = c.text(text)
	for start := 0; start < n; start += batchSize {
		end := min(n, start+batchSize)
		batch := &pgx.Batch{}
		waiting := c.waiting
		for i := range waiting {
			batch.Queue(waiting[i].text, waiting[i].args...)
		}
		for i := start; i < end; i++ {
			batch.Queue(text, args(i)...)
		}
		c.waiting, c.begun = nil, true
		results := c.conn.SendBatch(c.ctx, batch)
		err := answers(results, waiting)
		for i := start; i < end && err == nil; i++ {
			var tag pgconn.CommandTag
			if tag, err = results.Exec(); err == nil {
				err = changed(i, tag.RowsAffected())
			}
		}
		if closing := results.Close(); err == nil {
			err = closing
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *postgresConn) query(scan func(row) error, text string, args ...any) error {
	if len(c.waiting) == 0 {
		return scanRows(func() (pgx.Rows, error) { return c.conn.Query(c.ctx, c.text(text), args...) }, scan)
	}
	return c.send(c.ctx, func(results pgx.BatchResults) error { return scanRows(results.Query, scan) }, c.text(text), args...)
}

// commit sends what waits and the commit. The error is pgx.ErrTxCommitRollback
// if the server has rolled back instead.
func (c *postgresConn) commit(ctx context.Context) error {
	err := c.send(ctx, func(results pgx.BatchResults) error {
		tag, err := results.Exec()
		if err == nil && tag.String() == "ROLLBACK" {
			err = pgx.ErrTxCommitRollback
		}
		return err
	}, `commit`)
	if err == nil {
		c.begun = false
	}
	return err
}

// end ends a transaction that is not to be committed, if one has begun. A
// connection that does not do it in time is closed.
func (c *postgresConn) end(ctx context.Context) {
	if c.waiting = nil; !c.begun || c.conn.IsClosed() {
		return
	}
	late := time.AfterFunc(beatTimeout, func() { cut(c.conn) })
	defer late.Stop()
	if _, err := c.conn.Exec(ctx, `rollback`); err != nil {
		cut(c.conn)
	}
}
