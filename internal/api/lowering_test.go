package api_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/usage"
)

// Whoever consumes does not lift its own hard limit, on any kind of meter.
func TestConsumersLiftNoLimit(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		s, _ := metered(t, engine, "2026-11-14T12:00:00Z")
		op := s.OperatorKey
		shop, _ := s.NewKey("shop", `"permissions":["admin"]`)
		eu, _ := s.NewKey("eu", `"permissions":["admin"]`)
		n := 0
		send := func(status int, key, orgID, meter, quantity string) *testkit.Answer {
			t.Helper()
			n++
			return s.Must(status, "POST", "/orgs/"+orgID+"/consumption/events", key, fmt.Sprintf(`{"id":"%d","meter":%q,"quantity":%s}`, n, meter, quantity))
		}
		for _, aggregation := range []string{"sum", "max", "latest"} {
			meter := "m_" + aggregation
			s.Must(200, "PUT", "/orgs/acme/meters/"+meter, op, fmt.Sprintf(`{"unit":"x","aggregation":%q,"event_type":"shared"}`, aggregation))
			s.Must(200, "PUT", "/orgs/eu/limits/"+meter, op, `{"limit":100,"enforcement":"hard"}`)
			send(200, shop, "shop", meter, "100")
			for _, quantity := range []string{"-1000000", `"-0.000001"`, "-1e2"} {
				a := send(400, shop, "shop", meter, quantity)
				if a.String("code") != "event_invalid" || !strings.Contains(string(a.Body), "/quantity") || !strings.Contains(a.String("detail"), "lowered from above") {
					t.Errorf("%s of %s: %s", quantity, meter, a.Body)
				}
				// Above the shop, and below the limit.
				if a := send(400, eu, "shop", meter, quantity); !strings.Contains(a.String("detail"), "the limit of eu") {
					t.Errorf("%s of %s from above: %s", quantity, meter, a.Body)
				}
				send(400, eu, "lab", meter, quantity)
				send(400, eu, "eu", meter, quantity)
			}
			s.Must(403, "POST", "/orgs/shop/consumption/adjustments", shop, fmt.Sprintf(`{"meter":%q,"quantity":-5,"reason":"r"}`, meter))
			s.Must(403, "POST", "/orgs/shop/consumption/adjustments", eu, fmt.Sprintf(`{"meter":%q,"quantity":-5,"reason":"r"}`, meter))
			send(429, shop, "shop", meter, "900000")
			send(429, eu, "lab", meter, "0.000001")
			wantQuantities(t, s, "2026-11", meter, map[string]string{"eu": "0 100 100", "shop": "100 0 100"})
		}
		// An event that several meters count is as good as the worst of them.
		s.Must(400, "POST", "/orgs/shop/consumption/events", shop, `{"specversion":"1.0","id":"c","source":"x","type":"shared","data":{"quantity":-1}}`, "Content-Type", cloudEvents)
		// What an organization stores shrinks, to nothing at the least; who fills
		// the room counts in full.
		send(200, shop, "shop", "m_latest", "5")
		send(429, eu, "lab", "m_latest", "95.000001")
		send(200, eu, "lab", "m_latest", "95")
		send(429, shop, "shop", "m_latest", "6")
		send(200, shop, "shop", "m_latest", "0")
		send(200, shop, "shop", "m_latest", "5")
		wantQuantities(t, s, "2026-11", "m_latest", map[string]string{"eu": "0 100 100", "shop": "5 0 5", "lab": "95 0 95"})
		// Both at once, in any order.
		s.Must(200, "POST", "/orgs/eu/consumption/events", eu, `[{"id":"b1","meter":"m_latest","quantity":100,"org_id":"shop"},{"id":"b2","meter":"m_latest","quantity":0,"org_id":"lab"}]`)
		s.Must(429, "POST", "/orgs/eu/consumption/events", eu, `[{"id":"b3","meter":"m_latest","quantity":50,"org_id":"shop"},{"id":"b4","meter":"m_latest","quantity":51,"org_id":"lab"}]`)
		wantQuantities(t, s, "2026-11", "m_latest", map[string]string{"eu": "0 100 100", "shop": "100 0 100", "lab": "0 0 0"})
		// From above all of it, everything goes down.
		for _, meter := range []string{"m_sum", "m_latest"} {
			send(200, op, "shop", meter, "-50")
			s.Must(200, "POST", "/orgs/shop/consumption/adjustments", op, fmt.Sprintf(`{"meter":%q,"quantity":-1,"reason":"r"}`, meter))
		}
		wantQuantities(t, s, "2026-11", "m_sum", map[string]string{"eu": "0 49 49"})
		wantQuantities(t, s, "2026-11", "m_latest", map[string]string{"eu": "0 -51 -51"})
	})
}

// A gauge that falls takes nothing off what another month or another parent
// has been charged.
func TestGaugesFallWhereTheyRose(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		s, _ := metered(t, engine, "2026-11-14T12:00:00Z")
		op := s.OperatorKey
		shop, _ := s.NewKey("shop", `"permissions":["consumption:write"]`)
		s.Must(200, "PUT", "/orgs/acme/meters/disk", op, `{"unit":"GB","aggregation":"latest"}`)
		n := 0
		send := func(status int, key string, quantity int, at string) *testkit.Answer {
			t.Helper()
			n++
			return s.Must(status, "POST", "/orgs/shop/consumption/events", key, fmt.Sprintf(`{"id":"%d","meter":"disk","quantity":%d,"timestamp":%q}`, n, quantity, at))
		}
		// October has closed: what comes late for it is counted in November.
		send(200, shop, 80, "2026-10-10T00:00:00Z")
		send(200, shop, 90, "2026-10-20T00:00:00Z")
		send(200, shop, 10, "2026-10-15T00:00:00Z") // not the newest
		send(200, shop, 30, "2026-11-02T00:00:00Z")
		wantQuantities(t, s, "2026-11", "disk", map[string]string{"eu": "0 120 120"})
		a := send(400, shop, 0, "2026-10-21T00:00:00Z")
		if !strings.Contains(a.String("detail"), "a month that has closed") {
			t.Errorf("a late fall: %s", a.Body)
		}
		// What adds in the end may fall on the way.
		s.Must(200, "POST", "/orgs/shop/consumption/events", shop, `[{"id":"x","meter":"disk","quantity":1,"timestamp":"2026-10-22T00:00:00Z"},{"id":"y","meter":"disk","quantity":91,"timestamp":"2026-10-23T00:00:00Z"}]`)
		send(200, shop, 20, "2026-11-03T00:00:00Z")
		wantQuantities(t, s, "2026-11", "disk", map[string]string{"eu": "0 111 111"})
		send(200, op, 51, "2026-10-24T00:00:00Z")
		wantQuantities(t, s, "2026-11", "disk", map[string]string{"eu": "0 71 71"})

		// What it stored below eu stays charged there.
		s.Must(200, "POST", "/orgs/shop/move", op, `{"parent_id":"us"}`)
		send(200, shop, 5, "2026-11-04T00:00:00Z")
		wantQuantities(t, s, "2026-11", "disk", map[string]string{"eu": "0 71 71", "us": "0 0 0", "acme": "0 71 71"})
		send(200, shop, 50, "2026-11-05T00:00:00Z")
		wantQuantities(t, s, "2026-11", "disk", map[string]string{"eu": "0 71 71", "us": "0 30 30", "acme": "0 101 101"})
		send(200, shop, 0, "2026-11-06T00:00:00Z")
		wantQuantities(t, s, "2026-11", "disk", map[string]string{"eu": "0 71 71", "us": "0 0 0", "acme": "0 71 71"})
		// Those below what moves have moved too.
		s.Must(200, "POST", "/orgs/us/move", op, `{"parent_id":"eu"}`)
		send(200, shop, 25, "2026-11-07T00:00:00Z")
		wantQuantities(t, s, "2026-11", "disk", map[string]string{"eu": "0 76 76", "us": "0 5 5", "acme": "0 76 76"})
		send(200, shop, 1, "2026-11-08T00:00:00Z")
		wantQuantities(t, s, "2026-11", "disk", map[string]string{"eu": "0 71 71", "us": "0 0 0", "acme": "0 71 71"})
	})
}

// modelSeries is what the events of one organization for one meter in one month
// come to, and what of it was counted where the organization is.
type modelSeries struct {
	value  usage.Decimal
	newest time.Time
	parent string
	here   usage.Decimal
}

// add returns what an event adds, by the meaning of the aggregation.
func (m *modelSeries) add(a usage.Aggregation, at time.Time, quantity usage.Decimal, parent string) (delta usage.Decimal) {
	if m.parent != parent {
		m.parent, m.here = parent, 0
	}
	switch a {
	case usage.Sum:
		delta = quantity
	case usage.Count:
		delta = usage.One
	case usage.Max:
		delta = max(quantity-m.value, 0)
	case usage.Latest:
		if !at.Before(m.newest) {
			delta = max(quantity-m.value, -m.here)
			m.newest = at
		}
	}
	m.value += delta
	m.here += delta
	return delta
}

// Whatever consumers send, in whatever order, and wherever an organization is
// moved meanwhile: no more is let through than a limit allows, nothing that fits
// is refused, and nothing that was counted goes away but by a gauge that falls.
func TestLimitsHoldAgainstAnySequence(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		now := day("2026-11-14T12:00:00Z")
		s := testkit.Open(t, engine, func(c *server.Config) { c.Now, c.SignInterval = func() time.Time { return now }, -1 })
		operator := &org.Call{Actor: auth.Operator()}
		aggregations := map[string]usage.Aggregation{"m_sum": usage.Sum, "m_count": usage.Count, "m_max": usage.Max, "m_latest": usage.Latest}
		limits := map[string]usage.Decimal{"a": 40 * usage.One, "b": 25 * usage.One}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		round, secret := 0, sha256.Sum256([]byte("secret"))
		rapid.Check(t, func(rt *rapid.T) {
			// r → a → (x, y), r → b; both a and b are limited. x moves.
			round++
			id := func(name string) string { return fmt.Sprintf("%s%d", name, round) }
			must(testkit.Whole(s.Store).Write(t.Context(), func(tx testkit.Tx) error {
				var orgs []*org.Organization
				for _, names := range []string{"r", "r a", "r b", "r a x", "r a y"} {
					o := &org.Organization{RootID: id("r"), Name: names, Type: org.TypeOrganization, CreatedAt: now, UpdatedAt: now, Version: 1,
						Settings: org.Settings{Values: []byte("{}"), UpdatedAt: now}}
					for n, name := range strings.Fields(names) {
						o.ParentID, o.ID, o.Depth = o.ID, id(name), n
						o.Path += id(name) + "/"
					}
					orgs = append(orgs, o)
				}
				err := errors.Join(tx.InsertOrgs(orgs), tx.NewLog(&audit.Head{RootID: id("r"), LogID: id("log")}))
				for slug, a := range aggregations {
					err = errors.Join(err, tx.PutMeter(id("r"), &usage.Meter{Slug: slug, Unit: "x", Aggregation: a, EventType: "shared", Value: "/quantity", Version: 1}))
					for limited, amount := range limits {
						err = errors.Join(err, tx.PutLimit(&usage.Limit{RootID: id("r"), OrgID: id(limited), Meter: slug, Amount: amount, Enforcement: usage.Hard, Version: 1}))
					}
				}
				for _, of := range []string{"a", "b", "x", "y"} {
					err = errors.Join(err, tx.InsertKey(&key.Key{ID: id("key_" + of), OrgID: id(of), RootID: id("r"), Name: of, Hint: "abcd", SecretHash: secret[:],
						Permissions: key.AllPermissions(), Reach: key.ReachSubtree, CreatedAt: now, UpdatedAt: now, Version: 1}))
				}
				return err
			}))
			// The keys are x's own, and one above that may not change the limits.
			actors := map[string]*auth.Actor{}
			for _, of := range []string{"a", "b", "x", "y"} {
				path := id("r") + "/" + map[string]string{"a": id("a") + "/", "b": id("b") + "/", "x": id("a") + "/" + id("x") + "/", "y": id("a") + "/" + id("y") + "/"}[of]
				actors[of] = &auth.Actor{Kind: auth.KindKey, ID: id("key_" + of), Name: of, OrgID: id(of), RootID: id("r"), Path: path,
					Grants: []auth.Grant{{Path: path, Reach: key.ReachSubtree, Permissions: key.AllPermissions()}}}
			}
			parent := map[string]string{"x": "a", "y": "a"}
			model := map[string]*modelSeries{}
			used := map[string]usage.Decimal{} // by limited organization and meter
			sent := map[string]bool{}
			next := 0

			for range rapid.IntRange(1, 14).Draw(rt, "steps") {
				if rapid.IntRange(0, 9).Draw(rt, "move") == 0 {
					to := map[string]string{"a": "b", "b": "a"}[parent["x"]]
					_, _, err := s.Tree.Move(t.Context(), operator, id("x"), id(to))
					must(err)
					parent["x"] = to
					actors["x"].Path = id("r") + "/" + id(to) + "/" + id("x") + "/"
					actors["x"].Grants[0].Path = actors["x"].Path
					continue
				}
				who := rapid.SampledFrom([]string{"a", "b", "x", "y"}).Draw(rt, "sender")
				target := who
				if who == "a" && parent["x"] == "a" || who == "b" && parent["x"] == "b" {
					target = "x"
				} else if who == "a" {
					target = "y"
				} else if who == "b" {
					continue // has nothing below it
				}
				draft := map[string]modelSeries{}
				for k, m := range model {
					draft[k] = *m
				}
				net := map[string]usage.Decimal{}  // by meter
				late := map[string]usage.Decimal{} // of October, by meter
				var events []metering.UsageEvent
				invalid := false
				fresh := map[string]bool{}
				duplicates := 0
				for range rapid.IntRange(1, 3).Draw(rt, "events") {
					if rapid.IntRange(0, 5).Draw(rt, "again") > 0 || next == 0 {
						next++
					}
					slug := rapid.SampledFrom([]string{"m_sum", "m_count", "m_max", "m_latest", ""}).Draw(rt, "meter")
					quantity := usage.Decimal(rapid.IntRange(-3, 30).Draw(rt, "quantity")) * usage.One
					at := now.Add(-time.Duration(rapid.IntRange(0, 20).Draw(rt, "days")) * 24 * time.Hour)
					e := metering.UsageEvent{ID: fmt.Sprint(next), Source: "s", OrgID: id(target), At: at, Meter: slug,
						Quantity: func(*usage.Meter) (usage.Decimal, error) { return quantity, nil }}
					slugs := []string{slug}
					if slug == "" { // one event on all meters
						e.Type = "shared"
						slugs = []string{"m_count", "m_latest", "m_max", "m_sum"}
					}
					events = append(events, e)
					if quantity < 0 && slug != "m_count" {
						invalid = true
					}
					name := who + " " + e.ID
					if sent[name] || fresh[name] {
						duplicates++
						continue
					}
					fresh[name] = true
					for _, slug := range slugs {
						k := fmt.Sprint(target, slug, at.Month())
						series := draft[k]
						delta := series.add(aggregations[slug], at, quantity, parent[target])
						draft[k] = series
						net[slug] += delta
						if at.Month() == time.October {
							late[slug] += delta
						}
					}
				}
				for _, delta := range late {
					invalid = invalid || delta < 0
				}
				limited := parent[target]
				fits := true
				for slug, delta := range net {
					fits = fits && (delta <= 0 || used[limited+slug]+delta <= limits[limited])
				}
				got, err := s.Metering.Ingest(t.Context(), &org.Call{Actor: actors[who], Secret: secret}, id(target), events)
				switch {
				case invalid:
					if !problem.Is(err, problem.EventInvalid) {
						rt.Fatalf("%s sent something that lowers: %v", who, err)
					}
				case !fits:
					if !problem.Is(err, problem.LimitExceeded) {
						rt.Fatalf("%v does not fit into %v beside %v: %v", net, limits[limited], used, err)
					}
				case err != nil:
					rt.Fatalf("%v fits into %v beside %v: %v", net, limits[limited], used, err)
				default:
					if got.Accepted != len(fresh) || got.Duplicates != duplicates {
						rt.Fatalf("%+v, want %d accepted and %d duplicates", got, len(fresh), duplicates)
					}
					for k := range draft {
						m := draft[k]
						model[k] = &m
					}
					for name := range fresh {
						sent[name] = true
					}
					for slug, delta := range net {
						if delta < 0 && slug != "m_latest" {
							rt.Fatalf("%s fell by %s", slug, -delta)
						}
						used[limited+slug] += delta
					}
				}
				must(testkit.Whole(s.Store).Read(t.Context(), func(tx testkit.Tx) error {
					for _, o := range []string{"a", "b"} {
						for slug := range aggregations {
							is, err := tx.Consumed(id("r"), id(o), "2026-11", slug)
							if err != nil {
								return err
							}
							if is != used[o+slug] || is < 0 || is > limits[o] {
								rt.Fatalf("%s of %s is %s, want %s, at most %s", slug, o, is, used[o+slug], limits[o])
							}
						}
					}
					return nil
				}))
			}
		})
	})
}
