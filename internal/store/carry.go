package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
)

// carryVersion is the version of the migration that carryAuditLogs is.
const carryVersion = 8

// carryAuditLogs derives from the audit logs that a database has what was not kept
// when their entries were written: the hashes of their tiles, and where the
// organizations have been.
func carryAuditLogs(ctx context.Context, tx *sql.Tx, d *dialect) error {
	type auditLog struct {
		rootID string
		epoch  int64
		root   []byte
	}
	var logs []auditLog
	rows, err := tx.QueryContext(ctx, `SELECT root_id, epoch, root_hash FROM audit_heads`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var l auditLog
		if err := rows.Scan(&l.rootID, &l.epoch, &l.root); err != nil {
			return err
		}
		logs = append(logs, l)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, l := range logs {
		head, err := carryTiles(ctx, tx, d, l.rootID, l.epoch)
		if err != nil {
			return err
		}
		if string(head.Root[:]) != string(l.root) {
			return fmt.Errorf("the audit log of %s is not what its head says; restore it from a backup", l.rootID)
		}
	}
	return carryPlaces(ctx, tx, d)
}

// carryTiles stores the hashes of the complete tiles of a log, and returns the
// head that its entries make.
func carryTiles(ctx context.Context, tx *sql.Tx, d *dialect, rootID string, epoch int64) (*audit.Head, error) {
	const page = 4096
	head := audit.NewHead(rootID, "")
	for {
		var leaves []audit.Hash
		rows, err := tx.QueryContext(ctx, d.query(`SELECT leaf_hash FROM audit_entries
			WHERE root_id = $1 AND epoch = $2 AND seq >= $3 AND seq < $4 ORDER BY seq`), rootID, epoch, head.Size, head.Size+page)
		if err != nil {
			return nil, err
		}
		for rows.Next() {
			var b []byte
			if err = rows.Scan(&b); err != nil {
				break
			}
			if len(b) != len(audit.Hash{}) {
				err = fmt.Errorf("a hash of the audit log of %s is damaged", rootID)
				break
			}
			leaves = append(leaves, audit.Hash(b))
		}
		rows.Close()
		if err == nil {
			err = rows.Err()
		}
		if err != nil {
			return nil, err
		}
		for _, leaf := range leaves {
			seq := head.Size
			for k, hash := range head.Extend(leaf) {
				if _, err := tx.ExecContext(ctx, d.query(`INSERT INTO audit_tiles (root_id, epoch, level, place, hash) VALUES ($1, $2, $3, $4, $5)
					ON CONFLICT DO NOTHING`), rootID, epoch, k+1, seq>>(audit.TileHeight*(k+1)), hash[:]); err != nil {
					return nil, err
				}
			}
		}
		if len(leaves) < page {
			return head, nil
		}
	}
}

// carryPlaces notes which parents the organizations have had: the paths of the
// entries that made and moved them say so.
func carryPlaces(ctx context.Context, tx *sql.Tx, d *dialect) error {
	type place struct {
		rootID, parentID, orgID string
		since, until            int64
	}
	var places []place
	open := map[string]int{} // organization → its present place in places
	rows, err := tx.QueryContext(ctx, `SELECT e.root_id, e.org_id, e.path, e.at FROM audit_entries AS e
		WHERE e.action IN ('organization.created', 'organization.moved')
		AND EXISTS (SELECT 1 FROM orgs AS o WHERE o.root_id = e.root_id AND o.id = e.org_id AND o.created_at <= e.at)
		ORDER BY e.root_id, e.epoch, e.seq`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var p place
		var path string
		if err := rows.Scan(&p.rootID, &p.orgID, &path, &p.since); err != nil {
			return err
		}
		ids := org.SplitPath(path)
		if len(ids) < 2 {
			continue
		}
		p.parentID = ids[len(ids)-2]
		if last, ok := open[p.orgID]; ok {
			places[last].until = p.since
		}
		open[p.orgID] = len(places)
		places = append(places, p)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, p := range places {
		if _, err := tx.ExecContext(ctx, d.query(`INSERT INTO org_places (root_id, parent_id, org_id, since, until) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT DO NOTHING`), p.rootID, p.parentID, p.orgID, p.since, p.until); err != nil {
			return err
		}
	}
	return nil
}
