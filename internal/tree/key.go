package tree

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

// NewKey is a key with its secret, which exists nowhere else.
type NewKey struct {
	*key.Key
	Secret string
}

// CreateKey creates an API key of an organization. It is never more powerful
// than the actor; see auth.TermsFor.
func (s *Service) CreateKey(ctx context.Context, call *org.Call, orgID string, req auth.Request) (*NewKey, audit.Receipt, error) {
	var out *NewKey
	receipt, err := s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		o, err := c.Target(orgID, key.KeysWrite)
		if err != nil {
			return nil, nil, err
		}
		grant, p := auth.TermsFor(c.Call.Actor, o.Path, req, c.At)
		if p != nil {
			return nil, nil, p
		}
		k := &key.Key{ID: c.NewID("key_"), OrgID: o.ID, RootID: o.RootID, Name: grant.Name,
			Permissions: grant.Permissions, Reach: grant.Reach, AllowedCIDRs: grant.AllowedCIDRs,
			RateLimit: grant.RateLimit, ExpiresAt: grant.ExpiresAt,
			CreatedAt: c.At, CreatedBy: c.Call.Actor.ID, UpdatedAt: c.At, Version: 1}
		out = &NewKey{Key: k}
		out.Secret, k.SecretHash, k.Hint = key.NewSecret(s.rand, k.ID)
		if err := c.InsertKey(k); err != nil {
			return nil, nil, err
		}
		return out, []audit.Draft{c.keyEntry(o, k, "api_key.created", keyChanges(&key.Key{}, k))}, nil
	})
	return out, receipt, err
}

func (c *change) keyEntry(o *org.Organization, k *key.Key, action string, changes []audit.Change) audit.Draft {
	return c.Entry(o, action, audit.Target{Type: "api_key", ID: k.ID}, changes)
}

// keyMember is a member of a key, as the audit trail has it.
type keyMember struct {
	pointer string
	value   func(k *key.Key) jsontext.Value // nil for none
	// emptied returns the place of the value in the key, after it has taken out what is there.
	emptied func(k *key.Key) any
}

// keyMembers are what the audit trail says of a key: what changes in it, and what it is made
// of again.
var keyMembers = []keyMember{
	{"/name", func(k *key.Key) jsontext.Value { return textValue(k.Name) },
		func(k *key.Key) any { k.Name = ""; return &k.Name }},
	{"/permissions", func(k *key.Key) jsontext.Value { return listValue(k.Permissions) },
		func(k *key.Key) any { k.Permissions = nil; return &k.Permissions }},
	{"/reach", func(k *key.Key) jsontext.Value { return textValue(string(k.Reach)) },
		func(k *key.Key) any { k.Reach = ""; return &k.Reach }},
	{"/expires_at", func(k *key.Key) jsontext.Value { return textValue(timeText(k.ExpiresAt)) },
		func(k *key.Key) any { k.ExpiresAt = nil; return &k.ExpiresAt }},
	{"/allowed_cidrs", func(k *key.Key) jsontext.Value { return listValue(k.AllowedCIDRs) },
		func(k *key.Key) any { k.AllowedCIDRs = nil; return &k.AllowedCIDRs }},
	{"/rate_limit", func(k *key.Key) jsontext.Value {
		if k.RateLimit == nil {
			return nil
		}
		return audit.Value(k.RateLimit)
	}, func(k *key.Key) any { k.RateLimit = nil; return &k.RateLimit }},
	{"/revoked_at", func(k *key.Key) jsontext.Value { return textValue(timeText(k.RevokedAt)) },
		func(k *key.Key) any { k.RevokedAt = nil; return &k.RevokedAt }},
}

// What the audit trail says of the secret of a key, which is made again of nothing.
const (
	hintPointer     = "/hint"
	oldUntilPointer = "/old_secret/valid_until"
)

var secretPointers = []string{hintPointer, oldUntilPointer}

func textValue(text string) jsontext.Value {
	if text == "" {
		return nil
	}
	return audit.Value(text)
}

func listValue(list []string) jsontext.Value {
	if len(list) == 0 {
		return nil
	}
	return audit.Value(list)
}

// keyChanges returns what differs between two states of a key, without
// anything of its secret.
func keyChanges(old, new *key.Key) (cs []audit.Change) {
	for _, m := range keyMembers {
		if was, is := m.value(old), m.value(new); !bytes.Equal(was, is) {
			cs = append(cs, audit.Change{Pointer: m.pointer, Old: was, New: is})
		}
	}
	return cs
}

func timeText(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// KeyETag returns the entity tag of a key. It says nothing of the key's use:
// last_used_at may differ between answers with the same tag.
func KeyETag(k *key.Key) string {
	return org.ETag("key", org.Stamp{Path: k.ID, Version: k.Version, At: k.CreatedAt})
}

// Key returns a key of an organization. A revoked key is not found.
func (s *Service) Key(ctx context.Context, actor *auth.Actor, orgID, keyID string) (*key.Key, error) {
	if _, err := s.orgs.Find(ctx, actor, orgID); err != nil {
		return nil, err
	}
	var k *key.Key
	err := s.store.Read(ctx, func(v View) (err error) {
		k, err = liveKey(v, orgID, keyID)
		return err
	})
	return k, err
}

func liveKey(v View, orgID, keyID string) (*key.Key, error) {
	absent := problem.New(problem.NotFound, "The organization has no such API key.")
	if !ident.Valid(keyID) {
		return nil, absent
	}
	k, err := v.KeyOf(orgID, keyID)
	if errors.Is(err, org.ErrAbsent) || err == nil && k.RevokedAt != nil {
		return nil, absent
	}
	return k, err
}

// Keys returns one page of an organization's keys by id, those after the
// given one, without the revoked, and whether there are more. See Tx.Keys.
func (s *Service) Keys(ctx context.Context, actor *auth.Actor, orgID, after string, limit, maxBytes int) (keys []*key.Key, more bool, err error) {
	if _, err := s.orgs.Find(ctx, actor, orgID); err != nil {
		return nil, false, err
	}
	err = s.store.ReadHeavy(ctx, func(v View) (err error) {
		keys, more, err = v.Keys(orgID, after, limit, maxBytes)
		return err
	})
	return keys, more, err
}

// KeyUpdate is a change of a key: what is nil stays.
type KeyUpdate struct {
	Name         *string
	Permissions  *[]string
	Reach        *key.Reach
	AllowedCIDRs *[]string
	ExpiresAt    **time.Time
	RateLimit    **key.RateLimit
}

// UpdateKey changes a key. Neither the key as it was nor as it becomes may be
// more powerful than the actor.
func (s *Service) UpdateKey(ctx context.Context, call *org.Call, orgID, keyID string, u KeyUpdate) (*key.Key, audit.Receipt, error) {
	return s.changeKey(ctx, call, orgID, keyID, func(c *change, o *org.Organization, k *key.Key) (any, string, error) {
		if p := auth.Covers(c.Call.Actor, o.Path, k); p != nil {
			return nil, "", p
		}
		req := auth.Request{Name: k.Name, Permissions: k.Permissions, Reach: k.Reach,
			AllowedCIDRs: k.AllowedCIDRs, ExpiresAt: k.ExpiresAt, RateLimit: k.RateLimit}
		if u.Name != nil {
			req.Name = *u.Name
		}
		if u.Permissions != nil {
			req.Permissions = *u.Permissions
		}
		if u.Reach != nil {
			req.Reach = *u.Reach
		}
		if u.AllowedCIDRs != nil {
			req.AllowedCIDRs = *u.AllowedCIDRs
		}
		if u.ExpiresAt != nil {
			req.ExpiresAt = *u.ExpiresAt
		}
		if u.RateLimit != nil {
			req.RateLimit = *u.RateLimit
		}
		g, p := auth.TermsFor(c.Call.Actor, o.Path, req, c.At)
		if p != nil {
			return nil, "", p
		}
		k.Name, k.Permissions, k.Reach, k.AllowedCIDRs = g.Name, g.Permissions, g.Reach, g.AllowedCIDRs
		k.ExpiresAt, k.RateLimit = g.ExpiresAt, g.RateLimit
		return k, "api_key.updated", nil
	})
}

// RotateKey gives a key a new secret. The old one works until overlap has
// passed. A key that is more powerful than the actor cannot be rotated, since
// its new secret would make the actor as powerful.
func (s *Service) RotateKey(ctx context.Context, call *org.Call, orgID, keyID string, overlap time.Duration) (*NewKey, audit.Receipt, error) {
	var out *NewKey
	_, receipt, err := s.changeKey(ctx, call, orgID, keyID, func(c *change, o *org.Organization, k *key.Key) (any, string, error) {
		if p := auth.Covers(c.Call.Actor, o.Path, k); p != nil {
			return nil, "", p
		}
		k.Old = nil
		if overlap > 0 {
			k.Old = &key.OldSecret{Hash: k.SecretHash, Hint: k.Hint, ValidUntil: c.At.Add(overlap)}
		}
		out = &NewKey{Key: k}
		out.Secret, k.SecretHash, k.Hint = key.NewSecret(s.rand, k.ID)
		return out, "api_key.rotated", nil
	})
	return out, receipt, err
}

// RevokeKey ends a key at once and for good.
func (s *Service) RevokeKey(ctx context.Context, call *org.Call, orgID, keyID string) (audit.Receipt, error) {
	_, receipt, err := s.changeKey(ctx, call, orgID, keyID, func(c *change, o *org.Organization, k *key.Key) (any, string, error) {
		k.RevokedAt, k.Old = &c.At, nil
		return k, "api_key.revoked", nil
	})
	return receipt, err
}

func (s *Service) changeKey(ctx context.Context, call *org.Call, orgID, keyID string, fn func(c *change, o *org.Organization, k *key.Key) (result any, action string, err error)) (*key.Key, audit.Receipt, error) {
	var after *key.Key
	receipt, err := s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		o, err := c.Target(orgID, key.KeysWrite)
		if err != nil {
			return nil, nil, err
		}
		before, err := liveKey(c.Tx, orgID, keyID)
		if err != nil {
			return nil, nil, err
		}
		if err := org.CheckMatch(call.IfMatch, KeyETag(before)); err != nil {
			return nil, nil, err
		}
		k := *before
		after = &k
		result, action, err := fn(c, o, after)
		if err != nil {
			return nil, nil, err
		}
		changes := keyChanges(before, after)
		if action == "api_key.rotated" {
			cs := audit.Replaced(nil, hintPointer, before.Hint, after.Hint)
			if after.Old != nil {
				cs = audit.Replaced(cs, oldUntilPointer, "", timeText(&after.Old.ValidUntil))
			}
			changes = append(changes, cs...)
		}
		if len(changes) == 0 {
			return nil, nil, nil
		}
		after.UpdatedAt = c.At
		after.Version++
		if err := c.UpdateKey(after); err != nil {
			return nil, nil, err
		}
		return result, []audit.Draft{c.keyEntry(o, after, action, changes)}, nil
	})
	return after, receipt, err
}
