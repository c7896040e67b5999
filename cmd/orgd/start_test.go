//go:build unix

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orgd/orgd/internal/testkit"
)

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// fetch makes a GET; the status is 0 if there is no answer.
func fetch(url string) (status int, header http.Header, body string) {
	resp, err := (&http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}).Get(url)
	if err != nil {
		return 0, nil, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, nil, err.Error()
	}
	return resp.StatusCode, resp.Header, string(b)
}

// While the database cannot be opened, here because another process has the
// lock of migrations, the process is live on all of its listeners, is not ready
// and says why, and answers when it is. A signal ends it meanwhile.
func TestLiveBeforeReady(t *testing.T) {
	ctx := context.Background()
	database := testkit.Postgres(t)
	other, err := pgx.Connect(ctx, database)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(ctx)
	for _, ends := range []bool{true, false} {
		if _, err := other.Exec(ctx, `SELECT pg_advisory_lock(4097083626)`); err != nil {
			t.Fatal(err)
		}
		dir, api, proxies, admin := t.TempDir(), freeAddress(t), freeAddress(t), freeAddress(t)
		started := make(chan *process, 1)
		cmd := exec.Command(orgdProgram(t), "serve", "--data-dir", dir, "--database", database, "--base-path", "/api/v1",
			"--listen", api, "--forward-auth-listen", proxies, "--admin-listen", admin)
		cmd.Env = append(cmd.Environ(), "ORGD_AUDIT_KEY="+strings.Repeat("5e", 32))
		go func() { started <- startCommand(t, dir, cmd) }()
		waitFor(t, "the process lives", func() bool {
			status, _, _ := fetch("http://" + api + "/healthz")
			return status == 200
		})
		for _, address := range []string{api, proxies, admin} {
			if status, _, body := fetch("http://" + address + "/healthz"); status != 200 || body != `{"status":"ok"}` {
				t.Errorf("/healthz is %d %s", status, body)
			}
			for _, path := range []string{"/readyz", "/api/v1/readyz", "/orgs", "/forward_auth?permission=app:x", "/metrics", "/", "/docs"} {
				status, header, body := fetch("http://" + address + path)
				if status != 503 || header.Get("Retry-After") == "" || header.Get("X-Request-Id") == "" || !strings.Contains(body, `"code":"unavailable"`) || !strings.Contains(body, "The server is starting and not ready") {
					t.Errorf("%s is %d %v %s", path, status, header, body)
				}
			}
		}
		if status, _, _ := fetch("http://" + api + "/api/v1/healthz"); status != 200 {
			t.Errorf("/healthz below the base path is %d", status)
		}
		waitFor(t, "/readyz says why", func() bool {
			_, _, body := fetch("http://" + api + "/readyz")
			return strings.Contains(body, "another process migrates the database")
		})
		if ends {
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			p := <-started
			<-p.ended
			if log := p.log.String(); p.err != nil || !strings.Contains(log, "stopped before it was ready") {
				t.Errorf("a signal ends it with %v\n%s", p.err, log)
			}
		}
		if _, err := other.Exec(ctx, `SELECT pg_advisory_unlock_all()`); err != nil {
			t.Fatal(err)
		}
		if !ends {
			p := <-started
			if status, b, err := p.do("GET", "/orgs", ""); status != 200 {
				t.Errorf("%d %s %v", status, b, err)
			}
			if status, _, body := fetch("http://" + proxies + "/readyz"); status != 200 {
				t.Errorf("/readyz is %d %s", status, body)
			}
		}
	}
}

// With --shutdown-delay a signal makes /readyz 503 and nothing else: requests are
// answered, on connections that are given up afterwards, until the delay is over.
// A second signal ends the process at once.
func TestShutdownDelay(t *testing.T) {
	p := startProcess(t, t.TempDir(), "--shutdown-delay", "2s", "--base-path", "/api/v1")
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	begun := time.Now()
	p.signal(t, syscall.SIGTERM)
	waitFor(t, "/readyz is 503", func() bool {
		status, _, body := fetch(p.url + "/readyz")
		return status == 503 && strings.Contains(body, "shutting down")
	})
	for path, want := range map[string]int{"/healthz": 200, "/api/v1/readyz": 503, "/orgs": 401, "/docs": 200} {
		if status, header, body := fetch(p.url + path); status != want {
			t.Errorf("%s is %d %v %s", path, status, header, body)
		}
	}
	// A connection that was idle when the signal came is not lost.
	fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: orgd\r\n\r\n")
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 ") || !strings.Contains(string(answer), "\r\nConnection: close\r\n") {
		t.Errorf("a connection from before the signal: %q %v", answer, err)
	}
	if <-p.ended; p.err != nil || !strings.HasSuffix(p.log.String(), " msg=stopped\n") {
		t.Errorf("it ended with %v\n%s", p.err, p.log)
	}
	if took := time.Since(begun); took < 2*time.Second || took > 15*time.Second {
		t.Errorf("it ended after %s", took)
	}

	p = startProcess(t, t.TempDir(), "--shutdown-delay", "1h")
	p.signal(t, syscall.SIGTERM)
	waitFor(t, "/readyz is 503", func() bool {
		status, _, _ := fetch(p.url + "/readyz")
		return status == 503
	})
	begun = time.Now()
	p.signal(t, syscall.SIGTERM)
	if <-p.ended; p.err == nil || time.Since(begun) > 10*time.Second {
		t.Errorf("after a second signal it ended in %s with %v", time.Since(begun), p.err)
	}
}
