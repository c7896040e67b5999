package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/orgd/orgd/internal/problem"
)

const (
	// beatInterval is how often a process shows that it lives and looks for what
	// others have changed.
	beatInterval = 300 * time.Millisecond
	// beatSpacing is the least time between two looks, however often others say
	// that there is something.
	beatSpacing = 10 * time.Millisecond
	// beatTimeout bounds the wait for one answer, and for a connection.
	beatTimeout = 2 * time.Second
	// againTime is how long an attempt to connect may go without an answer before
	// another one is made beside it: the address may lead to another server by now.
	againTime = time.Second
	// trustTime is how long what is kept is believed after the last look:
	// changes made by others show within this time.
	trustTime = time.Second
	// proofTime is how long the database itself is believed to be the one that
	// takes the changes, after it was last shown to be.
	proofTime = 5 * time.Second
	// aliveTime is how long after its last beat a process counts as live, by the
	// clock of the database.
	aliveTime = 5 * time.Second
	// gapTime is after which time without a look nothing kept is believed: what
	// changed meanwhile may have been swept away.
	gapTime = 10 * time.Second
	// sweepInterval is how often what everybody has seen is swept away.
	sweepInterval = 30 * time.Second
)

// channel is where processes tell each other to look for changes. They lose
// nothing by not hearing of it but time.
const channel = "orgd"

// application names a connection, as versions do not that need to be told of a
// change in its own transaction (olderApplication).
const (
	application      = "orgd server"
	olderApplication = "orgd"
)

// beat proves, again and again, that this process sees the present state of the
// database, and finds out what other processes have changed.
//
// Every transaction that changes something says so in the table of changes, under
// its number. What a look finds is exact: the changes of the transactions that
// are over and were not when it looked before, by the snapshots that PostgreSQL
// gives it. So nobody needs to be told of a change for it to be seen, and a
// process that dies right after a commit leaves nobody with the old state.
//
// A look is made through the same address, and whatever is behind it, as all
// other transactions, and makes a change of its own: it is one that a standby
// would not take, nor a former primary that has lost its standby. While looks
// fail nothing that is kept is believed (doubted), and after proofTime the
// database is not either (lost). A look on a new connection comes with new
// connections for everything else: they may have led elsewhere.
type beat struct {
	*postgresEngine
	generations *generations
	started     time.Time
	stop        context.CancelFunc
	done        chan struct{}
	nudged      chan struct{} // somebody has changed something, maybe

	heard  atomic.Int64 // when the last look was made that has been answered, since started
	proven atomic.Int64 // when the database last took a beat, since started
	ahead  atomic.Int64 // the number of the first transaction that no look has seen begin
	alive  atomic.Int64 // live processes, this one too
	older  atomic.Bool  // there are processes that must be told in the transaction

	mu       sync.Mutex
	announce map[string]bool // payloads
	why      error           // of the last look that failed; nil after one that did not

	// Of the goroutine that looks.
	seen       snapshot
	sweepAt    time.Time
	sweepEvery time.Duration
	sweeping   int64 // the changes of earlier transactions may be swept away then
	full       bool  // the database's disk: no beat is taken, as no change is
}

// never is longer ago than any time that matters.
const never = math.MinInt64 / 2

func newBeat(e *postgresEngine, g *generations) *beat {
	b := &beat{postgresEngine: e, generations: g, started: time.Now(), done: make(chan struct{}), nudged: make(chan struct{}, 1),
		announce: map[string]bool{}}
	b.heard.Store(never)
	b.alive.Store(1)
	return b
}

func (b *beat) since(at *atomic.Int64) time.Duration {
	return time.Since(b.started) - time.Duration(at.Load())
}

// doubted reports whether changes may have gone unseen. It also notices that
// this process itself stood still.
func (b *beat) doubted() bool { return b.since(&b.heard) > trustTime }

// lost fails if the database has not been shown for too long to be the one that
// takes the changes.
func (b *beat) lost() error {
	if b.since(&b.proven) <= proofTime {
		return nil
	}
	p := problem.New(problem.Unavailable, "It is not known at the moment whether the database shows its present state.").WithCause(b.reason())
	p.RetryAfter = time.Second
	return p
}

func (b *beat) reason() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.why != nil {
		return b.why
	}
	return errors.New("the database has not answered")
}

// changed announces what a transaction of this process has changed.
func (b *beat) changed(t touched) {
	payloads := t.payloads(b.process())
	if len(payloads) == 0 {
		return
	}
	b.mu.Lock()
	for _, p := range payloads {
		b.announce[p] = true
	}
	b.mu.Unlock()
	b.nudge()
}

func (b *beat) nudge() {
	select {
	case b.nudged <- struct{}{}:
	default:
	}
}

// run looks until ctx ends, and connects again whenever it has to.
func (b *beat) run(ctx context.Context) {
	defer close(b.done)
	var listening sync.WaitGroup
	listening.Go(func() { b.listen(ctx) })
	defer listening.Wait()
	for ctx.Err() == nil {
		err := b.beatOn(ctx)
		b.heard.Store(never)
		b.mu.Lock()
		b.why = err
		b.mu.Unlock()
		switch {
		case b.lost() != nil:
			b.giveUp()
		case errors.Is(err, context.DeadlineExceeded):
			b.retire()
		}
		select {
		case <-ctx.Done():
		case <-time.After(beatSpacing):
		}
	}
}

// prove makes a beat: a primary that has lost its standby takes connections, and
// no change.
func (b *beat) prove(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	_, err := conn.Exec(ctx, beatText, b.id, b.name)
	if isFull(err) {
		_, err = conn.Exec(ctx, primaryText)
	}
	return err
}

// beatOn looks on one connection for as long as it works.
func (b *beat) beatOn(ctx context.Context) error {
	conn, err := b.findPrimary(ctx, b.prove)
	if err != nil {
		select {
		case <-ctx.Done():
		case <-time.After(beatInterval / 3):
		}
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.Background(), beatInterval)
		defer cancel()
		if ctx.Err() != nil {
			_, _ = conn.Exec(closing, `DELETE FROM processes WHERE id = $1`, b.id)
		}
		conn.Close(closing)
	}()
	b.renew()
	b.seen = snapshot{}
	wrote := time.Time{}
	for ctx.Err() == nil {
		begin := time.Now()
		write := begin.Sub(wrote) > beatInterval*3/4
		err := b.look(ctx, conn, write)
		if b.full = isFull(err); err != nil && !b.full {
			return err
		}
		if write {
			wrote = begin
		}
		b.sweep(ctx, conn)
		wait := time.NewTimer(beatInterval - time.Since(begin))
		select {
		case <-ctx.Done():
		case <-wait.C:
		case <-b.nudged:
			select {
			case <-ctx.Done():
			case <-time.After(beatSpacing):
			}
		}
		wait.Stop()
	}
	return nil
}

const (
	databaseTime = `(extract(epoch FROM clock_timestamp()) * 1000000)::bigint`
	// beatText fails on a standby.
	beatText = `INSERT INTO processes (id, name, started_at, beat_at) VALUES ($1, $2, ` + databaseTime + `, ` + databaseTime + `)
		ON CONFLICT (id) DO UPDATE SET beat_at = excluded.beat_at`
	// primaryText fails on a standby too, and writes nothing.
	primaryText = `SELECT 1 / (CASE WHEN pg_is_in_recovery() THEN 0 ELSE 1 END)`
	lookText    = `SELECT s.s::text, coalesce(c.root_id, ''), coalesce(c.org_id, '') FROM (SELECT pg_current_snapshot() AS s) AS s
		LEFT JOIN (SELECT process, root_id, org_id FROM changes WHERE tx >= $1 UNION ALL
			SELECT process, root_id, org_id FROM changes WHERE tx = ANY($2)) AS c ON c.process <> $3
		GROUP BY 1, 2, 3`
	livesText = `SELECT (SELECT count(*) FROM processes WHERE beat_at > ` + databaseTime + ` - $1),
		EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = $2)`
	announceText = `SELECT pg_notify($1, p) FROM unnest($2::text[]) AS p`
)

// isFull reports whether the database's disk has no room. Reads go on then.
func isFull(err error) bool {
	var answer *pgconn.PgError
	return errors.As(err, &answer) && answer.Code == stateDiskFull
}

// look makes one round trip: a beat, if write says so, then what has changed and
// who lives, and last the announcement of what this process has changed.
func (b *beat) look(ctx context.Context, conn *pgx.Conn, write bool) error {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	b.mu.Lock()
	announce := make([]string, 0, len(b.announce))
	for p := range b.announce {
		announce = append(announce, p)
	}
	clear(b.announce)
	b.mu.Unlock()

	asked := time.Since(b.started)
	batch := &pgx.Batch{}
	if write && b.full {
		batch.Queue(primaryText)
	} else if write {
		batch.Queue(beatText, b.id, b.name)
	}
	if write {
		batch.Queue(livesText, aliveTime.Microseconds(), olderApplication)
	}
	first, open := b.seen.after()
	batch.Queue(lookText, first, open, b.process())
	if len(announce) > 0 {
		batch.Queue(announceText, channel, announce)
	}
	results := conn.SendBatch(ctx, batch)
	err := b.read(results, write)
	if closing := results.Close(); err == nil {
		err = closing
	}
	if err != nil {
		b.mu.Lock()
		for _, p := range announce {
			b.announce[p] = true
		}
		b.mu.Unlock()
		return err
	}
	b.mu.Lock()
	b.why = nil
	b.mu.Unlock()
	b.heard.Store(int64(asked))
	if write {
		b.proven.Store(int64(asked))
	}
	return nil
}

func (b *beat) read(results pgx.BatchResults, write bool) error {
	if write {
		if _, err := results.Exec(); err != nil {
			return err
		}
		var alive int64
		var older bool
		if err := results.QueryRow().Scan(&alive, &older); err != nil {
			return err
		}
		b.alive.Store(max(alive, 1))
		b.older.Store(older)
	}
	rows, err := results.Query()
	if err != nil {
		return err
	}
	defer rows.Close()
	var now string
	roots, orgs := map[string]bool{}, map[string]bool{}
	for rows.Next() {
		var root, organization string
		if err := rows.Scan(&now, &root, &organization); err != nil {
			return err
		}
		if root != "" {
			roots[root] = true
		}
		if organization != "" {
			orgs[organization] = true
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	seen, err := parseSnapshot(now)
	if err != nil {
		return err
	}
	if b.seen.next == 0 || b.since(&b.heard) > gapTime {
		// What happened before is unknown.
		b.generations.reset()
	} else {
		var t touched
		for id := range roots {
			t.roots = append(t.roots, id)
		}
		for id := range orgs {
			t.orgs = append(t.orgs, id)
		}
		b.generations.changed(t)
	}
	b.seen = seen
	b.ahead.Store(seen.next)
	return nil
}

// sweep removes the changes of transactions that had ended by the last sweep, which
// every process has seen since, or is too late to look for, and the processes
// that are gone.
func (b *beat) sweep(ctx context.Context, conn *pgx.Conn) {
	if time.Now().Before(b.sweepAt) {
		return
	}
	b.sweepAt = time.Now().Add(b.sweepEvery)
	old := b.sweeping
	b.sweeping = b.seen.oldest()
	if old == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	// Tried again the next time.
	_, _ = conn.Exec(ctx, `DELETE FROM changes WHERE tx < $1`, old)
	_, _ = conn.Exec(ctx, `DELETE FROM processes WHERE beat_at < `+databaseTime+` - $1`, time.Hour.Microseconds())
}

// listen has the beat look at once when another process says that there is
// something. It also heeds what processes of versions say that have no table of
// changes, although that is in the table too.
func (b *beat) listen(ctx context.Context) {
	for ctx.Err() == nil {
		b.listenOn(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(beatInterval):
		}
	}
}

func (b *beat) listenOn(ctx context.Context) {
	connecting, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	config := b.direct.Copy()
	if !b.pooled {
		b.follow(config)
	}
	conn, err := pgx.ConnectConfig(connecting, config)
	if err != nil {
		return
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.Background(), beatInterval)
		defer cancel()
		conn.Close(closing)
	}()
	if _, err := conn.Exec(connecting, `LISTEN `+channel); err != nil {
		return
	}
	for ctx.Err() == nil {
		waiting, cancel := context.WithTimeout(ctx, proofTime)
		n, err := conn.WaitForNotification(waiting)
		cancel()
		switch {
		case err == nil:
			if !strings.HasSuffix(n.Payload, " "+b.process()) {
				b.nudge()
			}
		case waiting.Err() == nil || conn.IsClosed():
			return
		default:
			asking, cancel := context.WithTimeout(ctx, beatTimeout)
			err := conn.Ping(asking)
			cancel()
			if err != nil {
				return
			}
		}
	}
}

// snapshot is which transactions a look has seen the end of (pg_snapshot):
// those with a number below next, but for those that were open then.
type snapshot struct {
	next int64
	open []int64
}

// after returns what to look for next: the transactions from first on, and the
// open ones.
func (s snapshot) after() (first int64, open []int64) {
	if s.next == 0 {
		return math.MaxInt64, []int64{}
	}
	return s.next, s.open
}

// oldest returns the number of the oldest transaction whose end has not been seen:
// all with a smaller number have ended.
func (s snapshot) oldest() int64 { return slices.Min(append([]int64{s.next}, s.open...)) }

// parseSnapshot reads a pg_snapshot: xmin:xmax:xip,….
func parseSnapshot(text string) (snapshot, error) {
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return snapshot{}, fmt.Errorf("%q is not a snapshot", text)
	}
	next, err := strconv.ParseInt(parts[1], 10, 64)
	s := snapshot{next: next, open: []int64{}}
	if parts[2] != "" {
		for id := range strings.SplitSeq(parts[2], ",") {
			n, failed := strconv.ParseInt(id, 10, 64)
			err = errors.Join(err, failed)
			s.open = append(s.open, n)
		}
	}
	if err != nil || next <= 0 {
		return snapshot{}, fmt.Errorf("%q is not a snapshot", text)
	}
	return s, nil
}

// payloads returns what is announced of a change: "tree <root id> <instance>" or
// "org <organization id> <instance>".
func (t touched) payloads(instance string) []string {
	var list []string
	for _, id := range t.roots {
		list = append(list, "tree "+id+" "+instance)
	}
	for _, id := range t.orgs {
		list = append(list, "org "+id+" "+instance)
	}
	return list
}

// place is one of the servers that a database URL names.
type place struct {
	host string
	port uint16
}

// places returns the servers that the configuration names, each once.
func places(config *pgx.ConnConfig) []place {
	list := []place{{config.Host, config.Port}}
	for _, f := range config.Fallbacks {
		if p := (place{f.Host, f.Port}); !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	return list
}

// at narrows a configuration to one of its servers.
func at(config *pgx.ConnConfig, p place) {
	kept := config.Fallbacks[:0:0]
	if config.Host != p.host || config.Port != p.port {
		config.Host = ""
	}
	for _, f := range config.Fallbacks {
		switch {
		case f.Host != p.host || f.Port != p.port:
		case config.Host == "":
			config.Host, config.Port, config.TLSConfig = f.Host, f.Port, f.TLSConfig
		default:
			kept = append(kept, f)
		}
	}
	config.Fallbacks = kept
}

// follow narrows a configuration to the server where the last beat was made, so
// that everything goes to the same one.
func (e *postgresEngine) follow(config *pgx.ConnConfig) {
	if p := e.primary.Load(); p != nil {
		at(config, *p)
	}
}

// findPrimary connects to the first of the servers that answers, takes changes and
// passes a proof; nil for none. It asks all at once, so that one that hangs keeps
// nobody, and those that refuse again until all have answered: one of them may be
// promoted meanwhile. It also asks those again that do not answer, beside the attempts
// that hang: a balancer or an address that moves leads the new ones elsewhere.
func (e *postgresEngine) findPrimary(ctx context.Context, proof func(context.Context, *pgx.Conn) error) (*pgx.Conn, error) {
	all := places(e.config)
	connecting, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	type found struct {
		at   place
		conn *pgx.Conn
		err  error
	}
	answers := make(chan found)
	for _, p := range all {
		config := e.config.Copy()
		at(config, p)
		attempt := func(over chan<- struct{}) {
			defer close(over)
			conn, err := connectProven(connecting, config.Copy(), proof)
			select {
			case answers <- found{p, conn, err}:
			case <-connecting.Done():
				if err == nil {
					closeSoon(conn)
				}
			}
		}
		go func() {
			for connecting.Err() == nil {
				over := make(chan struct{})
				go attempt(over)
				select {
				case <-over:
				case <-time.After(againTime):
				case <-connecting.Done():
				}
				select {
				case <-connecting.Done():
				case <-time.After(beatInterval / 3):
				}
			}
		}()
	}
	refused := map[place]error{}
	for len(refused) < len(all) {
		select {
		case f := <-answers:
			if f.err == nil {
				if len(all) > 1 {
					e.primary.Store(&f.at)
				}
				return f.conn, nil
			}
			refused[f.at] = f.err
		case <-connecting.Done():
			for _, p := range all {
				if refused[p] == nil {
					refused[p] = fmt.Errorf("%s:%d does not answer: %w", p.host, p.port, connecting.Err())
				}
			}
		}
	}
	return nil, errors.Join(slices.Collect(maps.Values(refused))...)
}

func connectProven(ctx context.Context, config *pgx.ConnConfig, proof func(context.Context, *pgx.Conn) error) (*pgx.Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil || proof == nil {
		return conn, err
	}
	if err := proof(ctx, conn); err != nil {
		closeSoon(conn)
		return nil, err
	}
	return conn, nil
}

// closeSoon closes a connection whose server may not answer any more.
func closeSoon(conn *pgx.Conn) {
	closing, cancel := context.WithTimeout(context.Background(), beatInterval)
	defer cancel()
	conn.Close(closing)
}
