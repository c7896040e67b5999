package access

import "github.com/orgd/orgd/internal/problem"

// Ready fails if Record would, as far as that can be told without writing: so
// that a request can be refused before it has an effect that would then go
// unrecorded.
func (r *Recorder) Ready() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return problem.New(problem.Unavailable, "The server is shutting down.")
	}
	if r.bytes+recordHeader+maxPayload > r.opts.MaxBytes {
		return r.refuse(&problem.Error{Code: problem.Unavailable, RetryAfter: retryAfter,
			Detail: "The server cannot record more requests until its database has caught up."})
	}
	return nil
}
