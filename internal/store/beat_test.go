package store_test

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/testkit"
)

// turnout leads connections to a server, or, while it is set to silence, takes
// them and whatever is sent over them, the old ones too.
type turnout struct {
	net.Listener
	mu     sync.Mutex
	silent bool
	gone   []chan struct{} // of each connection that leads to the server
}

func newTurnout(t *testing.T, server string) *turnout {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	w := &turnout{Listener: l}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go w.serve(c, server)
		}
	}()
	return w
}

func (w *turnout) serve(c net.Conn, server string) {
	defer c.Close()
	gone := make(chan struct{})
	w.mu.Lock()
	silent := w.silent
	if !silent {
		w.gone = append(w.gone, gone)
	}
	w.mu.Unlock()
	if !silent {
		s, err := net.Dial("tcp", server)
		if err != nil {
			return
		}
		over := make(chan struct{}, 2)
		go func() { io.Copy(s, c); over <- struct{}{} }()
		go func() { io.Copy(c, s); over <- struct{}{} }()
		select {
		case <-over:
			s.Close()
			return
		case <-gone:
			// The copies have nowhere to go: nothing comes back from s.
			s.Close()
		}
		<-over // of what came from s; c stays open
	}
	io.Copy(io.Discard, c)
}

func (w *turnout) set(silent bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent = silent
	if silent {
		for _, gone := range w.gone {
			close(gone)
		}
		w.gone = nil
	}
}

// silentServer returns a store that has been in use when the way to its server fell
// silent, which it has noticed.
func silentServer(t *testing.T) (*turnout, *store.Store) {
	t.Helper()
	u, err := url.Parse(testkit.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	w := newTurnout(t, u.Host)
	u.Host = w.Addr().String()
	s := openPostgres(t, u.String())
	plantRoot(t, s, "r")
	eventually(t, "trust", func() bool { return trusted(s, "r") })

	w.set(true)
	eventually(t, "doubt", func() bool { return s.Ping(t.Context()) != nil })
	return w, s
}

// TestPostgresSilence: an address that was silent leads to a server again. Who had
// begun to connect before that is not waited for.
func TestPostgresSilence(t *testing.T) {
	w, s := silentServer(t)
	time.Sleep(time.Second) // it connects
	w.set(false)
	begin := time.Now()
	eventually(t, "recovery", func() bool { return s.Ping(t.Context()) == nil })
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("the server that answers is found after %v", took)
	}
	if err := update(s, "r"); err != nil {
		t.Error(err)
	}
}

// TestPostgresSilenceOfMany: those who ask while an address is silent take no places
// in the pool that others need when it leads to a server again, and get theirs.
func TestPostgresSilenceOfMany(t *testing.T) {
	w, s := silentServer(t)
	var wg sync.WaitGroup
	defer wg.Wait()
	for range 40 {
		wg.Go(func() {
			if err := update(s, "r"); err != nil {
				t.Error(err)
			}
		})
	}
	time.Sleep(500 * time.Millisecond) // they connect
	w.set(false)
	begin := time.Now()
	eventually(t, "recovery", func() bool { return update(s, "r") == nil })
	if took := time.Since(begin); took > 2500*time.Millisecond {
		t.Errorf("a change is made after %v", took)
	}
}
