//go:build unix

package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// A balancer spreads requests over two servers.
type balancer struct {
	name, program string
	args          func(dir string) []string
	config        string // with ADDRESS, FIRST and SECOND to be replaced, and DIR
}

var balancers = []balancer{
	{"haproxy", "haproxy", func(dir string) []string { return []string{"-db", "-f", dir + "/config"} }, `
defaults
	mode http
	timeout connect 1s
	timeout client 30s
	timeout server 10s
frontend front
	bind ADDRESS
	default_backend orgd
backend orgd
	option httpchk GET /readyz
	default-server check inter 200ms fall 1 rise 1
	server first FIRST
	server second SECOND
`},
	// nginx does not ask /readyz. It goes to the next server when one takes no
	// connection, or starts and answers 503.
	{"nginx", "nginx", func(dir string) []string {
		return []string{"-p", dir, "-c", dir + "/config", "-e", "stderr", "-g", "daemon off; master_process off; pid " + dir + "/pid;"}
	}, `
events {}
http {
	access_log off;
	client_body_temp_path DIR/a; proxy_temp_path DIR/b; fastcgi_temp_path DIR/c; uwsgi_temp_path DIR/d; scgi_temp_path DIR/e;
	upstream orgd {
		server FIRST max_fails=1 fail_timeout=1s;
		server SECOND max_fails=1 fail_timeout=1s;
		keepalive 32;
	}
	server {
		listen ADDRESS;
		location / {
			proxy_pass http://orgd;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_connect_timeout 1s;
			proxy_next_upstream error timeout http_503;
		}
	}
}
`}}

// Servers behind a balancer are restarted one after the other under load, and no
// decision is lost.
func TestRestartsBehindBalancer(t *testing.T) {
	topologies(t)
	for _, b := range balancers {
		t.Run(b.name, func(t *testing.T) { testRestarts(t, b, "2s") })
	}
}

func testRestarts(t *testing.T, b balancer, delay string) {
	path := testkit.Programs(t, b.program)[0]
	database := testkit.Postgres(t)
	addresses := []string{freeAddress(t), freeAddress(t)}
	start := func(i int) *process {
		return replica(t, orgdProgram(t), database, "--forward-auth-listen", addresses[i], "--shutdown-delay", delay)
	}
	servers := []*process{start(0), start(1)}
	servers[0].must(t, 201, "POST", "/orgs", `{"id":"acme","name":"Acme"}`)
	key := servers[0].must(t, 201, "POST", "/orgs/acme/api_keys", `{"name":"a","permissions":["app:x"]}`).Secret

	dir, address := t.TempDir(), freeAddress(t)
	config := strings.NewReplacer("ADDRESS", address, "FIRST", addresses[0], "SECOND", addresses[1], "DIR", dir).Replace(b.config)
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, b.args(dir)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	url := "http://" + address + "/forward_auth?permission=app:x"
	decide := func(c *http.Client) string {
		req, err := http.NewRequest("GET", url, nil)
		if err != nil {
			return err.Error()
		}
		req.Header.Set("Authorization", "Bearer "+key)
		resp, err := c.Do(req)
		if err != nil {
			return err.Error()
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			return resp.Status
		}
		return ""
	}
	waitFor(t, "the balancer answers", func() bool { return decide(http.DefaultClient) == "" })

	var mu sync.Mutex
	made, lost := 0, map[string]int{}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{}}
			defer c.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				failure := decide(c)
				mu.Lock()
				if made++; failure != "" {
					lost[failure]++
				}
				mu.Unlock()
			}
		})
	}
	time.Sleep(500 * time.Millisecond)
	for i := range servers {
		servers[i].signal(t, syscall.SIGTERM)
		if <-servers[i].ended; servers[i].err != nil {
			t.Errorf("it ended with %v\n%s", servers[i].err, servers[i].log)
		}
		servers[i] = start(i)
		time.Sleep(time.Second) // the balancer finds it again
	}
	close(stop)
	wg.Wait()
	t.Logf("%d decisions, lost: %v", made, lost)
	if len(lost) > 0 {
		t.Errorf("decisions were lost: %v", fmt.Sprint(lost))
	}
}
