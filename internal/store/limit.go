package store

import (
	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/usage"
)

func (t *tx) Limits(rootID string, orgIDs []string) ([]usage.Limit, error) {
	ids, err := encodeStrings(orgIDs)
	if err != nil {
		return nil, err
	}
	var limits []usage.Limit
	err = t.query(func(r row) error {
		l := usage.Limit{RootID: rootID}
		var updatedAt int64
		err := r.Scan(&l.OrgID, &l.Meter, (*int64)(&l.Amount), (*string)(&l.Enforcement), &updatedAt, &l.Version)
		l.UpdatedAt = fromMicros(updatedAt)
		limits = append(limits, l)
		return err
	}, `SELECT org_id, meter, amount, enforcement, updated_at, version FROM usage_limits
		WHERE root_id = $1 AND org_id IN (SELECT value FROM json_each($2))`, rootID, ids)
	return limits, err
}

func (t *tx) PutLimit(l *usage.Limit) error {
	_, err := t.exec(`INSERT INTO usage_limits (root_id, org_id, meter, amount, enforcement, updated_at, version)
		VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (root_id, org_id, meter) DO UPDATE SET amount = excluded.amount, enforcement = excluded.enforcement,
			updated_at = excluded.updated_at, version = excluded.version`,
		l.RootID, l.OrgID, l.Meter, int64(l.Amount), string(l.Enforcement), micros(l.UpdatedAt), l.Version)
	return err
}

func (t *tx) DeleteLimit(rootID, orgID, meter string) error {
	_, err := t.exec(`DELETE FROM usage_limits WHERE root_id = $1 AND org_id = $2 AND meter = $3`, rootID, orgID, meter)
	return err
}

func (t *tx) Consumed(rootID, orgID string, month usage.Month, meter string) (usage.Decimal, error) {
	var sum usage.Decimal
	err := t.query(func(r row) error {
		var total int64
		err := r.Scan(&total)
		sum += usage.Decimal(total)
		return err
	}, `SELECT total FROM usage_totals WHERE root_id = $1 AND month = $2 AND org_id = $3 AND meter = $4`,
		rootID, string(month), orgID, meter)
	return sum, err
}

func (t *tx) SpoolPosition(spoolID string) (access.Position, error) {
	state, err := t.spoolState(spoolID)
	return state.Position, err
}
