package api_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/testkit"
)

// largePage is what a page may have: its megabyte, and the row that goes beyond.
const largePage = 1<<20 + 200_000

// importLarge makes the root r with n children whose settings have up to 60 KB.
func importLarge(t *testing.T, s *testkit.Server, n int) (ids []string) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	rows := `{"id":"r","name":"R"}` + "\n"
	for i := range n {
		id := fmt.Sprintf("c%03d", i)
		rows += fmt.Sprintf(`{"id":"%s","parent_id":"r","name":"Child","tags":["red"],"customizations":{"a":"%s"}}`, id, strings.Repeat("x", rnd.IntN(2)*55_000+rnd.IntN(5000))) + "\n"
		ids = append(ids, id)
	}
	s.Must(200, "POST", "/orgs/import", s.OperatorKey, rows, "Content-Type", "application/x-ndjson")
	return ids
}

// patch changes an organization, without a look at the description of the API:
// there are many changes, and they are large.
func patch(t *testing.T, s *testkit.Server, path, body string) {
	t.Helper()
	req, err := http.NewRequest("PATCH", s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.OperatorKey)
	req.Header.Set("Content-Type", "application/merge-patch+json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
		t.Fatalf("PATCH %s: status %d, %v", path, resp.StatusCode, err)
	}
}

// A list of large things has short pages, whatever the limit is, and following
// its links gives everything once.
func TestPagesAreBoundedInBytes(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s := testkit.Start(t, engine)
			op := s.OperatorKey
			ids := importLarge(t, s, 90)
			now := url.QueryEscape(time.Now().Add(-time.Millisecond).UTC().Format(time.RFC3339Nano))
			for _, path := range []string{
				"/orgs/r/children?limit=1000", "/orgs/r/descendants?limit=1000", "/orgs?tag=red&limit=1000", "/orgs?name=child&limit=1000",
				"/orgs/r/descendants?limit=1000&as_of=" + now,
			} {
				var got []string
				n := 0
				for next := path; next != ""; n++ {
					a := s.Must(200, "GET", next, op, "")
					if len(a.Body) > largePage {
						t.Fatalf("%s: a page of %d bytes", path, len(a.Body))
					}
					var page []struct {
						ID string `json:"id"`
					}
					if err := json.Unmarshal(a.Body, &page); err != nil {
						t.Fatal(err)
					}
					for _, o := range page {
						got = append(got, o.ID)
					}
					next = testkit.NextPage(a)
				}
				if slices.Sort(got); !slices.Equal(got, ids) || n < 3 {
					t.Errorf("%s: %d organizations in %d pages, of %d", path, len(got), n, len(ids))
				}
			}
			for _, format := range []string{"json", "ndjson"} {
				var got []string
				n := 0
				for next := "/orgs/r/children_audit?limit=1000&action=organization.created&format=" + format; next != ""; n++ {
					a := s.Must(200, "GET", next, op, "")
					if len(a.Body) > largePage {
						t.Fatalf("%s: a page of %d bytes", format, len(a.Body))
					}
					list := a.Body
					if format == "ndjson" {
						list = []byte("[" + strings.ReplaceAll(strings.TrimSpace(string(a.Body)), "\n", ",") + "]")
					}
					var page []struct {
						OrgID string `json:"org_id"`
					}
					if err := json.Unmarshal(list, &page); err != nil {
						t.Fatal(err)
					}
					for _, e := range page {
						got = append(got, e.OrgID)
					}
					next = testkit.NextPage(a)
				}
				if slices.Sort(got); !slices.Equal(got, append(slices.Clone(ids), "r")) || n < 3 {
					t.Errorf("audit entries as %s: %d in %d pages", format, len(got), n)
				}
			}
		})
	}
}

// An answer about the past, or about where settings come from, takes what it
// shows and is refused where that is too much.
func TestPastAndSourcesAreBounded(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s := testkit.Start(t, engine)
			op := s.OperatorKey
			s.Must(201, "POST", "/orgs", op, `{"id":"r","name":"R"}`)
			const changes = 20
			var middle time.Time
			for n := range changes {
				if n == changes/2 {
					middle = time.Now()
				}
				patch(t, s, "/orgs/r", fmt.Sprintf(`{"customizations":{"large":"%s"}}`, strings.Repeat(fmt.Sprint(n%10), 60_000)))
			}
			for _, path := range []string{"/orgs/r?as_of=", "/orgs/r/customizations?as_of="} {
				a := s.Must(200, "GET", path+url.QueryEscape(middle.UTC().Format(time.RFC3339Nano)), op, "")
				if got, want := a.String("customizations", "large"), strings.Repeat(fmt.Sprint((changes/2-1)%10), 60_000); got != want {
					t.Errorf("%s: %d letters %.1s, want %.1s", path, len(got), got, want)
				}
			}
			// Now each change has something that counts.
			for n := range 320 { // 110 KB each, the old value and the new one
				patch(t, s, "/orgs/r", fmt.Sprintf(`{"customizations":{"large":"%s","k%d":%d}}`, strings.Repeat(fmt.Sprint(n%10), 55_000), n, n))
			}
			asOf := "as_of=" + url.QueryEscape(time.Now().UTC().Format(time.RFC3339Nano))
			for _, path := range []string{"/orgs/r?", "/orgs/r/customizations?", "/orgs/r/customizations?explain=true&"} {
				a := s.Must(409, "GET", path+asOf, op, "")
				if !strings.Contains(a.String("detail"), "32 MiB") {
					t.Errorf("%s: %s", path, a.Body)
				}
			}

			deep := strings.Repeat(`{"`+strings.Repeat("n", 1000)+`":`, 30) + "{"
			for n := range 3000 {
				deep += fmt.Sprintf(`"m%d":0,`, n)
			}
			deep = strings.TrimSuffix(deep, ",") + strings.Repeat("}", 31)
			s.Must(201, "POST", "/orgs", op, `{"id":"deep","name":"Deep","customizations":`+deep+`}`)
			if a := s.Must(409, "GET", "/orgs/deep/customizations?explain=true", op, ""); !strings.Contains(a.String("fix"), "explain") {
				t.Errorf("where each of many settings comes from: %s", a.Body)
			}
			s.Must(200, "GET", "/orgs/deep/customizations", op, "")
		})
	}
}

// Reads whose cost their caller chooses leave room for others: however many run,
// a single organization, a key, a decision and the state of the server are
// answered, and who waits for room stops when its client does.
func TestHeavyReadsLeaveRoom(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s := testkit.Start(t, engine)
			s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"r","name":"R"}`)
			secret, _ := s.NewKey("r", `"permissions":["read"]`)
			hold := func(read func(context.Context, func(org.View) error) error, n int) (release func()) {
				t.Helper()
				ctx, cancel := context.WithCancel(context.Background())
				var held sync.WaitGroup
				started := make(chan struct{}, n)
				for range n {
					held.Go(func() {
						read(ctx, func(org.View) error {
							started <- struct{}{}
							<-ctx.Done()
							return nil
						})
					})
				}
				<-started
				return func() { cancel(); held.Wait() }
			}
			within := func(path, key string) *testkit.Answer {
				t.Helper()
				began := time.Now()
				a := s.Do("GET", path, key, "")
				if took := time.Since(began); took > 4*time.Second {
					t.Errorf("%s took %v", path, took)
				}
				return a
			}

			release := hold(s.Store.ReadHeavy, 64)
			for _, id := range []string{"new", "newer"} { // in no cache
				s.Must(201, "POST", "/orgs/r/children", s.OperatorKey, `{"id":"`+id+`","name":"New"}`)
				if a := within("/orgs/"+id, secret); a.Status != 200 {
					t.Errorf("an organization: %d", a.Status)
				}
			}
			if a := within("/forward_auth", secret); a.Status != 200 {
				t.Errorf("a decision: %d", a.Status)
			}
			if a := within("/readyz", ""); a.Status != 200 {
				t.Errorf("ready: %d", a.Status)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			req, err := http.NewRequestWithContext(ctx, "GET", s.URL+"/orgs/r/children", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+secret)
			if resp, err := http.DefaultClient.Do(req); err == nil {
				resp.Body.Close()
				t.Error("a list was answered while there was no room")
			}
			cancel()
			release()
			if a := within("/orgs/r/children", secret); a.Status != 200 {
				t.Errorf("a list: %d", a.Status)
			}

			// Whatever holds all connections, the state of the server shows.
			release = hold(s.Store.Read, 64)
			for _, path := range []string{"/readyz", "/healthz", "/service_status"} {
				if a := within(path, ""); a.Status != 200 {
					t.Errorf("%s: %d", path, a.Status)
				}
			}
			release()
		})
	}
}

// heap returns how many bytes are in use once all that can be is freed.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// Streams that have sent large pages and have nothing to send hold little.
func TestIdleStreamsHoldLittle(t *testing.T) {
	const streams, entries = 40, 60
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s := testkit.Start(t, engine)
			began := url.QueryEscape(time.Now().UTC().Format(time.RFC3339Nano))
			s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"r","name":"R"}`)
			secret, _ := s.NewKey("r", `"permissions":["audit:read"]`)
			for n := range entries {
				patch(t, s, "/orgs/r", fmt.Sprintf(`{"customizations":{"large":"%s"}}`, strings.Repeat(fmt.Sprint(n%10), 60_000)))
			}
			before := heap()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var whole, closed sync.WaitGroup
			for range streams {
				whole.Add(1)
				closed.Go(func() {
					done := sync.OnceFunc(whole.Done)
					defer done()
					req, err := http.NewRequestWithContext(ctx, "GET", s.URL+"/orgs/r/children_audit?follow=true&from="+began, nil)
					if err != nil {
						t.Error(err)
						return
					}
					req.Header.Set("Authorization", "Bearer "+secret)
					resp, err := http.DefaultClient.Do(req)
					if err != nil {
						t.Error(err)
						return
					}
					defer resp.Body.Close()
					var b [4096]byte
					for n := 0; ; {
						k, err := resp.Body.Read(b[:])
						if n += k; n > (2*entries-1)*60_000 {
							done() // all but what belongs to no value
						}
						if err != nil {
							if err != io.EOF && ctx.Err() == nil {
								t.Error(err)
							}
							return
						}
					}
				})
			}
			whole.Wait()
			time.Sleep(time.Second)
			if grown := heap() - before; grown > streams*256<<10 {
				t.Errorf("%d streams hold %d KiB each", streams, grown/streams>>10)
			}
			cancel()
			closed.Wait()
		})
	}
}
