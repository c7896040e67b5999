package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"time"

	"github.com/orgd/orgd/internal/api"
	"github.com/orgd/orgd/internal/budget"
	"github.com/orgd/orgd/internal/durable"
	"github.com/orgd/orgd/internal/web"
)

// Timeouts of the HTTP server. A stream extends its write deadline as it goes.
const (
	readHeaderTimeout = 10 * time.Second
	readTimeout       = 60 * time.Second
	writeTimeout      = 120 * time.Second
	idleTimeout       = 120 * time.Second
	drainTimeout      = 25 * time.Second
)

// Front answers on the listeners of a process from before its Server is open:
// whoever watches the process sees that it lives, and what it does instead of
// answering. Serve or Close must be called in the end.
type Front struct {
	config  Config
	gate    *web.Gate
	servers []*http.Server
	failed  chan error
}

// BoundHeap has this process keep within the memory that it may use, see
// budget.BoundHeap.
func BoundHeap() int64 { return budget.BoundHeap() }

// starting is why nothing is answered while a Server is opened.
const starting = "The server is starting and not ready."

// Listen begins to answer on main, and on the other listeners of the Config.
func Listen(c Config, main net.Listener) *Front {
	return c.listen(main, web.NewGate(c.BasePath, starting, api.Surfaces()))
}

func (c Config) listen(main net.Listener, gate *web.Gate) *Front {
	places := c.listeners(main)
	f := &Front{config: c, gate: gate, failed: make(chan error, len(places))}
	for place, l := range places {
		hs := &http.Server{Handler: f.gate.On(place), ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout,
			WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 64 << 10,
			ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelWarn)}
		f.servers = append(f.servers, hs)
		go func() { f.failed <- hs.Serve(l) }()
	}
	return f
}

// listeners returns where requests come in, main being the first place.
func (c Config) listeners(main net.Listener) map[web.Listener]net.Listener {
	all := map[web.Listener]net.Listener{web.Main: main, web.Proxies: c.Proxies, web.Admin: c.Admin}
	maps.DeleteFunc(all, func(_ web.Listener, l net.Listener) bool { return l == nil })
	return all
}

// Open opens the Server and has it answer. What takes long there is why requests
// are not answered meanwhile. While the disk has too little space for a start, it
// says how much is lacking, and goes on when that is there.
func (f *Front) Open(ctx context.Context) (*Server, error) {
	c := f.config
	c.busy = func(with string) {
		why := starting
		if with != "" {
			why = "The server is starting and not ready: " + with + "."
		}
		f.gate.Close(why)
	}
	for {
		s, err := open(ctx, c, f.gate)
		var full *durable.FullError
		if errors.As(err, &full) && f.awaitSpace(ctx, full) {
			continue
		}
		if err == nil {
			s.open()
		}
		return s, err
	}
}

// awaitAtMost is after which time a start is tried again although the disk seems
// to be as full as it was.
const awaitAtMost = 10 * time.Second

// awaitSpace waits until what a start lacked is free, or for a while; false if the
// start is given up.
func (f *Front) awaitSpace(ctx context.Context, full *durable.FullError) bool {
	f.config.Log.Error("the disk is full: the server starts when so many bytes more are free, no restart is needed",
		"dir", full.Dir, "bytes", full.Needs, "error", full.Err)
	f.gate.Close(fmt.Sprintf("The server is starting and not ready: its disk is full, and at least %d bytes have to be freed.", full.Needs))
	look := time.NewTicker(time.Second / 4)
	defer look.Stop()
	for start := time.Now(); time.Since(start) < awaitAtMost; {
		select {
		case <-ctx.Done():
			return false
		case <-look.C:
		}
		if _, free, err := durable.Space(full.Dir); err == nil && free >= full.Free+full.Needs {
			return true
		}
	}
	return true
}

// Serve lets s, which Open has returned, answer requests until ctx ends. Then it
// goes on for the ShutdownDelay, in which /readyz is 503 and connections are
// given up when they have been answered, closes the listeners, and lets the
// requests under way finish. If a listener fails all end.
func (f *Front) Serve(ctx context.Context, s *Server) error {
	for _, hs := range f.servers {
		hs.RegisterOnShutdown(s.handler.Stop)
	}
	var err error
	select {
	case err = <-f.failed:
		f.config.Log.Error("a listener failed; requests under way may finish", "error", err)
	case <-ctx.Done():
		err = f.leave()
	}
	return errors.Join(err, f.drain(context.WithoutCancel(ctx)))
}

// leave goes on answering until whoever balances requests knows better.
func (f *Front) leave() error {
	f.gate.Leave()
	if f.config.ShutdownDelay <= 0 {
		f.config.Log.Info("shutting down: requests under way may finish; a second signal ends them", "at_most_seconds", drainTimeout.Seconds())
		return nil
	}
	f.config.Log.Info("shutting down: /readyz is 503 from now on, and requests are still answered; a second signal ends at once", "for_seconds", f.config.ShutdownDelay.Seconds())
	wait := time.NewTimer(f.config.ShutdownDelay)
	defer wait.Stop()
	select {
	case err := <-f.failed:
		f.config.Log.Error("a listener failed; requests under way may finish", "error", err)
		return err
	case <-wait.C:
		f.config.Log.Info("taking no more requests: those under way may finish", "at_most_seconds", drainTimeout.Seconds())
		return nil
	}
}

// drain closes the listeners and waits for the requests under way.
func (f *Front) drain(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	ended := make(chan error, len(f.servers))
	for _, hs := range f.servers {
		go func() {
			if err := hs.Shutdown(ctx); err != nil {
				ended <- fmt.Errorf("requests were still under way: %w", errors.Join(err, hs.Close()))
				return
			}
			ended <- nil
		}()
	}
	for range f.servers {
		err = errors.Join(err, <-ended)
	}
	return err
}

// Close ends a Front that no Server serves.
func (f *Front) Close() error {
	var err error
	for _, hs := range f.servers {
		err = errors.Join(err, hs.Close())
	}
	return err
}
