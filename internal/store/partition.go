package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// On PostgreSQL the tables that are PARTITION BY RANGE of a time have a
// partition for every month (UTC), made ahead of it, and one for all other
// times: rows that were brought in from before the first start, and, if
// partitions could not be made in time, what came since. So a row always finds
// its place. A partition is named by its month: access_events_2026_11.
var monthly = []string{"access_events"}

const (
	// monthsAhead is how many partitions there are after that of this month.
	monthsAhead = 3
	// partitionPatience is how long making or dropping a partition waits for
	// the transactions that use the table, while others wait behind it.
	partitionPatience = "500ms"
)

// otherTimes ends the name of the partition for all other times.
const otherTimes = "_other"

func partitionName(table string, month time.Time) string { return table + month.Format("_2006_01") }

func monthStart(t time.Time) time.Time {
	return time.Date(t.UTC().Year(), t.UTC().Month(), 1, 0, 0, 0, 0, time.UTC)
}

func (e *postgresEngine) partition(ctx context.Context, now, expired time.Time) (time.Time, error) {
	return monthStart(expired), errors.Join(e.makePartitions(ctx, now), e.dropPartitions(ctx, expired))
}

// makePartitions makes the partitions of the month of now and those after it
// that do not exist. Another process may do the same at the same time.
func (e *postgresEngine) makePartitions(ctx context.Context, now time.Time) error {
	var errs []error
	for _, table := range monthly {
		for i := range monthsAhead + 1 {
			errs = append(errs, e.makePartition(ctx, table, monthStart(now).AddDate(0, i, 0)))
		}
	}
	return errors.Join(errs...)
}

// dropPartitions drops the partitions of the months that ended before expired.
func (e *postgresEngine) dropPartitions(ctx context.Context, expired time.Time) error {
	var errs []error
	for _, table := range monthly {
		rows, err := e.pool.Query(ctx, `SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
			WHERE i.inhparent = to_regclass($1) AND c.relname < $2 AND c.relname <> $3`,
			table, partitionName(table, monthStart(expired)), table+otherTimes)
		if err != nil {
			return err
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		for _, name := range names {
			errs = append(errs, e.define(ctx, `DROP TABLE IF EXISTS `+pgx.Identifier{name}.Sanitize()))
		}
	}
	return errors.Join(errs...)
}

func (e *postgresEngine) makePartition(ctx context.Context, table string, month time.Time) error {
	name := partitionName(table, month)
	var exists bool
	if err := e.pool.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, name).Scan(&exists); err != nil || exists {
		return err
	}
	err := e.define(ctx, fmt.Sprintf(`CREATE TABLE %s PARTITION OF %s FOR VALUES FROM (%d) TO (%d)`,
		name, table, micros(month), micros(month.AddDate(0, 1, 0))))
	var answer *pgconn.PgError
	switch {
	case errors.As(err, &answer) && answer.Code == stateDuplicateTable:
		return nil
	case errors.As(err, &answer) && answer.Code == stateCheckViolation:
		// The month has rows in the partition for all other times, and stays
		// there.
		return nil
	}
	return err
}

// define runs a statement that changes the schema, and gives up soon rather
// than keep others waiting.
func (e *postgresEngine) define(ctx context.Context, statement string) error {
	return pgx.BeginFunc(ctx, e.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '`+partitionPatience+`'`)
		if err == nil {
			_, err = tx.Exec(ctx, statement)
		}
		return err
	})
}

// Codes of SQLSTATE.
const (
	stateDuplicateTable = "42P07"
	stateCheckViolation = "23514"
)
