package store_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/testkit"
)

// What is erased is in no file of a SQLite database, wherever its pages were
// split and its rows moved before, and the database is sound.
func TestSQLiteScrub(t *testing.T) {
	dir := t.TempDir()
	s := openSQLite(t, dir, store.Options{})
	rnd := rand.New(rand.NewPCG(1, 2))
	var all []access.Event
	position := access.Position{}
	last := map[string]int64{} // numbers of events, per root
	for batch := range 40 {
		var events []access.Event
		for n := range 200 {
			secret := fmt.Sprintf("person-%d@example.com", rnd.IntN(50))
			events = append(events, access.Event{ID: ident.New("evt_"), RootID: fmt.Sprint("r", rnd.IntN(20)), OrgID: "o",
				Timestamp: time.Unix(int64(rnd.IntN(1_000_000)), 0).UTC(), User: secret, Action: "GET_ORG", Status: access.Success, IP: "192.0.2.1",
				UserAgent: strings.Repeat(secret+" ", rnd.IntN(40)), Path: "/" + secret, RequestID: fmt.Sprint(batch, "-", n)})
		}
		from := position
		position.Segment++
		if err := s.Flush(t.Context(), access.Batch{SpoolID: "s", From: from, Position: position, Events: events}); err != nil {
			t.Fatal(err)
		}
		for i := range events {
			last[events[i].RootID]++
			events[i].Seq = last[events[i].RootID]
		}
		all = append(all, events...)
		if batch%10 == 5 { // pages are in the database file, and change again
			if err := s.Scrub(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	gone := map[string]bool{}
	for n := range 10 {
		gone[fmt.Sprintf("person-%d@example.com", n)] = true
	}
	var erased []access.Event
	for _, e := range all {
		if gone[e.User] {
			e.User, e.UserAgent, e.Path = "", "", ""
			erased = append(erased, e)
		}
	}
	holding := func() (n int) {
		t.Helper()
		for _, name := range []string{"orgd.db", "orgd.db-wal"} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			for person := range gone {
				n += bytes.Count(b, []byte(person))
			}
		}
		return n
	}
	if holding() == 0 {
		t.Fatal("this test does not find what is in the files")
	}
	if err := testkit.Whole(s).Write(t.Context(), func(tx testkit.Tx) error { return tx.PutAccessEvents(erased) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Scrub(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := holding(); n > 0 {
		t.Errorf("%d copies of erased values are left", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openSQLite(t, dir, store.Options{})
	for _, e := range all {
		if err := testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) error {
			got, err := tx.AccessEvent(e.RootID, e.Timestamp, e.Seq)
			if err == nil && got.User != e.User && !gone[e.User] {
				t.Errorf("event %s is now of %q", e.ID, got.User)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	db, err := sqlite3.Open("file:" + filepath.Join(dir, "orgd.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	check, _, err := db.Prepare(`PRAGMA integrity_check`)
	if err != nil {
		t.Fatal(err)
	}
	defer check.Close()
	if !check.Step() || check.ColumnText(0) != "ok" {
		t.Errorf("the database is not sound: %s", check.ColumnText(0))
	}
}
