package api_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/orgd/orgd/internal/testkit"
)

// lines returns the lines that an answer names as bad, in its order.
func lines(a *testkit.Answer) string {
	var ns []string
	errs, _ := a.JSON("errors").([]any)
	for _, e := range errs {
		ns = append(ns, fmt.Sprint(e.(map[string]any)["line"]))
	}
	return strings.Join(ns, " ")
}

// An import creates all of a hierarchy, in whatever order its rows come.
func TestImport(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		csv := func(status int, rows string, query ...string) *testkit.Answer {
			t.Helper()
			return s.Must(status, "POST", "/orgs/import"+strings.Join(query, ""), op, rows, "Content-Type", "text/csv")
		}
		// Children before parents, a byte-order mark, CRLF, quotes, blank lines.
		rows := "\xef\xbb\xbfname,id,parent_id,tags,type,description,external_id\r\n" +
			"\"Grand, \"\"child\"\"\",g,c,x; y ;x,user,\"two\nlines\",ext-9\r\n\r\nChild,c,r,,group,,\r\nRoot,r,,,,,\r\n東京,s,,,,,\r\n"
		a := csv(200, rows, "?dry_run=true")
		if a.JSON("created") != 4.0 || a.JSON("roots") != 2.0 || a.JSON("dry_run") != true {
			t.Errorf("dry run: %s", a.Body)
		}
		if got := ids(t, s, "/orgs", op); got != "" {
			t.Errorf("the dry run created %s", got)
		}
		a = csv(200, rows)
		if a.JSON("created") != 4.0 || a.JSON("roots") != 2.0 || a.JSON("dry_run") != false {
			t.Errorf("import: %s", a.Body)
		}
		a = s.Must(200, "GET", "/orgs/g", op, "")
		if a.String("name") != `Grand, "child"` || strings.Join(texts(a.JSON("path")), "/") != "r/c/g" || strings.Join(texts(a.JSON("tags")), " ") != "x y" ||
			a.String("type") != "user" || a.String("description") != "two\nlines" || a.String("external_id") != "ext-9" {
			t.Errorf("imported: %s", a.Body)
		}
		if n := len(s.Must(200, "GET", "/orgs/r/children_audit", op, "").JSON().([]any)); n != 3 {
			t.Errorf("%d entries for three organizations of a root", n)
		}
		// All of it is there now: the same file is refused, line by line.
		a = csv(400, rows)
		if lines(a) != "2 5 6 7" || a.String("code") != "import_invalid" {
			t.Errorf("imported twice: %s", a.Body)
		}
		before := ids(t, s, "/orgs", op)
		for _, tt := range []struct{ name, rows, lines, says string }{
			{"a missing parent", "id,name,parent_id\na,A,r\nb,B,none\nc1,C,b\nd,D,none\n", "3 5", "none"},
			{"a repeated id", "id,name\na,A\nb,B\na,Again\n", "4", "line 2"},
			{"a cycle", "id,name,parent_id\na,A,r\nb,B,d\nc1,C,b\nd,D,c1\ne,E,d\n", "3 4 5", "cycle"},
			{"its own parent", "id,name,parent_id\na,A,a\n", "2", "own parent"},
			{"a taken id", "id,name\na,A\nr,R\n", "3", "in use"},
			{"bad members", "id,name,type\na,A,\nb/c,B,\n,C,\nd,,\ne,E,team\n", "3 4 5 6", "/name"},
			{"too few fields", "id,name,type\na,A\n", "2", "2 fields"},
			{"a stray quote", "id,name\na,A\"b\nb,B\n", "2", "CSV"},
			{"an unknown column", "id,name,colour\na,A,red\n", "1", "colour"},
			{"no header", "a,A\n", "1", "unknown"},
			{"no name", "id,type\na,group\n", "1", "name"},
			{"not UTF-8", "id,name\na,\xff\n", "2", "UTF-8"},
			{"NUL", "id,name\na,A\x00\n", "2", "control"},
		} {
			a := csv(400, tt.rows)
			if lines(a) != tt.lines || !strings.Contains(string(a.Body), tt.says) || a.String("fix") == "" {
				t.Errorf("%s: lines %s, want %s: %s", tt.name, lines(a), tt.lines, a.Body)
			}
		}
		csv(400, "")
		csv(400, "id,name\n")
		csv(404, "id,name\nx,X\n", "?parent_id=nowhere")
		if after := ids(t, s, "/orgs", op); after != before {
			t.Errorf("a refused import created something: %s", after)
		}

		// NDJSON, below an organization, with settings.
		nd := func(status int, rows, query string) *testkit.Answer {
			t.Helper()
			return s.Must(status, "POST", "/orgs/import"+query, op, rows, "Content-Type", "application/x-ndjson")
		}
		nd(200, `{"id":"n2","parent_id":"n1","name":"N2","customizations":{"a":1}}`+"\r\n\n"+`{"id":"n1","name":"N1","tags":["t"],"customizations":{"b":2},"locked":["/b"]}`, "?parent_id=c")
		if a := s.Must(200, "GET", "/orgs/n2/customizations", op, ""); !same(a, `{"a":1,"b":2}`, "effective") {
			t.Errorf("imported settings: %s", a.Body)
		}
		a = nd(400, `{"id":"m1","name":"M","parent_id":"n1","customizations":{"b":3}}`+"\n{\n"+`{"id":"m2","name":"M","nickname":"x"}`+"\n"+`{"id":"m3","name":"M","name":"N"}`, "")
		if lines(a) != "2 3 4" {
			t.Errorf("bad lines: %s", a.Body)
		}
		if a := nd(400, `{"id":"m1","name":"M","parent_id":"n1","customizations":{"b":3}}`, ""); lines(a) != "1" || !strings.Contains(string(a.Body), "/b") {
			t.Errorf("below a lock: %s", a.Body)
		}

		// A key imports below its own organization, and nowhere else.
		key, _ := s.NewKey("c", `"permissions":["admin"]`)
		s.Must(200, "POST", "/orgs/import", key, "id,name\nk1,K1\n", "Content-Type", "text/csv")
		if got := strings.Join(texts(s.Must(200, "GET", "/orgs/k1", key, "").JSON("path")), "/"); got != "r/c/k1" {
			t.Errorf("imported to %s", got)
		}
		s.Must(404, "POST", "/orgs/import?parent_id=r", key, "id,name\nk2,K2\n", "Content-Type", "text/csv")
		a = s.Must(400, "POST", "/orgs/import", key, "id,name,parent_id\nk2,K2,s\nk3,K3,c\n", "Content-Type", "text/csv")
		if lines(a) != "2" {
			t.Errorf("below a foreign parent: %s", a.Body)
		}

		// With an Idempotency-Key it happens once.
		first := s.Must(200, "POST", "/orgs/import", op, "id,name\nonce,Once\n", "Content-Type", "text/csv", "Idempotency-Key", "i")
		again := s.Must(200, "POST", "/orgs/import", op, "id,name\nonce,Once\n", "Content-Type", "text/csv", "Idempotency-Key", "i")
		if !bytes.Equal(first.Body, again.Body) || first.Header.Get("Orgd-Audit-Receipt") != again.Header.Get("Orgd-Audit-Receipt") {
			t.Errorf("%s, then %s", first.Body, again.Body)
		}
		s.Must(409, "POST", "/orgs/import", op, "id,name\nonce,Twice\n", "Content-Type", "text/csv", "Idempotency-Key", "i")
		if a := csv(413, "id,name\n"+strings.Repeat("x", 32<<20)); a.JSON("limit_bytes") != float64(32<<20) {
			t.Errorf("an import of more than 32 MiB: %s", a.Body)
		}
	})
}
