package store

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var migrations embed.FS

//go:embed statistics.sql
var sqliteStatistics string

// migrate brings the schema up to date. Each migration is one transaction;
// on PostgreSQL an advisory lock keeps two processes from migrating at once.
// The mark is that of the Options.
func migrate(ctx context.Context, db *sql.DB, d *dialect, mark string) error {
	steps, err := migrationSteps(d)
	if err != nil {
		return err
	}
	options := []goose.ProviderOption{
		goose.WithGoMigrations(steps...),
		goose.WithDisableGlobalRegistry(true),
	}
	if d.kind == Postgres {
		locker, err := lock.NewPostgresSessionLocker()
		if err != nil {
			return err
		}
		options = append(options, goose.WithSessionLocker(locker))
	}
	provider, err := goose.NewProvider(d.goose, db, nil, options...)
	if err != nil {
		return err
	}
	current, target, err := provider.GetVersions(ctx)
	if err != nil {
		return err
	}
	if current > target {
		return fmt.Errorf("a newer orgd has used it: its schema is %d, and this one knows %d; use the newer one", current, target)
	}
	if mark != "" {
		if err := checkMark(ctx, db, d, current, mark); err != nil {
			return err
		}
	}
	applied, err := provider.Up(ctx)
	if err == nil && len(applied) > 0 && d.statistics != "" {
		_, err = db.ExecContext(ctx, d.statistics)
	}
	if err == nil && mark != "" {
		_, err = db.ExecContext(ctx, d.query(`INSERT INTO marks (name, value) VALUES ($1, '') ON CONFLICT (name) DO NOTHING`), mark)
	}
	return err
}

// marksVersion is the version of the migration that makes the table of marks.
const marksVersion = 9

// checkMark returns ErrUnmarked if the database, which has a version of the
// schema, ever had organizations and does not bear the mark.
func checkMark(ctx context.Context, db *sql.DB, d *dialect, version int64, mark string) error {
	var used, marked int
	if version > 0 {
		// A log stays when its root is purged.
		if err := db.QueryRowContext(ctx, `SELECT count(*) FROM (SELECT 1 FROM audit_heads LIMIT 1) AS a`).Scan(&used); err != nil {
			return err
		}
	}
	if version >= marksVersion {
		if err := db.QueryRowContext(ctx, d.query(`SELECT count(*) FROM marks WHERE name = $1`), mark).Scan(&marked); err != nil {
			return err
		}
	}
	if used > 0 && marked == 0 {
		return ErrUnmarked
	}
	return nil
}

// migrationSteps returns the embedded migrations in the engine's own SQL. A
// file is named by its version, "00001_initial.sql"; its statements end with
// a semicolon at the end of a line.
func migrationSteps(d *dialect) ([]*goose.Migration, error) {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	var steps []*goose.Migration
	for _, name := range names {
		prefix, _, _ := strings.Cut(strings.TrimPrefix(name, "migrations/"), "_")
		version, err := strconv.ParseInt(prefix, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("the migration %s has no version: %w", name, err)
		}
		text, err := fs.ReadFile(migrations, name)
		if err != nil {
			return nil, err
		}
		up := func(ctx context.Context, tx *sql.Tx) error {
			for statement := range strings.SplitSeq(d.schema(string(text)), ";\n") {
				if strings.TrimSpace(statement) == "" {
					continue
				}
				if _, err := tx.ExecContext(ctx, statement); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
			return nil
		}
		steps = append(steps, goose.NewGoMigration(version, &goose.GoFunc{RunTx: up}, nil))
	}
	carry := func(ctx context.Context, tx *sql.Tx) error { return carryLogs(ctx, tx, d) }
	note := func(ctx context.Context, tx *sql.Tx) error { return noteOlder(ctx, tx, d) }
	return append(steps, goose.NewGoMigration(carryVersion, &goose.GoFunc{RunTx: carry}, nil),
		goose.NewGoMigration(olderVersion, &goose.GoFunc{RunTx: note}, nil)), nil
}
