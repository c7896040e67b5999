package usagetest

import (
	"strings"
	"testing"

	"github.com/orgd/orgd/internal/store/storetest"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/usage"
)

func testStatements(t *testing.T, s storetest.Store) {
	storetest.Plant(t, s, "r/", "r/a/", "r/b/", "r/b/c/", "q/")
	storetest.FlushBatch(t, s, access.Batch{SpoolID: "spool", Position: access.Position{Segment: 1},
		Usage: []access.Usage{storetest.Use("r/a/", usage.One), storetest.Use("r/b/c/", 2*usage.One), storetest.Use("r/", 5), storetest.Use("q/", 7)}})
	month := usage.MonthOf(storetest.Use("r/", 1).At)
	all := func(rootID string, limit int) (list []usage.Total) {
		t.Helper()
		for after := (usage.Total{}); ; {
			page := storetest.Get(t, s, func(tx testkit.Tx) ([]usage.Total, error) { return tx.MonthTotals(rootID, month, after, limit) })
			if len(page) > limit {
				t.Fatalf("a page of %d, limit %d", len(page), limit)
			}
			list = append(list, page...)
			if len(page) < limit {
				return list
			}
			after = page[len(page)-1]
		}
	}
	for _, limit := range []int{1, 2, 100} {
		var got []string
		for _, total := range all("r", limit) {
			got = append(got, total.OrgID+"<"+total.ParentID+" "+total.Own.String()+" "+total.Total.String())
		}
		want := "a<r 1 1, b<r 0 2, c<b 2 2, r< 0.000005 3.000005"
		if strings.Join(got, ", ") != want {
			t.Errorf("by %d: %s, want %s", limit, strings.Join(got, ", "), want)
		}
	}
	storetest.WantEqual(t, len(all("q", 10)), 1)

	st := &metering.Statement{RootID: "r", Month: month, EntryID: "aud_1", Size: 7, Parts: 2}
	storetest.Read(t, s, func(tx testkit.Tx) error {
		_, err := tx.Statement("r", month)
		storetest.WantErr(t, err, org.ErrAbsent)
		_, err = tx.StatementPart("r", month, 0)
		storetest.WantErr(t, err, org.ErrAbsent)
		return nil
	})
	storetest.Write(t, s, func(tx testkit.Tx) error {
		for part, text := range []string{`{"a`, `":1}`} {
			if err := tx.PutStatementPart("r", month, part, []byte(text)); err != nil {
				return err
			}
		}
		return tx.PutStatement(st)
	})
	storetest.WantEqual(t, storetest.Get(t, s, func(tx testkit.Tx) (*metering.Statement, error) { return tx.Statement("r", month) }), st)
	storetest.WantEqual(t, string(storetest.Get(t, s, func(tx testkit.Tx) ([]byte, error) { return tx.StatementPart("r", month, 1) })), `":1}`)
	storetest.Read(t, s, func(tx testkit.Tx) error {
		_, err := tx.Statement("q", month)
		storetest.WantErr(t, err, org.ErrAbsent)
		_, err = tx.StatementPart("r", month, 2)
		storetest.WantErr(t, err, org.ErrAbsent)
		return nil
	})
}
