package metering

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
)

// Statement says what every organization of a root consumed in a month that is
// closed. Its text is canonical JSON (RFC 8785), kept in parts, and its hash is
// in the audit entry that closed the month.
type Statement struct {
	RootID  string
	Month   usage.Month
	EntryID string // of the audit entry with its hash
	Size    int64  // bytes
	Parts   int
}

const (
	statementPart = 256 << 10 // bytes
	statementStep = 1000      // totals read at a time
)

// statementWriter writes a statement:
//
//	{"meters":{"api_calls":{"aggregation":"sum","unit":"calls"},…},"month":"2026-10",
//	 "organizations":[{"id":"acme","meters":{"api_calls":{"own":"12","total":"34.5"}}},…],
//	 "root_id":"acme","v":1}
//
// without whitespace. Organizations are sorted by id, and all that consumed
// something are there, also those that were deleted; each of several that had
// one id after the other by itself, the one that has it now first. Quantities
// are exact decimals.
type statementWriter struct {
	tx   MonthsTx
	s    *Statement
	hash hash.Hash
	buf  []byte
}

func (w *statementWriter) flush() error {
	w.hash.Write(w.buf)
	w.s.Size += int64(len(w.buf))
	err := w.tx.PutStatementPart(w.s.RootID, w.s.Month, w.s.Parts, w.buf)
	w.s.Parts++
	w.buf = w.buf[:0]
	return err
}

func (w *statementWriter) quote(s string) {
	b, err := jsontext.AppendQuote(w.buf, s)
	if err != nil {
		panic("org: text that is not UTF-8: " + err.Error())
	}
	w.buf = b
}

// writeStatement writes the statement of a month that nothing changes any
// more, and returns its hash.
func writeStatement(tx MonthsTx, s *Statement) (audit.Hash, error) {
	w := &statementWriter{tx: tx, s: s, hash: sha256.New()}
	defined, err := meters(tx, s.RootID)
	if err != nil {
		return audit.Hash{}, err
	}
	w.buf = append(w.buf, `{"meters":{`...)
	for i, m := range defined {
		if i > 0 {
			w.buf = append(w.buf, ',')
		}
		w.quote(m.Slug)
		w.buf = append(w.buf, `:{"aggregation":`...)
		w.quote(string(m.Aggregation))
		w.buf = append(w.buf, `,"unit":`...)
		w.quote(m.Unit)
		w.buf = append(w.buf, '}')
	}
	w.buf = append(w.buf, `},"month":`...)
	w.quote(string(s.Month))
	w.buf = append(w.buf, `,"organizations":[`...)
	if err := w.organizations(); err != nil {
		return audit.Hash{}, err
	}
	w.buf = append(w.buf, `],"root_id":`...)
	w.quote(s.RootID)
	w.buf = append(w.buf, `,"v":1}`...)
	if err := w.flush(); err != nil {
		return audit.Hash{}, err
	}
	return audit.Hash(w.hash.Sum(nil)), nil
}

func (w *statementWriter) organizations() error {
	var after usage.Total
	orgID, own, total := "", map[string]usage.Decimal{}, map[string]usage.Decimal{}
	first := true
	end := func() {
		if orgID == "" {
			return
		}
		if !first {
			w.buf = append(w.buf, ',')
		}
		first = false
		w.buf = append(w.buf, `{"id":`...)
		w.quote(PlainID(orgID))
		w.buf = append(w.buf, `,"meters":{`...)
		slugs := make([]string, 0, len(total))
		for slug := range total {
			slugs = append(slugs, slug)
		}
		slices.Sort(slugs)
		for i, slug := range slugs {
			if i > 0 {
				w.buf = append(w.buf, ',')
			}
			w.quote(slug)
			w.buf = append(w.buf, `:{"own":"`...)
			w.buf = append(w.buf, own[slug].String()...)
			w.buf = append(w.buf, `","total":"`...)
			w.buf = append(w.buf, total[slug].String()...)
			w.buf = append(w.buf, `"}`...)
		}
		w.buf = append(w.buf, "}}"...)
		clear(own)
		clear(total)
	}
	for {
		rows, err := w.tx.MonthTotals(w.s.RootID, w.s.Month, after, statementStep)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if r.OrgID != orgID {
				end()
				orgID = r.OrgID
			}
			own[r.Meter] += r.Own
			total[r.Meter] += r.Total
		}
		if len(w.buf) >= statementPart {
			if err := w.flush(); err != nil {
				return err
			}
		}
		if len(rows) < statementStep {
			end()
			return nil
		}
		after = rows[len(rows)-1]
	}
}

// stateMonth writes the statement of a month that was closed in this change,
// and drafts the entry that holds its hash.
func (c *closing) stateMonth(root *org.Organization, month usage.Month) (audit.Draft, error) {
	entry := c.Entry(root, audit.ActionMonthClosed, audit.Target{Type: "month", ID: string(month)}, nil)
	s := &Statement{RootID: root.ID, Month: month, EntryID: entry.ID}
	sum, err := writeStatement(c.MonthsTx, s)
	if err == nil {
		err = c.PutStatement(s)
	}
	entry.Changes = audit.ClosedMonth(string(month), sum)
	return entry, err
}

// Statement returns the statement of a month of a root. The text is read with
// StatementPart.
func (s *Service) Statement(ctx context.Context, rootID string, month usage.Month) (*Statement, error) {
	var st *Statement
	err := s.store.Read(ctx, func(v View) (err error) {
		st, err = v.Statement(rootID, month)
		return err
	})
	if errors.Is(err, org.ErrAbsent) {
		return nil, problem.New(problem.NotFound, "There is no statement of this month: it is not closed yet, or nothing was consumed in it.")
	}
	return st, err
}

// StatementPart returns a part of a statement's text.
func (s *Service) StatementPart(ctx context.Context, st *Statement, part int) (text []byte, err error) {
	err = s.store.Read(ctx, func(v View) (err error) {
		text, err = v.StatementPart(st.RootID, st.Month, part)
		return err
	})
	return text, err
}
