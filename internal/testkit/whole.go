package testkit

import (
	"time"

	"github.com/orgd/orgd/internal/evidence"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/trail"
	"github.com/orgd/orgd/internal/tree"
	"github.com/orgd/orgd/internal/usage"
)

// Tx is all that anybody reads and writes within one transaction.
type Tx interface {
	org.Tx
	tree.Tx
	tree.ImportTx
	trail.Tx
	evidence.Tx
	metering.Tx
	metering.MonthsTx
	SigningSeeds(now time.Time) ([]string, error)
	Mark(name string) (string, error)
	PutMark(name, value string) error
	ReplaceMark(name, value string) error
	// UsageEvents returns the events of a root that follow a key, in the order
	// of their keys.
	UsageEvents(rootID string, after usage.EventKey, limit int) ([]usage.Event, error)
}

// Database is a store with all of that.
type Database = store.Side[Tx, Tx]

// Whole returns a store with all that anybody reads and writes.
func Whole(s *store.Store) Database { return Database{Store: s} }
