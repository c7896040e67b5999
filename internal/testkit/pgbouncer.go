package testkit

import (
	"cmp"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// PgBouncer starts PgBouncer in front of the server of a database and returns
// the URL of the database behind it. mode is transaction, session or statement;
// settings are more lines of pgbouncer.ini. It ends
// with the test. Without PgBouncer the test is skipped, and with CI=true it
// fails.
func PgBouncer(t testing.TB, databaseURL, mode string, settings ...string) string {
	t.Helper()
	program := Programs(t, "pgbouncer")[0]
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	dir, address := daemonDir(t, "pgbouncer"), FreeAddress(t)
	host, port := splitAddress(t, address)
	conf := fmt.Sprintf("[databases]\n* = host=%s port=%s\n[pgbouncer]\nlisten_addr = %s\nlisten_port = %d\nunix_socket_dir =\n"+
		"auth_type = trust\nauth_file = %s\npool_mode = %s\nmax_client_conn = 1000\ndefault_pool_size = 20\n%s\n",
		u.Hostname(), cmp.Or(u.Port(), "5432"), host, port, filepath.Join(dir, "users"), mode, strings.Join(settings, "\n"))
	password, _ := u.User.Password()
	for name, text := range map[string]string{"pgbouncer.ini": conf, "users": fmt.Sprintf("%q %q\n", u.User.Username(), password)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	startDaemon(t, dir, address, program, filepath.Join(dir, "pgbouncer.ini"))
	u.Host = address
	return u.String()
}
