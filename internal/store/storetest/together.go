package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/testkit"
)

// testTogether: changes of one root that come at the same time may share a
// transaction. Each is made, or fails, as if it were alone.
func testTogether(t *testing.T, s Store) {
	Plant(t, s, "r/", "q/")
	failure := errors.New("no")
	ways := []struct {
		name   string
		failed func(err error) bool
		ends   func(written bool) error // called before the change writes, and after
	}{
		{"made", func(err error) bool { return err != nil }, func(bool) error { return nil }},
		{"fails before it writes", func(err error) bool { return !errors.Is(err, failure) }, func(bool) error { return failure }},
		{"fails after it has written", func(err error) bool { return !errors.Is(err, failure) }, func(written bool) error {
			if written {
				return failure
			}
			return nil
		}},
		{"panics after it has written", func(err error) bool { return err == nil || !strings.Contains(err.Error(), "oh") }, func(written bool) error {
			if written {
				panic("oh")
			}
			return nil
		}},
	}
	// The first ones fail in no way that undoes others, the last ones do.
	const each = 40
	made := map[string]int{}
	for round, of := range []int{2, len(ways)} {
		var wg sync.WaitGroup
		for i := range each {
			way := ways[i%of]
			for _, rootID := range split("r q") {
				id := fmt.Sprintf("%s-%d-%d", rootID, round, i)
				if way.name == "made" {
					made[rootID]++
				}
				wg.Go(func() {
					err := s.WriteTogether(context.Background(), rootID, func(began org.Tx) error {
						tx := began.(testkit.Tx)
						if _, err := tx.Lock(rootID); err != nil {
							return err
						}
						o, err := tx.Org(rootID)
						if err != nil {
							return err
						}
						if err := way.ends(false); err != nil {
							return err
						}
						o.Version++
						err = errors.Join(tx.UpdateOrg(o), tx.InsertOrgs([]*org.Organization{newOrg(rootID + "/" + id + "/")}),
							appendAudit(tx, rootID, "x", rootID+"/"))
						return errors.Join(err, way.ends(true))
					})
					if way.failed(err) {
						t.Errorf("%s, one that is %s: error %v", id, way.name, err)
					}
				})
			}
		}
		wg.Wait()
	}
	for _, rootID := range split("r q") {
		var want []int64
		for i := range made[rootID] {
			want = append(want, int64(i))
		}
		WantEqual(t, seqs(allAudit(t, s, org.AuditQuery{RootID: rootID, OrgID: rootID, Path: rootID + "/", Limit: 1000, Ascending: true})), want)
		o := Get(t, s, func(tx testkit.Tx) (*org.Organization, error) { return tx.Org(rootID) })
		WantEqual(t, o.Version, int64(made[rootID]+1))
		WantEqual(t, len(live(t, s, rootID)), made[rootID]+1)
		head := Get(t, s, func(tx testkit.Tx) (int64, error) {
			h, err := tx.Head(rootID, "", -1)
			if err != nil {
				return 0, err
			}
			return h.Size, nil
		})
		WantEqual(t, head, int64(made[rootID]))
	}
}
