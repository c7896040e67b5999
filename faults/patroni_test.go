//go:build linux

package faults

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// elected is the patience with an election: Patroni waits for 20 seconds for a leader
// that is silent, then for the others, and the new one for a standby.
const elected = 90 * time.Second

// patroniCluster is a cluster in which Patroni promotes.
type patroniCluster struct {
	*testkit.Patroni
	leader, old *testkit.PatroniNode
	undo        func()
	killed      bool
}

func (p *patroniCluster) database(*testing.T) string {
	var hosts []string
	for _, n := range p.Nodes {
		hosts = append(hosts, n.Address+":5432")
	}
	return "postgres://postgres@" + strings.Join(hosts, ",") + "/postgres?sslmode=disable&target_session_attrs=read-write"
}

func (p *patroniCluster) lose(t *testing.T, fault string) time.Time {
	t.Helper()
	p.old, p.undo, p.killed = p.leader, nil, false
	switch fault {
	case "killed":
		p.killed = true
		p.old.Kill()
	case "stopped":
		p.old.Stop(t)
		p.undo = p.old.Resume
	case "cut off":
		p.old.Cut()
		p.undo = p.old.Mend
	case "frozen":
		// As a virtual machine that is paused: it comes back without having heard of
		// anything, Patroni too.
		p.old.Cut()
		p.old.Stop(t)
		p.undo = func() {
			p.old.Mend()
			p.old.Resume()
		}
	default:
		t.Fatalf("there is no fault %q", fault)
	}
	return time.Now()
}

func (p *patroniCluster) promote(t *testing.T, _ time.Duration) time.Time {
	t.Helper()
	p.leader = p.Leader(t, p.old, elected)
	return time.Now()
}

func (p *patroniCluster) now() string { return p.leader.URL() }

func (p *patroniCluster) mend() bool {
	if p.undo == nil {
		return false
	}
	p.undo()
	return true
}

func (p *patroniCluster) replace(t *testing.T) {
	t.Helper()
	if p.killed {
		p.old.Start(t)
	}
	p.WaitWhole(t)
	p.leader = p.Leader(t, nil, elected)
}

// Patroni finds that its leader is lost, and promotes another server; orgd has a URL
// with all of them. The old leader comes back, has to give up by itself, and follows.
// An election takes half a minute, so that the short form has none. The control takes
// everything for done that it has sent.
func TestFailoverByPatroni(t *testing.T) {
	if os.Getenv("ORGD_FAULTS") == "short" {
		t.Skip("elections take minutes: ORGD_FAULTS=long")
	}
	faults := []string{"cut off", "frozen", "stopped", "killed"}
	n := rounds(t, 1)
	p := &patroniCluster{Patroni: testkit.NewPatroni(t)}
	p.leader = p.Leader(t, nil, elected)
	r, w, j, orgd := testFailover(t, p, faults, n)
	r.fault = "failover by Patroni"
	r.control = w.check(j.credulous(), orgd.url, everything())
	report(t, r)
}
