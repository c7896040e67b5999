package storetest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/trail"
	"github.com/orgd/orgd/internal/usage"
)

func event(rootID, orgID string, n int) access.Event {
	return access.Event{ID: fmt.Sprintf("evt_%s_%05d", orgID, n), Timestamp: At(n), RootID: rootID, OrgID: orgID, User: "jo",
		Action: "GET_ORG", Status: access.Success, IP: "192.0.2.1", UserAgent: "curl", Method: "GET", Path: "/orgs/" + orgID,
		RequestID: fmt.Sprint("req-", n), APIKeyID: "key_1"}
}

func keyUse(id string, old bool, seconds int) access.KeyUse {
	return access.KeyUse{KeyID: id, Old: old, At: At(seconds), IP: fmt.Sprint("192.0.2.", seconds)}
}

// FlushBatch stores a batch that follows the spool's position.
func FlushBatch(t testing.TB, s Store, b access.Batch) {
	t.Helper()
	var err error
	if b.From, err = s.SpoolPosition(t.Context(), b.SpoolID); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

// flush stores events as the batch that ends a segment of the suite's spool.
func flush(t testing.TB, s Store, segment int64, events ...access.Event) {
	t.Helper()
	FlushBatch(t, s, access.Batch{SpoolID: "spool", Position: access.Position{Segment: segment}, Events: events})
}

func flushUses(t testing.TB, s Store, segment int64, uses ...access.KeyUse) {
	t.Helper()
	FlushBatch(t, s, access.Batch{SpoolID: "spool", Position: access.Position{Segment: segment}, Uses: uses})
}

func allEvents(t testing.TB, s Store, q trail.AccessQuery) []access.Event {
	t.Helper()
	var all []access.Event
	for {
		p := Get(t, s, func(tx testkit.Tx) (trail.AccessPage, error) { return tx.AccessEvents(q) })
		if len(p.Events) > q.Limit {
			t.Fatalf("a page of %d, limit %d", len(p.Events), q.Limit)
		}
		all = append(all, p.Events...)
		if p.Next == nil {
			return all
		}
		if *p.Next == q.Before {
			t.Fatalf("no progress after %v", q.Before)
		}
		q.Before = *p.Next
	}
}

func eventIDs(events []access.Event) []string {
	var list []string
	for _, e := range events {
		list = append(list, e.ID)
	}
	return list
}

func testAccessEvents(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/", "r/a/b/", "r/ab/", "q/")
	denied := event("r", "b", 4)
	denied.Status, denied.User, denied.Action, denied.IP, denied.APIKeyID = access.Denied, "al", "PUT_TAG", "::1", ""
	events := []access.Event{event("r", "r", 1), event("r", "a", 2), event("r", "b", 3), denied, event("r", "ab", 5), event("q", "q", 6)}
	flush(t, s, 1, events...)
	third := event("r", "b", 3)
	third.Seq, denied.Seq = 3, 4
	WantEqual(t, allEvents(t, s, trail.AccessQuery{RootID: "r", OrgID: "b", Path: "r/a/b/", Scope: org.ScopeSelf, Limit: 5}),
		[]access.Event{denied, third})
	for _, test := range []struct {
		name  string
		query trail.AccessQuery
		want  []int // positions in events
	}{
		{"self", trail.AccessQuery{OrgID: "a", Path: "r/a/", Scope: org.ScopeSelf}, []int{1}},
		{"subtree", trail.AccessQuery{OrgID: "a", Path: "r/a/", Scope: org.ScopeSubtree}, []int{3, 2, 1}},
		{"root", trail.AccessQuery{OrgID: "r", Path: "r/", Scope: org.ScopeSubtree}, []int{4, 3, 2, 1, 0}},
		{"from and to", trail.AccessQuery{OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, From: At(2), To: At(4)}, []int{2, 1}},
		{"user", trail.AccessQuery{OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, User: "al"}, []int{3}},
		{"action", trail.AccessQuery{OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, Action: "PUT_TAG"}, []int{3}},
		{"status", trail.AccessQuery{OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, Status: access.Success}, []int{4, 2, 1, 0}},
		{"ip", trail.AccessQuery{OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, IP: "::1"}, []int{3}},
		{"key", trail.AccessQuery{OrgID: "b", Path: "r/a/b/", Scope: org.ScopeSelf, APIKeyID: "key_1"}, []int{2}},
		{"nothing", trail.AccessQuery{OrgID: "r", Path: "r/", Scope: org.ScopeSelf, IP: "::2"}, nil},
	} {
		for _, limit := range []int{1, 2, 10} {
			t.Run(fmt.Sprintf("%s by %d", test.name, limit), func(t *testing.T) {
				test.query.RootID, test.query.Limit = "r", limit
				var want []string
				for _, i := range test.want {
					want = append(want, events[i].ID)
				}
				WantEqual(t, eventIDs(allEvents(t, s, test.query)), want)
			})
		}
	}
	t.Run("the tree as it is now", func(t *testing.T) {
		Write(t, s, func(tx testkit.Tx) error {
			_, err := tx.MoveSubtree("r", "b", "ab", "r/a/b/", "r/ab/b/", 0, At(9))
			return err
		})
		got := allEvents(t, s, trail.AccessQuery{RootID: "r", OrgID: "ab", Path: "r/ab/", Scope: org.ScopeSubtree, Limit: 10})
		WantEqual(t, eventIDs(got), []string{events[4].ID, events[3].ID, events[2].ID})
	})
}

func testAccessPages(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/")
	var all []access.Event
	var segment int64
	rapid.Check(t, func(rt *rapid.T) {
		var batch []access.Event
		for range rapid.IntRange(0, 5).Draw(rt, "events") {
			// Many events of one time: the order in which they came decides.
			e := event("r", rapid.SampledFrom(split("r a")).Draw(rt, "org"), len(all)+len(batch))
			e.Timestamp = At(rapid.IntRange(0, 3).Draw(rt, "time"))
			e.Seq = int64(len(all) + len(batch) + 1)
			batch = append(batch, e)
		}
		segment++
		flush(t, s, segment, batch...)
		all = append(all, batch...)
		slices.SortFunc(all, func(a, b access.Event) int {
			return cmp.Or(b.Timestamp.Compare(a.Timestamp), cmp.Compare(b.Seq, a.Seq))
		})
		q := trail.AccessQuery{RootID: "r", OrgID: "a", Path: "r/a/", Limit: rapid.IntRange(1, 7).Draw(rt, "limit"),
			Scope: rapid.SampledFrom([]org.Scope{org.ScopeSelf, org.ScopeSubtree}).Draw(rt, "scope")}
		var want []string
		for _, e := range all {
			if e.OrgID == "a" {
				want = append(want, e.ID)
			}
		}
		if got := eventIDs(allEvents(t, s, q)); !slices.Equal(got, want) {
			rt.Fatalf("%+v\n got %v\nwant %v", q, got, want)
		}
	})
}

func testAccessBounded(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/", "r/b/")
	events := []access.Event{event("r", "b", 0)}
	for i := range 6000 {
		events = append(events, event("r", "a", i+1))
	}
	flush(t, s, 1, events...)
	q := trail.AccessQuery{RootID: "r", OrgID: "b", Path: "r/b/", Scope: org.ScopeSubtree, Limit: 5}
	p := Get(t, s, func(tx testkit.Tx) (trail.AccessPage, error) { return tx.AccessEvents(q) })
	if len(p.Events) != 0 || p.Next == nil {
		t.Errorf("%d events, next %v: the page looked at too much or lost its place", len(p.Events), p.Next)
	}
	WantEqual(t, eventIDs(allEvents(t, s, q)), []string{events[0].ID})
	q.Scope = org.ScopeSelf // has its own index
	p = Get(t, s, func(tx testkit.Tx) (trail.AccessPage, error) { return tx.AccessEvents(q) })
	if len(p.Events) != 1 || p.Next != nil {
		t.Errorf("self: %d events, next %v", len(p.Events), p.Next)
	}
}

func testIdempotency(t *testing.T, s Store) {
	put := func(actor string, since, created time.Time, answer string) error {
		return s.Write(t.Context(), func(tx testkit.Tx) error {
			return tx.PutIdempotent("r", actor, "key", since, &org.Replay{RequestHash: []byte{0, 1}, Answer: []byte(answer), CreatedAt: created})
		})
	}
	find := func(actor string, since time.Time) (r *org.Replay, err error) {
		err = s.Read(t.Context(), func(tx testkit.Tx) error {
			r, err = tx.Idempotent(actor, "key", since)
			return err
		})
		return r, err
	}
	_, err := find("k", At(0))
	WantErr(t, err, org.ErrAbsent)
	WantErr(t, put("k", At(0), At(1), "one"), nil)
	WantErr(t, put("k", At(1), At(2), "two"), org.ErrReplay)
	r, err := find("k", At(1))
	WantErr(t, err, nil)
	WantEqual(t, r, &org.Replay{RequestHash: []byte{0, 1}, Answer: []byte("one"), CreatedAt: At(1)})
	_, err = find("k", At(2))
	WantErr(t, err, org.ErrAbsent)
	WantErr(t, put("j", At(0), At(1), "other actor"), nil)
	WantErr(t, put("k", At(2), At(3), "three"), nil)
	r, err = find("k", At(2))
	WantErr(t, err, nil)
	WantEqual(t, string(r.Answer), "three")
}

func testIdempotencyRace(t *testing.T, s Store) {
	var wg sync.WaitGroup
	errs := make([]error, 10)
	for i := range errs {
		wg.Go(func() {
			errs[i] = s.Write(context.Background(), func(tx testkit.Tx) error {
				if err := tx.InsertOrgs([]*org.Organization{newOrg(fmt.Sprintf("r%d/", i))}); err != nil {
					return err
				}
				return tx.PutIdempotent("r", "k", "key", At(0), &org.Replay{Answer: []byte{byte(i)}, CreatedAt: At(1)})
			})
		})
	}
	wg.Wait()
	won := 0
	for i, err := range errs {
		if err == nil {
			won++
			Read(t, s, func(tx testkit.Tx) error { _, err := tx.Org(fmt.Sprint("r", i)); return err })
		} else {
			WantErr(t, err, org.ErrReplay)
			absentOrg(t, s, fmt.Sprint("r", i))
		}
	}
	if won != 1 {
		t.Errorf("%d succeeded", won)
	}
}

// Usage is recorded now: what is recorded of a month that has closed is an
// adjustment.
var (
	recordedAt = time.Now()
	month      = usage.MonthOf(recordedAt)
)

// Use returns a recorded use of a meter.
func Use(path string, quantity usage.Decimal) access.Usage {
	return access.Usage{RootID: org.SplitPath(path)[0], Path: path, At: recordedAt, Meter: usage.APICalls, Quantity: quantity}
}

func totals(t testing.TB, s Store, rootID, orgID string) []usage.Total {
	t.Helper()
	return Get(t, s, func(tx testkit.Tx) ([]usage.Total, error) { return tx.Totals(rootID, orgID, month) })
}

func testFlush(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/", "r/a/b/")
	position := func() access.Position {
		p, err := s.SpoolPosition(t.Context(), "spool")
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	WantEqual(t, position(), access.Position{})
	batch := access.Batch{SpoolID: "spool", Position: access.Position{Segment: 1, Offset: 10},
		Events: []access.Event{event("r", "b", 1)},
		Usage:  []access.Usage{Use("r/a/b/", 1_000_000), Use("r/a/b/", 500_000), Use("r/a/", 1)}}
	want := map[string][]usage.Total{
		"r": {{RootID: "r", OrgID: "r", Month: month, Meter: usage.APICalls, Total: 1_500_001}},
		"a": {{RootID: "r", OrgID: "a", ParentID: "r", Month: month, Meter: usage.APICalls, Own: 1, Total: 1_500_001, Recorded: 1}},
		"b": {{RootID: "r", OrgID: "b", ParentID: "a", Month: month, Meter: usage.APICalls, Own: 1_500_000, Total: 1_500_000, Recorded: 1_500_000}},
	}
	check := func() {
		t.Helper()
		for id, total := range want {
			WantEqual(t, totals(t, s, "r", id), total)
		}
		WantEqual(t, len(allEvents(t, s, trail.AccessQuery{RootID: "r", OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, Limit: 10})), 1)
		WantEqual(t, position(), batch.Position)
	}
	FlushBatch(t, s, batch)
	check()
	FlushBatch(t, s, batch) // a replay
	check()
	for _, p := range []access.Position{{}, {Segment: 1, Offset: 9}, {Segment: 2}} {
		elsewhere := batch
		elsewhere.From, elsewhere.Position = p, access.Position{Segment: 3}
		if err := s.Flush(t.Context(), elsewhere); err == nil {
			t.Errorf("stored a batch that follows %v", p)
		}
		check()
	}
	unknown := access.Batch{SpoolID: "unknown", From: access.Position{Segment: 1}, Position: access.Position{Segment: 2}}
	if err := s.Flush(t.Context(), unknown); err == nil {
		t.Error("stored a batch that follows nothing")
	}

	batch.Position.Offset, batch.Events = 20, nil
	batch.Usage = []access.Usage{Use("r/b/", 2)} // after a move
	FlushBatch(t, s, batch)
	want["r"][0].Total += 2
	want["b"] = append(want["b"], usage.Total{RootID: "r", OrgID: "b", ParentID: "r", Month: month, Meter: usage.APICalls, Own: 2, Total: 2, Recorded: 2})
	check()
	WantEqual(t, Get(t, s, func(tx testkit.Tx) ([]usage.Total, error) { return tx.Totals("r", "b", month.Next()) }), []usage.Total(nil))
}

func testFlushKeyUse(t *testing.T, s Store) {
	Plant(t, s, "r/")
	Write(t, s, func(tx testkit.Tx) error { return tx.InsertKey(newKey("k", "r/")) })
	settled(t, s)
	generation := s.Generation("r")
	flushUses(t, s, 1, keyUse("k", false, 5), keyUse("k", false, 3), keyUse("k", true, 9), keyUse("absent", false, 1))
	flushUses(t, s, 2, keyUse("k", false, 4)) // late
	k := Get(t, s, func(tx testkit.Tx) (*key.Key, error) { return tx.Key("k") })
	want := newKey("k", "r/")
	last := At(5)
	want.LastUsedAt, want.LastUsedIP = &last, "192.0.2.5"
	WantEqual(t, k, want)
	WantEqual(t, s.Generation("r"), generation)
}

func testFlushText(t *testing.T, s Store) {
	Plant(t, s, "r/")
	e := event("r", "r", 1)
	e.User, e.UserAgent, e.Path = "nul\x00", "latin \xe9", "/ünï"
	flush(t, s, 1, e)
	got := allEvents(t, s, trail.AccessQuery{RootID: "r", OrgID: "r", Path: "r/", Scope: org.ScopeSelf, Limit: 10})
	e.User, e.UserAgent, e.Seq = "nul\uFFFD", "latin \uFFFD", 1
	WantEqual(t, got, []access.Event{e})
}

func testFlushConcurrent(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/", "r/b/")
	Write(t, s, func(tx testkit.Tx) error {
		for i := range 5 {
			if err := tx.InsertKey(newKey(fmt.Sprint("k", i), "r/")); err != nil {
				return err
			}
		}
		return nil
	})
	const spools, each = 4, 10
	var wg sync.WaitGroup
	for n := range spools {
		wg.Go(func() {
			for i := range each {
				b := access.Batch{SpoolID: fmt.Sprint("spool", n), From: access.Position{Offset: int64(i)}, Position: access.Position{Offset: int64(i + 1)},
					Usage: []access.Usage{Use("r/a/", 1), Use("r/b/", 1)}}
				for k := range 5 {
					b.Uses = append(b.Uses, keyUse(fmt.Sprint("k", (k+n)%5), k%2 == 0, i))
				}
				if err := s.Flush(context.Background(), b); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	WantEqual(t, totals(t, s, "r", "r")[0].Total, usage.Decimal(2*spools*each))
}

// testFlushRace: a batch that is flushed many times at once is stored once.
func testFlushRace(t *testing.T, s Store) {
	Plant(t, s, "r/")
	for n := range int64(10) {
		b := access.Batch{SpoolID: "spool", From: access.Position{Offset: n}, Position: access.Position{Offset: n + 1},
			Usage: []access.Usage{Use("r/", 1)}}
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if err := s.Flush(context.Background(), b); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		WantEqual(t, totals(t, s, "r", "r")[0].Total, usage.Decimal(n+1))
	}
}

// testUsageModel checks, for usage at random places of a tree that moves, that
// total = own + the totals of the children, and own what was recorded.
func testUsageModel(t *testing.T, s Store) {
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		root, spool := fmt.Sprintf("r%d", run), fmt.Sprintf("spool%d", run)
		paths := []string{root + "/", root + "/a/", root + "/a/b/", root + "/a/b/c/", root + "/d/", root + "/d/b/", root + "/d/b/c/"}
		own := map[string]usage.Decimal{}
		for i := range rapid.IntRange(1, 4).Draw(rt, "batches") {
			b := access.Batch{SpoolID: spool, Position: access.Position{Segment: 1, Offset: int64(i + 1)}}
			for range rapid.IntRange(0, 6).Draw(rt, "uses") {
				path := rapid.SampledFrom(paths).Draw(rt, "path")
				quantity := usage.Decimal(rapid.Int64Range(-5, 1_000_000_000).Draw(rt, "quantity"))
				b.Usage = append(b.Usage, Use(path, quantity))
				ids := org.SplitPath(path)
				own[ids[len(ids)-1]] += quantity
			}
			FlushBatch(t, s, b)
		}
		all := map[string][]usage.Total{}
		for _, id := range []string{root, "a", "b", "c", "d"} {
			all[id] = totals(t, s, root, id)
		}
		for id, list := range all {
			var sum, total, below usage.Decimal
			for _, x := range list {
				sum, total = sum+x.Own, total+x.Total
			}
			for _, children := range all {
				for _, x := range children {
					if x.ParentID == id {
						below += x.Total
					}
				}
			}
			if sum != own[id] || total != sum+below {
				rt.Fatalf("%s: own %d, recorded %d; total %d, children %d", id, sum, own[id], total, below)
			}
		}
	})
}

// testAccessFeed: whoever goes by the order in which events became visible
// gets every event once, also while several spools are stored at the same
// time, and whatever times the events have.
func testAccessFeed(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/", "q/")
	const spools, batches, each = 4, 12, 7
	var wg sync.WaitGroup
	for n := range spools {
		wg.Go(func() {
			for i := range batches {
				b := access.Batch{SpoolID: fmt.Sprint("spool", n), From: access.Position{Offset: int64(i)}, Position: access.Position{Offset: int64(i + 1)}}
				for k := range each {
					number := (n*batches+i)*each + k
					e := event("r", split("r a")[k%2], number)
					e.Timestamp = At(number * 7919 % 1000)
					b.Events = append(b.Events, e, event("q", "q", number))
				}
				if err := s.Flush(context.Background(), b); err != nil {
					t.Error(err)
				}
			}
		})
	}
	stored := make(chan struct{})
	go func() {
		wg.Wait()
		close(stored)
	}()
	for _, query := range []trail.AccessQuery{
		{RootID: "r", OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, Limit: 5},
		{RootID: "r", OrgID: "a", Path: "r/a/", Scope: org.ScopeSubtree, Limit: 3},
		{RootID: "r", OrgID: "a", Path: "r/a/", Scope: org.ScopeSelf, Limit: 1000},
		{RootID: "r", OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, IP: "192.0.2.9", Limit: 5},
	} {
		seen := map[string]bool{}
		var position int64
		for last := false; ; {
			feed := Get(t, s, func(tx testkit.Tx) (trail.AccessFeed, error) { return tx.AccessFeed(query, position) })
			for _, e := range feed.Events {
				if e.Seq <= position || e.Seq > feed.Position || seen[e.ID] {
					t.Fatalf("%+v: event %s with number %d after %d, position %d", query, e.ID, e.Seq, position, feed.Position)
				}
				position = e.Seq
				seen[e.ID] = true
			}
			position = feed.Position
			if last && !feed.More {
				break
			}
			select {
			case <-stored:
				last = true
			default:
			}
		}
		want := allEvents(t, s, query)
		if len(seen) != len(want) {
			t.Errorf("%+v: followed %d events of %d", query, len(seen), len(want))
		}
		if query.Path == "r/" && query.IP == "" && len(want) != spools*batches*each {
			t.Errorf("%d events are stored", len(want))
		}
		WantEqual(t, position, Get(t, s, func(tx testkit.Tx) (int64, error) { return tx.AccessHead("r") }))
	}
	WantEqual(t, Get(t, s, func(tx testkit.Tx) (int64, error) { return tx.AccessHead("absent") }), int64(0))
}

// testAccessFeedBounded: a step of a feed that finds nothing looks at a
// bounded number of events and gets on.
func testAccessFeedBounded(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/", "r/b/")
	var events []access.Event
	for i := range 6000 {
		events = append(events, event("r", "a", i))
	}
	flush(t, s, 1, append(events, event("r", "b", 7000))...)
	q := trail.AccessQuery{RootID: "r", OrgID: "b", Path: "r/b/", Scope: org.ScopeSubtree, Limit: 5}
	feed := Get(t, s, func(tx testkit.Tx) (trail.AccessFeed, error) { return tx.AccessFeed(q, 0) })
	if len(feed.Events) != 0 || !feed.More || feed.Position <= 0 || feed.Position >= 6001 {
		t.Fatalf("the first step: %+v", feed)
	}
	feed = Get(t, s, func(tx testkit.Tx) (trail.AccessFeed, error) { return tx.AccessFeed(q, feed.Position) })
	WantEqual(t, eventIDs(feed.Events), []string{event("r", "b", 7000).ID})
	if feed.More || feed.Position != 6001 {
		t.Errorf("the second step: position %d, more %v", feed.Position, feed.More)
	}
}

// Incoming returns an event that is sent in.
func Incoming(orgID, id string, seconds int) trail.IncomingEvent {
	e := trail.IncomingEvent{Event: event("r", orgID, seconds), Named: id != ""}
	if e.Named {
		e.ID = id
	}
	return e
}

func ingest(t testing.TB, s Store, events ...trail.IncomingEvent) (duplicates int64) {
	t.Helper()
	return IngestFrom(t, s, "r", events...)
}

// IngestFrom has the store take events that somebody sends in.
func IngestFrom(t testing.TB, s Store, sender string, events ...trail.IncomingEvent) (duplicates int64) {
	t.Helper()
	Write(t, s, func(tx testkit.Tx) (err error) {
		duplicates, err = tx.InsertAccessEvents("r", sender, events)
		return err
	})
	return duplicates
}

// testAccessSenders: what one sender has called its events says nothing about
// those of another, before and after its ids have expired.
func testAccessSenders(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/", "r/b/")
	events := []trail.IncomingEvent{Incoming("a", "one", 1), Incoming("a", "two", 2), Incoming("a", "three", 3)}
	WantEqual(t, IngestFrom(t, s, "a", events...), int64(0))
	WantEqual(t, IngestFrom(t, s, "b", events[1:]...), int64(0))
	WantEqual(t, IngestFrom(t, s, "/operator", events...), int64(0))
	WantEqual(t, IngestFrom(t, s, "a", events...), int64(3))
	WantEqual(t, IngestFrom(t, s, "b", events...), int64(2))
	q := trail.AccessQuery{RootID: "r", OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, Limit: 100}
	WantEqual(t, eventIDs(allEvents(t, s, q)), split("three three three two two two one one one"))
	for range 6 {
		Write(t, s, func(tx testkit.Tx) error { _, err := tx.ExpireAccess("r", At(3), At(3), 2); return err })
	}
	WantEqual(t, eventIDs(allEvents(t, s, q)), split("three three three"))
	WantEqual(t, IngestFrom(t, s, "a", events...), int64(1))
	WantEqual(t, IngestFrom(t, s, "b", events...), int64(1))
}

// testAccessIngest: a sender's id is taken once per root, whatever the times of
// the events, and events without one are always stored.
func testAccessIngest(t *testing.T, s Store) {
	Plant(t, s, "r/", "r/a/", "q/")
	flush(t, s, 1, event("r", "r", 0))
	WantEqual(t, ingest(t, s, Incoming("a", "one", 1), Incoming("r", "", 2), Incoming("a", "two", 3), Incoming("a", "one", 4)), int64(1))
	WantEqual(t, ingest(t, s, Incoming("a", "two", 5), Incoming("r", "one", 1), Incoming("a", "three", 6)), int64(2))
	WantEqual(t, ingest(t, s, Incoming("r", "", 2)), int64(0))
	WantEqual(t, ingest(t, s), int64(0))
	Write(t, s, func(tx testkit.Tx) error {
		other := Incoming("q", "one", 1)
		other.RootID = "q"
		n, err := tx.InsertAccessEvents("q", "r", []trail.IncomingEvent{other})
		WantEqual(t, n, int64(0))
		return err
	})
	q := trail.AccessQuery{RootID: "r", OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, Limit: 3}
	got := eventIDs(allEvents(t, s, q))
	second := event("r", "r", 2).ID
	WantEqual(t, got, []string{"three", "two", second, second, "one", event("r", "r", 0).ID})
	feed := Get(t, s, func(tx testkit.Tx) (trail.AccessFeed, error) { return tx.AccessFeed(q, 0) })
	WantEqual(t, eventIDs(feed.Events), []string{event("r", "r", 0).ID, "one", second})
	if err := s.Write(t.Context(), func(tx testkit.Tx) error {
		if _, err := tx.InsertAccessEvents("r", "r", []trail.IncomingEvent{Incoming("r", "four", 1)}); err != nil {
			return err
		}
		return org.ErrStale
	}); err != org.ErrStale {
		t.Fatal(err)
	}
	WantEqual(t, ingest(t, s, Incoming("r", "four", 9)), int64(0))
	WantEqual(t, Get(t, s, func(tx testkit.Tx) ([]string, error) { return tx.AccessRoots("", 5) }), []string{"q", "r"})
	WantEqual(t, Get(t, s, func(tx testkit.Tx) ([]string, error) { return tx.AccessRoots("", 1) }), []string{"q"})
	WantEqual(t, Get(t, s, func(tx testkit.Tx) ([]string, error) { return tx.AccessRoots("q", 5) }), []string{"r"})
}

// testAccessIngestRace: of the same events, sent many times at once in
// different orders, each is stored once.
func testAccessIngestRace(t *testing.T, s Store) {
	Plant(t, s, "r/")
	const clients, events = 6, 40
	var accepted atomic.Int64
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			var batch []trail.IncomingEvent
			for i := range events {
				n := (i*7 + c*13) % events
				batch = append(batch, Incoming("r", fmt.Sprint("id-", n), n))
			}
			if err := s.Write(context.Background(), func(tx testkit.Tx) error {
				n, err := tx.InsertAccessEvents("r", "r", batch)
				if err == nil {
					accepted.Add(events - n)
				}
				return err
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got := allEvents(t, s, trail.AccessQuery{RootID: "r", OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, Limit: 100})
	WantEqual(t, len(got), events)
	WantEqual(t, accepted.Load(), int64(events))
}

// testAccessExpiry: rows are removed from the oldest on, so many at a time, of
// one root only, and an id is free again once its event has expired.
func testAccessExpiry(t *testing.T, s Store) {
	Plant(t, s, "r/", "q/")
	flush(t, s, 1, event("q", "q", 1))
	var events []trail.IncomingEvent
	for i := range 25 {
		// Some have the same time: a step may end between them.
		events = append(events, Incoming("r", fmt.Sprint("id-", i), i/3))
	}
	ingest(t, s, events...)
	expire := func(events, claims time.Time, limit int) (n int64) {
		t.Helper()
		Write(t, s, func(tx testkit.Tx) (err error) {
			n, err = tx.ExpireAccess("r", events, claims, limit)
			return err
		})
		return n
	}
	q := trail.AccessQuery{RootID: "r", OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, Limit: 100}
	WantEqual(t, expire(At(0), At(0), 10), int64(0))
	WantEqual(t, expire(At(5), At(0), 10), int64(10))
	WantEqual(t, len(allEvents(t, s, q)), 15)
	WantEqual(t, ingest(t, s, events[0]), int64(1))
	WantEqual(t, expire(At(5), At(5), 10), int64(10))
	WantEqual(t, expire(At(5), At(5), 10), int64(5))
	WantEqual(t, expire(At(5), At(5), 10), int64(0))
	WantEqual(t, len(allEvents(t, s, q)), 10)
	WantEqual(t, ingest(t, s, events[0], events[14], events[15]), int64(1))
	WantEqual(t, len(allEvents(t, s, trail.AccessQuery{RootID: "q", OrgID: "q", Path: "q/", Scope: org.ScopeSubtree, Limit: 5})), 1)
}

func testAccessRetention(t *testing.T, s Store) {
	Plant(t, s, "r/")
	find := func() (*trail.AccessRetention, error) {
		var r *trail.AccessRetention
		err := s.Read(t.Context(), func(tx testkit.Tx) (err error) {
			r, err = tx.AccessRetention("r")
			return err
		})
		return r, err
	}
	_, err := find()
	WantErr(t, err, org.ErrAbsent)
	for _, want := range []*trail.AccessRetention{{RootID: "r", Days: 30, UpdatedAt: At(1)}, {RootID: "r", Days: 40, UpdatedAt: At(2)}} {
		Write(t, s, func(tx testkit.Tx) error { return tx.PutAccessRetention(want) })
		got, err := find()
		WantErr(t, err, nil)
		WantEqual(t, got, want)
	}
}

// testPartition: whatever months there are partitions for, every event has its
// place and is found, and whole months that have expired go.
func testPartition(t *testing.T, s Store) {
	Plant(t, s, "r/")
	now := Epoch
	if _, err := s.Partition(t.Context(), now, now.AddDate(-1, 0, 0)); err != nil {
		t.Fatal(err)
	}
	var events []access.Event
	for i, months := range []int{-140, -14, -13, -1, 0, 1, 2, 3, 4, 40} {
		e := event("r", "r", i)
		e.Timestamp = now.AddDate(0, months, 0)
		events = append(events, e)
	}
	flush(t, s, 1, events...)
	q := trail.AccessQuery{RootID: "r", OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, Limit: 3}
	WantEqual(t, len(allEvents(t, s, q)), len(events))
	// Later on: this month and the last are partitions by now.
	later := now.AddDate(0, 2, 0)
	floor, err := s.Partition(t.Context(), later, later)
	if err != nil {
		t.Fatal(err)
	}
	if floor.After(later) || later.Sub(floor) > 31*24*time.Hour {
		t.Errorf("the floor is %v", floor)
	}
	for n := int64(1); n > 0; {
		Write(t, s, func(tx testkit.Tx) (err error) {
			n, err = tx.ExpireAccess("r", floor, later, 2)
			return err
		})
	}
	left := allEvents(t, s, q)
	for _, e := range left {
		if e.Timestamp.Before(floor) {
			t.Errorf("an event of %v is left", e.Timestamp)
		}
	}
	q.From = later
	WantEqual(t, len(allEvents(t, s, q)), 4)
}
