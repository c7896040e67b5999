package tree

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/settings"
)

// Bounds of the work that checking the settings of one import takes. It is
// done outside of transactions.
const (
	// maxImportMerged bounds the bytes that are merged: a row with settings
	// costs what is in effect above it, and the locks there.
	maxImportMerged = 64 << 20
	maxImportCheck  = 30 * time.Second
)

// settingsChecker checks the settings of an import's rows against the locks
// and the schema above them. What an organization hands down is made once.
type settingsChecker struct {
	now    func() time.Time
	places map[string]*settings.Inherited // by the organization outside of the import
	rows   map[int]*settings.Inherited
	left   int // of maxImportMerged
}

func newSettingsChecker(now func() time.Time) *settingsChecker {
	return &settingsChecker{now: now, places: map[string]*settings.Inherited{}, rows: map[int]*settings.Inherited{}, left: maxImportMerged}
}

func (k *settingsChecker) spend(n int) error {
	if k.left -= n; k.left < 0 {
		return problem.New(problem.TooLarge, "The settings of these rows take too much work to check: merged with what they inherit they are more than %d MiB.", maxImportMerged>>20).
			WithFix("Split the file by subtree, or import the organizations without customizations and set these afterwards.")
	}
	return nil
}

// findSettings finds what the places hand down to rows that have settings, and
// adds those above them to the places.
func (p *importPlan) findSettings(c *importCheck, k *settingsChecker) error {
	direct := slices.DeleteFunc(slices.Sorted(maps.Keys(p.settings)), func(id string) bool {
		_, ok := p.places[id]
		return !ok
	})
	above := map[string]bool{}
	for _, id := range direct {
		for _, a := range org.SplitPath(p.places[id].Path) {
			above[a] = true
		}
	}
	if len(above) > maxImportAbove {
		return tooManyParents()
	}
	layersOf := make(map[string]settings.Layer, len(above))
	for ids := range slices.Chunk(slices.Sorted(maps.Keys(above)), 50) {
		orgs, err := c.OrgsByID(ids)
		if err != nil {
			return err
		}
		for _, o := range orgs {
			if err := k.spend(len(o.Settings.Values)); err != nil {
				return err
			}
			layersOf[o.ID] = org.Layers(o)[0]
			p.places[o.ID], p.settings[o.ID] = stateOf(o), true
		}
	}
	for _, id := range direct {
		chain := org.SplitPath(p.places[id].Path)
		rootID := chain[0]
		if _, ok := p.schemas[rootID]; !ok {
			text, err := schemaText(c, rootID)
			if err != nil {
				return err
			}
			p.schemas[rootID] = string(text)
		}
		var schema *settings.Schema
		if text := p.schemas[rootID]; text != "" {
			var refused *problem.Error
			if schema, refused = settings.CompileSchema([]byte(text)); refused != nil {
				return refused
			}
		}
		in := settings.Inherit(rootID, schema)
		for _, a := range chain {
			if made := k.places[a]; made != nil {
				in = made
				continue
			}
			if err := k.spend(in.Cost(layersOf[a].Values)); err != nil {
				return err
			}
			in = in.Below(layersOf[a])
			k.places[a] = in
		}
	}
	return nil
}

// check checks the settings of the rows that have not failed.
func (k *settingsChecker) check(ctx context.Context, rows []ImportRow, outside []string, failed []bool, bad *importErrors) error {
	end := k.now().Add(maxImportCheck)
	for i := range rows {
		row := &rows[i]
		if row.Customizations == nil || failed[i] {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if k.now().After(end) {
			return problem.New(problem.TooLarge, "The settings of these rows take more than %d s to check.", maxImportCheck/time.Second).
				WithFix("Split the file by subtree, or simplify the schema of the root.")
		}
		in, err := k.above(rows, outside, i)
		if err != nil {
			return err
		}
		if err := k.spend(in.Cost(row.Customizations)); err != nil {
			return err
		}
		err = in.Check(ctx, row.layer())
		var p *problem.Error
		if errors.As(err, &p) && p.Code != problem.Unavailable {
			bad.add(row.Line, p)
		} else if err != nil {
			return err // it ran out of time, which says nothing about the row
		}
	}
	return nil
}

// above returns what a row inherits.
func (k *settingsChecker) above(rows []ImportRow, outside []string, i int) (*settings.Inherited, error) {
	parent := rows[i].Parent
	if parent < 0 {
		if in := k.places[outside[i]]; in != nil {
			return in, nil
		}
		return &settings.Inherited{}, nil
	}
	if in := k.rows[parent]; in != nil {
		return in, nil
	}
	in, err := k.above(rows, outside, parent)
	if err != nil {
		return nil, err
	}
	if row := &rows[parent]; row.Customizations != nil || row.Lists[lockedList] != "" {
		if err := k.spend(in.Cost(row.Customizations)); err != nil {
			return nil, err
		}
		in = in.Below(row.layer())
	}
	k.rows[parent] = in
	return in, nil
}
