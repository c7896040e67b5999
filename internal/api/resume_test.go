package api_test

import (
	"net/url"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// A stream goes on after the message that last_event_id names as it does after
// that of the header, which goes before it.
func TestFollowResumesByParameter(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"acme","name":"Acme"}`)
	key, _ := s.NewKey("acme", `"permissions":["admin"]`)
	for path, act := range map[string]func(tag string){
		"/orgs/acme/access_log?follow=true&action=LIST_TAGS": func(tag string) { s.Must(400, "GET", "/orgs/acme/tags?"+tag+"=1", key, "") },
		"/orgs/acme/children_audit?follow=true":              func(tag string) { s.Must(200, "PATCH", "/orgs/acme", key, `{"description":"`+tag+`"}`) },
	} {
		// read returns the first message, and the id of the last of n.
		read := func(path, lastID string, n int) (first, last string) {
			t.Helper()
			f := s.Follow(path, key, lastID)
			for i := range n {
				m, _ := f.Next(5 * time.Second)
				if i == 0 {
					first = m.Data
				}
			}
			f.Close()
			return first, f.LastID
		}
		f := s.Follow(path, key, "")
		act("one")
		f.Next(5 * time.Second)
		f.Close()
		start := f.LastID
		act("two")
		act("three")
		byHeader, end := read(path, start, 2)
		byParameter, _ := read(path+"&last_event_id="+url.QueryEscape(start), "", 2)
		if byHeader == "" || byHeader != byParameter {
			t.Errorf("%s goes on with %q by the header and with %q by the parameter", path, byHeader, byParameter)
		}
		// A browser comes back with the address that it has, and a later id.
		act("four")
		want, _ := read(path, end, 1)
		if got, _ := read(path+"&last_event_id="+url.QueryEscape(start), end, 1); got != want || got == byHeader {
			t.Errorf("%s goes on with %q by both, want %q", path, got, want)
		}
		for _, bad := range []string{"&last_event_id=", "&last_event_id=x", "&last_event_id=" + url.QueryEscape(start) + "&last_event_id=" + url.QueryEscape(start)} {
			s.Must(400, "GET", path+bad, key, "")
		}
	}
	s.Must(400, "GET", "/orgs/acme/access_log?last_event_id=x", key, "")
}
