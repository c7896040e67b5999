// Command bench measures what orgd's requests cost and prints a table. It
// runs everything on loopback, on SQLite in a temporary directory, and stops
// by itself after a few minutes.
//
// Figures differ from machine to machine; compare the ratios within one run.
package main

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/tree"
	"github.com/orgd/orgd/internal/usage"
)

var (
	duration = flag.Duration("duration", 3*time.Second, "how long each load runs")
	rounds   = flag.Int("rounds", 3, "how often each pair of loads is repeated; the median counts")
	large    = flag.Int("orgs", 1_000_000, "organizations of the large tree; 0 leaves it out")
	only     = flag.String("only", "", "run only the measurements whose name contains this")
	builds   = flag.String("compare", "", "two builds of orgd, BEFORE,AFTER, to measure against each other instead")
	profile  = flag.String("cpuprofile", "", "write a CPU profile of the measurements to this file")
)

var table = tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)

func row(name, format string, args ...any) {
	fmt.Fprintf(table, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	fmt.Fprintf(os.Stderr, "  %s: %s\n", name, fmt.Sprintf(format, args...))
}

func main() {
	flag.Parse()
	if *profile != "" {
		f, err := os.Create(*profile)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		defer pprof.StopCPUProfile()
	}
	if before, after, ok := strings.Cut(*builds, ","); ok {
		if err := compare(before, after); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %v\n", err)
			os.Exit(1)
		}
		table.Flush()
		return
	}
	fmt.Fprintf(os.Stderr, "measuring on %d CPUs, %s; this takes some minutes\n", runtime.NumCPU(), runtime.Version())
	for _, m := range []struct {
		name string
		run  func() error
	}{{"process", process}, {"get", get}, {"forward_auth", forwardAuth}, {"patch", patch}, {"evidence", evidence}, {"import", imports}, {"pages", pages}, {"access log", accessLog}, {"usage events", ingest}, {"consumption", consumption}} {
		if !strings.Contains(m.name, *only) {
			continue
		}
		if err := m.run(); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", m.name, err)
			os.Exit(1)
		}
	}
	table.Flush()
}

// rig is a server in this process.
type rig struct {
	*server.Server
	dir   string
	addr  string
	token string
	halt  func() // stops the server
	stop  func() // and removes its directory
}

func start(change ...func(*server.Config)) (*rig, error) {
	dir, err := os.MkdirTemp("", "orgd-bench-")
	if err != nil {
		return nil, err
	}
	return startIn(dir, change...)
}

// startIn starts a server in a data directory that may hold data already.
func startIn(dir string, change ...func(*server.Config)) (*rig, error) {
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	lines := server.NewLineWriter(log) // as orgd serve writes
	c := server.Config{DataDir: dir, RestoreWindow: 24 * time.Hour, Version: "bench",
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Log: slog.New(lines.Handler(slog.NewTextHandler(lines, nil)))}
	for _, f := range change {
		f(&c)
	}
	s, err := server.Open(context.Background(), c)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	r := &rig{Server: s, dir: dir, addr: l.Addr().String(), halt: func() {
		cancel()
		<-done
		s.Close()
		lines.Close()
		log.Close()
	}}
	r.stop = func() {
		r.halt()
		os.RemoveAll(dir)
	}
	return r, nil
}

var call = &org.Call{Actor: auth.Operator(), RequestID: "bench", IP: "127.0.0.1"}

// tree creates a small tree and a key of its middle.
func (r *rig) tree() error {
	ctx := context.Background()
	csv := "id,parent_id,name\nacme,,Acme\nacme.eu,acme,Acme Europe\n"
	for i := range 64 {
		csv += fmt.Sprintf("team-%d,acme.eu,Team %d\n", i, i)
	}
	if _, _, err := r.Tree.Import(ctx, call, strings.NewReader(csv), tree.ImportOptions{Format: "csv"}); err != nil {
		return err
	}
	k, _, err := r.Tree.CreateKey(ctx, call, "acme.eu", auth.Request{Name: "bench", Permissions: []string{"admin", "app:orders:read"}})
	if err == nil {
		r.token = k.Secret
	}
	return err
}

func (r *rig) request(method, path, body string) []byte {
	return fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		method, path, r.token, len(body), body)
}

// load sends requests over conns connections, each waiting for its answer, and
// returns the answers per second. request makes the nth request of connection c.
func load(addr string, conns int, d time.Duration, request func(c, n int) []byte) (float64, error) {
	var answers atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	begin := time.Now()
	stop := begin.Add(d)
	for c := range conns {
		wg.Go(func() {
			if err := func() error {
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					return err
				}
				defer conn.Close()
				in := bufio.NewReader(conn)
				for n := 0; time.Now().Before(stop); n++ {
					if _, err := conn.Write(request(c, n)); err != nil {
						return err
					}
					if err := readAnswer(in); err != nil {
						return err
					}
					answers.Add(1)
				}
				return nil
			}(); err != nil {
				failed.Store(&err)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return float64(answers.Load()) / time.Since(begin).Seconds(), nil
}

// readAnswer reads one answer with a Content-Length and checks that it is a
// success.
func readAnswer(in *bufio.Reader) error {
	status, err := in.ReadSlice('\n')
	if err != nil {
		return err
	}
	ok := bytes.HasPrefix(status, []byte("HTTP/1.1 2"))
	head := string(status)
	length := 0
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == 2 {
			break
		}
		if v, found := bytes.CutPrefix(line, []byte("Content-Length: ")); found {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(v))); err != nil {
				return err
			}
		}
	}
	if !ok {
		body := make([]byte, length)
		io.ReadFull(in, body)
		return fmt.Errorf("answer %s%s", head, body)
	}
	_, err = in.Discard(length)
	return err
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// get compares an authenticated GET, with its access event and its count
// recorded, with a bare handler that answers the same bytes.
func get() error {
	r, err := start()
	if err != nil {
		return err
	}
	defer r.stop()
	if err := r.tree(); err != nil {
		return err
	}
	ratio, err := r.besideBare(r.request("GET", "/orgs/acme.eu", ""), "/orgs/acme.eu", "GET /orgs/{org_id}")
	row("GET /orgs/{id}, 32 connections, recorded", "%s (to reach: 0.5)", ratio)
	return err
}

// forwardAuth compares a decision about a request, as nginx asks for it, with
// a bare handler that answers the same bytes. The decision is an event and is
// counted.
func forwardAuth() error {
	r, err := start()
	if err != nil {
		return err
	}
	defer r.stop()
	if err := r.tree(); err != nil {
		return err
	}
	const path = "/forward_auth?permission=app:orders:read&meter=api_calls&quantity=1&action=READ_ORDERS"
	request := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: orgd\r\nX-Original-Method: GET\r\nX-Original-URI: /orders/4711?page=2\r\nX-Forwarded-For: 203.0.113.7\r\nAuthorization: Bearer %s\r\nUser-Agent: shop/1.0\r\nAccept: */*\r\n\r\n", path, r.token)
	ratio, err := r.besideBare(request, path, "/forward_auth")
	if err != nil {
		return err
	}
	row("forward_auth, 32 connections, recorded and counted", "%s (to reach: 0.6)", ratio)
	if _, _, err := r.Metering.PutLimit(context.Background(), call, "acme", "api_calls", usage.MaxDecimal, usage.Hard); err != nil {
		return err
	}
	ratio, err = r.besideBare(request, path, "/forward_auth")
	row("forward_auth under a hard limit", "%s", ratio)
	return err
}

// besideBare sends a request over 32 connections to orgd and to a bare handler
// of net/http that answers the same bytes, in turn.
func (r *rig) besideBare(request []byte, path, pattern string) (string, error) {
	req, _ := http.NewRequest("GET", "http://"+r.addr+path, nil)
	req.Header.Set("Authorization", "Bearer "+r.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 {
		return "", fmt.Errorf("answer %s: %s", resp.Status, body)
	}
	bare, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	mux := http.NewServeMux()
	mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
		for name := range resp.Header {
			if name != "Date" && name != "Content-Length" {
				w.Header()[name] = resp.Header[name]
			}
		}
		w.Write(body)
	})
	hs := &http.Server{Handler: mux}
	go hs.Serve(bare)
	defer hs.Close()
	var ratios, bares, orgds []float64
	for range *rounds {
		b, err := load(bare.Addr().String(), 32, *duration, func(int, int) []byte { return request })
		if err != nil {
			return "", err
		}
		o, err := load(r.addr, 32, *duration, func(int, int) []byte { return request })
		if err != nil {
			return "", err
		}
		ratios, bares, orgds = append(ratios, o/b), append(bares, b), append(orgds, o)
		waiting, _ := r.Recorder.Lag()
		begin := time.Now()
		if err := r.Recorder.Drain(context.Background()); err != nil {
			return "", err
		}
		fmt.Fprintf(os.Stderr, "  %d records waited for the database; stored %v later\n", waiting, time.Since(begin).Round(time.Millisecond))
	}
	return fmt.Sprintf("%.0f/s; bare net/http %.0f/s; ratio %.2f", median(orgds), median(bares), median(ratios)), nil
}

func patch() error {
	r, err := start()
	if err != nil {
		return err
	}
	defer r.stop()
	if err := r.tree(); err != nil {
		return err
	}
	request := func(c, n int) []byte {
		return r.request("PATCH", fmt.Sprintf("/orgs/team-%d", c), fmt.Sprintf(`{"name":"Team %d %d"}`, c, n))
	}
	var ratios, ones, manys []float64
	for range *rounds {
		one, err := load(r.addr, 1, *duration, request)
		if err != nil {
			return err
		}
		many, err := load(r.addr, 64, *duration, func(c, n int) []byte { return request(c, n+1<<30) })
		if err != nil {
			return err
		}
		ratios, ones, manys = append(ratios, many/one), append(ones, one), append(manys, many)
	}
	row("PATCH /orgs/{id}, durable and audited", "1 client %.0f/s; 64 clients %.0f/s; ratio %.1f (to reach: 5)", median(ones), median(manys), median(ratios))
	return nil
}

// evidence measures what it costs that the audit log is signed, anchored and
// checked against what was signed before, all the time.
func evidence() error {
	with, err := start()
	if err != nil {
		return err
	}
	defer with.stop()
	without, err := start(func(c *server.Config) { c.SignInterval = -1 })
	if err != nil {
		return err
	}
	defer without.stop()
	var ratios, ons, offs []float64
	for _, r := range []*rig{with, without} {
		if err := r.tree(); err != nil {
			return err
		}
	}
	for n := range *rounds {
		var speed [2]float64
		for i, r := range []*rig{with, without} {
			if speed[i], err = load(r.addr, 64, *duration, func(c, k int) []byte {
				return r.request("PATCH", fmt.Sprintf("/orgs/team-%d", c), fmt.Sprintf(`{"name":"Team %d %d %d"}`, c, n, k))
			}); err != nil {
				return err
			}
		}
		ons, offs, ratios = append(ons, speed[0]), append(offs, speed[1]), append(ratios, speed[0]/speed[1])
	}
	row("PATCH, 64 clients, evidence", "signed and anchored %.0f/s; not signed %.0f/s; ratio %.2f (to reach: 0.7)", median(ons), median(offs), median(ratios))
	return nil
}

// hierarchy writes a CSV of n organizations below parent, ten to a group.
func hierarchy(prefix, parent string, n int) []byte {
	var b bytes.Buffer
	b.WriteString("id,parent_id,name\n")
	for i := range n {
		up := parent
		if i > 0 {
			up = fmt.Sprintf("%s%d", prefix, (i-1)/10)
		}
		fmt.Fprintf(&b, "%s%d,%s,Organization %s%d\n", prefix, i, up, prefix, i)
	}
	return b.Bytes()
}

func imports() error {
	r, err := start()
	if err != nil {
		return err
	}
	defer r.stop()
	csv := hierarchy("n", "", 100_000)
	begin := time.Now()
	req, _ := http.NewRequest("POST", "http://"+r.addr+"/orgs/import", bytes.NewReader(csv))
	req.Header.Set("Authorization", "Bearer "+r.OperatorKey)
	req.Header.Set("Content-Type", "text/csv")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 {
		return fmt.Errorf("import: %s", body)
	}
	row("import of 100,000 organizations, one commit", "%.1f s (to reach: under 30)", time.Since(begin).Seconds())
	return nil
}

// pages measures one page of each list at a thousand organizations and at
// many.
func pages() error {
	if *large == 0 {
		return nil
	}
	times := map[string][2]time.Duration{}
	names := []string{"descendants", "descendants, a late page", "search by name", "subtree audit", "children"}
	for i, n := range []int{1000, *large} {
		r, err := start()
		if err != nil {
			return err
		}
		ctx := context.Background()
		begin := time.Now()
		for done := 0; done < n; {
			size := min(100_000, n-done)
			parent := ""
			if done > 0 {
				parent = "p0-0"
			}
			if _, _, err := r.Tree.Import(ctx, call, bytes.NewReader(hierarchy(fmt.Sprintf("p%d-", done), parent, size)), tree.ImportOptions{Format: "csv"}); err != nil {
				return err
			}
			done += size
		}
		fmt.Fprintf(os.Stderr, "  loaded %d organizations in %v\n", n, time.Since(begin).Round(time.Millisecond))
		r.token = r.OperatorKey
		late, err := r.late("/orgs/p0-0/descendants?limit=50", 15)
		if err != nil {
			return err
		}
		for name, path := range map[string]string{
			"descendants":              "/orgs/p0-0/descendants?limit=50",
			"descendants, a late page": late,
			"search by name":           "/orgs?name=organization+p0-7&limit=50",
			"subtree audit":            "/orgs/p0-0/children_audit?limit=50",
			"children":                 "/orgs/p0-1/children?limit=50",
		} {
			perSecond, err := load(r.addr, 1, *duration/2, func(int, int) []byte { return r.request("GET", path, "") })
			if err != nil {
				return err
			}
			t := times[name]
			t[i] = time.Duration(float64(time.Second) / perSecond)
			times[name] = t
		}
		r.stop()
	}
	for _, name := range names {
		t := times[name]
		row(fmt.Sprintf("page of 50, %s", name), "1,000 organizations %v; %d organizations %v; ratio %.2f (to reach: at most 2)",
			t[0].Round(time.Microsecond), *large, t[1].Round(time.Microsecond), float64(t[1])/float64(t[0]))
	}
	return nil
}

// late returns the link to a page n pages further on.
func (r *rig) late(path string, n int) (string, error) {
	for range n {
		req, _ := http.NewRequest("GET", "http://"+r.addr+path, nil)
		req.Header.Set("Authorization", "Bearer "+r.token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return "", err
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 {
			return "", fmt.Errorf("%s: %s", path, resp.Status)
		}
		link := resp.Header.Get("Link")
		end := strings.IndexByte(link, '>')
		if end < 0 {
			return path, nil
		}
		path = link[1:end]
	}
	return path, nil
}

// process measures a process of the real binary: how soon it is ready and how
// much memory it takes when idle.
func process() error {
	dir, err := os.MkdirTemp("", "orgd-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "orgd")
	build := exec.Command("go", "build", "-trimpath", "-o", binary, "./cmd/orgd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %s", out)
	}
	info, err := os.Stat(binary)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	addr := l.Addr().String()
	l.Close()
	var starts []float64
	var rss int
	for i := range *rounds + 1 {
		cmd := exec.Command(binary, "serve", "--data-dir", filepath.Join(dir, "data"), "--listen", addr, "--log-level", "error")
		begin := time.Now()
		if err := cmd.Start(); err != nil {
			return err
		}
		for {
			resp, err := http.Get("http://" + addr + "/readyz")
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode == 200 {
					break
				}
			}
			if time.Since(begin) > 10*time.Second {
				cmd.Process.Kill()
				return fmt.Errorf("the server did not get ready: %v", err)
			}
			time.Sleep(time.Millisecond)
		}
		if i > 0 { // the first start creates the database
			starts = append(starts, float64(time.Since(begin).Milliseconds()))
		}
		time.Sleep(2 * time.Second)
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
		if err == nil {
			for line := range strings.SplitSeq(string(status), "\n") {
				if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
					rss, _ = strconv.Atoi(strings.Fields(v)[0])
				}
			}
		}
		cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			return err
		}
		http.DefaultClient.CloseIdleConnections()
	}
	row("start until ready, existing database", "%.0f ms (to reach: under 200)", median(starts))
	row("idle memory (resident)", "%.0f MB (to reach: under 60)", float64(rss)/1024)
	row("binary", "%.1f MB", float64(info.Size())/1e6)
	return nil
}
