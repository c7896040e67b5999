package store

import (
	"time"

	"github.com/orgd/orgd/internal/org"
)

func (t *tx) Mark(name string) (value string, err error) {
	err = t.queryRow(into(&value), `SELECT value FROM marks WHERE name = $1`, name)
	return value, err
}

func (t *tx) PutMark(name, value string) error {
	defer t.leavesTree(t.writes)
	n, err := t.exec(`INSERT INTO marks (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING`, name, value)
	if err == nil && n == 0 {
		err = org.ErrStale
	}
	return err
}

func (t *tx) ReplaceMark(name, value string) error {
	defer t.leavesTree(t.writes)
	_, err := t.exec(`INSERT INTO marks (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value`, name, value)
	return err
}

func (t *tx) SigningSeeds(now time.Time) (ids []string, err error) {
	err = t.query(func(r row) error {
		var id string
		err := r.Scan(&id)
		ids = append(ids, id)
		return err
	}, `SELECT c.key_seed`+lastSigned+` UNION SELECT c.old_seed`+lastSigned+` AND c.old_until > $1 ORDER BY 1`, micros(now))
	return ids, err
}

// lastSigned selects the signatures of the last epoch of each log.
const lastSigned = ` FROM audit_checkpoints AS c JOIN audit_heads AS h ON h.root_id = c.root_id AND h.epoch = c.epoch
	WHERE NOT EXISTS (SELECT 1 FROM audit_heads AS n WHERE n.root_id = h.root_id AND n.epoch > h.epoch AND n.log_id = h.log_id)`
