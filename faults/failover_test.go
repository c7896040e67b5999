//go:build linux

package faults

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// pair is a primary and a standby that has every commit before it is answered.
type pair struct {
	primary, standby *testkit.PostgresCluster
	replication      *wire // from the primary to the standby
	n                int
}

// follow gives the primary a new standby.
func (p *pair) follow(t *testing.T) {
	t.Helper()
	p.n++
	name := fmt.Sprintf("standby%d", p.n)
	p.replication = newWire(t, p.primary.Address())
	p.standby = p.primary.Standby(t, name, p.replication.l.Addr().String())
	p.primary.WaitFor(t, name)
}

// The primary of a pair is lost in several ways under the load of 16 clients,
// and its standby promoted, again and again; orgd finds the new one by a
// balancer that follows the primary, or by a URL with two hosts. The control
// is a standby for which commits do not wait.
func TestFailover(t *testing.T) {
	faults := []string{"killed", "cut off", "left behind", "killed after its standby was cut off"}
	for _, way := range []string{"balancer", "two hosts"} {
		t.Run(strings.ReplaceAll(way, " ", "_"), func(t *testing.T) {
			n := rounds(t, len(faults))
			testFailover(t, way, faults, n)
		})
	}
}

func testFailover(t *testing.T, way string, faults []string, n int) {
	p := &pair{primary: testkit.NewPostgresCluster(t)}
	p.follow(t)
	// The ways to the two servers, or one that leads to the primary.
	wires := []*wire{newWire(t, p.primary.Address())}
	database := wires[0].url(t, p.primary.URL)
	if way == "two hosts" {
		wires = append(wires, newWire(t, p.standby.Address()))
		database = strings.Replace(database, wires[0].l.Addr().String(), wires[0].l.Addr().String()+","+wires[1].l.Addr().String(), 1) + "&target_session_attrs=read-write"
	}
	dir := filepath.Join(t.TempDir(), "data")
	orgd := start(t, dir, "--database", database)
	j := newJournal()
	w := makeWorld(t, orgd, 8, 16)
	const other = "other" // a root in which no client works
	if _, err := client.New(orgd.url, orgd.key).CreateOrg(t.Context(), client.OrgCreate{ID: other, Name: "Other"}); err != nil {
		t.Fatal(err)
	}
	r := row{fault: "failover, " + way, rounds: n}
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
		old := p.primary
		toOld := wires[0]
		if way == "two hosts" {
			toOld = wires[i%2]
		}
		lost := time.Now()
		switch fault {
		case "killed":
			old.Kill()
		case "cut off":
			toOld.hush()
			p.replication.hush()
		case "left behind":
			// The old primary lives, and who is connected to it stays so.
			p.replication.hush()
		case "killed after its standby was cut off":
			p.replication.hush()
			time.Sleep(4 * time.Second)
			old.Kill()
			lost = time.Now()
		}
		unready := waitStatus(orgd.url, unreadyIn, func(status int) bool { return status != 200 })
		unreadyAfter := time.Since(lost)
		p.standby.Promote(t)
		promoted := time.Now()
		if way == "balancer" {
			wires[0].lead(p.standby.Address())
		}
		p.primary = p.standby
		again := firstWrite(orgd, other, promoted)
		held := waitWrite(j, promoted)
		if again > writesAgain || held > heldAnswers {
			t.Errorf("round %d, %s: writes work again %v after the new primary was there, and %v for who was waiting", i, fault, again, held)
		}
		if !unready && fault != "left behind" && fault != "killed after its standby was cut off" {
			t.Errorf("round %d, %s: /readyz is 200 while no write is possible", i, fault)
		}
		revoked := revokeElsewhere(t, p.primary.URL, dir, other, victim.ID)
		gone := waitStatus(orgd.url, 20*time.Second, func(int) bool { return get(orgd.url+"/orgs/"+other, victim.Secret) == 401 })
		if took := time.Since(revoked); !gone || took > revokedGone {
			t.Errorf("round %d, %s: a key that was revoked at the new primary is accepted for %v (gone: %v)", i, fault, took, gone)
		}
		t.Logf("round %d, %s: /readyz failed: %v, after %v; writes again after %v, of who had waited after %v", i, fault, unready, unreadyAfter.Round(time.Millisecond), again.Round(time.Millisecond), held.Round(time.Millisecond))
		stop()
		if fault != "killed" && fault != "killed after its standby was cut off" {
			old.Kill()
		}
		p.follow(t)
		if way == "two hosts" {
			toOld.lead(p.standby.Address())
		}
		waitReady(t, orgd.url)
	}
	for status, count := range j.strange {
		t.Errorf("%d answers are %s", count, status)
	}
	r.found, r.control = w.check(j, orgd.url, everything()), w.check(j.credulous(), orgd.url, everything())
	report(t, r)
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
