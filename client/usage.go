package client

import (
	"context"
	"encoding/json"
	"iter"
	"time"
)

// Consumption is what an organization and its descendants consumed in a
// month.
type Consumption struct {
	OrgID  string           `json:"org_id"`
	Month  string           `json:"month"`  // 2026-11
	Status string           `json:"status"` // open or closed
	Meters map[string]Meter `json:"meters"`
	Meta   `json:"-"`
}

// Meter is a month's or a day's total of one meter. Quantities are exact
// decimals.
type Meter struct {
	Unit        string       `json:"unit"`
	Aggregation string       `json:"aggregation"`
	Own         json.Number  `json:"own"`
	Descendants json.Number  `json:"descendants"`
	Total       json.Number  `json:"total"` // own + descendants
	Limit       *json.Number `json:"limit"` // nil for a day
}

// Consumption returns the consumption of a month such as 2026-11; of this
// month if it is empty.
func (cl *Client) Consumption(ctx context.Context, orgID, month string, opts ...CallOption) (*Consumption, error) {
	return get[Consumption](ctx, cl, newCall("GET", []string{"orgs", orgID, "consumption"}, opts).set("month", month))
}

// elements is do for a list that has no pages.
func elements[T any](ctx context.Context, cl *Client, c *call) ([]T, error) {
	_, body, err := cl.do(ctx, c)
	if err != nil {
		return nil, err
	}
	var raws []json.RawMessage
	if err := decode(body, &raws); err != nil {
		return nil, err
	}
	list := make([]T, len(raws))
	for i, raw := range raws {
		if err := decode(raw, &list[i]); err != nil {
			return nil, err
		}
		if m, ok := any(&list[i]).(interface{ meta() *Meta }); ok {
			m.meta().Raw = raw
		}
	}
	return list, nil
}

// ConsumptionHistory returns the consumption of the months from first to last,
// both included; of the last twelve where they are empty.
func (cl *Client) ConsumptionHistory(ctx context.Context, orgID, first, last string, opts ...CallOption) ([]Consumption, error) {
	return elements[Consumption](ctx, cl, newCall("GET", []string{"orgs", orgID, "consumption", "history"}, opts).set("from", first).set("to", last))
}

// DayConsumption is what an organization and its descendants consumed on a day.
type DayConsumption struct {
	OrgID  string           `json:"org_id"`
	Day    string           `json:"day"` // 2026-11-25
	Meters map[string]Meter `json:"meters"`
	Meta   `json:"-"`
}

// DailyConsumption returns the consumption of each day of a month that has
// begun; of this month if it is empty.
func (cl *Client) DailyConsumption(ctx context.Context, orgID, month string, opts ...CallOption) ([]DayConsumption, error) {
	return elements[DayConsumption](ctx, cl, newCall("GET", []string{"orgs", orgID, "consumption", "daily"}, opts).set("month", month))
}

// ChildConsumption is what one child of an organization consumed of a meter in
// a month, while it was a child.
type ChildConsumption struct {
	OrgID       string      `json:"org_id"`
	Name        string      `json:"name"` // empty if it is no child any more
	Month       string      `json:"month"`
	Meter       string      `json:"meter"`
	Unit        string      `json:"unit"`
	Aggregation string      `json:"aggregation"`
	Own         json.Number `json:"own"`
	Descendants json.Number `json:"descendants"`
	Total       json.Number `json:"total"`
	Meta        `json:"-"`
}

// ChildConsumption lists what each child of an organization consumed. sort is
// org_id, own, descendants or total, with a leading - for the greatest first;
// empty for -total.
func (cl *Client) ChildConsumption(ctx context.Context, orgID, month, meter, sort string, opts ...CallOption) iter.Seq2[ChildConsumption, error] {
	return list[ChildConsumption](ctx, cl, newCall("GET", []string{"orgs", orgID, "consumption", "children"}, opts).
		set("month", month).set("meter", meter).set("sort", sort))
}

// UsageEvent is something to count. ID and Source together name one event of a
// root: however often it is sent, it is counted once.
type UsageEvent struct {
	ID        string      `json:"id"`
	Source    string      `json:"source,omitempty"`
	Timestamp time.Time   `json:"timestamp,omitzero"` // zero for now
	Meter     string      `json:"meter"`
	Quantity  json.Number `json:"quantity,omitempty"` // an exact decimal; empty on a meter that counts events
	OrgID     string      `json:"org_id,omitempty"`   // empty for the organization that the events are sent to
}

// Ingestion says what became of events.
type Ingestion struct {
	Accepted   int `json:"accepted"`
	Duplicates int `json:"duplicates"` // had been counted before
	Meta       `json:"-"`
}

// SendUsage counts events, at most 10,000, all or none of them. Bad events are
// an *Error with the code event_invalid, whose Errors name them by their index.
func (cl *Client) SendUsage(ctx context.Context, orgID string, events []UsageEvent, opts ...CallOption) (*Ingestion, error) {
	return get[Ingestion](ctx, cl, newCall("POST", []string{"orgs", orgID, "consumption", "events"}, opts).json(events))
}

// SendUsageLines is SendUsage for events that are NDJSON already.
func (cl *Client) SendUsageLines(ctx context.Context, orgID string, ndjson []byte, opts ...CallOption) (*Ingestion, error) {
	c := newCall("POST", []string{"orgs", orgID, "consumption", "events"}, opts)
	c.body, c.contentType = ndjson, NDJSON
	return get[Ingestion](ctx, cl, c)
}

// Adjustment is a correction, or what arrived after its month had closed.
type Adjustment struct {
	ID        string      `json:"id"`
	OrgID     string      `json:"org_id"`
	Month     string      `json:"month"`     // in which it is counted
	ForMonth  string      `json:"for_month"` // that it is for
	Meter     string      `json:"meter"`
	Quantity  json.Number `json:"quantity"`
	Reason    string      `json:"reason"`
	Origin    string      `json:"origin"` // actor, events or requests
	CreatedBy string      `json:"created_by"`
	CreatedAt time.Time   `json:"created_at"`
	Meta      `json:"-"`
}

// Adjustments lists the adjustments that are counted in a month, of all months
// if it is empty, newest month first.
func (cl *Client) Adjustments(ctx context.Context, orgID, month string, opts ...CallOption) iter.Seq2[Adjustment, error] {
	return list[Adjustment](ctx, cl, newCall("GET", []string{"orgs", orgID, "consumption", "adjustments"}, opts).set("month", month))
}

// AdjustmentCreate corrects what an organization consumed.
type AdjustmentCreate struct {
	Month    string      `json:"month,omitempty"` // empty for this month
	Meter    string      `json:"meter"`
	Quantity json.Number `json:"quantity"` // what to add; negative to take away
	Reason   string      `json:"reason"`
}

// Adjust corrects what an organization consumed, in the month itself or, if
// that has closed, in the first later one that is open.
func (cl *Client) Adjust(ctx context.Context, orgID string, in AdjustmentCreate, opts ...CallOption) (*Adjustment, error) {
	return get[Adjustment](ctx, cl, newCall("POST", []string{"orgs", orgID, "consumption", "adjustments"}, opts).json(in))
}

// MeterDefinition says what a meter counts.
type MeterDefinition struct {
	Slug        string     `json:"slug"`
	Unit        string     `json:"unit"`
	Aggregation string     `json:"aggregation"` // sum, count, max or latest
	Description string     `json:"description"`
	EventType   string     `json:"event_type"`
	Value       string     `json:"value"`
	BuiltIn     bool       `json:"built_in"`
	CreatedAt   *time.Time `json:"created_at"`
	UpdatedAt   *time.Time `json:"updated_at"`
	Meta        `json:"-"`
}

// Meters lists the meters of a root, by name.
func (cl *Client) Meters(ctx context.Context, rootID string, opts ...CallOption) ([]MeterDefinition, error) {
	return elements[MeterDefinition](ctx, cl, newCall("GET", []string{"orgs", rootID, "meters"}, opts))
}

// MeterPut defines a meter. EventType and Value may be empty: see the
// description of the API.
type MeterPut struct {
	Unit        string `json:"unit"`
	Aggregation string `json:"aggregation"`
	Description string `json:"description,omitempty"`
	EventType   string `json:"event_type,omitempty"`
	Value       string `json:"value,omitempty"`
}

// PutMeter defines a meter of a root, or changes it.
func (cl *Client) PutMeter(ctx context.Context, rootID, slug string, in MeterPut, opts ...CallOption) (*MeterDefinition, error) {
	return get[MeterDefinition](ctx, cl, newCall("PUT", []string{"orgs", rootID, "meters", slug}, opts).json(in))
}

// DeleteMeter removes a meter on which nothing has been counted.
func (cl *Client) DeleteMeter(ctx context.Context, rootID, slug string, opts ...CallOption) error {
	_, _, err := cl.do(ctx, newCall("DELETE", []string{"orgs", rootID, "meters", slug}, opts))
	return err
}

// GiveUpSpool lets months be closed without the requests that a spool may hold of
// them: the spool of a server that is lost. Only the operator may.
func (cl *Client) GiveUpSpool(ctx context.Context, spoolID, reason string, opts ...CallOption) error {
	_, _, err := cl.do(ctx, newCall("DELETE", []string{"spools", spoolID}, opts).set("reason", reason))
	return err
}
