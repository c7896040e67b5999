package store_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/ncruces/go-sqlite3/driver"

	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/testkit"
)

// A database that is opened with a mark bears it from then on, whatever comes
// into it. One that had organizations before is refused, and is not even
// brought up to date.
func TestMarked(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			open := func() (with func(mark string) (*store.Store, error), db *sql.DB) {
				dir, url := t.TempDir(), ""
				var err error
				if engine == "postgres" {
					url = testkit.Postgres(t)
					db, err = sql.Open("pgx", url)
				} else {
					db, err = driver.Open("file:" + filepath.Join(dir, "orgd.db"))
				}
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { db.Close() })
				return func(mark string) (*store.Store, error) {
					if url != "" {
						return store.OpenPostgres(context.Background(), url, store.Options{Mark: mark})
					}
					return store.OpenSQLite(context.Background(), dir, store.Options{Mark: mark})
				}, db
			}
			plant := func(s *store.Store, err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
				plantRoot(t, s, "r")
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			marked, _ := open()
			plant(marked("demo"))
			for _, mark := range []string{"demo", "", "demo"} {
				s, err := marked(mark)
				if err != nil {
					t.Fatalf("opened with the mark %q: %v", mark, err)
				}
				if err := s.Read(t.Context(), func(tx org.Tx) error { _, err := tx.Mark("demo"); return err }); err != nil {
					t.Error(err)
				}
				s.Close()
			}

			used, db := open()
			plant(used(""))
			refused := func() {
				t.Helper()
				if s, err := used("demo"); !errors.Is(err, store.ErrUnmarked) {
					if err == nil {
						s.Close()
					}
					t.Errorf("a database with organizations: %v", err)
				}
			}
			refused()
			// One of an older orgd, which knows no marks.
			for _, text := range []string{"DROP TABLE marks", "DELETE FROM goose_db_version WHERE version_id >= 9", "DROP INDEX usage_totals_child",
				"CREATE INDEX usage_totals_parent ON usage_totals (root_id, month, parent_id, meter)"} {
				if _, err := db.Exec(text); err != nil {
					t.Fatal(err)
				}
			}
			refused()
			var version int
			if err := db.QueryRow("SELECT max(version_id) FROM goose_db_version").Scan(&version); err != nil || version != 8 {
				t.Errorf("the schema is now %d (%v)", version, err)
			}
			s, err := used("")
			if err != nil {
				t.Fatal(err)
			}
			s.Close()
		})
	}
}
