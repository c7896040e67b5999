package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/orgd/orgd/internal/tree"
)

var events = flag.Int("events", 10_000_000, "access events and usage events of the large measurements; 0 leaves them out")

// fill writes access events of the tree in a data directory that no server has
// open: one every few seconds of the last 300 days, by the 64 teams in turn.
// Ten of them, evenly spread, are DENIED and of the user rare.
func fill(dir string, n int) error {
	db, err := sqlite3.Open("file:" + filepath.Join(dir, "orgd.db"))
	if err != nil {
		return err
	}
	defer db.Close()
	if err := db.Exec(`PRAGMA synchronous = OFF; PRAGMA cache_size = -64000; PRAGMA wal_autocheckpoint = 100000`); err != nil {
		return err
	}
	now := time.Now()
	begin, step := now.AddDate(0, 0, -300).UnixMicro(), now.Sub(now.AddDate(0, 0, -300)).Microseconds()/int64(n)
	const chunk = 100_000
	for done := 0; done < n; done += chunk {
		if err := db.Exec(fmt.Sprintf(`INSERT INTO access_events (root_id, at, seq, id, org_id, user_name, action, status, ip, user_agent, method, path, request_id, api_key_id)
			WITH RECURSIVE c (n) AS (SELECT %d UNION ALL SELECT n + 1 FROM c WHERE n < %d)
			SELECT 'acme', %d + n * %d, n, printf('evt_01kb%%022d', n), printf('team-%%d', n %% 64), iif(n %% %d = 7, 'rare', printf('user %%d', n %% 997)),
			'GET_ORG', iif(n %% %d = 7, 'DENIED', 'SUCCESS'), printf('192.0.2.%%d', n %% 251), 'Mozilla/5.0 (X11; Linux x86_64)', 'GET',
			printf('/orgs/team-%%d', n %% 64), printf('req_01kb%%022d', n), printf('key_01kb%%022d', n %% 64) FROM c`,
			done+1, min(n, done+chunk), begin, step, n/10, n/10)); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "  %d events\r", min(n, done+chunk))
	}
	return db.Exec(fmt.Sprintf(`INSERT INTO access_heads (root_id, last) VALUES ('acme', %d)
		ON CONFLICT (root_id) DO UPDATE SET last = %d; PRAGMA wal_checkpoint(TRUNCATE)`, n, n))
}

// accessLog measures the first page of queries of a large access log, over
// connections, with the request itself recorded.
func accessLog() error {
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
	if _, _, err := r.Tree.Import(context.Background(), call, strings.NewReader("id,parent_id,name\nacme.us,acme,Acme US\n"), tree.ImportOptions{Format: "csv"}); err != nil {
		return err
	}
	r.halt()
	begin := time.Now()
	if err := fill(dir, *events); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "  filled %d events in %v\n", *events, time.Since(begin).Round(time.Second))
	if r, err = startIn(dir); err != nil {
		return err
	}
	defer r.stop()
	r.token = r.OperatorKey
	day := time.Now().AddDate(0, 0, -150).UTC().Format(time.DateOnly)
	for _, q := range []struct{ name, path string }{
		// First, since the measurements are accesses to the root themselves, which
		// a page of a subtree then has to pass over.
		{"a subtree", "/orgs/acme.eu/access_log?scope=subtree"},
		{"all of the root", "/orgs/acme/access_log?scope=subtree"},
		{"dense filter", "/orgs/acme/access_log?scope=subtree&status=SUCCESS"},
		{"sparse filter (10 match)", "/orgs/acme/access_log?scope=subtree&status=DENIED"},
		{"no match", "/orgs/acme/access_log?scope=subtree&user=nobody"},
		{"in the middle", "/orgs/acme/access_log?scope=subtree&to=" + day + "T00:00:00Z"},
		{"a subtree, sparse filter", "/orgs/acme.eu/access_log?scope=subtree&status=DENIED"},
		{"a subtree without events", "/orgs/acme.us/access_log?scope=subtree"},
		{"one organization", "/orgs/team-3/access_log"},
		{"one organization, sparse filter", "/orgs/team-3/access_log?status=DENIED"},
	} {
		n, more, err := r.firstPage(q.path)
		if err != nil {
			return err
		}
		perSecond, err := load(r.addr, 1, *duration/2, func(int, int) []byte { return r.request("GET", q.path, "") })
		if err != nil {
			return err
		}
		took := time.Duration(float64(time.Second) / perSecond).Round(10 * time.Microsecond)
		how := "the whole answer"
		if more {
			how = "and a cursor"
		}
		row("access log of "+fmt.Sprint(*events)+", "+q.name, "%v, %d events %s (to reach: at most 20ms, or a bounded page with a cursor)", took, n, how)
	}
	if err := r.streamLog(); err != nil {
		return err
	}
	return r.sendEvents()
}

// streamLog measures an export of a tenth of the log, and the memory that the
// server takes for it.
func (r *rig) streamLog() error {
	var before, now, most runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	req, err := http.NewRequest("GET", "http://"+r.addr+"/orgs/acme/access_log?scope=subtree&format=ndjson&from="+
		time.Now().AddDate(0, 0, -30).UTC().Format(time.RFC3339), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	begin := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines, size := 0, 0
	for in := bufio.NewScanner(resp.Body); in.Scan(); lines++ {
		size += len(in.Bytes()) + 1
		if lines%50_000 == 0 {
			runtime.GC()
			if runtime.ReadMemStats(&now); now.HeapAlloc > most.HeapAlloc {
				most = now
			}
		}
	}
	took := time.Since(begin)
	row("access log, stream of "+fmt.Sprint(lines)+" events", "%.0f events/s, %.1f MB/s; the heap grows by %.1f MiB at most",
		float64(lines)/took.Seconds(), float64(size)/took.Seconds()/1e6, (float64(most.HeapAlloc)-float64(before.HeapAlloc))/(1<<20))
	return nil
}

// sendEvents measures how many access events with ids of their own are
// stored, in requests of 1,000.
func (r *rig) sendEvents() error {
	const each, conns = 1000, 4
	perSecond, err := load(r.addr, conns, *duration, func(c, n int) []byte {
		var b strings.Builder
		for i := range each {
			fmt.Fprintf(&b, `{"id":"%08x-%04d-%d-%d","user":"jo@example.com","action":"LOGIN","status":"SUCCESS","ip":"192.0.2.7","org_id":"team-%d"}`+"\n",
				(uint32(c)<<20+uint32(n))*2654435761, i, c, n, i%64)
		}
		body := b.String()
		return fmt.Appendf(nil, "POST /orgs/acme/access_log HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %s\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n%s",
			r.token, len(body), body)
	})
	if err != nil {
		return err
	}
	row("access events sent, 1,000 a request, 4 connections", "%.0f events/s stored, on top of %d", perSecond*each, *events)
	return nil
}

// firstPage returns how many events a page has, and whether it has a cursor.
func (r *rig) firstPage(path string) (n int, more bool, err error) {
	req, err := http.NewRequestWithContext(context.Background(), "GET", "http://"+r.addr+path, nil)
	if err != nil {
		return 0, false, err
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, false, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		return 0, false, fmt.Errorf("%s: %s %s (%v)", path, resp.Status, bytes.TrimSpace(body), err)
	}
	var page []json.RawMessage
	err = json.Unmarshal(body, &page)
	return len(page), resp.Header.Get("Link") != "", err
}
