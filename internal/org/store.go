package org

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/usage"
)

var (
	// ErrAbsent says that a row does not exist.
	ErrAbsent = errors.New("no such row")
	// ErrStale says that a guarded update found another version.
	ErrStale = errors.New("the row has changed")
	// ErrReplay says that an idempotency record exists already.
	ErrReplay = errors.New("the idempotency key is taken")
)

// TakenError says that an organization cannot be inserted because its id is
// in use, by a live or by a deleted organization.
type TakenError struct{ ID string }

func (e *TakenError) Error() string { return "the id " + e.ID + " is taken" }

// Store is a durable, transactional store.
type Store interface {
	// Read runs fn on one consistent snapshot. Nothing that fn writes is kept.
	Read(ctx context.Context, fn func(Tx) error) error
	// ReadHeavy is Read for what costs as much as its caller likes: pages of
	// lists, logs and the past. Only a part of the store's connections do such
	// work at a time, so that Read always finds one. Whoever gets none in time
	// fails with problem.Unavailable. Between two rows fn ends once ctx is done.
	ReadHeavy(ctx context.Context, fn func(Tx) error) error

	// Write runs fn in one transaction and returns nil only once its changes
	// are durable. If fn fails, nothing of it is kept and its error is
	// returned. fn may run more than once, so it must have no effect other
	// than through its Tx. When the commit itself fails in a way that leaves
	// its outcome open, the error has the code problem.OutcomeUnknown; a full
	// disk is problem.StorageFull; a database that cannot be reached is
	// problem.Unavailable. After fn has started, ctx no longer cancels it.
	Write(ctx context.Context, fn func(Tx) error) error

	// WriteTogether is Write for a small change that locks this root and no other.
	// The store may run changes of the root that come at the same time in one
	// transaction; none of them is kept, or answered, for what another one does.
	WriteTogether(ctx context.Context, rootID string, fn func(Tx) error) error

	// WritersPerRoot is how many transactions by Write that wait for the same root
	// the store can bear at once without harm to others; 0 for any number.
	WritersPerRoot() int

	// Partition prepares the store for the months to come, and removes whole
	// months of access events that ended before expired. It returns the time
	// before which ExpireAccess is to remove the events of the roots that
	// keep theirs longest: expired, or, if the rest of a month will be removed
	// as a whole, the start of that month.
	Partition(ctx context.Context, now, expired time.Time) (time.Time, error)

	// Generation returns a number that changes with every change of the
	// root's tree and of what its organizations own, other than by
	// Tx.UpdateOrg, at the latest when the Write that made it returns. What was
	// read after a call of Generation may be kept for as long as Generation
	// returns the same. Changes made by another process show within a second.
	Generation(rootID string) uint64
	// OrgGeneration also changes with every Tx.UpdateOrg of the organization.
	// It only grows, and by exactly one with a Write of this process that did
	// nothing else to the tree: what such a Write has made of the organization
	// may be kept under the generation from before it, plus one.
	OrgGeneration(rootID, orgID string) uint64

	// Scrub returns once nothing that rows no longer hold is left in a file
	// of the store. A database server's files are its own: there it does
	// nothing.
	Scrub(ctx context.Context) error
}

// Version tells one state of an organization's row from all others, also of
// another organization that has had its id.
type Version struct {
	CreatedAt time.Time
	Version   int64
}

// Tx is what the domain reads and writes within one transaction. Methods that
// return one row return ErrAbsent when there is none. A Tx is used by one
// goroutine and not after its function has returned.
type Tx interface {
	// Lock serializes all changes to one root's tree: until the transaction
	// ends no other transaction gets past Lock for the same root. It returns
	// the head of the root's audit log. ErrAbsent: there is no such log.
	Lock(rootID string) (*audit.Head, error)
	// Ahead says what is read after the next Lock, by Key and Org: it may be read
	// in one round trip with it. An empty id is none.
	Ahead(keyID string, orgIDs [2]string)
	// TreeUnchanged reports whether what was read of a root's tree under a
	// generation (see Store.Generation) holds in this transaction too: nothing
	// of it has changed, not even by what was not committed when the
	// generation was asked for. It may say false where nothing has.
	TreeUnchanged(rootID string, generation uint64) bool

	// Org returns an organization, live or deleted.
	Org(id string) (*Organization, error)
	// OrgWithin returns an organization, live or deleted, if its path begins
	// with the given one, or equals it if self is true. What it does for an
	// organization elsewhere and for none is the same.
	OrgWithin(id, path string, self bool) (*Organization, error)
	// OrgsByID returns those of the organizations that exist, live or
	// deleted, in no particular order.
	OrgsByID(ids []string) ([]*Organization, error)
	// Versions returns which state each of those of the organizations is in
	// that exist, live or deleted, without reading what they hold.
	Versions(ids []string) (map[string]Version, error)
	// InsertOrgs inserts organizations. *TakenError if an id is in use.
	InsertOrgs(orgs []*Organization) error
	// UpdateOrg writes every changeable column of an organization (name,
	// type, description, external id, tags, settings, updated_at, version)
	// if its stored version is still o.Version-1; ErrStale otherwise.
	UpdateOrg(o *Organization) error
	// MoveSubtree gives the organization with path oldPath a new parent and
	// rewrites the paths and depths of its whole subtree, deleted
	// organizations included; versions and updated_at of the moved
	// organization alone are set. It returns how many live ones moved.
	MoveSubtree(rootID, id, newParentID, oldPath, newPath string, depthDelta int, at time.Time) (int64, error)
	// CountSubtree counts the live organizations at and below path, and
	// their keys that are not revoked.
	CountSubtree(rootID, path string) (Counts, error)
	// DeepestBelow returns the greatest depth in the subtree at path,
	// deleted organizations included.
	DeepestBelow(rootID, path string) (int, error)
	// MarkDeleted marks every live organization at and below path deleted.
	MarkDeleted(rootID, path, deletionID string, at time.Time) (Counts, error)
	// MarkRestored brings back what one delete removed.
	MarkRestored(rootID, deletionID string) (Counts, error)
	// Orgs returns one page of live organizations.
	Orgs(q OrgQuery) (OrgPage, error)
	PurgeTx

	// Schema returns the JSON Schema of a root's customizations.
	Schema(rootID string) ([]byte, error)
	// PutSchema sets it; nil removes it.
	PutSchema(rootID string, schema []byte) error

	// Key returns a key, revoked or not.
	Key(id string) (*key.Key, error)
	// HoldKey is Key, and keeps others from changing the key until the
	// transaction ends.
	HoldKey(id string) (*key.Key, error)
	// KeyOf returns a key, revoked or not, if it is of the organization. What
	// it does for another's key and for none is the same.
	KeyOf(orgID, id string) (*key.Key, error)
	// SecretHashes returns the root of a key, and the hashes of its secret and
	// of the one that a rotation replaced, empty for none.
	SecretHashes(id string) (rootID string, secret, old []byte, err error)
	InsertKey(k *key.Key) error
	// UpdateKey writes every column but those of its use (last used) if the
	// stored version is still k.Version-1; ErrStale otherwise.
	UpdateKey(k *key.Key) error
	// Keys returns the keys of an organization that are not revoked, by id
	// ascending, those with an id greater than after: at most limit, and none
	// after the first maxBytes bytes of them, 0 for any number. more says that
	// there are others.
	Keys(orgID, after string, limit, maxBytes int) (keys []*key.Key, more bool, err error)

	// NewLog starts the audit log of a new root, or the next epoch of a log
	// whose last one was closed. The head has its random log id, its epoch
	// and size 0; the store sets its ordinal.
	NewLog(head *audit.Head) error
	// CloseLog closes an epoch of a log: Lock no longer returns it. ErrStale
	// if it is closed already.
	CloseLog(head *audit.Head, at time.Time) error
	// AppendAudit appends entries to a root's log and stores the head that
	// follows from them.
	AppendAudit(head *audit.Head, records []audit.Record) error
	// LastAudit returns the time of the newest entry of all logs that the root's
	// id ever had; ErrAbsent if there is none.
	LastAudit(rootID string) (time.Time, error)
	// Head returns a head of a log of the root, without a lock: an empty log
	// id stands for the open log, a negative epoch for the log's last one.
	Head(rootID, logID string, epoch int64) (*audit.Head, error)
	// LogHashes is the audit.HashSource of a log.
	LogHashes(head *audit.Head, level int, from, to int64) ([]audit.Hash, error)
	// Leaves returns the leaves from ≤ seq < to of a log.
	Leaves(head *audit.Head, from, to int64) ([][]byte, error)
	// Signature returns the last signature of an epoch of a log.
	Signature(head *audit.Head) (*Signature, error)
	// PutSignature stores a signature. ErrStale if there is one of the same
	// or a greater size, or if the log is signed by another key: two servers
	// that sign at once cannot both have signed.
	PutSignature(head *audit.Head, s *Signature) error
	// PutCosignatures replaces the last signed checkpoint by the same one
	// with more signatures. ErrStale if the last one has another size.
	PutCosignatures(head *audit.Head, size int64, checkpoint []byte) error
	// PutKeys sets who signs an epoch that has been signed before.
	PutKeys(head *audit.Head, keys LogKeys) error
	// UnsignedHeads returns heads with entries that no signature covers, of
	// one root or, without, of all, in the order of their root's id and
	// ordinal, those after a given one, at most limit. An epoch that another
	// one follows is never signed again and left out.
	UnsignedHeads(rootID string, after *audit.Head, limit int) ([]*audit.Head, error)
	// SignedHeads returns heads that were signed at or after a time, the
	// earliest first, at most limit.
	SignedHeads(since time.Time, limit int) ([]*audit.Head, error)
	// SigningSeeds returns the ids of the seeds with which the last epochs of
	// all logs are signed, those of purged roots included, each once: those of
	// the present keys, and of old ones that sign too at the given time.
	SigningSeeds(now time.Time) ([]string, error)
	// Mark returns what is noted about the whole database under a name.
	Mark(name string) (string, error)
	// PutMark notes something. ErrStale if there is something under that name:
	// of several that put it at once, one succeeds.
	PutMark(name, value string) error
	// ReplaceMark notes something in the place of what is there.
	ReplaceMark(name, value string) error
	// AuditEntry returns an entry of the root's open log.
	AuditEntry(rootID, id string) (*audit.Record, error)
	// AuditEntries returns one page of audit entries, newest first.
	AuditEntries(q AuditQuery) (AuditPage, error)
	ErasureTx
	ImportTx
	PastTx

	// AccessEvents returns one page of access events, newest first.
	AccessEvents(q AccessQuery) (AccessPage, error)
	// AccessFeed returns the events that became visible after the one with
	// the number after, in that order, whatever To and Before of the query
	// say. An event that becomes visible later has a number
	// greater than the returned position, whatever its time.
	AccessFeed(q AccessQuery, after int64) (AccessFeed, error)
	// AccessHead returns the greatest number of a root's events, 0 for none.
	AccessHead(rootID string) (int64, error)
	// InsertAccessEvents stores events of one root and returns how many it
	// left out, because an event of the same sender with the same id, that a
	// product gave it too, is among them already or was inserted before and has
	// not expired.
	InsertAccessEvents(rootID, sender string, events []IncomingEvent) (duplicates int64, err error)
	// AccessRetention returns how long the events of a root are kept, if it
	// was set.
	AccessRetention(rootID string) (*AccessRetention, error)
	PutAccessRetention(r *AccessRetention) error
	// AccessRoots returns roots that have or had access events, by id
	// ascending, those with an id greater than after, at most limit.
	AccessRoots(after string, limit int) ([]string, error)
	// ExpireAccess removes at most limit of a root's events, and as many
	// claims of ids, with a time before the given one, oldest first. It
	// returns the greater of both numbers.
	ExpireAccess(rootID string, events, claims time.Time, limit int) (int64, error)

	// Places returns where live organizations are; those that do not exist or
	// are deleted are missing.
	Places(ids []string) (map[string]Place, error)
	// Limits returns the limits on the organizations of a root that have one
	// of the ids, in no particular order.
	Limits(rootID string, orgIDs []string) ([]usage.Limit, error)
	// Quota returns the quota of a root, if one is set.
	Quota(rootID string) (*Quota, error)
	// PutQuota sets the quota of a root, in the place of the one it has.
	PutQuota(rootID string, q *Quota) error
	DeleteQuota(rootID string) error

	// Idempotent returns the stored answer to an earlier request made with
	// the same idempotency key by the same actor, not older than since.
	Idempotent(actorID, idempotencyKey string, since time.Time) (*Replay, error)
	// PutIdempotent stores an answer for an actor of a root, "" for the
	// operator. ErrReplay if there is one already that is not older than since;
	// an older one is replaced.
	PutIdempotent(rootID, actorID, idempotencyKey string, since time.Time, r *Replay) error
	// AnswersKept returns how many bytes PutIdempotent has stored for a root
	// since a time, rounded to the hour, as ReplayOverhead says, and the hour
	// of the first of them. A purge takes what it removes out of neither.
	AnswersKept(rootID string, since time.Time) (bytes int64, first time.Time, err error)
	// ExpireIdempotent removes at most limit answers that are older than
	// before, oldest first, and returns how many.
	ExpireIdempotent(before time.Time, limit int) (int64, error)
}

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

// Replay is the stored answer to a request with an Idempotency-Key.
type Replay struct {
	RequestHash []byte // what identifies the request: its method, target and body
	Answer      []byte // sealed: it may hold a secret
	CreatedAt   time.Time
}

// ReplayOverhead is how many bytes an answer is taken for in addition to those
// of its body and key: about what the database needs for its row.
const ReplayOverhead = 256

// Size returns how many bytes an answer is taken for that is kept for an
// Idempotency-Key.
func (r *Replay) Size(idempotencyKey string) int64 {
	return int64(len(r.Answer)+len(r.RequestHash)+len(idempotencyKey)) + ReplayOverhead
}

// OrgQuery selects live organizations. Exactly one order applies: by path
// (depth first) unless NamePrefix, Tag or ExternalID is given; then by that
// index. One call looks at no more than MaxScan rows.
type OrgQuery struct {
	RootID     string // empty: all roots (the operator)
	Path       string // only the organizations below this path
	WithSelf   bool   // and the one at Path
	ParentID   string // only the children of this organization, by id
	RootsOnly  bool
	MaxDepth   int    // greatest depth, absolute; 0 for any
	NamePrefix string // case-insensitive, see FoldName
	Tag        string
	ExternalID string
	After      []string // the position where the last page ended
	Limit      int
	// MaxBytes bounds the page in bytes, as in the other queries: no row follows
	// those that make so many. A page has one row at least; 0 is no bound.
	MaxBytes int
}

// Matches reports whether a live organization satisfies the filters by name,
// tag and external id.
func (q *OrgQuery) Matches(o *Organization) bool {
	return (q.NamePrefix == "" || strings.HasPrefix(FoldName(o.Name), FoldName(q.NamePrefix))) &&
		(q.Tag == "" || slices.Contains(o.Tags, q.Tag)) &&
		(q.ExternalID == "" || q.ExternalID == o.ExternalID)
}

// PositionLength returns how many values make a position in the order that
// the query asks for: two in the order of names, one otherwise.
func (q *OrgQuery) PositionLength() int {
	if q.NamePrefix != "" && q.Tag == "" && q.ExternalID == "" {
		return 2
	}
	return 1
}

// OrgPage is one page. Next is the position for OrgQuery.After, nil at the
// end; a page may be short, even empty, and still have a Next.
type OrgPage struct {
	Orgs []*Organization
	Next []string
}

// Scope says which organizations of a subtree a log query covers.
type Scope string

const (
	ScopeSubtree     Scope = "subtree"
	ScopeSelf        Scope = "self"
	ScopeChildren    Scope = "children"
	ScopeDescendants Scope = "descendants"
)

// AuditQuery selects the audit entries of the organization with OrgID and
// Path. Entries belong where their organization was at the time.
type AuditQuery struct {
	RootID string
	OrgID  string
	Path   string
	Scope  Scope
	From   time.Time // inclusive; zero for none
	To     time.Time // exclusive; zero for none
	Action string
	Actor  string // an actor's id
	// Holding, in lower case, lets through only entries whose leaf or values
	// contain it, whatever the case of their ASCII letters.
	Holding string
	Org     string // only entries of this organization
	Noun    string // only actions on it: "organization" lets "organization.created" through
	Before  int64  // only entries at a smaller AuditPosition; 0 for all
	After   int64  // with Ascending: only entries at After or a greater AuditPosition
	// Ascending returns the oldest first, for exports and following.
	Ascending bool
	Limit     int
	MaxBytes  int
	// SmallValues leaves out values that are longer, of entries that have them:
	// Record.Values is then nil. 0 returns all.
	SmallValues int
}

// AuditPosition returns the position of an entry in the order of its log. That
// of an entry of a log with one epoch is its seq.
func AuditPosition(epoch, seq int64) int64 { return epoch<<EpochBits | seq }

// EpochBits is where a position holds the epoch.
const EpochBits = 40

// AuditPage is one page. Next is the position for AuditQuery.Before (or After
// when ascending), -1 at the end. A page may be short and still have a Next.
type AuditPage struct {
	Records []audit.Record
	Next    int64
}

// AccessQuery selects the access events of the organization with OrgID and
// Path (as the tree is now).
type AccessQuery struct {
	RootID   string
	OrgID    string
	Path     string
	Scope    Scope // ScopeSelf or ScopeSubtree
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

// Place is where a live organization is in its tree.
type Place struct {
	RootID string
	Path   string
}

// ErasureTx is the part of a Tx that finds and erases values of somebody who
// asks to be forgotten.
type ErasureTx interface {
	// PutAuditValues replaces the values of entries of a root's log. Erasure
	// is all that it is for. ErrStale if an entry does not exist.
	PutAuditValues(rootID string, records []audit.Record) error
	// AccessEvent returns an event.
	AccessEvent(rootID string, at time.Time, seq int64) (access.Event, error)
	// BlankReasons removes the reasons of adjustments, which RootID, OrgID and
	// ID name.
	BlankReasons(adjustments []usage.Adjustment) error
	// PutAccessEvents replaces user, address, user agent, path and request id
	// of events. ErrStale if one does not exist.
	PutAccessEvents(events []access.Event) error
	// PutKeyUse replaces the addresses from which keys were last used, and
	// their names; versions stay. ErrStale if a key does not exist.
	PutKeyUse(keys []*key.Key) error
	// KeysHolding returns a page of keys, revoked ones too, that contain the
	// needle in their name, their CIDRs or an address of their last use.
	KeysHolding(q HoldingQuery) (keys []*key.Key, next []string, err error)
	// OrgsHolding returns a page of organizations, deleted ones too, that
	// contain the needle.
	OrgsHolding(q HoldingQuery) (orgs []*Organization, next []string, err error)
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

// PastTx is the part of a Tx that knows where organizations were.
type PastTx interface {
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
}

// PurgeTx is the part of a Tx that removes deleted organizations for good.
//
// A purge is what BeginPurge and as many calls of Purge as it takes do, each
// in a transaction of its own. Once it has begun, what it removes is restored no
// more; until an organization's row is removed its id stays in use, and when
// that happens nothing is left that anybody finds by the id.
type PurgeTx interface {
	// Expired returns up to limit organizations that were the top of a delete
	// made before the given time whose purge has not begun, oldest first.
	Expired(before time.Time, limit int) ([]*Organization, error)
	// Purging returns up to limit organizations that were the top of a delete
	// whose purge has begun and is not complete, oldest first.
	Purging(limit int) ([]*Organization, error)
	// PurgeBegun reports whether the purge of what one delete removed has begun
	// and is not complete.
	PurgeBegun(rootID, deletionID string) (bool, error)
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
