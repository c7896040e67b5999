package api_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// statements counts the statements of a store by what is in their text.
type statements struct {
	mu    sync.Mutex
	texts []string
}

func (s *statements) add(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.texts = append(s.texts, text)
}

// take returns how many statements there were since it was last called, and how
// many of them have one of the parts.
func (s *statements) take(parts ...string) (all, having int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range s.texts {
		for _, part := range parts {
			if strings.Contains(text, part) {
				having++
				break
			}
		}
	}
	all, s.texts = len(s.texts), nil
	return all, having
}

// A stream that has nothing to send asks the database nothing for seconds, and what
// happens then is in it soon nevertheless.
func TestAnIdleStreamLeavesTheDatabaseAlone(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		s := testkit.Start(t, engine, func(c *server.Config) { c.SignInterval = -1 })
		newFixture(s, "i-")
		secret, _ := s.NewKey("i-root", `"permissions":["admin"]`)
		for name, stream := range map[string]struct {
			path, asks, data string
			happen           func()
		}{
			"audit log": {"/orgs/i-root/children_audit?follow=true", "FROM audit_heads", `"organization.updated"`,
				func() {
					s.Must(200, "PATCH", "/orgs/i-own", secret, fmt.Sprintf(`{"name":"n%d"}`, time.Now().UnixNano()))
				}},
			"access log": {"/orgs/i-root/access_log?follow=true&scope=subtree&action=LIST_TAGS", "FROM access_heads", `"LIST_TAGS"`,
				func() { s.Must(200, "GET", "/orgs/i-own/tags", secret, "") }},
			"access log of a product": {"/orgs/i-root/access_log?follow=true&scope=subtree&action=PLAY", "FROM access_heads", `"PLAY"`,
				func() {
					s.Must(200, "POST", "/orgs/i-own/access_log", secret, `[{"user":"u","action":"PLAY","status":"SUCCESS"}]`)
				}},
		} {
			t.Run(name, func(t *testing.T) {
				feed := s.Follow(stream.path, secret, "")
				if err := s.Recorder.Drain(t.Context()); err != nil { // its own request
					t.Fatal(err)
				}
				time.Sleep(600 * time.Millisecond)
				var asked statements
				s.Store.Trace(asked.add)
				defer s.Store.Trace(nil)
				time.Sleep(2 * time.Second)
				all, own := asked.take(stream.asks)
				t.Logf("%d statements in 2 s, %d of them of the stream", all, own)
				if own > 0 {
					t.Errorf("an idle stream made %d statements in 2 s", own)
				}
				begun := time.Now()
				stream.happen()
				m, ok := feed.Next(2 * time.Second)
				if took := time.Since(begun); !ok || !strings.Contains(m.Data, stream.data) {
					t.Errorf("after %v came %v %s", took, ok, m.Data)
				} else {
					t.Logf("it came after %v", took)
				}
			})
		}
	})
}

// Where processes share a database, what one of them does is in the streams of another
// one as soon as ever.
func TestAStreamHearsOfOtherProcesses(t *testing.T) {
	url := testkit.Postgres(t)
	one := testkit.Start(t, "postgres", func(c *server.Config) { c.Database = url })
	two := testkit.Start(t, "postgres", func(c *server.Config) { c.Database, c.OperatorKey = url, one.OperatorKey })
	newFixture(one, "i-")
	audit := one.Follow("/orgs/i-root/children_audit?follow=true", one.OperatorKey, "")
	accesses := one.Follow("/orgs/i-root/access_log?follow=true&scope=subtree&action=LIST_TAGS", one.OperatorKey, "")
	for i := range 3 {
		two.Must(200, "PATCH", "/orgs/i-own", one.OperatorKey, fmt.Sprintf(`{"name":"n%d"}`, i))
		if m, ok := audit.Next(2 * time.Second); !ok || !strings.Contains(m.Data, `"organization.updated"`) {
			t.Errorf("the stream of the audit log has %v %s", ok, m.Data)
		}
		two.Must(200, "GET", "/orgs/i-own/tags", one.OperatorKey, "")
		if m, ok := accesses.Next(2 * time.Second); !ok || !strings.Contains(m.Data, `"LIST_TAGS"`) {
			t.Errorf("the stream of the access log has %v %s", ok, m.Data)
		}
	}
}
