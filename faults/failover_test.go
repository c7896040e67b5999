//go:build linux

package faults

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/orgd/orgd/client"
	"github.com/orgd/orgd/internal/testkit"
)

// The bounds that a failover is held to.
const (
	writesAgain = 5 * time.Second  // after the new primary takes writes: of who asks then
	heldAnswers = 10 * time.Second // and of those whose requests were under way
	revokedGone = 2 * time.Second  // after a key was revoked there
	unreadyIn   = 5 * time.Second  // after the old primary is gone, unless writes work again before
)

// calmAgain is how long after the new primary is there nothing happens any more that
// the loss of the old one has begun.
const calmAgain = 3500 * time.Millisecond

// cluster is what a failover happens to.
type cluster interface {
	// database is the URL that orgd is given.
	database(t *testing.T) string
	// lose makes a fault and returns when the primary was lost.
	lose(t *testing.T, fault string) time.Time
	// promote returns when there is a new primary that takes writes. wait is how long
	// the one who promotes takes.
	promote(t *testing.T, wait time.Duration) time.Time
	// now is the URL of the primary.
	now() string
	// mend undoes what the fault has done to the old primary, which may still think
	// that it is one. It reports whether there was such a thing.
	mend() bool
	// replace gives the new primary a standby in the place of the old one.
	replace(t *testing.T)
}

// pair is a primary and a standby that has every commit before it is answered, and
// the way from orgd to the primary: a balancer that follows it, or a URL with two
// hosts. They are on loopback behind wires, or each on a machine of its own.
type pair struct {
	primary, standby *testkit.PostgresCluster
	machines         *testkit.Network // nil on loopback
	asynchronous     bool             // commits do not wait for the standby
	way              string
	wires            []*wire // to the two servers, or one that leads to the primary
	replication      *wire   // from the primary to the standby, on loopback
	old              *testkit.PostgresCluster
	undo             func() // what the fault has done to the old primary; nil for nothing
	n                int
}

func newPair(t *testing.T, way string, machines *testkit.Network, asynchronous bool) *pair {
	t.Helper()
	p := &pair{way: way, machines: machines, asynchronous: asynchronous}
	if machines != nil {
		p.primary = machines.Machines[0].Postgres(t)
	} else {
		p.primary = testkit.NewPostgresCluster(t)
	}
	p.follow(t)
	if machines == nil || way == "balancer" {
		p.wires = append(p.wires, newWire(t, p.primary.Address()))
	}
	if machines == nil && way == "two hosts" {
		p.wires = append(p.wires, newWire(t, p.standby.Address()))
	}
	return p
}

// follow gives the primary a new standby.
func (p *pair) follow(t *testing.T) {
	t.Helper()
	p.n++
	name := fmt.Sprintf("standby%d", p.n)
	if p.machines != nil {
		p.standby = p.machines.Machines[p.n%2].Standby(t, p.primary, name)
	} else {
		p.replication = newWire(t, p.primary.Address())
		p.standby = p.primary.Standby(t, name, p.replication.l.Addr().String())
	}
	if !p.asynchronous {
		p.primary.WaitFor(t, name)
	}
}

func (p *pair) database(t *testing.T) string {
	t.Helper()
	hosts := []string{p.primary.Address(), p.standby.Address()}
	for i, w := range p.wires {
		hosts[i] = w.l.Addr().String()
	}
	if p.way == "balancer" {
		return strings.Replace(p.primary.URL, p.primary.Address(), hosts[0], 1)
	}
	return strings.Replace(p.primary.URL, p.primary.Address(), strings.Join(hosts, ","), 1) + "&target_session_attrs=read-write"
}

// machine returns the machine of the primary, and that of the standby.
func (p *pair) machine() (primary, standby *testkit.Machine) {
	return p.machines.Machines[(p.n+1)%2], p.machines.Machines[p.n%2]
}

func (p *pair) now() string { return p.primary.URL }

func (p *pair) mend() bool {
	if p.undo == nil {
		return false
	}
	p.undo()
	return true
}

func (p *pair) lose(t *testing.T, fault string) time.Time {
	t.Helper()
	p.old, p.undo = p.primary, nil
	lost := time.Now()
	switch fault {
	case "killed":
		p.old.Kill()
	case "stopped":
		p.old.Stop(t)
		p.undo = p.old.Resume
	case "cut off":
		if p.machines == nil {
			p.toPrimary().hush()
			p.replication.hush()
			break
		}
		machine, _ := p.machine()
		machine.Cut()
		p.undo = machine.Mend
	case "left behind":
		// The old primary lives, and who is connected to it stays so.
		p.replication.hush()
	case "killed after its standby was cut off":
		cut, mend := p.replication.hush, func() {}
		wait := 4 * time.Second
		if p.machines != nil {
			_, machine := p.machine()
			cut, mend, wait = machine.Cut, machine.Mend, time.Second
		}
		cut()
		time.Sleep(wait)
		p.old.Kill()
		lost = time.Now()
		mend()
	default:
		t.Fatalf("there is no fault %q", fault)
	}
	return lost
}

// toPrimary is the wire that leads to the primary.
func (p *pair) toPrimary() *wire {
	if p.way == "two hosts" {
		return p.wires[(p.n+1)%2]
	}
	return p.wires[0]
}

func (p *pair) promote(t *testing.T, wait time.Duration) time.Time {
	t.Helper()
	if p.machines != nil {
		time.Sleep(wait)
	}
	p.standby.Promote(t)
	promoted := time.Now()
	if p.way == "balancer" {
		p.wires[0].lead(p.standby.Address())
	}
	p.primary = p.standby
	return promoted
}

func (p *pair) replace(t *testing.T) {
	t.Helper()
	if !p.old.Ended() {
		p.old.Kill()
	}
	place := p.wires
	if p.way == "two hosts" && len(place) > 0 {
		place = place[(p.n+1)%2:]
	}
	p.follow(t)
	if p.way == "two hosts" && len(place) > 0 {
		place[0].lead(p.standby.Address())
	}
}

// The primary of a pair is lost in several ways under the load of 16 clients,
// and its standby promoted, again and again; orgd finds the new one by a
// balancer that follows the primary, or by a URL with two hosts. The control
// takes everything for done that it has sent.
func TestFailover(t *testing.T) {
	faults := []string{"killed", "cut off", "left behind", "killed after its standby was cut off"}
	for _, way := range []string{"balancer", "two hosts"} {
		t.Run(strings.ReplaceAll(way, " ", "_"), func(t *testing.T) {
			n := rounds(t, len(faults))
			r, w, j, orgd := testFailover(t, newPair(t, way, nil, false), faults, n)
			r.fault = "failover, " + way
			r.control = w.check(j.credulous(), orgd.url, everything())
			report(t, r)
		})
	}
}

// The servers are machines of their own on a network. The primary is killed; or it
// and all its processes stop, while its system still takes connections; or its link
// is down, so that what is sent to it vanishes. When the standby has its place, the
// old primary goes on or is on the network again, and still says that it takes
// changes. The control has a standby for which commits do not wait, and is cut off
// for a second before the primary is lost.
func TestFailoverOfMachines(t *testing.T) {
	faults := []string{"cut off", "stopped", "killed"}
	var once sync.Once
	var lost found
	control := func(t *testing.T) found {
		once.Do(func() { lost = loseCommits(t) })
		return lost
	}
	for _, way := range []string{"balancer", "two hosts"} {
		t.Run(strings.ReplaceAll(way, " ", "_"), func(t *testing.T) {
			n := rounds(t, len(faults))
			t.Parallel() // most of it is waiting
			network := testkit.NewNetwork(t, 2)
			r, _, _, _ := testFailover(t, newPair(t, way, network, false), faults, n)
			r.fault = "failover of machines, " + way
			r.control = control(t)
			report(t, r)
		})
	}
}

// loseCommits returns what is lost if commits do not wait for the standby.
func loseCommits(t *testing.T) found {
	t.Helper()
	p := newPair(t, "two hosts", testkit.NewNetwork(t, 2), true)
	orgd := start(t, filepath.Join(t.TempDir(), "data"), "--database", p.database(t))
	j := newJournal()
	w := makeWorld(t, orgd, 2, 16)
	stop := w.load(j, orgd.at)
	time.Sleep(500 * time.Millisecond)
	p.lose(t, "killed after its standby was cut off")
	p.promote(t, 0)
	stop()
	waitReady(t, orgd.url)
	return w.check(j, orgd.url, everything())
}

// testFailover loses the primary of a cluster n times.
func testFailover(t *testing.T, p cluster, faults []string, n int) (row, *world, *journal, *process) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	orgd := start(t, dir, "--database", p.database(t))
	j := newJournal()
	w := makeWorld(t, orgd, 8, 16)
	const other = "other" // a root in which no client works
	if _, err := client.New(orgd.url, orgd.key).CreateOrg(t.Context(), client.OrgCreate{ID: other, Name: "Other"}); err != nil {
		t.Fatal(err)
	}
	var longest struct{ again, held, refusing, revoked time.Duration }
	for i := range n {
		fault := faults[i%len(faults)]
		victim, err := client.New(orgd.url, orgd.key).CreateKey(t.Context(), other, client.KeyCreate{Name: "to be revoked", Permissions: []string{"read"}})
		if err != nil {
			t.Fatalf("before round %d: %v", i, err)
		}
		stop := w.load(j, orgd.at)
		time.Sleep(time.Second)
		if status := get(orgd.url+"/orgs/"+other, victim.Secret); status != 200 {
			t.Errorf("round %d, %s: the key is answered %d", i, fault, status)
		}
		lost := p.lose(t, fault)
		unready := waitStatus(orgd.url, unreadyIn, func(status int) bool { return status == 503 })
		unreadyAfter := time.Since(lost)
		promoted := p.promote(t, time.Duration(i/len(faults)%4)*2*time.Second)
		again := firstWrite(orgd, other, promoted)
		held := waitWrite(j, promoted)
		if again > writesAgain || held > heldAnswers {
			t.Errorf("round %d, %s: writes work again %v after the new primary was there, and %v for who was waiting", i, fault, again, held)
		}
		if !unready && fault != "left behind" && fault != "killed after its standby was cut off" {
			t.Errorf("round %d, %s: /readyz is not 503 while no write is possible", i, fault)
		}
		revoked := revokeElsewhere(t, p.now(), dir, other, victim.ID)
		gone := waitStatus(orgd.url, 20*time.Second, func(int) bool { return get(orgd.url+"/orgs/"+other, victim.Secret) == 401 })
		took := time.Since(revoked)
		if !gone || took > revokedGone {
			t.Errorf("round %d, %s: a key that was revoked at the new primary is accepted for %v (gone: %v)", i, fault, took, gone)
		}
		if p.mend() {
			for accepted := false; !accepted && time.Since(promoted) < calmAgain; time.Sleep(50 * time.Millisecond) {
				accepted = get(orgd.url+"/orgs/"+other, victim.Secret) == 200
				if accepted {
					t.Errorf("round %d, %s: with the old primary back, the revoked key is accepted", i, fault)
				}
			}
		}
		refusing := lastRefusal(j, promoted)
		if refusing > writesAgain {
			t.Errorf("round %d, %s: a change is refused %v after the new primary was there", i, fault, refusing)
		}
		t.Logf("round %d, %s, promoted after %v: /readyz failed: %v, after %v; writes again after %v, of who had waited after %v, the last was refused after %v; a revoked key was refused after %v", i, fault,
			promoted.Sub(lost).Round(time.Millisecond), unready, unreadyAfter.Round(time.Millisecond), again.Round(time.Millisecond), held.Round(time.Millisecond), refusing.Round(time.Millisecond), took.Round(time.Millisecond))
		longest.again, longest.held, longest.refusing, longest.revoked = max(longest.again, again), max(longest.held, held), max(longest.refusing, refusing), max(longest.revoked, took)
		stop()
		p.replace(t)
		waitReady(t, orgd.url)
	}
	for status, count := range j.strange {
		t.Errorf("%d answers are %s", count, status)
	}
	t.Logf("longest of %d rounds: writes again after %v, of who had waited after %v, the last was refused after %v; a revoked key was refused after %v", n,
		longest.again.Round(time.Millisecond), longest.held.Round(time.Millisecond), longest.refusing.Round(time.Millisecond), longest.revoked.Round(time.Millisecond))
	return row{rounds: n, found: w.check(j, orgd.url, everything())}, w, j, orgd
}

func get(url, key string) int {
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		panic(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := (&http.Client{Timeout: 3 * time.Second}).Do(req)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// waitStatus asks /readyz for some time, until its status is a wanted one.
func waitStatus(url string, d time.Duration, wanted func(status int) bool) bool {
	for begin := time.Now(); time.Since(begin) < d; time.Sleep(20 * time.Millisecond) {
		if wanted(ready(url)) {
			return true
		}
	}
	return false
}

// firstWrite begins a change of an organization every tenth of a second and
// returns how long after a moment the first one was acknowledged.
func firstWrite(p *process, org string, after time.Time) time.Duration {
	made := make(chan time.Duration, 1)
	for n := 0; time.Since(after) < time.Minute; n++ {
		go func() {
			req, err := http.NewRequest("PATCH", p.url+"/orgs/"+org, strings.NewReader(fmt.Sprintf(`{"description":"%d"}`, n)))
			if err != nil {
				panic(err)
			}
			req.Header.Set("Authorization", "Bearer "+p.key)
			req.Header.Set("Content-Type", "application/json")
			resp, err := (&http.Client{Timeout: 15 * time.Second}).Do(req)
			if err != nil {
				return
			}
			resp.Body.Close()
			if resp.StatusCode == 200 {
				select {
				case made <- time.Since(after):
				default:
				}
			}
		}()
		select {
		case took := <-made:
			return took
		case <-time.After(100 * time.Millisecond):
		}
	}
	return time.Since(after)
}

// waitWrite returns how long after a moment the first change was acknowledged
// that was answered later.
func waitWrite(j *journal, after time.Time) time.Duration {
	for seen := 0; time.Since(after) < time.Minute; time.Sleep(20 * time.Millisecond) {
		all := j.all()
		for _, r := range all[seen:] {
			if r.kind == change && r.outcome == acknowledged && r.answered.After(after) {
				return r.answered.Sub(after)
			}
		}
		seen = len(all)
	}
	return time.Since(after)
}

// lastRefusal returns how long after a moment the last change was refused; 0 for
// none.
func lastRefusal(j *journal, after time.Time) (last time.Duration) {
	for _, r := range j.all() {
		if r.kind == change && r.outcome == refused {
			last = max(last, r.answered.Sub(after))
		}
	}
	return last
}

// revokeElsewhere revokes a key with a process of its own on a database, and
// returns when that was done.
func revokeElsewhere(t *testing.T, database, dir, root, key string) time.Time {
	t.Helper()
	other := filepath.Join(t.TempDir(), "data")
	cmd := exec.Command(program, serveArgs(other, []string{"--database", database})...)
	cmd.Env = os.Environ()
	for name, file := range map[string]string{"ORGD_OPERATOR_KEY": "operator.key", "ORGD_AUDIT_KEY": "audit.key"} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		cmd.Env = append(cmd.Env, name+"="+strings.TrimSpace(string(b)))
	}
	p, err := tryCommand(t, "", cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer p.kill()
	operator, err := os.ReadFile(filepath.Join(dir, "operator.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := client.New(p.url, strings.TrimSpace(string(operator))).RevokeKey(t.Context(), root, key); err != nil {
		t.Fatal(err)
	}
	return time.Now()
}
