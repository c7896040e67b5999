package main

import (
	"bytes"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// A front passes connections on to a server, and can cut all of them.
type front struct {
	url  string
	mu   sync.Mutex
	open map[net.Conn]bool
}

func newFront(t *testing.T, url string) *front {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &front{url: "http://" + l.Addr().String(), open: map[net.Conn]bool{}}
	t.Cleanup(func() {
		l.Close()
		f.cut()
	})
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
			if err != nil {
				in.Close()
				continue
			}
			f.mu.Lock()
			f.open[in], f.open[out] = true, true
			f.mu.Unlock()
			for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
				go func() {
					io.Copy(way[0], way[1])
					f.mu.Lock()
					defer f.mu.Unlock()
					for _, c := range way {
						c.Close()
						delete(f.open, c)
					}
				}()
			}
		}
	}()
	return f
}

func (f *front) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.open {
		c.Close()
		delete(f.open, c)
	}
}

// lines collects the lines that are written to it.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSuffix(l.buf.String(), "\n"), "\n")
}

func (l *lines) wait(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); len(l.all()) < n || l.all()[0] == ""; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d lines came, want %d:\n%s", len(l.all()), n, strings.Join(l.all(), "\n"))
		}
	}
}
