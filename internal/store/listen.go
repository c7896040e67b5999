package store

import (
	"context"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// aliveInterval is how often the listener asks whether its connection
	// still works, and how long it waits for the answer.
	aliveInterval = 300 * time.Millisecond
	// trustTime is how long the listener is believed after the last sign of
	// life: changes made by others show within this time.
	trustTime = time.Second
)

// listener hears of the changes that other processes make in the same
// database, and changes the generations of their roots.
type listener struct {
	config      *pgx.ConnConfig
	instance    string
	generations *generations
	started     time.Time
	stop        context.CancelFunc
	done        chan struct{}

	// heard is the time, since started, up to which every change has been
	// heard of. It is far in the past while there is no connection.
	heard atomic.Int64
}

// doubted reports whether changes may have gone unheard. It also notices that
// this process itself stood still.
func (l *listener) doubted() bool {
	return int64(time.Since(l.started))-l.heard.Load() > int64(trustTime)
}

// run listens until ctx ends, and connects again whenever it has to.
func (l *listener) run(ctx context.Context) {
	defer close(l.done)
	for ctx.Err() == nil {
		l.listen(ctx)
		l.heard.Store(math.MinInt64 / 2)
		select {
		case <-ctx.Done():
		case <-time.After(aliveInterval):
		}
	}
}

// listen listens on one connection for as long as it works.
func (l *listener) listen(ctx context.Context) {
	connecting, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(connecting, l.config.Copy())
	if err != nil {
		return
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.Background(), aliveInterval)
		defer cancel()
		conn.Close(closing)
	}()
	if _, err := conn.Exec(connecting, `LISTEN `+channel); err != nil {
		return
	}
	// Whatever happened before is unknown, and what happens from here on is
	// heard.
	l.generations.reset()
	for ctx.Err() == nil {
		asked := time.Since(l.started)
		asking, cancel := context.WithTimeout(ctx, aliveInterval)
		err := conn.Ping(asking)
		cancel()
		if err != nil {
			return
		}
		// The notifications of all that was committed before the question
		// came before the answer or come with the next one.
		l.heard.Store(int64(asked))
		for deadline := time.Now().Add(aliveInterval); ; {
			waiting, cancel := context.WithDeadline(ctx, deadline)
			n, err := conn.WaitForNotification(waiting)
			cancel()
			if err != nil {
				if waiting.Err() == nil || conn.IsClosed() {
					return
				}
				break
			}
			if change, by := parsePayload(n.Payload); by != l.instance {
				l.generations.changed(change)
			}
		}
	}
}

// payloads returns the notifications of a change: "tree <root id> <instance>"
// or "org <organization id> <instance>".
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

// parsePayload returns what changed, and which instance changed it.
func parsePayload(payload string) (t touched, instance string) {
	kind, rest, _ := strings.Cut(payload, " ")
	id, instance, _ := strings.Cut(rest, " ")
	if kind == "org" {
		return touched{orgs: []string{id}}, instance
	}
	return touched{roots: []string{id}}, instance
}
