package store_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/ncruces/go-sqlite3/driver"

	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/testkit"
)

// A database that is opened with a mark bears it from then on, whatever comes
// into it. One that had organizations before is refused, and is not even
// brought up to date.
func TestMarked(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			open := func() (with func(mark string) (*store.Store, error), db *sql.DB, name string) {
				dir, url := t.TempDir(), ""
				name = filepath.Join(dir, "orgd.db")
				var err error
				if engine == "postgres" {
					url = testkit.Postgres(t)
					name = url
					db, err = sql.Open("pgx", url)
				} else {
					db, err = driver.Open("file:" + name)
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
				}, db, name
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
			marked, _, _ := open()
			plant(marked("demo"))
			for _, mark := range []string{"demo", "", "demo"} {
				s, err := marked(mark)
				if err != nil {
					t.Fatalf("opened with the mark %q: %v", mark, err)
				}
				if err := testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) error { _, err := tx.Mark("demo"); return err }); err != nil {
					t.Error(err)
				}
				s.Close()
			}

			used, _, _ := open()
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
			used, db, name := open()
			versions := map[int64]bool{}
			for v := range int64(9) {
				versions[v] = true
			}
			if err := store.OldDatabase(t.Context(), engine, name, versions, func(exec func(string, ...any) error) error {
				return exec(`INSERT INTO audit_heads (root_id, epoch, log_id, size, root_hash, hashes, closed_at) VALUES ('r', 0, 'log', 0, $1, $1, 1)`, []byte{})
			}); err != nil {
				t.Fatal(err)
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
