package client

import (
	"context"
	"encoding/json"
)

// Statement is what all organizations of a root consumed in a month that is
// closed. Raw is its canonical form, whose hash is in the audit log: keep it
// byte for byte.
type Statement struct {
	RootID        string                    `json:"root_id"`
	Month         string                    `json:"month"`
	Meters        map[string]StatementMeter `json:"meters"`
	Organizations []StatementOrg            `json:"organizations"` // by id
	// EntryID is the audit entry that holds the hash: its proof (AuditProof)
	// proves the statement.
	EntryID string          `json:"-"`
	Raw     json.RawMessage `json:"-"`
}

// StatementMeter is a meter of a Statement.
type StatementMeter struct {
	Unit        string `json:"unit"`
	Aggregation string `json:"aggregation"`
}

// StatementOrg is what one organization consumed.
type StatementOrg struct {
	ID     string                       `json:"id"`
	Meters map[string]StatementQuantity `json:"meters"`
}

// StatementQuantity is a consumption in exact decimals.
type StatementQuantity struct {
	Own   string `json:"own"`
	Total string `json:"total"` // own and that of all organizations below
}

// Statement returns the statement of a month, such as 2026-11, of a root.
func (cl *Client) Statement(ctx context.Context, rootID, month string, opts ...CallOption) (*Statement, error) {
	resp, body, err := cl.do(ctx, newCall("GET", []string{"orgs", rootID, "consumption", "statement"}, opts).set("month", month))
	if err != nil {
		return nil, err
	}
	s := &Statement{EntryID: resp.Header.Get("Orgd-Audit-Entry"), Raw: body}
	return s, decode(body, s)
}
