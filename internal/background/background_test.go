package background_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/orgd/orgd/internal/background"
)

// logBuffer is a log that is read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// take returns what was written since it was last called.
func (l *logBuffer) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}

// bench is a Runner in a bubble of synctest, with its log and its metrics.
type bench struct {
	*background.Runner
	log     logBuffer
	metrics *prometheus.Registry
	begin   time.Time
}

func newBench(t *testing.T) *bench {
	b := &bench{metrics: prometheus.NewRegistry(), begin: time.Now()}
	b.Runner = background.NewRunner(t.Context(), slog.New(slog.NewTextHandler(&b.log, nil)), time.Now, b.metrics)
	return b
}

// after lets time pass until so long after the start.
func (b *bench) after(d time.Duration) {
	time.Sleep(d - time.Since(b.begin))
	synctest.Wait()
}

// value returns what a metric says of a job.
func (b *bench) value(t *testing.T, name, job string) float64 {
	t.Helper()
	families, err := b.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == name && m.Label[0].GetValue() == job {
				return m.Gauge.GetValue()
			}
		}
	}
	t.Fatalf("there is no %s of the job %s", name, job)
	return 0
}

// logged fails the test unless the log has exactly these messages since it was last
// asked.
func (b *bench) logged(t *testing.T, want ...string) {
	t.Helper()
	text := b.log.take()
	if strings.Count(text, "\n") != len(want) {
		t.Errorf("the log has\n%swant %q", text, want)
	}
	for _, w := range want {
		if strings.Count(text, w) != 1 {
			t.Errorf("the log has\n%swant %q once", text, w)
		}
	}
}

// times collects when a job runs, in seconds since the start of a bench.
type times []float64

func (l *times) run(b *bench) func(context.Context) error {
	return func(context.Context) error {
		*l = append(*l, time.Since(b.begin).Seconds())
		return nil
	}
}

func (l *times) are(t *testing.T, want ...float64) {
	t.Helper()
	if !slices.Equal(*l, want) {
		t.Errorf("the job ran after %v seconds, want %v", *l, want)
	}
}

// A job runs at its first time, and again so long after each run as it says.
func TestAJobComesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		var plain, slow, waits times
		b.Start(background.Job{Name: "plain", First: 2 * time.Second, Every: 3 * time.Second, Run: plain.run(b)},
			background.Job{Name: "slow", Every: 3 * time.Second, Run: func(ctx context.Context) error {
				time.Sleep(2 * time.Second)
				return slow.run(b)(ctx)
			}},
			background.Job{Name: "waits", Wait: func() time.Duration { return time.Duration(len(waits)) * time.Second }, Run: waits.run(b)})
		b.after(10 * time.Second)
		b.Stop(5 * time.Second)
		plain.are(t, 2, 5, 8)
		slow.are(t, 2, 7, 12)
		waits.are(t, 0, 1, 3, 6, 10)
	})
}

// A job that is woken runs at once, but for the pause after a run; a run that is not
// due is left out.
func TestAJobIsWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		var runs times
		wake := make(chan struct{}, 1)
		var done atomic.Bool
		b.Start(background.Job{Name: "job", Every: 10 * time.Second, Wake: wake, Pause: 2 * time.Second, Due: func() bool { return !done.Load() }, Run: runs.run(b)})
		b.after(3 * time.Second)
		wake <- struct{}{}
		b.after(4 * time.Second)
		wake <- struct{}{} // within the pause
		b.after(16 * time.Second)
		done.Store(true)
		b.after(20 * time.Second)
		succeeded := b.value(t, "orgd_background_last_success_timestamp_seconds", "job")
		if want := float64(b.begin.Add(15 * time.Second).Unix()); succeeded != want {
			t.Errorf("what is not due counts as a success: at %v, want %v", succeeded, want)
		}
		b.Stop(time.Second)
		runs.are(t, 0, 3, 5, 15)
	})
}

// Failures in a row are in the log once, with the first reason, and so is their end.
// Metrics tell when a job last succeeded, and how long it took.
func TestAFailingJobIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		var failing atomic.Bool
		b.Start(background.Job{Name: "job", First: time.Second, Every: time.Second, Failing: "the work failed; it is tried again",
			Run: func(context.Context) error {
				time.Sleep(250 * time.Millisecond)
				if failing.Load() {
					return errors.New("no luck")
				}
				return nil
			}},
			background.Job{Name: "quiet", Every: time.Second, Run: func(context.Context) error { return errors.New("said elsewhere") }})
		if at := b.value(t, "orgd_background_last_success_timestamp_seconds", "job"); at != 0 {
			t.Errorf("it has succeeded before it ran: %v", at)
		}
		b.after(5 * time.Second)
		b.logged(t)
		last := b.value(t, "orgd_background_last_success_timestamp_seconds", "job")
		if want := float64(b.begin.Add(5*time.Second).UnixMilli()) / 1e3; last != want {
			t.Errorf("it succeeded at %v, want %v", last, want)
		}
		if took := b.value(t, "orgd_background_last_run_seconds", "job"); took != 0.25 {
			t.Errorf("it took %v seconds, want 0.25", took)
		}
		for range 2 {
			last = b.value(t, "orgd_background_last_success_timestamp_seconds", "job")
			failing.Store(true)
			b.after(time.Since(b.begin) + 5*time.Second)
			b.logged(t, `level=ERROR msg="the work failed; it is tried again" job=job error="no luck"`)
			if at := b.value(t, "orgd_background_last_success_timestamp_seconds", "job"); at != last {
				t.Errorf("a failure counts as a success: %v, before %v", at, last)
			}
			failing.Store(false)
			b.after(time.Since(b.begin) + 5*time.Second)
			b.logged(t, `level=INFO msg="a job in the background works again" job=job failures=4`)
		}
		b.Stop(time.Second)
	})
}

// A panic is in the log with its stack, and ends neither its job nor another one.
func TestAPanicEndsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		var other times
		runs := 0
		b.Start(background.Job{Name: "bad", Every: time.Second, Failing: "the work failed", Run: func(context.Context) error {
			if runs++; runs == 1 {
				return errors.New("no luck")
			} else if runs < 4 {
				panic("a bad day")
			}
			return nil
		}},
			background.Job{Name: "wild", Wait: func() time.Duration { panic("no end") }, Run: func(context.Context) error { return nil }},
			background.Job{Name: "other", Every: time.Second, Run: other.run(b)})
		b.after(500 * time.Millisecond)
		b.logged(t, `msg="the work failed" job=bad`, `job=wild error="panic: no end"`)
		b.after(2500 * time.Millisecond)
		text := b.log.take()
		if !strings.Contains(text, "TestAPanicEndsNothing") {
			t.Errorf("there is no stack in the log:\n%s", text)
		}
		if strings.Count(text, `job=bad error="panic: a bad day"`) != 1 {
			t.Errorf("the panic is not in the log once:\n%s", text)
		}
		b.after(3500 * time.Millisecond)
		if text := b.log.take(); !strings.Contains(text, `msg="a job in the background works again" job=bad failures=3`) {
			t.Errorf("the end of the panics is not in the log:\n%s", text)
		}
		b.Stop(time.Second)
		other.are(t, 0, 1, 2, 3)
	})
}

// A stop waits for jobs that end, and what they return then is no failure. It goes on
// without a job that does not end, and says which one that is.
func TestStopIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		release := make(chan struct{})
		ended := false
		b.Start(background.Job{Name: "ends", Every: time.Second, Failing: "it failed", Run: func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(time.Second)
			ended = true
			return ctx.Err()
		}},
			background.Job{Name: "hangs", Every: time.Second, Run: func(context.Context) error {
				<-release
				return nil
			}})
		b.after(time.Second)
		if late := b.Stop(3 * time.Second); !slices.Equal(late, []string{"hangs"}) {
			t.Errorf("late are %v, want the one that hangs", late)
		}
		if took := time.Since(b.begin) - time.Second; took != 3*time.Second || !ended {
			t.Errorf("the stop took %v, and the other job has ended: %v", took, ended)
		}
		b.logged(t, "job=hangs after_seconds=3")
		close(release)
		if late := b.Stop(3 * time.Second); late != nil {
			t.Errorf("late are %v, want none any more", late)
		}
		if took := time.Since(b.begin); took != 4*time.Second {
			t.Errorf("a stop with nothing to wait for ended after %v", took-4*time.Second)
		}
		b.logged(t)
	})
}
