package store_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/testkit"
)

// Months have partitions before they begin, and lose them as a whole once they
// have expired; what has no month's partition is not lost.
func TestPostgresPartitions(t *testing.T) {
	url := testkit.Postgres(t)
	s := openPostgres(t, url)
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	partitions := func() []string {
		t.Helper()
		rows, err := conn.Query(ctx, `SELECT c.relname::text FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
			WHERE i.inhparent = 'access_events'::regclass ORDER BY c.relname`)
		if err != nil {
			t.Fatal(err)
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	where := func(id string) (name string) {
		t.Helper()
		if err := conn.QueryRow(ctx, `SELECT coalesce((SELECT tableoid::regclass::text FROM access_events WHERE id = $1), '')`, id).Scan(&name); err != nil {
			t.Fatal(err)
		}
		return name
	}
	month := time.Date(time.Now().UTC().Year(), time.Now().UTC().Month(), 1, 0, 0, 0, 0, time.UTC)
	name := func(months int) string { return "access_events_" + month.AddDate(0, months, 0).Format("2006_01") }
	want := []string{name(0), name(1), name(2), name(3), "access_events_other"}
	if got := partitions(); !slices.Equal(got, want) {
		t.Fatalf("the partitions are %v, want %v", got, want)
	}
	plantRoot(t, s, "r")
	offset := int64(0)
	put := func(id string, at time.Time) {
		t.Helper()
		b := access.Batch{SpoolID: "spool", From: access.Position{Offset: offset}, Position: access.Position{Offset: offset + 1},
			Events: []access.Event{{ID: id, Timestamp: at, RootID: "r", OrgID: "r", User: "x", Action: "X", Status: access.Success}}}
		offset++
		if err := s.Flush(ctx, b); err != nil {
			t.Fatal(err)
		}
	}
	put("old", month.AddDate(0, -20, 0))
	put("last", month.Add(-time.Microsecond))
	put("first", month)
	put("next", month.AddDate(0, 1, 0))
	put("far", month.AddDate(0, 4, 0)) // no partition is there for it yet
	for id, place := range map[string]string{"old": "access_events_other", "last": "access_events_other", "first": name(0), "next": name(1), "far": "access_events_other"} {
		if got := where(id); got != place {
			t.Errorf("the event %s is in %s, want %s", id, got, place)
		}
	}

	// A transaction that reads the table keeps partitions from being made for
	// a moment only, and nobody waits behind that for long.
	reader, err := conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Exec(ctx, `SELECT 1 FROM access_events LIMIT 1`); err != nil {
		t.Fatal(err)
	}
	later := month.AddDate(0, 2, 10)
	begin := time.Now()
	if _, err := s.Partition(ctx, later, month); err == nil {
		t.Error("partitions were made although the table was in use")
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("gave up after %v", took)
	}
	put("meanwhile", month)
	if err := reader.Rollback(ctx); err != nil {
		t.Fatal(err)
	}

	floor, err := s.Partition(ctx, later, month.AddDate(0, 1, 3))
	if err != nil {
		t.Fatal(err)
	}
	if !floor.Equal(month.AddDate(0, 1, 0)) {
		t.Errorf("the floor is %v", floor)
	}
	// That of the month with the event far could not be made: its place is
	// taken.
	want = []string{name(1), name(2), name(3), name(5), "access_events_other"}
	if got := partitions(); !slices.Equal(got, want) {
		t.Errorf("the partitions are %v, want %v", got, want)
	}
	for id, place := range map[string]string{"old": "access_events_other", "first": "", "meanwhile": "", "next": name(1), "far": "access_events_other"} {
		if got := where(id); got != place {
			t.Errorf("later, the event %s is in %q, want %q", id, got, place)
		}
	}
}
