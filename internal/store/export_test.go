package store

import (
	"context"
	"database/sql"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/driver"
	"github.com/pressly/goose/v3"
)

// OldDatabase makes a database with the schema that the given migrations lead
// to, at a path of a SQLite file or a postgres:// URL, and runs fill on it.
func OldDatabase(ctx context.Context, kind, name string, versions map[int64]bool, fill func(exec func(text string, args ...any) error) error) error {
	d := sqliteDialect
	open := func() (*sql.DB, error) { return driver.Open("file:" + name) }
	if kind == Postgres {
		d = postgresDialect
		open = func() (*sql.DB, error) { return sql.Open("pgx", name) }
	}
	db, err := open()
	if err != nil {
		return err
	}
	defer db.Close()
	all, err := migrationSteps(d)
	if err != nil {
		return err
	}
	var steps []*goose.Migration
	for _, s := range all {
		if versions[s.Version] {
			steps = append(steps, s)
		}
	}
	provider, err := goose.NewProvider(d.goose, db, nil, goose.WithGoMigrations(steps...), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	if _, err := provider.Up(ctx); err != nil {
		return err
	}
	return fill(func(text string, args ...any) error {
		_, err := db.ExecContext(ctx, d.query(text), args...)
		return err
	})
}

// RegisterVFS is registerVFS.
func RegisterVFS(name string) string { return registerVFS(name) }

// Commit ends the transaction of a connection as the writer does.
func Commit(c *sqlite3.Conn) error {
	conn := &sqliteConn{c: c, stmts: map[string]*sqlite3.Stmt{}}
	err := conn.commit()
	for _, s := range conn.stmts {
		s.Close()
	}
	return err
}
