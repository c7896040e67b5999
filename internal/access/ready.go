package access

import "github.com/orgd/orgd/internal/problem"

// headroom is how much room for records Ready leaves to the requests that it
// has let through already.
const headroom = 256 << 10

// Ready fails if too much waits to be stored: so that a request can be refused
// before it has an effect that would then go unrecorded. Whether the disk is
// full only Record can tell.
func (r *Recorder) Ready() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return problem.New(problem.Unavailable, "The server is shutting down.")
	}
	if r.bytes > 0 && r.bytes+min(headroom, r.opts.MaxBytes/2) > r.opts.MaxBytes {
		return &problem.Error{Code: problem.Unavailable, RetryAfter: retryAfter,
			Detail: "The server cannot record more requests until its database has caught up."}
	}
	return nil
}
