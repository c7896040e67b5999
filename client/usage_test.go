package client

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// Events are sent with exact quantities, and again when the connection is lost.
func TestSendUsage(t *testing.T) {
	requests := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests++
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if requests == 1 {
			panic(http.ErrAbortHandler)
		}
		want := `[{"id":"1","source":"s","timestamp":"2026-11-14T09:30:00Z","meter":"tokens","quantity":0.100001,"org_id":"eu"},{"id":"2","meter":"requests"}]` + "\n"
		if r.Method != "POST" || r.URL.Path != "/orgs/acme/consumption/events" || r.Header.Get("Content-Type") != "application/json" || string(body) != want {
			t.Errorf("%s %s %s\n%s", r.Method, r.URL, r.Header.Get("Content-Type"), body)
		}
		w.Header().Set("X-Request-Id", "req_1")
		io.WriteString(w, `{"accepted":1,"duplicates":1}`)
	}))
	defer s.Close()
	got, err := New(s.URL, "key").SendUsage(t.Context(), "acme", []UsageEvent{
		{ID: "1", Source: "s", Timestamp: time.Date(2026, 11, 14, 9, 30, 0, 0, time.UTC), Meter: "tokens", Quantity: "0.100001", OrgID: "eu"},
		{ID: "2", Meter: "requests"}})
	if err != nil || got.Accepted != 1 || got.Duplicates != 1 || got.RequestID != "req_1" || requests != 2 {
		t.Errorf("%+v, %v after %d requests", got, err, requests)
	}
}

// Lists without pages keep the representation of each element.
func TestConsumptionHistory(t *testing.T) {
	const month = `{"org_id":"acme","month":"2026-11","status":"open","meters":{"tokens":{"unit":"t","aggregation":"sum","own":0.5,"descendants":9000000000000,"total":9000000000000.5,"limit":null}}}`
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.String() != "/orgs/acme/consumption/history?from=2026-11&to=2026-12" {
			t.Errorf("GET %s", r.URL)
		}
		io.WriteString(w, "["+month+"]")
	}))
	defer s.Close()
	got, err := New(s.URL, "key").ConsumptionHistory(t.Context(), "acme", "2026-11", "2026-12")
	if err != nil || len(got) != 1 || string(got[0].Raw) != month || got[0].Meters["tokens"].Total != json.Number("9000000000000.5") {
		t.Errorf("%+v, %v", got, err)
	}
}
