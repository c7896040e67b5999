// Package usagetest is the part of the conformance suite that is about what
// organizations consume: usage events, totals, months, limits, statements.
package usagetest

import (
	"testing"

	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/store/storetest"
)

// Run is storetest.Run for these tests.
func Run(t *testing.T, open func(testing.TB) *store.Store) {
	storetest.Each(t, open, map[string]func(*testing.T, storetest.Store){
		"Limits":       testLimits,
		"Consumed":     testConsumed,
		"Statements":   testStatements,
		"ClaimEvents":  testClaimEvents,
		"ClaimRace":    testClaimRace,
		"ClaimSenders": testClaimSenders,
		"PurgedSender": testPurgedSender,
		"AddUsage":     testAddUsage,
		"Months":       testMonths,
		"PruneUsage":   testPruneUsage,
		"States":       testStates,
		"Meters":       testMeters,
		"Places":       testPlaces,
	})
}
