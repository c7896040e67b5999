//go:build linux

package faults

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orgd/orgd/client"
	"github.com/orgd/orgd/internal/audit"
)

// outcome is what a client knows of a request that it has made.
type outcome int

const (
	acknowledged outcome = iota // a 2xx
	refused                     // it was told that nothing was changed, or reached nobody
	unknown                     // told so, or no answer
)

// The kinds of requests.
const (
	change = "change" // a PATCH with a description that no other has
	event  = "event"  // an access event that is sent
	read   = "read"
)

// request is what a client sent, and what came of it.
type request struct {
	kind, org, id string
	outcome       outcome
	answered      time.Time
	position      int  // of the disk, when the answer was there
	sentAgain     bool // by net/http, which repeats a read that got no answer
}

// journal is what all clients of a test sent.
type journal struct {
	mu       sync.Mutex
	requests []request
	strange  map[string]int // answers that no client should get, such as 500
	position func() int
	// started is the number of the load, so that its names are its own.
	started atomic.Int64
}

func newJournal() *journal {
	return &journal{strange: map[string]int{}, position: func() int { return 0 }}
}

func (j *journal) add(r request) {
	r.answered, r.position = time.Now(), j.position()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.requests = append(j.requests, r)
}

// all returns what was sent before a position of the disk had been reached.
func (j *journal) all() []request {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]request(nil), j.requests...)
}

// count returns how many changes and events were acknowledged so far.
func (j *journal) count() (n int) {
	for _, r := range j.all() {
		if r.outcome == acknowledged && r.kind != read {
			n++
		}
	}
	return n
}

// credulous returns the journal of a client that takes every request for done
// that it has sent.
func (j *journal) credulous() *journal {
	out := newJournal()
	out.requests = j.all()
	for i := range out.requests {
		out.requests[i].outcome = acknowledged
	}
	return out
}

// world is what the clients work in: some roots, each with a key of its own and
// organizations for its clients.
type world struct {
	operator string
	keys     map[string]*client.Key // by root
	vkeys    map[string]string      // verifier keys of the audit logs, by root
	orgs     []string               // one for each client
	roots    []string
	kinds    []string // what clients do, one after the other
}

func (w *world) rootOf(org string) string { root, _, _ := strings.Cut(org, "-"); return root }

// makeWorld makes roots with clients.
func makeWorld(t *testing.T, p *process, roots, clients int) *world {
	t.Helper()
	w := &world{operator: p.key, keys: map[string]*client.Key{}, vkeys: map[string]string{}, kinds: []string{change, read, event, change}}
	c := client.New(p.url, p.key)
	ctx := t.Context()
	for n := range roots {
		id := fmt.Sprintf("r%d", n)
		if _, err := c.CreateOrg(ctx, client.OrgCreate{ID: id, Name: "Root"}); err != nil {
			t.Fatal(err)
		}
		k, err := c.CreateKey(ctx, id, client.KeyCreate{Name: "worker", Permissions: []string{"write"}})
		if err != nil {
			t.Fatal(err)
		}
		vkey, err := c.AuditKey(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		w.keys[id], w.vkeys[id], w.roots = k, vkey, append(w.roots, id)
	}
	for n := range clients {
		root := w.roots[n%roots]
		id := fmt.Sprintf("%s-c%d", root, n)
		if _, err := c.CreateOrg(ctx, client.OrgCreate{ID: id, Name: "Client", ParentID: root}); err != nil {
			t.Fatal(err)
		}
		w.orgs = append(w.orgs, id)
	}
	return w
}

// load lets all clients work, each on its organization with one request after
// the other, until stop is called, which returns when the last one is answered.
// url says where.
func (w *world) load(j *journal, url func() string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	number := j.started.Add(1)
	var wg sync.WaitGroup
	for _, org := range w.orgs {
		wg.Go(func() {
			h := &http.Client{Transport: &http.Transport{}, Timeout: 15 * time.Second}
			defer h.CloseIdleConnections()
			for n := 0; ctx.Err() == nil; n++ {
				id := fmt.Sprintf("l%d-%s-%d", number, org, n)
				r := request{kind: w.kinds[n%len(w.kinds)], org: org, id: id}
				r.outcome = j.send(h, url(), w.keys[w.rootOf(org)].Secret, &r)
				j.add(r)
				if r.outcome != acknowledged {
					time.Sleep(20 * time.Millisecond)
				}
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

// send makes one request and returns what its client knows of it.
func (j *journal) send(h *http.Client, url, key string, r *request) outcome {
	method, path, body := "GET", "/orgs/"+r.org, ""
	switch r.kind {
	case change:
		method, body = "PATCH", fmt.Sprintf(`{"description":%q}`, r.id)
	case event:
		method, path = "POST", path+"/access_log"
		body = fmt.Sprintf(`{"id":%q,"user":"jo","action":"SENT","status":"SUCCESS"}`, r.id)
	}
	req, err := http.NewRequest(method, url+path, strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("X-Request-Id", r.id)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	sent := 0
	resp, err := h.Do(req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{WroteHeaders: func() { sent++ }})))
	r.sentAgain = sent > 1
	if err != nil {
		var dial *net.OpError
		if errors.As(err, &dial) && dial.Op == "dial" {
			return refused
		}
		return unknown
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if resp.StatusCode < 300 && err == nil {
		return acknowledged
	}
	var problem struct{ Code, Detail string }
	json.Unmarshal(answer, &problem)
	switch {
	case err != nil || resp.StatusCode < 300:
		return unknown
	case problem.Code == "unavailable" || problem.Code == "storage_full" || problem.Code == "quota_exceeded" || problem.Code == "rate_limited":
		return refused
	case problem.Code == "outcome_unknown":
		return unknown
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.strange[fmt.Sprintf("%s %d %s", r.kind, resp.StatusCode, cmp.Or(problem.Code, "without a code"))]++
	return unknown
}

// skeptical returns the journal of a client that takes nothing for done that it
// was not told.
func (j *journal) skeptical() *journal {
	out := newJournal()
	out.requests = j.all()
	for i, r := range out.requests {
		if r.outcome == unknown {
			out.requests[i].outcome = refused
		}
	}
	return out
}

// found is what a check has found.
type found struct {
	acknowledged, lost, twice int
	denied                    int // refused, and yet made
	foreign                   int // that nobody has sent
	unknown, unknownMade      int
	unlogged                  int // answered requests that the access log lacks
	broken                    int // servers that do not start, or contradict themselves
	why                       string
}

func (f found) String() string {
	return fmt.Sprintf("%d acknowledged: %d lost, %d twice; %d refused but made, %d that nobody sent, %d unknown of which %d made, %d requests not logged, %d broken %s",
		f.acknowledged, f.lost, f.twice, f.denied, f.foreign, f.unknown, f.unknownMade, f.unlogged, f.broken, f.why)
}

func (f *found) add(g found) {
	f.acknowledged += g.acknowledged
	f.lost += g.lost
	f.twice += g.twice
	f.denied += g.denied
	f.foreign += g.foreign
	f.unknown += g.unknown
	f.unknownMade += g.unknownMade
	f.unlogged += g.unlogged
	f.broken += g.broken
	if len(f.why) < 2000 {
		f.why += g.why
	}
}

func (f *found) breaks(format string, args ...any) {
	f.broken++
	f.why += "; " + fmt.Sprintf(format, args...)
}

// until bounds what must be there.
type until struct {
	position int       // of the disk: answers from before it
	logged   time.Time // requests that were answered before it are logged
}

// everything must be there.
func everything() until { return until{1 << 60, time.Now()} }

// state is what a server says it has.
type state struct {
	changes, events, logged map[string]int
}

// check compares what clients were answered with what a server has.
func (w *world) check(j *journal, url string, u until) (f found) {
	var s *state
	for begin := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		var err error
		f = found{}
		if s, err = w.state(url, &f); err == nil {
			break
		}
		// What was recorded reaches the database in a moment, if it can.
		var e *client.Error
		if errors.As(err, &e) && e.Status == 503 && time.Since(begin) < patience {
			continue
		}
		return w.nothing(j, u, err)
	}
	sent := map[string]bool{}
	for _, r := range j.all() {
		sent[r.id] = true
		if r.outcome == acknowledged && r.answered.Before(u.logged) && r.position <= u.position && s.logged[r.id] == 0 {
			f.unlogged++
		}
		if s.logged[r.id] > 1 && !r.sentAgain {
			f.twice++
		}
		made := s.changes[r.id]
		if r.kind == event {
			made = s.events[r.id]
		} else if r.kind == read {
			continue
		}
		if made > 1 {
			f.twice++
		}
		if r.position > u.position {
			continue
		}
		switch r.outcome {
		case acknowledged:
			f.acknowledged++
			if made == 0 {
				f.lost++
			}
		case refused:
			if made > 0 {
				f.denied++
				f.why += "; refused and made: " + r.kind + " " + r.id
			}
		case unknown:
			f.unknown++
			f.unknownMade += min(made, 1)
		}
	}
	for _, m := range []map[string]int{s.changes, s.events} {
		for id := range m {
			if !sent[id] {
				f.foreign++
			}
		}
	}
	return f
}

// patience is how long a server may answer with 503 after it was started on
// what a fault has left.
const patience = 20 * time.Second

// nothing is what is found where there is no server, or none that answers.
func (w *world) nothing(j *journal, u until, why error) (f found) {
	for _, r := range j.all() {
		if r.kind != read && r.outcome == acknowledged && r.position <= u.position {
			f.acknowledged++
			f.lost++
		}
	}
	f.breaks("%v", why)
	return f
}

// state reads all that a server has, and checks that it agrees with itself: the
// newest entry of the audit trail is the state, requests are counted as often
// as they are logged, and the exported audit log holds.
func (w *world) state(url string, f *found) (*state, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := client.New(url, w.operator)
	s := &state{map[string]int{}, map[string]int{}, map[string]int{}}
	for _, root := range w.roots {
		newest := map[string]string{}
		for e, err := range c.ChildrenAudit(ctx, root, client.AuditQuery{Action: "organization.updated"}) {
			if err != nil {
				return nil, fmt.Errorf("the audit trail of %s: %w", root, err)
			}
			for _, change := range e.Changes {
				var text string
				if change.Pointer == "/description" && json.Unmarshal(change.New, &text) == nil {
					s.changes[text]++
					if newest[e.OrgID] == "" {
						newest[e.OrgID] = text
					}
				}
			}
		}
		for _, id := range w.orgs {
			if w.rootOf(id) != root {
				continue
			}
			o, err := c.Org(ctx, id)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", id, err)
			}
			if o.Description != newest[id] {
				f.breaks("%s is %q, by the audit trail %q", id, o.Description, newest[id])
			}
		}
		logged, succeeded := int64(0), int64(0)
		for e, err := range c.AccessLog(ctx, root, client.AccessQuery{Scope: "subtree"}) {
			if err != nil {
				return nil, fmt.Errorf("the access log of %s: %w", root, err)
			}
			if e.Action == "SENT" {
				s.events[e.ID]++
			} else if e.APIKeyID == w.keys[root].ID {
				s.logged[e.RequestID]++
				if logged++; e.Status == "SUCCESS" {
					succeeded++
				}
			}
		}
		usage, err := c.Consumption(ctx, root, "")
		if err != nil {
			return nil, fmt.Errorf("the consumption of %s: %w", root, err)
		}
		// A request that was answered with 5xx is logged and not counted.
		if n, err := strconv.ParseInt(cmp.Or(usage.Meters["api_calls"].Total.String(), "0"), 10, 64); err != nil || n < succeeded || n > logged {
			f.breaks("%d requests of %s are logged, of which %d succeeded; %d are counted", logged, root, succeeded, n)
		}
		if err := w.verify(ctx, c, root); err != nil {
			f.breaks("the audit log of %s: %v", root, err)
		}
	}
	return s, nil
}

// verify checks the export of a root's audit log, as a customer can.
func (w *world) verify(ctx context.Context, c *client.Client, root string) error {
	var export bytes.Buffer
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		export.Reset()
		err := c.AuditExport(ctx, root, 0, 0, &export)
		if err == nil {
			break
		}
		if time.Since(begin) > 10*time.Second {
			return err
		}
	}
	report, err := audit.Verify(&export, audit.Expect{Keys: []string{w.vkeys[root]}})
	if err == nil && !report.OK() {
		err = fmt.Errorf("%+v", report.Failures)
	}
	return err
}
