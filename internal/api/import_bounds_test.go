package api_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/tree"
)

// Whatever an import names, it waits for no lock before it is known to be
// right, and a dry run never does: not for the root of somebody else's
// organization, and not for its own.
func TestImportChecksWithoutLocks(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		op := s.OperatorKey
		s.Must(200, "POST", "/orgs/import", op, "id,parent_id,name\nmine,,Mine\nvictim,,Victim\nvictim-b,victim,B\n", "Content-Type", "text/csv")
		key, _ := s.NewKey("mine", `"permissions":["admin"]`)
		s.Must(200, "GET", "/orgs/victim-b", op, "") // the server knows its root
		for _, root := range []string{"victim", "mine"} {
			release := hold(t, s, root)
			for _, tt := range []struct {
				status      int
				query, rows string
			}{
				{400, "?dry_run=true", "id,name,parent_id\nx,x,victim\n"},
				{400, "?dry_run=true", "id,name,parent_id\nx,x,victim-b\ny,y,mine\n"},
				{404, "?dry_run=true&parent_id=victim-b", "id,name\nx,x\n"},
				{400, "", "id,name,parent_id\nx,x,victim\ny,y,x\n"},
				{404, "?parent_id=victim", "id,name\nx,x\n"},
				{400, "", "id,name\nvictim,x\n"},
				{200, "?dry_run=true", "id,name,parent_id\nx,x,mine\ny,y,x\n"},
				{200, "?dry_run=true&parent_id=mine", "id,name\nx,x\n"},
			} {
				answered := make(chan *testkit.Answer, 1)
				go func() {
					a, err := s.TryDo("POST", "/orgs/import"+tt.query, key, tt.rows, "Content-Type", "text/csv")
					if err != nil {
						t.Error(err)
					}
					answered <- a
				}()
				select {
				case a := <-answered:
					if a != nil && a.Status != tt.status {
						t.Errorf("%q %q: %d %s", tt.query, tt.rows, a.Status, a.Body)
					}
				case <-time.After(5 * time.Second):
					t.Errorf("%q %q waits for a change of %s", tt.query, tt.rows, root)
					release()
					<-answered
					return
				}
			}
			release()
		}
	})
}

// An import of too many rows is refused at the first one too many, however bad
// the rows are, and says what to do.
func TestImportRows(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		for _, tt := range []struct{ name, header, row, mediaType string }{
			{"short rows", "id,name\n", "x,x\n", "text/csv"},
			{"empty fields", "id,name\n", ",\n", "text/csv"},
			{"objects", "", "{}\n", "application/x-ndjson"},
		} {
			for _, query := range []string{"", "?dry_run=true"} {
				body := tt.header + strings.Repeat(tt.row, (8<<20)/len(tt.row))
				a := s.Must(413, "POST", "/orgs/import"+query, s.OperatorKey, body, "Content-Type", tt.mediaType)
				if a.JSON("limit_rows") != float64(tree.MaxImportRows) || !strings.Contains(a.String("fix"), "by subtree") {
					t.Errorf("%s: %s", tt.name, a.Body)
				}
			}
		}
		var rows strings.Builder
		rows.WriteString("id,name,parent_id\n")
		for i := range 1001 {
			fmt.Fprintf(&rows, "x%d,x,p%d\n", i, i)
		}
		if a := s.Must(413, "POST", "/orgs/import", s.OperatorKey, rows.String(), "Content-Type", "text/csv"); !strings.Contains(a.String("detail"), "more than 1000 organizations") {
			t.Errorf("too many parents: %s", a.Body)
		}
	})
}

// peakHeap returns by how many bytes the heap grew at most while fn ran.
func peakHeap(fn func()) uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before := m.HeapAlloc
	var peak uint64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapAlloc)
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	fn()
	close(stop)
	<-stopped
	return peak - min(peak, before)
}

// Checking an import takes memory in proportion to its text, whatever the rows
// are made of.
func TestImportMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	s := testkit.Start(t, "sqlite")
	s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"r","name":"Root"}`)
	const n = tree.MaxImportRows
	fill := func(size int, header string, row func(b *strings.Builder, i int)) string {
		var b strings.Builder
		b.WriteString(header)
		for i := 0; i < n && b.Len() < size; i++ {
			row(&b, i)
		}
		return b.String()
	}
	for _, tt := range []struct {
		name, mediaType, body string
		status                int
		limit                 uint64
	}{
		{"short rows", "text/csv", "id,name\n" + strings.Repeat("x,x\n", 2<<20), 413, 100 << 20},
		{"rows", "text/csv", fill(8<<20, "id,parent_id,name\n", func(b *strings.Builder, i int) { fmt.Fprintf(b, "o%d,o%d,%s\n", i+1, i/2, strings.Repeat("n", 50)) }), 200, 150 << 20},
		{"objects", "application/x-ndjson", fill(8<<20, "", func(b *strings.Builder, i int) {
			fmt.Fprintf(b, `{"id":"o%d","parent_id":"r","name":"N","customizations":{"a":1}}`+"\n", i+1)
		}), 200, 150 << 20},
		{"tags", "application/x-ndjson", fill(31<<20, "", func(b *strings.Builder, i int) {
			fmt.Fprintf(b, `{"id":"o%d","name":"N","tags":["0"`, i+1)
			for j := 1; j < 50; j++ {
				fmt.Fprintf(b, `,"%d"`, j)
			}
			b.WriteString("]}\n")
		}), 200, 320 << 20},
		{"locks", "application/x-ndjson", fill(31<<20, "", func(b *strings.Builder, i int) {
			fmt.Fprintf(b, `{"id":"o%d","name":"N","locked":["/0"`, i+1)
			for j := 1; j < 100; j++ {
				fmt.Fprintf(b, `,"/%d"`, j)
			}
			b.WriteString("]}\n")
		}), 200, 320 << 20},
	} {
		body := tt.body
		if tt.name == "rows" {
			body = strings.Replace(body, "o1,o0,", "o1,r,", 1)
			body = strings.Replace(body, "o2,o0,", "o2,r,", 1)
		}
		start := time.Now()
		grew := peakHeap(func() {
			a := s.Do("POST", "/orgs/import?dry_run=true", s.OperatorKey, body, "Content-Type", tt.mediaType)
			if a.Status != tt.status {
				t.Errorf("%s: %d %.300s", tt.name, a.Status, a.Body)
			}
		})
		t.Logf("%s: %d MiB of text took at most %d MiB and %v", tt.name, len(body)>>20, grew>>20, time.Since(start).Round(time.Millisecond))
		if grew > tt.limit {
			t.Errorf("%s: %d MiB of memory, want at most %d", tt.name, grew>>20, tt.limit>>20)
		}
	}
}

// What is in effect above the rows is merged once for each organization, and
// the work of checking all rows is bounded, whether a schema or locks make it.
func TestImportBelowLargeSettings(t *testing.T) {
	t.Parallel()
	s := testkit.Start(t, "sqlite")
	op := s.OperatorKey
	settings := func(level, size int) string {
		var b strings.Builder
		b.WriteString("{")
		for i := 0; b.Len() < size; i++ {
			fmt.Fprintf(&b, `"l%d-%d":"%s",`, level, i, strings.Repeat("v", 80))
		}
		return strings.TrimSuffix(b.String(), ",") + "}"
	}
	chain := func(id string, locked bool) string {
		var b strings.Builder
		parent := ""
		for level := range 20 {
			locks := "[]"
			if locked {
				var l []string
				for i := range 100 {
					l = append(l, fmt.Sprintf(`"/%d-%d-%s"`, level, i, strings.Repeat("x", 100)))
				}
				locks = "[" + strings.Join(l, ",") + "]"
			}
			at := fmt.Sprintf("%s%d", id, level)
			fmt.Fprintf(&b, `{"id":"%s","name":"N","parent_id":"%s","customizations":%s,"locked":%s}`+"\n", at, parent, settings(level, 40<<10), locks)
			parent = at
		}
		return strings.Replace(b.String(), `"parent_id":""`, `"parent_id":null`, 1)
	}
	s.Must(200, "POST", "/orgs/import", op, chain("s", false), "Content-Type", "application/x-ndjson")
	s.Must(200, "PUT", "/orgs/s0/customization_schema", op, `{"type":"object"}`)
	s.Must(200, "POST", "/orgs/import", op, chain("k", true), "Content-Type", "application/x-ndjson")
	s.Must(200, "POST", "/orgs/import", op, chain("p", false), "Content-Type", "application/x-ndjson")
	rows := func(parent string, n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `{"id":"%s-%d","name":"N","parent_id":"%s","customizations":{"z":%d}}`+"\n", parent, i, parent, i)
		}
		return b.String()
	}
	for _, tt := range []struct {
		name, rows string
		status     int
	}{
		{"a few rows below a schema", rows("s19", 20), 200},
		{"many rows below a schema", rows("s19", 500), 413},
		{"many rows below locks", rows("k19", 2000), 413},
		{"many rows below settings alone", rows("p19", 2000), 200},
	} {
		start := time.Now()
		a := s.Do("POST", "/orgs/import?dry_run=true", op, tt.rows, "Content-Type", "application/x-ndjson")
		took := time.Since(start)
		t.Logf("%s: %d in %v", tt.name, a.Status, took.Round(time.Millisecond))
		if a.Status != tt.status || took > time.Minute {
			t.Errorf("%s: %d in %v: %.300s", tt.name, a.Status, took, a.Body)
		}
		if tt.status == 413 && !strings.Contains(a.String("detail"), "too much work") {
			t.Errorf("%s: %s", tt.name, a.Body)
		}
	}
}

// An import that takes several transactions is answered as one: with the
// receipt of its last entry, once for its Idempotency-Key, and every
// organization has the entry that its creation always has.
func TestImportOfSeveralChunks(t *testing.T) {
	onBoth(t, func(t *testing.T, s *testkit.Server) {
		s.Must(201, "POST", "/orgs", s.OperatorKey, `{"id":"r","name":"Root"}`)
		key, keyID := s.NewKey("r", `"permissions":["admin"]`)
		var rows strings.Builder
		rows.WriteString("id,parent_id,name,tags\n")
		for i := range 350 {
			parent := ""
			if i > 0 {
				parent = fmt.Sprint("o", (i-1)/4)
			}
			fmt.Fprintf(&rows, "o%d,%s,Name,t\n", i, parent)
		}
		send := func(status int) *testkit.Answer {
			t.Helper()
			return s.Must(status, "POST", "/orgs/import", key, rows.String(), "Content-Type", "text/csv", "Idempotency-Key", "once")
		}
		first := send(200)
		if first.JSON("created") != 350.0 || first.JSON("roots") != 0.0 {
			t.Errorf("imported: %s", first.Body)
		}
		again := send(200)
		receipt := first.Header.Get("Orgd-Audit-Receipt")
		if string(again.Body) != string(first.Body) || receipt == "" || again.Header.Get("Orgd-Audit-Receipt") != receipt {
			t.Errorf("again: %s %s", again.Body, again.Header)
		}
		last := s.Must(200, "GET", "/orgs/r/children_audit?limit=1", key, "").JSON().([]any)[0].(map[string]any)
		if want := fmt.Sprintf(" %v %v", last["seq"], last["leaf_hash"]); !strings.HasSuffix(receipt, want) || last["org_id"] != "o349" {
			t.Errorf("the receipt is %s, the last entry %v", receipt, last)
		}
		for _, id := range []string{"o0", "o150", "o349"} {
			entries := s.Must(200, "GET", "/orgs/"+id+"/children_audit?scope=self", key, "").JSON().([]any)
			if len(entries) != 1 {
				t.Fatalf("%s has %d entries", id, len(entries))
			}
			e := entries[0].(map[string]any)
			actor := e["actor"].(map[string]any)
			if e["action"] != "organization.created" || actor["id"] != keyID || actor["type"] != "api_key" || actor["name"] != "test" ||
				e["request_id"] != first.Header.Get("X-Request-Id") || e["timestamp"] != s.Must(200, "GET", "/orgs/"+id, key, "").JSON("created_at") {
				t.Errorf("the entry of %s: %v", id, e)
			}
		}
		a := s.Must(400, "POST", "/orgs/import", key, rows.String(), "Content-Type", "text/csv", "Idempotency-Key", "twice")
		if !strings.Contains(a.String("detail"), "350 rows are invalid") || !strings.Contains(string(a.Body), "is in use") {
			t.Errorf("imported twice: %s", a.Body)
		}
	})
}
