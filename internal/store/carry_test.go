package store_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/trail"
	"github.com/orgd/orgd/internal/usage"
)

// A database of the first orgd, whose migrations were 1 and 3, goes on with
// all that it holds.
func TestOldDatabaseIsCarriedOn(t *testing.T) {
	for _, kind := range []string{store.SQLite, store.Postgres} {
		t.Run(kind, func(t *testing.T) {
			const entries, events = 700, 5
			begin := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
			at := func(n int) int64 { return begin.Add(time.Duration(n) * time.Second).UnixMicro() }
			dir := t.TempDir()
			name := filepath.Join(dir, "orgd.db")
			if kind == store.Postgres {
				name = testkit.Postgres(t)
			}
			head := audit.NewHead("r", "log")
			var tiles []audit.Hash // of level 1
			err := store.OldDatabase(t.Context(), kind, name, map[int64]bool{1: true, 3: true}, func(exec func(string, ...any) error) error {
				for _, o := range [][3]string{{"r", "", "r/"}, {"a", "r", "r/a/"}, {"b", "a", "r/a/b/"}} {
					if err := exec(`INSERT INTO orgs (root_id, id, parent_id, path, depth, name, name_key, type, description, external_id, tags,
						settings, locked, settings_at, created_at, updated_at, version, deleted_at, deletion_id, deletion_top)
						VALUES ('r', $1, $2, $3, 0, $1, $1, 'group', '', '', '[]', '{}', '[]', 0, $4, $4, 1, 0, '', 0)`, o[0], o[1], o[2], at(0)); err != nil {
						return err
					}
				}
				for i := range entries {
					action, orgID, path := "organization.updated", "r", "r/"
					switch i {
					case 1:
						action, orgID, path = "organization.created", "a", "r/a/"
					case 2:
						action, orgID, path = "organization.created", "b", "r/b/"
					case 600:
						action, orgID, path = "organization.moved", "b", "r/a/b/"
					}
					leaf := audit.Hash{byte(i), byte(i >> 8), 1}
					for level, hash := range head.Extend(leaf) {
						if level == 0 {
							tiles = append(tiles, hash)
						}
					}
					if err := exec(`INSERT INTO audit_entries (root_id, epoch, seq, id, at, org_id, path, action, actor_id, leaf, leaf_hash)
						VALUES ('r', 0, $1, $2, $3, $4, $5, $6, 'operator', $7, $8)`,
						i, fmt.Sprintf("aud_%d", i), at(i), orgID, path, action, []byte("{}"), leaf[:]); err != nil {
						return err
					}
				}
				var hashes []byte
				for _, h := range head.Range {
					hashes = append(hashes, h[:]...)
				}
				if err := exec(`INSERT INTO audit_heads (root_id, epoch, log_id, size, root_hash, hashes, closed_at) VALUES ('r', 0, 'log', $1, $2, $3, 0)`,
					entries, head.Root[:], hashes); err != nil {
					return err
				}
				for i := range events {
					if err := exec(`INSERT INTO access_events (root_id, at, id, org_id, user_name, action, status, ip, user_agent, method, path, request_id, api_key_id)
						VALUES ('r', $1, $2, 'a', 'u', 'GET_ORG', 'SUCCESS', '::1', '', 'GET', '/', '', '')`, at(i), fmt.Sprintf("evt_%d", i)); err != nil {
						return err
					}
				}
				return exec(`INSERT INTO usage_totals (root_id, month, org_id, parent_id, meter, own, total) VALUES ('r', '2026-11', 'r', '', 'api_calls', 7, 7)`)
			})
			if err != nil {
				t.Fatal(err)
			}
			s, err := openOld(t, kind, dir, name)
			if err != nil {
				t.Fatal(err)
			}
			err = testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) error {
				got, err := tx.LogHashes(head, 1, 0, entries>>audit.TileHeight)
				if diff := cmp.Diff(tiles, got); diff != "" || len(got) != 2 {
					t.Errorf("tiles: %s", diff)
				}
				if err != nil {
					return err
				}
				for _, want := range []struct {
					parent string
					at     int
					ids    []string
				}{{"r", 500, []string{"a", "b"}}, {"r", 650, []string{"a"}}, {"a", 500, nil}, {"a", 650, []string{"b"}}, {"r", 0, nil}} {
					ids, _, _, err := tx.ChildrenAt("r", want.parent, time.UnixMicro(at(want.at)), "", 10)
					if diff := cmp.Diff(want.ids, ids); diff != "" || err != nil {
						t.Errorf("children of %s at second %d: %s, %v", want.parent, want.at, diff, err)
					}
				}
				page, err := tx.AccessEvents(trail.AccessQuery{RootID: "r", OrgID: "r", Path: "r/", Scope: org.ScopeSubtree, Limit: 10})
				if len(page.Events) != events || page.Events[0].ID != fmt.Sprintf("evt_%d", events-1) {
					t.Errorf("events %+v", page.Events)
				}
				if err != nil {
					return err
				}
				totals, err := tx.Totals("r", "r", "2026-11")
				if len(totals) != 1 || totals[0].Own != 7 || totals[0].Recorded != 7 {
					t.Errorf("totals %+v", totals)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Ids that were given to events before senders were told apart are still taken
// for events of the same organization, whoever sends them, and for nobody else's.
func TestIdsFromBeforeSendersAreKept(t *testing.T) {
	for _, kind := range []string{store.SQLite, store.Postgres} {
		t.Run(kind, func(t *testing.T) {
			now := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
			dir := t.TempDir()
			name := filepath.Join(dir, "orgd.db")
			if kind == store.Postgres {
				name = testkit.Postgres(t)
			}
			versions := map[int64]bool{}
			for v := range int64(10) {
				versions[v] = true
			}
			err := store.OldDatabase(t.Context(), kind, name, versions, func(exec func(string, ...any) error) error {
				for part, meter := range []string{"tokens", "requests"} {
					if err := exec(`INSERT INTO usage_events (root_id, source, id, part, org_id, meter, at, quantity) VALUES ('r', 's', '1', $1, 'a', $2, $3, 5)`,
						part, meter, now.UnixMicro()); err != nil {
						return err
					}
				}
				for _, id := range []string{"one", "gone"} {
					if err := exec(`INSERT INTO access_claims (root_id, id, at) VALUES ('r', $1, $2)`, id, now.UnixMicro()); err != nil {
						return err
					}
				}
				if err := exec(`INSERT INTO access_events (root_id, at, seq, id, org_id, user_name, action, status, ip, user_agent, method, path, request_id, api_key_id)
					VALUES ('r', $1, 1, 'one', 'a', 'u', 'LOGIN', 'SUCCESS', '', '', '', '', '', '')`, now.UnixMicro()); err != nil {
					return err
				}
				if err := exec(`INSERT INTO orgs (root_id, id, parent_id, path, depth, name, name_key, type, description, external_id, tags, settings, locked,
					settings_at, created_at, updated_at, version, deleted_at, deletion_id, deletion_top)
					VALUES ('r', 'a', 'r', 'r/a/', 1, 'A', 'a', 'organization', '', '', '[]', '{}', '[]', 0, 0, 0, 1, 0, '', 0)`); err != nil {
					return err
				}
				return exec(`INSERT INTO usage_states (root_id, period, org_id, meter, value, latest_at) VALUES ('r', '2026-11', 'a', 'disk', 7, $1)`, now.UnixMicro())
			})
			if err != nil {
				t.Fatal(err)
			}
			s, err := openOld(t, kind, dir, name)
			if err != nil {
				t.Fatal(err)
			}
			used := func(sender, orgID string, part int) usage.Event {
				return usage.Event{EventKey: usage.EventKey{RootID: "r", Sender: sender, Source: "s", ID: "1", Part: part}, OrgID: orgID, Meter: "tokens", At: now}
			}
			seen := func(orgID, id string) trail.IncomingEvent {
				return trail.IncomingEvent{Named: true, Event: access.Event{RootID: "r", ID: id, OrgID: orgID, User: "u", Action: "LOGIN", Status: access.Success, Timestamp: now}}
			}
			err = testkit.Whole(s).Write(t.Context(), func(tx testkit.Tx) error {
				for _, test := range []struct {
					what   string
					event  usage.Event
					fresh  bool
					access trail.IncomingEvent
				}{
					{"sent again by its organization", used("a", "a", 0), false, seen("a", "one")},
					{"sent again from above", used("r", "a", 0), false, seen("a", "one")},
					{"sent again by the operator", used("/operator", "a", 0), false, seen("a", "one")},
					{"of a neighbour", used("b", "b", 0), true, seen("b", "one")},
					{"of a neighbour, again", used("b", "b", 0), false, seen("b", "one")},
					{"of the root for another", used("r", "b", 0), true, seen("b", "one")},
				} {
					part := test.event
					part.Part = 1
					fresh, err := tx.ClaimEvents([]usage.Event{test.event, part}, []int{0, 1})
					if err != nil {
						return err
					}
					duplicates, err := tx.InsertAccessEvents("r", test.event.Sender, []trail.IncomingEvent{test.access})
					if err != nil {
						return err
					}
					if fresh[0] != test.fresh || fresh[1] != test.fresh || (duplicates == 0) != test.fresh {
						t.Errorf("%s: counted %v, %d duplicates", test.what, fresh, duplicates)
					}
				}
				if n, err := tx.InsertAccessEvents("r", "a", []trail.IncomingEvent{seen("a", "gone")}); n != 0 || err != nil {
					t.Errorf("the id of an event that is not kept any more: %d duplicates, %v", n, err)
				}
				series := usage.Series{RootID: "r", Period: "2026-11", OrgID: "a", Meter: "disk"}
				states, err := tx.States([]usage.Series{series})
				if diff := cmp.Diff(map[usage.Series]usage.State{series: {Value: 7, LatestAt: now}}, states); diff != "" {
					t.Errorf("states: %s", diff)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			// They are pruned like all others, and then nobody's.
			err = testkit.Whole(s).Write(t.Context(), func(tx testkit.Tx) error {
				if _, err := tx.PruneEvents("r", now.Add(time.Hour), usage.EventKey{RootID: "r"}, 100); err != nil {
					return err
				}
				fresh, err := tx.ClaimEvents([]usage.Event{used("a", "a", 0)}, []int{0})
				if err == nil && !fresh[0] {
					t.Error("a pruned event is a duplicate")
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

func openOld(t *testing.T, kind, dir, name string) (s *store.Store, err error) {
	if kind == store.Postgres {
		return openPostgres(t, name), nil
	}
	s, err = store.OpenSQLite(t.Context(), dir, store.Options{})
	if err == nil {
		t.Cleanup(func() { s.Close() })
	}
	return s, err
}
