package store

import (
	"fmt"

	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/tree"
)

func (t *tx) OrgStates(ids []string) (map[string]tree.OrgState, error) {
	list, err := encodeStrings(ids)
	if err != nil {
		return nil, err
	}
	states := make(map[string]tree.OrgState, len(ids))
	err = t.query(func(r row) error {
		var o tree.OrgState
		var createdAt, deletedAt int64
		err := r.Scan(&o.ID, &o.Path, (*string)(&o.Type), &createdAt, &o.Version, &deletedAt)
		if o.CreatedAt = fromMicros(createdAt); deletedAt == 0 {
			states[o.ID] = o
		}
		return err
	}, `SELECT id, path, type, created_at, version, deleted_at FROM orgs WHERE id IN (SELECT value FROM json_each($1))`, list)
	return states, err
}

func (t *tx) TakenIDs(ids []string) ([]string, error) {
	list, err := encodeStrings(ids)
	if err != nil {
		return nil, err
	}
	var taken []string
	err = t.query(func(r row) error {
		var id string
		err := r.Scan(&id)
		taken = append(taken, id)
		return err
	}, `SELECT id FROM orgs WHERE id IN (SELECT value FROM json_each($1))`, list)
	return taken, err
}

const importColumns = `id, actor_type, actor_id, actor_name, request_id, ip, user_agent, chunks, revealed, step`

func scanImport(r row, p *tree.PendingImport) error {
	return r.Scan(&p.ID, &p.Actor.Type, &p.Actor.ID, &p.Actor.Name, &p.RequestID, &p.IP, &p.UserAgent, &p.Chunks, &p.Revealed, &p.Step)
}

func (t *tx) Import(id string) (*tree.PendingImport, error) {
	p := &tree.PendingImport{}
	err := t.queryRow(func(r row) error { return scanImport(r, p) }, `SELECT `+importColumns+` FROM imports WHERE id = $1`, id)
	return p, err
}

func (t *tx) Imports(after string, limit int) ([]tree.PendingImport, error) {
	var list []tree.PendingImport
	err := t.query(func(r row) error {
		list = append(list, tree.PendingImport{})
		return scanImport(r, &list[len(list)-1])
	}, `SELECT `+importColumns+` FROM imports WHERE id > $1 ORDER BY id LIMIT $2`, after, int64(limit))
	return list, err
}

func (t *tx) BeginImport(p *tree.PendingImport) error {
	_, err := t.exec(`INSERT INTO imports (`+importColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
		p.ID, p.Actor.Type, p.Actor.ID, p.Actor.Name, p.RequestID, p.IP, p.UserAgent, p.Chunks, p.Revealed, p.Step)
	return err
}

func (t *tx) StepImport(p *tree.PendingImport) error {
	n, err := t.exec(`UPDATE imports SET step = step + 1, revealed = $3 WHERE id = $1 AND step = $2`, p.ID, p.Step, p.Revealed)
	if err == nil && n == 0 {
		err = org.ErrStale
	}
	return err
}

func (t *tx) EndImport(id string) error {
	_, err := t.exec(`DELETE FROM imports WHERE id = $1`, id)
	return err
}

// staged is the deletion_id of the rows of a chunk, as long for each of them
// that stagedOf finds the import in it. Their deleted_at is 1, which is no time
// of any delete.
func staged(importID string, chunk int) string { return fmt.Sprintf("%s.%06d", importID, chunk) }

const stagedOf = `substr(o.deletion_id, 1, length(o.deletion_id) - 7)`

func (t *tx) StageOrgs(importID string, chunk int, orgs []*org.Organization) error {
	return t.insertOrgs(orgs, 1, staged(importID, chunk))
}

func (t *tx) StagedOrgs(importID string, chunk int) ([]*org.Organization, error) {
	var orgs []*org.Organization
	err := t.query(func(r row) error {
		o, _, err := scanOrg(r)
		if err == nil {
			o.DeletedAt, o.DeletionID = nil, ""
		}
		orgs = append(orgs, o)
		return err
	}, `SELECT `+orgColumns+` FROM orgs WHERE deleted_at = 1 AND deletion_id = $1 ORDER BY depth, id`, staged(importID, chunk))
	return orgs, err
}

func (t *tx) RevealOrgs(orgs []*org.Organization) error {
	err := t.execEach(`UPDATE orgs SET deleted_at = 0, deletion_id = '', created_at = $3, updated_at = $4, settings_at = $5
		WHERE root_id = $1 AND id = $2 AND deleted_at = 1`,
		len(orgs), func(i int) []any {
			o := orgs[i]
			return []any{o.RootID, o.ID, micros(o.CreatedAt), micros(o.UpdatedAt), micros(o.Settings.UpdatedAt)}
		}, oneRow)
	if err != nil {
		return err
	}
	return t.insertOwned(orgs)
}

func (t *tx) UnstageOrgs(importID string, limit int) (int64, error) {
	return t.exec(`DELETE FROM orgs WHERE deleted_at = 1 AND id IN (SELECT id FROM orgs
		WHERE deleted_at = 1 AND deletion_id >= $1 AND deletion_id < $2 ORDER BY deletion_id LIMIT $3)`,
		importID+".", importID+"/", int64(limit))
}

func (t *tx) Awaited(rootID, path string) (bool, error) {
	var n int64
	err := t.queryRow(into(&n), `SELECT count(*) FROM (SELECT 1 FROM imports WHERE revealed > 0 LIMIT 1) AS i`)
	if err != nil || n == 0 {
		return false, err
	}
	err = t.queryRow(into(&n), `SELECT count(*) FROM (SELECT 1 FROM orgs AS o
		WHERE o.root_id = $1 AND o.path >= $2 AND o.path < $3 AND o.deleted_at = 1
		AND EXISTS (SELECT 1 FROM imports AS i WHERE i.id = `+stagedOf+` AND i.revealed > 0) LIMIT 1) AS a`,
		rootID, path, subtreeEnd(path))
	return n > 0, err
}
