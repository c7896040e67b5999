package web_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/web"
)

// A probe that fails is in the log once, with the reason, however often it is made,
// and once when it works again. Other calls are there each time.
func TestAFailingProbeIsLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	failing := false
	handle := func(r *web.Request) (*web.Response, error) {
		if failing {
			return nil, problem.New(problem.Unavailable, "The disk is gone.")
		}
		return web.JSON(http.StatusOK, "fine"), nil
	}
	s, err := web.NewServer(web.Config{Log: slog.New(slog.NewTextHandler(&log, nil)), Now: time.Now, Metrics: prometheus.NewRegistry(), Listeners: []web.Listener{web.Main}},
		[]web.Route{
			{Method: "GET", Pattern: "/readyz", Listeners: []web.Listener{web.Main}, Operation: "readyz", Rule: web.Rule{Open: true}, Probe: true, Handle: handle},
			{Method: "GET", Pattern: "/other", Listeners: []web.Listener{web.Main}, Operation: "other", Rule: web.Rule{Open: true}, Handle: handle},
		})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		for _, step := range []struct {
			failing          bool
			requests, errors int // in the log, of five probes
		}{{false, min(round, 1), 0}, {true, 1, 1}} {
			failing = step.failing
			log.Reset()
			for range 5 {
				s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/readyz", nil))
			}
			text := log.String()
			if n := strings.Count(text, "msg=request "); n != step.requests {
				t.Errorf("round %d, failing %v: %d requests in the log:\n%s", round, step.failing, n, text)
			}
			if n := strings.Count(text, `msg="request failed"`); n != step.errors || n > 0 && !strings.Contains(text, "The disk is gone.") {
				t.Errorf("round %d, failing %v: %d failures in the log:\n%s", round, step.failing, n, text)
			}
			log.Reset()
			for range 5 {
				s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/other", nil))
			}
			if n := strings.Count(log.String(), "msg=request "); n != 5 {
				t.Errorf("round %d, failing %v: %d of 5 other requests in the log:\n%s", round, step.failing, n, log.String())
			}
		}
	}
}
