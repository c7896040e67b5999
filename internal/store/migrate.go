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
func migrate(ctx context.Context, db *sql.DB, d *dialect) error {
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
	applied, err := provider.Up(ctx)
	if err != nil || len(applied) == 0 || d.statistics == "" {
		return err
	}
	_, err = db.ExecContext(ctx, d.statistics)
	return err
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
	return append(steps, goose.NewGoMigration(carryVersion, &goose.GoFunc{RunTx: carry}, nil)), nil
}
