// Package audit holds the audit trail: entries, the Merkle log that they form
// per root organization, and its proofs. It is pure: no storage, no HTTP.
//
// A log is an RFC 6962 SHA-256 tree. Its leaves are entries in canonical JSON
// (RFC 8785) in which every erasable value is replaced by a salted commitment,
// so that a value can be erased later without changing the leaf. Checkpoints,
// proofs and tiles have the forms that C2SP describes (tlog-checkpoint,
// tlog-proof, tlog-tiles), so that tools which know nothing of orgd can check
// them.
package audit

import (
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Actor is who made a change. Name is erasable.
type Actor struct {
	Type string `json:"type"` // operator, api_key or system
	ID   string `json:"id"`
	Name string `json:"name,omitzero"`
}

// Target is what was changed.
type Target struct {
	Type string `json:"type"` // organization, api_key, customization_schema, …
	ID   string `json:"id"`
}

// Change is one value that changed. Old is nil where there was nothing
// before, New is nil where there is nothing now. Both are erasable.
type Change struct {
	Pointer string         `json:"pointer"`
	Old     jsontext.Value `json:"old,omitzero"`
	New     jsontext.Value `json:"new,omitzero"`
}

// Draft is an entry before it has its place in the log.
type Draft struct {
	ID        string    // "aud_…"
	Timestamp time.Time // UTC, whole microseconds
	OrgID     string
	Path      string // of OrgID at the time: "root/child/"
	Action    string // organization.updated, api_key.created, …
	Actor     Actor
	Target    Target
	Changes   []Change
	RequestID string
	IP        string // erasable
	UserAgent string // erasable
}

// Entry is an entry as it is shown. What was empty when the entry was made and
// what has been erased since are both absent; Erased tells them apart.
type Entry struct {
	ID        string    `json:"id"`
	Timestamp time.Time `json:"timestamp"`
	OrgID     string    `json:"org_id"`
	Path      []string  `json:"path"` // ids from the root down to OrgID, at the time
	Action    string    `json:"action"`
	Actor     Actor     `json:"actor"`
	Target    Target    `json:"target"`
	Changes   []Change  `json:"changes"`
	RequestID string    `json:"request_id,omitzero"`
	IP        string    `json:"ip,omitzero"`
	UserAgent string    `json:"user_agent,omitzero"`
	// Epoch and Seq are the entry's place: every epoch of a log is a tree of
	// its own. Epoch 0, which is the only one of nearly every log, is left out.
	Epoch    int64  `json:"epoch,omitzero"`
	Seq      int64  `json:"seq"`       // 0-based
	LeafHash string `json:"leaf_hash"` // hexadecimal
	// Erased lists the slots whose values have been erased: "ip",
	// "changes/0/new".
	Erased []string `json:"erased,omitempty"`
}

// AllErased reports whether the changes were erased as a whole: they were so many that
// they are one value.
func (e *Entry) AllErased() bool { return slices.Contains(e.Erased, "changes") }
