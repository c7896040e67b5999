package api_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/usage"
)

const (
	cloudEvents = "application/cloudevents+json"
	cloudBatch  = "application/cloudevents-batch+json"
	ndjson      = "application/x-ndjson"
)

// setClock is a clock that tests set.
type setClock struct {
	mu sync.Mutex
	at time.Time
}

func (c *setClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *setClock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = t
}

func day(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		panic(err)
	}
	return t
}

// metered starts a server with the tree acme → (eu → (shop, lab), us) at a
// time.
func metered(t *testing.T, engine, at string) (*testkit.Server, *setClock) {
	c := &setClock{at: day(at)}
	s := testkit.Start(t, engine, func(config *server.Config) { config.Now = c.now })
	s.Must(200, "POST", "/orgs/import", s.OperatorKey, "id,parent_id,name\nacme,,Acme\neu,acme,EU\nus,acme,US\nshop,eu,Shop\nlab,eu,Lab\nother,,Other\n",
		"Content-Type", "text/csv")
	return s, c
}

// quantities returns own, descendants and total of a meter as numbers.
func quantities(s *testkit.Server, orgID, month, meter string) string {
	a := s.Must(200, "GET", "/orgs/"+orgID+"/consumption?month="+month, s.OperatorKey, "")
	return fmt.Sprint(a.JSON("meters", meter, "own"), " ", a.JSON("meters", meter, "descendants"), " ", a.JSON("meters", meter, "total"))
}

func wantQuantities(t *testing.T, s *testkit.Server, month, meter string, want map[string]string) {
	t.Helper()
	for id, w := range want {
		if got := quantities(s, id, month, meter); got != w {
			t.Errorf("%s of %s in %s: own, descendants, total are %s, want %s", meter, id, month, got, w)
		}
	}
}

func counted(t *testing.T, a *testkit.Answer, accepted, duplicates float64) {
	t.Helper()
	if a.JSON("accepted") != accepted || a.JSON("duplicates") != duplicates {
		t.Errorf("answer %s, want %v accepted and %v duplicates", a.Body, accepted, duplicates)
	}
}

// An event in each of its forms is counted once, for its organization and all
// ancestors.
func TestUsageEvents(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s, _ := metered(t, engine, "2026-11-14T12:00:00Z")
			op := s.OperatorKey
			events := "/orgs/acme/consumption/events"
			s.Must(200, "PUT", "/orgs/acme/meters/tokens", op, `{"unit":"tokens","aggregation":"sum","event_type":"llm.request","value":"/usage/total~1tokens"}`)
			s.Must(200, "PUT", "/orgs/acme/meters/requests", op, `{"unit":"requests","aggregation":"count","event_type":"llm.request"}`)

			plain := `{"id":"1","source":"a","timestamp":"2026-11-03T10:00:00Z","meter":"storage_used","quantity":1.5,"org_id":"shop"}`
			counted(t, s.Must(200, "POST", events, op, plain), 1, 0)
			counted(t, s.Must(200, "POST", events, op, plain), 0, 1)
			counted(t, s.Must(200, "POST", events, op, `[{"id":"2","source":"a","meter":"storage_used","quantity":"0.000001","org_id":"lab"},
				{"id":"3","source":"a","meter":"storage_used","quantity":7,"org_id":"shop"},{"id":"2","source":"a","meter":"storage_used","quantity":9,"org_id":"lab"}]`), 2, 1)
			wantQuantities(t, s, "2026-11", "storage_used", map[string]string{"shop": "7 0 7", "lab": "1e-06 0 1e-06", "eu": "0 7.000001 7.000001", "acme": "0 7.000001 7.000001", "us": "0 0 0"})

			llm := func(id, subject, data string) string {
				return fmt.Sprintf(`{"specversion":"1.0","id":%q,"source":"gw","type":"llm.request","subject":%q,"time":"2026-11-14T11:00:00Z","tenant":"x","data":%s}`, id, subject, data)
			}
			counted(t, s.Must(200, "POST", events, op, llm("1", "eu", `{"usage":{"total/tokens":"12.5"}}`), "Content-Type", cloudEvents), 1, 0)
			counted(t, s.Must(200, "POST", events, op, "["+llm("1", "eu", `{"usage":{"total/tokens":1}}`)+","+llm("2", "us", `{"usage":{"x":[],"total/tokens":3}}`)+"]", "Content-Type", cloudBatch), 1, 1)
			s.Must(204, "POST", "/api/v1/events", op, "["+llm("3", "us", `{"usage":{"total/tokens":4}}`)+"]", "Content-Type", cloudBatch)
			s.Must(204, "POST", "/api/v1/events", op, llm("3", "us", `{"usage":{"total/tokens":4}}`))
			counted(t, s.Must(200, "POST", events, op, `{"usage":{"total/tokens":0.5}}`, "ce-specversion", "1.0", "ce-id", "4%20x", "ce-source", "/gw", "ce-type", "llm.request", "ce-subject", "shop"), 1, 0)
			counted(t, s.Must(200, "POST", events, op, `{"specversion":"1.0","id":"5","source":"gw","type":"llm.request","data_base64":"eyJ1c2FnZSI6eyJ0b3RhbC90b2tlbnMiOjF9fQ=="}`, "Content-Type", cloudEvents), 1, 0)
			wantQuantities(t, s, "2026-11", "tokens", map[string]string{"eu": "12.5 0.5 13", "us": "7 0 7", "acme": "1 20 21"})
			wantQuantities(t, s, "2026-11", "requests", map[string]string{"eu": "1 1 2", "us": "2 0 2", "acme": "1 4 5"})

			lines := `{"id":"n1","meter":"api_calls","quantity":2}` + "\n\n" + `{"id":"n2","meter":"api_calls","quantity":3,"org_id":"lab"}` + "\r\n"
			counted(t, s.Must(200, "POST", "/orgs/eu/consumption/events", op, lines, "Content-Type", ndjson), 2, 0)
			wantQuantities(t, s, "2026-11", "api_calls", map[string]string{"lab": "3 0 3", "eu": "2 3 5", "acme": "0 5 5"})

			// The same request with one Idempotency-Key has one answer.
			for range 2 {
				counted(t, s.Must(200, "POST", events, op, `{"id":"once","meter":"api_calls","quantity":1}`, "Idempotency-Key", "k"), 1, 0)
			}
			s.Must(409, "POST", events, op, `{"id":"twice","meter":"api_calls","quantity":1}`, "Idempotency-Key", "k")
		})
	}
}

// A bad event keeps all of its request from being counted, and is named.
func TestUsageEventsRefused(t *testing.T) {
	s, _ := metered(t, "sqlite", "2026-11-14T12:00:00Z")
	key, _ := s.NewKey("eu", `"permissions":["consumption:write"]`)
	at := "/orgs/eu/consumption/events"
	good := `{"id":"good","meter":"api_calls","quantity":1}`
	for _, test := range []struct {
		name, body, mediaType string
		status                int
		code, pointer         string
	}{
		{"no id", `{"meter":"api_calls","quantity":1}`, "", 400, "event_invalid", "/id"},
		{"long id", `{"id":"` + strings.Repeat("x", 257) + `","meter":"api_calls","quantity":1}`, "", 400, "event_invalid", "/id"},
		{"unknown meter", `{"id":"1","meter":"tokens","quantity":1}`, "", 400, "event_invalid", "/meter"},
		{"no meter", `{"id":"1","quantity":1}`, "", 400, "event_invalid", "/meter"},
		{"no quantity", `{"id":"1","meter":"api_calls"}`, "", 400, "event_invalid", "/quantity"},
		{"unknown member", `{"id":"1","meter":"api_calls","quantity":1,"extra":1}`, "", 400, "event_invalid", "/extra"},
		{"too fine", `{"id":"1","meter":"api_calls","quantity":1.0000001}`, "", 400, "event_invalid", "/quantity"},
		{"too much", `{"id":"1","meter":"api_calls","quantity":9000000000001}`, "", 400, "event_invalid", "/quantity"},
		{"sibling", `{"id":"1","meter":"api_calls","quantity":1,"org_id":"us"}`, "", 400, "event_invalid", "/org_id"},
		{"absent", `{"id":"1","meter":"api_calls","quantity":1,"org_id":"nobody"}`, "", 400, "event_invalid", "/org_id"},
		{"future", `{"id":"1","meter":"api_calls","quantity":1,"timestamp":"2026-11-14T12:05:01Z"}`, "", 400, "event_invalid", "/timestamp"},
		{"too old", `{"id":"1","meter":"api_calls","quantity":1,"timestamp":"2026-09-30T23:59:59Z"}`, "", 400, "event_invalid", "/timestamp"},
		{"no time", `{"id":"1","meter":"api_calls","quantity":1,"timestamp":"yesterday"}`, "", 400, "event_invalid", "/timestamp"},
		{"never set", `{"id":"1","meter":"api_calls","quantity":1,"timestamp":"0001-01-01T00:00:00Z"}`, "", 400, "event_invalid", "/timestamp"},
		{"never set, as CloudEvent", `{"specversion":"1.0","id":"1","source":"x","type":"api_calls","time":"0001-01-01T00:00:00Z","data":{"quantity":1}}`, cloudEvents, 400, "event_invalid", "/time"},
		{"future, as CloudEvent", `{"specversion":"1.0","id":"1","source":"x","type":"api_calls","time":"2026-11-15T12:00:00Z","data":{"quantity":1}}`, cloudEvents, 400, "event_invalid", "/time"},
		{"sibling, as CloudEvent", `{"specversion":"1.0","id":"1","source":"x","type":"api_calls","subject":"us","data":{"quantity":1}}`, cloudEvents, 400, "event_invalid", "/subject"},
		{"other version", `{"specversion":"0.3","id":"1","source":"x","type":"api_calls","data":{"quantity":1}}`, cloudEvents, 400, "event_invalid", "/specversion"},
		{"no source", `{"specversion":"1.0","id":"1","type":"api_calls","data":{"quantity":1}}`, cloudEvents, 400, "event_invalid", "/source"},
		{"unknown type", `{"specversion":"1.0","id":"1","source":"x","type":"y","data":{"quantity":1}}`, cloudEvents, 400, "event_invalid", "/type"},
		{"no data", `{"specversion":"1.0","id":"1","source":"x","type":"api_calls"}`, cloudEvents, 400, "event_invalid", "/data/quantity"},
		{"data is text", `{"specversion":"1.0","id":"1","source":"x","type":"api_calls","data":"1"}`, cloudEvents, 400, "event_invalid", "/data/quantity"},
		{"not a list", `{}`, cloudBatch, 400, "invalid_body", ""},
		{"nothing", `[]`, "", 400, "invalid_body", ""},
		{"not JSON", `{"id"`, "", 400, "invalid_body", ""},
		{"media type", good, "text/plain", 415, "unsupported_media_type", ""},
		{"too many", "[" + strings.Repeat(good+",", 10_000) + good + "]", "", 413, "too_large", ""},
	} {
		mediaType := test.mediaType
		if mediaType == "" {
			mediaType = "application/json"
		}
		a := s.Must(test.status, "POST", at, key, test.body, "Content-Type", mediaType)
		if a.String("code") != test.code {
			t.Errorf("%s: code %s: %s", test.name, a.String("code"), a.Body)
		}
		if test.code != "event_invalid" {
			continue
		}
		errors, _ := a.JSON("errors").([]any)
		if len(errors) != 1 || errors[0].(map[string]any)["index"] != 0.0 || errors[0].(map[string]any)["pointer"] != test.pointer {
			t.Errorf("%s: %s", test.name, a.Body)
		}
		if mediaType == "application/json" {
			a = s.Must(400, "POST", at, key, good+"\n\n"+test.body+"\n", "Content-Type", ndjson)
			e, _ := a.JSON("errors").([]any)
			if m := e[0].(map[string]any); m["index"] != 1.0 || m["line"] != 3.0 {
				t.Errorf("%s in NDJSON: %s", test.name, a.Body)
			}
		}
	}
	s.Must(403, "POST", at, func() string { k, _ := s.NewKey("eu", `"permissions":["consumption:read"]`); return k }(), good)
	s.Must(404, "POST", "/orgs/us/consumption/events", key, good)
	s.Must(400, "POST", "/api/v1/events", key, `{"specversion":"1.0","id":"1","source":"x","type":"api_calls","subject":"other","data":{"quantity":1}}`)
	if a := s.Must(200, "GET", "/orgs/acme/consumption", s.OperatorKey, ""); !strings.Contains(string(a.Body), `"storage_used"`) {
		t.Errorf("consumption: %s", a.Body)
	}
	// The calls of the key itself are counted, and no event.
	if got := quantities(s, "lab", "2026-11", "api_calls"); got != "0 0 0" {
		t.Errorf("lab consumed %s", got)
	}
	// What does not fit into a total is refused, whoever's it is.
	op := s.OperatorKey
	s.Must(200, "POST", "/orgs/acme/consumption/events", op, `{"id":"b1","meter":"storage_used","quantity":9000000000000,"org_id":"shop"}`)
	a := s.Must(400, "POST", "/orgs/acme/consumption/events", op, `{"id":"b2","meter":"storage_used","quantity":0.000001,"org_id":"lab"}`)
	if a.String("code") != "event_invalid" {
		t.Errorf("out of range: %s", a.Body)
	}
	counted(t, s.Must(200, "POST", "/orgs/acme/consumption/events", op, `{"id":"b2","meter":"storage_used","quantity":0,"org_id":"lab"}`), 1, 0)
}

// A hard limit holds for all events of a request together; duplicates do not
// count.
func TestUsageEventsUnderHardLimit(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s, _ := metered(t, engine, "2026-11-14T12:00:00Z")
			op := s.OperatorKey
			if _, _, err := s.Metering.PutLimit(t.Context(), &org.Call{Actor: auth.Operator()}, "eu", "storage_used", 10*usage.One, usage.Hard); err != nil {
				t.Fatal(err)
			}
			send := func(status int, list ...string) *testkit.Answer {
				t.Helper()
				return s.Must(status, "POST", "/orgs/acme/consumption/events", op, "["+strings.Join(list, ",")+"]")
			}
			use := func(id, orgID string, quantity int) string {
				return fmt.Sprintf(`{"id":%q,"meter":"storage_used","quantity":%d,"org_id":%q}`, id, quantity, orgID)
			}
			send(200, use("1", "shop", 6))
			a := send(429, use("2", "lab", 3), use("3", "eu", 2))
			if a.String("code") != "limit_exceeded" || a.String("limit_org_id") != "eu" {
				t.Errorf("beyond the limit: %s", a.Body)
			}
			counted(t, send(200, use("1", "shop", 6), use("2", "lab", 3), use("4", "us", 100)), 2, 1)
			counted(t, send(200, use("3", "eu", 1)), 1, 0)
			send(429, use("5", "eu", 2))
			wantQuantities(t, s, "2026-11", "storage_used", map[string]string{"eu": "1 9 10", "acme": "0 110 110"})
			if a := s.Must(http.StatusOK, "GET", "/orgs/shop/consumption", op, ""); a.JSON("meters", "storage_used", "limit") != 10.0 {
				t.Errorf("the limit is not shown: %s", a.Body)
			}
		})
	}
}

// Meters belong to a root, and what has counted keeps its aggregation.
func TestMeters(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s, _ := metered(t, engine, "2026-11-14T12:00:00Z")
			op := s.OperatorKey
			meter := "/orgs/acme/meters/disk"
			s.Must(404, "GET", meter, op, "")
			s.Must(404, "DELETE", meter, op, "")
			a := s.Must(200, "PUT", meter, op, `{"unit":"GB","aggregation":"max"}`)
			if a.String("event_type") != "disk" || a.String("value") != "/quantity" || a.Header.Get("Orgd-Audit-Receipt") == "" {
				t.Errorf("meter: %s", a.Body)
			}
			etag := a.Header.Get("ETag")
			if a = s.Must(200, "PUT", meter, op, `{"unit":"GB","aggregation":"max"}`); a.Header.Get("Orgd-Audit-Receipt") != "" || a.Header.Get("ETag") != etag {
				t.Errorf("the same again: %v", a.Header)
			}
			s.Must(200, "PUT", meter, op, `{"unit":"GiB","aggregation":"latest"}`, "If-Match", etag)
			s.Must(412, "PUT", meter, op, `{"unit":"TB","aggregation":"latest"}`, "If-Match", etag)
			s.Must(412, "PUT", "/orgs/acme/meters/new", op, `{"unit":"TB","aggregation":"latest"}`, "If-Match", etag)
			for _, bad := range []string{`{"unit":"","aggregation":"sum"}`, `{"unit":"x","aggregation":"mean"}`, `{"aggregation":"sum"}`, `{"unit":"x"}`,
				`{"unit":"x","aggregation":"sum","value":"quantity"}`, `{"unit":"x","aggregation":"sum","value":"/a~2"}`, `{"unit":"x\u0007","aggregation":"sum"}`,
				`{"unit":"x","aggregation":"sum","slug":"disk"}`} {
				s.Must(400, "PUT", meter, op, bad)
			}
			s.Must(400, "PUT", "/orgs/acme/meters/UPPER", op, `{"unit":"x","aggregation":"sum"}`)
			s.Must(409, "PUT", "/orgs/acme/meters/api_calls", op, `{"unit":"x","aggregation":"sum"}`)
			s.Must(409, "DELETE", "/orgs/acme/meters/storage_used", op, "")
			s.Must(409, "PUT", "/orgs/eu/meters/disk", op, `{"unit":"x","aggregation":"sum"}`)
			s.Must(409, "GET", "/orgs/eu/meters", op, "")

			send := func(id, orgID, at string, quantity float64) {
				t.Helper()
				counted(t, s.Must(200, "POST", "/orgs/acme/consumption/events", op,
					fmt.Sprintf(`{"id":%q,"meter":"disk","quantity":%v,"org_id":%q,"timestamp":%q}`, id, quantity, orgID, at)), 1, 0)
			}
			send("1", "shop", "2026-11-14T10:00:00Z", 5)
			send("2", "shop", "2026-11-14T09:00:00Z", 8) // older than what was counted
			send("3", "lab", "2026-11-13T10:00:00Z", -2)
			wantQuantities(t, s, "2026-11", "disk", map[string]string{"shop": "5 0 5", "lab": "-2 0 -2", "acme": "0 3 3"})
			send("4", "shop", "2026-11-14T11:00:00Z", 1)
			wantQuantities(t, s, "2026-11", "disk", map[string]string{"shop": "1 0 1", "acme": "0 -1 -1"})

			s.Must(409, "PUT", meter, op, `{"unit":"GiB","aggregation":"sum"}`)
			s.Must(409, "DELETE", meter, op, "")
			s.Must(200, "PUT", meter, op, `{"unit":"GiB","aggregation":"latest","description":"Disks","event_type":"disk.used","value":"/gib"}`)
			a = s.Must(200, "GET", "/orgs/acme/meters", op, "")
			var slugs []string
			for _, m := range a.JSON().([]any) {
				slugs = append(slugs, m.(map[string]any)["slug"].(string))
			}
			if got := strings.Join(slugs, " "); got != "api_calls disk storage_used" {
				t.Errorf("meters: %s", got)
			}
			s.Must(200, "PUT", "/orgs/acme/meters/spare", op, `{"unit":"x","aggregation":"sum"}`)
			s.Must(200, "DELETE", "/orgs/acme/meters/spare", op, "")
			s.Must(404, "GET", "/orgs/acme/meters/spare", op, "")
		})
	}
}

// Requests to a product count on the meters that its root has defined, if these
// add up.
func TestRequestsCountOnDefinedMeters(t *testing.T) {
	s, _ := metered(t, "sqlite", "2026-11-14T12:00:00Z")
	op := s.OperatorKey
	secret, _ := s.NewKey("shop", `"permissions":["orgs:read"]`)
	for slug, aggregation := range map[string]string{"tokens": "sum", "requests": "count", "peak": "max"} {
		s.Must(200, "PUT", "/orgs/acme/meters/"+slug, op, fmt.Sprintf(`{"unit":"x","aggregation":%q}`, aggregation))
	}
	s.Must(200, "GET", "/forward_auth?meter=tokens&quantity=2.5", secret, "")
	s.Must(200, "GET", "/forward_auth?meter=tokens&quantity=2.5", secret, "")
	s.Must(200, "GET", "/forward_auth?meter=requests&quantity=7", secret, "")
	s.Must(400, "GET", "/forward_auth?meter=peak&quantity=7", secret, "")
	s.Must(400, "GET", "/forward_auth?meter=none&quantity=7", secret, "")
	sendUsage(s, "1", "shop", "tokens", "2026-11-14T11:00:00Z", 1)
	wantQuantities(t, s, "2026-11", "tokens", map[string]string{"shop": "6 0 6", "acme": "0 6 6"})
	wantQuantities(t, s, "2026-11", "requests", map[string]string{"shop": "1 0 1", "acme": "0 1 1"})
	s.Must(409, "PUT", "/orgs/acme/meters/requests", op, `{"unit":"x","aggregation":"sum"}`)
	s.Must(200, "PUT", "/orgs/acme/limits/tokens", op, `{"limit":7,"enforcement":"hard"}`)
	if a := s.Must(429, "GET", "/forward_auth?meter=tokens&quantity=2", secret, ""); a.String("limit_org_id") != "acme" {
		t.Errorf("beyond the limit: %s", a.Body)
	}
	if a := s.Must(429, "POST", "/orgs/acme/consumption/events", op, `{"id":"2","meter":"tokens","quantity":2,"org_id":"us"}`); a.String("limit_org_id") != "acme" {
		t.Errorf("beyond the limit: %s", a.Body)
	}
}

// Text that no database takes is refused, and by both in the same way.
func TestUsageEventsOfImpossibleText(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s, _ := metered(t, engine, "2026-11-14T12:00:00Z")
			key, _ := s.NewKey("eu", `"permissions":["consumption:write"]`)
			at := "/orgs/eu/consumption/events"
			for _, test := range []struct {
				name   string
				header []string
				body   string
			}{
				{"id", []string{"Ce-Id", "%FF", "Ce-Source", "x"}, `{"quantity":1}`},
				{"raw id", []string{"Ce-Id", "\xff", "Ce-Source", "x"}, `{"quantity":1}`},
				{"source", []string{"Ce-Id", "1", "Ce-Source", "%C3%28"}, `{"quantity":1}`},
				{"subject", []string{"Ce-Id", "1", "Ce-Source", "x", "Ce-Subject", "%FF"}, `{"quantity":1}`},
				{"subject with NUL", []string{"Ce-Id", "1", "Ce-Source", "x", "Ce-Subject", "eu%00"}, `{"quantity":1}`},
				{"org_id with NUL", nil, `{"id":"1","meter":"storage_used","quantity":1,"org_id":"eu\u0000"}`},
				{"id with NUL", nil, `{"id":"1\u0000","meter":"storage_used","quantity":1}`},
				{"long org_id", nil, `{"id":"1","meter":"storage_used","quantity":1,"org_id":"` + strings.Repeat("x", 1000) + `"}`},
			} {
				header := test.header
				if header != nil {
					header = append(header, "Ce-Specversion", "1.0", "Ce-Type", "storage_used")
				}
				header = append(header, "Content-Type", "application/json")
				a := s.Do("POST", at, key, test.body, header...)
				if a.Status != 400 || a.String("code") != "event_invalid" {
					t.Errorf("%s: %d %s", test.name, a.Status, a.Body)
				}
			}
			wantQuantities(t, s, "2026-11", "storage_used", map[string]string{"eu": "0 0 0"})
		})
	}
}

// The answer to events with an Idempotency-Key is stored with them, once.
func TestEventsWithIdempotencyKey(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			var log bytes.Buffer
			s := testkit.Open(t, engine, func(c *server.Config) {
				c.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
			})
			s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"acme","name":"Acme"}`)
			for path, body := range map[string]string{
				"/orgs/acme/consumption/events": `{"id":"1","meter":"storage_used","quantity":1}`,
				"/orgs/acme/access_log":         `{"id":"1","user":"u","action":"LOGIN","status":"SUCCESS"}`,
			} {
				for range 2 {
					counted(t, s.Must(200, "POST", path, s.OperatorKey, body, "Idempotency-Key", strings.ReplaceAll(path, "/", "-")), 1, 0)
				}
			}
			s.Stop()
			if log.Len() > 0 {
				t.Errorf("the server log: %s", log.String())
			}
		})
	}
}
