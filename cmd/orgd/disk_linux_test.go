package main

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// A process that was killed leaves a write-ahead log, and others fill the disk
// before the next start. That takes the space that the spool keeps for later; where
// it has none, it waits, says how many bytes have to be freed, and goes on as soon as
// they are. Nothing that was acknowledged is lost.
func TestAStartOnADiskThatOthersHaveFilled(t *testing.T) {
	for _, size := range []int64{32, 64} {
		for _, spare := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d MiB, spare %v", size, spare), func(t *testing.T) {
				disk := testkit.NewDisk(t, fmt.Sprint(size))
				dir := filepath.Join(disk.Dir, "data")
				p := startProcess(t, dir)
				if status, b, err := p.do("POST", "/orgs", `{"id":"r","name":"Root"}`); status != 201 {
					t.Fatalf("%d %s %v", status, b, err)
				}
				// The log is as long as it gets, and more of it is new than the database has.
				random := rand.NewChaCha8([32]byte{})
				made := 0
				for file(t, dir, "orgd.db-wal") < size<<20/16*3/4 || file(t, dir, "orgd.db") > 1<<20 && made < 400 {
					b := make([]byte, 12<<10)
					random.Read(b)
					body := fmt.Sprintf(`{"id":"o%d","name":"O","customizations":{"f":%q}}`, made, base64.StdEncoding.EncodeToString(b))
					if status, b, err := p.do("POST", "/orgs/r/children", body); status != 201 {
						t.Fatalf("%d %s %v", status, b, err)
					}
					made++
				}
				p.cmd.Process.Kill()
				<-p.ended
				if !spare {
					if err := os.Remove(filepath.Join(dir, "spool", "spare")); err != nil {
						t.Fatal(err)
					}
				}
				disk.Fill()

				address := freeAddresses(t, 1)[0]
				cmd := exec.Command(orgdProgram(t), "serve", "--data-dir", dir, "--listen", address)
				log := &strings.Builder{}
				cmd.Stderr = log
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				go func() { ended <- cmd.Wait() }()
				t.Cleanup(func() {
					cmd.Process.Kill()
					<-ended
				})
				p = &process{url: "http://" + address, key: p.key}
				// ready waits until /readyz says what it should.
				ready := func(want *regexp.Regexp) string {
					t.Helper()
					for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
						status, b, err := p.do("GET", "/readyz", "")
						said := fmt.Sprint(status, " ", string(b), err)
						if m := want.FindStringSubmatch(said); m != nil {
							return m[len(m)-1]
						}
						if time.Since(start) > 30*time.Second {
							t.Fatalf("/readyz: %s, want %s", said, want)
						}
					}
				}
				if !spare {
					needs, err := strconv.ParseInt(ready(regexp.MustCompile(`^503 .*its disk is full, and at least (\d+) bytes have to be freed`)), 10, 64)
					if err != nil || needs < 1 || needs > size<<20/4 {
						t.Fatalf("%d bytes have to be freed, %v", needs, err)
					}
					if status, b, err := p.do("GET", "/orgs/r", ""); status != http.StatusServiceUnavailable {
						t.Errorf("%d %s %v", status, b, err)
					}
					if status, b, err := p.do("GET", "/healthz", ""); status != 200 {
						t.Errorf("%d %s %v", status, b, err)
					}
					fill := filepath.Join(disk.Dir, "fill")
					info, err := os.Stat(fill)
					if err != nil {
						t.Fatal(err)
					}
					// A page of the file stays where it ends within one.
					if err := os.Truncate(fill, (info.Size()-needs)&^4095); err != nil {
						t.Fatal(err)
					}
					t.Logf("%d bytes were freed, as it said; the log had %d, the database %d", needs, file(t, dir, "orgd.db-wal"), file(t, dir, "orgd.db"))
				}
				ready(regexp.MustCompile(`^200 `))
				check := func() {
					t.Helper()
					for i := range made {
						if status, b, err := p.do("GET", fmt.Sprint("/orgs/o", i), ""); status != 200 {
							t.Fatalf("organization %d of %d: %d %s %v", i, made, status, b, err)
						}
					}
				}
				check()
				disk.Free()
				for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
					if status, b, err := p.do("POST", "/orgs/r/children", `{"id":"after","name":"O"}`); status == 201 {
						break
					} else if time.Since(start) > 20*time.Second {
						t.Fatalf("%d %s %v", status, b, err)
					}
				}
				check()
				if status, b, err := p.do("GET", "/orgs/r/access_log?limit=1", ""); status != 200 {
					t.Errorf("%d %s %v", status, b, err)
				}
			})
		}
	}
}

func file(t *testing.T, dir, name string) int64 {
	t.Helper()
	info, err := os.Stat(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
