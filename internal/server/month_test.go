package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/usage"
)

// monthClock is a clock that servers share and a test moves.
type monthClock struct{ micros atomic.Int64 }

func (c *monthClock) set(at string) {
	t, err := time.Parse(time.RFC3339, at)
	if err != nil {
		panic(err)
	}
	c.micros.Store(t.UnixMicro())
}

func (c *monthClock) now() time.Time { return time.UnixMicro(c.micros.Load()).UTC() }

// crash leaves n requests of the organization r in the spool of a server, and
// ends it as kill -9 does.
func crash(t *testing.T, s *testkit.Server, at time.Time, n int) {
	t.Helper()
	if err := s.Recorder.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range n {
		if err := s.Recorder.Record(access.Record{Usage: []access.Usage{{RootID: "r", Path: "r/", At: at, Meter: usage.APICalls, Quantity: usage.One}}}); err != nil {
			t.Fatal(err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Recorder.Close(gone); err == nil {
		t.Fatal("all was stored before the crash")
	}
	s.Stop()
}

// closes tries to close months until none waits, or for a while, and returns what
// they wait for.
func closes(t *testing.T, s *testkit.Server) *metering.SpoolsBehindError {
	t.Helper()
	_, err := s.Metering.CloseMonths(t.Context())
	var behind *metering.SpoolsBehindError
	if err != nil && !errors.As(err, &behind) {
		t.Fatal(err)
	}
	return behind
}

// month returns the status of a month of r, and what it consumed.
func month(s *testkit.Server, m string) string {
	a := s.Must(200, "GET", "/orgs/r/consumption?month="+m, s.OperatorKey, "")
	return fmt.Sprint(a.String("status"), " ", a.JSON("meters", "api_calls", "total"))
}

// A month is closed with what its servers recorded in it, also if one of them is
// down at its closing time: the month waits, says for whom, and closes with the
// right figures once that server was started again, or was given up.
func TestAMonthWaitsForEverySpool(t *testing.T) {
	for _, giveUp := range []bool{false, true} {
		t.Run(map[bool]string{false: "comes back", true: "given up"}[giveUp], func(t *testing.T) {
			clock := &monthClock{}
			clock.set("2026-11-30T23:50:00Z")
			database := testkit.Postgres(t)
			log := &logBuffer{}
			a := testkit.Start(t, "postgres", func(c *server.Config) {
				c.Database, c.Now, c.Log = database, clock.now, slog.New(slog.NewTextHandler(log, nil))
			})
			second := func(dir string) *testkit.Server {
				return testkit.Open(t, "postgres", func(c *server.Config) {
					c.Database, c.Now, c.OperatorKey = database, clock.now, a.OperatorKey
					if dir != "" {
						c.DataDir = dir
					}
				})
			}
			a.Must(201, "POST", "/orgs", a.OperatorKey, `{"id":"r","name":"Root"}`)
			idle := second("")
			idle.Stop() // ends with nothing left, and nobody waits for it
			b := second("")
			crash(t, b, clock.now(), 100)

			clock.set("2026-12-04T00:00:00Z")
			for range 3 {
				behind := closes(t, a)
				if behind == nil || behind.Month != "2026-11" || len(behind.Spools) != 1 || behind.Spools[0].ID != b.Recorder.ID() ||
					!strings.HasSuffix(behind.Spools[0].Place, b.Config.DataDir+"/spool") {
					t.Fatalf("the month waits for %+v, want the spool %s", behind, b.Recorder.ID())
				}
			}
			if got := month(a, "2026-11"); strings.HasPrefix(got, "closed") {
				t.Fatalf("the month is %s", got)
			}
			for start := time.Now(); ; time.Sleep(50 * time.Millisecond) {
				check := a.Must(200, "GET", "/service_status", "", "")
				if detail := check.String("checks", "months", "detail"); strings.Contains(detail, b.Recorder.ID()) && strings.Contains(detail, "give-up-spool") {
					break
				}
				if time.Since(start) > 20*time.Second {
					t.Fatalf("/service_status: %s", check.Body)
				}
			}

			if !giveUp {
				b = second(b.Config.DataDir)
				defer b.Stop()
				if err := b.Recorder.Drain(t.Context()); err != nil {
					t.Fatal(err)
				}
				if behind := closes(t, b); behind != nil {
					t.Fatalf("it still waits: %v", behind)
				}
				if behind := closes(t, a); behind != nil {
					t.Fatalf("it still waits: %v", behind)
				}
				if got := month(a, "2026-11"); got != "closed 100" {
					t.Errorf("November is %s", got)
				}
				return
			}
			key, _ := a.NewKey("r", `"permissions":["admin"]`)
			a.Must(403, "DELETE", "/spools/"+b.Recorder.ID()+"?reason=x", key, "")
			a.Must(400, "DELETE", "/spools/"+b.Recorder.ID(), a.OperatorKey, "")
			for _, id := range []string{"none", a.Recorder.ID(), idle.Recorder.ID()} {
				a.Must(404, "DELETE", "/spools/"+id+"?reason=x", a.OperatorKey, "")
			}
			a.Must(200, "DELETE", "/spools/"+b.Recorder.ID()+"?reason=broken+disk", a.OperatorKey, "", "X-Request-Id", "given-up")
			_, line, _ := strings.Cut(log.String(), "was given up")
			if line, _, _ = strings.Cut(line, "\n"); !strings.Contains(line, "spool="+b.Recorder.ID()) || !strings.Contains(line, `reason="broken disk"`) ||
				!strings.Contains(line, "request_id=given-up") || !strings.Contains(line, "last_month=2026-11") || !strings.Contains(line, b.Config.DataDir) {
				t.Errorf("the log says %q", line)
			}
			if behind := closes(t, a); behind != nil {
				t.Fatalf("it still waits: %v", behind)
			}
			if got := month(a, "2026-11"); strings.Contains(got, "100") || !strings.HasPrefix(got, "closed") {
				t.Errorf("November is %s", got)
			}
			// What turns up is counted, once, where it can be.
			b = second(b.Config.DataDir)
			defer b.Stop()
			if err := b.Recorder.Drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			if november, december := month(a, "2026-11"), month(a, "2026-12"); strings.Contains(november, "100") || !strings.HasPrefix(december, "open 10") {
				t.Errorf("November is %s, December %s", november, december)
			}
		})
	}
}

// A server that starts after the closing time stores what an earlier process
// recorded before it closes the month.
func TestAMonthIsClosedAfterTheReplay(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			clock := &monthClock{}
			clock.set("2026-11-30T23:50:00Z")
			s := testkit.Open(t, engine, func(c *server.Config) { c.Now = clock.now })
			s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"r","name":"Root"}`)
			const n = 20_000
			crash(t, s, clock.now(), n)
			clock.set("2026-12-04T00:00:00Z")
			config := s.Config
			s = testkit.Start(t, engine, func(c *server.Config) { *c = config })
			for start := time.Now(); !strings.HasPrefix(month(s, "2026-11"), "closed"); time.Sleep(20 * time.Millisecond) {
				if time.Since(start) > 30*time.Second {
					t.Fatalf("November is %s", month(s, "2026-11"))
				}
			}
			if got, want := month(s, "2026-11"), fmt.Sprint("closed ", n); got != want {
				t.Errorf("November is %s, want %s", got, want)
			}
		})
	}
}

// A request counts in the month in which it began, once, and its month is not
// closed before it is recorded: however slowly its body comes, however long its
// change waits to be committed, and whatever became of its answer.
func TestAMonthWaitsForRequestsUnderWay(t *testing.T) {
	for _, engine := range testkit.Engines {
		for name, begin := range map[string]func(t *testing.T, s *testkit.Server, key string) (end func() int){
			"slow body":           slowBody,
			"commit that waits":   waitsForLock("PATCH", "/orgs/r", `{"description":"late"}`),
			"events that wait":    waitsForLock("POST", "/orgs/r/consumption/events", `{"id":"1","meter":"things","quantity":"7","timestamp":"2026-11-30T23:59:57Z"}`),
			"events without time": waitsForLock("POST", "/orgs/r/consumption/events", `{"id":"1","meter":"things","quantity":"7"}`),
		} {
			t.Run(engine+"/"+name, func(t *testing.T) {
				clock := &monthClock{}
				clock.set("2026-11-30T23:59:58Z")
				s := testkit.Start(t, engine, func(c *server.Config) { c.Now, c.MonthCloseAfter = clock.now, -1 })
				s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"r","name":"Root"}`)
				s.Must(200, "PUT", "/orgs/r/meters/things", s.OperatorKey, `{"unit":"thing","aggregation":"sum"}`)
				key, _ := s.NewKey("r", `"permissions":["admin"]`)
				s.Must(200, "GET", "/orgs/r", key, "")
				end := begin(t, s, key)

				clock.set("2026-12-01T00:00:05Z")
				// What has begun since keeps nobody waiting.
				s.Must(200, "GET", "/orgs/r", key, "")
				for range 3 {
					behind := closes(t, s)
					if behind == nil || behind.Month != "2026-11" || len(behind.Spools) != 1 || behind.Spools[0].ID != s.Recorder.ID() {
						t.Fatalf("the month waits for %+v, want this server's spool", behind)
					}
				}
				status := end()
				if status/100 != 2 {
					t.Fatalf("status %d", status)
				}
				if behind := closes(t, s); behind != nil {
					t.Fatalf("it still waits: %v", behind)
				}
				s.Must(200, "GET", "/orgs/r", key, "")
				if november, december := month(s, "2026-11"), month(s, "2026-12"); november != "closed 2" || december != "open 2" {
					t.Errorf("November is %s, December %s", november, december)
				}
				a := s.Must(200, "GET", "/orgs/r/consumption?month=2026-11", s.OperatorKey, "")
				if got, want := fmt.Sprint(a.JSON("meters", "things", "total")), map[bool]string{true: "7", false: "0"}[strings.HasPrefix(name, "events")]; got != want {
					t.Errorf("November has %s things, want %s", got, want)
				}
				if got := s.Must(200, "GET", "/orgs/r/consumption/adjustments?month=2026-12", s.OperatorKey, ""); len(got.JSON().([]any)) > 0 {
					t.Errorf("December has adjustments: %s", got.Body)
				}
			})
		}
	}
}

// arrives waits until a request of this hour is under way.
func arrives(t *testing.T, s *testkit.Server, now time.Time) {
	t.Helper()
	for start := time.Now(); !s.Recorder.Since().Before(now); time.Sleep(time.Millisecond) {
		if time.Since(start) > 20*time.Second {
			t.Fatal("the request does not arrive")
		}
	}
}

// slowBody sends a change of which the second half of the body waits for end.
func slowBody(t *testing.T, s *testkit.Server, key string) (end func() int) {
	body, write := io.Pipe()
	req, err := http.NewRequest("POST", s.URL+"/orgs/r/children", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+key)
	status := make(chan int, 1)
	go func() {
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			status <- 0
			return
		}
		resp.Body.Close()
		status <- resp.StatusCode
	}()
	io.WriteString(write, `{"id":"late",`)
	arrives(t, s, s.Config.Now())
	return func() int {
		io.WriteString(write, `"name":"Late"}`)
		write.Close()
		return <-status
	}
}

// waitsForLock sends a request whose transaction waits for that of another, which
// lasts until end.
func waitsForLock(method, path, body string) func(*testing.T, *testkit.Server, string) func() int {
	return func(t *testing.T, s *testkit.Server, key string) func() int {
		locked, held, ended := make(chan bool, 1), make(chan bool), make(chan error, 1)
		release := sync.OnceFunc(func() { close(held) })
		t.Cleanup(release)
		go func() {
			ended <- testkit.Whole(s.Store).Write(t.Context(), func(tx testkit.Tx) error {
				if _, err := tx.Lock("r"); err != nil {
					return err
				}
				if err := tx.OpenMonth("r", "2026-11"); err != nil {
					return err
				}
				if err := tx.LockMonths("r"); err != nil {
					return err
				}
				select {
				case locked <- true:
				default: // the transaction is run again
				}
				<-held
				return nil
			})
		}()
		<-locked
		status := make(chan int, 1)
		go func() {
			a, err := s.TryDo(method, path, key, body)
			if err != nil {
				t.Error(err)
				a = &testkit.Answer{}
			}
			status <- a.Status
		}()
		arrives(t, s, s.Config.Now())
		time.Sleep(50 * time.Millisecond) // it gets as far as it can
		select {
		case early := <-status:
			t.Fatalf("the request was answered with %d while others have the lock", early)
		default:
		}
		return func() int {
			release()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			return <-status
		}
	}
}

// A process that is killed when a request is recorded and its answer is on its
// way has counted it: the next one stores it before it closes the month, once.
func TestAMonthCountsWhatWasRecordedAndNotDelivered(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			clock := &monthClock{}
			clock.set("2026-11-30T23:59:58Z")
			s := testkit.Open(t, engine, func(c *server.Config) { c.Now, c.MonthCloseAfter = clock.now, -1 })
			s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"r","name":"Root"}`)
			key, _ := s.NewKey("r", `"permissions":["admin"]`)
			filler := strings.Repeat("x", 50_000)
			for i := range 100 {
				s.Must(201, "POST", "/orgs/r/children", s.OperatorKey, fmt.Sprintf(`{"id":"o%d","name":"O","customizations":{"f":%q}}`, i, filler))
			}
			if err := s.Recorder.Drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			// The answer is more than the sockets keep, and nobody reads it.
			conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			before, _ := s.Recorder.Lag()
			fmt.Fprintf(conn, "GET /orgs/r/audit_log/export HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", key)
			if _, err := io.ReadFull(conn, make([]byte, 16)); err != nil {
				t.Fatal(err)
			}
			waiting, _ := s.Recorder.Lag()
			gone, cancel := context.WithCancel(t.Context())
			cancel()
			err = s.Recorder.Close(gone)
			t.Logf("%d records waited before, %d with the request, closing: %v", before, waiting, err)
			clock.set("2026-12-01T00:00:05Z")
			conn.Close()
			s.Stop()
			config := s.Config
			s = testkit.Start(t, engine, func(c *server.Config) { *c = config })
			if err := s.Recorder.Drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			if behind := closes(t, s); behind != nil {
				t.Fatalf("it still waits: %v", behind)
			}
			if november, december := month(s, "2026-11"), month(s, "2026-12"); november != "closed 1" || december != "open 0" {
				t.Errorf("November is %s, December %s", november, december)
			}
		})
	}
}

// What is late is booked in the first month that still takes it: events and
// adjustments in one whose time has not come, recorded requests in one that is not
// closed, which waits for them.
func TestTheMonthInWhichTheLateIsBooked(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			clock := &monthClock{}
			clock.set("2026-11-30T12:00:00Z")
			s := testkit.Start(t, engine, func(c *server.Config) { c.Now = clock.now })
			s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"r","name":"Root"}`)
			s.Must(200, "PUT", "/orgs/r/meters/things", s.OperatorKey, `{"unit":"thing","aggregation":"sum"}`)
			if _, err := s.Store.TakeSpool(t.Context(), "spool_down", access.Run{Number: 1, Nonce: "run_down"}, "another host", clock.now()); err != nil {
				t.Fatal(err)
			}
			n, position := 0, access.Position{}
			// late brings one of each of November in.
			late := func() {
				t.Helper()
				n++
				s.Must(200, "POST", "/orgs/r/consumption/events", s.OperatorKey, fmt.Sprintf(`{"id":"%d","meter":"things","quantity":1,"timestamp":"2026-11-20T12:00:00Z"}`, n))
				s.Must(200, "POST", "/orgs/r/consumption/adjustments", s.OperatorKey, `{"meter":"things","quantity":10,"month":"2026-11","reason":"found later"}`)
				next := access.Position{Segment: 1, Offset: int64(n)}
				if err := s.Store.Flush(t.Context(), access.Batch{SpoolID: "spool_down", From: position, Position: next, Usage: []access.Usage{
					{RootID: "r", Path: "r/", At: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC), Meter: usage.APICalls, Quantity: 100 * usage.One}}}); err != nil {
					t.Fatal(err)
				}
				position = next
			}
			// booked returns the status of a month, the totals of both meters in it, and
			// its adjustments: where they come from, for which month, and how much.
			booked := func(m string) string {
				t.Helper()
				a := s.Must(200, "GET", "/orgs/r/consumption?month="+m, s.OperatorKey, "")
				out := fmt.Sprint(a.String("status"), " ", a.JSON("meters", "things", "total"), " ", a.JSON("meters", "api_calls", "total"))
				var adjustments []string
				for _, row := range s.Must(200, "GET", "/orgs/r/consumption/adjustments?month="+m, s.OperatorKey, "").JSON().([]any) {
					row := row.(map[string]any)
					adjustments = append(adjustments, fmt.Sprint(row["origin"], " ", row["for_month"], " ", row["quantity"]))
				}
				slices.Sort(adjustments)
				return strings.Join(append([]string{out}, adjustments...), "; ")
			}
			want := func(november, december string) {
				t.Helper()
				if got := booked("2026-11"); got != november {
					t.Errorf("November has %s, want %s", got, november)
				}
				if got := booked("2026-12"); got != december {
					t.Errorf("December has %s, want %s", got, december)
				}
			}

			clock.set("2026-12-03T23:59:59Z") // November's time has not come
			late()
			want("open 11 100; actor 2026-11 10", "open 0 0")

			clock.set("2026-12-04T00:00:00Z") // it has come, and November waits for a spool
			for range 2 {
				if behind := closes(t, s); behind == nil || behind.Month != "2026-11" || behind.Spools[0].ID != "spool_down" {
					t.Fatalf("November waits for %+v", behind)
				}
			}
			late()
			want("open 11 200; actor 2026-11 10", "open 11 0; actor 2026-11 10; events 2026-11 1")

			if _, _, err := s.Metering.GiveUpSpool(t.Context(), "spool_down", "a test"); err != nil {
				t.Fatal(err)
			}
			if behind := closes(t, s); behind != nil {
				t.Fatalf("November still waits for %+v", behind)
			}
			late()
			want("closed 11 200; actor 2026-11 10", "open 22 100; actor 2026-11 10; actor 2026-11 10; events 2026-11 2; requests 2026-11 100")
		})
	}
}
