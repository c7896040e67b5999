package api_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/api"
	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/evidence"
	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/trail"
	"github.com/orgd/orgd/internal/tree"
	"github.com/orgd/orgd/internal/web"
)

// deafRecorder takes no record while it is deaf, and does not say so before.
type deafRecorder struct {
	*access.Recorder
	deaf atomic.Bool
}

func (r *deafRecorder) Ready() error { return nil }

func (r *deafRecorder) RecordAt(rec access.Record) (access.Position, error) {
	if r.deaf.Load() {
		return access.Position{}, problem.New(problem.Unavailable, "The access log cannot be written.").WithCause(errors.New("deaf"))
	}
	return r.Recorder.RecordAt(rec)
}

// unsureStore commits what it writes and, while it is unsure, does not know it.
type unsureStore struct {
	*store.Store
	unsure atomic.Bool
}

func (s *unsureStore) outcome(err error) error {
	if err == nil && s.unsure.Load() {
		err = problem.New(problem.OutcomeUnknown, "The change may or may not have been made.")
	}
	return err
}

// made is a write of the store.
func (s *unsureStore) made(write func() error) error { return s.outcome(write()) }

// unsure returns a side of the store.
func unsure[V, T any](s *unsureStore) testkit.Around[V, T] {
	return testkit.Around[V, T]{Face: store.Side[V, T]{Store: s.Store}, Make: s.made}
}

type unsureTrail struct {
	trail.Store
	all *unsureStore
}

func (s unsureTrail) Write(ctx context.Context, fn func(trail.Tx) error) error {
	return s.all.made(func() error { return s.Store.Write(ctx, fn) })
}

type unsureMetering struct {
	metering.Store
	all *unsureStore
}

func (s unsureMetering) Write(ctx context.Context, fn func(metering.Tx) error) error {
	return s.all.made(func() error { return s.Store.Write(ctx, fn) })
}

// refusedLog is a log of which the database lacks what was signed, so that it
// takes a new epoch and can be abandoned. It changes what a server would.
type refusedLog struct {
	service *evidence.Service
	store   *unsureStore
}

func (l *refusedLog) Refused() []evidence.Refusal { return nil }

func (l *refusedLog) OpenEpoch(ctx context.Context, call *org.Call, rootID, reason string) (origin string, receipt audit.Receipt, err error) {
	head, err := l.service.LogHead(ctx, rootID)
	if err != nil {
		return "", receipt, err
	}
	last, err := l.service.LastSignature(ctx, head)
	if err != nil {
		return "", receipt, err
	}
	return l.service.OpenEpoch(ctx, call, rootID, last.Checkpoint, reason)
}

func (l *refusedLog) Abandon(string, string) error {
	if l.store.unsure.Load() { // the file of a server fails in the same way
		return problem.New(problem.OutcomeUnknown, "The audit log may or may not be abandoned.")
	}
	return nil
}

// withFaults serves the API of a server with a recorder and a store that fail
// when they are told to.
func withFaults(t *testing.T, s *testkit.Server) (*testkit.Server, *deafRecorder, *unsureStore) {
	t.Helper()
	_, hash, ok := key.ParseToken(s.OperatorKey)
	if !ok {
		t.Fatal("the operator key is malformed")
	}
	seed := []byte(s.Config.AuditKey)
	if len(seed) == 0 {
		var err error
		if seed, err = os.ReadFile(filepath.Join(s.Config.DataDir, "audit.key")); err != nil {
			t.Fatal(err)
		}
	}
	keyring, err := audit.ParseKeyring(string(seed))
	if err != nil {
		t.Fatal(err)
	}
	recorder, all := &deafRecorder{Recorder: s.Recorder}, &unsureStore{Store: s.Store}
	service, err := org.NewService(org.Config{Store: testkit.AroundOrgs{Store: s.Store, Make: all.made}, Now: s.Config.Now, NewID: ident.New, Rand: rand.Reader, OperatorHash: hash})
	if err != nil {
		t.Fatal(err)
	}
	meters, err := metering.NewService(metering.Config{Orgs: service, Store: unsureMetering{store.Side[metering.View, metering.Tx]{Store: s.Store}, all}, Months: unsure[metering.MonthsView, metering.MonthsTx](all), Spool: s.Recorder, Now: s.Config.Now})
	if err != nil {
		t.Fatal(err)
	}
	proof := evidence.NewService(service, unsure[evidence.View, evidence.Tx](all), keyring)
	metrics, limiter := prometheus.NewRegistry(), auth.NewLimiter(time.Time{}, func() int { return 1 })
	a, err := api.New(api.Config{Service: service, Tree: tree.NewService(tree.Config{Orgs: service, Store: unsure[tree.View, tree.Tx](all), Imports: unsure[tree.ImportView, tree.ImportTx](all), Now: s.Config.Now, NewID: ident.New, Rand: rand.Reader, RestoreWindow: time.Hour, Drain: s.Recorder.Drain}),
		Trail: trail.NewService(trail.Config{Orgs: service, Store: unsureTrail{store.Side[trail.View, trail.Tx]{Store: s.Store}, all}, NewID: ident.New}), Evidence: proof, Metering: meters, Flusher: s.Recorder, Limiter: limiter, Now: s.Config.Now, Secret: []byte("x"), Metrics: metrics, Status: s.Server, Signer: &refusedLog{proof, all}})
	if err != nil {
		t.Fatal(err)
	}
	handler, err := web.NewServer(web.Config{Service: service, Metering: meters, Recorder: recorder, Limiter: limiter, Log: s.Config.Log, Now: s.Config.Now, Metrics: metrics}, a.Routes())
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(handler)
	t.Cleanup(front.Close)
	faulty := *s
	faulty.URL = front.URL
	return &faulty, recorder, all
}

// What a request did is never denied because its access could not be recorded:
// the answer says what was done. A request that did nothing may say so.
func TestEffectsAreNotDenied(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		at, _ := metered(t, engine, "2026-11-14T12:00:00Z")
		s, recorder, store := withFaults(t, at)
		op := s.OperatorKey
		cloud := func(id string) string {
			return fmt.Sprintf(`{"specversion":"1.0","id":%q,"source":"gw","type":"storage_used","subject":"shop","data":{"quantity":1}}`, id)
		}
		const events, changed = "The events were stored, but", "The change was made, but"
		effects := []struct {
			name, method, path, body, did string
			headers                       []string
		}{
			{"an event", "POST", "/orgs/acme/consumption/events", `{"id":"1","meter":"storage_used","quantity":1,"org_id":"shop"}`, events, nil},
			{"a line", "POST", "/orgs/acme/consumption/events", `{"id":"2","meter":"storage_used","quantity":1,"org_id":"shop"}` + "\n", events, []string{"Content-Type", ndjson}},
			{"CloudEvents", "POST", "/orgs/acme/consumption/events", "[" + cloud("1") + "," + cloud("2") + "]", events, []string{"Content-Type", cloudBatch}},
			{"CloudEvents of OpenMeter", "POST", "/api/v1/events", "[" + cloud("3") + "]", events, []string{"Content-Type", cloudBatch}},
			{"an event with its answer kept", "POST", "/orgs/acme/consumption/events", `{"id":"3","meter":"storage_used","quantity":1,"org_id":"shop"}`, events, []string{"Idempotency-Key", "k1"}},
			{"an access event", "POST", "/orgs/acme/access_log", `{"id":"1","user":"u","action":"LOGIN","status":"SUCCESS"}`, events, nil},
			{"an adjustment", "POST", "/orgs/shop/consumption/adjustments", `{"meter":"api_calls","quantity":1,"reason":"r"}`, changed, nil},
			{"a new organization", "POST", "/orgs/acme/children", `{"id":"new","name":"New"}`, changed, nil},
			{"an import", "POST", "/orgs/import", "id,parent_id,name\nimported,acme,Imported\n", changed, []string{"Content-Type", "text/csv"}},
			{"an answer that was kept", "POST", "/orgs/shop/move", `{"parent_id":"eu"}`, "Nothing was changed, and the answer is kept", []string{"Idempotency-Key", "k2"}},
			{"an answer that was kept before", "POST", "/orgs/shop/move", `{"parent_id":"eu"}`, "This request was made before", []string{"Idempotency-Key", "k2"}},
		}
		recorder.deaf.Store(true)
		for _, test := range effects {
			a := s.Must(503, test.method, test.path, op, test.body, test.headers...)
			if a.String("code") != "outcome_unknown" || !strings.HasPrefix(a.String("detail"), test.did) {
				t.Errorf("%s: %s", test.name, a.Body)
			}
		}
		for _, test := range []struct{ name, method, path, body string }{
			{"a read", "GET", "/orgs/acme", ""},
			{"a bad event", "POST", "/orgs/acme/consumption/events", `{"id":"9","meter":"none","quantity":1}`},
			{"a bad access event", "POST", "/orgs/acme/access_log", `{"id":"9"}`},
			{"a dry run", "POST", "/orgs/shop/move?dry_run=true", `{"parent_id":"us"}`},
			{"no change", "PATCH", "/orgs/acme", `{"name":"Acme"}`},
			{"a taken id", "POST", "/orgs/acme/children", `{"id":"us","name":"US"}`},
			{"a decision", "GET", "/forward_auth?meter=api_calls&org=shop", ""},
		} {
			if a := s.Must(503, test.method, test.path, op, test.body); a.String("code") != "unavailable" {
				t.Errorf("%s: %s", test.name, a.Body)
			}
		}
		recorder.deaf.Store(false)
		// It was done, each time.
		for _, test := range effects[:5] {
			a := s.Must(map[bool]int{true: 204, false: 200}[test.path == "/api/v1/events"], test.method, test.path, op, test.body, test.headers...)
			if accepted := a.JSON("accepted"); accepted != nil && accepted != 0.0 && test.headers == nil {
				t.Errorf("%s: %s", test.name, a.Body)
			}
		}
		wantQuantities(t, at, "2026-11", "api_calls", map[string]string{"shop": "1 0 1"})
		s.Must(200, "GET", "/orgs/new", op, "")
		s.Must(200, "GET", "/orgs/imported", op, "")

		// If the database does not know either, nobody claims to.
		recorder.deaf.Store(true)
		store.unsure.Store(true)
		for i, test := range effects[:9] {
			body := strings.NewReplacer(`"new"`, `"newer"`, "imported", "also-imported").Replace(test.body)
			a := s.Must(503, test.method, test.path, op, body, append(slices.Clone(test.headers), "Idempotency-Key", fmt.Sprint("u", i))...)
			if a.String("code") != "outcome_unknown" || !strings.Contains(a.String("detail"), "may or may not") {
				t.Errorf("%s, with an unknown outcome: %s", test.name, a.Body)
			}
		}
		store.unsure.Store(false)
		recorder.deaf.Store(false)
	})
}

// The same for every call that changes something, with a receipt or without: if
// its access cannot be recorded the answer says what was done, and if the database
// does not know it either, that nobody knows.
func TestNoChangeIsDenied(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		at, _ := metered(t, engine, "2026-11-14T12:00:00Z")
		s, recorder, store := withFaults(t, at)
		_, updated := at.NewKey("us", "")
		_, rotated := at.NewKey("us", "")
		_, revoked := at.NewKey("us", "")
		for _, id := range []string{"spool_lost1", "spool_lost2"} {
			if _, err := at.Store.TakeSpool(t.Context(), id, access.Run{Number: 1, Nonce: "run_x"}, "gone:/spool", time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC)); err != nil {
				t.Fatal(err)
			}
		}
		for _, id := range []string{"rotated1", "rotated2", "opened1", "opened2"} {
			at.Must(201, "POST", "/orgs", at.OperatorKey, `{"id":"`+id+`","name":"Root"}`)
			for end := time.Now().Add(10 * time.Second); at.Do("GET", "/orgs/"+id+"/audit_log/checkpoint", at.OperatorKey, "").Status != 200; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("the log of %s is not signed", id)
				}
			}
		}
		tested := map[string]bool{
			"verify": true, // does nothing but what is recorded
		}
		calls := []struct{ operation, method, path, body, contentType string }{
			{"createOrg", "POST", "/orgs", `{"id":"rootN","name":"Root"}`, ""},
			{"createChild", "POST", "/orgs/acme/children", `{"id":"kidN","name":"Kid"}`, ""},
			{"importOrgs", "POST", "/orgs/import", "id,parent_id,name\nrowN,acme,Row\n", "text/csv"},
			{"updateOrg", "PATCH", "/orgs/us", `{"name":"USN"}`, ""},
			{"moveOrg", "POST", "/orgs/lab/move", `{"parent_id":"kidN"}`, ""},
			{"deleteOrg", "DELETE", "/orgs/lab", "", ""},
			{"restoreOrg", "POST", "/orgs/lab/restore", "", ""},
			{"putCustomizations", "PUT", "/orgs/us/customizations", `{"customizations":{"a":N}}`, ""},
			{"putCustomizationSchema", "PUT", "/orgs/acme/customization_schema", `{"type":"object","title":"N"}`, ""},
			{"deleteCustomizationSchema", "DELETE", "/orgs/acme/customization_schema", "", ""},
			{"putTag", "PUT", "/orgs/us/tags/blueN", "", ""},
			{"deleteTag", "DELETE", "/orgs/us/tags/blueN", "", ""},
			{"createKey", "POST", "/orgs/us/api_keys", `{"name":"New"}`, ""},
			{"updateKey", "PATCH", "/orgs/us/api_keys/" + updated, `{"name":"Changed N"}`, ""},
			{"rotateKey", "POST", "/orgs/us/api_keys/" + rotated + "/rotate", `{"overlap_seconds":0}`, ""},
			{"revokeKey", "DELETE", "/orgs/us/api_keys/" + revoked, "", ""},
			{"ingestAccessLog", "POST", "/orgs/us/access_log", `{"user":"jo","action":"LOGIN","status":"SUCCESS"}`, ""},
			{"putAccessLogRetention", "PUT", "/orgs/acme/access_log/retention", `{"days":3N}`, ""},
			{"putLimit", "PUT", "/orgs/us/limits/api_calls", `{"limit":5N,"enforcement":"soft"}`, ""},
			{"deleteLimit", "DELETE", "/orgs/us/limits/api_calls", "", ""},
			{"putMeter", "PUT", "/orgs/acme/meters/tokensN", `{"unit":"tokens","aggregation":"sum"}`, ""},
			{"deleteMeter", "DELETE", "/orgs/acme/meters/tokensN", "", ""},
			{"putQuota", "PUT", "/orgs/acme/quota", `{"streams":5N}`, ""},
			{"deleteQuota", "DELETE", "/orgs/acme/quota", "", ""},
			{"createAdjustment", "POST", "/orgs/us/consumption/adjustments", `{"meter":"api_calls","quantity":1,"reason":"test"}`, ""},
			{"ingestUsage", "POST", "/orgs/us/consumption/events", `{"id":"u-N","meter":"storage_used","quantity":1}`, ""},
			{"ingestEvents", "POST", "/api/v1/events", `{"specversion":"1.0","id":"e-N","source":"test","subject":"us","type":"storage_used","data":{"quantity":1}}`, ""},
			{"eraseSubject", "POST", "/orgs/acme/audit_erasures", `{"subject":"Changed N","basis":"Request 7"}`, ""},
			{"giveUpSpool", "DELETE", "/spools/spool_lostN?reason=test", "", ""},
			{"rotateAuditKey", "POST", "/orgs/rotatedN/audit_log/rotate_key", `{"overlap_seconds":0}`, ""},
			{"openAuditEpoch", "POST", "/orgs/openedN/audit_log/epochs", `{"reason":"Restored N"}`, ""},
			{"abandonAuditLog", "DELETE", "/refused_audit_logs/logN?reason=test", "", ""},
		}
		recorder.deaf.Store(true)
		for _, unsure := range []bool{false, true} {
			store.unsure.Store(unsure)
			n := map[bool]string{false: "1", true: "2"}[unsure]
			for _, c := range calls {
				tested[c.operation] = true
				if unsure && (c.operation == "revokeKey" || c.operation == "deleteTag" || c.operation == "deleteMeter") {
					store.unsure.Store(false) // what they undo was not answered, and is there
				}
				var headers []string
				if c.contentType != "" {
					headers = []string{"Content-Type", c.contentType}
				}
				if c.operation == "ingestEvents" {
					headers = []string{"Content-Type", "application/cloudevents+json"}
				}
				in := strings.NewReplacer("kidN", "kid"+n, "N", n)
				a := s.Do(c.method, in.Replace(c.path), s.OperatorKey, in.Replace(c.body), headers...)
				if a.Status != 503 || a.String("code") != "outcome_unknown" {
					if unsure && c.operation == "revokeKey" && a.Status == 503 { // it is revoked
						continue
					}
					t.Errorf("%s, unsure %v: %d %s", c.operation, unsure, a.Status, a.Body)
				}
				store.unsure.Store(unsure)
			}
		}
		recorder.deaf.Store(false)
		store.unsure.Store(false)
		for _, rt := range new(api.API).Routes() {
			if rt.Method != "" && rt.Method != "GET" && rt.Method != "HEAD" && !tested[rt.Operation] {
				t.Errorf("%s is not tested", rt.Operation)
			}
		}
	})
}
