package server_test

import (
	"fmt"
	"path/filepath"
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
