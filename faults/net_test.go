//go:build linux

package faults

import (
	"bytes"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// wire is a TCP proxy that can be broken.
type wire struct {
	l net.Listener

	mu     sync.Mutex
	to     string
	conns  map[net.Conn]*atomic.Bool // those that are silent
	silent bool                      // says that new ones are
	// onCommit is asked, if it is set, about every commit that the server has
	// made, before its client learns of it.
	onCommit func() cut
	drop     bool // the next bytes of a client, and its connection
}

// cut says what is done at a commit.
type cut int

const (
	pass    cut = iota
	before      // what a client sends next does not arrive
	swallow     // the answer does not arrive
)

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{l: l, to: to, conns: map[net.Conn]*atomic.Bool{}}
	t.Cleanup(func() {
		l.Close()
		w.cut()
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go w.serve(c)
		}
	}()
	return w
}

// url returns the URL of a database behind the wire.
func (w *wire) url(t *testing.T, database string) string {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = w.l.Addr().String()
	return u.String()
}

func hostOf(t *testing.T, database string) string {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

// cut ends all connections.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		c.Close()
	}
}

// lead leads new connections to an address.
func (w *wire) lead(to string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.to, w.silent = to, false
}

// hush lets everything stay open and nothing through, as a host does that has
// vanished: on old connections for good, on new ones until lead is called.
func (w *wire) hush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent = true
	for _, silent := range w.conns {
		silent.Store(true)
	}
}

func (w *wire) serve(c net.Conn) {
	defer c.Close()
	w.mu.Lock()
	to, silent := w.to, new(atomic.Bool)
	silent.Store(w.silent)
	w.conns[c] = silent
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.conns, c)
	}()
	if silent.Load() {
		io.Copy(io.Discard, c)
		return
	}
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer server.Close()
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		for b := make([]byte, 64<<10); ; {
			n, err := server.Read(b)
			if err != nil || bytes.Contains(b[:n], []byte("COMMIT\x00")) && w.swallows() {
				return
			}
			if silent.Load() {
				continue
			}
			if _, err := c.Write(b[:n]); err != nil {
				return
			}
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		for b := make([]byte, 64<<10); ; {
			n, err := c.Read(b)
			if err != nil || w.drops() {
				return
			}
			if silent.Load() {
				continue
			}
			if _, err := server.Write(b[:n]); err != nil {
				return
			}
		}
	}()
	<-done
	if silent.Load() {
		<-done // the other end is not told
	}
}

// swallows reports whether a commit's answer is lost.
func (w *wire) swallows() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.onCommit == nil {
		return false
	}
	what := w.onCommit()
	w.drop = w.drop || what == before
	return what == swallow
}

// drops reports whether a client's bytes are lost.
func (w *wire) drops() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	drop := w.drop
	w.drop = false
	return drop
}

// Connections to PostgreSQL are cut: between a commit and its answer, and at
// something that a client sends, in turn.
func TestSwallowedCommits(t *testing.T) {
	n := rounds(t, 40)
	database := testkit.Postgres(t)
	w := newWire(t, hostOf(t, database))
	p := start(t, filepath.Join(t.TempDir(), "data"), "--database", w.url(t, database))
	j := newJournal()
	clients := makeWorld(t, p, 4, 8)
	var mu sync.Mutex
	var commits, cuts int
	w.mu.Lock()
	w.onCommit = func() cut {
		mu.Lock()
		defer mu.Unlock()
		if commits++; commits%7 != 0 || cuts == n {
			return pass
		}
		cuts++
		if cuts%2 == 0 {
			return before
		}
		return swallow
	}
	w.mu.Unlock()
	stop := clients.load(j, p.at)
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		mu.Lock()
		all := cuts == n
		mu.Unlock()
		if all || time.Since(begin) > time.Duration(n)*time.Second {
			break
		}
	}
	time.Sleep(time.Second)
	stop()
	for status, count := range j.strange {
		t.Errorf("%d answers are %s", count, status)
	}
	if cuts < n {
		t.Errorf("only %d of %d cuts were made", cuts, n)
	}
	r := row{fault: "network to PostgreSQL cut at a commit", rounds: n, found: clients.check(j, p.url, everything())}
	// What a client would make again that takes no answer for a refusal.
	r.control = found{acknowledged: r.unknown, lost: clients.check(j.skeptical(), p.url, everything()).denied}
	if r.unknownMade == 0 {
		t.Error("no commit was swallowed")
	}
	report(t, r)
}
