package tree

import (
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/usage"
)

// View is what the package reads within one transaction; see org.View.
type View interface {
	org.OrgView

	// Versions returns which state each of those of the organizations is in
	// that exist, live or deleted, without reading what they hold.
	Versions(ids []string) (map[string]org.Version, error)
	// CountSubtree counts the live organizations at and below path, and
	// their keys that are not revoked.
	CountSubtree(rootID, path string) (org.Counts, error)
	// DeepestBelow returns the greatest depth in the subtree at path,
	// deleted organizations included.
	DeepestBelow(rootID, path string) (int, error)
	// Orgs returns one page of live organizations.
	Orgs(q org.OrgQuery) (org.OrgPage, error)
	// Schema returns the JSON Schema of a root's customizations.
	Schema(rootID string) ([]byte, error)
	// KeyOf returns a key, revoked or not, if it is of the organization. What
	// it does for another's key and for none is the same.
	KeyOf(orgID, id string) (*key.Key, error)
	// Keys returns the keys of an organization that are not revoked, by id
	// ascending, those with an id greater than after: at most limit, and none
	// after the first maxBytes bytes of them, 0 for any number. more says that
	// there are others.
	Keys(orgID, after string, limit, maxBytes int) (keys []*key.Key, more bool, err error)
	// Limits returns the limits on the organizations of a root that have one
	// of the ids, in no particular order.
	Limits(rootID string, orgIDs []string) ([]usage.Limit, error)
	// Expired returns up to limit organizations that were the top of a delete
	// made before the given time whose purge has not begun, oldest first.
	Expired(before time.Time, limit int) ([]*org.Organization, error)
	// Purging returns up to limit organizations that were the top of a delete
	// whose purge has begun and is not complete, oldest first.
	Purging(limit int) ([]*org.Organization, error)
	// PurgeBegun reports whether the purge of what one delete removed has begun
	// and is not complete.
	PurgeBegun(rootID, deletionID string) (bool, error)
	// Awaited reports whether organizations at or below path are staged by an
	// import that is decided.
	Awaited(rootID, path string) (bool, error)
}

// Tx is what the package reads and writes within one transaction; see org.Tx.
type Tx interface {
	View

	// Lock serializes all changes to one root's tree: until the transaction
	// ends no other transaction gets past Lock for the same root. It returns
	// the head of the root's audit log. ErrAbsent: there is no such log.
	Lock(rootID string) (*audit.Head, error)
	// InsertOrgs inserts organizations. *TakenError if an id is in use.
	InsertOrgs(orgs []*org.Organization) error
	// UpdateOrg writes every changeable column of an organization (name,
	// type, description, external id, tags, settings, updated_at, version)
	// if its stored version is still o.Version-1; ErrStale otherwise.
	UpdateOrg(o *org.Organization) error
	// MoveSubtree gives the organization with path oldPath a new parent and
	// rewrites the paths and depths of its whole subtree, deleted
	// organizations included; versions and updated_at of the moved
	// organization alone are set. It returns how many live ones moved.
	MoveSubtree(rootID, id, newParentID, oldPath, newPath string, depthDelta int, at time.Time) (int64, error)
	// MarkDeleted marks every live organization at and below path deleted.
	MarkDeleted(rootID, path, deletionID string, at time.Time) (org.Counts, error)
	// MarkRestored brings back what one delete removed.
	MarkRestored(rootID, deletionID string) (org.Counts, error)
	// PutSchema sets it; nil removes it.
	PutSchema(rootID string, schema []byte) error
	InsertKey(k *key.Key) error
	// UpdateKey writes every column but those of its use (last used) if the
	// stored version is still k.Version-1; ErrStale otherwise.
	UpdateKey(k *key.Key) error
	// BeginPurge begins to purge what one delete removed. It reports whether it
	// did: not if there is no such delete, if its purge has begun, or if what it
	// removed lies below something whose purge has. If it removed a root, the
	// root's audit log is closed: its entries are kept, but an organization that
	// later takes the same id gets a new log.
	BeginPurge(rootID, deletionID string, at time.Time) (bool, error)
	// Purge goes on with a purge that has begun. It removes organizations, from
	// the deepest on, with their keys, tags, limits, access events and
	// idempotency records, whether or not they were moved, and those that were
	// deleted earlier below them. Audit entries stay, and consumption, which the
	// ancestors' totals hold, under names that are no ids; that of a root goes
	// with it. It changes hardly more than limit rows, returns the organizations
	// that are gone, and says whether all are.
	Purge(rootID, deletionID string, limit int, at time.Time) (gone []string, done bool, err error)
}
