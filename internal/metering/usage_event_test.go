package metering_test

import (
	"testing"
	"time"

	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/usage"
)

// The quantities of events are found outside of transactions: a change goes through
// meanwhile. If it is one of their meters they are found again, and count by the new
// one.
func TestEventsArePlanned(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s := testkit.Start(t, engine)
			ctx := t.Context()
			call := &org.Call{Actor: auth.Operator(), RequestID: "test", IP: "127.0.0.1"}
			s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"acme","name":"Acme"}`)
			meter := usage.Meter{Slug: "tokens", Unit: "tokens", Aggregation: usage.Sum, EventType: "tokens", Value: "/old"}
			put := func() {
				t.Helper()
				if _, _, err := s.Metering.PutMeter(ctx, call, "acme", meter); err != nil {
					t.Fatal(err)
				}
			}
			put()
			var found []string
			events := []metering.UsageEvent{{ID: "1", Source: "test", Type: "tokens", Quantity: func(m *usage.Meter) (usage.Decimal, error) {
				if found = append(found, m.Value); len(found) == 1 {
					meter.Value = "/new"
					put()
				}
				if m.Value == "/old" {
					return usage.One, nil
				}
				return 2 * usage.One, nil
			}}}
			n, err := s.Metering.Ingest(ctx, call, "acme", events)
			if err != nil || n != (metering.Ingestion{Accepted: 1}) {
				t.Fatalf("%+v %v", n, err)
			}
			if len(found) != 2 || found[1] != "/new" {
				t.Errorf("the quantity was looked for at %v", found)
			}
			var consumed usage.Decimal
			if err := testkit.Whole(s.Store).Read(ctx, func(tx testkit.Tx) (err error) {
				consumed, err = tx.Consumed("acme", "acme", usage.MonthOf(time.Now()), "tokens")
				return err
			}); err != nil || consumed != 2*usage.One {
				t.Errorf("%v was counted: %v", consumed, err)
			}
		})
	}
}
