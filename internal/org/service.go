package org

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"io"
	"strings"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/problem"
)

// Service applies the rules of the organization tree. It is safe for
// concurrent use.
type Service struct {
	store        Store
	now          func() time.Time
	newID        ident.Source
	rand         io.Reader
	operatorHash [32]byte

	orgs   *otter.Cache[string, *Snapshot]
	keys   *otter.Cache[string, *keySnapshot]
	quotas *otter.Cache[string, *rootQuota]
	kept   *otter.Cache[string, *keptAnswers]
	ends   *logEnds
	purged func(rootID string, orgIDs []string)
	// turns are those of writes in the store, together those of changes that it may
	// make together, settling those of changes of settings that did not come through
	// at once, bulk those of many events.
	turns, together, settling, bulk turns

	changed *News // of audit logs
}

// Config is what a Service works with.
type Config struct {
	Store        Store
	Now          func() time.Time
	NewID        ident.Source
	Rand         io.Reader // crypto/rand.Reader outside tests; safe for concurrent use
	OperatorHash [32]byte  // SHA-256 of the operator key
	// Drain returns once all that was recorded of requests before the call is
	// stored.
	Drain func(ctx context.Context) error
	// AuditNews is told of the roots whose audit logs grow; nil for news of its own.
	AuditNews *News
}

// NewService returns a service.
func NewService(c Config) (*Service, error) {
	orgs, err := otter.New(&otter.Options[string, *Snapshot]{MaximumSize: 20_000})
	if err != nil {
		return nil, err
	}
	keys, err := otter.New(&otter.Options[string, *keySnapshot]{MaximumSize: 20_000})
	if err != nil {
		return nil, err
	}
	quotas, err := otter.New(&otter.Options[string, *rootQuota]{MaximumSize: 20_000})
	if err != nil {
		return nil, err
	}
	kept, err := otter.New(&otter.Options[string, *keptAnswers]{MaximumSize: 20_000})
	if err != nil {
		return nil, err
	}
	together := 0
	if c.Store.WritersPerRoot() > 0 {
		together = maxTurns
	}
	return &Service{quotas: quotas, kept: kept, ends: &logEnds{byRoot: map[string]logEnd{}}, store: c.Store, now: c.Now, newID: c.NewID, rand: c.Rand,
		operatorHash: c.OperatorHash, orgs: orgs, keys: keys,
		purged: func(string, []string) {}, turns: turns{most: c.Store.WritersPerRoot()}, together: turns{most: together}, settling: turns{most: 1}, bulk: turns{most: 1},
		changed: cmp.Or(c.AuditNews, NewNews(nil))}, nil
}

// OnPurged has fn called with organizations that are gone for good: whoever takes
// their ids has nothing of theirs. It must be called before the service is used.
func (s *Service) OnPurged(fn func(rootID string, orgIDs []string)) { s.purged = fn }

// TellPurged tells of organizations that are gone for good.
func (s *Service) TellPurged(rootID string, orgIDs []string) { s.purged(rootID, orgIDs) }

// Now returns the time of an operation: UTC, cut to microseconds.
func (s *Service) Now() time.Time { return s.now().UTC().Truncate(time.Microsecond) }

// NotFound is the one answer for organizations that do not exist and for those
// that the actor cannot see.
func NotFound() *problem.Error {
	return problem.New(problem.NotFound, "There is no such organization, or this key cannot see it.")
}

// ETag returns the strong entity tag of the organization's representation.
func (o *Organization) ETag() string { return ETag("org", o.Stamp()) }

// Stamp says which state a representation is made from: no two states of what is
// at one path have the same version and time.
type Stamp struct {
	Path    string // or another name
	Version int64
	At      time.Time // when what is there was made, or changed
}

// Stamp returns the stamp of the organization as it is.
func (o *Organization) Stamp() Stamp { return Stamp{o.Path, o.Version, o.CreatedAt} }

// ETag returns the strong entity tag (RFC 9110, section 8.8.3) of a representation
// of this kind that depends on these states.
func ETag(kind string, of ...Stamp) string {
	h := sha256.New()
	h.Write([]byte(kind))
	var buf [16]byte
	for _, s := range of {
		h.Write([]byte{0})
		h.Write([]byte(s.Path))
		binary.BigEndian.PutUint64(buf[:], uint64(s.Version))
		binary.BigEndian.PutUint64(buf[8:], uint64(s.At.UnixMicro()))
		h.Write(buf[:])
	}
	return `"` + base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:12]) + `"`
}

// CheckMatch checks an If-Match header (RFC 9110, section 13.1.1) against the
// entity tag of the resource as it is.
func CheckMatch(ifMatch, etag string) error {
	if ifMatch == "" || strings.TrimSpace(ifMatch) == "*" {
		return nil
	}
	for tag := range strings.SplitSeq(ifMatch, ",") {
		if strings.TrimSpace(tag) == etag {
			return nil
		}
	}
	return problem.New(problem.PreconditionFailed, "The resource has changed: its ETag is now %s.", etag).
		WithFix("Read the resource again and repeat the change with its new ETag.").With("etag", etag)
}

// MatchNothing checks an If-Match header against a resource that does not
// exist, as absent says: none matches that, not even *.
func MatchNothing(ifMatch string, absent *problem.Error) error {
	if ifMatch == "" {
		return nil
	}
	return problem.New(problem.PreconditionFailed, "%s", absent.Detail).WithFix("Leave out If-Match.")
}
