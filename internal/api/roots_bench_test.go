package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// distant returns a way to a server on which everything takes so long more, in
// either direction.
func distant(t testing.TB, serverAddress string, delay time.Duration) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	type piece struct {
		at   time.Time
		data []byte
	}
	forward := func(to, from net.Conn) {
		defer to.Close()
		under := make(chan piece, 4096)
		go func() {
			defer close(under)
			for {
				buf := make([]byte, 64<<10)
				n, err := from.Read(buf)
				if err != nil {
					return
				}
				under <- piece{time.Now().Add(delay), buf[:n]}
			}
		}()
		for p := range under {
			time.Sleep(time.Until(p.at))
			if _, err := to.Write(p.data); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", serverAddress)
			if err != nil {
				in.Close()
				continue
			}
			go forward(in, out)
			go forward(out, in)
		}
	}()
	return l.Addr().String()
}

// BenchmarkRootsOnPostgres changes 64 roots at the same time, each from a client of
// its own: by PATCH, and by the same statements without orgd, over as many
// connections. So also with a synchronous standby that is 2 ms away. The database has
// the first core; with taskset -c 1 before it, orgd and the clients have the second.
func BenchmarkRootsOnPostgres(b *testing.B) {
	const roots, connections = 64, 32
	for _, standby := range []bool{false, true} {
		b.Run(fmt.Sprintf("standby=%t", standby), func(b *testing.B) {
			cluster := testkit.NewPostgresCluster(b)
			cluster.Pin(b, 0)
			s := testkit.Open(b, "postgres", func(c *server.Config) {
				c.Database, c.DatabasePool, c.SignInterval = cluster.URL, connections, 0
				c.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
			})
			keys := make([]string, roots)
			for i := range roots {
				s.Must(201, "POST", "/orgs", s.OperatorKey, fmt.Sprintf(`{"id":"root-%d","name":"Root"}`, i))
				keys[i], _ = s.NewKey(fmt.Sprintf("root-%d", i), `"permissions":["admin"]`)
			}
			if standby {
				cluster.Standby(b, "far", distant(b, cluster.Address(), time.Millisecond)).Pin(b, 0)
				cluster.WaitFor(b, "far")
			}
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: roots}}
			patch := func(root, n int) error { return rename(client, s, fmt.Sprintf("root-%d", root), keys[root], n) }
			pool, err := pgxpool.New(b.Context(), cluster.URL+fmt.Sprintf("&pool_max_conns=%d", connections))
			if err != nil {
				b.Fatal(err)
			}
			defer pool.Close()
			plain := func(root, n int) error { return plainChange(b.Context(), pool, fmt.Sprintf("root-%d", root), n) }
			for _, way := range []struct {
				name   string
				change func(root, n int) error
			}{{"plain", plain}, {"orgd", patch}, {"plain again", plain}, {"orgd again", patch}} {
				b.Run(way.name, func(b *testing.B) { changes(b, roots, way.change) })
			}
		})
	}
}

// BenchmarkHotRootOnPostgres changes organizations of one root from 16 clients, as
// many of them or few again and again; also while somebody has an old snapshot open,
// as a backup has, and with a synchronous standby that is 2 ms away.
func BenchmarkHotRootOnPostgres(b *testing.B) {
	const clients = 16
	for _, beside := range []string{"nothing", "snapshot", "standby"} {
		b.Run("beside="+beside, func(b *testing.B) {
			cluster := testkit.NewPostgresCluster(b)
			s := testkit.Open(b, "postgres", func(c *server.Config) {
				c.Database, c.SignInterval = cluster.URL, 0
				c.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
			})
			s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"hot","name":"Hot"}`)
			for i := range 1024 {
				s.Must(201, "POST", "/orgs/hot/children", s.OperatorKey, fmt.Sprintf(`{"id":"child-%d","name":"Child"}`, i))
			}
			key, _ := s.NewKey("hot", `"permissions":["admin"]`)
			switch beside {
			case "snapshot":
				c, err := pgx.Connect(b.Context(), cluster.URL)
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close(context.WithoutCancel(b.Context()))
				if _, err := c.Exec(b.Context(), `begin isolation level repeatable read; select count(*) from orgs`); err != nil {
					b.Fatal(err)
				}
			case "standby":
				cluster.Standby(b, "far", distant(b, cluster.Address(), time.Millisecond))
				cluster.WaitFor(b, "far")
			}
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
			for _, orgs := range []int{1024, clients} {
				b.Run(fmt.Sprintf("orgs=%d", orgs), func(b *testing.B) {
					changes(b, clients, func(i, n int) error {
						return rename(client, s, fmt.Sprintf("child-%d", (i+n*clients)%orgs), key, n)
					})
				})
			}
		})
	}
}

// changes makes b.N changes, from some clients at the same time.
func changes(b *testing.B, clients int, change func(client, n int) error) {
	b.ResetTimer()
	var next atomic.Int64
	var wg sync.WaitGroup
	for client := range clients {
		wg.Go(func() {
			for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
				if err := change(client, int(n)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "changes/s")
}

// rename gives an organization another name.
func rename(client *http.Client, s *testkit.Server, id, key string, n int) error {
	r, err := http.NewRequest("PATCH", s.URL+"/orgs/"+id, strings.NewReader(fmt.Sprintf(`{"name":"Name %d"}`, n)))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+key)
	r.Header.Set("Content-Type", "application/json")
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	if answer.StatusCode != 200 {
		err = errors.Join(err, errors.New(answer.Status))
	}
	return err
}

// plainChange writes the rows of an update, that of its access event too, in as few
// round trips as can be.
func plainChange(ctx context.Context, pool *pgxpool.Pool, root string, n int) error {
	c, err := pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	first := &pgx.Batch{}
	first.Queue(`begin`)
	var epoch, size int64
	first.Queue(`SELECT epoch, size FROM audit_heads WHERE root_id = $1 AND closed_at = 0 FOR UPDATE`, root).
		QueryRow(func(row pgx.Row) error { return row.Scan(&epoch, &size) })
	first.Queue(`SELECT * FROM orgs WHERE id = $1`, root)
	if err := c.SendBatch(ctx, first).Close(); err != nil {
		return err
	}
	then := &pgx.Batch{}
	then.Queue(`UPDATE orgs SET name = $2, name_key = $2, version = version + 1, updated_at = $3 WHERE root_id = $1 AND id = $1`, root, fmt.Sprintf("Root %d", n), time.Now().UnixMicro())
	// Beyond the places of the log that orgd has.
	hash, at := make([]byte, 32), time.Now().UnixMicro()
	then.Queue(`UPDATE audit_heads SET hashes = hashes WHERE root_id = $1 AND epoch = $2`, root, epoch)
	seq := 1_000_000_000 + at
	then.Queue(`INSERT INTO audit_entries (root_id, epoch, seq, id, at, org_id, path, action, actor_id, leaf, leaf_hash) VALUES ($1, $2, $3, $4, $5, $1, $6, 'organization.updated', 'key_1', $7, $8)`,
		root, epoch, seq, fmt.Sprintf("aud_%s_%d", root, n), at, root+"/", make([]byte, 500), hash)
	then.Queue(`INSERT INTO audit_values (root_id, epoch, seq, content) VALUES ($1, $2, $3, $4)`, root, epoch, seq, strings.Repeat("x", 100))
	then.Queue(`INSERT INTO access_events (root_id, at, seq, id, org_id, user_name, action, status, ip, user_agent, method, path, request_id, api_key_id)
		VALUES ($1, $2, $3, $4, $1, '', 'UPDATE_ORG', 'SUCCESS', '127.0.0.1', 'Go-http-client/1.1', 'PATCH', $5, $6, 'key_1')`,
		root, at, seq, fmt.Sprintf("evt_%s_%d", root, n), "/orgs/"+root, fmt.Sprintf("req_%d", n))
	then.Queue(`INSERT INTO changes (tx, process, root_id, org_id) VALUES (pg_current_xact_id()::text::bigint, 'plain', '', $1)`, root)
	then.Queue(`commit`)
	return c.SendBatch(ctx, then).Close()
}
