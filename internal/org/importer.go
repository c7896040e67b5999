package org

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/settings"
)

// ImportRow is one organization of an import. Its members have passed their
// checks; what is empty takes its default.
type ImportRow struct {
	Line           int // of the import, 1-based
	Depth          int // below the topmost row above it; set by OrderImport
	Parent         int // the place of its parent among the ordered rows, -1 for none; set by OrderImport
	ID             string
	ParentID       string // empty for none
	Name           string
	Type           string
	Description    string
	ExternalID     string
	Tags           textList
	Customizations jsontext.Value // nil for none
	Locked         textList
}

// textList is a list of texts that are not empty and hold no NUL, in one text:
// an import may have millions of tags.
type textList string

func joinTexts(list []string) textList { return textList(strings.Join(list, "\x00")) }

func (l textList) split() []string {
	if l == "" {
		return nil
	}
	return strings.Split(string(l), "\x00")
}

// importColumns are the columns of a CSV import.
var importColumns = []string{"id", "parent_id", "name", "type", "description", "external_id", "tags"}

// maxImportLine bounds a line of NDJSON, in bytes.
const maxImportLine = 1 << 20

var byteOrderMark = []byte("\xef\xbb\xbf")

// ParseImport reads the organizations of an import in their order.
//
// Format "csv" is RFC 4180 with a header line: the columns of importColumns in
// any order, of which id and name are required; tags are separated by
// semicolons. Format "ndjson" is one JSON object a line with the same members,
// tags being an array, and also customizations and locked. Both are UTF-8; a
// byte-order mark, CRLF and blank lines are allowed.
//
// The error is ImportInvalid and names the bad lines, or TooLarge if there are
// more than maxRows rows, bad ones included, or what r returned if that is a
// *problem.Error. Nothing is read past the first row too many.
func ParseImport(r io.Reader, format string, maxRows int) ([]ImportRow, *problem.Error) {
	var rows []ImportRow
	if sized, ok := r.(interface{ Len() int }); ok {
		rows = make([]ImportRow, 0, min(maxRows, sized.Len()/len("a,b\n")+1))
	}
	buffered := bufio.NewReaderSize(r, 64<<10)
	if mark, _ := buffered.Peek(len(byteOrderMark)); bytes.Equal(mark, byteOrderMark) {
		_, _ = buffered.Discard(len(byteOrderMark))
	}
	var err error
	switch format {
	case "csv":
		rows, err = parseCSV(buffered, rows, maxRows)
	case "ndjson":
		rows, err = parseNDJSON(buffered, rows, maxRows)
	default:
		return nil, problem.New(problem.InvalidParameter, "The format of an import is csv or ndjson, not %q.", format)
	}
	if err != nil {
		return nil, problem.From(err)
	}
	if len(rows) == 0 {
		return nil, problem.New(problem.ImportInvalid, "The import has no rows.")
	}
	return rows, nil
}

// badLine is an error about one line after which reading cannot go on.
func badLine(line int, format string, args ...any) error {
	var bad importErrors
	bad.add(line, problem.New(problem.ImportInvalid, format, args...))
	return bad.err()
}

// unreadable is the error when the import itself cannot be read.
func unreadable(err error) error {
	var p *problem.Error
	if errors.As(err, &p) {
		return p
	}
	return problem.New(problem.InvalidRequest, "The import could not be read to its end.").WithCause(err)
}

// tooManyRows is the error for an import of more rows than are allowed.
func tooManyRows(maxRows int) error {
	return problem.New(problem.TooLarge, "The import has more than %d rows.", maxRows).
		WithFix("Split the file by subtree, and import what is above first: the rows of a later file may name organizations of an earlier one as their parents.").
		With("limit_rows", maxRows)
}

func parseCSV(r io.Reader, rows []ImportRow, maxRows int) ([]ImportRow, error) {
	in := csv.NewReader(r)
	in.ReuseRecord = true
	in.FieldsPerRecord = -1
	header, err := in.Read()
	var syntax *csv.ParseError
	switch {
	case err == io.EOF:
		return nil, problem.New(problem.ImportInvalid, "The import is empty.").
			WithFix("Send a header line (%s) and one line for each organization.", strings.Join(importColumns, ","))
	case errors.As(err, &syntax):
		return nil, badLine(syntax.Line, "the header is not valid CSV: %v", syntax.Err)
	case err != nil:
		return nil, unreadable(err)
	}
	headerLine, _ := in.FieldPos(0)
	columns := make([]string, len(header))
	for i, name := range header {
		name = strings.TrimSpace(name)
		if !slices.Contains(importColumns, name) {
			return nil, badLine(headerLine, "the column %.100q is unknown; the columns are %s", name, strings.Join(importColumns, ", "))
		}
		if slices.Contains(columns, name) {
			return nil, badLine(headerLine, "the column %s appears twice", name)
		}
		columns[i] = name
	}
	for _, name := range []string{"id", "name"} {
		if !slices.Contains(columns, name) {
			return nil, badLine(headerLine, "the column %s is missing", name)
		}
	}
	var bad importErrors
	var tags []string
	for n := 0; ; n++ {
		record, err := in.Read()
		if err == io.EOF {
			return rows, bad.err()
		}
		if n == maxRows {
			return nil, tooManyRows(maxRows)
		}
		if errors.As(err, &syntax) {
			bad.add(syntax.StartLine, problem.New(problem.ImportInvalid, "the line is not valid CSV: %v", syntax.Err))
			continue
		}
		if err != nil {
			return nil, unreadable(err)
		}
		line, _ := in.FieldPos(0)
		if len(record) != len(columns) {
			bad.add(line, problem.New(problem.ImportInvalid, "the line has %d fields, the header has %d", len(record), len(columns)))
			continue
		}
		row := ImportRow{Line: line}
		tags = tags[:0]
		for i, field := range record {
			switch columns[i] {
			case "id":
				row.ID = strings.TrimSpace(field)
			case "parent_id":
				row.ParentID = strings.TrimSpace(field)
			case "name":
				row.Name = field
			case "type":
				row.Type = strings.TrimSpace(field)
			case "description":
				row.Description = field
			case "external_id":
				row.ExternalID = field
			case "tags":
				for tag := range strings.SplitSeq(field, ";") {
					if tag = strings.TrimSpace(tag); tag != "" {
						tags = append(tags, tag)
					}
				}
			}
		}
		if p := row.check(tags, nil); p != nil {
			bad.add(line, p)
		} else if bad.Count() == 0 {
			rows = append(rows, row)
		}
	}
}

func parseNDJSON(r *bufio.Reader, rows []ImportRow, maxRows int) ([]ImportRow, error) {
	var bad importErrors
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 0, 64<<10), maxImportLine)
	line, n := 0, 0
	for in.Scan() {
		line++
		text := bytes.TrimSpace(in.Bytes())
		if len(text) == 0 {
			continue
		}
		if n++; n > maxRows {
			return nil, tooManyRows(maxRows)
		}
		row, p := parseRow(line, text)
		if p != nil {
			bad.add(line, p)
		} else if bad.Count() == 0 {
			rows = append(rows, row)
		}
	}
	switch err := in.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return nil, badLine(line+1, "the line is longer than %d bytes", maxImportLine)
	case err != nil:
		return nil, unreadable(err)
	}
	return rows, bad.err()
}

// parseRow parses and checks a line of NDJSON. null stands for a member that is absent.
func parseRow(line int, text []byte) (ImportRow, *problem.Error) {
	var in struct {
		ID             string         `json:"id"`
		ParentID       string         `json:"parent_id"`
		Name           string         `json:"name"`
		Type           string         `json:"type"`
		Description    string         `json:"description"`
		ExternalID     string         `json:"external_id"`
		Tags           []string       `json:"tags"`
		Customizations jsontext.Value `json:"customizations"`
		Locked         []string       `json:"locked"`
	}
	if err := json.Unmarshal(text, &in, json.RejectUnknownMembers(true)); err != nil {
		var semantic *json.SemanticError
		switch {
		case errors.As(err, &semantic) && errors.Is(err, json.ErrUnknownName):
			return ImportRow{}, problem.New(problem.ImportInvalid, "the member %.100q is unknown", semantic.JSONPointer.LastToken())
		case semantic != nil && semantic.JSONPointer != "":
			p := problem.Body(string(semantic.JSONPointer), "must not be a JSON %s", semantic.JSONKind)
			return ImportRow{}, p
		case semantic != nil:
			return ImportRow{}, problem.New(problem.ImportInvalid, "the line is not a JSON object")
		}
		return ImportRow{}, problem.New(problem.ImportInvalid, "the line is not valid JSON: %v", err)
	}
	row := ImportRow{Line: line, ID: in.ID, ParentID: in.ParentID, Name: in.Name, Type: in.Type,
		Description: in.Description, ExternalID: in.ExternalID}
	if in.Customizations.Kind() != 'n' {
		row.Customizations = in.Customizations
	}
	return row, row.check(in.Tags, in.Locked)
}

// check checks the members of a row, with its tags and locks, and brings them
// into their final form.
func (row *ImportRow) check(tags, locked []string) (p *problem.Error) {
	if row.ID == "" {
		return problem.Body("/id", "is required")
	}
	if p = CheckID("/id", row.ID); p != nil {
		return p
	}
	if row.ParentID != "" {
		if p = CheckID("/parent_id", row.ParentID); p != nil {
			return p
		}
	}
	if row.Name, p = key.CheckName("/name", row.Name); p != nil {
		return p
	}
	if row.Type != "" {
		if p = CheckType("/type", row.Type); p != nil {
			return p
		}
	}
	if row.Description, p = CheckDescription("/description", row.Description); p != nil {
		return p
	}
	if row.ExternalID, p = CheckExternalID("/external_id", row.ExternalID); p != nil {
		return p
	}
	if tags, p = CheckTags("/tags", tags); p != nil {
		return p
	}
	row.Tags = joinTexts(tags)
	if row.Customizations != nil {
		if row.Customizations, p = settings.CheckValues("/customizations", row.Customizations); p != nil {
			return p
		}
		if string(row.Customizations) == "{}" {
			row.Customizations = nil
		}
	}
	if locked, p = settings.CheckLocks("/locked", locked); p != nil {
		return p
	}
	row.Locked = joinTexts(locked)
	return nil
}

// maxCycleNames bounds the organizations that the description of a cycle
// names.
const maxCycleNames = 10

// OrderImport brings the rows, in place, into an order with every parent before
// its children, and gives them their depths and the places of their parents;
// otherwise they stay in their order level by level. external maps the ids
// of parents that are not among the rows to the lines that name them. The
// error is ImportInvalid: ids that repeat, cycles (every line of each), or
// more levels than a tree may have. The order is then as it was. It takes time and memory linear in the
// number of rows.
func OrderImport(rows []ImportRow) (external map[string][]int, err *problem.Error) {
	var bad importErrors
	byID := make(map[string]int, len(rows))
	for i, row := range rows {
		if first, ok := byID[row.ID]; ok {
			bad.add(row.Line, problem.New(problem.ImportInvalid, "the id %s is already on line %d", row.ID, rows[first].Line))
			continue
		}
		byID[row.ID] = i
	}
	if err := bad.err(); err != nil {
		return nil, problem.From(err)
	}
	const none = -1
	external = map[string][]int{}
	parent := make([]int, len(rows))
	firstChild := make([]int, len(rows)) // children of a row are a list in the order of the rows
	nextSibling := make([]int, len(rows))
	for i := range rows {
		firstChild[i], nextSibling[i] = none, none
	}
	queue := make([]int, 0, len(rows))
	for i := len(rows) - 1; i >= 0; i-- {
		parent[i] = none
		if id := rows[i].ParentID; id != "" {
			if p, ok := byID[id]; ok {
				parent[i] = p
				nextSibling[i], firstChild[p] = firstChild[p], i
			} else {
				external[id] = append(external[id], rows[i].Line)
			}
		}
		if parent[i] == none {
			queue = append(queue, i)
		}
	}
	slices.Reverse(queue)
	for lines := range maps.Values(external) {
		slices.Reverse(lines)
	}
	place := make([]int, len(rows)) // among the ordered rows
	placed := make([]bool, len(rows))
	for next := 0; next < len(queue); next++ {
		i := queue[next]
		row := &rows[i]
		row.Depth, row.Parent, place[i], placed[i] = 0, none, next, true
		if p := parent[i]; p != none {
			row.Depth, row.Parent = rows[p].Depth+1, place[p]
		}
		if row.Depth == MaxDepth+1 { // what lies below it is too deep as a consequence
			bad.add(row.Line, problem.New(problem.ImportInvalid, "%s would be more than %d levels below the top of the import", row.ID, MaxDepth))
		}
		for c := firstChild[i]; c != none; c = nextSibling[c] {
			queue = append(queue, c)
		}
	}
	if len(queue) < len(rows) {
		reportCycles(rows, parent, placed, &bad)
	}
	if err := bad.err(); err != nil {
		return nil, problem.From(err)
	}
	permute(rows, queue)
	return external, nil
}

// permute puts the row from[i] at the place i, for each i. It uses from up.
func permute(rows []ImportRow, from []int) {
	for i := range from {
		first, at := rows[i], i
		for from[at] >= 0 && from[at] != i {
			next := from[at]
			rows[at], from[at] = rows[next], -1
			at = next
		}
		if from[at] == i {
			rows[at], from[at] = first, -1
		}
	}
}

// reportCycles adds an error for each row that is on a cycle, cycle by cycle.
// Rows that are not placed are on a cycle or below one.
func reportCycles(rows []ImportRow, parent []int, placed []bool, bad *importErrors) {
	walk := make([]int, len(rows)) // the walk that visited a row; 0 for none
	for start := range rows {
		if placed[start] || walk[start] != 0 {
			continue
		}
		i := start
		for walk[i] == 0 {
			walk[i] = start + 1
			i = parent[i]
		}
		if walk[i] != start+1 {
			continue // an earlier walk has reported this cycle
		}
		cycle := []int{i}
		for j := parent[i]; j != i; j = parent[j] {
			cycle = append(cycle, j)
		}
		slices.Sort(cycle)
		described := describeCycle(rows, parent, cycle)
		for _, j := range cycle {
			bad.add(rows[j].Line, problem.New(problem.ImportInvalid, "%s", described))
		}
	}
}

// describeCycle says how the rows of a cycle lead back to the first of them.
func describeCycle(rows []ImportRow, parent, cycle []int) string {
	first := cycle[0]
	if len(cycle) == 1 {
		return fmt.Sprintf("%s is its own parent", rows[first].ID)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "the parents form a cycle of %d: %s (line %d)", len(cycle), rows[first].ID, rows[first].Line)
	n := 1
	for i := parent[first]; i != first; i = parent[i] {
		if n == maxCycleNames {
			b.WriteString(" → …")
			break
		}
		fmt.Fprintf(&b, " → %s (line %d)", rows[i].ID, rows[i].Line)
		n++
	}
	fmt.Fprintf(&b, " → %s", rows[first].ID)
	return b.String()
}
