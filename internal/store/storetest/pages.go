package storetest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/trail"
	"github.com/orgd/orgd/internal/usage"
)

// What is bounded in bytes is short where rows are large, has one row at least,
// and goes on with the next row, in every list that has pages.
func testPagesBounded(t *testing.T, s Store) {
	const n = 40
	size := func(i int) int { return i * i % 7 * 1000 } // some small, some large
	Plant(t, s, "r/")
	var orgs []*org.Organization
	var events []access.Event
	var adjustments []usage.Adjustment
	for i := range n {
		o := newOrg(fmt.Sprintf("r/c%02d/", i))
		o.Settings.Values = []byte(`{"a":"` + strings.Repeat("x", size(i)) + `"}`)
		o.Tags = []string{"red"}
		orgs = append(orgs, o)
		events = append(events, access.Event{ID: fmt.Sprintf("evt_%02d", i), RootID: "r", OrgID: "r", Timestamp: At(i), User: "u", Action: "A",
			Status: access.Success, Path: "/" + strings.Repeat("x", size(i))})
		adjustments = append(adjustments, usage.Adjustment{ID: fmt.Sprintf("adj_%02d", i), RootID: "r", OrgID: "r", Month: "2026-11", For: "2026-11",
			Meter: "m", Quantity: 1, Reason: strings.Repeat("x", size(i)), Origin: usage.FromActor, CreatedAt: Epoch})
	}
	insert(t, s, orgs...)
	flush(t, s, 1, events...)
	Write(t, s, func(tx testkit.Tx) error {
		for i := range n {
			k := newKey(fmt.Sprintf("key_%02d", i), "r/")
			k.Name = strings.Repeat("x", size(i))
			if err := tx.InsertKey(k); err != nil {
				return err
			}
		}
		head, err := tx.Lock("r")
		if err != nil {
			return err
		}
		for i := range n {
			r := audit.Record{RootID: "r", Seq: head.Size, ID: fmt.Sprintf("aud_%02d", i), Timestamp: At(i), OrgID: "r", Path: "r/", Action: "a.b",
				ActorID: "operator", Leaf: []byte("{}"), Values: []byte(`{"a":"` + strings.Repeat("x", size(i)) + `"}`)}
			head.Size++
			if err := tx.AppendAudit(head, []audit.Record{r}); err != nil {
				return err
			}
		}
		return tx.PutAdjustments(adjustments)
	})

	const limit, most = 25, 4000 // rows, bytes
	type page struct {
		ids  []string
		more bool
	}
	orgPage := func(q org.OrgQuery) func(tx testkit.Tx) (page, error) {
		return func(tx testkit.Tx) (page, error) {
			q.Limit, q.MaxBytes = limit, most
			p, err := tx.Orgs(q)
			q.After = p.Next
			return page{ids(p.Orgs), p.Next != nil}, err
		}
	}
	auditPage := func(q org.AuditQuery) func(tx testkit.Tx) (page, error) {
		q.RootID, q.OrgID, q.Path, q.Scope = "r", "r", "r/", org.ScopeSubtree
		return func(tx testkit.Tx) (p page, err error) {
			q.Limit, q.MaxBytes = limit, most
			a, err := tx.AuditEntries(q)
			for _, r := range a.Records {
				p.ids = append(p.ids, r.ID)
			}
			if q.Before = a.Next; q.Ascending {
				q.After = a.Next
			}
			p.more = a.Next >= 0
			return p, err
		}
	}
	aq := trail.AccessQuery{RootID: "r", OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, Limit: limit, MaxBytes: most}
	keyAfter, childAfter, feedAfter := "", "", int64(0)
	jq := metering.AdjustmentQuery{RootID: "r", OrgID: "r", Limit: limit, MaxBytes: most}
	hq := trail.HoldingQuery{RootID: "r", OrgID: "r", Path: "r/", Limit: limit, MaxBytes: most}
	for name, next := range map[string]func(tx testkit.Tx) (page, error){
		"children":             orgPage(org.OrgQuery{RootID: "r", Path: "r/", ParentID: "r"}),
		"descendants":          orgPage(org.OrgQuery{RootID: "r", Path: "r/"}),
		"by tag":               orgPage(org.OrgQuery{RootID: "r", Tag: "red"}),
		"by name":              orgPage(org.OrgQuery{RootID: "r", NamePrefix: "org c"}),
		"audit entries":        auditPage(org.AuditQuery{}),
		"oldest audit entries": auditPage(org.AuditQuery{Ascending: true}),
		"audit entries of":     auditPage(org.AuditQuery{Action: "a.b"}),
		"keys": func(tx testkit.Tx) (p page, err error) {
			keys, more, err := tx.Keys("r", keyAfter, limit, most)
			for _, k := range keys {
				p.ids, keyAfter = append(p.ids, k.ID), k.ID
			}
			p.more = more
			return p, err
		},
		"access events": func(tx testkit.Tx) (p page, err error) {
			a, err := tx.AccessEvents(aq)
			for _, e := range a.Events {
				p.ids = append(p.ids, e.ID)
			}
			if p.more = a.Next != nil; p.more {
				aq.Before = *a.Next
			}
			return p, err
		},
		"followed access events": func(tx testkit.Tx) (p page, err error) {
			f, err := tx.AccessFeed(trail.AccessQuery{RootID: "r", OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, Limit: limit, MaxBytes: most}, feedAfter)
			for _, e := range f.Events {
				p.ids = append(p.ids, e.ID)
			}
			feedAfter, p.more = f.Position, f.More
			return p, err
		},
		"adjustments": func(tx testkit.Tx) (p page, err error) {
			list, more, err := tx.Adjustments(jq)
			for _, a := range list {
				p.ids, jq.Before = append(p.ids, a.ID), metering.AdjustmentPosition{Month: a.Month, ID: a.ID}
			}
			p.more = more
			return p, err
		},
		"totals of children": func(tx testkit.Tx) (p page, err error) {
			list, more, err := tx.ChildTotals(metering.ChildQuery{RootID: "r", ParentID: "r", Month: "2026-11", Meter: "m", After: childAfter, Limit: limit, MaxBytes: 1000})
			for _, c := range list {
				p.ids, childAfter = append(p.ids, c.OrgID), c.OrgID
			}
			p.more = more
			return p, err
		},
		"organizations that hold": func(tx testkit.Tx) (p page, err error) {
			list, after, err := tx.OrgsHolding(trail.HoldingQuery{RootID: "r", OrgID: "r", Path: "r/", Needle: "red", After: hq.After, Limit: limit, MaxBytes: most})
			hq.After = after
			return page{ids(list), after != nil}, err
		},
	} {
		var all []string
		pages, long := 0, 0
		for more := true; more; pages++ {
			p := Get(t, s, next)
			if len(p.ids) == 0 && p.more || pages > n {
				t.Fatalf("%s: the page %d is empty and not the last", name, pages)
			}
			all, more, long = append(all, p.ids...), p.more, max(long, len(p.ids))
		}
		if sorted := slices.Sorted(slices.Values(all)); len(all) != n || len(slices.Compact(sorted)) != n {
			t.Errorf("%s: %d rows, want %d: %v", name, len(all), n, all)
		}
		if pages < 4 || long >= limit {
			t.Errorf("%s: %d pages, the longest of %d rows", name, pages, long)
		}
	}
}
