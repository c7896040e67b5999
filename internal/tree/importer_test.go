package tree

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

// rowOf returns the row that describes an organization.
func rowOf(line int, o org.Organization) ImportRow {
	row := ImportRow{Line: line, ID: o.ID, ParentID: o.ParentID, Customizations: o.Settings.Values}
	for i := range org.Texts {
		row.Texts[i] = *org.Texts[i].Of(&o)
	}
	for i := range org.Lists {
		row.Lists[i] = joinTexts(*org.Lists[i].Of(&o))
	}
	return row
}

func TestParseImport(t *testing.T) {
	for _, tt := range []struct {
		name, format, in string
		want             []ImportRow
	}{
		{"all columns", "csv", "id,parent_id,name,type,description,external_id,tags\na,,A,group,\"x, \"\"y\"\"\nz\",e 1,b; a;b;\n" +
			"b,a,B,,,,\n",
			[]ImportRow{
				rowOf(2, org.Organization{ID: "a", Name: "A", Type: "group", Description: "x, \"y\"\nz", ExternalID: "e 1", Tags: []string{"a", "b"}}),
				rowOf(4, org.Organization{ID: "b", ParentID: "a", Name: "B"}),
			}},
		{"another order, few columns", "csv", "name,id\nA,a\n", []ImportRow{rowOf(2, org.Organization{ID: "a", Name: "A"})}},
		{"byte-order mark, CRLF, blank lines", "csv", "\ufeffid,name\r\n\r\n a , Ä \r\n", []ImportRow{rowOf(3, org.Organization{ID: "a", Name: "Ä"})}},
		{"no newline at the end", "csv", "id,name\na,A", []ImportRow{rowOf(2, org.Organization{ID: "a", Name: "A"})}},
		{"all members", "ndjson", `{"id":"a","parent_id":null,"name":"A","type":"user","description":"d","external_id":"e","tags":["b","a"],` +
			`"customizations":{"x": 1.0},"locked":["/y","/x"]}` + "\n" + `{"parent_id":"a","name":"B","id":"b","tags":[],"customizations":{},"locked":[]}`,
			[]ImportRow{
				rowOf(1, org.Organization{ID: "a", Name: "A", Type: "user", Description: "d", ExternalID: "e", Tags: []string{"a", "b"},
					Settings: org.Settings{Values: jsontext.Value(`{"x":1.0}`), Locked: []string{"/x", "/y"}}}),
				rowOf(2, org.Organization{ID: "b", ParentID: "a", Name: "B"}),
			}},
		{"byte-order mark, CRLF, blank lines", "ndjson", "\ufeff{\"id\":\"a\",\"name\":\"A\"}\r\n\r\n{\"id\":\"b\",\"name\":\"B\",\"customizations\":null}\r\n",
			[]ImportRow{rowOf(1, org.Organization{ID: "a", Name: "A"}), rowOf(3, org.Organization{ID: "b", Name: "B"})}},
	} {
		t.Run(tt.format+"/"+tt.name, func(t *testing.T) {
			got, err := ParseImport(iotest.OneByteReader(strings.NewReader(tt.in)), tt.format, MaxImportRows)
			if err != nil {
				t.Fatal(err, err.Fields)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestParseImportErrors(t *testing.T) {
	object := func(members string) string { return `{"id":"a","name":"A"` + members + "}\n" }
	for _, tt := range []struct {
		name, format, in string
		lines            []int  // of the fields
		says             string // part of the detail or of the first field
	}{
		{"empty", "csv", "", nil, "empty"},
		{"only a byte-order mark", "csv", "\ufeff", nil, "empty"},
		{"no rows", "csv", "id,name\n", nil, "no rows"},
		{"unknown column", "csv", "id,name,colour\n", []int{1}, `"colour"`},
		{"semicolons", "csv", "id;name\na;A\n", []int{1}, `"id;name"`},
		{"column twice", "csv", "id,name,id\n", []int{1}, "twice"},
		{"no name column", "csv", "\nid\na\n", []int{2}, "name"},
		{"header with a bare quote", "csv", "id,na\"me\n", []int{1}, "CSV"},
		{"too few fields", "csv", "id,name\na\nb,B\nc,C,c\n", []int{2, 4}, "1 fields"},
		{"bare quote", "csv", "id,name\na,A\"A\nb,\n", []int{2, 3}, "CSV"},
		{"unterminated quote", "csv", "id,name\na,A\nb,\"B\n\n\n", []int{3}, "CSV"},
		{"invalid UTF-8", "csv", "id,name\na,A\nb,\xff\n", []int{3}, "UTF-8"},
		{"UTF-16", "csv", "\xff\xfei\x00d\x00,\x00", []int{1}, "unknown"},
		{"bad members", "csv", "id,parent_id,name,type,description,external_id,tags\n,,A,,,,\n../x,,A,,,,\na,/,A,,,,\na,,\u202e,,,,\na,,A,team,,,\na,,A,,\x01,,\na,,A,,,\x01,\na,,A,,,,a b\n",
			[]int{2, 3, 4, 5, 6, 7, 8, 9}, "/id is required"},

		{"empty", "ndjson", "", nil, "no rows"},
		{"blank", "ndjson", "\n \n", nil, "no rows"},
		{"not JSON", "ndjson", object("") + "{\n" + object(""), []int{2}, "JSON"},
		{"not an object", "ndjson", "[]\nnull\n", []int{1, 2}, "object"},
		{"two on a line", "ndjson", `{"id":"a","name":"A"} {"id":"b","name":"B"}`, []int{1}, "JSON"},
		{"unknown member", "ndjson", object(`,"colour":"red"`), []int{1}, `"colour"`},
		{"another case", "ndjson", object(`,"Type":"user"`), []int{1}, `"Type"`},
		{"member twice", "ndjson", object(`,"id":"b"`), []int{1}, "duplicate"},
		{"wrong type", "ndjson", object(`,"tags":"x"`) + object(`,"type":1`) + object(`,"tags":[1]`), []int{1, 2, 3}, "/tags"},
		{"invalid UTF-8", "ndjson", object(",\"description\":\"\xff\""), []int{1}, "UTF-8"},
		{"lone surrogate", "ndjson", object(`,"description":"\ud800"`), []int{1}, "JSON"},
		{"no id", "ndjson", `{"name":"A"}`, []int{1}, "/id is required"},
		{"customizations", "ndjson", object(`,"customizations":[]`), []int{1}, "/customizations"},
		{"locked", "ndjson", object(`,"locked":["x"]`), []int{1}, "/locked/0"},
		{"a long line", "ndjson", object("") + object(`,"description":"`+strings.Repeat("x", 1<<20)+`"`), []int{2}, "longer"},
	} {
		t.Run(tt.format+"/"+tt.name, func(t *testing.T) {
			rows, err := ParseImport(strings.NewReader(tt.in), tt.format, MaxImportRows)
			if err == nil {
				t.Fatalf("accepted: %+v", rows)
			}
			var lines []int
			text := err.Detail
			for _, f := range err.Fields {
				lines = append(lines, f.Line)
				text += "\n" + f.Pointer + " " + f.Detail
			}
			if err.Code != problem.ImportInvalid || !slices.Equal(lines, tt.lines) || !strings.Contains(text, tt.says) {
				t.Errorf("error %v %+v; want one that says %q at the lines %v", err, err.Fields, tt.says, tt.lines)
			}
		})
	}
	if _, err := ParseImport(strings.NewReader("id,name\na,A\n"), "xml", MaxImportRows); err == nil || err.Code != problem.InvalidParameter {
		t.Errorf("the format xml gives %v", err)
	}
}

func TestParseImportListsAtMost100Lines(t *testing.T) {
	_, err := ParseImport(strings.NewReader("id,name\n"+strings.Repeat("/,x\n", 250)), "csv", MaxImportRows)
	if err == nil || len(err.Fields) != 100 || !strings.Contains(err.Detail, "250 rows") {
		t.Errorf("got %v with %d fields; want 100 of 250", err, len(err.Fields))
	}
}

// Nothing is read past the first row too many, good or bad.
func TestParseImportStopsAtTheBound(t *testing.T) {
	for _, tt := range []struct{ format, header, row string }{
		{"csv", "id,name\n", "x,x\n"}, {"csv", "id,name\n", "x\n"}, {"csv", "id,name\n", "\"a\"b,x\n"},
		{"ndjson", "", "{}\n"}, {"ndjson", "", "\n \n{\"id\":\"x\",\"name\":\"x\"}\n"},
	} {
		const bound = 1000
		rows := strings.NewReader(tt.header + strings.Repeat(tt.row, 100*bound))
		whole := rows.Len()
		_, err := ParseImport(rows, tt.format, bound)
		if err == nil || err.Code != problem.TooLarge || err.Extra["limit_rows"] != bound || err.Fix == "" {
			t.Errorf("%s of %q: %v", tt.format, tt.row, err)
		}
		if read := whole - rows.Len(); read > bound*len(tt.row)+128<<10 {
			t.Errorf("%s of %q: %d bytes were read", tt.format, tt.row, read)
		}
		if _, err := ParseImport(strings.NewReader(tt.header+strings.Repeat(tt.row, bound)), tt.format, bound); err != nil && err.Code == problem.TooLarge {
			t.Errorf("%s of %q: as many rows as are allowed: %v", tt.format, tt.row, err)
		}
	}
}

func TestParseImportPassesReadErrorsOn(t *testing.T) {
	tooLarge := problem.New(problem.TooLarge, "Too large.")
	for format, start := range map[string]string{"csv": "id,name\na,A\n", "ndjson": "{\"id\":\"a\",\"name\":\"A\"}\n"} {
		if _, err := ParseImport(io.MultiReader(strings.NewReader(start), iotest.ErrReader(tooLarge)), format, MaxImportRows); err != tooLarge {
			t.Errorf("%s: got %v, want the reader's problem", format, err)
		}
		broken := errors.New("connection reset")
		if _, err := ParseImport(io.MultiReader(strings.NewReader(start), iotest.ErrReader(broken)), format, MaxImportRows); err == nil ||
			err.Code != problem.InvalidRequest || !errors.Is(err, broken) {
			t.Errorf("%s: got %v, want InvalidRequest with its cause", format, err)
		}
	}
}

func TestParseImportOfARealOrganization(t *testing.T) {
	text, err := os.ReadFile("../../cmd/orgd/kubernetes-org.csv")
	if err != nil {
		t.Fatal(err)
	}
	rows, p := ParseImport(bytes.NewReader(text), "csv", MaxImportRows)
	if p != nil {
		t.Fatal(p, p.Fields)
	}
	external, p := OrderImport(rows)
	if p != nil {
		t.Fatal(p, p.Fields)
	}
	roots := 0
	for _, row := range rows {
		if row.ParentID == "" {
			roots++
		}
	}
	if len(rows) != 825 || roots != 8 || len(external) != 0 {
		t.Errorf("%d rows, %d roots, %d parents outside; want 825, 8, 0", len(rows), roots, len(external))
	}
}

// family makes rows "id<parent" on lines 1, 2, …; the parent may be absent.
func family(rows ...string) []ImportRow {
	var out []ImportRow
	for i, s := range rows {
		id, parent, _ := strings.Cut(s, "<")
		out = append(out, ImportRow{Line: i + 1, ID: id, ParentID: parent})
	}
	return out
}

func TestOrderImport(t *testing.T) {
	rows := family("c<b", "x<out", "b<a", "a", "y<out", "d<a", "z<other")
	external, err := OrderImport(rows)
	if err != nil {
		t.Fatal(err, err.Fields)
	}
	var got []string
	for _, row := range rows {
		above := "-"
		if row.Parent >= 0 {
			above = rows[row.Parent].ID
		}
		got = append(got, fmt.Sprintf("%s:%d:%s", row.ID, row.Depth, above))
	}
	if want := "x:0:- a:0:- y:0:- z:0:- b:1:a d:1:a c:2:b"; strings.Join(got, " ") != want {
		t.Errorf("order %v, want %s", got, want)
	}
	if want := map[string][]int{"out": {2, 5}, "other": {7}}; !reflect.DeepEqual(external, want) {
		t.Errorf("parents outside %v, want %v", external, want)
	}
}

func TestOrderImportErrors(t *testing.T) {
	deep := []string{"n0"}
	for i := range org.MaxDepth + 5 {
		deep = append(deep, fmt.Sprintf("n%d<n%d", i+1, i))
	}
	for _, tt := range []struct {
		name  string
		rows  []ImportRow
		lines []int
		says  string
	}{
		{"duplicate", family("a", "b", "a<b", "a"), []int{3, 4}, "already on line 1"},
		{"its own parent", family("a", "b<b", "c<b"), []int{2}, "b is its own parent"},
		{"a cycle", family("a", "b<d", "c<b", "d<c", "e<c"), []int{2, 3, 4}, "cycle of 3: b (line 2) → d (line 4) → c (line 3) → b"},
		{"two cycles", family("a<b", "b<a", "x<y", "y<x", "z<x"), []int{1, 2, 3, 4}, "cycle of 2"},
		{"too deep", family(deep...), []int{org.MaxDepth + 2}, "levels"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := OrderImport(tt.rows)
			if err == nil {
				t.Fatal("accepted")
			}
			var lines []int
			for _, f := range err.Fields {
				lines = append(lines, f.Line)
			}
			if err.Code != problem.ImportInvalid || !slices.Equal(lines, tt.lines) || !strings.Contains(err.Fields[0].Detail, tt.says) {
				t.Errorf("error %v %+v; want one that says %q at the lines %v", err, err.Fields, tt.says, tt.lines)
			}
		})
	}
	if _, err := OrderImport(family(deep[:org.MaxDepth+1]...)); err != nil {
		t.Errorf("a tree of the greatest depth is refused: %v", err)
	}
}

// Any forest comes back whole with parents first; one more edge that closes a
// cycle is always found, and blamed on exactly the rows of the cycle.
func TestOrderImportProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 30).Draw(t, "n")
		parents := make([]int, n)
		rows := make([]ImportRow, n)
		for i := range rows {
			parents[i] = rapid.IntRange(-1, i-1).Draw(t, "parent")
			rows[i] = ImportRow{ID: fmt.Sprint("r", i)}
			if parents[i] >= 0 {
				rows[i].ParentID = fmt.Sprint("r", parents[i])
			}
		}
		order := rapid.Permutation(rows).Draw(t, "order")
		for i := range order {
			order[i].Line = i + 1
		}
		external, err := OrderImport(order)
		if err != nil || len(external) != 0 {
			t.Fatalf("parents outside %v, %v", external, err)
		}
		depths := map[string]int{}
		for _, row := range order {
			depth := 0
			if row.ParentID != "" {
				above, ok := depths[row.ParentID]
				if !ok {
					t.Fatalf("%s comes before its parent", row.ID)
				}
				depth = above + 1
			}
			if depths[row.ID] = depth; row.Depth != depth {
				t.Fatalf("%s has depth %d, want %d", row.ID, row.Depth, depth)
			}
			if row.Parent < 0 != (row.ParentID == "") || row.Parent >= 0 && order[row.Parent].ID != row.ParentID {
				t.Fatalf("%s has its parent %q at %d", row.ID, row.ParentID, row.Parent)
			}
		}
		if len(depths) != n {
			t.Fatalf("%d rows of %d", len(depths), n)
		}

		// Hang a root below one of its descendants.
		bottom := rapid.IntRange(0, n-1).Draw(t, "bottom")
		cycle := map[string]bool{}
		top := bottom
		for i := bottom; i >= 0; i = parents[i] {
			cycle[fmt.Sprint("r", i)] = true
			top = i
		}
		var want []int
		for i := range order {
			if order[i].ID == fmt.Sprint("r", top) {
				order[i].ParentID = fmt.Sprint("r", bottom)
			}
			if cycle[order[i].ID] {
				want = append(want, order[i].Line)
			}
		}
		slices.Sort(want)
		_, err = OrderImport(order)
		var got []int
		for _, f := range cmp.Or(err, &problem.Error{}).Fields {
			got = append(got, f.Line)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("the cycle is blamed on the lines %v, want %v: %v", got, want, err)
		}
	})
}

// chain makes n rows, each the parent of the one before it.
func chain(n int) []ImportRow {
	rows := make([]ImportRow, n)
	for i := range rows {
		rows[i] = ImportRow{Line: i + 1, ID: fmt.Sprint("r", i), ParentID: fmt.Sprint("r", i+1)}
	}
	rows[n-1].ParentID = ""
	return rows
}

func TestOrderImportOfALongChain(t *testing.T) {
	rows := chain(100_000)
	_, err := OrderImport(rows)
	if err == nil || len(err.Fields) != 1 || err.Fields[0].Line != len(rows)-org.MaxDepth-1 {
		t.Errorf("a chain gives %v, want the one row where it becomes too deep", err)
	}
	rows[len(rows)-1].ParentID = "r0"
	_, err = OrderImport(rows)
	if err == nil || len(err.Fields) != 100 || !strings.Contains(err.Fields[0].Detail, "cycle of 100000") {
		t.Errorf("a ring gives %v, want a cycle of all rows", err)
	}
}

func BenchmarkImport(b *testing.B) {
	var text strings.Builder
	text.WriteString("id,parent_id,name,type,tags\n")
	for i := range 100_000 {
		fmt.Fprintf(&text, "org-%d,org-%d,Organization %d,group,a;b\n", i+1, i/10, i)
	}
	b.SetBytes(int64(text.Len()))
	for b.Loop() {
		rows, err := ParseImport(strings.NewReader(text.String()), "csv", MaxImportRows)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := OrderImport(rows); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzParseImport(f *testing.F) {
	f.Add("id,parent_id,name,type,description,external_id,tags\na,,A,group,\"x\ny\",e,b;a\nb,a,B,,,,\n", true)
	f.Add("\ufeffname,id\r\nA,a\r\n", true)
	f.Add("{\"id\":\"a\",\"name\":\"A\",\"customizations\":{\"x\":1},\"locked\":[\"/x\"]}\n\n{\"id\":\"b\",\"parent_id\":\"b\",\"name\":\"B\"}", false)
	f.Fuzz(func(t *testing.T, text string, isCSV bool) {
		format := "ndjson"
		if isCSV {
			format = "csv"
		}
		lines := strings.Count(text, "\n") + 1
		checkFields := func(err *problem.Error) {
			if err.Code != problem.ImportInvalid {
				t.Fatalf("error %v", err)
			}
			for _, f := range err.Fields {
				if f.Line < 1 || f.Line > lines {
					t.Fatalf("line %d of %d: %s", f.Line, lines, f.Detail)
				}
			}
		}
		rows, err := ParseImport(strings.NewReader(text), format, MaxImportRows)
		if err != nil {
			checkFields(err)
			return
		}
		last := 0
		for _, row := range rows {
			if row.Line <= last || row.Line > lines {
				t.Fatalf("a row is on line %d after %d of %d", row.Line, last, lines)
			}
			last = row.Line
			again := row
			var lists [len(org.Lists)][]string
			for i := range lists {
				lists[i] = again.Lists[i].split()
			}
			if p := again.check(&lists); p != nil || !reflect.DeepEqual(again, row) {
				t.Fatalf("%+v is not in its final form: %v", row, p)
			}
		}
		if _, err := OrderImport(rows); err != nil {
			checkFields(err)
		}
	})
}
