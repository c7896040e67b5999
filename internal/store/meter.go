package store

import (
	"errors"

	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/usage"
)

func (t *tx) Meters(rootID string) ([]usage.Meter, error) {
	var meters []usage.Meter
	err := t.query(func(r row) error {
		var m usage.Meter
		var createdAt, updatedAt int64
		err := r.Scan(&m.Slug, &m.Unit, (*string)(&m.Aggregation), &m.Description, &m.EventType, &m.Value, &createdAt, &updatedAt, &m.Version)
		m.CreatedAt, m.UpdatedAt = fromMicros(createdAt), fromMicros(updatedAt)
		meters = append(meters, m)
		return err
	}, `SELECT slug, unit, aggregation, description, event_type, value, created_at, updated_at, version FROM meters
		WHERE root_id = $1 ORDER BY slug`, rootID)
	return meters, err
}

func (t *tx) PutMeter(rootID string, m *usage.Meter) error {
	_, err := t.exec(`INSERT INTO meters (root_id, slug, unit, aggregation, description, event_type, value, created_at, updated_at, version)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
		ON CONFLICT (root_id, slug) DO UPDATE SET unit = excluded.unit, aggregation = excluded.aggregation, description = excluded.description,
			event_type = excluded.event_type, value = excluded.value, created_at = excluded.created_at, updated_at = excluded.updated_at,
			version = excluded.version`,
		rootID, m.Slug, m.Unit, string(m.Aggregation), m.Description, m.EventType, m.Value, micros(m.CreatedAt), micros(m.UpdatedAt), m.Version)
	return err
}

func (t *tx) DeleteMeter(rootID, slug string) error {
	_, err := t.exec(`DELETE FROM meters WHERE root_id = $1 AND slug = $2`, rootID, slug)
	return err
}

func (t *tx) MeterUsed(rootID, slug string) (bool, error) {
	var one int64
	// Whatever is counted in a tree is in the total of its root.
	err := t.queryRow(into(&one), `SELECT 1 FROM usage_months AS m WHERE m.root_id = $1 AND EXISTS (SELECT 1 FROM usage_totals AS t
		WHERE t.root_id = m.root_id AND t.month = m.month AND t.org_id = m.root_id AND t.parent_id = '' AND t.meter = $2) LIMIT 1`, rootID, slug)
	if errors.Is(err, org.ErrAbsent) {
		return false, nil
	}
	return err == nil, err
}
