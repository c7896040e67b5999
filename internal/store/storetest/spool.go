package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/testkit"
)

// Of the runs of a spool the last one has it: no other stores anything, also
// where its batch would end at the very position that is stored.
func testSpoolRuns(t *testing.T, s Store) {
	first := access.Run{Number: 1, Nonce: "run_a"}
	second := access.Run{Number: 2, Nonce: "run_b", Before: "run_a"}
	clone := access.Run{Number: 2, Nonce: "run_c", Before: "run_a"}
	other := access.Run{Number: 2, Nonce: "run_d", Before: "run_x"}
	take := func(run access.Run) access.SpoolState {
		t.Helper()
		was, err := s.TakeSpool(t.Context(), "spool", run, "host:/dir", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return was
	}
	flush := func(run access.Run, from, to int64) error {
		return s.Flush(t.Context(), access.Batch{SpoolID: "spool", Run: run, From: access.Position{Offset: from}, Position: access.Position{Offset: to}})
	}
	WantEqual(t, take(first), access.SpoolState{})
	if err := flush(first, 0, 10); err != nil {
		t.Fatal(err)
	}
	take(other) // has another run before it: the directory is not the same
	if err := flush(other, 10, 20); err == nil {
		t.Error("a run that does not follow stores")
	}
	had := access.SpoolState{Position: access.Position{Offset: 10}, Run: first}
	WantEqual(t, take(second), had)
	for name, run := range map[string]access.Run{"the run before": first, "a clone": clone} {
		for _, to := range []int64{10, 20} {
			if err := flush(run, 10, to); err == nil {
				t.Errorf("%s stores up to %d", name, to)
			}
		}
	}
	had.Run = access.Run{Number: 2, Nonce: "run_b"}
	WantEqual(t, take(clone), had)
	if err := flush(second, 10, 20); err != nil {
		t.Fatal(err)
	}
	if err := flush(second, 10, 20); err != nil {
		t.Errorf("a repeated batch: %v", err)
	}
	// A database that went back to an earlier state takes the run all the same.
	later := access.Run{Number: 7, Nonce: "run_g", Before: "run_f"}
	if err := flush(later, 20, 30); err != nil {
		t.Error(err)
	}
	if err := flush(second, 30, 40); err == nil {
		t.Error("the run before stores")
	}
}

// A month waits for the spools that have not said that they are past its end,
// until they do, end with nothing left, or are given up.
func testSpoolReports(t *testing.T, s Store) {
	end := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	run := access.Run{Number: 1, Nonce: "run_a"}
	behind := func() (ids []string) {
		t.Helper()
		for _, r := range Get(t, s, func(tx testkit.Tx) ([]metering.SpoolReport, error) { return tx.SpoolsBehind(end, 10) }) {
			if r.Place != "host:/"+r.ID {
				t.Errorf("the spool %s is at %q", r.ID, r.Place)
			}
			ids = append(ids, r.ID)
		}
		return ids
	}
	take := func(id string, run access.Run, at time.Time) {
		t.Helper()
		if _, err := s.TakeSpool(t.Context(), id, run, "host:/"+id, at); err != nil {
			t.Fatal(err)
		}
	}
	report := func(id string, run access.Run, until time.Time, ended bool) error {
		return s.Write(t.Context(), func(tx testkit.Tx) error { return tx.ReportSpool(id, run, until, ended) })
	}
	giveUp := func(id string) error {
		return s.Write(t.Context(), func(tx testkit.Tx) error { return tx.GiveUpSpool(id, end, "lost", end) })
	}
	FlushBatch(t, s, access.Batch{SpoolID: "older-release", Position: access.Position{Segment: 1}})
	take("a", run, end.Add(-72*time.Hour))
	take("b", run, end.Add(-24*time.Hour))
	take("c", run, end.Add(-48*time.Hour))
	take("new", run, end) // has nothing from before
	WantEqual(t, behind(), []string{"a", "c", "b"})

	if err := report("a", access.Run{Number: 1, Nonce: "run_b"}, end, false); !errors.Is(err, org.ErrStale) {
		t.Errorf("another run reports: %v", err)
	}
	if err := report("a", run, end.Add(-time.Microsecond), false); err != nil {
		t.Fatal(err)
	}
	WantEqual(t, behind(), []string{"c", "b", "a"})
	if err := report("a", run, end, false); err != nil {
		t.Fatal(err)
	}
	if err := report("b", run, end.Add(-time.Hour), true); err != nil {
		t.Fatal(err)
	}
	WantEqual(t, behind(), []string{"c"})
	for _, id := range []string{"a", "b", "new", "older-release", "unknown"} {
		if err := giveUp(id); !errors.Is(err, org.ErrAbsent) {
			t.Errorf("giving up %s, for which nothing waits: %v", id, err)
		}
	}
	if err := giveUp("c"); err != nil {
		t.Fatal(err)
	}
	WantEqual(t, len(behind()), 0)

	// Who comes back is waited for again, unless it had nothing left.
	next := access.Run{Number: 2, Nonce: "run_b", Before: "run_a"}
	take("c", next, end.Add(time.Hour))
	take("b", next, end.Add(time.Hour))
	WantEqual(t, behind(), []string{"c"})
}
