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
)

//go:embed migrations/*.sql
var migrations embed.FS

//go:embed statistics.sql
var sqliteStatistics string

// migrate brings the schema up to date. Each migration is one transaction;
// on PostgreSQL an advisory lock keeps two processes from migrating at once.
// What takes long is told to the Log and to Busy of the Options.
func migrate(ctx context.Context, db *sql.DB, d *dialect, o Options) error {
	mark, watched := o.Mark, newProgress(db, d, o)
	steps, err := migrationSteps(d, watched)
	if err != nil {
		return err
	}
	options := []goose.ProviderOption{
		goose.WithGoMigrations(steps...),
		goose.WithDisableGlobalRegistry(true),
	}
	if d.kind == Postgres {
		options = append(options, goose.WithSessionLocker(sessionLocker{watched}))
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
		err = watched.watch(ctx, "counting rows for the database's statistics", 0, func() error {
			_, err := db.ExecContext(ctx, d.statistics)
			return err
		})
	}
	if err == nil {
		err = raiseCompatible(ctx, db, d)
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

// migrationNames returns the names of the embedded migrations by their versions:
// "00001_initial" is of version 1.
func migrationNames() (map[int64]string, error) {
	files, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	names := map[int64]string{carryVersion: "00008_logs", olderVersion: "00016_older"}
	for _, file := range files {
		name := strings.TrimSuffix(strings.TrimPrefix(file, "migrations/"), ".sql")
		prefix, _, _ := strings.Cut(name, "_")
		version, err := strconv.ParseInt(prefix, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("the migration %s has no version: %w", file, err)
		}
		names[version] = name
	}
	return names, nil
}

// migrationSteps returns the embedded migrations in the engine's own SQL. Their
// statements end with a semicolon at the end of a line.
func migrationSteps(d *dialect, p *progress) ([]*goose.Migration, error) {
	names, err := migrationNames()
	if err != nil {
		return nil, err
	}
	var steps []*goose.Migration
	for version, name := range names {
		var up func(ctx context.Context, tx *sql.Tx) error
		switch version {
		case carryVersion:
			up = func(ctx context.Context, tx *sql.Tx) error { return carryAuditLogs(ctx, tx, d) }
		case olderVersion:
			up = func(ctx context.Context, tx *sql.Tx) error { return noteOlder(ctx, tx, d) }
		default:
			text, err := fs.ReadFile(migrations, "migrations/"+name+".sql")
			if err != nil {
				return nil, err
			}
			up = func(ctx context.Context, tx *sql.Tx) error { return execAll(ctx, tx, name, d.schema(string(text))) }
		}
		steps = append(steps, goose.NewGoMigration(version, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
			pid := 0
			if d.kind == Postgres {
				if err := tx.QueryRowContext(ctx, `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
					return err
				}
			}
			err := p.watch(ctx, "the migration "+name, pid, func() error { return up(ctx, tx) })
			if err == nil && version == compatibleFrom {
				err = raiseCompatible(ctx, tx, d)
			}
			return err
		}}, nil))
	}
	return steps, nil
}

// execAll runs the statements of a migration.
func execAll(ctx context.Context, tx *sql.Tx, name, text string) error {
	for statement := range strings.SplitSeq(text, ";\n") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("migrations/%s.sql: %w", name, err)
		}
	}
	return nil
}
