package testkit

import (
	"bufio"
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// FeedMessage is a message of a stream of server-sent events. The id of the
// last message, or of what came after it without data, is kept by the Feed.
type FeedMessage struct {
	Event string // empty for a plain message
	Data  string
}

// Feed reads a stream of server-sent events.
type Feed struct {
	// Messages is closed when the stream has ended.
	Messages chan FeedMessage
	// LastID is what Last-Event-ID resumes at. It may be read when Messages
	// has been closed, or after Close.
	LastID string
	cancel context.CancelFunc
	done   chan struct{}
	t      testing.TB
}

// Follow opens a stream of server-sent events. It returns once the stream is
// open: what happens from then on shows in it.
func (s *Server) Follow(path, key, lastID string) *Feed {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &Feed{Messages: make(chan FeedMessage, 100_000), cancel: cancel, done: make(chan struct{}), t: s.t}
	req, err := http.NewRequestWithContext(ctx, "GET", s.URL+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		s.t.Fatalf("GET %s: status %d, %s", path, resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	opened := make(chan struct{})
	go func() {
		defer close(f.done)
		defer close(f.Messages)
		defer resp.Body.Close()
		open := sync.OnceFunc(func() { close(opened) })
		defer open()
		in := bufio.NewReader(resp.Body)
		m, id, data := FeedMessage{}, "", false
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			line = strings.TrimSuffix(line, "\n")
			name, value, _ := strings.Cut(line, ":")
			value = strings.TrimPrefix(value, " ")
			switch {
			case line == "":
				f.LastID = id
				if data {
					f.Messages <- m
				}
				m, data = FeedMessage{}, false
				open()
			case name == "id":
				id = value
			case name == "event":
				m.Event = value
			case name == "data":
				m.Data, data = value, true
			}
		}
	}()
	select {
	case <-opened:
	case <-time.After(10 * time.Second):
		cancel()
		s.t.Fatalf("GET %s: nothing came", path)
	}
	s.t.Cleanup(f.Close)
	return f
}

// Next returns the next message; ok is false when the stream has ended. It
// fails the test if neither happens in the given time.
func (f *Feed) Next(within time.Duration) (m FeedMessage, ok bool) {
	f.t.Helper()
	select {
	case m, ok = <-f.Messages:
		return m, ok
	case <-time.After(within):
		f.t.Fatalf("nothing came for %v", within)
		return m, false
	}
}

// Close ends the stream.
func (f *Feed) Close() {
	f.cancel()
	<-f.done
}
