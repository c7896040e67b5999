//go:build unix

package server_test

import (
	"bytes"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// Only the owner reads the files of a data directory, whatever the umask of the
// process and whatever modes a copy was restored with. A directory that others
// may enter is mentioned with what to do, and is not changed.
func TestDataDirectoryIsPrivate(t *testing.T) {
	for _, tt := range []struct {
		name  string
		umask int
	}{{"without a umask", 0}, {"with the usual umask", 0o022}, {"with a strict umask", 0o077}} {
		t.Run(tt.name, func(t *testing.T) {
			before := syscall.Umask(tt.umask)
			defer syscall.Umask(before)
			var log bytes.Buffer
			// "new" is made by the server.
			s := testkit.Open(t, "sqlite", func(c *server.Config) {
				c.DataDir = filepath.Join(c.DataDir, "new [1]")
				c.Log = slog.New(slog.NewTextHandler(&log, nil))
			})
			s.Must(http.StatusCreated, "POST", "/orgs", s.OperatorKey, `{"id":"acme","name":"acme"}`)
			files := private(t, s.Config.DataDir)
			if strings.Contains(log.String(), "may enter the data directory") {
				t.Errorf("a directory that the server has made is mentioned:\n%s", log.String())
			}
			for _, name := range []string{"orgd.db", "orgd.db-wal", "orgd.db-shm", "orgd.lock", "operator.key", "audit.key", "audit.anchor", "spool/spool.id"} {
				if !files[name] {
					t.Errorf("there is no %s", name)
				}
			}
			s.Stop()

			// A copy that others can read.
			for name := range files {
				if err := os.Chmod(filepath.Join(s.Config.DataDir, name), 0o644); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
			}
			if err := os.Chmod(s.Config.DataDir, 0o755); err != nil {
				t.Fatal(err)
			}
			log.Reset()
			again, err := server.Open(t.Context(), s.Config)
			if err != nil {
				t.Fatal(err)
			}
			private(t, s.Config.DataDir)
			if err := again.Close(); err != nil {
				t.Error(err)
			}
			if info, err := os.Stat(s.Config.DataDir); err != nil || info.Mode().Perm() != 0o755 {
				t.Errorf("the directory has the mode %v, %v", info.Mode(), err)
			}
			if !strings.Contains(log.String(), "chmod 700 "+s.Config.DataDir) {
				t.Errorf("the log does not say how to close the directory:\n%s", log.String())
			}
		})
	}
}

// private checks that only the owner reads what is in a directory, and returns
// the files.
func private(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		} else if name, err := filepath.Rel(dir, path); err == nil {
			files[filepath.ToSlash(name)] = true
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has the mode %v, want %v", path, info.Mode().Perm(), want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
