package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
)

// compare measures two builds of orgd against each other. Each is a process of
// its own on the first CPU, and the load runs on the others; they take turns,
// round by round, so that what else the machine does hits both.
func compare(before, after string) error {
	one, err := startProgram(before)
	if err != nil {
		return err
	}
	defer one.stop()
	two, err := startProgram(after)
	if err != nil {
		return err
	}
	defer two.stop()
	type measurement struct {
		name    string
		conns   int
		request func(p *program) func(c, n int) []byte
	}
	get := func(p *program) func(c, n int) []byte {
		b := p.request("GET", "/orgs/team-1", "")
		return func(int, int) []byte { return b }
	}
	decide := func(p *program) func(c, n int) []byte {
		b := p.request("GET", "/forward_auth?permission=app:orders:read&meter=api_calls", "")
		return func(int, int) []byte { return b }
	}
	patch := func(p *program) func(c, n int) []byte {
		return func(c, n int) []byte {
			return p.request("PATCH", fmt.Sprintf("/orgs/team-%d", c%64), fmt.Sprintf(`{"description":"change %d"}`, n))
		}
	}
	for _, m := range []measurement{
		{"GET, 16 clients", 16, get}, {"forward_auth, 16 clients", 16, decide}, {"PATCH, 1 client", 1, patch}, {"PATCH, 64 clients", 64, patch},
	} {
		var rates [2][]float64
		var ratios []float64
		var cpu [2]time.Duration
		var requests [2]float64
		for round := range *rounds {
			var now [2]float64
			order := []int{0, 1}
			if round%2 == 1 {
				order = []int{1, 0}
			}
			for _, i := range order {
				p := []*program{one, two}[i]
				before := p.cpu()
				if now[i], err = load(p.addr, m.conns, *duration, m.request(p)); err != nil {
					return fmt.Errorf("%s: %w", m.name, err)
				}
				rates[i] = append(rates[i], now[i])
				cpu[i] += p.cpu() - before
				requests[i] += now[i] * duration.Seconds()
			}
			ratios = append(ratios, now[1]/now[0])
		}
		for _, list := range [][]float64{rates[0], rates[1], ratios} {
			slices.Sort(list)
		}
		row(m.name, "%.0f/s before, %.0f/s after: %.3f (rounds from %.3f to %.3f)", rates[0][len(rates[0])/2], rates[1][len(rates[1])/2],
			ratios[len(ratios)/2], ratios[0], ratios[len(ratios)-1])
		if cpu[0] > 0 && cpu[1] > 0 {
			each := [2]float64{float64(cpu[0].Microseconds()) / requests[0], float64(cpu[1].Microseconds()) / requests[1]}
			row("", "%.1f µs of the processor for each before, %.1f µs after: %.3f", each[0], each[1], each[1]/each[0])
		}
	}
	return nil
}

// program is orgd as a process of its own.
type program struct {
	cmd   *exec.Cmd
	dir   string
	addr  string
	token string
}

var listens = regexp.MustCompile(`orgd is listening.*?http://(127\.0\.0\.1:\d+)`)

func startProgram(path string) (*program, error) {
	dir, err := os.MkdirTemp("", "orgd-bench-")
	if err != nil {
		return nil, err
	}
	p := &program{dir: dir}
	args := []string{path, "serve", "--data-dir", filepath.Join(dir, "data"), "--listen", "127.0.0.1:0"}
	if taskset, err := exec.LookPath("taskset"); err == nil {
		args = append([]string{taskset, "-c", "0"}, args...)
	}
	p.cmd = exec.Command(args[0], args[1:]...)
	log, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	found := make(chan string, 1)
	go func() {
		for in := bufio.NewScanner(log); in.Scan(); {
			if m := listens.FindStringSubmatch(in.Text()); m != nil {
				select {
				case found <- m[1]:
				default:
				}
			}
		}
	}()
	select {
	case p.addr = <-found:
	case <-time.After(20 * time.Second):
		p.stop()
		return nil, errors.New(path + " does not start")
	}
	operator, err := os.ReadFile(filepath.Join(dir, "data", "operator.key"))
	if err == nil {
		err = p.tree(strings.TrimSpace(string(operator)))
	}
	if err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// ticks is how many a second has in /proc (proc(5); USER_HZ).
const ticks = 100

// cpu returns the time that the program has had of the processor; 0 where
// there is no /proc.
func (p *program) cpu() time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * time.Second / ticks
}

func (p *program) stop() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	os.RemoveAll(p.dir)
}

// tree is rig.tree over HTTP.
func (p *program) tree(operator string) error {
	rows := "id,parent_id,name\nacme,,Acme\nacme.eu,acme,Acme Europe\n"
	for i := range 64 {
		rows += fmt.Sprintf("team-%d,acme.eu,Team %d\n", i, i)
	}
	for _, r := range []struct{ path, contentType, body string }{
		{"/orgs/import", "text/csv", rows},
		{"/orgs/acme.eu/api_keys", "application/json", `{"name":"bench","permissions":["admin","app:orders:read"]}`},
	} {
		req, err := http.NewRequest("POST", "http://"+p.addr+r.path, bytes.NewReader([]byte(r.body)))
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+operator)
		req.Header.Set("Content-Type", r.contentType)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		var answer struct {
			Secret string `json:"secret"`
		}
		err = json.UnmarshalRead(resp.Body, &answer)
		resp.Body.Close()
		if err != nil || resp.StatusCode >= 300 {
			return fmt.Errorf("%s: status %d, %w", r.path, resp.StatusCode, err)
		}
		p.token = answer.Secret
	}
	return nil
}

func (p *program) request(method, path, body string) []byte {
	return (&rig{token: p.token}).request(method, path, body)
}
