//go:build unix

package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/testkit"
)

// topologies skips a test that runs several programs beside each other for a
// while, unless ORGD_TEST_TOPOLOGIES is set.
func topologies(t *testing.T) {
	t.Helper()
	if os.Getenv("ORGD_TEST_TOPOLOGIES") == "" {
		t.Skip("ORGD_TEST_TOPOLOGIES is not set")
	}
}

// beforeCommit is what is taken for the version before while there is no tag.
const beforeCommit = "8b9bfed"

// versionBefore builds the newest tagged orgd from the repository's history, or
// that of beforeCommit.
func versionBefore(t *testing.T) string {
	t.Helper()
	git := testkit.Programs(t, "git", "tar")[0]
	run := func(args ...string) (string, error) {
		out, err := exec.Command(git, args...).Output()
		return strings.TrimSpace(string(out)), err
	}
	root, err := run("rev-parse", "--show-toplevel")
	version, tagErr := run("describe", "--tags", "--abbrev=0")
	if tagErr != nil {
		version = beforeCommit
	}
	if err == nil {
		_, err = run("cat-file", "-e", version+"^{commit}")
	}
	if err != nil {
		t.Skipf("the history of the repository has no %s", version)
	}
	dir := t.TempDir()
	archive := exec.Command("sh", "-c", `"$1" -C "$2" archive "$3" | tar -x -C "$4"`, "sh", git, root, version, dir)
	if out, err := archive.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	bin := filepath.Join(dir, "orgd-before")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "./cmd/orgd")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

// replica runs a program of orgd on a database that others share.
func replica(t *testing.T, bin, database string, more ...string) *process {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "operator.key"), []byte(sharedOperatorKey()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, append([]string{"serve", "--data-dir", dir, "--listen", "127.0.0.1:0", "--database", database}, more...)...)
	cmd.Env = append(os.Environ(), "ORGD_AUDIT_KEY="+strings.Repeat("5e", 32))
	p := startCommand(t, dir, cmd)
	if p.url == "" {
		<-p.ended
		t.Fatalf("%s does not start: %v\n%s", bin, p.err, p.log)
	}
	return p
}

var sharedOperatorKey = sync.OnceValue(func() string {
	var out bytes.Buffer
	cmd := newRoot()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"keygen"})
	if err := cmd.Execute(); err != nil {
		panic(err)
	}
	return strings.TrimSpace(out.String())
})

// as makes a GET with a key.
func (p *process) as(key, path string) int {
	req, err := http.NewRequest("GET", p.url+path, nil)
	if err != nil {
		return 0
	}
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// created is what a call that makes something answers.
type created struct {
	ID     string `json:"id"`
	Secret string `json:"secret"`
}

// must makes a request with the operator key.
func (p *process) must(t *testing.T, status int, method, path, body string) (made created) {
	t.Helper()
	got, b, err := p.do(method, path, body)
	if got != status {
		t.Fatalf("%s %s: %d %s %v", method, path, got, b, err)
	}
	json.Unmarshal(b, &made)
	return made
}

// The version before and this one serve the same database, which this one has
// brought up to date under the other: requests are answered meanwhile, and what
// is changed by one is seen by the other within a second.
func TestVersionsSideBySide(t *testing.T) {
	topologies(t)
	before, database := versionBefore(t), testkit.Postgres(t)
	old := replica(t, before, database)
	old.must(t, 201, "POST", "/orgs", `{"id":"acme","name":"Acme"}`)
	reader := old.must(t, 201, "POST", "/orgs/acme/api_keys", `{"name":"reader","permissions":["admin"]}`).Secret

	stop, stopped := make(chan struct{}), make(chan struct{})
	var failures []int
	asked := 0
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			asked++
			if status := old.as(reader, "/orgs/acme"); status != 200 {
				failures = append(failures, status)
			}
		}
	}()
	now := replica(t, orgdProgram(t), database)
	time.Sleep(time.Second)
	close(stop)
	<-stopped
	t.Logf("%d requests to the version before while this one started, %d failed: %v", asked, len(failures), failures)
	if len(failures) > 0 {
		t.Error("the version before fails while this one starts")
	}

	for _, way := range []struct {
		name         string
		maker, other *process
	}{{"by the version before", old, now}, {"by this version", now, old}} {
		var slowest time.Duration
		for i := range 5 {
			id := fmt.Sprintf("team-%d-%d", i, way.maker.cmd.Process.Pid)
			way.maker.must(t, 201, "POST", "/orgs/acme/children", `{"id":"`+id+`","name":"Team"}`)
			revoked := way.maker.must(t, 201, "POST", "/orgs/"+id+"/api_keys", `{"name":"a","permissions":["admin"]}`)
			orphan := way.maker.must(t, 201, "POST", "/orgs/"+id+"/api_keys", `{"name":"b","permissions":["admin"]}`)
			seen := func(what string, holds func() bool) {
				t.Helper()
				for begun := time.Now(); !holds(); time.Sleep(5 * time.Millisecond) {
					slowest = max(slowest, time.Since(begun))
					if time.Since(begun) > time.Second {
						t.Fatalf("%s %s is not seen by the other within a second", what, way.name)
					}
				}
			}
			seen("an organization made", func() bool { return way.other.as(revoked.Secret, "/orgs/"+id) == 200 })
			seen("a key made", func() bool { return way.other.as(orphan.Secret, "/orgs/"+id) == 200 })
			way.maker.must(t, 200, "DELETE", "/orgs/"+id+"/api_keys/"+revoked.ID, "")
			seen("a key revoked", func() bool { return way.other.as(revoked.Secret, "/orgs/"+id) == 401 })
			way.maker.must(t, 200, "PATCH", "/orgs/"+id, `{"name":"Renamed"}`)
			seen("a name changed", func() bool {
				_, b, _ := way.other.do("GET", "/orgs/"+id, "")
				return bytes.Contains(b, []byte(`"Renamed"`))
			})
			if status, b, err := way.maker.do("DELETE", "/orgs/"+id, ""); status/100 != 2 {
				t.Fatalf("%d %s %v", status, b, err)
			}
			seen("an organization deleted", func() bool { return way.other.as(orphan.Secret, "/orgs/"+id) == 401 })
		}
		t.Logf("changes made %s were seen by the other after %s at most", way.name, slowest.Round(time.Millisecond))
	}
}
