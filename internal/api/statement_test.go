package api_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/testkit"
)

// When a month closes, what every organization consumed in it becomes evidence.
func TestStatement(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s, clock := metered(t, engine, "2026-10-14T12:00:00Z")
			op := s.OperatorKey
			send := func(org, quantity string, n int) {
				t.Helper()
				s.Must(200, "POST", "/orgs/acme/consumption/events", op, fmt.Sprintf(
					`{"id":"%s-%d","source":"a","timestamp":"2026-10-14T11:00:00Z","meter":"tokens","quantity":%s,"org_id":"%s"}`, org, n, quantity, org))
			}
			s.Must(200, "PUT", "/orgs/acme/meters/tokens", op, `{"unit":"tokens \"ß\"","aggregation":"sum"}`)
			send("shop", "1.5", 1)
			send("lab", "2", 1)
			s.Must(200, "POST", "/orgs/shop/move", op, `{"parent_id":"us"}`)
			send("shop", "0.000001", 2)
			send("us", "4", 1)
			s.Must(200, "DELETE", "/orgs/lab", op, "")

			path := "/orgs/acme/consumption/statement?month=2026-10"
			s.Must(404, "GET", path, op, "")
			clock.set(day("2026-11-05T00:00:00Z"))
			if err := s.CloseMonths(t.Context()); err != nil {
				t.Fatal(err)
			}
			a := s.Must(200, "GET", path, op, "")
			v := jsontext.Value(a.Body).Clone()
			if err := v.Canonicalize(); err != nil || !bytes.Equal(v, a.Body) {
				t.Errorf("the statement is not canonical JSON: %s", a.Body)
			}
			const tokens = `"tokens":{"own":"%s","total":"%s"}`
			for org, want := range map[string][2]string{"acme": {"0", "7.500001"}, "eu": {"0", "3.5"}, "lab": {"2", "2"}, "shop": {"1.500001", "1.500001"}, "us": {"4", "4.000001"}} {
				if !strings.Contains(string(a.Body), `{"id":"`+org+`","meters":{`+fmt.Sprintf(tokens, want[0], want[1])) {
					t.Errorf("the statement does not say that %s consumed %v: %s", org, want, a.Body)
				}
			}
			if strings.Contains(string(a.Body), "other") || !strings.Contains(string(a.Body), `"month":"2026-10"`) || !strings.Contains(string(a.Body), `"root_id":"acme"`) {
				t.Errorf("the statement is %s", a.Body)
			}
			again := s.Must(200, "GET", path, op, "")
			if !bytes.Equal(a.Body, again.Body) {
				t.Error("the statement differs when it is read again")
			}

			// It is proved by its entry, and no other statement is.
			proof := s.Must(200, "GET", "/orgs/acme/children_audit/"+a.Header.Get("Orgd-Audit-Entry")+"/proof", op, "").Body
			key := strings.TrimSpace(string(s.Must(200, "GET", "/orgs/acme/audit_log/key", op, "").Body))
			report, err := audit.VerifyProof(proof, audit.Expect{Keys: []string{key}, Statements: [][]byte{a.Body}})
			if err != nil || !report.OK() || report.Statements != 1 {
				t.Errorf("the proof: %+v, %v", report, err)
			}
			carried, err := base64.StdEncoding.DecodeString(a.Header.Get("Orgd-Audit-Proof"))
			if err != nil {
				t.Error(err)
			}
			report, err = audit.VerifyProof(carried, audit.Expect{Keys: []string{key}, Statements: [][]byte{a.Body}})
			if err != nil || !report.OK() || report.Statements != 1 {
				t.Errorf("the proof that comes with the statement: %+v, %v", report, err)
			}
			forged := bytes.Replace(a.Body, []byte("1.500001"), []byte("1.400001"), 1)
			report, err = audit.VerifyProof(proof, audit.Expect{Keys: []string{key}, Statements: [][]byte{forged}})
			if err != nil || report.OK() {
				t.Errorf("a forged statement: %+v, %v", report, err)
			}
			export := s.Must(200, "GET", "/orgs/acme/audit_log/export", op, "").Body
			if report, err = audit.Verify(bytes.NewReader(export), audit.Expect{Keys: []string{key}, Statements: [][]byte{a.Body}}); err != nil || !report.OK() || report.Statements != 1 {
				t.Errorf("the export: %+v, %v", report, err)
			}

			// Who may read it.
			s.Must(409, "GET", "/orgs/eu/consumption/statement?month=2026-10", op, "")
			self, _ := s.NewKey("acme", `"permissions":["consumption:read"],"reach":"self"`)
			s.Must(403, "GET", path, self, "")
			weak, _ := s.NewKey("acme", `"permissions":["orgs:read"]`)
			s.Must(403, "GET", path, weak, "")
			reader, _ := s.NewKey("acme", `"permissions":["consumption:read"]`)
			s.Must(200, "GET", path, reader, "")
			for _, bad := range []string{"", "?month=", "?month=2026-13", "?month=2026-10&x=1"} {
				s.Must(400, "GET", "/orgs/acme/consumption/statement"+bad, op, "")
			}
			s.Must(404, "GET", "/orgs/acme/consumption/statement?month=2026-11", op, "")

			// What comes later belongs to a later month.
			send("shop", "100", 3)
			again = s.Must(200, "GET", path, op, "")
			if !bytes.Equal(a.Body, again.Body) {
				t.Errorf("a late event changed the statement: %s", again.Body)
			}
		})
	}
}

// A new root with the id of one that was purged has none of its statements.
func TestStatementOfPurgedRoot(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s, clock := metered(t, engine, "2026-10-14T12:00:00Z")
			op := s.OperatorKey
			clock.set(day("2026-11-05T00:00:00Z"))
			if err := s.CloseMonths(t.Context()); err != nil {
				t.Fatal(err)
			}
			path := "/orgs/other/consumption/statement?month=2026-10"
			s.Must(200, "GET", path, op, "")
			s.Must(200, "DELETE", "/orgs/other", op, "")
			clock.set(clock.now().Add(s.Config.RestoreWindow + time.Hour))
			if _, err := s.Tree.PurgeExpired(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.Must(201, "POST", "/orgs", op, `{"id":"other","name":"Another"}`)
			s.Must(404, "GET", path, op, "")
		})
	}
}
