package testkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// ORGD_TEST_SERVERS says how many servers on one PostgreSQL each Server is, behind
// a balancer that sends every request to the next of them. Tests that are about
// SQLite then are about PostgreSQL, and those of OneProcess are skipped. Without
// it a Server is one server.
var servers = sync.OnceValue(func() int {
	n, err := strconv.Atoi(os.Getenv("ORGD_TEST_SERVERS"))
	if err != nil || n < 2 {
		return 1
	}
	// A connection is a request then, and so the balancer sees each of them.
	http.DefaultTransport.(*http.Transport).DisableKeepAlives = true
	return n
})

// enginesToTest are those that Engines names.
func enginesToTest() []string {
	if servers() > 1 {
		return []string{"postgres"}
	}
	return []string{"sqlite", "postgres"}
}

// hearing bounds how long a request waits for what servers tell each other: what
// is older than this, all of them know (docs/architecture.md).
const hearing = 2 * time.Second

// balancer sends connections to servers in turn. Before it passes one on, all
// servers have heard of what had been answered when it came: orgd only promises
// that they hear of it within a second, and tests expect to read what they wrote.
type balancer struct {
	members []*member

	mu    sync.Mutex
	next  int
	asked *pgx.Conn
	heard string // the snapshot of the database whose changes all have heard of
	calls int
}

// balance has connections sent to members in turn until the test ends, and
// returns where they are to come.
func balance(t testing.TB, members []*member) string {
	t.Helper()
	asked, err := pgx.Connect(context.Background(), members[0].config.Database)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{members: members, asked: asked}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go b.pass(t, c.(*net.TCPConn))
		}
	}()
	t.Cleanup(func() {
		l.Close()
		b.mu.Lock()
		defer b.mu.Unlock()
		b.asked.Close(context.Background())
	})
	return l.Addr().String()
}

func (b *balancer) pass(t testing.TB, client *net.TCPConn) {
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), hearing)
	err := b.settle(ctx)
	cancel()
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		testWriter{t}.Write([]byte("the balancer does not know what servers have heard: " + err.Error()))
	}
	b.mu.Lock()
	m := b.members[b.next%len(b.members)]
	b.next++
	b.mu.Unlock()
	conn, err := net.Dial("tcp", m.address)
	if err != nil {
		return
	}
	defer conn.Close()
	server := conn.(*net.TCPConn)
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(server, client)
		_ = server.CloseWrite()
		// A server that does not read a body to its end has answered: that is to
		// reach a client that is still sending.
		_, _ = io.Copy(io.Discard, client)
	})
	both.Go(func() {
		_, _ = io.Copy(client, server)
		_ = client.CloseWrite()
		_ = server.CloseRead()
	})
	both.Wait()
}

// settle returns once all that the servers have recorded is stored, and each of
// them has heard of all changes, or when ctx ends.
func (b *balancer) settle(ctx context.Context) error {
	var stored sync.WaitGroup
	for _, m := range b.members {
		stored.Go(func() { _ = m.Recorder.Drain(ctx) })
	}
	err := b.tell(ctx)
	stored.Wait()
	return err
}

// tell makes a change of its own if there are changes that not all have heard of,
// of a root that nobody has. Whoever has heard of it has heard of all before it,
// since what a server looks at are snapshots. It waits for that.
func (b *balancer) tell(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.asked.IsClosed() { // by a query that took too long
		again, err := pgx.ConnectConfig(ctx, b.asked.Config())
		if err != nil {
			return err
		}
		b.asked = again
	}
	if b.heard != "" {
		var news bool
		if err := b.asked.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM changes WHERE process <> 'testkit' AND NOT pg_visible_in_snapshot(tx::text::xid8, $1::pg_snapshot))`,
			b.heard).Scan(&news); err != nil || !news {
			return err
		}
	}
	b.calls++
	root := fmt.Sprintf("heard %d", b.calls)
	before := make([]uint64, len(b.members))
	for i, m := range b.members {
		before[i] = m.Store.Generation(root)
	}
	var snapshot string
	if err := b.asked.QueryRow(ctx, `WITH told AS (INSERT INTO changes (tx, process, root_id, org_id) VALUES (pg_current_xact_id()::text::bigint, 'testkit', $1, ''))
		SELECT pg_current_snapshot()::text FROM pg_notify('orgd', 'tree testkit')`, root).Scan(&snapshot); err != nil {
		return err
	}
	for i, m := range b.members {
		for m.Store.Generation(root) == before[i] {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(500 * time.Microsecond):
			}
		}
	}
	b.heard = snapshot
	return nil
}

// OneProcess names the tests that are by their nature about one process, and why.
// They are skipped where a Server is several.
var OneProcess = map[string]string{
	// Bounds that each process has for itself.
	"TestFollowBounded":                      "each process bounds the streams of a key",
	"TestHeavyReadsLeaveRoom":                "it takes the connections of one process",
	"TestRequestsInFlight":                   "each process has budgets, and counts refusals",
	"TestQuotaOnTwoServers":                  "each of its two servers is to refuse the second request in a second",
	"TestIdempotencyBytes":                   "for seconds a process does not know what others keep for Idempotency-Keys, and the clock stands still",
	"TestWhenAKeyWorks":                      "processes divide a rate limit",
	"TestVerify":                             "processes divide a rate limit",
	"TestWhoseEventItIs":                     "each process has metrics of its own",
	"TestRoundTrips":                         "it counts what goes between one process and the database",
	"TestAnIdleStreamLeavesTheDatabaseAlone": "of what another process changes a stream hears by looking",
	// A hard limit is exact in one process. TestHardLimitOnReplicas says what
	// several let through.
	"TestHardLimitIsExact":                     "for a second a process does not know what others have let through",
	"TestHardLimitOfDefinedMeter":              "for a second a process does not know what others have let through",
	"TestHardLimitOfEventsWhileTheTreeChanges": "for a second a process does not know what others have let through",
	"TestHardLimitWithoutNotifications":        "for a second a process does not know what others have let through",
	"TestConsumersLiftNoLimit":                 "for a second a process does not know what others have taken off",
	"TestReusedIDHasNoPast":                    "for a second a process does not know what others have let through",
	"TestUsageEventsUnderHardLimit":            "for a second a process does not know what others have let through",
	"TestDecisionsWaitForNoWriter":             "it counts to a hard limit, and holds the one writer of SQLite",
	// TestARightEndsInAnotherProcess says when a right ends that another process
	// has ended.
	"TestARightEndsWhileTheBodyComes": "for a second a process may answer by what it remembers",
	// What a process does and what it keeps.
	"TestExistenceCostsNothing":            "it compares what one process asks the database",
	"TestUnknownKindFindsEveryRouteClosed": "it answers on the store and the spool of one process",
	"TestSettingsThatChangeMeanwhile":      "changes of the same settings take turns in a process; of those of several one may be given up",
	"TestHardLimitSurvivesRestart":         "the database is in the data directory",
	"TestSecretsAreNotStored":              "the database is in the data directory",
	"TestSecretsInEventsAreNotStored":      "the database is in the data directory",
}

// skipOneProcess skips a test of OneProcess where a Server is several.
func skipOneProcess(t testing.TB) {
	t.Helper()
	name, _, _ := strings.Cut(t.Name(), "/")
	if why := OneProcess[name]; why != "" && servers() > 1 {
		t.Skipf("about one process: %s", why)
	}
}
