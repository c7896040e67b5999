package testkit

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// HAProxy starts HAProxy with the sections that a configuration has, and waits
// until it listens on an address. It ends with the test. Without HAProxy the
// test is skipped, and with CI=true it fails.
func HAProxy(t testing.TB, address, configuration string) *Daemon {
	t.Helper()
	program := Programs(t, "haproxy")[0]
	dir := daemonDir(t, "haproxy")
	path := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(path, []byte(configuration), 0o644); err != nil {
		t.Fatal(err)
	}
	return startDaemon(t, dir, address, program, "-db", "-f", path)
}

// Balancer starts HAProxy as a TCP balancer over the addresses of servers, of
// which it leaves out those that do not accept, and returns its own address.
// options are lines of the section, such as "option httpchk GET /readyz", which
// makes it ask instead.
func Balancer(t testing.TB, servers []string, options ...string) string {
	t.Helper()
	address := FreeAddress(t)
	var b strings.Builder
	fmt.Fprintf(&b, "defaults\n\tmode tcp\n\ttimeout connect 1s\n\ttimeout client 1m\n\ttimeout server 1m\n\tretries 3\n\toption redispatch\n\nlisten balancer\n\tbind %s\n", address)
	for _, line := range options {
		fmt.Fprintf(&b, "\t%s\n", line)
	}
	for n, at := range servers {
		fmt.Fprintf(&b, "\tserver s%d %s check inter 200ms fall 1 rise 1\n", n, at)
	}
	HAProxy(t, address, b.String())
	return address
}
