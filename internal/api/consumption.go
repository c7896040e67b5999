package api

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
	"github.com/orgd/orgd/internal/web"
)

func (a *API) consumptionRoutes() []web.Route {
	reads := web.Rule{Target: "org_id", Permissions: []string{key.ConsumptionRead}}
	writes := web.Rule{Target: "org_id", Permissions: []string{key.ConsumptionWrite}}
	const path = "/orgs/{org_id}/consumption"
	return []web.Route{
		{Method: "GET", Pattern: path, Operation: "getConsumption", Action: "GET_CONSUMPTION", Rule: reads, Query: takes("month", "format"), Handle: a.getConsumption},
		{Method: "GET", Pattern: path + "/history", Operation: "getConsumptionHistory", Action: "GET_CONSUMPTION_HISTORY", Rule: reads, Query: takes("from", "to", "format"), Handle: a.getHistory},
		{Method: "GET", Pattern: path + "/daily", Operation: "getDailyConsumption", Action: "GET_DAILY_CONSUMPTION", Rule: reads, Query: takes("month", "format"), Handle: a.getDaily},
		{Method: "GET", Pattern: path + "/children", Operation: "listChildConsumption", Action: "LIST_CHILD_CONSUMPTION", Rule: needsAnd(mayListChildren, key.ConsumptionRead), Query: takes("month", "meter", "sort", "format", "limit", "cursor"), Handle: a.listChildConsumption},
		{Method: "GET", Pattern: path + "/adjustments", Operation: "listAdjustments", Action: "LIST_ADJUSTMENTS", Rule: reads, Query: takes("month", "format", "limit", "cursor"), Handle: a.listAdjustments},
		{Method: "POST", Pattern: path + "/adjustments", Operation: "createAdjustment", Action: "CREATE_ADJUSTMENT", Rule: writes, Handle: a.createAdjustment},
	}
}

func (q *query) month(name string, otherwise usage.Month) usage.Month {
	v := q.text(name)
	if v == "" {
		return otherwise
	}
	m, err := usage.ParseMonth(v)
	if err != nil {
		q.fail(problem.Param(name, "must be a month such as 2026-11"))
		return otherwise
	}
	return m
}

// marshal is for answers that are JSON by construction.
func marshal(v any) []byte {
	b, err := json.Marshal(v, json.Deterministic(true), json.FormatNilSliceAsNull(false))
	if err != nil {
		panic("api: answer that is not JSON: " + err.Error())
	}
	return b
}

func appendRow[T any](b []byte, row *T) []byte { return append(b, marshal(row)...) }

// all returns what stream takes for rows that are there already.
func all[T any](rows []T) func(context.Context, int) ([]T, []string, error) {
	return func(_ context.Context, n int) ([]T, []string, error) {
		page := rows[:min(n, len(rows))]
		if rows = rows[len(page):]; len(rows) == 0 {
			return page, nil, nil
		}
		return page, []string{}, nil
	}
}

type meterBody struct {
	Unit        string            `json:"unit"`
	Aggregation usage.Aggregation `json:"aggregation"`
	Own         usage.Decimal     `json:"own"`
	Descendants usage.Decimal     `json:"descendants"`
	Total       usage.Decimal     `json:"total"`
	Limit       *usage.Decimal    `json:"limit"`
}

func newMeterBody(m *metering.MeterTotal) meterBody {
	return meterBody{Unit: m.Unit, Aggregation: m.Aggregation, Own: m.Own, Descendants: m.Total - m.Own, Total: m.Total, Limit: m.Limit}
}

// consumptionBody is the representation of one month.
type consumptionBody struct {
	OrgID  string               `json:"org_id"`
	Month  usage.Month          `json:"month"`
	Status string               `json:"status"`
	Meters map[string]meterBody `json:"meters"`
}

func monthStatus(closed bool) string {
	if closed {
		return "closed"
	}
	return "open"
}

func newConsumptionBody(c *metering.Consumption) consumptionBody {
	b := consumptionBody{OrgID: c.OrgID, Month: c.Month, Status: monthStatus(c.Closed), Meters: make(map[string]meterBody, len(c.Meters))}
	for i := range c.Meters {
		b.Meters[c.Meters[i].Slug] = newMeterBody(&c.Meters[i])
	}
	return b
}

// consumptionRow is one meter in one month.
type consumptionRow struct {
	OrgID  string      `json:"org_id"`
	Month  usage.Month `json:"month"`
	Status string      `json:"status"`
	Meter  string      `json:"meter"`
	meterBody
}

var consumptionColumns = []string{"org_id", "month", "status", "meter", "unit", "aggregation", "own", "descendants", "total", "limit"}

func (m *consumptionRow) cells() []string {
	limit := ""
	if m.Limit != nil {
		limit = m.Limit.String()
	}
	return []string{m.OrgID, string(m.Month), m.Status, m.Meter, m.Unit, string(m.Aggregation), m.Own.String(), m.Descendants.String(), m.Total.String(), limit}
}

func streamConsumption(q *query, format string, list []*metering.Consumption) *web.Response {
	var rows []consumptionRow
	for _, c := range list {
		for i := range c.Meters {
			m := &c.Meters[i]
			rows = append(rows, consumptionRow{c.OrgID, c.Month, monthStatus(c.Closed), m.Slug, newMeterBody(m)})
		}
	}
	return stream(q, format, consumptionColumns, all(rows), (*consumptionRow).cells, appendRow)
}

func (a *API) getConsumption(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	month := q.month("month", usage.MonthOf(a.now()))
	format := q.format()
	if q.err != nil {
		return nil, q.err
	}
	if err := a.caughtUp(r.Context()); err != nil {
		return nil, err
	}
	c, err := a.metering.Consumption(r.Context(), r.Actor, r.Org.ID, month)
	if err != nil {
		return nil, err
	}
	if format != formatJSON {
		return streamConsumption(q, format, []*metering.Consumption{c}), nil
	}
	return web.Raw(http.StatusOK, marshal(newConsumptionBody(c))), nil
}

// maxMonths is the number of months that a history covers at most.
const maxMonths = 120

func (a *API) getHistory(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	last := q.month("to", usage.MonthOf(a.now()))
	first := q.month("from", usage.MonthOf(last.Start().AddDate(0, -11, 0)))
	format := q.format()
	switch {
	case q.err != nil:
		return nil, q.err
	case first > last:
		return nil, problem.Param("from", "must not be after the parameter to")
	case first.Start().AddDate(0, maxMonths, 0).Before(last.End()):
		return nil, problem.Param("from", "must be at most %d months before the parameter to", maxMonths-1)
	}
	if err := a.caughtUp(r.Context()); err != nil {
		return nil, err
	}
	list, err := a.metering.History(r.Context(), r.Actor, r.Org.ID, first, last)
	if err != nil {
		return nil, err
	}
	if format != formatJSON {
		return streamConsumption(q, format, list), nil
	}
	bodies := make([]consumptionBody, len(list))
	for i, c := range list {
		bodies[i] = newConsumptionBody(c)
	}
	return web.Raw(http.StatusOK, marshal(bodies)), nil
}

// dayMeterBody is the consumption of a meter on one day.
type dayMeterBody struct {
	Unit        string            `json:"unit"`
	Aggregation usage.Aggregation `json:"aggregation"`
	Own         usage.Decimal     `json:"own"`
	Descendants usage.Decimal     `json:"descendants"`
	Total       usage.Decimal     `json:"total"`
}

type dayRow struct {
	OrgID string    `json:"org_id"`
	Day   usage.Day `json:"day"`
	Meter string    `json:"meter"`
	dayMeterBody
}

var dayColumns = []string{"org_id", "day", "meter", "unit", "aggregation", "own", "descendants", "total"}

func (d *dayRow) cells() []string {
	return []string{d.OrgID, string(d.Day), d.Meter, d.Unit, string(d.Aggregation), d.Own.String(), d.Descendants.String(), d.Total.String()}
}

func (a *API) getDaily(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	month := q.month("month", usage.MonthOf(a.now()))
	format := q.format()
	if q.err != nil {
		return nil, q.err
	}
	if err := a.caughtUp(r.Context()); err != nil {
		return nil, err
	}
	days, err := a.metering.Daily(r.Context(), r.Actor, r.Org.ID, month)
	if err != nil {
		return nil, err
	}
	type dayBody struct {
		OrgID  string                  `json:"org_id"`
		Day    usage.Day               `json:"day"`
		Meters map[string]dayMeterBody `json:"meters"`
	}
	var rows []dayRow
	bodies := make([]dayBody, len(days))
	for i, d := range days {
		bodies[i] = dayBody{r.Org.ID, d.Day, make(map[string]dayMeterBody, len(d.Meters))}
		for _, m := range d.Meters {
			b := dayMeterBody{m.Unit, m.Aggregation, m.Own, m.Total - m.Own, m.Total}
			bodies[i].Meters[m.Slug] = b
			rows = append(rows, dayRow{r.Org.ID, d.Day, m.Slug, b})
		}
	}
	if format != formatJSON {
		return stream(q, format, dayColumns, all(rows), (*dayRow).cells, appendRow), nil
	}
	return web.Raw(http.StatusOK, marshal(bodies)), nil
}

// childRow is what one child consumed.
type childRow struct {
	OrgID       string            `json:"org_id"`
	Name        *string           `json:"name"`
	Month       usage.Month       `json:"month"`
	Meter       string            `json:"meter"`
	Unit        string            `json:"unit"`
	Aggregation usage.Aggregation `json:"aggregation"`
	Own         usage.Decimal     `json:"own"`
	Descendants usage.Decimal     `json:"descendants"`
	Total       usage.Decimal     `json:"total"`
}

var childColumns = []string{"org_id", "name", "month", "meter", "unit", "aggregation", "own", "descendants", "total"}

func (c *childRow) cells() []string {
	name := ""
	if c.Name != nil {
		name = *c.Name
	}
	return []string{c.OrgID, name, string(c.Month), c.Meter, c.Unit, string(c.Aggregation), c.Own.String(), c.Descendants.String(), c.Total.String()}
}

// mayListChildren checks that the key reaches the children.
func mayListChildren(r *web.Request) error {
	if r.Actor.SeesBelow(r.Org.Path) {
		return nil
	}
	return problem.New(problem.PermissionDenied, "This key reaches its own organization only.").WithFix("Use a key with the reach subtree.")
}

func (a *API) listChildConsumption(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	cq := metering.ChildrenQuery{ChildQuery: metering.ChildQuery{RootID: r.Org.RootID, ParentID: r.Org.ID,
		Month: q.month("month", usage.MonthOf(a.now())), Meter: q.text("meter")}}
	if cq.Meter == "" {
		cq.Meter = usage.APICalls
	}
	sort := q.oneOf("sort", "-total", "org_id", "-org_id", "own", "-own", "descendants", "-descendants", "total", "-total")
	cq.Descending = sort[0] == '-'
	cq.Sort = metering.ChildSort(strings.TrimPrefix(sort, "-"))
	format := q.format()
	limit := q.limit()
	if after := a.cursorOf(q, 2); after != nil {
		n, err := strconv.ParseInt(after[0], 10, 64)
		if err != nil {
			q.fail(problem.New(problem.InvalidCursor, "The cursor was not made for this query."))
		}
		cq.Position = &metering.ChildPosition{Value: usage.Decimal(n), OrgID: after[1]}
	}
	if q.err != nil {
		return nil, q.err
	}
	m, err := a.metering.MeterOf(r.Context(), r.Org.RootID, cq.Meter)
	if err != nil {
		return nil, err
	}
	if err := a.caughtUp(r.Context()); err != nil {
		return nil, err
	}
	row := func(list []metering.ChildTotal) []childRow {
		rows := make([]childRow, len(list))
		for i, c := range list {
			rows[i] = childRow{metering.PlainID(c.OrgID), nullable(c.Name), cq.Month, m.Slug, m.Unit, m.Aggregation, c.Own, c.Total - c.Own, c.Total}
		}
		return rows
	}
	fetch := func(ctx context.Context, n int) ([]childRow, []string, error) {
		cq.Limit, cq.MaxBytes = n, r.PageBytes()
		list, more, err := a.metering.Children(ctx, cq)
		if err != nil || !more {
			return row(list), nil, err
		}
		last := cq.PositionOf(&list[len(list)-1])
		cq.Position = &last
		return row(list), []string{strconv.FormatInt(int64(last.Value), 10), last.OrgID}, nil
	}
	if format != formatJSON && !q.paged() && cq.Sort != metering.ByID {
		// Each page would take a look at all children.
		children, err := a.metering.AllChildren(r.Watched(), cq)
		if err != nil {
			return nil, err
		}
		return stream(q, format, childColumns, func(_ context.Context, n int) ([]childRow, []string, error) {
			page := children[:min(n, len(children))]
			if children = children[len(page):]; len(children) == 0 {
				return row(page), nil, nil
			}
			return row(page), []string{}, nil
		}, (*childRow).cells, appendRow), nil
	}
	if format != formatJSON {
		return table(a, q, format, childColumns, fetch, (*childRow).cells, appendRow)
	}
	rows, next, err := fetch(r.Watched(), limit)
	if err != nil {
		return nil, err
	}
	return a.next(q, web.Raw(http.StatusOK, marshal(rows)), next), nil
}

// adjustmentBody is the representation of an adjustment.
type adjustmentBody struct {
	ID        string        `json:"id"`
	OrgID     string        `json:"org_id"`
	Month     usage.Month   `json:"month"`
	ForMonth  usage.Month   `json:"for_month"`
	Meter     string        `json:"meter"`
	Quantity  usage.Decimal `json:"quantity"`
	Reason    string        `json:"reason"`
	Origin    usage.Origin  `json:"origin"`
	CreatedBy *string       `json:"created_by"`
	CreatedAt time.Time     `json:"created_at"`
}

var adjustmentColumns = []string{"id", "org_id", "month", "for_month", "meter", "quantity", "reason", "origin", "created_by", "created_at"}

func (b *adjustmentBody) cells() []string {
	by := ""
	if b.CreatedBy != nil {
		by = *b.CreatedBy
	}
	return []string{b.ID, b.OrgID, string(b.Month), string(b.ForMonth), b.Meter, b.Quantity.String(), b.Reason, string(b.Origin), by, b.CreatedAt.Format(time.RFC3339Nano)}
}

func newAdjustmentBody(a *usage.Adjustment) adjustmentBody {
	return adjustmentBody{a.ID, a.OrgID, a.Month, a.For, a.Meter, a.Quantity, a.Reason, a.Origin, nullable(a.CreatedBy), a.CreatedAt}
}

func (a *API) listAdjustments(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	aq := metering.AdjustmentQuery{RootID: r.Org.RootID, OrgID: r.Org.ID, Month: q.month("month", "")}
	format := q.format()
	limit := q.limit()
	if after := a.cursorOf(q, 2); after != nil {
		aq.Before = metering.AdjustmentPosition{Month: usage.Month(after[0]), ID: after[1]}
	}
	if q.err != nil {
		return nil, q.err
	}
	if err := a.caughtUp(r.Context()); err != nil {
		return nil, err
	}
	fetch := func(ctx context.Context, n int) ([]adjustmentBody, []string, error) {
		aq.Limit, aq.MaxBytes = n, r.PageBytes()
		list, more, err := a.metering.Adjustments(ctx, aq)
		if err != nil {
			return nil, nil, err
		}
		bodies := make([]adjustmentBody, len(list))
		for i := range list {
			bodies[i] = newAdjustmentBody(&list[i])
		}
		if !more {
			return bodies, nil, nil
		}
		last := &list[len(list)-1]
		aq.Before = metering.AdjustmentPosition{Month: last.Month, ID: last.ID}
		return bodies, []string{string(last.Month), last.ID}, nil
	}
	if format != formatJSON {
		return table(a, q, format, adjustmentColumns, fetch, (*adjustmentBody).cells, appendRow)
	}
	bodies, next, err := fetch(r.Context(), limit)
	if err != nil {
		return nil, err
	}
	return a.next(q, web.Raw(http.StatusOK, marshal(bodies)), next), nil
}

func (a *API) createAdjustment(r *web.Request) (*web.Response, error) {
	var body struct {
		Month    *string        `json:"month"`
		Meter    string         `json:"meter"`
		Quantity *usage.Decimal `json:"quantity"`
		Reason   string         `json:"reason"`
	}
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	in := metering.NewAdjustment{Month: usage.MonthOf(r.At), Meter: body.Meter, Reason: body.Reason}
	if body.Month != nil {
		m, err := usage.ParseMonth(*body.Month)
		if err != nil {
			return nil, problem.Body("/month", "must be a month such as 2026-11")
		}
		in.Month = m
	}
	if body.Quantity == nil {
		return nil, problem.Body("/quantity", "is missing")
	}
	in.Quantity = *body.Quantity
	if err := in.Check(); err != nil {
		return nil, err
	}
	render := func(result any) *web.Response {
		return web.JSON(http.StatusOK, newAdjustmentBody(result.(*usage.Adjustment)))
	}
	made, receipt, err := a.metering.Adjust(r.Context(), r.Call(render), r.Org.ID, in)
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return render(made).Receipt(receipt), nil
}
