package store

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orgd/orgd/internal/problem"
)

// leadersPerRoot is how many transactions of one root are under way on PostgreSQL
// for changes that may share one: while one commits, the next waits for the root's
// lock already and has it without another round trip.
const leadersPerRoot = 2

// rootQueues are the changes that wait for a transaction that they share with
// others of their root. It is safe for concurrent use.
type rootQueues struct {
	mu    sync.Mutex
	roots map[string]*rootQueue
}

// A rootQueue is the changes of one root that wait, and who runs them.
type rootQueue struct {
	waiting []*job
	leaders int
	failed  time.Time // when changes of the root last had to be undone
}

// add queues a change. It reports whether somebody must begin to lead.
func (q *rootQueues) add(rootID string, j *job) (lead bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	root := q.roots[rootID]
	if root == nil {
		root = &rootQueue{}
		q.roots[rootID] = root
	}
	root.waiting = append(root.waiting, j)
	if lead = root.leaders < leadersPerRoot; lead {
		root.leaders++
	}
	return lead
}

// next takes a change whose caller still waits; nil if there is none.
func (q *rootQueues) next(rootID string) *job {
	q.mu.Lock()
	defer q.mu.Unlock()
	root := q.roots[rootID]
	for len(root.waiting) > 0 {
		j := root.waiting[0]
		root.waiting[0], root.waiting = nil, root.waiting[1:]
		if j.state.CompareAndSwap(jobQueued, jobStarted) {
			return j
		}
	}
	return nil
}

// leave reports whether a leader may go: nothing waits that it should lead.
func (q *rootQueues) leave(rootID string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	root := q.roots[rootID]
	if len(root.waiting) > 0 {
		return false
	}
	root.leaders--
	q.forget(rootID)
	return true
}

// forget drops a root of which nothing has to be known any more.
func (q *rootQueues) forget(rootID string) {
	root := q.roots[rootID]
	if root != nil && root.leaders == 0 && time.Since(root.failed) >= failureTime {
		delete(q.roots, rootID)
	}
}

// size returns how many changes a transaction of the root may take.
func (q *rootQueues) size(rootID string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if time.Since(q.roots[rootID].failed) < failureTime {
		return 1
	}
	return groupSize
}

// fail notes that changes of the root had to be undone, and made again.
func (q *rootQueues) fail(rootID string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.roots[rootID].failed = time.Now()
	time.AfterFunc(failureTime, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.forget(rootID)
	})
}

// writeTogether runs a change with others of the same root in one transaction.
// They would wait for each other's commits, and of their log's head, which each
// of them moves, the database would keep a version for each. The caller's context
// ends the wait for a turn.
func (e *postgresEngine) writeTogether(ctx context.Context, rootID string, fn func(*tx) error, committed func(touched)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	j := &job{fn: fn, committed: committed, done: make(chan struct{})}
	if e.queues.add(rootID, j) {
		go e.lead(rootID)
	}
	return j.wait(ctx)
}

// lead runs the changes of a root until none waits.
func (e *postgresEngine) lead(rootID string) {
	for !e.queues.leave(rootID) {
		if err := e.writers.enter(context.Background()); err != nil {
			e.turnAway(rootID, err)
			continue
		}
		e.commitTogether(rootID)
		e.writers.leave()
	}
}

// turnAway answers all that wait.
func (e *postgresEngine) turnAway(rootID string, err error) {
	for j := e.queues.next(rootID); j != nil; j = e.queues.next(rootID) {
		j.err = err
		close(j.done)
	}
}

// commitTogether runs changes that wait in one transaction and answers them. If
// one of them fails after it has written, or the transaction is lost before its
// commit, nothing of it is kept, and each runs again in a transaction of its own.
func (e *postgresEngine) commitTogether(rootID string) {
	c, err := e.acquire(context.Background())
	if err != nil {
		e.turnAway(rootID, err)
		return
	}
	jobs, err, again := e.runTogether(c, rootID)
	for _, j := range jobs {
		switch {
		case again:
			j.err = e.writeAlone(context.Background(), j.fn, j.committed)
		case err != nil:
			j.err = err
		}
		close(j.done)
	}
}

// runTogether returns the changes that it has run, and why none of them was made,
// or that they are to run again.
func (e *postgresEngine) runTogether(c *pgxpool.Conn, rootID string) (jobs []*job, err error, again bool) {
	defer c.Release()
	ctx, cancel := e.bounded(context.Background(), transactionTimeout, c.Conn())
	defer cancel()
	conn := e.begin(ctx, c, `begin isolation level read committed`, false)
	defer conn.end(ctx)
	heads, changed, begun := groupHeads{}, touched{}, time.Time{}
	for most := e.queues.size(rootID); len(jobs) < most && (len(jobs) == 0 || time.Since(begun) < groupTime); {
		j := e.queues.next(rootID)
		if j == nil {
			break
		}
		jobs = append(jobs, j)
		t := &tx{conn: conn, d: postgresDialect, read: map[string]stored{}, heads: heads}
		j.err = protect(func() error { return j.fn(t) })
		if t.err != nil || j.err != nil && t.writes > 0 {
			return e.undone(rootID, jobs, t.err)
		}
		if j.err == nil {
			j.touched = t.touched()
			changed.add(j.touched)
		}
		if len(jobs) == 1 {
			begun = time.Now() // it had to wait for the lock
		}
	}
	if len(jobs) == 0 || !slices.ContainsFunc(jobs, func(j *job) bool { return j.err == nil }) {
		return jobs, nil, false
	}
	if err := heads.write(conn); err != nil {
		return e.undone(rootID, jobs, err)
	}
	if err := e.note(conn, changed); err != nil {
		return e.undone(rootID, jobs, err)
	}
	err, again = e.commit(ctx, conn, func() {
		for _, j := range jobs {
			if j.err == nil {
				j.committed(j.touched)
			}
		}
		e.beat.changed(changed)
	})
	if err != nil && len(jobs) > 1 && !problem.Is(err, problem.OutcomeUnknown) {
		// One of them may be to blame, and the server has said no to all.
		return e.undone(rootID, jobs, err)
	}
	return jobs, err, again
}

// undone says what becomes of changes that were not made, the last of which has
// failed: with lost, if the whole transaction has.
func (e *postgresEngine) undone(rootID string, jobs []*job, lost error) ([]*job, error, bool) {
	if len(jobs) > 1 {
		e.queues.fail(rootID)
		return jobs, nil, true
	}
	if lost == nil {
		return jobs, nil, false
	}
	err, again := e.refused(lost)
	return jobs, err, again
}

// add adds what another change has changed.
func (t *touched) add(other touched) {
	for _, id := range other.roots {
		if !slices.Contains(t.roots, id) {
			t.roots = append(t.roots, id)
		}
	}
	for _, id := range other.orgs {
		if !slices.Contains(t.orgs, id) {
			t.orgs = append(t.orgs, id)
		}
	}
}
