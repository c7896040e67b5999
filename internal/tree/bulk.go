package tree

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

// ImportOptions say where imported rows go, and how many there may be.
type ImportOptions struct {
	Format   string // "csv" or "ndjson"
	ParentID string // where rows without a parent go; empty makes them roots (operator)
	DryRun   bool
	MaxRows  int // the greatest number of rows; 0, or more than MaxImportRows, for that
}

// Bounds of one import. Those of the organizations outside of it bound what is
// looked at in the transaction that decides about it.
const (
	MaxImportRows    = 100_000
	maxImportParents = 1000 // organizations outside of the import below which its rows go
	maxImportAbove   = 2000 // these and their ancestors, if rows with settings go below them
)

// Bounds of a chunk: the rows that one transaction writes. They keep it to a
// few milliseconds.
const (
	chunkRows  = 100
	chunkTags  = 4 // so many texts in the lists of a row count as a further row
	chunkBytes = 128 << 10
)

// importBatch is how many ids are looked up at a time.
const importBatch = 500

// planAttempts is how often an import is checked whose surroundings change
// while it is.
const planAttempts = 3

// ImportResult says what an import created, or would create.
type ImportResult struct {
	Created int64
	Roots   int64 // of those, the ones that have no parent
	DryRun  bool
}

// sameState reports whether rows may still go below an organization that was
// as before and is as after.
func sameState(before, after OrgState, settings bool) bool {
	if !settings {
		before.Version = after.Version
	}
	return before == after
}

// Import creates the organizations that rows describe, all or none of them.
// Rows may come in any order and may name parents that exist already. Every
// organization gets its own audit entry.
//
// All that can be checked is checked before anything is written, outside of
// transactions. What was checked against is looked at again in the transaction
// that decides: if it has changed, so that the checks might not hold, they are
// made again. An import of more than one chunk is written chunk by chunk, see
// importChunks.
func (s *Service) Import(ctx context.Context, call *org.Call, r io.Reader, opt ImportOptions) (*ImportResult, audit.Receipt, error) {
	if err := PermitBelow(call.Actor, call.Actor.Path); err != nil {
		return nil, audit.Receipt{}, err
	}
	maxRows := opt.MaxRows
	if maxRows <= 0 || maxRows > MaxImportRows {
		maxRows = MaxImportRows
	}
	rows, p := ParseImport(r, opt.Format, maxRows)
	if p != nil {
		return nil, audit.Receipt{}, p
	}
	external, p := OrderImport(rows)
	if p != nil {
		return nil, audit.Receipt{}, p
	}
	if opt.ParentID == "" && !call.Actor.Everywhere() {
		opt.ParentID = call.Actor.OrgID
	}
	plan, err := s.planImport(ctx, call, rows, external, opt.ParentID)
	if err == nil {
		err = s.checkIDs(ctx, plan)
	}
	if err != nil {
		return nil, audit.Receipt{}, err
	}
	out := &ImportResult{DryRun: opt.DryRun, Created: int64(len(rows)), Roots: plan.roots}
	if opt.DryRun {
		return out, audit.Receipt{}, nil
	}
	var receipt audit.Receipt
	if ends := plan.chunks(); len(ends) > 1 {
		receipt, err = s.importChunks(ctx, call, plan, ends, out)
	} else {
		err = s.confirming(ctx, call, plan, func(plan *importPlan) (err error) {
			receipt, err = s.importAtOnce(ctx, call, plan, out)
			return err
		})
	}
	return out, receipt, err
}

// importAtOnce creates the organizations of a plan in one transaction.
func (s *Service) importAtOnce(ctx context.Context, call *org.Call, plan *importPlan, out *ImportResult) (audit.Receipt, error) {
	return s.changeImport(ctx, call, func(c *importChange) (any, []audit.Draft, error) {
		if err := plan.confirm(c); err != nil {
			return nil, nil, err
		}
		orgs := plan.orgs(0, len(plan.rows))
		entries := make([]audit.Draft, len(orgs))
		for i, o := range orgs {
			stamp(o, c.At)
			entries[i] = c.OrgEntry(o, "organization.created", created(o))
		}
		if err := taken(c.InsertOrgs(orgs)); err != nil {
			return nil, nil, err
		}
		for _, o := range orgs {
			if o.ParentID == "" {
				if err := c.StartLog(audit.NewHead(o.ID, audit.NewLogID(s.rand))); err != nil {
					return nil, nil, err
				}
			}
		}
		return out, entries, nil
	})
}

// importPlan is an import that has passed its checks, with what they have
// relied on.
type importPlan struct {
	rows     []ImportRow // parents before children
	external map[string][]int
	topID    string // where rows without a parent go; empty for nowhere
	roots    int64
	takes    []string // permissions that single columns take
	// places are the organizations outside of the import below which its rows
	// go, and those above them whose settings rows inherit that have some of
	// their own, as they were.
	places   map[string]OrgState
	settings map[string]bool   // the places whose settings such rows inherit
	schemas  map[string]string // the text of a root's schema, "" for none, if such rows go there
}

// errReplan says that what a plan has relied on has changed.
var errReplan = errors.New("what an import was checked against has changed")

// confirming runs decide until it does not fail because what the plan relied
// on has changed, each time with a plan that relies on what is there now.
func (s *Service) confirming(ctx context.Context, call *org.Call, plan *importPlan, decide func(*importPlan) error) error {
	for attempt := 1; ; attempt++ {
		err := decide(plan)
		if !errors.Is(err, errReplan) {
			return err
		}
		next, err := s.planImport(ctx, call, plan.rows, plan.external, plan.topID)
		if err != nil {
			return err
		}
		if attempt == planAttempts || !plan.samePlaces(next) {
			e := problem.New(problem.Conflict, "What is above the rows has changed while the import was checked; nothing was imported.").
				WithFix("Send it again.")
			e.RetryAfter = time.Second
			return e
		}
		plan = next
	}
}

// samePlaces reports whether the rows go to the same places by both plans.
func (p *importPlan) samePlaces(q *importPlan) bool {
	return maps.EqualFunc(p.places, q.places, func(a, b OrgState) bool { return sameState(a, b, false) })
}

// planImport checks, on what is committed and without a lock, everything but
// whether ids are taken.
func (s *Service) planImport(ctx context.Context, call *org.Call, rows []ImportRow, external map[string][]int, topID string) (*importPlan, error) {
	p := &importPlan{rows: rows, external: external, topID: topID, settings: map[string]bool{}, schemas: map[string]string{}}
	if len(external) > maxImportParents {
		return nil, tooManyParents()
	}
	var customized bool
	var listed [len(org.Lists)]bool
	outside := make([]string, len(rows)) // the organization outside of the import that a row is below
	for i := range rows {
		row := &rows[i]
		switch {
		case row.Parent >= 0:
			outside[i] = outside[row.Parent]
		case row.ParentID != "":
			outside[i] = row.ParentID
		default:
			outside[i] = topID
		}
		if row.Customizations != nil {
			p.settings[outside[i]] = true
			customized = true
		}
		for i := range row.Lists {
			listed[i] = listed[i] || row.Lists[i] != ""
		}
	}
	p.takes = nil
	if customized {
		p.takes = append(p.takes, key.CustomizationsWrite)
	}
	for i := range org.Lists {
		if listed[i] {
			p.takes = append(p.takes, org.Lists[i].Permission)
		}
	}
	slices.Sort(p.takes)
	p.takes = slices.Compact(p.takes)
	if err := p.demandMembers(call.Actor); err != nil {
		return nil, err
	}
	var bad importErrors
	checker := newSettingsChecker(s.now)
	if err := s.precheckImport(ctx, call, func(c *importCheck) error {
		bad = importErrors{}
		if err := p.findPlaces(c, &bad); err != nil {
			return err
		}
		return p.findSettings(c, checker)
	}); err != nil {
		return nil, err
	}
	p.roots = 0
	failed := make([]bool, len(rows)) // reported, or below one that was
	for i := range rows {
		row := &rows[i]
		above, ok := p.places[outside[i]]
		if row.Parent >= 0 && failed[row.Parent] || outside[i] != "" && !ok {
			failed[i] = true
			continue
		}
		var parent *org.Organization
		switch base := p.base(outside[i]); {
		case row.Parent >= 0:
			parent = &org.Organization{ID: row.ParentID, Type: org.Type(rows[row.Parent].Texts[typeText]), Depth: base + row.Depth - 1}
		case outside[i] != "":
			parent = &org.Organization{ID: above.ID, Type: above.Type, Depth: base - 1}
		default:
			p.roots++
		}
		if err := place(&org.Organization{ID: row.ID}, parent); err != nil {
			bad.add(row.Line, err)
			failed[i] = true
		}
	}
	if err := checker.check(ctx, rows, outside, failed, &bad); err != nil {
		return nil, err
	}
	if err := bad.err(); err != nil {
		return nil, err
	}
	return p, nil
}

// base is the depth of rows without a parent among the rows that are below an
// organization outside of the import, or are roots.
func (p *importPlan) base(outside string) int {
	if outside == "" {
		return 0
	}
	return strings.Count(p.places[outside].Path, "/")
}

// findPlaces finds the organizations outside of the import below which its
// rows go. None of their roots is locked.
func (p *importPlan) findPlaces(c *importCheck, bad *importErrors) error {
	if p.topID != "" {
		if _, err := c.Target(p.topID, key.OrgsWrite); err != nil {
			return err
		}
	}
	ids := inOrder(p.external)
	if p.topID != "" {
		ids = append(ids, p.topID)
	}
	states, err := c.OrgStates(ids)
	if err != nil {
		return err
	}
	p.places = make(map[string]OrgState, len(ids))
	for _, id := range ids {
		if state, ok := states[id]; ok && c.Call.Actor.Sees(state.Path) {
			p.places[id] = state
			continue
		}
		for _, line := range p.external[id] {
			bad.add(line, problem.New(problem.ImportInvalid, "the parent %s is not in the import and does not exist", id))
		}
	}
	return p.demand(c.Call.Actor, key.OrgsWrite)
}

// below returns the paths of the organizations below which the import puts rows.
func (p *importPlan) below(actor *auth.Actor) (paths []string) {
	for id, place := range p.places {
		if p.isParent(id) {
			paths = append(paths, place.Path)
		}
	}
	if len(paths) == 0 {
		paths = []string{actor.Path}
	}
	return paths
}

// demandBelow checks that the actor sees what the import puts there.
func (p *importPlan) demandBelow(actor *auth.Actor) error {
	for _, path := range p.below(actor) {
		if err := PermitBelow(actor, path); err != nil {
			return err
		}
	}
	return nil
}

// demand checks that the actor holds a permission wherever the import puts rows.
// A row without a parent is a root, which takes the operator.
func (p *importPlan) demand(actor *auth.Actor, permission string) error {
	for _, path := range p.below(actor) {
		if err := actor.Demand(path, permission); err != nil {
			return err
		}
	}
	return nil
}

// demandMembers is demand for what single columns take.
func (p *importPlan) demandMembers(actor *auth.Actor) error {
	for _, permission := range p.takes {
		if err := p.demand(actor, permission); err != nil {
			return err
		}
	}
	return nil
}

// confirm locks the roots of the places, all of which the actor has been seen
// to see, and checks under these locks that what the plan relied on is as it
// was.
func (p *importPlan) confirm(c *importChange) error {
	if p.topID != "" {
		if _, err := c.Target(p.topID, key.OrgsWrite); err != nil {
			return err
		}
	}
	roots := map[string]bool{}
	for _, state := range p.places {
		roots[org.SplitPath(state.Path)[0]] = true
	}
	for _, rootID := range slices.Sorted(maps.Keys(roots)) {
		if err := c.LockRoot(rootID); errors.Is(err, org.ErrAbsent) {
			return errReplan
		} else if err != nil {
			return err
		}
	}
	states, err := c.OrgStates(slices.Collect(maps.Keys(p.places)))
	if err != nil {
		return err
	}
	for id, before := range p.places {
		after, ok := states[id]
		if !ok || !sameState(before, after, p.settings[id]) || !c.Call.Actor.Sees(before.Path) && p.isParent(id) {
			return errReplan
		}
	}
	for rootID, before := range p.schemas {
		if after, err := schemaText(c, rootID); err != nil {
			return err
		} else if string(after) != before {
			return errReplan
		}
	}
	a := c.Call.Actor
	if err := p.demand(a, key.OrgsWrite); err != nil {
		return err
	}
	if err := p.demandBelow(a); err != nil {
		return err
	}
	return p.demandMembers(a)
}

// isParent reports whether rows go right below an organization outside of the
// import, which takes an actor who sees it.
func (p *importPlan) isParent(id string) bool { return id == p.topID || p.external[id] != nil }

// checkIDs checks that no id is taken, of an organization of whatever state.
// What it finds may not last: the rows themselves take the ids.
func (s *Service) checkIDs(ctx context.Context, p *importPlan) error {
	var bad importErrors
	ids := make([]string, 0, importBatch)
	for rows := range slices.Chunk(p.rows, importBatch) {
		ids = ids[:0]
		lines := make(map[string]int, len(rows))
		for i := range rows {
			ids, lines[rows[i].ID] = append(ids, rows[i].ID), rows[i].Line
		}
		var taken []string
		if err := s.imported.Read(ctx, func(v ImportView) (err error) {
			taken, err = v.TakenIDs(ids)
			return err
		}); err != nil {
			return err
		}
		for _, id := range taken {
			bad.add(lines[id], problem.New(problem.IDTaken, "the id %s is in use", id))
		}
	}
	return bad.err()
}

// chunks returns where the chunks end into which the rows are divided.
func (p *importPlan) chunks() []int {
	var ends []int
	rows, size := 0, 0
	for i := range p.rows {
		n := p.rows[i].size()
		if rows >= chunkRows || rows > 0 && size+n > chunkBytes {
			ends = append(ends, i)
			rows, size = 0, 0
		}
		rows, size = rows+1+p.rows[i].listed()/chunkTags, size+n
	}
	return append(ends, len(p.rows))
}

// listed returns how many texts the lists of a row have.
func (row *ImportRow) listed() (n int) {
	for _, list := range row.Lists {
		n += list.len()
	}
	return n
}

// size is about how much text a row is.
func (row *ImportRow) size() int {
	n := len(row.Customizations)
	for _, text := range row.Texts {
		n += len(text)
	}
	for _, list := range row.Lists {
		n += len(list)
	}
	return n
}

// orgs returns the organizations of some of the rows, without their times.
func (p *importPlan) orgs(from, to int) []*org.Organization {
	orgs := make([]*org.Organization, 0, to-from)
	var ids []string
	for i := from; i < to; i++ {
		row := &p.rows[i]
		o := row.Org()
		if o.ParentID == "" {
			o.ParentID = p.topID
		}
		top := row
		ids = append(ids[:0], row.ID)
		for top.Parent >= 0 {
			top = &p.rows[top.Parent]
			ids = append(ids, top.ID)
		}
		slices.Reverse(ids)
		o.Path = strings.Join(ids, "/") + "/"
		if outside := cmp.Or(top.ParentID, p.topID); outside != "" {
			o.Path = p.places[outside].Path + o.Path
		}
		o.RootID, _, _ = strings.Cut(o.Path, "/")
		o.Depth = strings.Count(o.Path, "/") - 1
		orgs = append(orgs, o)
	}
	return orgs
}

func tooManyParents() error {
	return problem.New(problem.TooLarge, "The rows go below more than %d organizations that are not in the import.", maxImportParents).
		WithFix("Split the file by subtree, so that each part goes below fewer of them.")
}

// inOrder returns the ids of parents in the order of the first lines that
// name them.
func inOrder(external map[string][]int) []string {
	return slices.SortedFunc(maps.Keys(external), func(a, b string) int { return cmp.Compare(external[a][0], external[b][0]) })
}

// importErrors collects the bad lines of an import.
type importErrors struct{ problem.Rows }

func (e *importErrors) add(line int, err error) { e.Add(problem.Field{Line: line}, err) }

func (e *importErrors) err() error {
	if e.Count() == 0 {
		return nil
	}
	detail := fmt.Sprintf("%d rows are invalid; nothing was imported.", e.Count())
	if e.Count() == 1 {
		detail = "1 row is invalid; nothing was imported."
	}
	fields := e.Fields()
	slices.SortStableFunc(fields, func(a, b problem.Field) int { return cmp.Compare(a.Line, b.Line) })
	if len(fields) < e.Count() {
		detail += fmt.Sprintf(" The first %d are listed.", len(fields))
	}
	return &problem.Error{Code: problem.ImportInvalid, Detail: detail, Fields: fields,
		Fix: "Mend these lines and send the whole file again. What can only be checked once every line can be read may show then."}
}
