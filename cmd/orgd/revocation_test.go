//go:build unix

package main

import (
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/testkit"
)

// What a process has taken away holds at the other one a second later, also if
// it is killed at whatever moment of the change, or right after it, and whatever
// is between them and the database. If its answer did not arrive, the other one
// does what the database says.
func TestRevocationsHoldElsewhere(t *testing.T) {
	for name, args := range map[string]func(t *testing.T) []string{
		"direct": func(t *testing.T) []string { return []string{"--database", testkit.Postgres(t)} },
		"transaction pooler": func(t *testing.T) []string {
			direct := testkit.Postgres(t)
			return []string{"--database", testkit.PgBouncer(t, direct, "transaction"), "--database-direct", direct}
		},
	} {
		t.Run(name, func(t *testing.T) {
			shared := args(t)
			home := t.TempDir()
			stays := startProcess(t, home, shared...)
			another := func() *process {
				t.Helper()
				dir := t.TempDir()
				for _, file := range []string{"operator.key", "audit.key"} {
					secret, err := os.ReadFile(filepath.Join(home, file))
					if err == nil {
						err = os.WriteFile(filepath.Join(dir, file), secret, 0o600)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				return startProcess(t, dir, shared...)
			}
			must := func(p *process, status int, method, path, body string) []byte {
				t.Helper()
				got, answer, err := p.do(method, path, body)
				if err != nil || got != status {
					t.Fatalf("%s %s: status %d, error %v: %s", method, path, got, err, answer)
				}
				return answer
			}
			must(stays, http.StatusCreated, "POST", "/orgs", `{"id":"acme","name":"Acme"}`)
			must(stays, http.StatusCreated, "POST", "/orgs/acme/children", `{"id":"team","name":"Team"}`)
			allowed := func(secret string) bool {
				status, err := get(http.DefaultClient, stays.url+"/orgs/acme", secret, "")
				if err != nil {
					t.Fatal(err)
				}
				return status == http.StatusOK
			}
			made := 0
			for round := range 8 {
				var key struct{ ID, Secret string }
				if err := json.Unmarshal(must(stays, http.StatusCreated, "POST", "/orgs/acme/api_keys", `{"name":"k","permissions":["orgs:read"]}`), &key, json.MatchCaseInsensitiveNames(true)); err != nil {
					t.Fatal(err)
				}
				dies := another()
				for !allowed(key.Secret) {
					time.Sleep(10 * time.Millisecond)
				}
				answered := make(chan bool)
				go func() {
					status, _, err := dies.do("DELETE", "/orgs/acme/api_keys/"+key.ID, "")
					answered <- err == nil && status == http.StatusNoContent
				}()
				acknowledged := false
				if round == 0 {
					acknowledged = <-answered
				} else {
					time.Sleep(time.Duration(round*round) * time.Millisecond / 2)
				}
				dies.signal(t, syscall.SIGKILL)
				<-dies.ended
				if round > 0 {
					acknowledged = <-answered
				}
				time.Sleep(time.Second)
				status, _, err := stays.do("GET", "/orgs/acme/api_keys/"+key.ID, "")
				if err != nil || status != http.StatusOK && status != http.StatusNotFound {
					t.Fatal(status, err)
				}
				revoked := status == http.StatusNotFound
				if revoked {
					made++
				}
				if acknowledged && !revoked {
					t.Errorf("round %d: an acknowledged revocation is lost", round)
				}
				if allowed(key.Secret) == revoked {
					t.Errorf("round %d: the other process lets the key through: %v; it is revoked: %v", round, !revoked, revoked)
				}
			}
			t.Logf("%d of 8 revocations were made before the process was killed", made)
		})
	}
}
