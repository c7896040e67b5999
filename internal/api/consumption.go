package api

import (
	"context"
	"net/http"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
	"github.com/orgd/orgd/internal/web"
)

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
				return []string{m.OrgID, string(m.Month), m.Status, m.Meter, m.Unit, m.Aggregation, m.Own.String(), m.Descendants.String(), m.Total.String(), decimalText(m.Limit)}
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
	return meterBody{Unit: m.Unit, Aggregation: string(m.Aggregation), Own: m.Own, Descendants: m.Total - m.Own, Total: m.Total, Limit: m.Limit}
}

func decimalText(d *usage.Decimal) string {
	if d == nil {
		return ""
	}
	return d.String()
}
