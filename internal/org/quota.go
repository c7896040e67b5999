package org

import (
	"context"
	"errors"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/problem"
)

// Quota bounds what all requests of a root's keys may use. It is set by the
// operator; a member that is 0 has the default, which for some of them depends
// on the machine and on who else uses it.
type Quota struct {
	RequestsInFlight  int64 `json:"requests_in_flight,omitzero"`
	BytesInFlight     int64 `json:"bytes_in_flight,omitzero"`
	ExpensiveInFlight int64 `json:"expensive_in_flight,omitzero"`
	Streams           int64 `json:"streams,omitzero"`
	RequestsPerSecond int64 `json:"requests_per_second,omitzero"`
	ChangesPerSecond  int64 `json:"changes_per_second,omitzero"`
	IdempotencyBytes  int64 `json:"idempotency_bytes,omitzero"`
	PageRows          int64 `json:"page_rows,omitzero"`
	PageBytes         int64 `json:"page_bytes,omitzero"`
	ImportRows        int64 `json:"import_rows,omitzero"`

	UpdatedAt time.Time `json:"-"` // zero if it was never set
	Version   int64     `json:"-"` // grows by one with every change
}

// What a root has of the members that do not depend on the machine, unless its
// quota says otherwise.
const (
	DefaultIdempotencyBytes = 64 << 20
	DefaultPageRows         = 1000
	DefaultPageBytes        = 1 << 20
	DefaultImportRows       = 100_000
)

// QuotaMember is one member of a quota and what it takes.
type QuotaMember struct {
	Name     string
	Min, Max int64
	Of       func(*Quota) *int64
}

// QuotaMembers returns the members of a quota in the order in which they are
// shown. Members that are less than a single request may need could not be
// used at all.
func QuotaMembers() []QuotaMember {
	return []QuotaMember{
		{"requests_in_flight", 1, 1 << 20, func(q *Quota) *int64 { return &q.RequestsInFlight }},
		{"bytes_in_flight", 1 << 20, 1 << 40, func(q *Quota) *int64 { return &q.BytesInFlight }},
		{"expensive_in_flight", 1, 1 << 20, func(q *Quota) *int64 { return &q.ExpensiveInFlight }},
		{"streams", 1, 1 << 20, func(q *Quota) *int64 { return &q.Streams }},
		{"requests_per_second", 1, 1 << 30, func(q *Quota) *int64 { return &q.RequestsPerSecond }},
		{"changes_per_second", 1, 1 << 30, func(q *Quota) *int64 { return &q.ChangesPerSecond }},
		{"idempotency_bytes", 1 << 20, 1 << 40, func(q *Quota) *int64 { return &q.IdempotencyBytes }},
		{"page_rows", 1, 1000, func(q *Quota) *int64 { return &q.PageRows }},
		{"page_bytes", 64 << 10, 64 << 20, func(q *Quota) *int64 { return &q.PageBytes }},
		{"import_rows", 1, DefaultImportRows, func(q *Quota) *int64 { return &q.ImportRows }},
	}
}

// Members returns what the quota sets, without what it says of itself.
func (q Quota) Members() Quota {
	q.UpdatedAt, q.Version = time.Time{}, 0
	return q
}

// Or returns the quota with the members of defaults where it sets none.
func (q Quota) Or(defaults Quota) Quota {
	for _, m := range QuotaMembers() {
		if p := m.Of(&q); *p == 0 {
			*p = *m.Of(&defaults)
		}
	}
	return q
}

// Check reports the first member that is out of its range.
func (q Quota) Check() error {
	for _, m := range QuotaMembers() {
		if v := *m.Of(&q); v != 0 && (v < m.Min || v > m.Max) {
			return m.OutOfRange()
		}
	}
	return nil
}

// OutOfRange is the error for a value that the member does not take.
func (m *QuotaMember) OutOfRange() error {
	return problem.Body("/"+m.Name, "must be a whole number from %d to %d", m.Min, m.Max).
		WithFix("Leave it out, or make it null, for the default.")
}

// ETag returns the strong entity tag of a root's quota, without its use.
func (q *Quota) ETag(rootID string) string {
	return ETag("quota", Stamp{Path: rootID, Version: q.Version, At: q.UpdatedAt})
}

func quotaOf(v View, rootID string) (*Quota, error) {
	q, err := v.Quota(rootID)
	if errors.Is(err, ErrAbsent) {
		return &Quota{}, nil
	}
	return q, err
}

// rootQuota is the quota of a root as it was read.
type rootQuota struct {
	quota      *Quota
	generation uint64
}

// QuotaOf returns the quota that is set for a root, from memory if nothing has
// changed: one that another process has set shows within a second. Nobody may
// change what it returns. The root is not looked for: one without a quota and
// one that does not exist have none set.
func (s *Service) QuotaOf(ctx context.Context, rootID string) (*Quota, error) {
	generation := s.store.Generation(rootID)
	if q, ok := s.quotas.GetIfPresent(rootID); ok && q.generation == generation {
		return q.quota, nil
	}
	var quota *Quota
	err := s.store.Read(ctx, func(v View) (err error) {
		quota, err = s.quotaIn(v, rootID, generation)
		return err
	})
	return quota, err
}

// quotaIn is QuotaOf within a transaction that began after the root had the
// generation.
func (s *Service) quotaIn(v View, rootID string, generation uint64) (*Quota, error) {
	if q, ok := s.quotas.GetIfPresent(rootID); ok && q.generation == generation {
		return q.quota, nil
	}
	quota, err := quotaOf(v, rootID)
	if err == nil {
		s.quotas.Set(rootID, &rootQuota{quota: quota, generation: generation})
	}
	return quota, err
}

// Quota returns the quota that is set for a root. An organization that is not
// a root has none: problem.Conflict.
func (s *Service) Quota(ctx context.Context, actor *auth.Actor, rootID string) (*Quota, error) {
	snap, err := s.Find(ctx, actor, rootID)
	if err != nil {
		return nil, err
	}
	if err := quotaOnRoot(snap.Organization); err != nil {
		return nil, err
	}
	return s.QuotaOf(ctx, rootID)
}

func quotaOnRoot(o *Organization) error {
	if o.ParentID == "" {
		return nil
	}
	return problem.New(problem.Conflict, "Quotas are of the roots of trees, and %s is below %s.", o.ID, o.RootID).
		WithFix("Use the root's id.").With("root_id", o.RootID)
}

// quotaTarget finds the root whose quota is to be changed, and the quota as it
// is.
func (c *Check) quotaTarget(rootID string) (*Organization, *Quota, error) {
	o, err := c.Target(rootID)
	if err != nil {
		return nil, nil, err
	}
	if !c.Call.Actor.Everywhere() {
		return nil, nil, problem.New(problem.PermissionDenied, "Only the operator may do this.")
	}
	if err := quotaOnRoot(o); err != nil {
		return nil, nil, err
	}
	q, err := quotaOf(c, rootID)
	if err != nil {
		return nil, nil, err
	}
	return o, q, CheckMatch(c.Call.IfMatch, q.ETag(rootID))
}

// CheckQuota checks whether the actor may change the quota of a root, and
// whether it is as the call says.
func (s *Service) CheckQuota(ctx context.Context, call *Call, rootID string) error {
	return s.Precheck(ctx, call, func(c *Check) error {
		_, _, err := c.quotaTarget(rootID)
		return err
	})
}

// PutQuota replaces the quota of a root; one without members takes it away.
// It binds the next request in this process, and in others within a second.
func (s *Service) PutQuota(ctx context.Context, call *Call, rootID string, members Quota) (*Quota, audit.Receipt, error) {
	members = members.Members()
	if err := members.Check(); err != nil {
		return nil, audit.Receipt{}, err
	}
	var out *Quota
	receipt, err := s.Change(ctx, call, func(c *Change) (any, []audit.Draft, error) {
		o, before, err := c.quotaTarget(rootID)
		if err != nil {
			return nil, nil, err
		}
		out = before
		var changes []audit.Change
		for _, m := range QuotaMembers() {
			was, is := *m.Of(before), *m.Of(&members)
			if was == is {
				continue
			}
			ch := audit.Change{Pointer: "/" + m.Name}
			if was != 0 {
				ch.Old = audit.Value(was)
			}
			if is != 0 {
				ch.New = audit.Value(is)
			}
			changes = append(changes, ch)
		}
		if len(changes) == 0 {
			return nil, nil, nil
		}
		put := members
		action := "quota.put"
		if members == (Quota{}) {
			action = "quota.deleted"
			err = c.DeleteQuota(rootID)
		} else {
			put.UpdatedAt, put.Version = c.At, before.Version+1
			err = c.Tx.PutQuota(rootID, &put)
		}
		if err != nil {
			return nil, nil, err
		}
		out = &put
		return out, []audit.Draft{c.Entry(o, action, audit.Target{Type: "quota", ID: rootID}, changes)}, nil
	})
	return out, receipt, err
}
