package api

import (
	"net/http"
	"time"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/usage"
	"github.com/orgd/orgd/internal/web"
)

func (a *API) meterRoutes() []web.Route {
	reads := web.Rule{Target: "org_id", Permissions: []string{key.ConsumptionRead}}
	writes := web.Rule{Target: "org_id", Permissions: []string{key.ConsumptionWrite}}
	return []web.Route{
		{Method: "GET", Pattern: "/orgs/{org_id}/meters", Operation: "listMeters", Action: "LIST_METERS", Rule: reads, Handle: a.listMeters},
		{Method: "GET", Pattern: "/orgs/{org_id}/meters/{meter}", Operation: "getMeter", Action: "GET_METER", Rule: reads, Handle: a.getMeter},
		{Method: "PUT", Pattern: "/orgs/{org_id}/meters/{meter}", Operation: "putMeter", Action: "PUT_METER", Rule: writes, Handle: a.putMeter},
		{Method: "DELETE", Pattern: "/orgs/{org_id}/meters/{meter}", Operation: "deleteMeter", Action: "DELETE_METER", Rule: writes, Handle: a.deleteMeter},
	}
}

// definitionBody is the representation of a meter's definition.
type definitionBody struct {
	Slug        string            `json:"slug"`
	Unit        string            `json:"unit"`
	Aggregation usage.Aggregation `json:"aggregation"`
	Description string            `json:"description"`
	EventType   string            `json:"event_type"`
	Value       string            `json:"value"`
	BuiltIn     bool              `json:"built_in"`
	CreatedAt   *time.Time        `json:"created_at"`
	UpdatedAt   *time.Time        `json:"updated_at"`
}

func newDefinitionBody(m *usage.Meter) definitionBody {
	b := definitionBody{Slug: m.Slug, Unit: m.Unit, Aggregation: m.Aggregation, Description: m.Description, EventType: m.EventType,
		Value: m.Value, BuiltIn: m.BuiltIn()}
	if !b.BuiltIn {
		b.CreatedAt, b.UpdatedAt = &m.CreatedAt, &m.UpdatedAt
	}
	return b
}

func meterAnswer(rootID string, m *usage.Meter) *web.Response {
	return web.JSON(http.StatusOK, newDefinitionBody(m)).With("ETag", metering.MeterETag(rootID, m))
}

func (a *API) listMeters(r *web.Request) (*web.Response, error) {
	meters, err := a.metering.Meters(r.Context(), r.Actor, r.Org.ID)
	if err != nil {
		return nil, err
	}
	list := make([]definitionBody, len(meters))
	for i := range meters {
		list[i] = newDefinitionBody(&meters[i])
	}
	return web.JSON(http.StatusOK, list), nil
}

func (a *API) getMeter(r *web.Request) (*web.Response, error) {
	m, err := a.metering.Meter(r.Context(), r.Actor, r.Org.ID, r.PathValue("meter"))
	if err != nil {
		return nil, err
	}
	return meterAnswer(r.Org.ID, m), nil
}

func (a *API) putMeter(r *web.Request) (*web.Response, error) {
	slug := r.PathValue("meter")
	if err := usage.CheckSlug(slug); err != nil {
		return nil, err
	}
	if err := a.metering.CheckMeter(r.Context(), r.Call(nil), r.Org.ID, slug); err != nil {
		return nil, err
	}
	body := struct {
		Unit        string            `json:"unit"`
		Aggregation usage.Aggregation `json:"aggregation"`
		Description string            `json:"description"`
		EventType   string            `json:"event_type"`
		Value       *string           `json:"value"`
	}{}
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	m := usage.Meter{Slug: slug, Unit: body.Unit, Aggregation: body.Aggregation, Description: body.Description,
		EventType: body.EventType, Value: usage.DefaultValue}
	if m.EventType == "" {
		m.EventType = slug
	}
	if body.Value != nil {
		m.Value = *body.Value
	}
	if err := m.Check(); err != nil {
		return nil, err
	}
	put, receipt, err := a.metering.PutMeter(r.Context(), r.Call(nil), r.Org.ID, m)
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return meterAnswer(r.Org.ID, put).Receipt(receipt), nil
}

func (a *API) deleteMeter(r *web.Request) (*web.Response, error) {
	if err := a.metering.CheckMeter(r.Context(), r.Call(nil), r.Org.ID, r.PathValue("meter")); err != nil {
		return nil, err
	}
	if err := r.NoBody(); err != nil {
		return nil, err
	}
	receipt, err := a.metering.DeleteMeter(r.Context(), r.Call(nil), r.Org.ID, r.PathValue("meter"))
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return web.JSON(http.StatusOK, struct {
		Message string `json:"message"`
	}{"Meter deleted"}).Receipt(receipt), nil
}
