package api_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/testkit"
)

func entryOf(t testing.TB, m testkit.FeedMessage) *audit.Entry {
	t.Helper()
	var e audit.Entry
	if err := json.Unmarshal([]byte(m.Data), &e); err != nil || m.Event != "" {
		t.Fatalf("the message %+v: %v", m, err)
	}
	return &e
}

// Whoever follows the audit trail, however often the connection is lost, gets
// every entry once, in the order of the log.
func TestFollowChildrenAudit(t *testing.T) {
	bothEngines(t, func(t *testing.T, s *testkit.Server) {
		f := newFixture(s, "f-")
		secret, _ := s.NewKey(f.prefix+"own", `"permissions":["admin"]`)
		path := "/orgs/" + f.prefix + "own/children_audit?follow=true"
		start := time.Now().UTC()
		feed := s.Follow(path, secret, "")

		const clients, each = 6, 40
		var wg sync.WaitGroup
		for c := range clients {
			wg.Go(func() {
				for i := range each {
					org := []string{"own", "child", "sibling", "other"}[(c+i)%4]
					if _, err := s.TryDo("PATCH", "/orgs/"+f.prefix+org, s.OperatorKey, fmt.Sprintf(`{"name":"Name %d %d"}`, c, i)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		worked := make(chan struct{})
		go func() { wg.Wait(); close(worked) }()

		var followed []*audit.Entry
		reopen := func() {
			feed.Close()
			for m := range feed.Messages {
				followed = append(followed, entryOf(t, m))
			}
			feed = s.Follow(path, secret, feed.LastID)
		}
		for more := true; more; {
			select {
			case <-worked:
				more = false
			case <-time.After(100 * time.Millisecond):
			}
			reopen()
		}
		want := clients * each * 3 / 4
		for deadline := time.Now().Add(20 * time.Second); len(followed) < want && time.Now().Before(deadline); {
			time.Sleep(50 * time.Millisecond)
			reopen()
		}
		feed.Close()
		check := func(what string, followed []*audit.Entry) {
			t.Helper()
			if len(followed) != want {
				t.Errorf("%s: %d entries, want %d", what, len(followed), want)
			}
			for i, e := range followed {
				if e.Action != "organization.updated" || e.OrgID == f.prefix+"sibling" {
					t.Errorf("%s: an entry %s of %s", what, e.Action, e.OrgID)
				}
				if i > 0 && e.Seq <= followed[i-1].Seq {
					t.Errorf("%s: entry %d after %d", what, e.Seq, followed[i-1].Seq)
				}
			}
		}
		check("followed", followed)

		// The same from a time in the past on, without a gap to the present.
		again := s.Follow(path+"&from="+start.Format("2006-01-02T15:04:05.000000Z")+"&action=organization.updated", secret, "")
		var since []*audit.Entry
		for len(since) < want {
			select {
			case m, ok := <-again.Messages:
				if !ok {
					t.Fatalf("the stream ended after %d entries", len(since))
				}
				since = append(since, entryOf(t, m))
			case <-time.After(10 * time.Second):
				t.Fatalf("%d entries came, want %d", len(since), want)
			}
		}
		again.Close()
		check("since", since)
	})
}

// A stream of the audit trail filters, refuses what it does not take, and ends
// with the right to read it.
func TestFollowChildrenAuditEnds(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	f := newFixture(s, "f-")
	own := "/orgs/" + f.prefix + "own"
	secret, id := s.NewKey(f.prefix+"own", `"permissions":["admin"]`)
	self, _ := s.NewKey(f.prefix+"own", `"permissions":["admin"],"reach":"self"`)
	for _, bad := range []string{"follow=false", "follow=true&limit=5", "follow=true&to=2026-01-01T00:00:00Z", "follow=true&cursor=x", "follow=true&org=..", "follow=", "follow=true&format=csv"} {
		s.Must(400, "GET", own+"/children_audit?"+bad, secret, "")
	}
	s.Must(400, "GET", own+"/children_audit?follow=true", secret, "", "Last-Event-ID", "17")
	s.Must(403, "GET", own+"/children_audit?follow=true&scope=children", self, "")

	access := s.Follow(own+"/access_log?follow=true", secret, "")
	access.Close()
	s.Must(400, "GET", own+"/children_audit?follow=true", secret, "", "Last-Event-ID", access.LastID) // of another stream

	feed := s.Follow(own+"/children_audit?follow=true&action=tag.added&scope=self&org="+f.prefix+"own", secret, "")
	tagged := s.Follow(own+"/children_audit?follow=true&scope=self", self, "")
	s.Must(200, "PATCH", "/orgs/"+f.prefix+"child", s.OperatorKey, `{"name":"x"}`)
	s.Must(200, "PUT", own+"/tags/blue", s.OperatorKey, "")
	select {
	case m := <-tagged.Messages:
		if e := entryOf(t, m); e.OrgID != f.prefix+"own" || e.Action != "organization.updated" {
			t.Errorf("the entry %+v", e)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came")
	}
	tagged.Close()
	s.Must(200, "DELETE", own+"/api_keys/"+id, s.OperatorKey, "")
	revoked := time.Now()
	for m := range feed.Messages {
		if m.Event != "problem" || !strings.Contains(m.Data, "unauthorized") {
			t.Errorf("the message %+v", m)
		}
	}
	if took := time.Since(revoked); took > 5*time.Second {
		t.Errorf("the stream went on for %v after its key was revoked", took)
	}
}

// The list, its pages, its filters and its streams show the same entries.
func TestChildrenAuditForms(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	op := s.OperatorKey
	f := newFixture(s, "f-")
	own := "/orgs/" + f.prefix + "own"
	for i := range 30 {
		s.Must(200, "PATCH", "/orgs/"+f.prefix+[]string{"own", "child"}[i%2], op, fmt.Sprintf(`{"name":"=Name %d"}`, i))
	}
	all := s.Must(200, "GET", own+"/children_audit?limit=1000", op, "").JSON().([]any)
	ids := func(entries []any) (list []string) {
		for _, e := range entries {
			list = append(list, e.(map[string]any)["id"].(string))
		}
		return list
	}
	var paged []string
	for path := own + "/children_audit?limit=7"; path != ""; {
		a := s.Must(200, "GET", path, op, "")
		paged = append(paged, ids(a.JSON().([]any))...)
		path = testkit.NextPage(a)
	}
	if !slices.Equal(paged, ids(all)) {
		t.Errorf("pages hold %d entries, the list %d", len(paged), len(all))
	}
	var lines []string
	for line := range strings.Lines(string(s.Must(200, "GET", own+"/children_audit", op, "", "Accept", "application/x-ndjson").Body)) {
		var e audit.Entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e.LeafHash == "" || len(e.Path) == 0 {
			t.Errorf("an entry without its place: %s", line)
		}
		lines = append(lines, e.ID)
	}
	if !slices.Equal(lines, ids(all)) {
		t.Errorf("NDJSON holds %d entries, the list %d", len(lines), len(all))
	}
	csv := string(s.Must(200, "GET", own+"/children_audit?format=csv", op, "").Body)
	if n := strings.Count(csv, "\r\n"); n != len(all)+1 {
		t.Errorf("CSV has %d lines for %d entries", n, len(all))
	}
	for _, e := range all[:3] {
		m := e.(map[string]any)
		one := s.Must(200, "GET", own+"/children_audit/"+m["id"].(string), op, "")
		if one.String("leaf_hash") != m["leaf_hash"] || one.JSON("seq") != m["seq"] {
			t.Errorf("an entry by itself is %s, in the list %v", one.Body, m)
		}
		changes, _ := m["changes"].([]any)
		if c, _ := changes[0].(map[string]any); c["pointer"] != "/name" || c["old"] == nil || c["new"] == nil {
			t.Errorf("changes %v", changes)
		}
	}
	// An entry of what is not below the organization does not exist for it.
	above := s.Must(200, "GET", "/orgs/"+f.prefix+"root/children_audit?scope=self", op, "").JSON().([]any)
	missing := s.Must(http.StatusNotFound, "GET", own+"/children_audit/"+ids(above)[0], op, "", "X-Request-Id", "req_1")
	absent := s.Must(http.StatusNotFound, "GET", own+"/children_audit/aud_none", op, "", "X-Request-Id", "req_1")
	if string(missing.Body) != string(absent.Body) {
		t.Errorf("%s\n%s", missing.Body, absent.Body)
	}
}
