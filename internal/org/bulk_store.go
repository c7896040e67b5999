package org

import (
	"time"

	"github.com/orgd/orgd/internal/audit"
)

// PendingImport is an import that is written chunk by chunk, see
// Service.importChunks.
type PendingImport struct {
	ID string
	// Actor, RequestID, IP and UserAgent are those of its audit entries.
	Actor     audit.Actor
	RequestID string
	IP        string
	UserAgent string
	Chunks    int
	Revealed  int   // chunks whose organizations are there; the import is decided once there is one
	Step      int64 // grows with each of its transactions
}

// ImportTx is the part of a Tx that imports are made with.
//
// Organizations that are staged take their ids, and for everything else they
// do not exist: no other method of Tx returns, counts or restores them. A move
// takes along those below what it moves, and a purge removes them.
type ImportTx interface {
	// OrgStates returns the states of those of the organizations that are
	// live, by id.
	OrgStates(ids []string) (map[string]OrgState, error)
	// TakenIDs returns those of the ids that InsertOrgs would find in use.
	TakenIDs(ids []string) ([]string, error)

	// Import returns an import under way.
	Import(id string) (*PendingImport, error)
	// Imports returns the imports under way, by id ascending, those with an id
	// greater than after, at most limit.
	Imports(after string, limit int) ([]PendingImport, error)
	BeginImport(p *PendingImport) error
	// StepImport stores how many chunks are revealed, and increases the step.
	// ErrStale if the stored step is not p.Step: somebody else is at work on
	// the import. Of several that are, one at a time gets past StepImport until
	// its transaction ends.
	StepImport(p *PendingImport) error
	EndImport(id string) error
	// StageOrgs stages organizations as one chunk. *TakenError if an id is in
	// use.
	StageOrgs(importID string, chunk int, orgs []*Organization) error
	// StagedOrgs returns the organizations of a chunk, parents first, as they
	// will be but for their times.
	StagedOrgs(importID string, chunk int) ([]*Organization, error)
	// RevealOrgs makes staged organizations live, with their times. ErrStale
	// if one is not staged.
	RevealOrgs(orgs []*Organization) error
	// UnstageOrgs removes staged organizations, at most limit, and returns how
	// many.
	UnstageOrgs(importID string, limit int) (int64, error)
	// Awaited reports whether organizations at or below path are staged by an
	// import that is decided.
	Awaited(rootID, path string) (bool, error)
}

// OrgState is what tells whether an organization is still the one, and where,
// that it was.
type OrgState struct {
	ID        string
	Path      string
	Type      Type
	CreatedAt time.Time
	Version   int64
}

// stateOf returns what tells whether the organization stays as it is.
func StateOf(o *Organization) OrgState {
	return OrgState{ID: o.ID, Path: o.Path, Type: o.Type, CreatedAt: o.CreatedAt, Version: o.Version}
}
