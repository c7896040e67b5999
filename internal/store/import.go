package store

import "github.com/orgd/orgd/internal/org"

func (t *tx) OrgStates(ids []string) (map[string]org.OrgState, error) {
	list, err := encodeStrings(ids)
	if err != nil {
		return nil, err
	}
	states := make(map[string]org.OrgState, len(ids))
	err = t.query(func(r row) error {
		var o org.OrgState
		var createdAt, deletedAt int64
		err := r.Scan(&o.ID, &o.Path, (*string)(&o.Type), &createdAt, &o.Version, &deletedAt)
		if o.CreatedAt = fromMicros(createdAt); deletedAt == 0 {
			states[o.ID] = o
		}
		return err
	}, `SELECT id, path, type, created_at, version, deleted_at FROM orgs WHERE id IN (SELECT value FROM json_each($1))`, list)
	return states, err
}

func (t *tx) TakenIDs(ids []string) ([]string, error) {
	list, err := encodeStrings(ids)
	if err != nil {
		return nil, err
	}
	var taken []string
	err = t.query(func(r row) error {
		var id string
		err := r.Scan(&id)
		taken = append(taken, id)
		return err
	}, `SELECT id FROM orgs WHERE id IN (SELECT value FROM json_each($1))`, list)
	return taken, err
}
