package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/testkit"
)

// settled waits until a store believes what it has kept: one that has just
// been opened may still have to connect to what tells it of changes.
func settled(t testing.TB, s Store) {
	t.Helper()
	for {
		if first := s.Generation("r"); first == s.Generation("r") {
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatal("the generations never settled")
		case <-time.After(time.Millisecond):
		}
	}
}

func testGeneration(t *testing.T, s Store) {
	Plant(t, s, "r/", "q/")
	change := func(rootID string, fail error) error {
		return s.Write(t.Context(), func(tx testkit.Tx) error {
			return errors.Join(appendAudit(tx, rootID, "x", rootID+"/"), tx.PutSchema(rootID, []byte("{}")), fail)
		})
	}
	settled(t, s)
	r, q, row := s.Generation("r"), s.Generation("q"), s.OrgGeneration("r", "r")
	if err := change("r", nil); err != nil {
		t.Fatal(err)
	}
	if s.Generation("r") == r || s.OrgGeneration("r", "r") == row {
		t.Error("a change did not show")
	}
	WantEqual(t, s.Generation("q"), q)

	// A change of one organization leaves the tree as it is.
	r, row = s.Generation("r"), s.OrgGeneration("r", "r")
	Write(t, s, func(tx testkit.Tx) error {
		if _, err := tx.Lock("r"); err != nil {
			return err
		}
		o, err := tx.Org("r")
		if err != nil {
			return err
		}
		o.Tags, o.Version = []string{"t"}, o.Version+1
		return tx.UpdateOrg(o)
	})
	WantEqual(t, s.Generation("r"), r)
	WantEqual(t, s.OrgGeneration("r", "r"), row+1)
	// Nothing is promised about a change that failed, but a new root shows.
	n := s.Generation("n")
	Write(t, s, func(tx testkit.Tx) error {
		return errors.Join(tx.InsertOrgs([]*org.Organization{newOrg("n/")}), tx.NewLog(&audit.Head{RootID: "n", LogID: "l"}))
	})
	if s.Generation("n") == n {
		t.Error("a new root did not show")
	}
}

// testGenerationReadsNew: what is kept under a generation is what a later
// reader with the same generation would read.
func testGenerationReadsNew(t *testing.T, s Store) {
	Plant(t, s, "r/")
	settled(t, s)
	var mu sync.Mutex
	acknowledged := int64(1)
	kept := map[uint64]int64{} // generation → the version read under it
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				mu.Lock()
				least := acknowledged
				mu.Unlock()
				generation := s.OrgGeneration("r", "r")
				mu.Lock()
				version, ok := kept[generation]
				mu.Unlock()
				if !ok {
					err := s.Read(context.Background(), func(tx testkit.Tx) error {
						o, err := tx.Org("r")
						if err == nil {
							version = o.Version
						}
						return err
					})
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					kept[generation] = version
					mu.Unlock()
				}
				if version < least {
					t.Errorf("version %d after version %d was acknowledged", version, least)
					return
				}
			}
		})
	}
	for i := range 100 {
		Write(t, s, func(tx testkit.Tx) error {
			if _, err := tx.Lock("r"); err != nil {
				return err
			}
			o, err := tx.Org("r")
			if err != nil {
				return err
			}
			o.Description, o.Version = fmt.Sprint(i), o.Version+1
			return tx.UpdateOrg(o)
		})
		mu.Lock()
		acknowledged++
		mu.Unlock()
	}
	close(stop)
	readers.Wait()
}
