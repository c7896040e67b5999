package testkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Postgres returns the URL of a new, empty PostgreSQL database, which is
// dropped when the test ends. It is made in the server that
// ORGD_TEST_POSTGRES names; without it, in a private server that the first
// call starts and that ends with the process. The test is skipped if the
// machine has no PostgreSQL; with CI=true or ORGD_TEST_REQUIRE_POSTGRES=1 it
// fails.
func Postgres(t testing.TB) string {
	t.Helper()
	server, err := postgresServer()
	if err != nil {
		if required() {
			t.Fatalf("PostgreSQL is required: %v", err)
		}
		t.Skipf("no PostgreSQL: %v", err)
	}
	name := fmt.Sprintf("orgd_test_%d_%d", os.Getpid(), databases.Add(1))
	if err := administer(server, `CREATE DATABASE `+name+` TEMPLATE template0`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := administer(server, `DROP DATABASE IF EXISTS `+name+` WITH (FORCE)`); err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

var databases atomic.Int64

func required() bool {
	return os.Getenv("CI") == "true" || os.Getenv("ORGD_TEST_REQUIRE_POSTGRES") == "1"
}

func administer(server, statement string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, statement)
	return err
}

var postgresServer = sync.OnceValues(func() (string, error) {
	if u := os.Getenv("ORGD_TEST_POSTGRES"); u != "" {
		return u, nil
	}
	return startPostgres()
})

// PostgresCluster is a private PostgreSQL server, for tests that stop it.
type PostgresCluster struct {
	URL string // of its database postgres
	bin string
	dir string
	site
	port   int
	input  io.Closer // ends the server
	done   chan struct{}
	resume func() // after it was stopped
}

// site is where a server runs.
type site struct {
	host   string // its address, without a port
	launch func(*exec.Cmd) error
}

// loopback is this machine, for itself.
var loopback = site{"127.0.0.1", (*exec.Cmd).Start}

// NewPostgresCluster starts a server of its own, or skips or fails the test
// as Postgres does. It ends with the test.
func NewPostgresCluster(t testing.TB) *PostgresCluster {
	t.Helper()
	return newClusterAt(t, loopback)
}

func newClusterAt(t testing.TB, where site) *PostgresCluster {
	t.Helper()
	c, err := newCluster(where)
	if err != nil {
		if required() {
			t.Fatalf("PostgreSQL is required: %v", err)
		}
		t.Skipf("no PostgreSQL: %v", err)
	}
	t.Cleanup(func() {
		c.Kill()
		os.RemoveAll(c.dir)
	})
	return c
}

// startPostgres starts the server that the tests of this process share. It
// ends with the process, and removes its own directory: see newCluster.
func startPostgres() (string, error) {
	c, err := newCluster(loopback)
	if err != nil {
		return "", err
	}
	return c.URL, nil
}

// watch runs the server given by its arguments until its standard input
// ends, which it does when the process that started it ends, in whatever way.
// Then it removes the server's directory, unless the server is to start again.
const watch = `dir=$1; shift
exec 3<&0
"$@" 3<&- </dev/null & server=$!
(cat <&3 >/dev/null; kill -QUIT $server) &
wait $server
[ -e "$dir/keep" ] || rm -rf "$dir"`

func newCluster(where site) (*PostgresCluster, error) {
	bin, err := postgresBinaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "orgd-postgres-")
	if err != nil {
		return nil, err
	}
	c := &PostgresCluster{bin: bin, dir: dir, site: where}
	if err := chownToServer(dir); err != nil {
		return nil, err
	}
	initdb := exec.Command(filepath.Join(bin, "initdb"), "--pgdata", c.data(), "--username", "postgres", "--auth", "trust",
		"--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions")
	asServer(initdb)
	initdb.Dir = dir
	if out, err := initdb.CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	c.port = 5432
	if where.host == loopback.host {
		l, err := net.Listen("tcp", loopback.host+":0")
		if err != nil {
			os.RemoveAll(dir)
			return nil, err
		}
		c.port = l.Addr().(*net.TCPAddr).Port
		l.Close()
	} else if err := c.admit(); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	c.URL = "postgres://postgres@" + c.host + ":" + strconv.Itoa(c.port) + "/postgres?sslmode=disable"
	if err := c.Start(); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return c, nil
}

// admit has the server trust all that is in its network, as it does loopback.
func (c *PostgresCluster) admit() error {
	f, err := os.OpenFile(filepath.Join(c.data(), "pg_hba.conf"), os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString("host all all samenet trust\nhost replication all samenet trust\n")
	return errors.Join(err, f.Close())
}

func (c *PostgresCluster) data() string { return filepath.Join(c.dir, "data") }

// Start starts the server, again after Kill, and waits until it answers.
func (c *PostgresCluster) Start() error {
	os.Remove(filepath.Join(c.dir, "keep"))
	log, err := os.Create(filepath.Join(c.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("/bin/sh", "-c", watch, "sh", c.dir, filepath.Join(c.bin, "postgres"), "-D", c.data(),
		"-c", "listen_addresses="+c.host, "-c", "port="+strconv.Itoa(c.port), "-c", "unix_socket_directories=",
		"-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=200", "-c", "shared_buffers=32MB")
	asServer(cmd)
	cmd.Dir = c.dir
	cmd.Stdout, cmd.Stderr = log, log
	// The system closes this end of the pipe when the process ends.
	if c.input, err = cmd.StdinPipe(); err != nil {
		return err
	}
	if err := c.launch(cmd); err != nil {
		return err
	}
	done := make(chan struct{})
	c.done = done
	go func() {
		cmd.Wait()
		close(done)
	}()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := administer(c.URL, `SELECT 1`)
		if err == nil {
			return nil
		}
		select {
		case <-done:
			text, _ := os.ReadFile(filepath.Join(c.dir, "log"))
			return fmt.Errorf("the server ended: %s", text)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

// Pin has the server, its workers and the connections to come run on one core, so
// that whoever measures has another one. It takes util-linux's taskset.
func (c *PostgresCluster) Pin(t testing.TB, core int) {
	t.Helper()
	taskset := Programs(t, "taskset")[0]
	text, err := os.ReadFile(filepath.Join(c.data(), "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pin := func(pid string) error { return exec.Command(taskset, "-cp", strconv.Itoa(core), pid).Run() }
	if err := pin(first); err != nil {
		t.Fatal(err)
	}
	children, err := os.ReadFile("/proc/" + first + "/task/" + first + "/children")
	if err != nil {
		t.Fatal(err)
	}
	for pid := range strings.FieldsSeq(string(children)) {
		_ = pin(pid) // it may have ended, and those that come now are pinned
	}
}

// Kill stops the server at once, as a crash does. Its data stay for Start.
func (c *PostgresCluster) Kill() {
	os.WriteFile(filepath.Join(c.dir, "keep"), nil, 0o600)
	c.Resume()
	c.input.Close()
	<-c.done
}

// Ended reports whether the server has ended.
func (c *PostgresCluster) Ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// Resume lets a server go on that was stopped.
func (c *PostgresCluster) Resume() {
	if c.resume != nil {
		c.resume()
		c.resume = nil
	}
}

// postgresBinaries returns the directory of the server's programs.
func postgresBinaries() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), "postgres")); err == nil {
				return filepath.Dir(path), nil
			}
		}
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		return "", fmt.Errorf("no initdb in PATH or in /usr/lib/postgresql")
	}
	slices.Sort(found)
	return filepath.Dir(found[len(found)-1]), nil
}
