//go:build unix

package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/usage"
)

// meterEvent is an event of the test, in the order of its fields in JSON.
type meterEvent struct {
	id, org, meter string
	at             time.Time
	quantity       usage.Decimal
}

func (e *meterEvent) append(b []byte) []byte {
	b = fmt.Appendf(b, `{"id":%q,"source":"test","meter":%q,"org_id":%q,"timestamp":%q,"quantity":`, e.id, e.meter, e.org, e.at.Format(time.RFC3339Nano))
	return append(e.quantity.AppendJSON(b), '}')
}

// meterCell is what is compared: a meter of an organization in a month.
type meterCell struct {
	org, meter string
	month      usage.Month
}

func setting(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// Events are sent shuffled, almost a third of them twice, from 16 connections,
// while the server is killed again and again. Clients repeat what got no
// answer. In the end every total is exact, of every organization and month.
//
// ORGD_TEST_EVENTS and ORGD_TEST_KILLS make it larger.
func TestEveryEventIsCountedOnce(t *testing.T) {
	events, kills := setting("ORGD_TEST_EVENTS", 50_000), setting("ORGD_TEST_KILLS", 5)
	for _, test := range []struct {
		engine string
		// openLate says that events of the last month find it open; otherwise
		// they become adjustments.
		openLate bool
	}{{"sqlite", true}, {"postgres", false}, {"sqlite", false}} {
		name := test.engine + " adjusted"
		if test.openLate {
			name = test.engine
		}
		t.Run(name, func(t *testing.T) {
			if test.engine == "sqlite" && !test.openLate && events > 50_000 {
				t.Skip("the large run takes each database once")
			}
			countOnce(t, test.engine, test.openLate, events, kills)
		})
	}
}

func countOnce(t *testing.T, engine string, openLate bool, n, kills int) {
	dir := t.TempDir()
	args := []string{"--month-close-after", "840h"}
	if !openLate {
		args[1] = "0s"
	}
	database := ""
	if engine == "postgres" {
		database = testkit.Postgres(t)
		args = append(args, "--database", database)
	}
	p := startProcess(t, dir, args...)

	// Two trees of three levels.
	var rows strings.Builder
	rows.WriteString("id,parent_id,name\n")
	parents := map[string]string{}
	var orgs []string
	add := func(id, parent string) {
		fmt.Fprintf(&rows, "%s,%s,%s\n", id, parent, id)
		parents[id] = parent
		orgs = append(orgs, id)
	}
	for _, root := range []string{"acme", "beta"} {
		add(root, "")
		for i := range 4 {
			group := fmt.Sprintf("%s.%d", root, i)
			add(group, root)
			for j := range 5 {
				add(fmt.Sprintf("%s.%d", group, j), group)
			}
		}
	}
	req, _ := http.NewRequest("POST", p.url+"/orgs/import", strings.NewReader(rows.String()))
	req.Header.Set("Authorization", "Bearer "+p.key)
	req.Header.Set("Content-Type", "text/csv")
	if resp, err := http.DefaultClient.Do(req); err != nil || resp.StatusCode != 200 {
		t.Fatalf("import: %v %v", resp, err)
	}
	for _, root := range []string{"acme", "beta"} {
		for slug, aggregation := range map[string]string{"tokens": "sum", "requests": "count", "peak": "max"} {
			if status, b, err := p.do("PUT", "/orgs/"+root+"/meters/"+slug, fmt.Sprintf(`{"unit":"x","aggregation":%q}`, aggregation)); status != 200 {
				t.Fatalf("%d %s %v", status, b, err)
			}
		}
	}

	random := rand.New(rand.NewPCG(1, uint64(n)))
	now := time.Now().UTC()
	this := usage.MonthOf(now)
	last := usage.MonthOf(this.Start().Add(-time.Hour))
	list := make([]meterEvent, n)
	own := map[meterCell]usage.Decimal{}
	for i := range list {
		e := &list[i]
		e.id, e.org = fmt.Sprintf("%08x-%d", random.Uint32(), i), orgs[random.IntN(len(orgs))]
		e.meter = []string{"tokens", "requests", "peak"}[random.IntN(3)]
		e.quantity = usage.Decimal(random.Int64N(1_000_000_000))
		begin, end := this.Start(), now
		if random.IntN(4) == 0 {
			begin, end = last.Start(), last.End()
		}
		e.at = begin.Add(time.Duration(random.Int64N(int64(end.Sub(begin))))).Truncate(time.Microsecond)
		c := meterCell{e.org, e.meter, usage.MonthOf(e.at)}
		switch e.meter {
		case "tokens":
			own[c] += e.quantity
		case "requests":
			own[c] += usage.One
		case "peak":
			own[c] = max(own[c], e.quantity)
		}
	}
	order := random.Perm(n)
	for range n * 3 / 10 {
		order = append(order, random.IntN(n))
	}
	random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })

	// The clients.
	const batch, clients = 500, 16
	var current atomic.Pointer[process]
	current.Store(p)
	var batches, failures atomic.Int64
	work := make(chan []int)
	transport := &http.Transport{MaxIdleConnsPerHost: clients}
	client := &http.Client{Transport: transport, Timeout: time.Minute}
	var wg sync.WaitGroup
	begin := time.Now()
	for range clients {
		wg.Go(func() {
			for some := range work {
				var body []byte
				for _, i := range some {
					body = append(list[i].append(body), '\n')
				}
				for {
					p := current.Load()
					req, err := http.NewRequest("POST", p.url+"/orgs/"+rootOf(list[some[0]].org)+"/consumption/events", bytes.NewReader(body))
					if err != nil {
						t.Error(err)
						return
					}
					req.Header.Set("Authorization", "Bearer "+p.key)
					req.Header.Set("Content-Type", "application/x-ndjson")
					resp, err := client.Do(req)
					if err != nil {
						failures.Add(1)
						time.Sleep(10 * time.Millisecond)
						continue
					}
					b, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if err == nil && resp.StatusCode == 200 {
						break
					}
					if err == nil && resp.StatusCode < 500 {
						t.Errorf("%d %s", resp.StatusCode, b)
						return
					}
					failures.Add(1)
					time.Sleep(10 * time.Millisecond)
				}
				batches.Add(1)
			}
		})
	}
	// A request goes to one tree.
	byRoot := map[string][]int{}
	var all [][]int
	for _, i := range order {
		root := rootOf(list[i].org)
		byRoot[root] = append(byRoot[root], i)
		if len(byRoot[root]) == batch {
			all = append(all, byRoot[root])
			byRoot[root] = nil
		}
	}
	for _, some := range byRoot {
		if len(some) > 0 {
			all = append(all, some)
		}
	}
	go func() {
		for _, some := range all {
			work <- some
		}
		close(work)
	}()
	for kill := range kills {
		for batches.Load() < int64(len(all)*(kill+1)/(kills+1)) && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
		p.cmd.Process.Kill()
		<-p.ended
		p = startProcess(t, dir, args...)
		current.Store(p)
	}
	wg.Wait()
	took := time.Since(begin)
	transport.CloseIdleConnections()
	t.Logf("%d events, %d of them twice, in %d requests from %d connections, %d kills: %s; %d requests were repeated",
		n, len(order)-n, len(all), clients, kills, took.Round(time.Millisecond), failures.Load())

	// What the ancestors have is the sum of what their descendants have.
	total := map[meterCell]usage.Decimal{}
	for c, quantity := range own {
		for id := c.org; id != ""; id = parents[id] {
			total[meterCell{id, c.meter, c.month}] += quantity
		}
	}
	if !openLate {
		for _, sums := range []map[meterCell]usage.Decimal{own, total} {
			for c, quantity := range sums {
				if c.month == last {
					sums[meterCell{c.org, c.meter, this}] += quantity
					sums[c] = 0
				}
			}
		}
	}
	wrong, compared := 0, 0
	for _, id := range orgs {
		for _, month := range []usage.Month{last, this} {
			status, b, err := p.do("GET", "/orgs/"+id+"/consumption?month="+string(month), "")
			var got struct {
				Meters map[string]struct{ Own, Descendants, Total usage.Decimal }
			}
			if err != nil || status != 200 || json.Unmarshal(b, &got, json.MatchCaseInsensitiveNames(true)) != nil {
				t.Fatalf("%d %s %v", status, b, err)
			}
			for _, meter := range []string{"tokens", "requests", "peak"} {
				c, m := meterCell{id, meter, month}, got.Meters[meter]
				compared++
				if m.Own != own[c] || m.Total != total[c] || m.Descendants != total[c]-own[c] {
					wrong++
					if wrong < 10 {
						t.Errorf("%s of %s in %s: own %s, total %s; exactly %s and %s", meter, id, month, m.Own, m.Total, own[c], total[c])
					}
				}
			}
		}
	}
	t.Logf("%d totals compared, %d differ", compared, wrong)

	p.cmd.Process.Signal(os.Interrupt)
	<-p.ended
	var s *store.Store
	var err error
	if database != "" {
		s, err = store.OpenPostgres(t.Context(), database, store.Options{})
	} else {
		s, err = store.OpenSQLite(t.Context(), filepath.Clean(dir), store.Options{})
	}
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	testkit.CheckSystem(t, s)
}

// rootOf returns the root of an organization of the test.
func rootOf(id string) string {
	root, _, _ := strings.Cut(id, ".")
	return root
}
