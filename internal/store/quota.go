package store

import (
	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/org"
)

func (t *tx) Quota(rootID string) (*org.Quota, error) {
	var members string
	var updatedAt, version int64
	if err := t.queryRow(into(&members, &updatedAt, &version),
		`SELECT members, updated_at, version FROM quotas WHERE root_id = $1`, rootID); err != nil {
		return nil, err
	}
	q := &org.Quota{}
	err := json.Unmarshal([]byte(members), q)
	q.UpdatedAt, q.Version = fromMicros(updatedAt), version
	return q, err
}

func (t *tx) PutQuota(rootID string, q *org.Quota) error {
	members, err := json.Marshal(q, json.Deterministic(true))
	if err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO quotas (root_id, members, updated_at, version) VALUES ($1, $2, $3, $4)
		ON CONFLICT (root_id) DO UPDATE SET members = excluded.members, updated_at = excluded.updated_at, version = excluded.version`,
		rootID, string(members), micros(q.UpdatedAt), q.Version)
	return err
}

func (t *tx) DeleteQuota(rootID string) error {
	_, err := t.exec(`DELETE FROM quotas WHERE root_id = $1`, rootID)
	return err
}
