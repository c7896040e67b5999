package server

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// slowBuffer is a destination whose every write takes a while.
type slowBuffer struct {
	mu     sync.Mutex
	b      bytes.Buffer
	writes int
}

func (s *slowBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	time.Sleep(time.Millisecond)
	return s.b.Write(p)
}

func (s *slowBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// Lines that many goroutines log come out whole, each goroutine's in order,
// with none missing after Close, and in far fewer writes.
func TestLineWriterKeepsLines(t *testing.T) {
	var out slowBuffer
	w := NewLineWriter(&out)
	log := slog.New(promptHandler{slog.NewTextHandler(w, nil), w})
	const goroutines, lines = 8, 2000
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range lines {
				log.Info("line", "g", g, "i", i, "padding", strings.Repeat("x", 100))
			}
		})
	}
	wg.Wait()
	w.Close()
	var next [goroutines]int
	n := 0
	for line := range strings.Lines(out.String()) {
		var g, i int
		_, rest, ok := strings.Cut(line, "level=INFO msg=line ")
		if _, err := fmt.Sscanf(rest, "g=%d i=%d padding="+strings.Repeat("x", 100), &g, &i); !ok || err != nil {
			t.Fatalf("the line %q is not whole: %v", line, err)
		}
		if next[g] != i {
			t.Fatalf("line %d of %d came where %d should be", i, g, next[g])
		}
		next[g]++
		n++
	}
	if n != goroutines*lines {
		t.Errorf("%d lines of %d came out", n, goroutines*lines)
	}
	if out.writes > n/100 {
		t.Errorf("%d lines took %d writes", n, out.writes)
	}
}

// An error is out when the call that logs it returns, with all before it; other
// lines follow soon.
func TestLineWriterIsPrompt(t *testing.T) {
	var out slowBuffer
	w := NewLineWriter(&out)
	defer w.Close()
	log := slog.New(promptHandler{slog.NewJSONHandler(w, nil), w}).With("a", 1).WithGroup("g")
	log.Info("first")
	log.Error("second", "b", 2)
	if s := out.String(); !strings.Contains(s, `"msg":"first"`) || !strings.Contains(s, `"msg":"second","a":1,"g":{"b":2}`) {
		t.Errorf("after an error the log is %q", s)
	}
	log.Info("third")
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(out.String(), "third"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a line is still not out")
		}
	}
}

func BenchmarkLog(b *testing.B) {
	for _, bb := range []struct {
		name string
		log  func(f *os.File) (*slog.Logger, io.Closer)
	}{
		{"each", func(f *os.File) (*slog.Logger, io.Closer) { return slog.New(slog.NewTextHandler(f, nil)), f }},
		{"gathered", func(f *os.File) (*slog.Logger, io.Closer) {
			w := NewLineWriter(f)
			return slog.New(promptHandler{slog.NewTextHandler(w, nil), w}), w
		}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			f, err := os.Create(filepath.Join(b.TempDir(), "log"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			log, c := bb.log(f)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					log.Info("request", "request_id", "req_06h17q8r6sxb309a2p2m4g4k04", "operation", "getOrg", "method", "GET",
						"path", "/orgs/org-123", "status", 200, "took_ms", 0.123, "ip", "127.0.0.1")
				}
			})
			c.Close()
		})
	}
}
