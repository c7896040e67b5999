package store

import (
	"cmp"
	"slices"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/usage"
)

func (t *tx) Totals(rootID, orgID string, month usage.Month) ([]usage.Total, error) {
	var totals []usage.Total
	err := t.query(func(r row) error {
		total := usage.Total{RootID: rootID, OrgID: orgID, Month: month}
		err := r.Scan(&total.ParentID, &total.Meter, (*int64)(&total.Own), (*int64)(&total.Total))
		totals = append(totals, total)
		return err
	}, `SELECT parent_id, meter, own, total FROM usage_totals
		WHERE root_id = $1 AND month = $2 AND org_id = $3 ORDER BY meter, parent_id`, rootID, string(month), orgID)
	return totals, err
}

// rollUp adds up what a batch adds to the totals of each organization and of
// every one of its ancestors, in the order of the totals' primary key.
func rollUp(batch []access.Usage) []usage.Total {
	type series struct {
		path  string
		month usage.Month
		meter string
	}
	own := map[series]usage.Decimal{}
	for _, u := range batch {
		own[series{u.Path, usage.MonthOf(u.At), u.Meter}] += u.Quantity
	}
	type row struct {
		rootID        string
		month         usage.Month
		orgID, parent string
		meter         string
	}
	totals := map[row]usage.Total{}
	for s, quantity := range own {
		ids := org.SplitPath(s.path)
		for i, id := range ids {
			r := row{rootID: ids[0], month: s.month, orgID: id, meter: s.meter}
			if i > 0 {
				r.parent = ids[i-1]
			}
			total := totals[r]
			total.Total += quantity
			if i == len(ids)-1 {
				total.Own += quantity
			}
			totals[r] = total
		}
	}
	list := make([]usage.Total, 0, len(totals))
	for r, t := range totals {
		t.RootID, t.Month, t.OrgID, t.ParentID, t.Meter = r.rootID, r.month, r.orgID, r.parent, r.meter
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b usage.Total) int {
		return cmp.Or(cmp.Compare(a.RootID, b.RootID), cmp.Compare(a.Month, b.Month), cmp.Compare(a.OrgID, b.OrgID),
			cmp.Compare(a.ParentID, b.ParentID), cmp.Compare(a.Meter, b.Meter))
	})
	return list
}

// addTotals expects the order of rollUp: two transactions that add to the
// same rows in the same order cannot deadlock.
func (t *tx) addTotals(totals []usage.Total) error {
	return t.execEach(`INSERT INTO usage_totals (root_id, month, org_id, parent_id, meter, own, total)
		VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (root_id, month, org_id, parent_id, meter)
		DO UPDATE SET own = usage_totals.own + excluded.own, total = usage_totals.total + excluded.total`,
		len(totals), func(i int) []any {
			r := &totals[i]
			return []any{r.RootID, string(r.Month), r.OrgID, r.ParentID, r.Meter, int64(r.Own), int64(r.Total)}
		}, nil)
}
