package org

import (
	"fmt"
	"slices"
	"strings"

	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/usage"
)

// EventErrors collects what is wrong with the events of a batch.
type EventErrors struct{ rows problem.Rows }

// Add adds the error of one event: its index in the batch, and its line if the
// batch has lines.
func (e *EventErrors) Add(index, line int, p *problem.Error) {
	e.rows.Add(problem.Field{Index: &index, Line: line}, p)
}

// Err returns the errors as one; nil if there are none.
func (e *EventErrors) Err() error {
	if e.rows.Count() == 0 {
		return nil
	}
	detail := "One event is invalid: "
	if e.rows.Count() > 1 {
		detail = fmt.Sprintf("%d events are invalid, of which the first is ", e.rows.Count())
	}
	fields := e.rows.Fields()
	detail += fmt.Sprintf("event %d: %s", *fields[0].Index, e.rows.First())
	return &problem.Error{Code: problem.EventInvalid, Detail: detail, Fields: fields,
		Fix: "Correct the events that errors names and send all of them again: none was stored."}
}

// SenderOf returns in whose namespace the ids are that the actor gives to
// events: that of the key's own organization, whichever of its keys it uses, and
// in each root one of the operator, which is no organization's id.
func SenderOf(a *auth.Actor) string {
	if a.OrgID == "" {
		return "/operator"
	}
	return a.OrgID
}

// ChainLimits returns the limits on the organizations of a path, from the root
// down and then by meter.
func ChainLimits(v interface {
	Limits(rootID string, orgIDs []string) ([]usage.Limit, error)
}, rootID, path string) ([]usage.Limit, error) {
	ids := SplitPath(path)
	limits, err := v.Limits(rootID, ids)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(limits, func(a, b usage.Limit) int {
		if n := slices.Index(ids, a.OrgID) - slices.Index(ids, b.OrgID); n != 0 {
			return n
		}
		return strings.Compare(a.Meter, b.Meter)
	})
	return limits, nil
}
