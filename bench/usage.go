package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/orgd/orgd/internal/usage"
)

// usageBatch is how many events a request brings, and how many rows the bare
// driver inserts at a time.
const usageBatch = 1000

// tokens defines the meter of the measurements.
func (r *rig) tokens() error {
	_, _, err := r.Metering.PutMeter(context.Background(), call, "acme", usage.Meter{Slug: "tokens", Unit: "tokens", Aggregation: usage.Sum,
		EventType: "tokens", Value: usage.DefaultValue})
	return err
}

// usageBody is a request's worth of events that nobody has sent before.
func usageBody(run, conn, n int, at time.Time) string {
	b := make([]byte, 0, 130*usageBatch)
	stamp := at.UTC().Format(time.RFC3339Nano)
	for i := range usageBatch {
		b = fmt.Appendf(b, `{"id":"%04d-%08d-%03d-%04d","source":"bench","meter":"tokens","quantity":%d.25,"org_id":"team-%d","timestamp":"%s"}`+"\n",
			run, n, conn, i, i, i%64, stamp)
	}
	return string(b)
}

func (r *rig) usageRequest(body string) []byte {
	return fmt.Appendf(nil, "POST /orgs/acme/consumption/events HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %s\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n%s",
		r.token, len(body), body)
}

// each sends n requests over each of conns connections, each waiting for its
// answer.
func (r *rig) each(conns, n int, request func(c, n int) []byte) error {
	errs := make([]error, conns)
	var wg sync.WaitGroup
	for c := range conns {
		wg.Go(func() {
			errs[c] = func() error {
				conn, err := net.Dial("tcp", r.addr)
				if err != nil {
					return err
				}
				defer conn.Close()
				in := bufio.NewReader(conn)
				for i := range n {
					if _, err := conn.Write(request(c, i)); err != nil {
						return err
					}
					if err := readAnswer(in); err != nil {
						return err
					}
				}
				return nil
			}()
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// ingest compares the ingestion of usage events with rows that the same driver
// inserts into the table of events, both in batches of usageBatch that are
// durable one by one.
func ingest() error {
	var ratios, ours []float64
	for round := range *rounds {
		r, err := start()
		if err != nil {
			return err
		}
		err = r.tree()
		if err == nil {
			err = r.tokens()
		}
		if err != nil {
			return err
		}
		r.token = r.OperatorKey
		now := time.Now()
		// Bodies are made before, so that only sending them is measured.
		const conns = 4
		var requests [conns][][]byte
		for c := range conns {
			for n := range 40 {
				requests[c] = append(requests[c], r.usageRequest(usageBody(round, c, n, now)))
			}
		}
		begin := time.Now()
		if err := r.each(conns, 40, func(c, n int) []byte { return requests[c][n] }); err != nil {
			return err
		}
		sent := conns * 40 * usageBatch / time.Since(begin).Seconds()
		dir := r.dir
		r.halt()
		inserted, err := insertRaw(dir, conns*40)
		os.RemoveAll(dir)
		if err != nil {
			return err
		}
		ours = append(ours, sent)
		ratios = append(ratios, sent/inserted)
	}
	row("usage events, batches of 1000, 4 connections", "%.0f a second, durable and counted up the tree; %.2f of bare inserts (to reach: 0.5)", median(ours), median(ratios))
	return nil
}

// insertRaw inserts batches of rows into the table of events and returns the
// rows per second.
func insertRaw(dir string, batches int) (float64, error) {
	db, err := sqlite3.Open("file:" + filepath.Join(dir, "orgd.db"))
	if err != nil {
		return 0, err
	}
	defer db.Close()
	// As the server's own connection.
	if err := db.Exec(`PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 20000; PRAGMA secure_delete = ON;
		PRAGMA cache_size = -16000; DELETE FROM usage_events; PRAGMA wal_checkpoint(TRUNCATE)`); err != nil {
		return 0, err
	}
	insert, _, err := db.Prepare(`INSERT INTO usage_events (root_id, sender, source, id, part, org_id, meter, at, quantity)
		VALUES (?1, '/operator', ?2, ?3, ?4, ?5, ?6, ?7, ?8)`)
	if err != nil {
		return 0, err
	}
	defer insert.Close()
	begin := time.Now()
	at := begin.UnixMicro()
	for n := range batches {
		if err := db.Exec(`BEGIN IMMEDIATE`); err != nil {
			return 0, err
		}
		for i := range usageBatch {
			insert.BindText(1, "acme")
			insert.BindText(2, "bench")
			insert.BindText(3, fmt.Sprintf("raw-%08d-%04d", n, i))
			insert.BindInt64(4, 0)
			insert.BindText(5, "team-1")
			insert.BindText(6, "tokens")
			insert.BindInt64(7, at)
			insert.BindInt64(8, int64(i))
			if err := insert.Exec(); err != nil {
				return 0, err
			}
		}
		if err := db.Exec(`COMMIT`); err != nil {
			return 0, err
		}
	}
	return float64(batches*usageBatch) / time.Since(begin).Seconds(), nil
}

// consumption compares reading a month after 1,000 events and after many.
func consumption() error {
	if *events == 0 {
		return nil
	}
	r, err := start()
	if err != nil {
		return err
	}
	dir := r.dir
	defer os.RemoveAll(dir)
	if err := r.tree(); err != nil {
		return err
	}
	if err := r.tokens(); err != nil {
		return err
	}
	token := r.token
	r.token = r.OperatorKey
	if err := r.each(1, 1, func(int, int) []byte { return r.usageRequest(usageBody(0, 0, 0, time.Now())) }); err != nil {
		return err
	}
	r.token = token
	read := func() (time.Duration, error) {
		var took []float64
		for range *rounds {
			perSecond, err := load(r.addr, 1, *duration/2, func(int, int) []byte { return r.request("GET", "/orgs/acme.eu/consumption", "") })
			if err != nil {
				return 0, err
			}
			took = append(took, float64(time.Second)/perSecond)
		}
		return time.Duration(median(took)), nil
	}
	few, err := read()
	if err != nil {
		return err
	}
	r.halt()
	if err := fillUsage(dir, *events); err != nil {
		return err
	}
	if r, err = startIn(dir); err != nil {
		return err
	}
	defer r.stop()
	r.token = token
	many, err := read()
	if err != nil {
		return err
	}
	row("GET /orgs/{id}/consumption, 1 connection", "%v after 1,000 events, %v after %d: %.2f times (to reach: at most 1.5)",
		few.Round(time.Microsecond), many.Round(time.Microsecond), *events, float64(many)/float64(few))
	return nil
}

// fillUsage adds events to the tree in a data directory that no server has
// open, as if the teams had sent them in turn, and adds them to the totals.
func fillUsage(dir string, n int) error {
	db, err := sqlite3.Open("file:" + filepath.Join(dir, "orgd.db"))
	if err != nil {
		return err
	}
	defer db.Close()
	if err := db.Exec(`PRAGMA synchronous = OFF; PRAGMA cache_size = -64000; PRAGMA wal_autocheckpoint = 100000`); err != nil {
		return err
	}
	const chunk = 100_000
	at := time.Now().UnixMicro()
	for done := 0; done < n; done += chunk {
		if err := db.Exec(fmt.Sprintf(`INSERT INTO usage_events (root_id, sender, source, id, part, org_id, meter, at, quantity)
			WITH RECURSIVE c (n) AS (SELECT %d UNION ALL SELECT n + 1 FROM c WHERE n < %d)
			SELECT 'acme', '/operator', 'filled', printf('%%012d', n), 0, printf('team-%%d', n %% 64), 'tokens', %d, 1000000 FROM c`,
			done+1, min(n, done+chunk), at)); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "  %d events\r", min(n, done+chunk))
	}
	return db.Exec(fmt.Sprintf(`UPDATE usage_totals SET own = own + iif(org_id LIKE 'team-%%', %[1]d, 0), total = total + iif(org_id LIKE 'team-%%', %[1]d, 64 * %[1]d)
		WHERE root_id = 'acme' AND meter = 'tokens'; PRAGMA wal_checkpoint(TRUNCATE)`, int64(n/64)*int64(usage.One)))
}
