package evidence

import (
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
)

// View is what the package reads within one transaction; see org.View.
type View interface {
	// Org returns an organization, live or deleted.
	Org(id string) (*org.Organization, error)
	// Head returns a head of a log of the root, without a lock: an empty log
	// id stands for the open log, a negative epoch for the log's last one.
	Head(rootID, logID string, epoch int64) (*audit.Head, error)
	// LogHashes is the audit.HashSource of a log.
	LogHashes(head *audit.Head, level int, from, to int64) ([]audit.Hash, error)
	// Leaves returns the leaves from ≤ seq < to of a log.
	Leaves(head *audit.Head, from, to int64) ([][]byte, error)
	// Signature returns the last signature of an epoch of a log.
	Signature(head *audit.Head) (*Signature, error)
	// UnsignedHeads returns heads with entries that no signature covers, of
	// one root or, without, of all, in the order of their root's id and
	// ordinal, those after a given one, at most limit. An epoch that another
	// one follows is never signed again and left out.
	UnsignedHeads(rootID string, after *audit.Head, limit int) ([]*audit.Head, error)
	// SignedHeads returns heads that were signed at or after a time, the
	// earliest first, at most limit.
	SignedHeads(since time.Time, limit int) ([]*audit.Head, error)
	// AuditEntry returns an entry of the root's open log.
	AuditEntry(rootID, id string) (*audit.Record, error)
	// AuditEntries returns one page of audit entries, newest first.
	AuditEntries(q org.AuditQuery) (org.AuditPage, error)
}

// Tx is what the package reads and writes within one transaction; see org.Tx.
type Tx interface {
	View

	// CloseLog closes an epoch of a log: Lock no longer returns it. ErrStale
	// if it is closed already.
	CloseLog(head *audit.Head, at time.Time) error
	// PutSignature stores a signature. ErrStale if there is one of the same
	// or a greater size, or if the log is signed by another key: two servers
	// that sign at once cannot both have signed.
	PutSignature(head *audit.Head, s *Signature) error
	// PutCosignatures replaces the last signed checkpoint by the same one
	// with more signatures. ErrStale if the last one has another size.
	PutCosignatures(head *audit.Head, size int64, checkpoint []byte) error
	// PutKeys sets who signs an epoch that has been signed before.
	PutKeys(head *audit.Head, keys LogKeys) error
}

// Store is the side of the store that this package sees.
type Store = org.Face[View, Tx]

// Signature is the last signed checkpoint of an epoch of a log.
type Signature struct {
	Size       int64
	Checkpoint []byte // a signed note, with the cosignatures of witnesses
	SignedAt   time.Time
	Keys       LogKeys
}

// LogKeys says which keys sign a log.
type LogKeys struct {
	Now      KeyName
	Old      KeyName   // signs too until OldUntil; its version is 0 for none
	OldUntil time.Time // zero for none
}

// KeyName names a key: the id of the seed that it is derived from, and its
// version.
type KeyName struct {
	Seed    string
	Version int64
}
