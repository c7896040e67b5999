package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/client"
	"github.com/orgd/orgd/cmd/orgd/weblog"
	"github.com/orgd/orgd/internal/testkit"
)

const apacheLog = "weblog/testdata/apache_access.log"

// run runs the command line against a server.
func run(t *testing.T, s *testkit.Server, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := newRoot()
	cmd.SetArgs(append(args, "--url", s.URL, "--key", s.OperatorKey))
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatalf("orgd %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return out.String()
}

// awkCounts returns what awk counts in the real log, by a key made from the
// fields of a line.
func awkCounts(t *testing.T, key string) map[string]int {
	t.Helper()
	out, err := exec.Command(testkit.Programs(t, "awk")[0], fmt.Sprintf(`{ n[%s]++ } END { for (k in n) print k, n[k] }`, key), apacheLog).Output()
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for line := range strings.Lines(string(out)) {
		var name string
		var n int
		if _, err := fmt.Sscan(line, &name, &n); err != nil {
			t.Fatalf("awk says %q", line)
		}
		counts[name] = n
	}
	return counts
}

// A real log of 10,000 lines: the access log counts what awk counts, by
// status, address and day, and nothing changes when the log comes again in
// another order or with events that are sent twice.
func TestImportOfARealLog(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s := testkit.Start(t, engine)
			run(t, s, "org", "create", "Acme", "--id", "acme")
			run(t, s, "access", "retention", "acme", "--days", "30000")
			if out := run(t, s, "access", "import", "--org", "acme", apacheLog, "-o", "json"); out != "{\"accepted\":10000,\"duplicates\":0,\"bad_lines\":0}\n" {
				t.Fatalf("the import says %s", out)
			}
			export := func() string {
				lines := strings.Split(strings.TrimSpace(run(t, s, "access", "export", "acme")), "\n")
				// The calls that this test itself makes are in the log too.
				lines = slices.DeleteFunc(lines, func(l string) bool { return !strings.HasPrefix(l, `{"id":"log_`) })
				return strings.Join(lines, "\n")
			}
			first := export()
			status, address, day := map[string]int{}, map[string]int{}, map[string]int{}
			var events []client.NewAccessEvent
			for line := range strings.SplitSeq(first, "\n") {
				var e client.AccessEvent
				if err := json.Unmarshal([]byte(line), &e); err != nil {
					t.Fatal(err)
				}
				status[e.Status]++
				address[e.IP]++
				day[e.Timestamp.UTC().Format("02/Jan/2006")]++
				events = append(events, client.NewAccessEvent{ID: e.ID, Timestamp: e.Timestamp, User: e.User, Action: e.Action, Status: e.Status})
			}
			for _, c := range []struct {
				what string
				got  map[string]int
				key  string
			}{
				{"status", status, `$9 == 401 || $9 == 403 ? "DENIED" : $9 >= 400 ? "FAILURE" : "SUCCESS"`},
				{"address", address, `$1`},
				{"day", day, `substr($4, 2, 11)`}, // the log is in UTC
			} {
				want := awkCounts(t, c.key)
				if len(c.got) != len(want) {
					t.Errorf("%s: %d different, awk finds %d", c.what, len(c.got), len(want))
				}
				for k, n := range want {
					if c.got[k] != n {
						t.Errorf("%s %s: %d, awk counts %d", c.what, k, c.got[k], n)
					}
				}
			}

			random := rand.New(rand.NewPCG(1, 2))
			text, err := os.ReadFile(apacheLog)
			if err != nil {
				t.Fatal(err)
			}
			lines := slices.Collect(strings.Lines(string(text)))
			random.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
			shuffled := filepath.Join(t.TempDir(), "shuffled.log")
			if err := os.WriteFile(shuffled, []byte(strings.Join(lines, "")), 0o600); err != nil {
				t.Fatal(err)
			}
			if out := run(t, s, "access", "import", "--org", "acme", shuffled, "-o", "json"); out != "{\"accepted\":0,\"duplicates\":10000,\"bad_lines\":0}\n" {
				t.Errorf("the import in another order says %s", out)
			}
			events = append(events, events[:len(events)*3/10]...)
			random.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
			c := client.New(s.URL, s.OperatorKey)
			for batch := range slices.Chunk(events, 777) {
				got, err := c.SendAccessEvents(t.Context(), "acme", batch)
				if err != nil || got.Accepted != 0 || got.Duplicates != int64(len(batch)) {
					t.Fatalf("%+v, %v", got, err)
				}
			}
			if export() != first {
				t.Error("the access log has changed")
			}
		})
	}
}

// Real events that come shuffled, with 30% of them twice, in requests that
// overlap in time, are each stored once.
func TestShuffledEventsWithDuplicates(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s := testkit.Start(t, engine)
			run(t, s, "org", "create", "Acme", "--id", "acme")
			run(t, s, "access", "retention", "acme", "--days", "30000")
			f, err := os.Open(apacheLog)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			im := &webLogImport{orgID: "acme", seen: map[uint64]uint32{}}
			for line, err := range weblog.Lines(f) {
				if err != nil {
					t.Fatal(err)
				}
				im.add(&line)
			}
			events := append(slices.Clone(im.batch), im.batch[:len(im.batch)*3/10]...)
			random := rand.New(rand.NewPCG(3, 4))
			random.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
			c := client.New(s.URL, s.OperatorKey)
			type result struct {
				*client.Ingested
				error
			}
			results := make(chan result)
			n := 0
			for batch := range slices.Chunk(events, 500) {
				n++
				go func() {
					got, err := c.SendAccessEvents(t.Context(), "acme", batch)
					results <- result{got, err}
				}()
			}
			var accepted, duplicates int64
			for range n {
				r := <-results
				if r.error != nil {
					t.Fatal(r.error)
				}
				accepted, duplicates = accepted+r.Accepted, duplicates+r.Duplicates
			}
			if accepted != 10_000 || duplicates != 3_000 {
				t.Errorf("%d accepted, %d duplicates", accepted, duplicates)
			}
			stored := map[string]bool{}
			for e, err := range c.AccessLog(t.Context(), "acme", client.AccessQuery{To: time.Date(2016, 1, 1, 0, 0, 0, 0, time.UTC)}) {
				if err != nil {
					t.Fatal(err)
				}
				if stored[e.ID] {
					t.Errorf("the event %s is there twice", e.ID)
				}
				stored[e.ID] = true
			}
			for _, e := range im.batch {
				if !stored[e.ID] {
					t.Errorf("the event %s is missing", e.ID)
				}
			}
			if len(stored) != 10_000 {
				t.Errorf("%d events are stored", len(stored))
			}
		})
	}
}

// The command that follows the log prints the last accesses and then each
// further one once, also when the server was away in between.
func TestAccessTail(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	run(t, s, "org", "create", "Acme", "--id", "acme")
	for i := range 5 {
		s.Must(200, "GET", "/orgs/acme", s.OperatorKey, "", "X-Request-Id", fmt.Sprint("before-", i))
	}
	front := newFront(t, s.URL)
	out := &lines{}
	cmd := newRoot()
	cmd.SetArgs([]string{"access", "tail", "acme", "--action", "GET_ORG", "-n", "3", "-o", "json", "--url", front.url, "--key", s.OperatorKey})
	cmd.SetOut(out)
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(t.Context()) }()
	out.wait(t, 3)
	want := []string{"before-2", "before-3", "before-4"}
	for i := range 40 {
		if i%10 == 9 {
			front.cut()
		}
		id := fmt.Sprint("after-", i)
		s.Must(200, "GET", "/orgs/acme", s.OperatorKey, "", "X-Request-Id", id)
		want = append(want, id)
		time.Sleep(20 * time.Millisecond)
	}
	out.wait(t, len(want))
	time.Sleep(1500 * time.Millisecond)
	var got []string
	for _, line := range out.all() {
		var e client.AccessEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		got = append(got, e.RequestID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("printed %v, want %v", got, want)
	}
	select {
	case err := <-ended:
		t.Errorf("it has ended: %v", err)
	default:
	}
	s.Must(200, "DELETE", "/orgs/acme", s.OperatorKey, "")
	select {
	case err := <-ended:
		if err == nil || exitCode(err) != exitNotFound {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it goes on after the organization was deleted")
	}
}
