package store

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/orgd/orgd/internal/org"
)

// insertPlaces notes where new organizations are.
func (t *tx) insertPlaces(orgs []*org.Organization) error {
	var args [][]any
	for _, o := range orgs {
		if o.ParentID != "" {
			args = append(args, []any{o.RootID, o.ParentID, o.ID, micros(o.CreatedAt)})
		}
	}
	return t.execEach(`INSERT INTO org_places (root_id, parent_id, org_id, since, until) VALUES ($1, $2, $3, $4, 0)`,
		len(args), func(i int) []any { return args[i] }, nil)
}

// movePlace notes that an organization has another parent from a moment on.
func (t *tx) movePlace(rootID, id, oldParentID, newParentID string, at time.Time) error {
	if _, err := t.exec(`UPDATE org_places SET until = $4 WHERE root_id = $1 AND parent_id = $2 AND org_id = $3 AND until = 0`,
		rootID, oldParentID, id, micros(at)); err != nil {
		return err
	}
	_, err := t.exec(`INSERT INTO org_places (root_id, parent_id, org_id, since, until) VALUES ($1, $2, $3, $4, 0)
		ON CONFLICT (root_id, parent_id, org_id, since) DO UPDATE SET until = 0`, rootID, newParentID, id, micros(at))
	return err
}

func (t *tx) ChildrenAt(rootID, parentID string, at time.Time, after string, limit int) (ids []string, next string, more bool, err error) {
	id, number, split := strings.Cut(after, "@")
	since := int64(math.MaxInt64)
	if split {
		if since, err = strconv.ParseInt(number, 10, 64); err != nil {
			return nil, "", false, err
		}
	}
	w := &window{columns: `org_id, since, until`, from: `org_places AS p`, order: `org_id, since`, key: `org_id, since`, result: `org_id, since`}
	w.bound(`root_id = ` + w.arg(rootID))
	w.bound(`parent_id = ` + w.arg(parentID))
	w.bound(`(org_id, since) > (` + w.arg(id) + `, ` + w.arg(since) + `)`)
	w.want(`since <= ` + w.arg(micros(at)))
	w.want(`(until = 0 OR until > ` + w.arg(micros(at)) + `)`)
	more, err = t.page(w, limit, func(r row) error {
		err := r.Scan(&id, &since)
		ids = append(ids, id)
		return err
	}, into(&id, &since))
	if more {
		next = id + "@" + strconv.FormatInt(since, 10)
	}
	return ids, next, more, err
}

// AuditPositionAt looks for the place by halves: the times of a log's entries are
// in their order.
func (t *tx) AuditPositionAt(rootID string, at time.Time) (int64, error) {
	first, last, err := t.epochs(rootID)
	if err != nil || first < 0 {
		return 0, err
	}
	for epoch := last; epoch >= first; epoch-- {
		var low, high int64
		if err := t.queryRow(into(&high), `SELECT size FROM audit_heads WHERE root_id = $1 AND epoch = $2`, rootID, epoch); err != nil {
			return 0, err
		}
		for low < high {
			middle := low + (high-low)/2
			var made int64
			if err := t.queryRow(into(&made), `SELECT at FROM audit_entries WHERE root_id = $1 AND epoch = $2 AND seq = $3`, rootID, epoch, middle); err != nil {
				return 0, err
			}
			if made <= micros(at) {
				low = middle + 1
			} else {
				high = middle
			}
		}
		if low > 0 {
			return org.AuditPosition(epoch-first, low), nil
		}
	}
	return 0, nil
}

func (t *tx) AuditValues(rootID string, positions []int64, maxBytes int) (values [][]byte, err error) {
	first, _, err := t.epochs(rootID)
	size := 0
	for i := 0; i < len(positions) && err == nil && (i == 0 || size < maxBytes); i++ {
		var content string
		err = t.queryRow(into(&content), `SELECT content FROM audit_values WHERE root_id = $1 AND epoch = $2 AND seq = $3`,
			rootID, first+positions[i]>>org.EpochBits, positions[i]&(1<<org.EpochBits-1))
		values = append(values, []byte(content))
		size += len(content)
	}
	return values, err
}
