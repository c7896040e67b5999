package testkit

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Network is a switch, and machines that are connected to it: each is a network
// namespace of its own, with an address that this process reaches. It goes with
// the test, and with the process, however that ends: nothing but the process holds
// the namespaces.
type Network struct {
	Machines []*Machine
	hub      namespace
}

// Machine is one of the machines of a network.
type Machine struct {
	Address string // without a port
	space   namespace
	hub     namespace
	port    string // of the switch
	t       testing.TB
}

// namespace is a network namespace, open as long as it is used.
type namespace struct{ *os.File }

// NewNetwork makes a network with some machines, numbered from 0. That takes root
// and ip from iproute2: without them the test is skipped, and with CI=true it
// fails.
func NewNetwork(t testing.TB, machines int) *Network {
	t.Helper()
	n, err := newNetwork(t, machines)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("making network namespaces: %v", err)
		}
		t.Skipf("making network namespaces: %v", err)
	}
	return n
}

// networks is held while a network takes its addresses.
var networks sync.Mutex

func newNetwork(t testing.TB, machines int) (*Network, error) {
	networks.Lock()
	defer networks.Unlock()
	hub, err := newNamespace(t)
	if err != nil {
		return nil, err
	}
	subnet, err := freeSubnet()
	if err != nil {
		return nil, err
	}
	n := &Network{hub: hub}
	address := func(host int) string { return fmt.Sprintf("198.%d.%d.%d", 18+subnet>>8, subnet&0xff, host) }
	hardware := func(host int) string { return fmt.Sprintf("02:00:00:00:00:%02x", host) }
	here := "orgd" + strconv.Itoa(os.Getpid()) + "-" + strconv.Itoa(subnet&0xff)
	if err := errors.Join(
		hub.ip("link add switch type bridge stp_state 0"),
		hub.ip("link set switch up"),
		ip("link add %s address %s type veth peer name here netns %s", here, hardware(1), hub.path()),
	); err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if err := ip("link del %s", here); err != nil {
			t.Error(err)
		}
	})
	err = errors.Join(
		hub.ip("link set here master switch up"),
		ip("addr add %s/24 dev %s", address(1), here),
		ip("link set %s up", here),
	)
	for i := range machines {
		space, failed := newNamespace(t)
		if failed != nil {
			return nil, failed
		}
		m := &Machine{Address: address(10 + i), space: space, hub: hub, port: "machine" + strconv.Itoa(i), t: t}
		err = errors.Join(err,
			hub.ip("link add %s type veth peer name eth0 address %s netns %s", m.port, hardware(10+i), space.path()),
			hub.ip("link set %s master switch up", m.port),
			space.ip("link set lo up"),
			space.ip("addr add %s/24 dev eth0", m.Address),
			space.ip("link set eth0 up"),
		)
		n.Machines = append(n.Machines, m)
	}
	// Nobody asks where a machine is: that there is no answer would be reported, and
	// is not behind a router.
	for i, m := range n.Machines {
		at := fmt.Sprintf("%s lladdr %s", m.Address, hardware(10+i))
		err = errors.Join(err, ip("neigh replace %s dev %s nud permanent", at, here),
			m.space.ip("neigh replace %s lladdr %s dev eth0 nud permanent", address(1), hardware(1)))
		for _, other := range n.Machines {
			if other != m {
				err = errors.Join(err, other.space.ip("neigh replace %s dev eth0 nud permanent", at))
			}
		}
	}
	return n, err
}

// freeSubnet returns the number of a network of 256 addresses within 198.18.0.0/15
// in which this machine has none. Networks are measured in that block; nobody's
// machines are in it.
func freeSubnet() (int, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return 0, err
	}
	used := map[int]bool{}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if b := n.IP.To4(); b != nil && b[0] == 198 && b[1]&^1 == 18 {
				used[int(b[1]-18)<<8|int(b[2])] = true
			}
		}
	}
	for i := range 512 {
		if s := (os.Getpid() + i) % 512; !used[s] {
			return s, nil
		}
	}
	return 0, errors.New("198.18.0.0/15 is in use")
}

// Cut takes the machine's port of the switch down: what is sent to it or by it
// vanishes, and nobody is told.
func (m *Machine) Cut() { m.set("down") }

// Mend takes it up again.
func (m *Machine) Mend() { m.set("up") }

func (m *Machine) set(state string) {
	m.t.Helper()
	if err := m.hub.ip("link set %s %s", m.port, state); err != nil {
		m.t.Fatal(err)
	}
}

// site is where the machine's servers run.
func (m *Machine) site() site { return site{m.Address, m.launch} }

// launch starts a command on the machine.
func (m *Machine) launch(cmd *exec.Cmd) error { return m.space.do(cmd.Start) }

// Postgres starts a server of its own on the machine, as NewPostgresCluster does.
func (m *Machine) Postgres(t testing.TB) *PostgresCluster {
	t.Helper()
	return newClusterAt(t, m.site())
}

// Standby starts a server on the machine that follows c, under a name.
func (m *Machine) Standby(t testing.TB, c *PostgresCluster, name string) *PostgresCluster {
	t.Helper()
	return c.standbyAt(t, m.site(), name, c.Address())
}

// newNamespace makes a network namespace, which is there until the test ends.
func newNamespace(t testing.TB) (namespace, error) {
	var made *os.File
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		var err error
		made, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err == nil {
		t.Cleanup(func() { made.Close() })
	}
	return namespace{made}, err
}

// path is where other processes find the namespace.
func (s namespace) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.Fd()) }

// do calls a function in the namespace; processes that it starts stay there.
func (s namespace) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(s.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("setns: %w", err)
		}
		return f()
	})
}

// ip runs ip in the namespace.
func (s namespace) ip(format string, args ...any) error {
	return s.do(func() error { return ip(format, args...) })
}

func ip(format string, args ...any) error {
	words := strings.Fields(fmt.Sprintf(format, args...))
	if out, err := exec.Command("ip", words...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(words, " "), err, out)
	}
	return nil
}

// onThread calls a function that may lead its thread into another network
// namespace, and leads it back. The thread goes on: what was started from it may be
// told to end with it. One that cannot be led back ends.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		err = f()
		back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)
		if back == nil {
			runtime.UnlockOSThread()
		}
		done <- errors.Join(err, back)
	}()
	return <-done
}

// Stop stops the server and all its processes where they are (SIGSTOP): the system
// goes on taking connections for it, and what is sent to it.
func (c *PostgresCluster) Stop(t testing.TB) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.data(), "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	stopped, err := stopTree(pid)
	c.resume = func() { signalAll(stopped, unix.SIGCONT) }
	if err != nil {
		t.Fatal(err)
	}
}

// stopTree stops a process and all that descend from it, and returns them. A
// parent is stopped before its children are looked for: it makes no more.
func stopTree(pid int) ([]int, error) {
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		return nil, err
	}
	for begin := time.Now(); !stands(pid); time.Sleep(time.Millisecond) {
		if time.Since(begin) > 5*time.Second {
			return []int{pid}, fmt.Errorf("process %d does not stop", pid)
		}
	}
	all := []int{pid}
	for _, child := range children(pid) {
		below, err := stopTree(child)
		if all = append(all, below...); err != nil && !errors.Is(err, unix.ESRCH) {
			return all, err
		}
	}
	return all, nil
}

func signalAll(pids []int, s unix.Signal) {
	for _, pid := range pids {
		_ = unix.Kill(pid, s) // gone otherwise
	}
}

// stands reports whether a process is stopped, or over.
func stands(pid int) bool {
	fields := stat(pid)
	return len(fields) == 0 || strings.Contains("TtZX", fields[0])
}

func children(pid int) (list []int) {
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, path := range all {
		child, err := strconv.Atoi(filepath.Base(path))
		if fields := stat(child); err == nil && len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			list = append(list, child)
		}
	}
	return list
}

// stat returns what the system says of a process, from its state on; nothing if it
// is gone.
func stat(pid int) []string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.Fields(rest)
}
