package store_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/trail"
	"github.com/orgd/orgd/internal/usage"
)

// Whatever an organization has a great number of, and however many there are,
// no step of a purge changes more than it may; all steps together leave
// nothing, and the ancestors' totals as they were.
func TestPurgeStepsAreBounded(t *testing.T) {
	const (
		limit  = 300
		many   = 500
		purged = "r/top/"
	)
	begin := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	organization := func(path string, tags ...string) *org.Organization {
		ids := org.SplitPath(path)
		o := &org.Organization{ID: ids[len(ids)-1], RootID: ids[0], Path: path, Depth: len(ids) - 1, Name: "O", Type: org.TypeOrganization, Tags: tags,
			CreatedAt: begin, UpdatedAt: begin, Version: 1, Settings: org.Settings{Values: []byte("{}"), UpdatedAt: begin}}
		if len(ids) > 1 {
			o.ParentID = ids[len(ids)-2]
		}
		return o
	}
	for _, kind := range []string{store.SQLite, store.Postgres} {
		for _, top := range []string{"top", "r"} {
			t.Run(kind+" of "+top, func(t *testing.T) {
				var s *store.Store
				if kind == store.SQLite {
					s = openSQLite(t, t.TempDir(), store.Options{})
				} else {
					s = openPostgres(t, testkit.Postgres(t))
				}
				write := func(fn func(tx testkit.Tx) error) {
					t.Helper()
					if err := testkit.Whole(s).Write(t.Context(), fn); err != nil {
						t.Fatal(err)
					}
				}
				month := usage.MonthOf(begin)
				write(func(tx testkit.Tx) error {
					orgs := []*org.Organization{organization("r/"), organization("r/stays/"), organization(purged), organization(purged + "keys/"), organization(purged + "busy/")}
					for n := range many {
						orgs = append(orgs, organization(fmt.Sprintf("%sc%04d/", purged, n), fmt.Sprintf("a%d", n), fmt.Sprintf("b%d", n)), organization(fmt.Sprintf("r/stays/m%04d/", n)))
					}
					err := errors.Join(tx.InsertOrgs(orgs), tx.NewLog(&audit.Head{RootID: "r", LogID: "log"}))
					for n := 0; n < many && err == nil; n++ {
						k := &key.Key{ID: fmt.Sprintf("key_%04d", n), OrgID: "keys", RootID: "r", Name: "K", Reach: key.ReachSelf, Hint: "abcd", CreatedAt: begin,
							UpdatedAt: begin, SecretHash: []byte("x"), Version: 1}
						err = errors.Join(tx.InsertKey(k), tx.PutIdempotent("r", k.ID, "i", begin, &org.Replay{CreatedAt: begin}),
							tx.PutLimit(&usage.Limit{RootID: "r", OrgID: "busy", Meter: fmt.Sprintf("m%d", n), Enforcement: usage.Soft, UpdatedAt: begin}))
					}
					if err != nil {
						return err
					}
					var series []usage.Series
					for n := range many {
						series = append(series, usage.Series{RootID: "r", Period: string(month), OrgID: "busy", Meter: fmt.Sprintf("m%d", n)})
					}
					_, err = tx.States(series)
					return err
				})
				b := access.Batch{SpoolID: "spool", Position: access.Position{Segment: 1}}
				for n := range many {
					at := begin.Add(time.Duration(n) * time.Second)
					b.Events = append(b.Events, access.Event{RootID: "r", OrgID: "busy", ID: fmt.Sprint("e", n), Timestamp: at, User: "u", Action: "A", Status: access.Success})
					for _, path := range []string{fmt.Sprintf("%sc%04d/", purged, n), fmt.Sprintf("%sm%04d/", purged, n), purged + "busy/"} {
						b.Usage = append(b.Usage, access.Usage{RootID: "r", Path: path, At: at, Meter: fmt.Sprint("m", n), Quantity: 1})
					}
				}
				if err := s.Flush(t.Context(), b); err != nil {
					t.Fatal(err)
				}
				totals := func() (names map[string]usage.Decimal) {
					names = map[string]usage.Decimal{}
					if err := testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) error {
						page, err := tx.MonthTotals("r", month, usage.Total{}, 1_000_000)
						for _, x := range page {
							names[x.OrgID] += x.Total
						}
						return err
					}); err != nil {
						t.Fatal(err)
					}
					return names
				}
				before := totals()
				path := "r/"
				if top == "top" {
					path = purged
				}
				write(func(tx testkit.Tx) error {
					if _, err := tx.MarkDeleted("r", path, "del", begin); err != nil {
						return err
					}
					_, err := tx.BeginPurge("r", "del", begin)
					return err
				})
				var gone []string
				steps := 0
				for done := false; !done; steps++ {
					var some []string
					var rows int64
					write(func(tx testkit.Tx) (err error) {
						rows, err = store.Changes(tx, func() (err error) {
							some, done, err = tx.Purge("r", "del", limit, begin)
							return err
						})
						return err
					})
					if rows > 2*limit+1 {
						t.Errorf("step %d changed %d rows", steps, rows)
					}
					gone = append(gone, some...)
					if top == "top" && steps%5 == 0 {
						if now := totals(); now["r"] != before["r"] {
							t.Errorf("after step %d r has %s, before %s", steps, now["r"], before["r"])
						}
					}
				}
				if want := many + 3; top == "top" && len(gone) != want || gone[len(gone)-1] != top {
					t.Errorf("%d organizations went, the last was %s", len(gone), gone[len(gone)-1])
				}
				if at := slices.Index(gone, "busy"); at > slices.Index(gone, "top") {
					t.Error("an organization has outlived its parent")
				}
				after := totals()
				if top == "r" {
					if len(after) != 0 {
						t.Errorf("%d totals of a purged root are left", len(after))
					}
					return
				}
				for name, quantity := range before {
					if slices.Contains(gone, name) {
						if _, ok := after[name]; ok {
							t.Fatalf("%s is still there", name)
						}
						name += metering.FormerMark + "del"
					}
					if after[name] != quantity {
						t.Fatalf("%s has %s, and had %s", name, after[name], quantity)
					}
				}
				if err := testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) error {
					left, _, err := tx.ChildTotals(metering.ChildQuery{RootID: "r", ParentID: "top", Month: month, Meter: "m1", Limit: 10})
					if len(left) > 0 {
						t.Errorf("children of the id that is free: %v", left)
					}
					limits, err2 := tx.Limits("r", []string{"busy"})
					events, err3 := tx.AccessEvents(trail.AccessQuery{RootID: "r", OrgID: "busy", Path: "r/busy/", Scope: org.ScopeSelf, Limit: 10})
					_, err4 := tx.Idempotent("key_0001", "i", begin)
					if len(limits)+len(events.Events) > 0 || !errors.Is(err4, org.ErrAbsent) {
						t.Errorf("%d limits and %d events are left, %v", len(limits), len(events.Events), err4)
					}
					states, err5 := tx.DayTotals("r", "m0001", usage.DayOf(begin), usage.DayOf(begin))
					if len(states) != 1 || states[0].ParentID != "top"+metering.FormerMark+"del" {
						t.Errorf("the days of a former child: %v", states)
					}
					return errors.Join(err, err2, err3, err5)
				}); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}
