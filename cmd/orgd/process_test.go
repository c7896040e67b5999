//go:build unix

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// A process is the real program as a process of its own.
type process struct {
	cmd   *exec.Cmd
	url   string
	key   string
	log   *bytes.Buffer // complete once ended is closed
	ended chan struct{}
	err   error
}

// startProcess runs orgd with arguments until it listens.
func startProcess(t *testing.T, dir string, args ...string) *process {
	t.Helper()
	return startCommand(t, dir, exec.Command(orgdProgram(t), append([]string{"serve", "--data-dir", dir, "--listen", "127.0.0.1:0"}, args...)...))
}

// orgdProgram returns the path of orgd as a program.
func orgdProgram(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The test program is orgd when it is called orgd.
	bin := filepath.Join(t.TempDir(), "orgd")
	if err := os.Symlink(self, bin); err != nil {
		t.Fatal(err)
	}
	return bin
}

func startCommand(t *testing.T, dir string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, log: &bytes.Buffer{}, ended: make(chan struct{})}
	out, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	urls := make(chan string, 1)
	go func() {
		defer close(p.ended)
		defer close(urls)
		for in := bufio.NewScanner(out); in.Scan(); {
			fmt.Fprintln(p.log, in.Text())
			if m := listening.FindStringSubmatch(in.Text()); m != nil {
				urls <- m[1]
			}
		}
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() { p.cmd.Process.Kill(); <-p.ended })
	select {
	case p.url = <-urls:
	case <-time.After(30 * time.Second):
		t.Fatal("orgd does not start")
	}
	if p.url != "" {
		key, err := os.ReadFile(filepath.Join(dir, "operator.key"))
		if err != nil {
			t.Fatal(err)
		}
		p.key = strings.TrimSpace(string(key))
	}
	return p
}

// do makes a request with the operator key; err is one of the connection.
func (p *process) do(method, path, body string) (status int, answer []byte, err error) {
	req, err := http.NewRequest(method, p.url+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+p.key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// The process is killed while many clients write, again and again: every
// change that was acknowledged is there afterwards, none is there in part, and
// the trail folds to the state.
func TestKill9UnderLoad(t *testing.T) {
	dir := t.TempDir()
	const clients = 8
	written := make([]int, clients) // the last acknowledged change of each client
	made := 0
	const rounds = 4
	for round := range rounds + 1 {
		p := startProcess(t, dir)
		for c := range clients {
			if round == 0 {
				if status, b, err := p.do("POST", "/orgs", fmt.Sprintf(`{"id":"r%d","name":"Root"}`, c)); status != 201 {
					t.Fatalf("%d %s %v", status, b, err)
				}
				continue
			}
			var o struct {
				Description string `json:"description"`
			}
			status, b, err := p.do("GET", fmt.Sprintf("/orgs/r%d", c), "")
			if status != 200 || err != nil || json.Unmarshal(b, &o) != nil {
				t.Fatalf("%d %s %v", status, b, err)
			}
			n := 0
			fmt.Sscanf(o.Description, "change %d", &n)
			// The one under way when the process died may have been made.
			if n != written[c] && n != written[c]+1 {
				t.Errorf("client %d had change %d acknowledged, and finds %d", c, written[c], n)
			}
			written[c] = n
			for _, id := range []int{n, n - 1, 1} {
				if id < 1 || id > n {
					continue
				}
				if status, b, _ := p.do("GET", fmt.Sprintf("/orgs/r%d-%d", c, id), ""); status != 200 && id <= n-1 {
					t.Errorf("child %d of client %d: %d %s", id, c, status, b)
				}
			}
		}
		if round == rounds {
			if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			<-p.ended
			break
		}
		var wg sync.WaitGroup
		start := make([]int, clients)
		copy(start, written)
		for c := range clients {
			wg.Go(func() {
				for n := written[c] + 1; ; n++ {
					status, b, err := p.do("PATCH", fmt.Sprintf("/orgs/r%d", c), fmt.Sprintf(`{"description":"change %d"}`, n))
					if err != nil {
						return // killed
					}
					if status != 200 {
						t.Errorf("%d %s", status, b)
						return
					}
					written[c] = n
					status, b, err = p.do("POST", fmt.Sprintf("/orgs/r%d/children", c), fmt.Sprintf(`{"id":"r%d-%d","name":"Child"}`, c, n))
					if err != nil {
						return
					}
					if status != 201 {
						t.Errorf("%d %s", status, b)
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(200+150*round) * time.Millisecond)
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		<-p.ended
		for c := range clients {
			made += written[c] - start[c]
		}
	}
	t.Logf("%d changes were acknowledged", made)
	if made < 2*clients {
		t.Errorf("only %d changes were acknowledged", made)
	}
	s, err := server.Open(t.Context(), server.Config{DataDir: dir, RestoreWindow: time.Hour, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Recorder.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.CheckSystem(t, s.Store)
}

// A second process on the same data directory is refused and says why; the
// first goes on.
func TestOneProcessOnADataDirectory(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) { testOneProcessOnADataDirectory(t, engine) })
	}
}

func testOneProcessOnADataDirectory(t *testing.T, engine string) {
	dir := t.TempDir()
	var database []string
	if engine == "postgres" {
		database = []string{"--database", testkit.Postgres(t)}
	}
	first := startProcess(t, dir, database...)
	second := startProcess(t, dir, database...)
	<-second.ended
	if second.err == nil || second.url != "" {
		t.Fatal("two processes run on one data directory")
	}
	if text := second.log.String(); !strings.Contains(text, "the data directory "+dir+" cannot be used: another process is using it; stop that process") || strings.Contains(text, "goroutine") {
		t.Errorf("the second process says: %s", text)
	}
	if status, b, err := first.do("POST", "/orgs", `{"id":"r","name":"Root"}`); status != 201 {
		t.Errorf("%d %s %v", status, b, err)
	}
	// After a crash nobody has to clean up.
	first.cmd.Process.Kill()
	<-first.ended
	third := startProcess(t, dir, database...)
	if status, b, err := third.do("GET", "/orgs/r", ""); status != 200 {
		t.Errorf("%d %s %v", status, b, err)
	}
}

// SIGTERM lets the requests under way finish, takes no new ones, and the
// process ends without an error.
func TestSIGTERMDrains(t *testing.T) {
	p := startProcess(t, t.TempDir())
	if status, b, err := p.do("POST", "/orgs", `{"id":"r","name":"Root"}`); status != 201 {
		t.Fatalf("%d %s %v", status, b, err)
	}
	body, send := io.Pipe()
	req, err := http.NewRequest("PATCH", p.url+"/orgs/r", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+p.key)
	req.Header.Set("Content-Type", "application/json")
	// The server asks for the body when it reads it: then the request is under way.
	req.Header.Set("Expect", "100-continue")
	status := make(chan int, 1)
	go func() {
		resp, err := (&http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Minute}}).Do(req)
		if err != nil {
			t.Error(err)
			status <- 0
			return
		}
		resp.Body.Close()
		status <- resp.StatusCode
	}()
	if _, err := io.WriteString(send, `{"name":`); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(p.url + "/healthz")
		if err != nil {
			break // no new requests
		}
		resp.Body.Close()
		if time.Now().After(deadline) {
			t.Fatal("requests are still taken after SIGTERM")
		}
	}
	select {
	case <-p.ended:
		t.Fatal("the process ended with a request under way")
	default:
	}
	io.WriteString(send, `"Renamed"}`)
	send.Close()
	if got := <-status; got != 200 {
		t.Errorf("the request under way was answered %d", got)
	}
	select {
	case <-p.ended:
		if p.err != nil {
			t.Errorf("the process ended with %v", p.err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the process does not end")
	}
}

// A second signal ends the process at once, whatever is under way.
func TestSecondSignalEnds(t *testing.T) {
	p := startProcess(t, t.TempDir())
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /orgs HTTP/1.1\r\nHost: orgd\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"+
		"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n", p.key)
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatalf("%q %v", line, err)
	}
	p.signal(t, syscall.SIGTERM)
	waitFor(t, "no new requests are taken", func() bool {
		c, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	p.signal(t, syscall.SIGTERM)
	begin := time.Now()
	<-p.ended
	if took := time.Since(begin); p.err == nil || took > 10*time.Second {
		t.Errorf("after a second signal it ended in %s with the error %v", took, p.err)
	}
}

// When its terminal is closed the process ends as with SIGTERM, unless nohup
// started it.
func TestSIGHUP(t *testing.T) {
	p := startProcess(t, t.TempDir())
	p.signal(t, syscall.SIGHUP)
	if <-p.ended; p.err != nil || !strings.HasSuffix(p.log.String(), " msg=stopped\n") {
		t.Errorf("SIGHUP ends it with %v\n%s", p.err, p.log)
	}
	dir := t.TempDir()
	p = startCommand(t, dir, exec.Command("nohup", orgdProgram(t), "serve", "--data-dir", dir, "--listen", "127.0.0.1:0"))
	p.signal(t, syscall.SIGHUP)
	p.signal(t, syscall.SIGTERM)
	if <-p.ended; strings.Count(p.log.String(), "a second signal") != 1 || p.err != nil {
		t.Errorf("nohup does not keep it: %v\n%s", p.err, p.log)
	}
}

// Who follows a log ends that with Ctrl-C, which is not an error.
func TestTailsEndSilently(t *testing.T) {
	p := startProcess(t, t.TempDir())
	if status, b, err := p.do("POST", "/orgs", `{"id":"r","name":"Root"}`); status != 201 {
		t.Fatalf("%d %s %v", status, b, err)
	}
	for _, args := range [][]string{{"audit", "tail", "r", "--from", "1h"}, {"access", "tail", "r"}} {
		cmd := exec.Command(orgdProgram(t), args...)
		cmd.Env = append(os.Environ(), "ORGD_URL="+p.url, "ORGD_KEY="+p.key)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(out)
		if line, err := in.ReadString('\n'); err != nil {
			t.Errorf("%q prints %q: %v", args, line, err)
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, in)
		if err := cmd.Wait(); err != nil || stderr.Len() > 0 {
			t.Errorf("%q ends with %v and says %q", args, err, stderr.String())
		}
	}
}

func (p *process) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}
