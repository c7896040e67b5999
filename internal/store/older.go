package store

import (
	"context"
	"database/sql"
)

// olderVersion is the version of the migration that noteOlder is.
const olderVersion = 16

// noteOlder has PostgreSQL note the changes of processes of a version that does
// not do so itself, while both serve the same database. All that such a version
// changes in a tree, it writes to an audit log.
func noteOlder(ctx context.Context, tx *sql.Tx, d *dialect) error {
	if d.kind != Postgres {
		return nil
	}
	for _, statement := range []string{
		`CREATE FUNCTION note_older_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			INSERT INTO changes (tx, process, root_id, org_id) VALUES (pg_current_xact_id()::text::bigint, '', NEW.root_id, '');
			RETURN NULL;
		END $$`,
		`CREATE TRIGGER note_older_change AFTER INSERT OR UPDATE ON audit_heads FOR EACH ROW
			WHEN (current_setting('application_name') = '` + olderApplication + `') EXECUTE FUNCTION note_older_change()`,
	} {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}
