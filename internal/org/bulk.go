package org

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/problem"
)

// ImportOptions say where imported rows go.
type ImportOptions struct {
	Format   string // "csv" or "ndjson"
	ParentID string // where rows without a parent go; empty makes them roots (operator)
	DryRun   bool
}

// ImportResult says what an import created, or would create.
type ImportResult struct {
	Created int64
	Roots   int64 // of those, the ones that have no parent
	DryRun  bool
}

// importBatch is how many organizations are inserted at a time.
const importBatch = 500

// Import creates the organizations that rows describe, all or none of them.
// Rows may come in any order and may name parents that exist already. Every
// organization gets its own audit entry.
func (s *Service) Import(ctx context.Context, call *Call, r io.Reader, opt ImportOptions) (*ImportResult, audit.Receipt, error) {
	if err := PermitBelow(call.Actor); err != nil {
		return nil, audit.Receipt{}, err
	}
	rows, p := ParseImport(r, opt.Format)
	if p != nil {
		return nil, audit.Receipt{}, p
	}
	rows, external, p := OrderImport(rows)
	if p != nil {
		return nil, audit.Receipt{}, p
	}
	if opt.ParentID == "" && !call.Actor.Spans() {
		opt.ParentID = call.Actor.OrgID
	}
	orgs := make([]*Organization, len(rows))
	var bad importErrors
	var customized, tagged bool
	for i, row := range rows {
		o, err := s.check(OrgCreate{ID: row.ID, Name: row.Name, Type: Type(row.Type), Description: row.Description,
			ExternalID: row.ExternalID, Tags: row.Tags, Customizations: row.Customizations, Locked: row.Locked})
		if err != nil {
			bad.add(row.Line, err)
			continue
		}
		orgs[i] = o
		customized = customized || row.Customizations != nil || row.Locked != nil
		tagged = tagged || len(row.Tags) > 0
	}
	if err := bad.err(); err != nil {
		return nil, audit.Receipt{}, err
	}
	if err := permitMembers(call.Actor, customized, tagged); err != nil {
		return nil, audit.Receipt{}, err
	}
	out := &ImportResult{DryRun: opt.DryRun, Created: int64(len(rows))}
	receipt, err := s.change(ctx, call, func(c *change) (any, []audit.Draft, error) {
		out.Roots = 0
		var bad importErrors
		byID := make(map[string]*Organization, len(orgs)+len(external))
		if opt.ParentID != "" {
			o, err := c.target(opt.ParentID, key.OrgsWrite)
			if err != nil {
				return nil, nil, err
			}
			byID[o.ID] = o
		}
		for _, id := range inOrder(external) {
			o, err := c.target(id, key.OrgsWrite)
			if problem.Is(err, problem.NotFound) {
				for _, line := range external[id] {
					bad.add(line, problem.New(problem.ImportInvalid, "the parent %s is not in the import and does not exist", id))
				}
				continue
			} else if err != nil {
				return nil, nil, err
			}
			byID[id] = o
		}
		ids := make([]string, 0, importBatch)
		for start := 0; start < len(rows); start += importBatch {
			ids = ids[:0]
			for _, row := range rows[start:min(start+importBatch, len(rows))] {
				ids = append(ids, row.ID)
			}
			taken, err := c.OrgsByID(ids)
			if err != nil {
				return nil, nil, err
			}
			if len(taken) > 0 {
				lines := make(map[string]int, len(taken))
				for _, row := range rows[start:min(start+importBatch, len(rows))] {
					lines[row.ID] = row.Line
				}
				for _, o := range taken {
					bad.add(lines[o.ID], problem.New(problem.IDTaken, "the id %s is in use", o.ID))
				}
			}
		}
		entries := make([]audit.Draft, 0, len(rows))
		for i, row := range rows {
			o := *orgs[i]
			parentID := row.ParentID
			if parentID == "" {
				parentID = opt.ParentID
			}
			parent := byID[parentID]
			if parentID != "" && parent == nil {
				continue // its parent's line is reported already
			}
			if err := o.place(parent); err != nil {
				bad.add(row.Line, err)
				continue
			}
			if parent == nil {
				out.Roots++
			}
			o.stamp(c)
			byID[o.ID] = &o
			if string(o.Settings.Values) != "{}" {
				above, err := c.layersAbove(&o, byID)
				if err != nil {
					return nil, nil, err
				}
				if err := c.checkSettings(&o, "{}", o.Settings.Values, above); err != nil {
					bad.add(row.Line, err)
					continue
				}
			}
			entries = append(entries, c.orgEntry(&o, "organization.created", o.created()))
		}
		if err := bad.err(); err != nil {
			return nil, nil, err
		}
		if opt.DryRun {
			return nil, nil, nil
		}
		batch := make([]*Organization, 0, importBatch)
		for i, row := range rows {
			o := byID[row.ID]
			batch = append(batch, o)
			if len(batch) == importBatch || i == len(rows)-1 {
				if err := c.insert(batch); err != nil {
					return nil, nil, err
				}
				batch = batch[:0]
			}
			if o.ParentID == "" {
				if err := s.startLog(c, o); err != nil {
					return nil, nil, err
				}
			}
		}
		return out, entries, nil
	})
	return out, receipt, err
}

// inOrder returns the ids of parents in the order of the first lines that
// name them.
func inOrder(external map[string][]int) []string {
	return slices.SortedFunc(maps.Keys(external), func(a, b string) int { return cmp.Compare(external[a][0], external[b][0]) })
}

// layersAbove returns the settings of all organizations above o, from those
// at hand and, for what is above them, from the store.
func (c *change) layersAbove(o *Organization, byID map[string]*Organization) ([]Layer, error) {
	ids := o.PathIDs()
	ids = ids[:len(ids)-1]
	chain := make([]*Organization, len(ids))
	for i := len(ids) - 1; i >= 0; i-- {
		a := byID[ids[i]]
		if a == nil {
			stored, err := c.ancestors(chain[i+1])
			if err != nil {
				return nil, err
			}
			for j, a := range stored {
				byID[a.ID], chain[j] = a, a
			}
			break
		}
		chain[i] = a
	}
	return layers(chain...), nil
}

// maxImportErrors bounds the lines that an error lists.
const maxImportErrors = 100

// importErrors collects the bad lines of an import.
type importErrors struct {
	fields []problem.Field
	more   int
}

func (e *importErrors) add(line int, err error) {
	if len(e.fields) == maxImportErrors {
		e.more++
		return
	}
	p := problem.From(err)
	f := problem.Field{Line: line, Detail: p.Detail}
	if len(p.Fields) > 0 {
		f.Pointer, f.Detail = p.Fields[0].Pointer, p.Fields[0].Detail
	}
	e.fields = append(e.fields, f)
}

func (e *importErrors) err() error {
	if len(e.fields) == 0 {
		return nil
	}
	detail := fmt.Sprintf("%d rows are invalid; nothing was imported.", len(e.fields)+e.more)
	slices.SortStableFunc(e.fields, func(a, b problem.Field) int { return cmp.Compare(a.Line, b.Line) })
	if len(e.fields)+e.more == 1 {
		detail = "1 row is invalid; nothing was imported."
	}
	if e.more > 0 {
		detail += fmt.Sprintf(" The first %d are listed.", len(e.fields))
	}
	return &problem.Error{Code: problem.ImportInvalid, Detail: detail, Fields: e.fields,
		Fix: "Mend these lines and send the whole file again. What can only be checked once every line can be read may show then."}
}
