package org

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/orgd/orgd/internal/audit"
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
	receipt, err := s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		o, counts, err := c.deletable(id)
		if err != nil {
			return nil, nil, err
		}
		if err := CheckMatch(call.IfMatch, o.ETag()); err != nil {
			return nil, nil, err
		}
		d.Counts = counts
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
		deletionID := c.newID("del_")
		if d.Counts, err = c.MarkDeleted(o.RootID, o.Path, deletionID, c.at); err != nil {
			return nil, nil, err
		}
		d.RestorableUntil = c.at.Add(s.restoreWindow)
		changes := []audit.Change{
			{Pointer: "/deletion_id", New: value(deletionID)},
			{Pointer: "/deleted/organizations", New: value(d.Organizations)},
			{Pointer: "/deleted/api_keys", New: value(d.APIKeys)},
		}
		return d, []audit.Draft{c.orgEntry(o, "organization.deleted", changes)}, nil
	})
	return d, receipt, err
}

// CheckDelete checks that the actor may delete the organization, with all that
// lives below it now, and changes nothing.
func (s *Service) CheckDelete(ctx context.Context, call *Call, id string) error {
	return s.precheck(ctx, call, func(c *change) error {
		_, _, err := c.deletable(id)
		return err
	})
}

// deletable returns an organization that the actor may delete, and what lives
// in its subtree.
func (c *change) deletable(id string) (*Organization, Counts, error) {
	o, err := c.target(id, key.OrgsDelete)
	if err != nil {
		return nil, Counts{}, err
	}
	counts, err := c.CountSubtree(o.RootID, o.Path)
	if err == nil && counts.Organizations > 1 && !c.call.Actor.SeesBelow(o.Path) {
		err = problem.New(problem.PermissionDenied, "The organization has live descendants, which this key does not reach.").
			WithFix("Use a key with the reach subtree.")
	}
	return o, counts, err
}

// Restore undoes a delete: it brings back exactly what that delete removed.
// It takes an actor that reaches the parent and what is below it, or the
// operator for a root.
func (s *Service) Restore(ctx context.Context, call *Call, id string) (*Organization, audit.Receipt, error) {
	var o *Organization
	receipt, err := s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		var err error
		if o, err = c.restorable(id); err != nil {
			return nil, nil, err
		}
		if err := CheckMatch(call.IfMatch, o.ETag()); err != nil {
			return nil, nil, err
		}
		if c.at.After(o.DeletedAt.Add(s.restoreWindow)) {
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
			{Pointer: "/deletion_id", Old: value(deletionID)},
			{Pointer: "/restored/organizations", New: value(counts.Organizations)},
			{Pointer: "/restored/api_keys", New: value(counts.APIKeys)},
		}
		return o, []audit.Draft{c.orgEntry(o, "organization.restored", changes)}, nil
	})
	return o, receipt, err
}

// CheckRestore checks all that Restore requires of the actor, changes nothing,
// and returns the deleted organization.
func (s *Service) CheckRestore(ctx context.Context, call *Call, id string) (o *Organization, err error) {
	err = s.precheck(ctx, call, func(c *change) (err error) {
		o, err = c.restorable(id)
		return err
	})
	return o, err
}

// restorable returns a deleted organization that the actor may restore.
func (c *change) restorable(id string) (*Organization, error) {
	o, err := c.locked(id)
	if err != nil {
		return nil, err
	}
	a := c.call.Actor
	if o == nil {
		return nil, NotFound()
	}
	if o.DeletedAt == nil {
		if !a.Sees(o.Path) {
			return nil, NotFound()
		}
		if err := permit(a, key.OrgsDelete); err != nil {
			return nil, err
		}
		return nil, problem.New(problem.Conflict, "The organization %s is not deleted.", id)
	}
	if o.ParentID == "" {
		if !a.Spans() {
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
	if err := permit(a, key.OrgsDelete); err != nil {
		return nil, err
	}
	if parent.DeletedAt != nil {
		return nil, problem.New(problem.ParentDeleted, "The parent %s is deleted.", parent.ID).
			WithFix("Restore the parent first.").With("parent_id", parent.ID)
	}
	return o, nil
}

// PurgeExpired removes for good the organizations whose restore window has
// ended, one delete per transaction, and returns how many organizations it
// removed. It stops at the first error.
func (s *Service) PurgeExpired(ctx context.Context) (int64, error) {
	call := &Call{Actor: key.System()}
	var purged int64
	for ctx.Err() == nil {
		var expired []*Organization
		err := s.store.Read(ctx, func(tx Tx) (err error) {
			expired, err = tx.Expired(s.Now().Add(-s.restoreWindow), 1)
			return err
		})
		if err != nil || len(expired) == 0 {
			return purged, err
		}
		var n int64
		_, err = s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
			o, err := c.locked(expired[0].ID)
			if err != nil {
				return nil, nil, err
			}
			if o == nil || o.DeletedAt == nil || o.DeletionID != expired[0].DeletionID {
				return nil, nil, nil // restored in between
			}
			entry := c.orgEntry(o, "organization.purged", []audit.Change{{Pointer: "/deletion_id", Old: value(o.DeletionID)}})
			n, err = c.Purge(o.RootID, o.DeletionID)
			return nil, []audit.Draft{entry}, err
		})
		if err != nil {
			return purged, err
		}
		purged += n
	}
	return purged, ctx.Err()
}
