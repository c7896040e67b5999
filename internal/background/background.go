// Package background runs what a process does besides answering: jobs that come
// again and again, until the process stops.
package background

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Job is work that comes again and again. Its functions are called by one
// goroutine, one after the other.
type Job struct {
	Name string // of the metrics and in the log; no other job of the Runner has it
	// Failing is the log's line when the job begins to fail. A job without one
	// says itself what fails.
	Failing string
	First   time.Duration // before the first run
	Every   time.Duration // from the end of a run to the next one
	// Wait, unless it is nil, says after each run how long it is to the next one,
	// in the place of Every.
	Wait func() time.Duration
	// Wake has a value when the next run is to come at once; nil for never.
	Wake  <-chan struct{}
	Pause time.Duration // after a run, in which no other one comes
	// Due is asked whether there is something to do at all. If not, the run is left
	// out, and is neither a success nor a failure. Nil for always.
	Due func() bool
	// Run does the work once. It has to end soon after its context; what it returns
	// then is no failure.
	Run func(ctx context.Context) error
}

// panicPause is how long a job that has panicked is left alone at least: it may
// not have come to what would have it wait.
const panicPause = time.Second

// Runner runs jobs, each in a goroutine of its own. A job that fails, panics or
// hangs keeps no other one from its work. It is safe for concurrent use.
type Runner struct {
	ctx    context.Context
	cancel context.CancelFunc
	log    *slog.Logger
	now    func() time.Time

	running sync.WaitGroup
	mu      sync.Mutex
	open    map[string]bool // names of the jobs that have not ended

	succeeded *prometheus.GaugeVec
	took      *prometheus.GaugeVec
}

// NewRunner returns a Runner whose jobs end with ctx.
func NewRunner(ctx context.Context, log *slog.Logger, now func() time.Time, metrics prometheus.Registerer) *Runner {
	r := &Runner{log: log, now: now, open: map[string]bool{},
		succeeded: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "orgd_background_last_success_timestamp_seconds",
			Help: "When a job in the background last succeeded; 0 until it has."}, []string{"job"}),
		took: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "orgd_background_last_run_seconds",
			Help: "How long the last run of a job in the background took, whether or not it succeeded."}, []string{"job"})}
	r.ctx, r.cancel = context.WithCancel(ctx)
	metrics.MustRegister(r.succeeded, r.took)
	return r
}

// Start begins to run jobs.
func (r *Runner) Start(jobs ...Job) {
	for _, j := range jobs {
		r.mu.Lock()
		r.open[j.Name] = true
		r.mu.Unlock()
		succeeded, took := r.succeeded.WithLabelValues(j.Name), r.took.WithLabelValues(j.Name)
		r.running.Go(func() {
			(&running{Job: j, Runner: r, succeeded: succeeded, took: took}).loop()
			r.mu.Lock()
			delete(r.open, j.Name)
			r.mu.Unlock()
		})
	}
}

// Cancel tells all jobs to end, and waits for none.
func (r *Runner) Cancel() { r.cancel() }

// Stop tells all jobs to end and waits for them, but no longer than the given
// time. It returns the names of those that have not ended, and logs them.
func (r *Runner) Stop(within time.Duration) (late []string) {
	r.cancel()
	done := make(chan struct{})
	go func() {
		r.running.Wait()
		close(done)
	}()
	patience := time.NewTimer(within)
	defer patience.Stop()
	select {
	case <-done:
		return nil
	case <-patience.C:
	}
	r.mu.Lock()
	for name := range r.open {
		late = append(late, name)
	}
	r.mu.Unlock()
	slices.Sort(late)
	for _, name := range late {
		r.log.Error("a job in the background has not ended; the stop goes on without it", "job", name, "after_seconds", within.Seconds())
	}
	return late
}

// running is a job that a Runner runs.
type running struct {
	Job
	*Runner
	succeeded, took prometheus.Gauge

	failing  Spell // of failures, panics too
	panics   Spell
	failures int // of the spell
}

func (j *running) loop() {
	timer := time.NewTimer(j.First)
	defer timer.Stop()
	for {
		select {
		case <-j.ctx.Done():
		case <-timer.C:
		case <-j.Wake:
		}
		if j.ctx.Err() != nil {
			return
		}
		wait := j.step()
		next := time.Now().Add(wait)
		if j.Pause > 0 {
			timer.Reset(j.Pause)
			select {
			case <-j.ctx.Done():
				return
			case <-timer.C:
			}
		}
		timer.Reset(time.Until(next))
	}
}

// step runs the job once, if it is due, and returns how long it is to the next time.
func (j *running) step() (wait time.Duration) {
	defer func() {
		if what := recover(); what != nil {
			wait = max(j.Every, panicPause)
			j.ended(fmt.Errorf("panic: %v", what), debug.Stack())
		}
	}()
	if j.Due == nil || j.Due() {
		j.ended(j.timed(), nil)
	}
	if j.Wait != nil {
		return j.Wait()
	}
	return j.Every
}

func (j *running) timed() error {
	begin := time.Now()
	defer func() { j.took.Set(time.Since(begin).Seconds()) }()
	return j.Run(j.ctx)
}

// ended notes how a run went. Of failures in a row the first is logged, and so is
// the end of them. A panic is logged with the stack, also if it comes after other
// failures.
func (j *running) ended(err error, stack []byte) {
	if err != nil && stack == nil && j.ctx.Err() != nil {
		return
	}
	turned := j.failing.Turned(err != nil)
	if j.panics.Turned(stack != nil) && stack != nil {
		j.log.Error("a job in the background panicked; it is tried again", "job", j.Name, "error", err, "stack", string(stack))
	} else if turned && err != nil && j.Failing != "" {
		j.log.Error(j.Failing, "job", j.Name, "error", err)
	}
	if err != nil {
		j.failures++
		return
	}
	if turned {
		j.log.Info("a job in the background works again", "job", j.Name, "failures", j.failures)
	}
	j.failures = 0
	j.succeeded.Set(float64(j.now().UnixMicro()) / 1e6)
}
