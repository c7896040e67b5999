package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/metering"
	"github.com/orgd/orgd/internal/org"
)

// moveSpool changes a spool's position to the end of a batch. done says that it
// was there already. A transaction that moves or takes the same spool at the same
// time waits here, and then finds what has become of it.
func (t *tx) moveSpool(b *access.Batch) (done bool, err error) {
	for range 2 {
		state, err := t.spoolState(b.SpoolID)
		if err != nil {
			return true, err
		}
		run := b.Run
		if run == (access.Run{}) {
			run = state.Run
		} else if !run.Follows(state.Run) {
			return true, fmt.Errorf("the spool %s was taken by another process, which has a copy of its directory", b.SpoolID)
		}
		if state.Position == b.Position {
			return true, nil
		}
		if state.Position != b.From {
			return true, fmt.Errorf("the spool %s is at %v, and the batch goes from %v to %v", b.SpoolID, state.Position, b.From, b.Position)
		}
		n, err := t.exec(`INSERT INTO spool_positions (spool_id, segment, position, run, run_nonce) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (spool_id) DO UPDATE SET segment = excluded.segment, position = excluded.position,
				run = excluded.run, run_nonce = excluded.run_nonce
			WHERE spool_positions.segment = $6 AND spool_positions.position = $7
				AND spool_positions.run = $8 AND spool_positions.run_nonce = $9`,
			b.SpoolID, b.Position.Segment, b.Position.Offset, run.Number, run.Nonce,
			state.Segment, state.Offset, state.Run.Number, state.Run.Nonce)
		if err != nil || n > 0 {
			return false, err
		}
	}
	return true, fmt.Errorf("the position of the spool %s is changed by another process at the same time", b.SpoolID)
}

// SpoolPosition returns the position of the last batch that was flushed from
// a spool, zero if there was none.
func (s *Store) SpoolPosition(ctx context.Context, spoolID string) (access.Position, error) {
	state, err := s.SpoolState(ctx, spoolID)
	return state.Position, err
}

// SpoolState implements access.Sink.
func (s *Store) SpoolState(ctx context.Context, spoolID string) (state access.SpoolState, err error) {
	err = s.read(ctx, func(t *tx) error {
		state, err = t.spoolState(spoolID)
		return err
	})
	return state, err
}

func (t *tx) spoolState(spoolID string) (state access.SpoolState, err error) {
	err = t.queryRow(into(&state.Segment, &state.Offset, &state.Run.Number, &state.Run.Nonce),
		`SELECT segment, position, run, run_nonce FROM spool_positions WHERE spool_id = $1`, spoolID)
	if errors.Is(err, org.ErrAbsent) {
		err = nil
	}
	return state, err
}

// TakeSpool implements access.Sink. A spool that is new, or whose process ended
// with nothing left, has nothing to store of what was before.
func (s *Store) TakeSpool(ctx context.Context, spoolID string, run access.Run, place string, now time.Time) (was access.SpoolState, err error) {
	err = s.write(ctx, func(t *tx) error {
		defer t.leavesTree(t.writes)
		if was, err = t.spoolState(spoolID); err != nil || !run.Follows(was.Run) {
			return err
		}
		n, err := t.exec(`INSERT INTO spool_positions (spool_id, segment, position, run, run_nonce, stored_until, place) VALUES ($1, 0, 0, $2, $3, $4, $5)
			ON CONFLICT (spool_id) DO UPDATE SET run = excluded.run, run_nonce = excluded.run_nonce, place = excluded.place, ended = 0, given_up_at = 0, given_up_for = '',
				stored_until = CASE WHEN spool_positions.ended = 1 THEN excluded.stored_until ELSE spool_positions.stored_until END
			WHERE spool_positions.run = $6 AND spool_positions.run_nonce = $7`,
			spoolID, run.Number, run.Nonce, micros(now), place, was.Run.Number, was.Run.Nonce)
		if err == nil && n == 0 {
			err = fmt.Errorf("the spool %s is taken by another process at the same time", spoolID)
		}
		return err
	})
	return was, err
}

func (t *tx) SpoolsBehind(before time.Time, limit int) ([]metering.SpoolReport, error) {
	var list []metering.SpoolReport
	err := t.query(func(r row) error {
		var s metering.SpoolReport
		var until int64
		err := r.Scan(&s.ID, &s.Place, &until)
		s.StoredUntil = fromMicros(until)
		list = append(list, s)
		return err
	}, `SELECT spool_id, place, stored_until FROM spool_positions
		WHERE run > 0 AND ended = 0 AND given_up_at = 0 AND stored_until < $1
		ORDER BY stored_until, spool_id LIMIT $2`, micros(before), limit)
	return list, err
}

func (t *tx) ReportSpool(id string, run access.Run, until time.Time, ended bool) error {
	defer t.leavesTree(t.writes)
	over := 0
	if ended {
		over = 1
	}
	n, err := t.exec(`UPDATE spool_positions SET stored_until = $1, ended = $2 WHERE spool_id = $3 AND run = $4 AND run_nonce = $5`,
		micros(until), over, id, run.Number, run.Nonce)
	if err == nil && n == 0 {
		err = org.ErrStale
	}
	return err
}

func (t *tx) GiveUpSpool(id string, before time.Time, reason string, at time.Time) error {
	defer t.leavesTree(t.writes)
	n, err := t.exec(`UPDATE spool_positions SET given_up_at = $1, given_up_for = $2
		WHERE spool_id = $3 AND run > 0 AND ended = 0 AND given_up_at = 0 AND stored_until < $4`, micros(at), storable(reason), id, micros(before))
	if err == nil && n == 0 {
		err = org.ErrAbsent
	}
	return err
}
