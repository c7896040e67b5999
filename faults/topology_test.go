//go:build linux

package faults

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// Three processes serve one database behind HAProxy, which asks /readyz, and one
// after the other is killed under the load and started again. A client that got
// no answer does not know; what was answered holds.
func TestKillBehindBalancer(t *testing.T) {
	n := rounds(t, 3)
	database := testkit.Postgres(t)
	first := filepath.Join(t.TempDir(), "data")
	p := start(t, first, "--database", database)
	w := makeWorld(t, p, 4, 8)
	p.kill()
	secrets := os.Environ()
	for name, file := range map[string]string{"ORGD_OPERATOR_KEY": "operator.key", "ORGD_AUDIT_KEY": "audit.key"} {
		b, err := os.ReadFile(filepath.Join(first, file))
		if err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, name+"="+strings.TrimSpace(string(b)))
	}
	var dirs, addresses []string
	var processes []*process
	begin := func(i int) *process {
		cmd := exec.Command(program, "serve", "--data-dir", dirs[i], "--listen", addresses[i], "--database", database)
		cmd.Env = secrets
		q, err := tryCommand(t, "", cmd)
		if err != nil {
			t.Fatal(err)
		}
		return q
	}
	for i := range 3 {
		dirs, addresses = append(dirs, filepath.Join(t.TempDir(), "data")), append(addresses, testkit.FreeAddress(t))
		processes = append(processes, begin(i))
	}
	url := "http://" + testkit.Balancer(t, addresses, "option httpchk GET /readyz")
	waitReady(t, url)
	j := newJournal()
	stop := w.load(j, func() string { return url })
	for i := range n {
		time.Sleep(700 * time.Millisecond)
		processes[i%3].kill()
		time.Sleep(700 * time.Millisecond)
		processes[i%3] = begin(i % 3)
	}
	time.Sleep(700 * time.Millisecond)
	stop()
	time.Sleep(2 * time.Second) // what each process has recorded is stored
	for status, count := range j.strange {
		t.Errorf("%d answers are %s", count, status)
	}
	report(t, row{"kill -9 of one of three processes behind HAProxy", n, w.check(j, url, everything()), w.check(j.credulous(), url, everything())})
}

// orgd works through PgBouncer in transaction mode, with a direct URL for what
// needs a session, and is killed under the load.
func TestKillBeforePooler(t *testing.T) {
	n := rounds(t, 3)
	database := testkit.Postgres(t)
	dir := filepath.Join(t.TempDir(), "data")
	args := []string{"--database", testkit.PgBouncer(t, database, "transaction"), "--database-direct", database}
	j := newJournal()
	p := start(t, dir, args...)
	w := makeWorld(t, p, 4, 8)
	for range n {
		stop := w.load(j, p.at)
		time.Sleep(600 * time.Millisecond)
		p.kill()
		stop()
		p = start(t, dir, args...)
	}
	report(t, row{"kill -9 of orgd before PgBouncer in transaction mode", n, w.check(j, p.url, everything()), w.check(j.credulous(), p.url, everything())})
}
