package org

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
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

// Transactions runs transactions on a durable store. V is what somebody reads of it,
// T what they write as well.
type Transactions[V, T any] interface {
	// Read runs fn on one consistent snapshot. fn may run more than once, so it must
	// have no effect but on what it begins anew each time.
	Read(ctx context.Context, fn func(V) error) error
	// ReadHeavy is Read for what costs as much as its caller likes: pages of
	// lists, logs and the past. Only a part of the store's connections do such
	// work at a time, so that Read always finds one. Whoever gets none in time
	// fails with problem.Unavailable. Between two rows fn ends once ctx is done.
	ReadHeavy(ctx context.Context, fn func(V) error) error

	// Write runs fn in one transaction and returns nil only once its changes
	// are durable. If fn fails, nothing of it is kept and its error is
	// returned. fn may run more than once, so it must have no effect other
	// than through its T. When the commit itself fails in a way that leaves
	// its outcome open, the error has the code problem.OutcomeUnknown; a full
	// disk is problem.StorageFull; a database that cannot be reached is
	// problem.Unavailable. After fn has started, ctx no longer cancels it.
	Write(ctx context.Context, fn func(T) error) error
}

// Face is the side of the store that another package sees.
type Face[V, T any] interface {
	Transactions[V, T]
	// ViewOf and TxOf return this side of a transaction that has begun on another.
	ViewOf(View) V
	TxOf(Tx) T
}

// Store is the side of the store that this package sees.
type Store interface {
	Transactions[View, Tx]

	// WriteTogether is Write for a small change that locks this root and no other.
	// The store may run changes of the root that come at the same time in one
	// transaction; none of them is kept, or answered, for what another one does.
	WriteTogether(ctx context.Context, rootID string, fn func(Tx) error) error

	// WritersPerRoot is how many transactions by Write that wait for the same root
	// the store can bear at once without harm to others; 0 for any number.
	WritersPerRoot() int

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
}

// OrgView reads organizations. As in every view, methods that return one row return
// ErrAbsent when there is none.
type OrgView interface {
	// Org returns an organization, live or deleted.
	Org(id string) (*Organization, error)
	// OrgWithin returns an organization, live or deleted, if its path begins
	// with the given one, or equals it if self is true. What it does for an
	// organization elsewhere and for none is the same.
	OrgWithin(id, path string, self bool) (*Organization, error)
	// OrgsByID returns those of the organizations that exist, live or
	// deleted, in no particular order.
	OrgsByID(ids []string) ([]*Organization, error)
}

// View is what the package reads within one transaction. It is used by one goroutine
// and not after its function has returned.
type View interface {
	OrgView

	// TreeUnchanged reports whether what was read of a root's tree under a
	// generation (see Store.Generation) holds in this transaction too: nothing
	// of it has changed, not even by what was not committed when the
	// generation was asked for. It may say false where nothing has.
	TreeUnchanged(rootID string, generation uint64) bool
	// Places returns where live organizations are; those that do not exist or
	// are deleted are missing.
	Places(ids []string) (map[string]Place, error)
	// Key returns a key, revoked or not.
	Key(id string) (*key.Key, error)
	// SecretHashes returns the root of a key, and the hashes of its secret and
	// of the one that a rotation replaced, empty for none.
	SecretHashes(id string) (rootID string, secret, old []byte, err error)
	// LastAudit returns the time of the newest entry of all logs that the root's
	// id ever had; ErrAbsent if there is none.
	LastAudit(rootID string) (time.Time, error)
	// Quota returns the quota of a root, if one is set.
	Quota(rootID string) (*Quota, error)
	// Idempotent returns the stored answer to an earlier request made with
	// the same idempotency key by the same actor, not older than since.
	Idempotent(actorID, idempotencyKey string, since time.Time) (*Replay, error)
	// AnswersKept returns how many bytes PutIdempotent has stored for a root
	// since a time, rounded to the hour, as ReplayOverhead says, and the hour
	// of the first of them. A purge takes what it removes out of neither.
	AnswersKept(rootID string, since time.Time) (bytes int64, first time.Time, err error)
}

// Tx is what the package reads and writes within one transaction: what every change
// takes, whatever it is about, and the quotas.
type Tx interface {
	View

	// Lock serializes all changes to one root's tree: until the transaction
	// ends no other transaction gets past Lock for the same root. It returns
	// the head of the root's audit log. ErrAbsent: there is no such log.
	Lock(rootID string) (*audit.Head, error)
	// Ahead says what is read after the next Lock, by Key and Org: it may be read
	// in one round trip with it. An empty id is none.
	Ahead(keyID string, orgIDs [2]string)
	// HoldKey is Key, and keeps others from changing the key until the
	// transaction ends.
	HoldKey(id string) (*key.Key, error)
	// NewLog starts the audit log of a new root, or the next epoch of a log
	// whose last one was closed. The head has its random log id, its epoch
	// and size 0; the store sets its ordinal.
	NewLog(head *audit.Head) error
	// AppendAudit appends entries to a root's log and stores the head that
	// follows from them.
	AppendAudit(head *audit.Head, records []audit.Record) error
	// PutQuota sets the quota of a root, in the place of the one it has.
	PutQuota(rootID string, q *Quota) error
	DeleteQuota(rootID string) error
	// PutIdempotent stores an answer for an actor of a root, "" for the
	// operator. ErrReplay if there is one already that is not older than since;
	// an older one is replaced.
	PutIdempotent(rootID, actorID, idempotencyKey string, since time.Time, r *Replay) error
	// ExpireIdempotent removes at most limit answers that are older than
	// before, oldest first, and returns how many.
	ExpireIdempotent(before time.Time, limit int) (int64, error)
}

// Version tells one state of an organization's row from all others, also of
// another organization that has had its id.
type Version struct {
	CreatedAt time.Time
	Version   int64
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

// Place is where a live organization is in its tree.
type Place struct {
	RootID string
	Path   string
}
