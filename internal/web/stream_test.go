package web

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// streamTimeout is the deadline of the test's server for a whole request, and
// streamTime how long a stream takes: much longer.
const (
	streamTimeout = 200 * time.Millisecond
	streamTime    = 5 * streamTimeout
)

func streamServer(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	ts := httptest.NewUnstartedServer(h)
	ts.Config.ReadTimeout, ts.Config.WriteTimeout = streamTimeout, streamTimeout
	ts.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	ts.Start()
	t.Cleanup(ts.Close)
	return ts
}

// A stream goes on past the timeouts of the server while its client reads, and
// its request is not cancelled. A stream that fails is not taken for whole.
func TestStreamOutlivesTimeouts(t *testing.T) {
	line := strings.Repeat("x", 1000) + "\n"
	const lines = 20
	routes := []Route{
		{Method: "GET", Pattern: "/long", Operation: "long", Rule: Rule{Open: true}, Handle: func(r *Request) (*Response, error) {
			return &Response{Status: http.StatusOK, ContentType: "text/plain", Stream: func(w io.Writer) error {
				for range lines {
					time.Sleep(streamTime / lines)
					if err := r.Context().Err(); err != nil {
						return err
					}
					if _, err := io.WriteString(w, line); err != nil {
						return err
					}
				}
				return nil
			}}, nil
		}},
		{Method: "GET", Pattern: "/broken", Operation: "broken", Rule: Rule{Open: true}, Handle: func(*Request) (*Response, error) {
			return &Response{Status: http.StatusOK, ContentType: "text/plain", Stream: func(w io.Writer) error {
				io.WriteString(w, line)
				return io.ErrClosedPipe
			}}, nil
		}},
	}
	s, err := NewServer(Config{Log: slog.New(slog.DiscardHandler), Now: time.Now, Metrics: prometheus.NewRegistry()}, routes)
	if err != nil {
		t.Fatal(err)
	}
	ts := streamServer(t, s)
	for path, whole := range map[string]bool{"/long": true, "/broken": false} {
		resp, err := http.Get(ts.URL + path)
		if err != nil {
			if whole {
				t.Error(err)
			}
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if whole && (err != nil || string(body) != strings.Repeat(line, lines)) {
			t.Errorf("%s ends after %d bytes: %v", path, len(body), err)
		}
		if !whole && err == nil {
			t.Errorf("%s looks whole after %d bytes", path, len(body))
		}
	}
}

// A client that does not read is cut off.
func TestStreamIsCutWhenItsClientStalls(t *testing.T) {
	ended := make(chan error, 1)
	ts := streamServer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		out := &patientWriter{w, streamTimeout}
		chunk := make([]byte, 1<<20)
		for {
			if _, err := out.Write(chunk); err != nil {
				ended <- err
				return
			}
		}
	}))
	c, err := net.Dial("tcp", strings.TrimPrefix(ts.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the stream still waits for a client that does not read")
	}
}
