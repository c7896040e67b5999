package server_test

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// On a full disk changes are refused and reads go on; with space again,
// changes go on too, without a restart. Nothing that was answered is lost.
func TestAFullDisk(t *testing.T) {
	disk := testkit.NewDisk(t, "64")
	s := testkit.Start(t, "sqlite", func(c *server.Config) { c.DataDir = filepath.Join(disk.Dir, "data") })
	s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"r","name":"Root"}`)
	key, _ := s.NewKey("r", `"permissions":["admin"]`)
	answered := map[string]bool{}
	n := 0
	get := func() {
		t.Helper()
		n++
		id := fmt.Sprintf("get-%d", n)
		s.Must(200, "GET", "/orgs/r", key, "", "X-Request-Id", id)
		answered[id] = true
	}
	patches := 0
	patch := func() int {
		a := s.Do("PATCH", "/orgs/r", key, fmt.Sprintf(`{"description":"change %d"}`, patches+1))
		if a.Status == 200 {
			patches++
		}
		return a.Status
	}
	for range 3 {
		if status := patch(); status != 200 {
			t.Fatalf("status %d on a disk with space", status)
		}
		disk.Fill()
		refused := 0
		for range 200 {
			get()
			if status := patch(); status == 507 || status == 503 {
				refused++
			} else if status != 200 {
				t.Fatalf("status %d on a full disk", status)
			}
		}
		// Some changes may still fit in what the database file has already.
		if refused == 0 {
			t.Error("a full disk took every change")
		}
		for _, path := range []string{"/orgs/r/children", "/orgs/r/customizations", "/orgs/r/children_audit", "/orgs", "/org", "/orgs/r/api_keys"} {
			s.Must(200, "GET", path, key, "")
		}
		// What was recorded cannot be stored now, and a log without it would
		// be wrong.
		for _, path := range []string{"/orgs/r/access_log", "/orgs/r/consumption"} {
			s.Must(503, "GET", path, key, "")
		}
		s.Must(200, "GET", "/healthz", "", "")
		disk.Free()
		for deadline := time.Now().Add(20 * time.Second); patch() != 200; {
			if time.Now().After(deadline) {
				t.Fatal("changes are refused although there is space again")
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	if got := s.Must(200, "GET", "/orgs/r", key, "").String("description"); got != fmt.Sprintf("change %d", patches) {
		t.Errorf("after %d acknowledged changes the description is %q", patches, got)
	}
	if err := s.Recorder.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for path := "/orgs/r/access_log?action=GET_ORG&limit=1000"; path != ""; {
		a := s.Must(200, "GET", path, key, "")
		events, _ := a.JSON().([]any)
		for _, e := range events {
			delete(answered, e.(map[string]any)["request_id"].(string))
		}
		path = testkit.NextPage(a)
	}
	if len(answered) > 0 {
		t.Errorf("%d answered requests are not in the access log", len(answered))
	}
}

// A small disk is for data: what orgd keeps beside it, the write-ahead log and the
// spool, leaves three quarters of it. On the way there nothing is refused for want
// of space. A disk that somebody else has filled, or the data, takes changes again as
// soon as there is space, without a restart.
func TestASmallDisk(t *testing.T) {
	for _, size := range []int64{32, 64, 128} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			disk := testkit.NewDisk(t, fmt.Sprint(size))
			disk.Fill()
			ballast := filepath.Join(disk.Dir, "ballast")
			if err := os.Rename(filepath.Join(disk.Dir, "fill"), ballast); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(ballast, size<<20/8); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(disk.Dir, "data")
			s := testkit.Start(t, "sqlite", func(c *server.Config) { c.DataDir = dir })
			s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"r","name":"Root"}`)
			key, _ := s.NewKey("r", `"permissions":["admin"]`)
			t.Cleanup(func() { // what waits for the database must find space
				os.Remove(ballast)
				os.Remove(filepath.Join(disk.Dir, "fill"))
			})
			const writers = 4
			for i := range writers {
				s.Must(201, "POST", "/orgs/r/children", key, fmt.Sprintf(`{"id":"o%d","name":"O","description":"0"}`, i))
			}
			made := [writers]int{}
			// change makes changes until one is refused or the database has grown to
			// so many bytes. It returns the answer that was a refusal, if there is one.
			change := func(until int64) (refused *testkit.Answer) {
				var wg sync.WaitGroup
				var refusal atomic.Pointer[testkit.Answer]
				for i := range writers {
					wg.Go(func() {
						filler := make([]byte, 6000)
						for refusal.Load() == nil && databaseSize(t, dir) < until {
							rand.Read(filler)
							a := s.Do("PATCH", fmt.Sprint("/orgs/o", i), key,
								fmt.Sprintf(`{"description":"%d","customizations":{"filler":%q}}`, made[i]+1, base64.StdEncoding.EncodeToString(filler)))
							if a.Status != 200 {
								refusal.Store(a)
								return
							}
							made[i]++
							s.Must(200, "GET", "/orgs/r", key, "")
						}
					})
				}
				wg.Wait()
				return refusal.Load()
			}
			wait := func(why string) {
				t.Helper()
				for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
					a := s.Do("PATCH", "/orgs/o0", key, fmt.Sprintf(`{"description":"%d"}`, made[0]+1))
					if a.Status == 200 {
						made[0]++
						return
					}
					if time.Now().After(deadline) {
						t.Fatalf("%s changes are refused: %s", why, a.Body)
					}
				}
			}
			check := func(when string) {
				t.Helper()
				for i, n := range made {
					if got := s.Must(200, "GET", fmt.Sprint("/orgs/o", i), key, "").String("description"); got != fmt.Sprint(n) {
						t.Errorf("%s organization %d has %s, and %d changes were acknowledged", when, i, got, n)
					}
				}
			}

			if a := change(size << 20 * 3 / 10); a != nil {
				t.Fatalf("with %d bytes of data: %d %s", databaseSize(t, dir), a.Status, a.Body)
			}
			check("before")
			disk.Fill()
			if a := change(1 << 60); a.Status != 507 && a.Status != 503 {
				t.Errorf("on a full disk: %d %s", a.Status, a.Body)
			}
			check("on a full disk")
			disk.Free()
			wait("with the space back")
			check("with the space back")

			a := change(1 << 60)
			if used := databaseSize(t, dir); used < size<<20*5/8 {
				t.Errorf("with %.1f of %d MiB of data: %d %s", float64(used)/(1<<20), size, a.Status, a.Body)
			} else {
				t.Logf("%.1f of %d MiB are data when the disk is full", float64(used)/(1<<20), size)
			}
			check("with a disk full of data")
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
			wait("with more space")
			check("with more space")
		})
	}
}

func databaseSize(t *testing.T, dir string) int64 {
	info, err := os.Stat(filepath.Join(dir, "orgd.db"))
	if err != nil {
		t.Error(err)
		return 1 << 62
	}
	return info.Size()
}
