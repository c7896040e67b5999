package testkit

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"
)

// Patroni is a PostgreSQL cluster whose leader Patroni chooses: three servers in
// strict synchronous mode and an etcd, each on a machine of its own. Two servers
// would not do: while one is away, a commit has nobody to wait for.
//
// Patroni keeps its leader key through version 2 of etcd's protocol, which replaces
// the key only if it is still its own. Through version 3, Patroni before 3.0.3
// replaces it without looking when its lease has ended: a leader that stood still
// takes the key back from the one elected meanwhile, and that one's commits are lost.
type Patroni struct {
	Nodes []*PatroniNode
}

// PatroniNode is a machine with Patroni and the server that it runs. All its
// processes are in a process namespace: they end together, and with the test.
type PatroniNode struct {
	*Machine
	dir     string
	cmd     *exec.Cmd
	done    chan struct{}
	stopped []int
}

// NewPatroni starts a cluster and waits until it takes changes. Without Patroni or
// etcd the test is skipped, and with CI=true it fails.
func NewPatroni(t testing.TB) *Patroni {
	t.Helper()
	programs := Programs(t, "patroni", "etcd", "unshare", "setpriv")
	bin, err := postgresBinaries()
	if err != nil && required() {
		t.Fatal(err)
	} else if err != nil {
		t.Skip(err)
	}
	machines := NewNetwork(t, 4).Machines
	etcd := machines[3]
	startDaemonAt(t, etcd.site(), daemonDir(t, "etcd"), etcd.Address+":2379", programs[1],
		"--name", "etcd", "--data-dir", "data", "--unsafe-no-fsync", "--enable-v2",
		"--listen-client-urls", "http://"+etcd.Address+":2379", "--advertise-client-urls", "http://"+etcd.Address+":2379",
		"--listen-peer-urls", "http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380", "--initial-cluster", "etcd=http://127.0.0.1:2380")
	p := &Patroni{}
	for i, m := range machines[:3] {
		n := &PatroniNode{Machine: m, dir: daemonDir(t, "patroni")}
		// 20 seconds are the least time that Patroni lets a leader be silent.
		configuration := fmt.Sprintf(`
scope: orgd
name: node%[1]d
restapi: {listen: "%[2]s:8008", connect_address: "%[2]s:8008"}
etcd: {host: "%[3]s:2379"}
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 2
    retry_timeout: 3
    maximum_lag_on_failover: 1048576
    synchronous_mode: true
    synchronous_mode_strict: true
    primary_start_timeout: 0
    postgresql: {use_pg_rewind: true, parameters: {max_connections: 100, shared_buffers: 32MB, synchronous_commit: "on"}}
  initdb: [{encoding: UTF8}, {locale: C}]
postgresql:
  listen: "%[2]s:5432"
  connect_address: "%[2]s:5432"
  data_dir: %[4]s/data
  bin_dir: %[5]s
  pgpass: %[4]s/pgpass
  basebackup: [{checkpoint: fast}]
  remove_data_directory_on_rewind_failure: true
  remove_data_directory_on_diverged_timelines: true
  authentication: {superuser: {username: postgres, password: unused}, replication: {username: postgres, password: unused}, rewind: {username: postgres, password: unused}}
  parameters: {unix_socket_directories: "%[4]s", fsync: "off"}
  pg_hba: ["local all all trust", "host all all samenet trust", "host replication all samenet trust", "host all all 127.0.0.1/32 trust"]
`, i, m.Address, etcd.Address, n.dir, bin)
		if err := os.WriteFile(filepath.Join(n.dir, "patroni.yml"), []byte(configuration), 0o644); err != nil {
			t.Fatal(err)
		}
		n.Start(t)
		t.Cleanup(n.Kill)
		p.Nodes = append(p.Nodes, n)
	}
	p.WaitWhole(t)
	return p
}

// Start starts Patroni on the machine, again after Kill.
func (n *PatroniNode) Start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(n.dir, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	credential, err := serverUser()
	if err != nil || credential == nil {
		t.Fatalf("the user of PostgreSQL: %v", err)
	}
	// Each ends with its parent. The last one changes its user, and is told again.
	n.cmd = exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount-proc",
		"setpriv", fmt.Sprintf("--reuid=%d", credential.Uid), fmt.Sprintf("--regid=%d", credential.Gid), "--clear-groups", "--pdeathsig=KILL",
		"patroni", filepath.Join(n.dir, "patroni.yml"))
	n.cmd.Dir, n.cmd.Stdout, n.cmd.Stderr = n.dir, log, log
	// Threads that start commands on machines go on: see onThread.
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := n.launch(n.cmd); err != nil {
		t.Fatal(err)
	}
	cmd, done := n.cmd, make(chan struct{})
	n.done = done
	go func() {
		cmd.Wait()
		close(done)
	}()
}

// Kill ends all processes of the machine at once.
func (n *PatroniNode) Kill() {
	n.Resume()
	// The first process of the namespace ends when all others have.
	signalAll(children(n.cmd.Process.Pid), unix.SIGKILL)
	<-n.done
}

// Stop stops all processes of the machine where they are.
func (n *PatroniNode) Stop(t testing.TB) {
	t.Helper()
	var err error
	if n.stopped, err = stopTree(n.cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
}

// Resume lets them go on.
func (n *PatroniNode) Resume() {
	signalAll(n.stopped, unix.SIGCONT)
	n.stopped = nil
}

// URL is that of the node's database postgres.
func (n *PatroniNode) URL() string {
	return "postgres://postgres@" + n.Address + ":5432/postgres?sslmode=disable"
}

// takesChanges reports whether a commit on the node is acknowledged, and how many
// standbys follow it.
func (n *PatroniNode) takesChanges() (followers int, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, n.URL())
	if err != nil {
		return 0, false
	}
	defer conn.Close(ctx)
	var standby bool
	var waits string
	err = conn.QueryRow(ctx, `SELECT pg_is_in_recovery(), current_setting('synchronous_standby_names'),
		(SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name LIKE 'node%')`).Scan(&standby, &waits, &followers)
	if err != nil || standby || waits == "" {
		return 0, false
	}
	_, err = conn.Exec(ctx, `SELECT pg_logical_emit_message(true, 'test', 'of a commit')`)
	return followers, err == nil
}

// Leader returns the node that takes changes, other than one, when there is one.
func (p *Patroni) Leader(t testing.TB, other *PatroniNode, most time.Duration) *PatroniNode {
	t.Helper()
	found := make(chan *PatroniNode, len(p.Nodes))
	ctx, cancel := context.WithTimeout(t.Context(), most)
	defer cancel()
	for _, n := range p.Nodes {
		if n == other {
			continue
		}
		go func() {
			for ctx.Err() == nil {
				if _, ok := n.takesChanges(); ok {
					found <- n
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		}()
	}
	select {
	case n := <-found:
		return n
	case <-ctx.Done():
		t.Fatalf("no server takes changes in %v: %s", most, p.logs())
		return nil
	}
}

// WaitWhole returns when the leader has all the others as standbys.
func (p *Patroni) WaitWhole(t testing.TB) {
	t.Helper()
	var whole time.Time // since when
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		now := false
		for _, n := range p.Nodes {
			followers, ok := n.takesChanges()
			now = now || ok && followers == len(p.Nodes)-1
		}
		switch {
		case !now:
			whole = time.Time{}
		case whole.IsZero():
			whole = time.Now()
		case time.Since(whole) > 5*time.Second: // one that has to be made anew had time to fail
			return
		}
		if time.Since(begin) > 2*time.Minute {
			t.Fatalf("the cluster is not whole: %s", p.logs())
		}
	}
}

// logs returns the end of what each node has written.
func (p *Patroni) logs() string {
	var b strings.Builder
	for i, n := range p.Nodes {
		log, _ := os.ReadFile(filepath.Join(n.dir, "log"))
		fmt.Fprintf(&b, "\nnode %d:\n%s", i, log[max(0, len(log)-2000):])
	}
	return b.String()
}
