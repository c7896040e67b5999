package problem_test

import (
	"errors"
	"testing"

	"github.com/orgd/orgd/internal/problem"
)

func TestRowsAreCountedBeyondThoseThatAreKept(t *testing.T) {
	var rows problem.Rows
	if rows.Count() != 0 || rows.First() != "" || len(rows.Fields()) != 0 {
		t.Errorf("rows that nothing was added to: %+v", rows)
	}
	for i := range problem.MaxFields + 5 {
		rows.Add(problem.Field{Index: &i, Line: i + 1}, problem.Body("/id", "is missing"))
	}
	if rows.Count() != problem.MaxFields+5 || len(rows.Fields()) != problem.MaxFields {
		t.Errorf("%d rows are bad and %d kept", rows.Count(), len(rows.Fields()))
	}
	if want := "The value at /id is missing."; rows.First() != want {
		t.Errorf("the first is %q, not %q", rows.First(), want)
	}
	for i, f := range rows.Fields() {
		if *f.Index != i || f.Line != i+1 || f.Pointer != "/id" || f.Detail != "is missing" {
			t.Errorf("row %d is %+v", i, f)
		}
	}
}

func TestRowsTakeWhatIsWrongFromTheError(t *testing.T) {
	var rows problem.Rows
	rows.Add(problem.Field{Line: 3}, problem.New(problem.IDTaken, "the id a is in use"))
	rows.Add(problem.Field{Line: 7}, errors.New("the disk is on fire"))
	if f := rows.Fields()[0]; f != (problem.Field{Line: 3, Detail: "the id a is in use"}) {
		t.Errorf("a row is %+v", f)
	}
	if f := rows.Fields()[1]; f.Detail != problem.From(errors.New("")).Detail {
		t.Errorf("a fault of the server says %q", f.Detail)
	}
}
