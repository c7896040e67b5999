package api

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
	"github.com/orgd/orgd/internal/web"
)

var entryColumns = []string{"id", "timestamp", "org_id", "path", "action", "actor_type", "actor_id", "actor_name", "target_type", "target_id", "changes", "request_id", "ip", "user_agent", "seq", "leaf_hash"}

func entryRow(e *audit.Entry) []string {
	changes, err := json.Marshal(e.Changes)
	if err != nil {
		panic("api: audit changes that are not JSON: " + err.Error())
	}
	return []string{e.ID, e.Timestamp.UTC().Format(time.RFC3339Nano), e.OrgID, strings.Join(e.Path, "/"), e.Action,
		e.Actor.Type, e.Actor.ID, e.Actor.Name, e.Target.Type, e.Target.ID, string(changes), e.RequestID, e.IP, e.UserAgent,
		strconv.FormatInt(e.Seq, 10), e.LeafHash}
}

func appendEntry(b []byte, e **audit.Entry) []byte {
	out, err := json.Marshal(*e)
	if err != nil {
		panic("api: audit entry that is not JSON: " + err.Error())
	}
	return append(b, out...)
}

func (a *API) getChildrenAudit(r *web.Request) (*web.Response, error) {
	if r.URL.Query().Has("follow") {
		return a.followChildrenAudit(r)
	}
	q := parameters(r, "from", "to", "action", "actor", "org", "scope", "format", "limit", "cursor", "follow")
	aq := q.auditQuery()
	aq.To = q.time("to")
	format := q.format()
	limit := q.limit()
	if after := a.cursorOf(q, 1); after != nil {
		n, err := strconv.ParseInt(after[0], 10, 64)
		if err != nil {
			q.fail(problem.New(problem.InvalidCursor, "The cursor was not made for this query."))
		}
		aq.Before = n
	}
	if q.err != nil {
		return nil, q.err
	}
	aq, err := withinAudit(aq, r)
	if err != nil {
		return nil, err
	}
	fetch := func(ctx context.Context, n int) ([]*audit.Entry, []string, error) {
		aq.Limit = n
		entries, next, err := a.service.AuditEntries(ctx, aq)
		if err != nil || next < 0 {
			return entries, nil, err
		}
		aq.Before = next
		return entries, []string{strconv.FormatInt(next, 10)}, nil
	}
	if format != formatJSON {
		return stream(q, format, entryColumns, fetch, func(e **audit.Entry) []string { return entryRow(*e) }, appendEntry), nil
	}
	entries, next, err := fetch(r.Context(), limit)
	if err != nil {
		return nil, err
	}
	return a.next(q, web.JSON(http.StatusOK, entries), next), nil
}

type meterBody struct {
	Unit        string         `json:"unit"`
	Aggregation string         `json:"aggregation"`
	Own         usage.Decimal  `json:"own"`
	Descendants usage.Decimal  `json:"descendants"`
	Total       usage.Decimal  `json:"total"`
	Limit       *usage.Decimal `json:"limit"`
}

var consumptionColumns = []string{"org_id", "month", "status", "meter", "unit", "aggregation", "own", "descendants", "total", "limit"}

func (a *API) getConsumption(r *web.Request) (*web.Response, error) {
	q := parameters(r, "month", "format")
	month := usage.MonthOf(a.now())
	if v := q.text("month"); v != "" {
		m, err := usage.ParseMonth(v)
		if err != nil {
			q.fail(problem.Param("month", "must be a month such as 2026-11"))
		}
		month = m
	}
	format := q.format()
	if q.err != nil {
		return nil, q.err
	}
	if err := a.caughtUp(r.Context()); err != nil {
		return nil, err
	}
	c, err := a.service.Consumption(r.Context(), r.Actor, r.Org.ID, month)
	if err != nil {
		return nil, err
	}
	status := "open"
	if c.Closed {
		status = "closed"
	}
	if format != formatJSON {
		type row struct {
			OrgID  string      `json:"org_id"`
			Month  usage.Month `json:"month"`
			Status string      `json:"status"`
			Meter  string      `json:"meter"`
			meterBody
		}
		var rows []row
		for _, m := range c.Meters {
			rows = append(rows, row{c.OrgID, c.Month, status, m.Slug, newMeterBody(m)})
		}
		return stream(q, format, consumptionColumns,
			func(context.Context, int) ([]row, []string, error) { return rows, nil, nil },
			func(m *row) []string {
				return []string{m.OrgID, string(m.Month), m.Status, m.Meter, m.Unit, m.Aggregation, m.Own.String(), m.Descendants.String(), m.Total.String(), ""}
			},
			func(b []byte, m *row) []byte {
				out, err := json.Marshal(m)
				if err != nil {
					panic("api: consumption that is not JSON: " + err.Error())
				}
				return append(b, out...)
			}), nil
	}
	meters := make(map[string]meterBody, len(c.Meters))
	for _, m := range c.Meters {
		meters[m.Slug] = newMeterBody(m)
	}
	body, err := json.Marshal(struct {
		OrgID  string               `json:"org_id"`
		Month  usage.Month          `json:"month"`
		Status string               `json:"status"`
		Meters map[string]meterBody `json:"meters"`
	}{c.OrgID, c.Month, status, meters}, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	return web.Raw(http.StatusOK, body), nil
}

func newMeterBody(m org.MeterTotal) meterBody {
	return meterBody{Unit: m.Unit, Aggregation: string(m.Aggregation), Own: m.Own, Descendants: m.Total - m.Own, Total: m.Total}
}
