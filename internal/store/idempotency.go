package store

import (
	"time"

	"github.com/orgd/orgd/internal/org"
)

func (t *tx) Idempotent(actorID, idempotencyKey string, since time.Time) (*org.Replay, error) {
	r := &org.Replay{}
	var createdAt int64
	err := t.queryRow(into(&r.RequestHash, &r.Answer, &createdAt), `SELECT request_hash, answer, created_at FROM idempotency
		WHERE actor_id = $1 AND idem_key = $2 AND created_at >= $3`, actorID, idempotencyKey, micros(since))
	if err != nil {
		return nil, err
	}
	r.CreatedAt = fromMicros(createdAt)
	return r, nil
}

// PutIdempotent also removes a few expired records, more than it adds, so
// that the table holds about one window of them.
func (t *tx) PutIdempotent(rootID, actorID, idempotencyKey string, since time.Time, r *org.Replay) error {
	defer t.leavesTree(t.writes)
	n, err := t.exec(`INSERT INTO idempotency (actor_id, idem_key, request_hash, answer, created_at)
		VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (actor_id, idem_key) DO UPDATE
		SET request_hash = excluded.request_hash, answer = excluded.answer, created_at = excluded.created_at
		WHERE idempotency.created_at < $6`,
		actorID, idempotencyKey, notNil(r.RequestHash), notNil(r.Answer), micros(r.CreatedAt), micros(since))
	if err != nil {
		return err
	}
	if n == 0 {
		return org.ErrReplay
	}
	if _, err = t.exec(`INSERT INTO idempotency_hours (root_id, hour, bytes) VALUES ($1, $2, $3)
		ON CONFLICT (root_id, hour) DO UPDATE SET bytes = idempotency_hours.bytes + excluded.bytes`,
		rootID, hourOf(r.CreatedAt), r.Size(idempotencyKey)); err != nil {
		return err
	}
	_, err = t.exec(`DELETE FROM idempotency WHERE (actor_id, idem_key) IN (SELECT actor_id, idem_key FROM idempotency
		WHERE created_at < $1 ORDER BY created_at LIMIT 4 FOR UPDATE SKIP LOCKED)`, micros(since))
	return err
}

func hourOf(t time.Time) int64 { return micros(t) / time.Hour.Microseconds() }

func (t *tx) AnswersKept(rootID string, since time.Time) (bytes int64, first time.Time, err error) {
	err = t.query(func(r row) error {
		var hour, n int64
		err := r.Scan(&hour, &n)
		if bytes += n; first.IsZero() {
			first = fromMicros(hour * time.Hour.Microseconds())
		}
		return err
	}, `SELECT hour, bytes FROM idempotency_hours WHERE root_id = $1 AND hour >= $2 ORDER BY hour`, rootID, hourOf(since))
	return bytes, first, err
}

func (t *tx) ExpireIdempotent(before time.Time, limit int) (int64, error) {
	defer t.leavesTree(t.writes)
	n, err := t.exec(`DELETE FROM idempotency WHERE (actor_id, idem_key) IN (SELECT actor_id, idem_key FROM idempotency
		WHERE created_at < $1 ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED)`, micros(before), int64(limit))
	if err == nil {
		_, err = t.exec(`DELETE FROM idempotency_hours WHERE hour < $1`, hourOf(before))
	}
	return n, err
}

func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
