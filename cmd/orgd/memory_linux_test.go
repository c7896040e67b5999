package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// memoryGroup makes a control group that may use so many bytes, of version 1 or
// 2, whichever this machine has. join is what a shell does to put itself into it,
// and used tells the most that it has used, as far as that is known. Where groups
// cannot be made the test is skipped, and with CI=true it fails.
func memoryGroup(t *testing.T, bytes int64) (join string, used func() int64) {
	t.Helper()
	name := fmt.Sprintf("orgd-test-%d", os.Getpid())
	for _, v := range []struct{ root, limit, peak string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"}, {"/sys/fs/cgroup", "memory.max", "memory.peak"}} {
		dir := filepath.Join(v.root, name)
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		remove := func() { os.Remove(dir) }
		if os.WriteFile(filepath.Join(dir, v.limit), []byte(strconv.FormatInt(bytes, 10)), 0o600) != nil {
			remove()
			continue
		}
		os.WriteFile(filepath.Join(dir, "memory.swap.max"), []byte("0"), 0o600)
		t.Cleanup(func() {
			for range 100 { // until its processes have ended
				if remove(); !exists(dir) {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
		return "echo $$ > " + dir + "/cgroup.procs", func() int64 {
			b, _ := os.ReadFile(filepath.Join(dir, v.peak))
			n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			return n
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("this machine lets nobody here make control groups that bound memory")
	}
	t.Skip("this machine lets nobody here make control groups that bound memory")
	return "", nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// largeBody returns a body of about n bytes: pieces between a beginning and an end.
func largeBody(n, pieces int, begin, between, end string, piece func(i int, fill string) string) string {
	var b strings.Builder
	b.WriteString(begin)
	fill := strings.Repeat("x", max(0, n/pieces-len(piece(0, ""))-len(between)-8))
	for i := range pieces {
		if i > 0 {
			b.WriteString(between)
		}
		b.WriteString(piece(i, fill))
	}
	b.WriteString(end)
	return b.String()
}

// With 256 MiB no mix of large requests that callers may make ends the process:
// each is done, or refused with words and a time to come back.
func TestSmallMachine(t *testing.T) {
	if os.Getenv("ORGD_TEST_TOPOLOGIES") == "" {
		t.Skip("ORGD_TEST_TOPOLOGIES is not set")
	}
	join, used := memoryGroup(t, 256<<20)
	dir := t.TempDir()
	cmd := exec.Command("sh", "-c", join+` && exec "$@"`, "sh", orgdProgram(t), "serve", "--data-dir", dir, "--listen", "127.0.0.1:0")
	p := startCommand(t, dir, cmd)
	for c := range 4 {
		p.must(t, 201, "POST", "/orgs", fmt.Sprintf(`{"id":"root%d","name":"Root"}`, c))
		p.must(t, 200, "PUT", fmt.Sprintf("/orgs/root%d/meters/requests", c), `{"unit":"requests","aggregation":"sum"}`)
	}
	key := func(root string) string {
		return p.must(t, 201, "POST", "/orgs/"+root+"/api_keys", `{"name":"a","permissions":["admin"]}`).Secret
	}
	keys := []string{key("root0"), key("root1"), key("root2"), key("root3")}

	type call struct{ name, path, contentType, body, key string }
	var calls []call
	only := os.Getenv("ORGD_TEST_SMALL_ONLY")
	round := 0
	add := func(name string, n int, path, contentType string, body func(i int) string) {
		if only != "" && only != name {
			return
		}
		shared := body(0)
		for i := range n {
			b := shared
			if name == "import" {
				b = body(i)
			}
			calls = append(calls, call{name, strings.ReplaceAll(path, "ROOT", fmt.Sprintf("root%d", i%4)), contentType, b, keys[i%4]})
		}
	}
	prepare := func(importBytes, rows, eventBytes int) {
		calls = nil
		round++
		add("import", 4, "/orgs/import?parent_id=ROOT", "text/csv", func(i int) string {
			return largeBody(importBytes, rows, "id,parent_id,name,description\n", "", "", func(j int, fill string) string {
				return fmt.Sprintf("i%d-%d-%d,root%d,Team,%s\n", round, i, j, i%4, fill)
			})
		})
		add("events", 8, "/orgs/ROOT/consumption/events", "application/cloudevents-batch+json", func(int) string {
			return largeBody(eventBytes, 10_000, "[", ",", "]", func(j int, fill string) string {
				return fmt.Sprintf(`{"specversion":"1.0","id":"e%d-%d","source":"/x","type":"requests","time":"%s","data":{"quantity":1,"note":"%s"}}`, round, j, time.Now().UTC().Format(time.RFC3339), fill)
			})
		})
		add("access", 64, "/orgs/ROOT/access_log", "application/x-ndjson", func(int) string {
			return largeBody(3<<20, 5_000, "", "\n", "", func(j int, fill string) string {
				return fmt.Sprintf(`{"id":"a%d-%d","user":"ann","action":"READ","status":"SUCCESS","path":"/%s"}`, round, j, fill)
			})
		})
	}
	const greatest = 32<<20 - 100_000
	for i := range 3 {
		if i < 2 {
			prepare(greatest, 99_000, greatest) // more than there is ever room for
		} else {
			// What there is room for is done in the end, whoever asks again.
			prepare(18<<20, 20_000, 24<<20)
		}
		var mu sync.Mutex
		statuses := map[string]int{}
		begun := time.Now()
		var wg sync.WaitGroup
		for _, c := range calls {
			wg.Go(func() {
				for begun := time.Now(); ; time.Sleep(200 * time.Millisecond) {
					status, retryAfter, answer, err := send(p, c.path, c.contentType, c.key, c.body)
					mu.Lock()
					statuses[fmt.Sprint(c.name, " ", status)]++
					mu.Unlock()
					if err != nil || status == 400 || status == 422 || status == 500 || status > 503 || (status == 503 || status == 429) && retryAfter == "" {
						t.Errorf("%s: %d %.300s %v", c.name, status, answer, err)
						return
					}
					if status == 200 || i < 2 {
						return
					}
					if time.Since(begun) > 2*time.Minute {
						t.Errorf("%s is never taken: %d %.300s", c.name, status, answer)
						return
					}
				}
			})
		}
		wg.Wait()
		t.Logf("in %s: %v, at most %d MiB used", time.Since(begun).Round(time.Millisecond), statuses, used()>>20)
		select {
		case <-p.ended:
			t.Fatalf("the process ended: %v", p.err)
		default:
		}
		if status, b, err := p.do("GET", "/readyz", ""); status != 200 {
			t.Errorf("/readyz: %d %s %v", status, b, err)
		}
	}
}

func send(p *process, path, contentType, key, body string) (status int, retryAfter string, answer []byte, err error) {
	req, err := http.NewRequest("POST", p.url+path, strings.NewReader(body))
	if err != nil {
		return 0, "", nil, err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Expect", "100-continue") // as curl does with a large body
	transport := &http.Transport{ExpectContinueTimeout: 30 * time.Second}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header.Get("Retry-After"), answer, err
}
