package org

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/problem"
)

// Deletion says what a delete removed, or would remove.
type Deletion struct {
	Counts
	DryRun          bool
	RestorableUntil time.Time
}

// DeleteOptions say how far a delete goes.
type DeleteOptions struct {
	Cascade bool // delete the live descendants too
	DryRun  bool // change nothing
}

// Delete deletes an organization, softly: it can be restored until the
// restore window ends. HasDescendants unless Cascade is set or it is a leaf.
func (s *Service) Delete(ctx context.Context, call *Call, id string, opt DeleteOptions) (*Deletion, audit.Receipt, error) {
	d := &Deletion{DryRun: opt.DryRun}
	receipt, err := s.Change(ctx, call, func(c *Change) (any, []audit.Draft, error) {
		o, err := c.deletable(id)
		if err != nil {
			return nil, nil, err
		}
		if err := CheckMatch(call.IfMatch, o.ETag()); err != nil {
			return nil, nil, err
		}
		// What goes is counted as it goes: a subtree is large.
		if opt.DryRun || !opt.Cascade {
			if d.Counts, err = c.CountSubtree(o.RootID, o.Path); err != nil {
				return nil, nil, err
			}
		}
		if opt.DryRun {
			return nil, nil, nil
		}
		if d.Organizations > 1 && !opt.Cascade {
			detail := fmt.Sprintf("The organization has %d live descendants.", d.Organizations-1)
			if d.Organizations == 2 {
				detail = "The organization has 1 live descendant."
			}
			return nil, nil, problem.New(problem.HasDescendants, "%s", detail).
				WithFix("Repeat the request with ?cascade=true to delete the whole subtree, or with ?dry_run=true to see what that deletes.").
				With("organizations", d.Organizations).With("api_keys", d.APIKeys)
		}
		if err := c.undisturbed(o); err != nil {
			return nil, nil, err
		}
		deletionID := c.NewID("del_")
		if d.Counts, err = c.MarkDeleted(o.RootID, o.Path, deletionID, c.At); err != nil {
			return nil, nil, err
		}
		d.RestorableUntil = c.At.Add(s.restoreWindow)
		changes := []audit.Change{
			{Pointer: "/deletion_id", New: audit.Value(deletionID)},
			{Pointer: "/deleted/organizations", New: audit.Value(d.Organizations)},
			{Pointer: "/deleted/api_keys", New: audit.Value(d.APIKeys)},
		}
		return d, []audit.Draft{c.OrgEntry(o, "organization.deleted", changes)}, nil
	})
	return d, receipt, err
}

// CheckDelete checks that the actor may delete the organization, with all that
// lives below it now, and changes nothing.
func (s *Service) CheckDelete(ctx context.Context, call *Call, id string) error {
	return s.Precheck(ctx, call, func(c *Change) error {
		_, err := c.deletable(id)
		return err
	})
}

// deletable returns an organization that the actor may delete with what lives in
// its subtree.
func (c *Change) deletable(id string) (*Organization, error) {
	o, err := c.Target(id, key.OrgsDelete)
	if err != nil || c.Call.Actor.SeesBelow(o.Path) {
		return o, err
	}
	counts, err := c.CountSubtree(o.RootID, o.Path)
	if err == nil && counts.Organizations > 1 {
		err = problem.New(problem.PermissionDenied, "The organization has live descendants, which this key does not reach.").
			WithFix("Use a key with the reach subtree.")
	}
	return o, err
}

// Restore undoes a delete: it brings back exactly what that delete removed.
// It takes an actor that reaches the parent and what is below it, or the
// operator for a root.
func (s *Service) Restore(ctx context.Context, call *Call, id string) (*Organization, audit.Receipt, error) {
	var o *Organization
	receipt, err := s.Change(ctx, call, func(c *Change) (any, []audit.Draft, error) {
		var err error
		if o, err = c.restorable(id); err != nil {
			return nil, nil, err
		}
		if err := CheckMatch(call.IfMatch, o.ETag()); err != nil {
			return nil, nil, err
		}
		if c.At.After(o.DeletedAt.Add(s.restoreWindow)) {
			return nil, nil, NotFound()
		}
		deletionID := o.DeletionID
		counts, err := c.MarkRestored(o.RootID, deletionID)
		if err != nil {
			return nil, nil, err
		}
		if o, err = c.Org(id); err != nil {
			return nil, nil, err
		}
		changes := []audit.Change{
			{Pointer: "/deletion_id", Old: audit.Value(deletionID)},
			{Pointer: "/restored/organizations", New: audit.Value(counts.Organizations)},
			{Pointer: "/restored/api_keys", New: audit.Value(counts.APIKeys)},
		}
		return o, []audit.Draft{c.OrgEntry(o, "organization.restored", changes)}, nil
	})
	return o, receipt, err
}

// CheckRestore checks all that Restore requires of the actor, changes nothing,
// and returns the deleted organization. With an error it returns the organization
// if the actor may know of it.
func (s *Service) CheckRestore(ctx context.Context, call *Call, id string) (o *Organization, err error) {
	err = s.Precheck(ctx, call, func(c *Change) (err error) {
		o, err = c.restorable(id)
		return err
	})
	return o, err
}

// restorable returns a deleted organization that the actor may restore. With an
// error it returns the organization if the actor may know of it.
func (c *Change) restorable(id string) (*Organization, error) {
	a := c.Call.Actor
	// What the actor does not reach is not locked, and is not found as quickly
	// as what does not exist.
	if _, err := reached(c.Tx, a, id); errors.Is(err, ErrAbsent) {
		return nil, NotFound()
	} else if err != nil {
		return nil, err
	}
	o, err := c.Locked(id)
	if err != nil {
		return nil, err
	}
	if o == nil {
		return nil, NotFound()
	}
	if o.DeletedAt == nil {
		if !a.Sees(o.Path) {
			return nil, NotFound()
		}
		if err := a.Demand(o.Path, key.OrgsDelete); err != nil {
			return o, err
		}
		return o, problem.New(problem.Conflict, "The organization %s is not deleted.", id)
	}
	if begun, err := c.PurgeBegun(o.RootID, o.DeletionID); err != nil {
		return nil, err
	} else if begun {
		return nil, NotFound() // parts of it may be gone
	}
	if o.ParentID == "" {
		if !a.Everywhere() {
			return nil, NotFound()
		}
		return o, nil
	}
	parent, err := c.Org(o.ParentID)
	if errors.Is(err, ErrAbsent) {
		return nil, NotFound()
	} else if err != nil {
		return nil, err
	}
	if !a.SeesBelow(parent.Path) {
		return nil, NotFound()
	}
	if err := a.Demand(o.Path, key.OrgsDelete); err != nil {
		return o, err
	}
	if parent.DeletedAt != nil {
		return o, problem.New(problem.ParentDeleted, "The parent %s is deleted.", parent.ID).
			WithFix("Restore the parent first.").With("parent_id", parent.ID)
	}
	return o, nil
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

const (
	// purgeStep is how many rows one transaction of a purge changes. It keeps it to
	// a few milliseconds, which others may have to wait.
	purgeStep = 200
	// purgePause is how long a purge lets others work after each step, at least: it
	// is as long as the step took.
	purgePause = 5 * time.Millisecond
)

// PurgeExpired removes for good the organizations whose restore window has
// ended, in small steps with a pause after each, and returns how many it
// removed. What an earlier call has not completed it completes first, whatever
// the window is now. It stops at the first error, and after the step during
// which ctx ends.
func (s *Service) PurgeExpired(ctx context.Context) (int64, error) {
	var purged int64
	var last string
	for ctx.Err() == nil {
		var tops []*Organization
		var begun bool
		err := s.store.Read(ctx, func(tx Tx) (err error) {
			if tops, err = tx.Purging(1); err != nil || len(tops) > 0 {
				begun = true
				return err
			}
			begun = false
			tops, err = tx.Expired(s.Now().Add(-s.restoreWindow), 1)
			return err
		})
		if err != nil || len(tops) == 0 {
			return purged, err
		}
		top := tops[0]
		if !begun {
			if top.DeletionID == last {
				return purged, nil // it could not begin
			}
			last = top.DeletionID
			if err := s.beginPurge(ctx, top); err != nil {
				return purged, err
			}
			continue
		}
		n, err := s.purge(ctx, top)
		if purged += n; err != nil {
			return purged, err
		}
	}
	return purged, ctx.Err()
}

// beginPurge begins the purge of what one delete removed, and records it: the
// audit trail knows nothing of these organizations from then on.
func (s *Service) beginPurge(ctx context.Context, top *Organization) error {
	// What this process has recorded about them belongs to them.
	if err := s.drain(ctx); err != nil {
		return err
	}
	_, err := s.Change(ctx, &Call{Actor: auth.System()}, func(c *Change) (any, []audit.Draft, error) {
		o, err := c.Locked(top.ID)
		if err != nil || o == nil || o.DeletionID != top.DeletionID {
			return nil, nil, err // restored in between
		}
		entry := c.OrgEntry(o, "organization.purged", []audit.Change{{Pointer: "/deletion_id", Old: audit.Value(o.DeletionID)}})
		if begun, err := c.BeginPurge(o.RootID, o.DeletionID, c.At); err != nil || !begun {
			return nil, nil, err
		}
		return nil, []audit.Draft{entry}, nil
	})
	return err
}

// purge completes a purge that has begun.
func (s *Service) purge(ctx context.Context, top *Organization) (purged int64, err error) {
	var took time.Duration // by the last step
	for {
		select {
		case <-ctx.Done():
			return purged, ctx.Err()
		case <-time.After(max(purgePause, took)):
		}
		var gone []string
		var done bool
		begun := time.Now()
		err := s.store.Write(ctx, func(tx Tx) error {
			// Others may move what is above it. If it is a root its log is closed,
			// and nobody changes its tree.
			_, err := tx.Lock(top.RootID)
			if err == nil || errors.Is(err, ErrAbsent) {
				gone, done, err = tx.Purge(top.RootID, top.DeletionID, purgeStep, s.Now())
			}
			return err
		})
		if err != nil {
			return purged, err
		}
		took = time.Since(begun)
		s.purged(top.RootID, gone)
		if purged += int64(len(gone)); done {
			return purged, nil
		}
	}
}
