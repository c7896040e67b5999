package server

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"
)

const (
	// lineDelay is how long a line of the log may wait to be written with
	// others.
	lineDelay = 100 * time.Millisecond
	// lineBuffer is how much may wait; who logs more waits for the writing.
	lineBuffer = 256 << 10
)

// LineWriter gathers lines and writes many of them at once, so that requests
// do not queue for one system call each. Lines stay whole and in order. What
// was written and not yet passed on is lost if the process is killed, at most
// lineDelay of it; a warning or an error, with all before it, is passed on
// before the call that logs it returns.
type LineWriter struct {
	out io.Writer

	mu      sync.Mutex
	buf     []byte
	spare   []byte
	writing sync.Mutex // held while out is written to; taken before mu

	stop, stopped chan struct{}
	once          sync.Once
}

// NewLineWriter returns a writer that passes lines on to out. It must be closed.
func NewLineWriter(out io.Writer) *LineWriter {
	w := &LineWriter{out: out, stop: make(chan struct{}), stopped: make(chan struct{})}
	go func() {
		defer close(w.stopped)
		tick := time.NewTicker(lineDelay)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				w.Flush()
			case <-w.stop:
				return
			}
		}
	}()
	return w
}

// Write takes a line. It returns before the line is written out.
func (w *LineWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	w.buf = append(w.buf, line...)
	full := len(w.buf) >= lineBuffer
	w.mu.Unlock()
	if full {
		w.Flush()
	}
	return len(line), nil
}

// Flush writes out all lines taken before the call. What out refuses is
// dropped: there is nowhere to say so.
func (w *LineWriter) Flush() {
	w.writing.Lock()
	defer w.writing.Unlock()
	w.mu.Lock()
	b := w.buf
	w.buf, w.spare = w.spare[:0], nil
	w.mu.Unlock()
	if len(b) > 0 {
		w.out.Write(b)
	}
	w.mu.Lock()
	w.spare = b
	w.mu.Unlock()
}

// Close writes out what waits. From then on lines are written out with Flush
// only.
func (w *LineWriter) Close() error {
	w.once.Do(func() {
		close(w.stop)
		<-w.stopped
	})
	w.Flush()
	return nil
}

// Handler returns a handler that formats for w and passes warnings and errors
// on at once. inner must write to w.
func (w *LineWriter) Handler(inner slog.Handler) slog.Handler { return promptHandler{inner, w} }

// promptHandler passes warnings and errors on at once.
type promptHandler struct {
	slog.Handler
	w *LineWriter
}

func (h promptHandler) Handle(ctx context.Context, r slog.Record) error {
	err := h.Handler.Handle(ctx, r)
	if r.Level >= slog.LevelWarn {
		h.w.Flush()
	}
	return err
}

func (h promptHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return promptHandler{h.Handler.WithAttrs(attrs), h.w}
}

func (h promptHandler) WithGroup(name string) slog.Handler {
	return promptHandler{h.Handler.WithGroup(name), h.w}
}
