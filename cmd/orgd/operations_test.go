package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/orgd/orgd/internal/testkit"
)

// The configurations that docs/operations.md gives for orgd's own API let no
// client near what is for proxies and operators, whatever path it writes.
func TestOperationsReverseProxy(t *testing.T) {
	program := testkit.Programs(t, "nginx")[0]
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```nginx\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(blocks) != 2 {
		t.Fatalf("docs/operations.md has %d configurations for nginx", len(blocks))
	}
	for _, tt := range []struct {
		name   string
		flags  []string
		blocks string
	}{
		{"listeners of their own", []string{"--forward-auth-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"}, blocks[0][1]},
		{"blocked in the proxy", nil, blocks[0][1] + blocks[1][1]},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startProcess(t, t.TempDir(), append(tt.flags, "--trusted-proxies", "127.0.0.1/32")...)
			must := func(method, path, body string) []byte {
				t.Helper()
				status, answer, err := p.do(method, path, body)
				if err != nil || status >= 300 {
					t.Fatalf("%s %s: %d %s %v", method, path, status, answer, err)
				}
				return answer
			}
			must("POST", "/orgs", `{"id":"acme","name":"Acme"}`)
			var made struct{ Secret string }
			if err := json.Unmarshal(must("POST", "/orgs/acme/api_keys", `{"name":"Reader","permissions":["read"]}`), &made); err != nil {
				t.Fatal(err)
			}
			front, dir := freeAddresses(t, 1)[0], t.TempDir()
			conf := "daemon off; master_process off; pid nginx.pid; error_log stderr; events {}\nhttp {\naccess_log off;\n"
			for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
				conf += kind + "_temp_path " + dir + "/" + kind + ";\n"
			}
			conf += "server {\nlisten " + front + ";\n" + strings.ReplaceAll(tt.blocks, "http://127.0.0.1:8080", p.url) + "}\n}\n"
			if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(conf), 0o600); err != nil {
				t.Fatal(err)
			}
			nginx := exec.Command(program, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", "stderr")
			if err := nginx.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				nginx.Process.Signal(syscall.SIGTERM)
				nginx.Wait()
			})
			waitFor(t, "nginx listens", func() bool {
				c, err := net.Dial("tcp", front)
				if err == nil {
					c.Close()
				}
				return err == nil
			})
			get := func(target string) string {
				t.Helper()
				c, err := net.Dial("tcp", front)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: orgd\r\nConnection: close\r\nAuthorization: Bearer %s\r\n\r\n", target, made.Secret)
				b, err := io.ReadAll(c)
				if err != nil {
					t.Fatal(err)
				}
				return string(b)
			}
			if got := get("/orgs/acme"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
				t.Errorf("the API answers with %s", got)
			}
			const forged = "/forward_auth;meter=api_calls;quantity=999995;action=ADMIN_LOGIN"
			for _, target := range []string{
				forged + "/../org", forged + "/x/../../org", forged + "/%2e%2e/org", forged + "/.%2e/org", forged + "/..%2forg", forged + "%2f..%2forg/x", forged + "//../../org", forged + "/./../org",
				forged + "/..;/org", forged + "/..%3b/org", forged + "/..%5corg", forged + `/..\org`, forged + "/%252e%252e/org", forged + "/x", forged,
				"/forward_auth?meter=api_calls&quantity=999995&action=ADMIN_LOGIN", "/org/../forward_auth?meter=api_calls&quantity=999995&action=ADMIN_LOGIN", "//forward_auth?action=ADMIN_LOGIN", "/%66orward_auth?action=ADMIN_LOGIN",
				"/forward_auth/../org?action=ADMIN_LOGIN", "/forward_auth%3baction=ADMIN_LOGIN/../org",
				"/metrics", "/service_status", "/metrics/../metrics", "//metrics", "/%6detrics", "/metrics?x", "/./service_status", "/metrics;/../org", "/service_status/..%2forg",
			} {
				if got := get(target); !strings.HasPrefix(got, "HTTP/1.1 400 ") && !strings.HasPrefix(got, "HTTP/1.1 404 ") {
					t.Errorf("%s is answered with %s", target, got)
				}
			}
			if log := must("GET", "/orgs/acme/access_log?limit=1000", ""); strings.Contains(string(log), "ADMIN_LOGIN") || strings.Contains(string(log), "FORWARD_AUTH") {
				t.Errorf("a client wrote into the access log: %s", log)
			}
			var used struct {
				Meters map[string]struct{ Own float64 }
			}
			if err := json.Unmarshal(must("GET", "/orgs/acme/consumption", ""), &used); err != nil || used.Meters["api_calls"].Own < 1 || used.Meters["api_calls"].Own > 100 {
				t.Errorf("a client counted %+v, %v", used, err)
			}
		})
	}
}
