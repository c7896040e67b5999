package org

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/maypok86/otter/v2"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/problem"
)

// Service applies the rules of the organization tree. It is safe for
// concurrent use.
type Service struct {
	store         Store
	now           func() time.Time
	newID         ident.Source
	rand          io.Reader
	restoreWindow time.Duration
	operatorHash  [32]byte
	// monthCloseAfter is how long after its end a month takes late events.
	monthCloseAfter time.Duration

	orgs   *otter.Cache[string, *Snapshot]
	keys   *otter.Cache[string, *keySnapshot]
	bounds *otter.Cache[string, *bounds] // by path
	meters *otter.Cache[string, *rootMeters]
	quotas *otter.Cache[string, *rootQuota]
	kept   *otter.Cache[string, *keptAnswers]
	ends   *logEnds
	spool  Spool
	gauges *gauges
	// turns are those of writes in the store, together those of changes that it may
	// make together, settling those of changes of settings that did not come through
	// at once, bulk those of many events.
	turns, together, settling, bulk turns

	keyring *audit.Keyring
	changed changedRoots
	imports imports
	refused sync.Map // ids of logs that are signed no further
}

// Config is what a Service works with.
type Config struct {
	Store         Store
	Now           func() time.Time
	NewID         ident.Source
	Rand          io.Reader     // crypto/rand.Reader outside tests; safe for concurrent use
	RestoreWindow time.Duration // how long a deleted organization can be restored
	OperatorHash  [32]byte      // SHA-256 of the operator key
	Spool         Spool
	Keyring       *audit.Keyring // the keys that sign the audit logs
	// MonthCloseAfter is how long after its end a month still takes late
	// events; zero for DefaultMonthCloseAfter, negative for not at all.
	MonthCloseAfter time.Duration
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
	limits, err := otter.New(&otter.Options[string, *bounds]{MaximumSize: 20_000})
	if err != nil {
		return nil, err
	}
	meters, err := otter.New(&otter.Options[string, *rootMeters]{MaximumSize: 20_000})
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
	closeAfter := c.MonthCloseAfter
	if closeAfter == 0 {
		closeAfter = DefaultMonthCloseAfter
	}
	together := 0
	if c.Store.WritersPerRoot() > 0 {
		together = maxTurns
	}
	return &Service{meters: meters, quotas: quotas, kept: kept, ends: &logEnds{byRoot: map[string]logEnd{}}, monthCloseAfter: max(closeAfter, 0), store: c.Store, now: c.Now, newID: c.NewID, rand: c.Rand,
		restoreWindow: c.RestoreWindow, operatorHash: c.OperatorHash, orgs: orgs, keys: keys,
		bounds: limits, spool: c.Spool, gauges: newGauges(), turns: turns{most: c.Store.WritersPerRoot()}, together: turns{most: together}, settling: turns{most: 1}, bulk: turns{most: 1},
		keyring: c.Keyring, changed: changedRoots{roots: map[string]bool{}, wake: make(chan struct{}, 1)}}, nil
}

// Now returns the time of an operation: UTC, cut to microseconds.
func (s *Service) Now() time.Time { return s.now().UTC().Truncate(time.Microsecond) }

// NotFound is the one answer for organizations that do not exist and for those
// that the actor cannot see.
func NotFound() *problem.Error {
	return problem.New(problem.NotFound, "There is no such organization, or this key cannot see it.")
}

// ETag returns the strong entity tag of the organization's representation.
func (o *Organization) ETag() string { return etag("org", []*Organization{o}) }

// etag hashes all that a representation made from organizations depends on.
func etag(kind string, orgs []*Organization) string {
	h := sha256.New()
	h.Write([]byte(kind))
	var buf [16]byte
	for _, o := range orgs {
		h.Write([]byte{0})
		h.Write([]byte(o.Path))
		binary.BigEndian.PutUint64(buf[:], uint64(o.Version))
		binary.BigEndian.PutUint64(buf[8:], uint64(o.CreatedAt.UnixMicro()))
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

// matchNothing checks an If-Match header against a resource that does not
// exist, as absent says: none matches that, not even *.
func matchNothing(ifMatch string, absent *problem.Error) error {
	if ifMatch == "" {
		return nil
	}
	return problem.New(problem.PreconditionFailed, "%s", absent.Detail).WithFix("Leave out If-Match.")
}

// value returns v as JSON.
func value(v any) jsontext.Value {
	b, err := json.Marshal(v)
	if err != nil {
		panic("org: value that is not JSON: " + err.Error())
	}
	return b
}

// set returns the change that gives pointer a first value; nothing for an
// empty one.
func set(changes []audit.Change, pointer string, v any, empty bool) []audit.Change {
	if empty {
		return changes
	}
	return append(changes, audit.Change{Pointer: pointer, New: value(v)})
}

// replaced appends the change from old to new, nothing if they are equal.
// Empty values count as absent.
func replaced(changes []audit.Change, pointer, old, new string) []audit.Change {
	if old == new {
		return changes
	}
	c := audit.Change{Pointer: pointer}
	if old != "" {
		c.Old = value(old)
	}
	if new != "" {
		c.New = value(new)
	}
	return append(changes, c)
}

func replacedList(changes []audit.Change, pointer string, old, new []string) []audit.Change {
	if slices.Equal(old, new) {
		return changes
	}
	c := audit.Change{Pointer: pointer}
	if len(old) > 0 {
		c.Old = value(old)
	}
	if len(new) > 0 {
		c.New = value(new)
	}
	return append(changes, c)
}
