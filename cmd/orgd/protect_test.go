package main

import (
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// The README's way to protect an API works as it is written, but for the
// ports.
func TestReadmeProtectAnAPI(t *testing.T) {
	testkit.Programs(t, "curl", "nginx")
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(readme), "<!-- protect an API")
	blocks := regexp.MustCompile("(?s)```(sh|nginx)\n(.*?)```").FindAllStringSubmatch(text, 4)
	if !found || len(blocks) != 4 || blocks[2][1] != "nginx" {
		t.Fatal("the README does not say how to protect an API")
	}
	free := freeAddresses(t, 4)
	ports := strings.NewReplacer("127.0.0.1:8080", free[0], "127.0.0.1:8000", free[1], "127.0.0.1:9000", free[2], "127.0.0.1:8081", free[3])
	serve, setup, conf, session := ports.Replace(blocks[0][2]), blocks[1][2], ports.Replace(blocks[2][2]), ports.Replace(blocks[3][2])

	dir := t.TempDir()
	env := append(os.Environ(), "ORGD_URL=http://"+free[0], "ORGD_LISTEN="+free[0], "PWD="+dir)
	orgd := exec.Command("sh", "-c", "exec "+serve)
	orgd.Dir, orgd.Env = dir, env
	if err := orgd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		orgd.Process.Signal(syscall.SIGTERM)
		if err := orgd.Wait(); err != nil {
			t.Error(err)
		}
	})
	waitFor(t, "orgd is ready", func() bool {
		resp, err := http.Get("http://" + free[0] + "/readyz")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusOK
	})

	// Where this machine lets a test write.
	conf = strings.Replace(conf, "http {", "http {\n\taccess_log off;", 1)
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		conf = strings.Replace(conf, "http {", "http {\n\t"+kind+"_temp_path "+dir+"/"+kind+";", 1)
	}
	// The product takes fields with underscores too, and says all that it is
	// told of whose request it is.
	const product = `location / { return 200 "Hello $http_x_orgd_org_id`
	if !strings.Contains(conf, product) {
		t.Fatal("the README has another product")
	}
	conf = strings.Replace(conf, product, `underscores_in_headers on; location / { return 200 "$request_uri $http_x_orgd_root_id,$http_x_orgd_path,$http_x_orgd_key_id,$http_x_orgd_permissions Hello $http_x_orgd_org_id`, 1)
	if err := os.WriteFile(filepath.Join(dir, "protect.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	started := false
	t.Cleanup(func() {
		if !started {
			return
		}
		stop := exec.Command("nginx", "-p", dir, "-c", "protect.conf", "-s", "stop")
		if out, err := stop.CombinedOutput(); err != nil {
			t.Errorf("nginx does not stop: %v: %s", err, out)
		}
	})

	sh := func(script string) string {
		t.Helper()
		cmd := exec.Command("sh", "-e", "-c", script)
		cmd.Dir, cmd.Env = dir, env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
		return string(out)
	}
	vars := sh(setup + `echo "ORGD_KEY=$ORGD_KEY; export ORGD_KEY; key=$key"`)
	vars = vars[strings.LastIndex(vars, "ORGD_KEY="):]
	lines := strings.Split(session, "\n")
	checked := 0
	for i, line := range lines {
		if line == "" || line[0] == '#' {
			continue
		}
		if strings.HasPrefix(line, "nginx ") {
			sh(line)
			started = true
			waitFor(t, "nginx listens", func() bool {
				c, err := net.Dial("tcp", free[1])
				if err == nil {
					c.Close()
				}
				return err == nil
			})
			continue
		}
		out := sh(vars + line)
		want, ok := strings.CutPrefix(lines[i+1], "#> ")
		if !ok {
			t.Fatalf("the README does not say what this answers: %s", line)
		}
		checkAnswer(t, line, out, want)
		checked++
	}
	if checked != 6 {
		t.Errorf("%d commands were checked", checked)
	}

	// What clients may not do to it.
	sh(vars + "orgd usage limits delete acme api_calls")
	keyID := regexp.MustCompile(`key_[0-9a-z]+`).FindString(sh(vars + "orgd key list acme"))
	ask := func(target, headers string) string {
		t.Helper()
		c, err := net.Dial("tcp", free[1])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		secret := strings.TrimSpace(sh(vars + `printf %s "$key"`))
		io.WriteString(c, "GET "+target+" HTTP/1.1\r\nHost: api\r\nConnection: close\r\nAuthorization: Bearer "+secret+"\r\n"+headers+"\r\n")
		b, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	want := "/orders acme,acme," + keyID + ",app:orders:read Hello acme"
	for _, headers := range []string{"",
		"X-Orgd-Org-Id: forged\r\nX-Orgd-Root-Id: forged\r\nX-Orgd-Path: forged\r\nX-Orgd-Key-Id: forged\r\nX-Orgd-Permissions: forged\r\n",
		"X_Orgd_Org_Id: forged\r\nX_Orgd_Root_Id: forged\r\nX_Orgd_Path: forged\r\nX_Orgd_Key_Id: forged\r\nX_Orgd_Permissions: forged\r\n",
		"Connection: X-Orgd-Org-Id, X-Orgd-Key-Id\r\nx-orgd_path: forged\r\n"} {
		if got := ask("/orders", headers); !strings.Contains(got, want) || strings.Contains(got, "forged") {
			t.Errorf("with %q the product got %s", headers, got)
		}
	}
	for _, target := range []string{"/a/../orders", "/orders/%2e%2e/a", "/orders;x", "/orders%2fa", "//orders", "/a\\..\\orders", "/orders/..%253b"} {
		if got := ask(target, ""); !strings.HasPrefix(got, "HTTP/1.1 400 ") {
			t.Errorf("%s is answered with %s", target, got)
		}
	}
}

// freeAddresses returns n different addresses on which nothing listens.
func freeAddresses(t *testing.T, n int) []string {
	t.Helper()
	var addresses []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addresses = append(addresses, l.Addr().String())
	}
	return addresses
}

// waitFor returns once a condition holds.
func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for begin := time.Now(); time.Since(begin) < 20*time.Second; time.Sleep(20 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("it never happens that %s", what)
}
