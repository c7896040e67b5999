package audit

import (
	"github.com/orgd/orgd/internal/problem"
)

// CheckAnchor checks that a log has not fallen behind, or departed from, the
// last checkpoint that was signed for it and kept elsewhere. The hashes are
// those of the log as it is now. If it has, signing would contradict what was
// signed before: the error is of the code problem.Conflict.
func CheckAnchor(h *Head, anchored Checkpoint, hashes HashSource) error {
	now := h.Checkpoint()
	fail := func(format string, args ...any) error {
		return problem.New(problem.Conflict, "The audit log "+now.Origin+" "+format, args...).
			WithFix("If an old backup was restored on purpose, open a new epoch: orgd audit new-epoch --reason …")
	}
	switch {
	case anchored.Origin != now.Origin:
		return fail("is not the one of the last signed checkpoint, which is of %s.", anchored.Origin)
	case anchored.Size > now.Size:
		return fail("has %d entries, but its last signed checkpoint has %d.", now.Size, anchored.Size)
	case anchored.Size == 0:
		return nil
	}
	// A consistency proof from the log's own hashes holds exactly if its first
	// anchored.Size entries are still those of the checkpoint.
	proof, err := ProveConsistency(anchored.Size, now.Size, hashes)
	if err != nil {
		return err
	}
	if VerifyConsistency(anchored, now, proof) != nil {
		return fail("does not have the entries of its last signed checkpoint of size %d.", anchored.Size)
	}
	return nil
}
