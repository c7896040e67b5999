package store

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/orgd/orgd/internal/problem"
)

// Bounds of one group commit: how many changes share it, and for how long it
// takes further ones.
const (
	groupSize = 256
	groupTime = 20 * time.Millisecond
)

// failureTime is how long after a failure that undid a group groups begin with
// savepoints. Failures that come one after the other cost little then.
const failureTime = time.Second

// A job is one change that waits for the writer.
type job struct {
	fn        func(*tx) error
	committed func(touched)
	state     atomic.Int32
	touched   touched // if err is nil
	err       error
	done      chan struct{}
}

const (
	jobQueued int32 = iota
	jobStarted
	jobAbandoned
)

// wait returns what became of the change. ctx ends the wait for its start, and not
// a change that has started.
func (j *job) wait(ctx context.Context) error {
	select {
	case <-j.done:
	case <-ctx.Done():
		if j.state.CompareAndSwap(jobQueued, jobAbandoned) {
			return ctx.Err()
		}
		<-j.done
	}
	return j.err
}

// run is the writer goroutine.
func (e *sqliteEngine) run() {
	defer close(e.done)
	retry := time.NewTicker(healPause)
	defer retry.Stop()
	for {
		select {
		case j, ok := <-e.queue:
			if !ok {
				if e.healed = (time.Time{}); !e.owner.lost.Load() {
					e.heal()
				}
				return
			}
			e.commitGroup(j)
			e.heal()
		case <-retry.C:
			if e.owner.sure() == nil {
				e.heal()
			}
		}
	}
}

// commitGroup runs first and jobs that wait behind it in one transaction.
func (e *sqliteEngine) commitGroup(first *job) {
	if err := e.owner.sure(); err != nil {
		first.err = err
		close(first.done)
		return
	}
	if err := e.heal(); err != nil {
		first.err = e.disk.refusal(err)
		close(first.done)
		return
	}
	e.makeRoom()
	if err := e.begin(); err != nil {
		first.err = sqliteProblem(err)
		close(first.done)
		return
	}
	g := &group{sqliteEngine: e, begun: time.Now(), half: (e.lastSize + 1 + len(e.queue)) / 2}
	if g.savepoints = g.begun.Before(e.failed.Add(failureTime)); !g.savepoints {
		g.heads = groupHeads{}
	}
	for j := first; j != nil; j = g.next() {
		if !j.state.CompareAndSwap(jobQueued, jobStarted) {
			continue
		}
		if err := g.run(j); err != nil {
			g.answer(sqliteProblem(err), false)
			return
		}
	}
	if err := g.heads.write(e.writer); err != nil {
		g.answer(sqliteProblem(g.giveUp(err)), false)
		return
	}
	start := time.Now()
	err := e.writer.commit()
	e.lastSize, e.lastCommit = len(g.jobs), time.Since(start)
	if err == nil {
		g.answer(nil, true)
		return
	}
	if errors.Is(err, sqlite3.FULL) && e.rollback() == nil {
		// What makes a commit count was not written, see walFile.
		g.answer(sqliteProblem(err), false)
		return
	}
	e.disk.unsettle(err)
	e.reopen()
	g.answer(outcomeUnknown(err), true)
}

// A group is the jobs that run in one transaction, in their order. All of them
// are answered after its commit, those that fail too: they may have failed, or
// found that nothing is to be changed, because of what others of the group did.
//
// If a job fails that has changed something, its changes must be undone, and
// nobody else's. A savepoint for each job would do that, but it has a price,
// and such failures are rare. So a group begins without them; at the first
// such failure the transaction is rolled back, all its jobs run again (see
// org.Store), and from then on each has its savepoint.
type group struct {
	*sqliteEngine
	jobs       []*job
	changed    bool       // a job has been successful
	heads      groupHeads // nil with savepoints
	savepoints bool

	begun time.Time
	// half is half of the callers that there seem to be: those that wait now
	// and those that the last group answered.
	half int
}

// next returns a further job, nil if none waits or the group is full.
//
// A group that takes all that wait makes all callers wait for each other: while
// it runs, nobody is left to prepare a change, and after it nobody has one. So
// it leaves half of the callers to the next group, unless the commit would then
// take longer than the changes.
func (g *group) next() *job {
	if n := len(g.jobs); n > 0 {
		took := time.Since(g.begun)
		if n >= groupSize || took > g.groupTime || n >= g.half && took > g.lastCommit {
			return nil
		}
	}
	select {
	case j := <-g.queue:
		return j
	default:
		return nil
	}
}

// run runs a job. If it fails, its changes are undone. If the whole transaction
// is lost, run returns the reason.
func (g *group) run(j *job) (lost error) {
	g.jobs = append(g.jobs, j)
	w := g.writer
	if g.savepoints {
		if _, err := w.exec(`SAVEPOINT job`); err != nil {
			return g.giveUp(err)
		}
	}
	changes := w.c.TotalChanges()
	t := &tx{conn: w, d: sqliteDialect, read: map[string]stored{}, heads: g.heads, unchanged: g.unchanged}
	j.err = protect(func() error { return j.fn(t) })
	if t.err != nil {
		j.err = sqliteProblem(t.err)
	}
	if w.c.GetAutocommit() { // SQLite has rolled the transaction back
		if t.err == nil {
			t.err = errors.New("the transaction has ended early")
		}
		return t.err
	}
	if j.err == nil {
		j.touched, g.changed = t.touched(), true
	}
	if !g.savepoints {
		if j.err != nil && w.c.TotalChanges() != changes {
			return g.undo()
		}
		return nil
	}
	if j.err != nil {
		if _, err := w.exec(`ROLLBACK TO job`); err != nil {
			return g.giveUp(err)
		}
	}
	if _, err := w.exec(`RELEASE job`); err != nil {
		return g.giveUp(err)
	}
	return nil
}

// unchanged reports whether a root's tree is as it was under a generation: this
// process makes all changes, the committed ones have changed the generation,
// and the others are those of this group.
func (g *group) unchanged(rootID string, generation uint64) bool {
	if g.generations.of(rootID, "") != generation {
		return false
	}
	for _, j := range g.jobs {
		if slices.Contains(j.touched.roots, rootID) {
			return false
		}
	}
	return true
}

// undo undoes the changes of the last job, which failed, and no others.
func (g *group) undo() (lost error) {
	if err := g.rollback(); err != nil {
		return g.giveUp(err)
	}
	if err := g.begin(); err != nil {
		return err
	}
	clear(g.heads)
	if !g.changed {
		return nil
	}
	jobs := g.jobs
	g.jobs, g.heads, g.savepoints, g.failed = nil, nil, true, time.Now()
	for i, j := range jobs {
		if err := g.run(j); err != nil {
			g.jobs = append(g.jobs, jobs[i+1:]...)
			return err
		}
	}
	return nil
}

// giveUp closes a connection that is in no known state.
func (g *group) giveUp(err error) error {
	g.reopen()
	return err
}

// answer ends the jobs of the group, with err if it is not nil. committed says
// that their changes are in the database, or may be.
func (g *group) answer(err error, committed bool) {
	if problem.Is(err, problem.StorageFull) {
		g.full = true
	}
	for _, j := range g.jobs {
		if committed && j.err == nil {
			j.committed(j.touched)
		}
	}
	for _, j := range g.jobs {
		if err != nil {
			j.err = err
		}
		close(j.done)
	}
}

// protect turns a panic into an error.
func protect(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			buf := make([]byte, 8<<10)
			err = fmt.Errorf("panic in a transaction: %v\n%s", p, buf[:runtime.Stack(buf, false)])
		}
	}()
	return fn()
}
