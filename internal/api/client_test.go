package api_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"

	"github.com/orgd/orgd/internal/testkit"
)

// tokens starts a server with the tree acme → eu and a meter of tokens that
// takes its quantity from the data of events.
func tokens(t *testing.T) (s *testkit.Server, key string) {
	s = testkit.Start(t, "sqlite")
	s.Must(200, "POST", "/orgs/import", s.OperatorKey, "id,parent_id,name\nacme,,Acme\neu,acme,EU\n", "Content-Type", "text/csv")
	s.Must(200, "PUT", "/orgs/acme/meters/tokens", s.OperatorKey, `{"unit":"tokens","aggregation":"sum","event_type":"llm.request","value":"/usage/total_tokens"}`)
	key, _ = s.NewKey("eu", `"permissions":["consumption:write"]`)
	return s, key
}

// The reference SDK of CloudEvents for Go sends to orgd in its three modes.
func TestCloudEventsGo(t *testing.T) {
	s, key := tokens(t)
	sink := s.URL + "/orgs/eu/consumption/events"
	c, err := cloudevents.NewClientHTTP(cloudevents.WithTarget(sink), cloudevents.WithHeader("Authorization", "Bearer "+key))
	if err != nil {
		t.Fatal(err)
	}
	event := func(id string) cloudevents.Event {
		e := cloudevents.NewEvent()
		e.SetID(id)
		e.SetSource("urn:test:go")
		e.SetType("llm.request")
		e.SetSubject("eu")
		e.SetTime(time.Now())
		e.SetExtension("tenant", "x")
		if err := e.SetData(cloudevents.ApplicationJSON, map[string]any{"usage": map[string]any{"total_tokens": 10}}); err != nil {
			t.Fatal(err)
		}
		return e
	}
	for range 2 {
		for mode, with := range map[string]func(context.Context) context.Context{
			"binary": cloudevents.WithEncodingBinary, "structured": cloudevents.WithEncodingStructured,
		} {
			if result := c.Send(with(t.Context()), event(mode)); cloudevents.IsUndelivered(result) || !cloudevents.IsACK(result) {
				t.Errorf("%s: %v", mode, result)
			}
		}
		req, err := cloudevents.NewHTTPRequestFromEvents(t.Context(), sink, []cloudevents.Event{event("batch-1"), event("batch-2")})
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		resp, err := http.DefaultClient.Do(req)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("batch: %v %v", resp, err)
		}
		resp.Body.Close()
	}
	month := time.Now().UTC().Format("2006-01")
	wantQuantities(t, s, month, "tokens", map[string]string{"eu": "40 0 40", "acme": "0 40 40"})
	bad := event("bad")
	bad.SetType("unknown")
	if result := c.Send(t.Context(), bad); cloudevents.IsACK(result) {
		t.Errorf("an event that nothing counts is accepted: %v", result)
	}
}

// The published npm clients of CloudEvents and of OpenMeter send to orgd as
// they are.
func TestNodeClients(t *testing.T) {
	npm := testkit.Programs(t, "npm")[0]
	dir := t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json", "send.js"} {
		b, err := os.ReadFile(filepath.Join("testdata", "clients", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run := func(name string, args ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--legacy-peer-deps", "--prefer-offline")
	s, key := tokens(t)
	run("node", "send.js", s.URL, key, "eu")
	month := time.Now().UTC().Format("2006-01")
	wantQuantities(t, s, month, "tokens", map[string]string{"eu": fmt.Sprint(5*10+0.75, " 0 ", 5*10+0.75), "acme": "0 50.75 50.75"})
	// Sent again they are the same.
	run("node", "send.js", s.URL, key, "eu")
	wantQuantities(t, s, month, "tokens", map[string]string{"acme": "0 50.75 50.75"})
	// The operator key serves a client for all organizations. The operator is
	// another sender, whose ids are its own.
	run("node", "send.js", s.URL, s.OperatorKey, "acme")
	wantQuantities(t, s, month, "tokens", map[string]string{"acme": "50.75 50.75 101.5"})
}
