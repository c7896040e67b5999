package tree

import (
	"context"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
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

// ImportView is what imports read.
//
// Organizations that are staged take their ids, and for everything else they
// do not exist: no other method of the store returns, counts or restores them. A move
// takes along those below what it moves, and a purge removes them.
type ImportView interface {
	// OrgsByID returns those of the organizations that exist, live or
	// deleted, in no particular order.
	OrgsByID(ids []string) ([]*org.Organization, error)
	// Schema returns the JSON Schema of a root's customizations.
	Schema(rootID string) ([]byte, error)
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
	// StagedOrgs returns the organizations of a chunk, parents first, as they
	// will be but for their times.
	StagedOrgs(importID string, chunk int) ([]*org.Organization, error)
}

// ImportTx is what imports are made with.
type ImportTx interface {
	ImportView

	// InsertOrgs inserts organizations. *TakenError if an id is in use.
	InsertOrgs(orgs []*org.Organization) error
	BeginImport(p *PendingImport) error
	// StepImport stores how many chunks are revealed, and increases the step.
	// ErrStale if the stored step is not p.Step: somebody else is at work on
	// the import. Of several that are, one at a time gets past StepImport until
	// its transaction ends.
	StepImport(p *PendingImport) error
	EndImport(id string) error
	// StageOrgs stages organizations as one chunk. *TakenError if an id is in
	// use.
	StageOrgs(importID string, chunk int, orgs []*org.Organization) error
	// RevealOrgs makes staged organizations live, with their times. ErrStale
	// if one is not staged.
	RevealOrgs(orgs []*org.Organization) error
	// UnstageOrgs removes staged organizations, at most limit, and returns how
	// many.
	UnstageOrgs(importID string, limit int) (int64, error)
}

// OrgState is what tells whether an organization is still the one, and where,
// that it was.
type OrgState struct {
	ID        string
	Path      string
	Type      org.Type
	CreatedAt time.Time
	Version   int64
}

// stateOf returns what tells whether the organization stays as it is.
func stateOf(o *org.Organization) OrgState {
	return OrgState{ID: o.ID, Path: o.Path, Type: o.Type, CreatedAt: o.CreatedAt, Version: o.Version}
}

// importCheck is check for imports.
type importCheck struct {
	*org.Check
	ImportView
}

// importChange is change for imports.
type importChange struct {
	*org.Change
	ImportTx
}

// changeImport is org.Service.Change.
func (s *Service) changeImport(ctx context.Context, call *org.Call, fn func(c *importChange) (result any, entries []audit.Draft, err error)) (audit.Receipt, error) {
	return s.orgs.Change(ctx, call, func(c *org.Change) (any, []audit.Draft, error) {
		return fn(&importChange{c, s.imported.TxOf(c.Tx)})
	})
}

// precheckImport is org.Service.Precheck.
func (s *Service) precheckImport(ctx context.Context, call *org.Call, fn func(c *importCheck) error) error {
	return s.orgs.Precheck(ctx, call, func(c *org.Check) error { return fn(&importCheck{c, s.imported.ViewOf(c.View)}) })
}
