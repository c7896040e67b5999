package tree

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

// Deletion says what a delete removed, or would remove.
type Deletion struct {
	org.Counts
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
func (s *Service) Delete(ctx context.Context, call *org.Call, id string, opt DeleteOptions) (*Deletion, audit.Receipt, error) {
	d := &Deletion{DryRun: opt.DryRun}
	receipt, err := s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		o, err := c.check().deletable(id)
		if err != nil {
			return nil, nil, err
		}
		if err := org.CheckMatch(call.IfMatch, o.ETag()); err != nil {
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
func (s *Service) CheckDelete(ctx context.Context, call *org.Call, id string) error {
	return s.precheck(ctx, call, func(c *check) error {
		_, err := c.deletable(id)
		return err
	})
}

// deletable returns an organization that the actor may delete with what lives in
// its subtree.
func (c *check) deletable(id string) (*org.Organization, error) {
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
func (s *Service) Restore(ctx context.Context, call *org.Call, id string) (*org.Organization, audit.Receipt, error) {
	var o *org.Organization
	receipt, err := s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		var err error
		if o, err = c.check().restorable(id); err != nil {
			return nil, nil, err
		}
		if err := org.CheckMatch(call.IfMatch, o.ETag()); err != nil {
			return nil, nil, err
		}
		if c.At.After(o.DeletedAt.Add(s.restoreWindow)) {
			return nil, nil, org.NotFound()
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
func (s *Service) CheckRestore(ctx context.Context, call *org.Call, id string) (o *org.Organization, err error) {
	err = s.precheck(ctx, call, func(c *check) (err error) {
		o, err = c.restorable(id)
		return err
	})
	return o, err
}

// restorable returns a deleted organization that the actor may restore. With an
// error it returns the organization if the actor may know of it.
func (c *check) restorable(id string) (*org.Organization, error) {
	a := c.Call.Actor
	// What the actor does not reach is not locked, and is not found as quickly
	// as what does not exist.
	if _, err := org.Reached(c, a, id); errors.Is(err, org.ErrAbsent) {
		return nil, org.NotFound()
	} else if err != nil {
		return nil, err
	}
	o, err := c.Locked(id)
	if err != nil {
		return nil, err
	}
	if o == nil {
		return nil, org.NotFound()
	}
	if o.DeletedAt == nil {
		if !a.Sees(o.Path) {
			return nil, org.NotFound()
		}
		if err := a.Demand(o.Path, key.OrgsDelete); err != nil {
			return o, err
		}
		return o, problem.New(problem.Conflict, "The organization %s is not deleted.", id)
	}
	if begun, err := c.PurgeBegun(o.RootID, o.DeletionID); err != nil {
		return nil, err
	} else if begun {
		return nil, org.NotFound() // parts of it may be gone
	}
	if o.ParentID == "" {
		if !a.Everywhere() {
			return nil, org.NotFound()
		}
		return o, nil
	}
	parent, err := c.Org(o.ParentID)
	if errors.Is(err, org.ErrAbsent) {
		return nil, org.NotFound()
	} else if err != nil {
		return nil, err
	}
	if !a.SeesBelow(parent.Path) {
		return nil, org.NotFound()
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
		var tops []*org.Organization
		var begun bool
		err := s.store.Read(ctx, func(v View) (err error) {
			if tops, err = v.Purging(1); err != nil || len(tops) > 0 {
				begun = true
				return err
			}
			begun = false
			tops, err = v.Expired(s.orgs.Now().Add(-s.restoreWindow), 1)
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
func (s *Service) beginPurge(ctx context.Context, top *org.Organization) error {
	// What this process has recorded about them belongs to them.
	if err := s.drain(ctx); err != nil {
		return err
	}
	_, err := s.change(ctx, &org.Call{Actor: auth.System()}, func(c *change) (any, []audit.Draft, error) {
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
func (s *Service) purge(ctx context.Context, top *org.Organization) (purged int64, err error) {
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
			if err == nil || errors.Is(err, org.ErrAbsent) {
				gone, done, err = tx.Purge(top.RootID, top.DeletionID, purgeStep, s.orgs.Now())
			}
			return err
		})
		if err != nil {
			return purged, err
		}
		took = time.Since(begun)
		s.orgs.TellPurged(top.RootID, gone)
		if purged += int64(len(gone)); done {
			return purged, nil
		}
	}
}
