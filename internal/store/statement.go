package store

import (
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/usage"
)

func (t *tx) MonthTotals(rootID string, month usage.Month, after usage.Total, limit int) ([]usage.Total, error) {
	var totals []usage.Total
	err := t.query(func(r row) error {
		total := usage.Total{RootID: rootID, Month: month}
		err := r.Scan(&total.OrgID, &total.ParentID, &total.Meter, (*int64)(&total.Own), (*int64)(&total.Total))
		totals = append(totals, total)
		return err
	}, `SELECT org_id, parent_id, meter, own, total FROM usage_totals
		WHERE root_id = $1 AND month = $2 AND (org_id, parent_id, meter) > ($3, $4, $5)
		ORDER BY org_id, parent_id, meter LIMIT $6`,
		rootID, string(month), after.OrgID, after.ParentID, after.Meter, int64(limit))
	return totals, err
}

func (t *tx) PutStatementPart(rootID string, month usage.Month, part int, text []byte) error {
	_, err := t.exec(`INSERT INTO usage_statement_parts (root_id, month, part, content) VALUES ($1, $2, $3, $4)`,
		rootID, string(month), int64(part), string(text))
	return err
}

func (t *tx) PutStatement(s *metering.Statement) error {
	_, err := t.exec(`INSERT INTO usage_statements (root_id, month, entry_id, size, parts) VALUES ($1, $2, $3, $4, $5)`,
		s.RootID, string(s.Month), s.EntryID, s.Size, int64(s.Parts))
	return err
}

func (t *tx) Statement(rootID string, month usage.Month) (*metering.Statement, error) {
	s := &metering.Statement{RootID: rootID, Month: month}
	return s, t.queryRow(into(&s.EntryID, &s.Size, &s.Parts),
		`SELECT entry_id, size, parts FROM usage_statements WHERE root_id = $1 AND month = $2`, rootID, string(month))
}

func (t *tx) StatementPart(rootID string, month usage.Month, part int) ([]byte, error) {
	var text string
	err := t.queryRow(into(&text), `SELECT content FROM usage_statement_parts WHERE root_id = $1 AND month = $2 AND part = $3`,
		rootID, string(month), int64(part))
	return []byte(text), err
}
