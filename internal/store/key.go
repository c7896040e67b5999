package store

import (
	"errors"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
)

const keyColumns = `root_id, org_id, id, name, permissions, reach, allowed_cidrs, rate_requests, rate_period, hint,
	created_at, created_by, updated_at, expires_at, revoked_at, last_used_at, last_used_ip, secret_hash,
	old_hash, old_hint, old_valid_until, old_last_used_at, old_last_used_ip, version`

func scanKey(r row) (*key.Key, error) {
	k := &key.Key{}
	var permissions, cidrs, oldHint, oldIP string
	var oldHash []byte
	var rate key.RateLimit
	var createdAt, updatedAt, expiresAt, revokedAt, lastUsedAt, oldValidUntil, oldLastUsedAt int64
	err := r.Scan(&k.RootID, &k.OrgID, &k.ID, &k.Name, &permissions, (*string)(&k.Reach), &cidrs, &rate.Requests, &rate.PeriodSeconds,
		&k.Hint, &createdAt, &k.CreatedBy, &updatedAt, &expiresAt, &revokedAt, &lastUsedAt, &k.LastUsedIP, &k.SecretHash,
		&oldHash, &oldHint, &oldValidUntil, &oldLastUsedAt, &oldIP, &k.Version)
	if err != nil {
		return nil, err
	}
	var err1, err2 error
	k.Permissions, err1 = decodeStrings(permissions)
	k.AllowedCIDRs, err2 = decodeStrings(cidrs)
	if rate != (key.RateLimit{}) {
		k.RateLimit = &rate
	}
	k.CreatedAt, k.UpdatedAt = fromMicros(createdAt), fromMicros(updatedAt)
	k.ExpiresAt, k.RevokedAt, k.LastUsedAt = optionalTime(expiresAt), optionalTime(revokedAt), optionalTime(lastUsedAt)
	if len(oldHash) > 0 {
		k.Old = &key.OldSecret{Hash: oldHash, Hint: oldHint, ValidUntil: fromMicros(oldValidUntil),
			LastUsedAt: optionalTime(oldLastUsedAt), LastUsedIP: oldIP}
	}
	return k, errors.Join(err1, err2)
}

// keyRow holds the columns of a key in the forms in which they are stored.
type keyRow struct {
	permissions, cidrs string
	rate               key.RateLimit
	old                key.OldSecret
	oldValidUntil      int64
}

func newKeyRow(k *key.Key) (keyRow, error) {
	r := keyRow{old: key.OldSecret{Hash: []byte{}}}
	var err1, err2 error
	r.permissions, err1 = encodeStrings(k.Permissions)
	r.cidrs, err2 = encodeStrings(k.AllowedCIDRs)
	if k.RateLimit != nil {
		r.rate = *k.RateLimit
	}
	if k.Old != nil {
		r.old, r.oldValidUntil = *k.Old, micros(k.Old.ValidUntil)
	}
	return r, errors.Join(err1, err2)
}

const keyByID = `SELECT ` + keyColumns + ` FROM api_keys WHERE id = $1`

func (t *tx) Key(id string) (*key.Key, error) {
	k, known := t.takeKey(id)
	switch {
	case k != nil:
		return k, nil
	case known:
		return nil, org.ErrAbsent
	}
	return t.oneKey(keyByID, id)
}

func (t *tx) HoldKey(id string) (*key.Key, error) { return t.oneKey(keyByID+` FOR SHARE`, id) }

func (t *tx) KeyOf(orgID, id string) (*key.Key, error) {
	return t.oneKey(keyByID+` AND org_id = $2`, id, orgID)
}

func (t *tx) oneKey(text string, args ...any) (k *key.Key, err error) {
	err = t.queryRow(func(r row) error {
		k, err = scanKey(r)
		return err
	}, text, args...)
	return k, err
}

func (t *tx) SecretHashes(id string) (rootID string, secret, old []byte, err error) {
	err = t.queryRow(into(&rootID, &secret, &old), `SELECT root_id, secret_hash, old_hash FROM api_keys WHERE id = $1`, id)
	return rootID, secret, old, err
}

func (t *tx) InsertKey(k *key.Key) error {
	r, err := newKeyRow(k)
	if err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO api_keys (`+keyColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,
			$13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24)`,
		k.RootID, k.OrgID, k.ID, k.Name, r.permissions, string(k.Reach), r.cidrs, r.rate.Requests, r.rate.PeriodSeconds, k.Hint,
		micros(k.CreatedAt), k.CreatedBy, micros(k.UpdatedAt), optionalMicros(k.ExpiresAt), optionalMicros(k.RevokedAt),
		optionalMicros(k.LastUsedAt), k.LastUsedIP, k.SecretHash, r.old.Hash, r.old.Hint, r.oldValidUntil,
		optionalMicros(r.old.LastUsedAt), r.old.LastUsedIP, k.Version)
	return err
}

// UpdateKey takes over the use of the old secret only when a rotation changes
// which secret that is.
func (t *tx) UpdateKey(k *key.Key) error {
	r, err := newKeyRow(k)
	if err != nil {
		return err
	}
	return t.execOne(`UPDATE api_keys SET name = $5, permissions = $6, reach = $7, allowed_cidrs = $8, rate_requests = $9,
			rate_period = $10, hint = $11, updated_at = $12, expires_at = $13, revoked_at = $14, secret_hash = $15,
			old_last_used_at = CASE WHEN old_hash = $16 THEN old_last_used_at ELSE $17 END,
			old_last_used_ip = CASE WHEN old_hash = $16 THEN old_last_used_ip ELSE $18 END,
			old_hash = $16, old_hint = $19, old_valid_until = $20, version = $4 + 1
		WHERE root_id = $1 AND org_id = $2 AND id = $3 AND version = $4`,
		k.RootID, k.OrgID, k.ID, k.Version-1, k.Name, r.permissions, string(k.Reach), r.cidrs, r.rate.Requests,
		r.rate.PeriodSeconds, k.Hint, micros(k.UpdatedAt), optionalMicros(k.ExpiresAt), optionalMicros(k.RevokedAt), k.SecretHash,
		r.old.Hash, optionalMicros(r.old.LastUsedAt), r.old.LastUsedIP, r.old.Hint, r.oldValidUntil)
}

// keySize is about what a key takes in an answer, in bytes.
func keySize(k *key.Key) int {
	n := 500 + len(k.Name)
	for _, list := range [][]string{k.Permissions, k.AllowedCIDRs} {
		for _, s := range list {
			n += len(s) + 3
		}
	}
	return n
}

func (t *tx) Keys(orgID, after string, limit, maxBytes int) (keys []*key.Key, more bool, err error) {
	w := &window{maxBytes: maxBytes}
	err = t.query(func(r row) error {
		if more = len(keys) == limit || w.full(); more {
			return errEnough
		}
		k, err := scanKey(r)
		if err != nil {
			return err
		}
		keys = append(keys, k)
		w.take(keySize(k))
		return nil
	}, `SELECT `+keyColumns+` FROM api_keys
		WHERE root_id = (SELECT root_id FROM orgs WHERE id = $1) AND org_id = $1 AND id > $2 AND revoked_at = 0
		ORDER BY id LIMIT $3`, orgID, after, int64(limit)+1)
	return keys, more, err
}
