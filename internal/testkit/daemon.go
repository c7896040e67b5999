package testkit

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// Daemon is a program that runs beside a test, with a directory of its own.
type Daemon struct {
	Dir  string
	cmd  *exec.Cmd
	done chan struct{}
}

// guard runs the program given by its arguments until its standard input ends,
// which it does when the test process ends, in whatever way.
const guard = `exec 3<&0
"$@" 3<&- </dev/null & program=$!
(cat <&3 >/dev/null; kill -KILL $program) &
wait $program`

// daemonDir makes a directory for a daemon, which its user may write into. It
// is not the test's own, whose parents only the user of the test may enter.
func daemonDir(t testing.TB, name string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "orgd-"+name+"-")
	if err == nil {
		err = chownToServer(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// startDaemon runs a program as the user that runs PostgreSQL, in a directory
// that daemonDir made, until the test ends, and waits until it listens on an
// address; an empty one is not waited for. Its output is in the file log.
func startDaemon(t testing.TB, dir, address, program string, args ...string) *Daemon {
	t.Helper()
	return startDaemonAt(t, loopback, dir, address, program, args...)
}

// startDaemonAt is startDaemon on a machine.
func startDaemonAt(t testing.TB, where site, dir, address, program string, args ...string) *Daemon {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	d := &Daemon{Dir: dir, cmd: exec.Command("/bin/sh", append([]string{"-c", guard, "sh", program}, args...)...), done: make(chan struct{})}
	asServer(d.cmd)
	d.cmd.Dir, d.cmd.Stdout, d.cmd.Stderr = dir, log, log
	input, err := d.cmd.StdinPipe()
	if err == nil {
		err = where.launch(d.cmd)
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		d.cmd.Wait()
		close(d.done)
	}()
	t.Cleanup(func() {
		d.Signal(syscall.SIGKILL)
		<-d.done
		input.Close()
	})
	for deadline := time.Now().Add(30 * time.Second); address != ""; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			break
		}
		select {
		case <-d.done:
			t.Fatalf("%s ended: %s", program, d.Log())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen: %s", program, d.Log())
		}
	}
	return d
}

// Log returns what the program has written.
func (d *Daemon) Log() string {
	b, _ := os.ReadFile(filepath.Join(d.Dir, "log"))
	return string(b)
}

// FreeAddress returns an address on loopback on which nothing listens.
func FreeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// splitAddress returns the host and the port of an address.
func splitAddress(t testing.TB, address string) (host string, port int) {
	t.Helper()
	host, text, err := net.SplitHostPort(address)
	if err == nil {
		port, err = strconv.Atoi(text)
	}
	if err != nil {
		t.Fatal(err)
	}
	return host, port
}
