package usage

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/orgd/orgd/internal/problem"
)

// Aggregation says how the events of one organization in one month become one
// quantity. The quantities of organizations are always added up the tree.
type Aggregation string

const (
	Sum    Aggregation = "sum"    // the sum of the quantities
	Count  Aggregation = "count"  // the number of events, whatever their quantities
	Max    Aggregation = "max"    // the largest quantity
	Latest Aggregation = "latest" // the quantity of the newest event
)

// Valid reports whether a is one of the aggregations.
func (a Aggregation) Valid() bool {
	return a == Sum || a == Count || a == Max || a == Latest
}

// Built-in meters.
const (
	APICalls    = "api_calls"
	StorageUsed = "storage_used"
)

// Meter is something that is counted per month.
type Meter struct {
	Slug        string
	Unit        string
	Aggregation Aggregation
	Description string
	EventType   string    // the type of the CloudEvents that it counts
	Value       string    // JSON Pointer (RFC 6901) into their data, to the quantity
	CreatedAt   time.Time // zero for a built-in meter, like all that follows
	UpdatedAt   time.Time
	Version     int64
}

// BuiltIn reports whether every root has the meter.
func (m *Meter) BuiltIn() bool { return m.Version == 0 }

// Limits of the texts of a meter, in characters.
const (
	maxUnit        = 32
	maxDescription = 256
	maxEventType   = 256
	maxPointer     = 256
)

// Check returns an error, problem.InvalidBody, unless m may be defined. Its
// slug is for CheckSlug to check.
func (m *Meter) Check() error {
	for _, f := range []struct {
		pointer, text string
		least, most   int
	}{
		{"/unit", m.Unit, 1, maxUnit}, {"/description", m.Description, 0, maxDescription},
		{"/event_type", m.EventType, 1, maxEventType}, {"/value", m.Value, 0, maxPointer},
	} {
		if n := utf8.RuneCountInString(f.text); n < f.least || n > f.most {
			return problem.Body(f.pointer, "must be %d to %d characters", f.least, f.most)
		}
		if strings.ContainsFunc(f.text, unicode.IsControl) {
			return problem.Body(f.pointer, "must not contain control characters")
		}
	}
	if !m.Aggregation.Valid() {
		return problem.Body("/aggregation", "must be sum, count, max or latest")
	}
	if !validPointer(m.Value) {
		return problem.Body("/value", "must be a JSON Pointer (RFC 6901) into the data of the event, such as %s", DefaultValue)
	}
	return nil
}

// validPointer reports whether s is a JSON Pointer (RFC 6901, section 3).
func validPointer(s string) bool {
	if s != "" && s[0] != '/' {
		return false
	}
	for rest := s; ; {
		_, after, found := strings.Cut(rest, "~")
		if !found {
			return true
		}
		if after == "" || after[0] != '0' && after[0] != '1' {
			return false
		}
		rest = after
	}
}

// DefaultValue is where the quantity of a CloudEvent is found unless its meter
// says otherwise.
const DefaultValue = "/quantity"

// BuiltIn returns the meters that every root has.
func BuiltIn() []Meter {
	return []Meter{
		{Slug: APICalls, Unit: "calls", Aggregation: Sum, Description: "API calls that were answered, without 401, 429 and 5xx",
			EventType: APICalls, Value: DefaultValue},
		{Slug: StorageUsed, Unit: "GB", Aggregation: Max, Description: "The most storage that was in use",
			EventType: StorageUsed, Value: DefaultValue},
	}
}

// SlugRule says in words what CheckSlug accepts.
const SlugRule = "must be 1 to 64 characters from a-z 0-9 _ - and start with a letter"

// CheckSlug returns problem.InvalidParameter unless s may name a meter.
func CheckSlug(s string) error {
	ok := 1 <= len(s) && len(s) <= 64 && 'a' <= s[0] && s[0] <= 'z'
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		ok = 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '_' || c == '-'
	}
	if !ok {
		return problem.New(problem.InvalidParameter, "The name of a meter %s.", SlugRule)
	}
	return nil
}

// Delta returns what an event adds to the consumption of its organization and
// of every ancestor, and the time of the newest event counted so far.
//
// own is what the organization itself has consumed in the month: the sum of
// Own over all its Totals. latestAt is the time of the newest event counted
// before this one, zero for none. What the event adds is
//
//	Sum     quantity
//	Count   1
//	Max     quantity - own if that is positive or the event is the first, or 0
//	Latest  quantity - own if the event is not older than latestAt, or 0
//
// so that own becomes the aggregate of all the events. Quantities may be
// negative, from somebody who may lower what was consumed: the maximum of
// negative quantities is negative. Of several newest
// events the one counted last decides. The error is problem.InvalidBody if
// what the event adds, or own with it, would be out of range.
func Delta(a Aggregation, own Decimal, latestAt, eventAt time.Time, quantity Decimal) (delta Decimal, newLatestAt time.Time, err error) {
	first := latestAt.IsZero()
	newLatestAt = latestAt
	if first || eventAt.After(latestAt) {
		newLatestAt = eventAt
	}
	switch a {
	case Sum:
		delta = quantity
	case Count:
		delta = One
	case Max:
		if first || quantity > own {
			delta, err = quantity.Add(-own)
		}
	case Latest:
		if first || !eventAt.Before(latestAt) {
			delta, err = quantity.Add(-own)
		}
	default:
		return 0, latestAt, fmt.Errorf("unknown aggregation %q", a)
	}
	if err == nil {
		_, err = own.Add(delta)
	}
	if err != nil {
		return 0, latestAt, err
	}
	return delta, newLatestAt, nil
}
