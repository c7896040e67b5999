// Package org holds the organization tree and everything an organization
// owns: the rules, and the service that applies them. It knows no SQL and no
// HTTP: Store is what it needs of a database.
package org

import (
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
)

// MaxDepth is the depth of the deepest organization allowed; a root has
// depth 0.
const MaxDepth = 32

// Type is the kind of an organization.
type Type string

const (
	TypeOrganization Type = "organization"
	TypeGroup        Type = "group"
	TypeUser         Type = "user" // the only type that holds no children
)

// Organization is a node of the tree.
type Organization struct {
	ID       string
	RootID   string
	ParentID string // empty for a root
	// Path is the ids from the root down to the organization itself, each
	// followed by a slash: "root/group/team/". The subtree of X is exactly
	// the organizations whose Path starts with the Path of X.
	Path        string
	Depth       int
	Name        string
	Type        Type
	Description string
	ExternalID  string
	Tags        []string  // sorted, without repeats
	Settings    Settings  // own customizations
	CreatedAt   time.Time // UTC, whole microseconds, like all times here
	UpdatedAt   time.Time
	Version     int64 // grows by one with every change of the row
	DeletedAt   *time.Time
	DeletionID  string // names the delete that removed it, with all it removed
}

// Settings are an organization's own customizations.
type Settings struct {
	Values    jsontext.Value // a JSON object; never empty
	Locked    []string       // JSON Pointers that descendants may not set; sorted
	UpdatedAt time.Time
}

// PathIDs returns the ids from the root down to the organization itself.
func (o *Organization) PathIDs() []string { return SplitPath(o.Path) }

// SplitPath returns the ids of a path, from the root down.
func SplitPath(path string) []string {
	return strings.Split(strings.TrimSuffix(path, "/"), "/")
}

// Counts says how much a delete or a restore touches.
type Counts struct {
	Organizations int64 `json:"organizations"` // with the organization itself
	APIKeys       int64 `json:"api_keys"`
}

// TrailSince returns the time from which on entries belong to the audit trail
// of the organization: its id may have been another one's that was purged. It
// is zero for a root, whose log is its own.
func (o *Organization) TrailSince() time.Time {
	if o.ParentID == "" {
		return time.Time{}
	}
	return o.CreatedAt
}

// Shows reports whether the entry is one that the audit list of the organization
// shows to the actor.
func (o *Organization) Shows(actor *auth.Actor, rec *audit.Record) bool {
	if rec.Timestamp.Before(o.TrailSince()) {
		return false
	}
	if rec.OrgID == o.ID {
		return true
	}
	return actor.SeesBelow(o.Path) && len(rec.Path) > len(o.Path) && rec.Path[:len(o.Path)] == o.Path
}
