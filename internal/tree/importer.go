package tree

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/org"
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
	ParentID       string                   // empty for none
	Texts          [len(org.Texts)]string   // the members of org.Texts, in its order
	Lists          [len(org.Lists)]textList // those of org.Lists
	Customizations jsontext.Value           // nil for none
}

// What an import itself looks at.
var (
	typeText   = columnOf("type").text
	lockedList = columnOf("locked").list
)

func (row *ImportRow) locked() []string { return row.Lists[lockedList].split() }

// layer returns the settings of the row.
func (row *ImportRow) layer() settings.Layer {
	return settings.Layer{OrgID: row.ID, Values: row.Customizations, Locked: row.locked()}
}

// Org returns the organization that the row describes, without its place and its times.
func (row *ImportRow) Org() *org.Organization {
	o := &org.Organization{ID: row.ID, ParentID: row.ParentID, Version: 1, Settings: org.Settings{Values: jsontext.Value("{}")}}
	for i := range org.Texts {
		*org.Texts[i].Of(o) = cmp.Or(row.Texts[i], org.Texts[i].Default)
	}
	for i := range org.Lists {
		*org.Lists[i].Of(o) = row.Lists[i].split()
	}
	if row.Customizations != nil {
		o.Settings.Values = row.Customizations
	}
	return o
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

func (l textList) len() int {
	if l == "" {
		return 0
	}
	return strings.Count(string(l), "\x00") + 1
}

// importColumns are the columns of a CSV import.
var importColumns = func() []string {
	columns := []string{"id", "parent_id"}
	for i := range org.Texts {
		columns = append(columns, org.Texts[i].Name)
	}
	for i := range org.Lists {
		if m := &org.Lists[i]; !m.Setting {
			columns = append(columns, m.Name)
		}
	}
	return columns
}()

// importColumn is where a field of a column goes.
type importColumn struct {
	name string
	text int // of org.Texts; -1 for none
	list int // of org.Lists; -1 for none
}

func columnOf(name string) importColumn {
	return importColumn{name: name,
		text: slices.IndexFunc(org.Texts[:], func(m org.TextMember) bool { return m.Name == name }),
		list: slices.IndexFunc(org.Lists[:], func(m org.ListMember) bool { return m.Name == name })}
}

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
	columns := make([]importColumn, len(header))
	seen := make([]string, 0, len(header))
	for i, name := range header {
		name = strings.TrimSpace(name)
		if !slices.Contains(importColumns, name) {
			return nil, badLine(headerLine, "the column %.100q is unknown; the columns are %s", name, strings.Join(importColumns, ", "))
		}
		if slices.Contains(seen, name) {
			return nil, badLine(headerLine, "the column %s appears twice", name)
		}
		columns[i], seen = columnOf(name), append(seen, name)
	}
	for _, name := range []string{"id", "name"} {
		if !slices.Contains(seen, name) {
			return nil, badLine(headerLine, "the column %s is missing", name)
		}
	}
	var bad importErrors
	var lists [len(org.Lists)][]string
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
		for i := range lists {
			lists[i] = lists[i][:0]
		}
		for i, field := range record {
			switch c := columns[i]; {
			case c.name == "id":
				row.ID = strings.TrimSpace(field)
			case c.name == "parent_id":
				row.ParentID = strings.TrimSpace(field)
			case c.text >= 0:
				if org.Texts[c.text].Structural {
					field = strings.TrimSpace(field)
				}
				row.Texts[c.text] = field
			case c.list >= 0:
				for text := range strings.SplitSeq(field, ";") {
					if text = strings.TrimSpace(text); text != "" {
						lists[c.list] = append(lists[c.list], text)
					}
				}
			}
		}
		if p := row.check(&lists); p != nil {
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

// importObject is the type of a line of NDJSON: a struct, so that what a line has and the
// table of members lacks is found by the decoder.
var importObject = func() reflect.Type {
	field := func(name string, typ reflect.Type) reflect.StructField {
		return reflect.StructField{Name: "X_" + name, Type: typ, Tag: reflect.StructTag(`json:"` + name + `"`)}
	}
	text, list := reflect.TypeFor[string](), reflect.TypeFor[[]string]()
	fields := []reflect.StructField{field("id", text), field("parent_id", text), field("customizations", reflect.TypeFor[jsontext.Value]())}
	for i := range org.Texts {
		fields = append(fields, field(org.Texts[i].Name, text))
	}
	for i := range org.Lists {
		fields = append(fields, field(org.Lists[i].Name, list))
	}
	return reflect.StructOf(fields)
}()

// parseRow parses and checks a line of NDJSON. null stands for a member that is absent.
func parseRow(line int, text []byte) (ImportRow, *problem.Error) {
	object := reflect.New(importObject)
	if err := json.Unmarshal(text, object.Interface(), json.RejectUnknownMembers(true)); err != nil {
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
	in := object.Elem()
	row := ImportRow{Line: line, ID: in.Field(0).String(), ParentID: in.Field(1).String()}
	if v := jsontext.Value(in.Field(2).Bytes()); v.Kind() != 'n' {
		row.Customizations = v
	}
	const members = 3
	for i := range row.Texts {
		row.Texts[i] = in.Field(members + i).String()
	}
	var lists [len(org.Lists)][]string
	for i := range lists {
		lists[i], _ = reflect.TypeAssert[[]string](in.Field(members + len(row.Texts) + i))
	}
	return row, row.check(&lists)
}

// check checks the members of a row, with its lists, and brings them into their final
// form.
func (row *ImportRow) check(lists *[len(org.Lists)][]string) (p *problem.Error) {
	if row.ID == "" {
		return problem.Body("/id", "is required")
	}
	if p = org.CheckID("/id", row.ID); p != nil {
		return p
	}
	if row.ParentID != "" {
		if p = org.CheckID("/parent_id", row.ParentID); p != nil {
			return p
		}
	}
	for i := range row.Texts {
		m := &org.Texts[i]
		if row.Texts[i] == "" && m.Default != "" {
			continue
		}
		if row.Texts[i], p = m.Check(m.Pointer(), row.Texts[i]); p != nil {
			return p
		}
	}
	if p = row.checkLists(lists, false); p != nil {
		return p
	}
	if row.Customizations != nil {
		if row.Customizations, p = settings.CheckValues("/customizations", row.Customizations); p != nil {
			return p
		}
		if string(row.Customizations) == "{}" {
			row.Customizations = nil
		}
	}
	return row.checkLists(lists, true)
}

func (row *ImportRow) checkLists(lists *[len(org.Lists)][]string, settings bool) *problem.Error {
	for i := range lists {
		m := &org.Lists[i]
		if m.Setting != settings {
			continue
		}
		list, p := m.Check(m.Pointer(), lists[i])
		if p != nil {
			return p
		}
		row.Lists[i] = joinTexts(list)
	}
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
		if row.Depth == org.MaxDepth+1 { // what lies below it is too deep as a consequence
			bad.add(row.Line, problem.New(problem.ImportInvalid, "%s would be more than %d levels below the top of the import", row.ID, org.MaxDepth))
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
