//go:build linux

package faults

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is orgd.
type process struct {
	url, key string
	cmd      *exec.Cmd
	ended    chan struct{}
	mu       sync.Mutex
	log      strings.Builder
}

var listening = regexp.MustCompile(`msg="orgd is listening" url=(\S+)`)

// tryStart runs orgd on a data directory until it listens; err says how it
// ended instead.
func tryStart(t *testing.T, dir string, args ...string) (*process, error) {
	return tryCommand(t, dir, exec.Command(program, serveArgs(dir, args)...))
}

func serveArgs(dir string, args []string) []string {
	return append([]string{"serve", "--data-dir", dir, "--listen", "127.0.0.1:0"}, args...)
}

// tryCommand runs a command that runs orgd. dir is where its operator key is
// found; without one it stays unknown.
func tryCommand(t *testing.T, dir string, cmd *exec.Cmd) (*process, error) {
	t.Helper()
	p := &process{cmd: cmd, ended: make(chan struct{})}
	// strace and what it runs end together.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	urls := make(chan string, 1)
	go func() {
		defer close(p.ended)
		for in := bufio.NewScanner(out); in.Scan(); {
			p.mu.Lock()
			fmt.Fprintln(&p.log, in.Text())
			p.mu.Unlock()
			if m := listening.FindStringSubmatch(in.Text()); m != nil {
				urls <- m[1]
			}
		}
		cmd.Wait()
	}()
	t.Cleanup(p.kill)
	select {
	case p.url = <-urls:
	case <-p.ended:
		return nil, fmt.Errorf("orgd does not start: %s", p.text())
	case <-time.After(time.Minute):
		p.kill()
		return nil, fmt.Errorf("orgd does not start in a minute: %s", p.text())
	}
	if dir == "" { // its secrets are in its environment
		return p, nil
	}
	key, err := os.ReadFile(filepath.Join(dir, "operator.key"))
	p.key = strings.TrimSpace(string(key))
	return p, err
}

func start(t *testing.T, dir string, args ...string) *process {
	t.Helper()
	p, err := tryStart(t, dir, args...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// kill ends the process as kill -9 does.
func (p *process) kill() {
	syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.ended
}

func (p *process) at() string { return p.url }

// text returns the process's log so far.
func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// ready returns the status of /readyz.
func ready(url string) int {
	h := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: time.Second}).DialContext}}
	resp, err := h.Get(url + "/readyz")
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}
