package api_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

func sendUsage(s *testkit.Server, id, orgID, meter, at string, quantity any) *testkit.Answer {
	return s.Must(200, "POST", "/orgs/acme/consumption/events", s.OperatorKey,
		fmt.Sprintf(`{"id":%q,"meter":%q,"quantity":%v,"org_id":%q,"timestamp":%q}`, id, meter, quantity, orgID, at))
}

// rows returns what members the rows of a JSON list have, joined by spaces.
func rows(a *testkit.Answer, members ...string) string {
	var out []string
	list, _ := a.JSON().([]any)
	for _, row := range list {
		m, _ := row.(map[string]any)
		var cells []string
		for _, name := range members {
			cells = append(cells, fmt.Sprint(m[name]))
		}
		out = append(out, strings.Join(cells, " "))
	}
	return strings.Join(out, "; ")
}

// A month closes when its grace is over. What comes later is an adjustment in
// the open month, and the closed one does not change.
func TestMonthsClose(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s, clock := metered(t, engine, "2026-10-30T12:00:00Z")
			op := s.OperatorKey
			s.Must(200, "PUT", "/orgs/acme/meters/peak", op, `{"unit":"users","aggregation":"max"}`)
			sendUsage(s, "1", "shop", "api_calls", "2026-10-30T10:00:00Z", 10)
			sendUsage(s, "p1", "shop", "peak", "2026-10-30T10:00:00Z", 5)

			// In the grace October takes late events.
			clock.set(day("2026-11-03T23:59:00Z"))
			sendUsage(s, "2", "lab", "api_calls", "2026-10-31T23:59:59Z", 2.5)
			wantQuantities(t, s, "2026-10", "api_calls", map[string]string{"acme": "0 12.5 12.5"})
			status := func(month string) string {
				return s.Must(200, "GET", "/orgs/shop/consumption?month="+month, op, "").String("status")
			}
			if got := status("2026-10"); got != "open" {
				t.Errorf("October is %s in its grace", got)
			}

			clock.set(day("2026-11-04T00:00:00Z"))
			for deadline := time.Now().Add(10 * time.Second); status("2026-10") != "closed"; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("October does not close")
				}
			}
			clock.set(day("2026-11-04T09:00:00Z"))
			before := s.Must(200, "GET", "/orgs/acme/consumption?month=2026-10", op, "").Body
			counted(t, sendUsage(s, "2", "lab", "api_calls", "2026-10-31T23:59:59Z", 2.5), 0, 1)
			counted(t, sendUsage(s, "3", "lab", "api_calls", "2026-10-31T23:59:59Z", 4), 1, 0)
			counted(t, sendUsage(s, "4", "lab", "api_calls", "2026-10-01T00:00:00Z", 0.5), 1, 0)
			counted(t, sendUsage(s, "p2", "shop", "peak", "2026-10-31T10:00:00Z", 4), 1, 0)
			counted(t, sendUsage(s, "p3", "shop", "peak", "2026-10-31T10:00:00Z", 7), 1, 0)
			counted(t, sendUsage(s, "p4", "shop", "peak", "2026-11-02T10:00:00Z", 1), 1, 0)
			if after := s.Must(200, "GET", "/orgs/acme/consumption?month=2026-10", op, "").Body; string(after) != string(before) {
				t.Errorf("October has changed from %s to %s", before, after)
			}
			wantQuantities(t, s, "2026-11", "api_calls", map[string]string{"lab": "4.5 0 4.5", "acme": "0 4.5 4.5"})
			wantQuantities(t, s, "2026-11", "peak", map[string]string{"shop": "3 0 3", "acme": "0 3 3"})
			a := s.Must(200, "GET", "/orgs/lab/consumption/adjustments", op, "")
			if got := rows(a, "month", "for_month", "meter", "quantity", "origin", "created_by"); got != "2026-11 2026-10 api_calls 4.5 events <nil>" {
				t.Errorf("adjustments of lab: %s", got)
			}
			a = s.Must(200, "GET", "/orgs/shop/consumption/adjustments?month=2026-11", op, "")
			if got := rows(a, "for_month", "meter", "quantity"); got != "2026-10 peak 2" {
				t.Errorf("adjustments of shop: %s", got)
			}
			// Adjustments belong to no day.
			a = s.Must(200, "GET", "/orgs/acme/consumption/daily?month=2026-11&format=ndjson", op, "")
			if n := strings.Count(string(a.Body), `"total":0}`); n != strings.Count(string(a.Body), "\n")-1 {
				t.Errorf("days: %s", a.Body)
			}
			// The closing is in the audit trail, of every root.
			for _, root := range []string{"acme", "other"} {
				a = s.Must(200, "GET", "/orgs/"+root+"/children_audit?action=consumption.closed", op, "")
				if !strings.Contains(string(a.Body), `"2026-10"`) || strings.Contains(string(a.Body), `"2026-09"`) {
					t.Errorf("closings of %s: %s", root, a.Body)
				}
			}
			// 35 days after the end of October its events are too old, and their
			// identities are not kept.
			clock.set(day("2026-12-06T00:00:01Z"))
			s.Must(400, "POST", "/orgs/acme/consumption/events", op, `{"id":"3","meter":"api_calls","quantity":4,"org_id":"lab","timestamp":"2026-10-31T23:59:59Z"}`)
		})
	}
}

// An adjustment corrects a month, and names the one that it is for.
func TestAdjustments(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s, clock := metered(t, engine, "2026-11-02T12:00:00Z")
			op := s.OperatorKey
			at := "/orgs/shop/consumption/adjustments"
			sendUsage(s, "1", "shop", "storage_used", "2026-11-01T10:00:00Z", 10)
			a := s.Must(200, "POST", at, op, `{"meter":"storage_used","quantity":"-2.5","reason":" Test data "}`, "Idempotency-Key", "a")
			again := s.Must(200, "POST", at, op, `{"meter":"storage_used","quantity":"-2.5","reason":" Test data "}`, "Idempotency-Key", "a")
			if string(again.Body) != string(a.Body) || a.String("reason") != "Test data" || a.String("month") != "2026-11" || a.Header.Get("Orgd-Audit-Receipt") == "" {
				t.Errorf("adjustment %s, then %s", a.Body, again.Body)
			}
			wantQuantities(t, s, "2026-11", "storage_used", map[string]string{"shop": "7.5 0 7.5", "acme": "0 7.5 7.5"})
			// The largest quantity so far was 10, adjusted or not.
			sendUsage(s, "2", "shop", "storage_used", "2026-11-01T11:00:00Z", 9)
			wantQuantities(t, s, "2026-11", "storage_used", map[string]string{"shop": "7.5 0 7.5"})

			// October is open in its grace, September is closed.
			s.Must(200, "POST", at, op, `{"month":"2026-10","meter":"api_calls","quantity":3,"reason":"October"}`)
			s.Must(200, "POST", at, op, `{"month":"2026-09","meter":"api_calls","quantity":4,"reason":"September"}`)
			wantQuantities(t, s, "2026-10", "api_calls", map[string]string{"shop": "7 0 7", "eu": "0 7 7"})
			wantQuantities(t, s, "2026-09", "api_calls", map[string]string{"shop": "0 0 0"})
			a = s.Must(200, "GET", at+"?limit=2", op, "")
			if got := rows(a, "month", "for_month", "reason"); got != "2026-11 2026-11 Test data; 2026-10 2026-09 September" {
				t.Errorf("first page: %s", got)
			}
			a = s.Must(200, "GET", testkit.NextPage(a), op, "")
			if got := rows(a, "month", "for_month", "reason", "created_by"); got != "2026-10 2026-10 October operator" || testkit.NextPage(a) != "" {
				t.Errorf("second page: %s", got)
			}
			if a = s.Must(200, "GET", at+"?format=csv", op, ""); !strings.Contains(string(a.Body), ",shop,2026-11,2026-11,storage_used,-2.5,Test data,actor,operator,") {
				t.Errorf("CSV: %s", a.Body)
			}
			for _, bad := range []string{`{"meter":"none","quantity":1,"reason":"x"}`, `{"meter":"api_calls","quantity":0,"reason":"x"}`,
				`{"meter":"api_calls","quantity":1}`, `{"meter":"api_calls","reason":"x"}`, `{"quantity":1,"reason":"x"}`,
				`{"meter":"api_calls","quantity":1,"reason":"x","month":"2026-12"}`, `{"meter":"api_calls","quantity":1,"reason":"x","month":"2026-13"}`,
				`{"meter":"api_calls","quantity":9e12,"reason":"a\nb"}`} {
				s.Must(400, "POST", at, op, bad)
			}
			s.Must(200, "POST", at, op, `{"meter":"api_calls","quantity":9e12,"reason":"as much as there can be"}`)
			if a = s.Must(400, "POST", at, op, `{"meter":"api_calls","quantity":1,"reason":"more"}`); a.String("code") != "invalid_body" {
				t.Errorf("out of range: %s", a.Body)
			}
			clock.set(day("2026-11-20T12:00:00Z"))
		})
	}
}

// Totals are those of the ancestors at the time, through moves, deletes and
// restores, in every way of reading them.
func TestReadingConsumption(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s, _ := metered(t, engine, "2026-11-03T12:00:00Z")
			op := s.OperatorKey
			sendUsage(s, "1", "shop", "api_calls", "2026-11-01T10:00:00Z", 10)
			sendUsage(s, "2", "eu", "api_calls", "2026-11-02T10:00:00Z", 1)
			sendUsage(s, "3", "us", "api_calls", "2026-10-31T10:00:00Z", 5)
			s.Must(200, "POST", "/orgs/shop/move", op, `{"parent_id":"us"}`)
			sendUsage(s, "4", "shop", "api_calls", "2026-11-01T12:00:00Z", 100)
			s.Must(200, "DELETE", "/orgs/lab", op, "")
			s.Must(400, "POST", "/orgs/acme/consumption/events", op, `{"id":"5","meter":"api_calls","quantity":1,"org_id":"lab"}`)
			s.Must(200, "POST", "/orgs/lab/restore", op, "")
			sendUsage(s, "5", "lab", "api_calls", "2026-11-03T12:00:00Z", 0.25)
			wantQuantities(t, s, "2026-11", "api_calls", map[string]string{"shop": "110 0 110", "eu": "1 10.25 11.25", "us": "0 100 100", "acme": "0 111.25 111.25"})

			children := func(query string) string {
				t.Helper()
				return rows(s.Must(200, "GET", "/orgs/eu/consumption/children"+query, op, ""), "org_id", "name", "own", "descendants", "total")
			}
			if got := children(""); got != "shop <nil> 10 0 10; lab Lab 0.25 0 0.25" {
				t.Errorf("children of eu: %s", got)
			}
			if got := children("?sort=org_id&meter=storage_used"); got != "lab Lab 0 0 0" {
				t.Errorf("children of eu by another meter: %s", got)
			}
			s.Must(400, "GET", "/orgs/eu/consumption/children?meter=none", op, "")
			s.Must(400, "GET", "/orgs/eu/consumption/children?sort=name", op, "")
			for _, sort := range []string{"org_id", "-org_id", "own", "-own", "descendants", "-descendants", "total", "-total"} {
				var got []string
				for page := "/orgs/acme/consumption/children?limit=1&sort=" + sort; page != ""; {
					a := s.Must(200, "GET", page, op, "")
					got = append(got, rows(a, "org_id", "total"))
					page = testkit.NextPage(a)
				}
				want := "eu 11.25; us 100"
				if sort == "-org_id" || sort == "-total" || sort == "own" || sort == "-descendants" {
					want = "us 100; eu 11.25"
				}
				if strings.Join(got, "; ") != want {
					t.Errorf("children by %s: %q", sort, got)
				}
			}
			if a := s.Must(200, "GET", "/orgs/acme/consumption/children?format=csv", op, ""); string(a.Body) !=
				"org_id,name,month,meter,unit,aggregation,own,descendants,total\r\nus,US,2026-11,api_calls,calls,sum,0,100,100\r\neu,EU,2026-11,api_calls,calls,sum,1,10.25,11.25\r\n" {
				t.Errorf("children as CSV: %s", a.Body)
			}

			a := s.Must(200, "GET", "/orgs/us/consumption/history?from=2026-09&to=2026-11", op, "")
			var months []string
			for _, m := range a.JSON().([]any) {
				row := m.(map[string]any)
				months = append(months, fmt.Sprint(row["month"], " ", row["status"], " ", row["meters"].(map[string]any)["api_calls"].(map[string]any)["total"]))
			}
			if got := strings.Join(months, "; "); got != "2026-09 closed 0; 2026-10 open 5; 2026-11 open 100" {
				t.Errorf("history of us: %s", got)
			}
			if n := len(s.Must(200, "GET", "/orgs/us/consumption/history", op, "").JSON().([]any)); n != 12 {
				t.Errorf("a history of %d months", n)
			}
			if a := s.Must(200, "GET", "/orgs/us/consumption/history?from=2026-10&format=csv", op, ""); strings.Count(string(a.Body), "\r\n") != 5 {
				t.Errorf("history as CSV: %s", a.Body)
			}
			for _, bad := range []string{"from=2026-12&to=2026-11", "from=2010-01&to=2026-11", "from=x", "to=2026-1", "month=2026-11"} {
				s.Must(400, "GET", "/orgs/us/consumption/history?"+bad, op, "")
			}

			a = s.Must(200, "GET", "/orgs/acme/consumption/daily", op, "")
			var days []string
			for _, d := range a.JSON().([]any) {
				row := d.(map[string]any)
				days = append(days, fmt.Sprint(row["day"], " ", row["meters"].(map[string]any)["api_calls"].(map[string]any)["total"]))
			}
			if got := strings.Join(days, "; "); got != "2026-11-01 110; 2026-11-02 1; 2026-11-03 0.25" {
				t.Errorf("days of acme: %s", got)
			}
			if a := s.Must(200, "GET", "/orgs/acme/consumption/daily?month=2027-01", op, ""); string(a.Body) != "[]" {
				t.Errorf("days of a month to come: %s", a.Body)
			}
			if a := s.Must(200, "GET", "/orgs/acme/consumption/daily?month=2026-10&format=csv", op, ""); strings.Count(string(a.Body), "\r\n") != 1+2*31 {
				t.Errorf("days as CSV: %s", a.Body)
			}

			// A key with the reach self sees what all below consumed together, and
			// not who did.
			self, _ := s.NewKey("eu", `"permissions":["consumption:read"],"reach":"self"`)
			if got := s.Must(200, "GET", "/orgs/eu/consumption", self, "").JSON("meters", "api_calls", "descendants"); got != 10.25 {
				t.Errorf("below eu %v was consumed", got)
			}
			s.Must(403, "GET", "/orgs/eu/consumption/children", self, "")
			s.Must(404, "GET", "/orgs/lab/consumption", self, "")
		})
	}
}

// What an organization has consumed is lowered from above: who consumes would
// pay less and lift its own limits.
func TestConsumptionIsLoweredFromAbove(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s, _ := metered(t, engine, "2026-11-02T12:00:00Z")
			sendUsage(s, "1", "shop", "api_calls", "2026-11-01T10:00:00Z", 10)
			own, _ := s.NewKey("shop", `"permissions":["admin"]`)
			above, _ := s.NewKey("eu", `"permissions":["consumption:write"]`)
			root, _ := s.NewKey("acme", `"permissions":["admin"]`)
			event := func(id, org string) string {
				return fmt.Sprintf(`{"id":%q,"meter":"api_calls","quantity":-1,"org_id":%q,"timestamp":"2026-11-01T10:00:00Z"}`, id, org)
			}
			adjustment := `{"meter":"api_calls","quantity":-1,"reason":"r"}`

			a := s.Must(400, "POST", "/orgs/shop/consumption/events", own, event("2", "shop"))
			if a.String("code") != "event_invalid" || !strings.Contains(string(a.Body), "/quantity") {
				t.Errorf("a negative event by the consumer: %s", a.Body)
			}
			s.Must(403, "POST", "/orgs/shop/consumption/adjustments", own, adjustment)
			s.Must(400, "POST", "/orgs/acme/consumption/events", root, event("2", "acme"))
			s.Must(403, "POST", "/orgs/acme/consumption/adjustments", root, adjustment)
			wantQuantities(t, s, "2026-11", "api_calls", map[string]string{"shop": "12 0 12"}) // with its two refused calls

			s.Must(200, "POST", "/orgs/shop/consumption/events", above, event("2", "shop"))
			s.Must(200, "POST", "/orgs/shop/consumption/adjustments", above, adjustment)
			wantQuantities(t, s, "2026-11", "api_calls", map[string]string{"shop": "10 0 10"})
		})
	}
}
