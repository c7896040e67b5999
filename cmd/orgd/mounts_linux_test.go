package main

import (
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/orgd/orgd/client"
	"github.com/orgd/orgd/internal/testkit"
)

// Of two processes, each of which has the data directory on a mount of its own and
// does not see the lock of the other, one works at a time: the second is refused,
// two that start at once are not both there, and one that was stopped for so long
// that another took the directory changes nothing more. What was acknowledged by
// either is in the audit trail.
//
// Each has mounts of its own: what one mount has looked up of the spool it does not
// look up again when the other has replaced it.
func TestTwoMounts(t *testing.T) {
	t.Run("a second one", func(t *testing.T) {
		m := startOnMounts(t)
		stop := m.load(m.first)
		for _, dir := range m.dirs {
			out, err := exec.Command(orgdProgram(t), "serve", "--data-dir", dir, "--listen", "127.0.0.1:0").CombinedOutput()
			if err == nil || !strings.Contains(string(out), "another process is using it") || !strings.Contains(string(out), dir) {
				t.Errorf("a second process on %s: %v\n%s", dir, err, out)
			}
		}
		stop()
		m.check(m.first)
	})
	for round := range 2 {
		t.Run(fmt.Sprint("two at once ", round), func(t *testing.T) {
			m := startOnMounts(t)
			stop := m.load(m.first)
			time.Sleep(200 * time.Millisecond)
			m.first.cmd.Process.Kill()
			<-m.first.ended
			stop()
			var started [2]*process
			var both sync.WaitGroup
			for i, dir := range m.dirs {
				both.Go(func() { started[i] = startProcess(t, dir) })
			}
			both.Wait()
			var there []*process
			for _, p := range started {
				if p.url != "" {
					there = append(there, p)
				}
			}
			if len(there) > 1 {
				t.Fatal("two that started at once are both there")
			} else if len(there) == 0 {
				t.Logf("of two that started at once none is there")
				there = append(there, startProcess(t, m.dirs[0]))
			}
			stop = m.load(there[0])
			time.Sleep(200 * time.Millisecond)
			stop()
			m.check(there[0])
		})
	}
	t.Run("one that was stopped", func(t *testing.T) {
		m := startOnMounts(t)
		stop := m.load(m.first)
		time.Sleep(200 * time.Millisecond)
		stop()
		if err := m.first.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		second := startProcess(t, m.dirs[1])
		if second.url == "" {
			t.Fatalf("%s", second.log)
		}
		stop = m.load(second)
		if err := m.first.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if status := m.change(m.first); status != http.StatusServiceUnavailable {
				t.Errorf("a change by who has lost the directory: %d", status)
			}
		}
		stop()
		m.check(second)
	})
}

// onMounts is a data directory on two mounts, with what was acknowledged.
type onMounts struct {
	t     *testing.T
	dirs  [2]string
	first *process // on the first of them

	mu           sync.Mutex
	changes      int
	acknowledged map[string]bool
}

func startOnMounts(t *testing.T) *onMounts {
	t.Helper()
	mounts := testkit.NewTwoMounts(t)
	m := &onMounts{t: t, dirs: [2]string{filepath.Join(mounts[0], "data"), filepath.Join(mounts[1], "data")}, acknowledged: map[string]bool{}}
	m.first = startProcess(t, m.dirs[0])
	if status, b, err := m.first.do("POST", "/orgs", `{"id":"r","name":"Root"}`); status != 201 {
		t.Fatalf("%d %s %v", status, b, err)
	}
	return m
}

// change has a process make a change that no other is like.
func (m *onMounts) change(p *process) (status int) {
	m.mu.Lock()
	m.changes++
	name := fmt.Sprint("change ", m.changes)
	m.mu.Unlock()
	status, _, err := p.do("PATCH", "/orgs/r", fmt.Sprintf(`{"description":%q}`, name))
	if err == nil && status == 200 {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.acknowledged[name] = true
	}
	return status
}

// load has clients of a process make changes until the function that it returns is
// called.
func (m *onMounts) load(p *process) (stop func()) {
	var over atomic.Bool
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for !over.Load() {
				m.change(p)
			}
		})
	}
	return func() { over.Store(true); clients.Wait() }
}

// check compares the audit trail with what was acknowledged.
func (m *onMounts) check(p *process) {
	m.t.Helper()
	found := map[string]int{}
	for e, err := range client.New(p.url, p.key).ChildrenAudit(m.t.Context(), "r", client.AuditQuery{}) {
		if err != nil {
			m.t.Fatal(err)
		}
		for _, c := range e.Changes {
			if c.Pointer == "/description" {
				found[strings.Trim(string(c.New), `"`)]++
			}
		}
	}
	lost := 0
	for name := range m.acknowledged {
		if found[name] != 1 {
			lost++
		}
	}
	m.t.Logf("%d changes were acknowledged, %d are lost", len(m.acknowledged), lost)
	if lost > 0 || len(m.acknowledged) == 0 {
		m.t.Errorf("%d of %d acknowledged changes are lost", lost, len(m.acknowledged))
	}
}
