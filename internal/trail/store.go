package trail

import (
	"context"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/usage"
)

// View is what the package reads within one transaction; see org.View.
type View interface {
	org.OrgView

	// Schema returns the JSON Schema of a root's customizations.
	Schema(rootID string) ([]byte, error)
	// Places returns where live organizations are; those that do not exist or
	// are deleted are missing.
	Places(ids []string) (map[string]org.Place, error)
	// Key returns a key, revoked or not.
	Key(id string) (*key.Key, error)
	// Head returns a head of a log of the root, without a lock: an empty log
	// id stands for the open log, a negative epoch for the log's last one.
	Head(rootID, logID string, epoch int64) (*audit.Head, error)
	// LastAudit returns the time of the newest entry of all logs that the root's
	// id ever had; ErrAbsent if there is none.
	LastAudit(rootID string) (time.Time, error)
	// AuditEntry returns an entry of the root's open log.
	AuditEntry(rootID, id string) (*audit.Record, error)
	// AuditEntries returns one page of audit entries, newest first.
	AuditEntries(q org.AuditQuery) (org.AuditPage, error)
	// ChildrenAt returns a page of the ids of the organizations whose parent
	// was parentID at a moment, deleted ones too, ascending. Organizations
	// that have been purged since are not among them. The page starts after
	// an id, or where an earlier page said that it ended (next). more says
	// that there may be others after next; a page may be short and still have
	// more.
	ChildrenAt(rootID, parentID string, at time.Time, after string, limit int) (ids []string, next string, more bool, err error)
	// AuditPositionAt returns the position in a root's open log after all its
	// entries that had been made at a moment; 0 if there were none.
	AuditPositionAt(rootID string, at time.Time) (int64, error)
	// AuditValues returns the values of the entries of a root's open log at some
	// positions, in their order: as many of the first ones as make maxBytes, and
	// one at least.
	AuditValues(rootID string, positions []int64, maxBytes int) ([][]byte, error)
	// AccessEvents returns one page of access events, newest first.
	AccessEvents(q AccessQuery) (AccessPage, error)
	// AccessFeed returns the events that became visible after the one with
	// the number after, in that order, whatever To and Before of the query
	// say. An event that becomes visible later has a number
	// greater than the returned position, whatever its time.
	AccessFeed(q AccessQuery, after int64) (AccessFeed, error)
	// AccessHead returns the greatest number of a root's events, 0 for none.
	AccessHead(rootID string) (int64, error)
	// AccessEvent returns an event.
	AccessEvent(rootID string, at time.Time, seq int64) (access.Event, error)
	// AccessRetention returns how long the events of a root are kept, if it
	// was set.
	AccessRetention(rootID string) (*AccessRetention, error)
	// AccessRoots returns roots that have or had access events, by id
	// ascending, those with an id greater than after, at most limit.
	AccessRoots(after string, limit int) ([]string, error)
	// KeysHolding returns a page of keys, revoked ones too, that contain the
	// needle in their name, their CIDRs or an address of their last use.
	KeysHolding(q HoldingQuery) (keys []*key.Key, next []string, err error)
	// OrgsHolding returns a page of organizations, deleted ones too, that
	// contain the needle.
	OrgsHolding(q HoldingQuery) (orgs []*org.Organization, next []string, err error)
}

// Tx is what the package reads and writes within one transaction; see org.Tx.
type Tx interface {
	View

	// PutAuditValues replaces the values of entries of a root's log. Erasure
	// is all that it is for. ErrStale if an entry does not exist.
	PutAuditValues(rootID string, records []audit.Record) error
	// BlankReasons removes the reasons of adjustments, which RootID, OrgID and
	// ID name.
	BlankReasons(adjustments []usage.Adjustment) error
	// PutAccessEvents replaces user, address, user agent, path and request id
	// of events. ErrStale if one does not exist.
	PutAccessEvents(events []access.Event) error
	// PutKeyUse replaces the addresses from which keys were last used, and
	// their names; versions stay. ErrStale if a key does not exist.
	PutKeyUse(keys []*key.Key) error
	// InsertAccessEvents stores events of one root and returns how many it
	// left out, because an event of the same sender with the same id, that a
	// product gave it too, is among them already or was inserted before and has
	// not expired.
	InsertAccessEvents(rootID, sender string, events []IncomingEvent) (duplicates int64, err error)
	PutAccessRetention(r *AccessRetention) error
	// ExpireAccess removes at most limit of a root's events, and as many
	// claims of ids, with a time before the given one, oldest first. It
	// returns the greater of both numbers.
	ExpireAccess(rootID string, events, claims time.Time, limit int) (int64, error)
}

// Store is the side of the store that this package sees.
type Store interface {
	org.Face[View, Tx]

	// Partition prepares the store for the months to come, and removes whole
	// months of access events that ended before expired. It returns the time
	// before which ExpireAccess is to remove the events of the roots that
	// keep theirs longest: expired, or, if the rest of a month will be removed
	// as a whole, the start of that month.
	Partition(ctx context.Context, now, expired time.Time) (time.Time, error)

	// Scrub returns once nothing that rows no longer hold is left in a file
	// of the store. A database server's files are its own: there it does
	// nothing.
	Scrub(ctx context.Context) error
}

// HoldingQuery selects what holds a text among what the organization at Path
// and those below it own, as the tree is now.
type HoldingQuery struct {
	RootID string
	OrgID  string
	Path   string
	Self   bool   // only the organization itself
	Needle string // in lower case; may be empty
	After  []string
	Limit  int
	// MaxBytes bounds the page in bytes.
	MaxBytes int
}

// AccessQuery selects the access events of the organization with OrgID and
// Path (as the tree is now).
type AccessQuery struct {
	RootID   string
	OrgID    string
	Path     string
	Scope    org.Scope // org.ScopeSelf or org.ScopeSubtree
	From     time.Time
	To       time.Time
	User     string
	Action   string
	Status   string
	IP       string
	APIKeyID string
	// Holding, in lower case, lets through only events with a text that
	// contains it, whatever the case of its ASCII letters.
	Holding  string
	Before   AccessPosition // only events before it; zero for all
	Limit    int
	MaxBytes int
}

// AccessPosition is a place in the order of events: newest first, and of those
// of one time the one that became visible last.
type AccessPosition struct {
	At  time.Time
	Seq int64
}

// AccessPage is one page. Next is nil at the end; a page may be short and
// still have a Next.
type AccessPage struct {
	Events []access.Event
	Next   *AccessPosition
}

// AccessFeed is some events in the order in which they became visible. Position
// is where to go on; More says that there is more already.
type AccessFeed struct {
	Events   []access.Event
	Position int64
	More     bool
}
