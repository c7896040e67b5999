package server_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/tree"
)

// watchedStore is a store that tells of each Write before it is made. What
// before returns instead of nil is the Write's error.
type watchedStore struct {
	*store.Store
	writes atomic.Int64
	before func(n int64, write func() error) error
}

func (s *watchedStore) write(write func() error) error {
	if s.before == nil {
		return write()
	}
	return s.before(s.writes.Add(1), write)
}

// importService returns a service on a store, without what a server does in the
// background.
func importService(t *testing.T, s *watchedStore) *tree.Service {
	t.Helper()
	return tree.NewService(tree.Config{Orgs: orgService(t, s), Store: store.Side[tree.View, tree.Tx]{Store: s.Store}, Now: time.Now, NewID: ident.New, Rand: rand.Reader, RestoreWindow: time.Hour,
		Imports: testkit.Around[tree.ImportView, tree.ImportTx]{Face: store.Side[tree.ImportView, tree.ImportTx]{Store: s.Store}, Make: s.write}})
}

func orgService(t *testing.T, s *watchedStore) *org.Service {
	t.Helper()
	service, err := org.NewService(org.Config{Store: testkit.AroundOrgs{Store: s.Store, Make: s.write}, Now: time.Now, NewID: ident.New, Rand: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	return service
}

// onStores runs a scenario on a store of each engine and checks the system
// after it.
func onStores(t *testing.T, scenario func(t *testing.T, s *store.Store)) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			var s *store.Store
			var err error
			if engine == "sqlite" {
				s, err = store.OpenSQLite(t.Context(), t.TempDir(), store.Options{})
			} else {
				s, err = store.OpenPostgres(t.Context(), testkit.Postgres(t), store.Options{})
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			scenario(t, s)
			testkit.CheckSystem(t, s)
			if list := underWay(t, s); len(list) > 0 {
				t.Errorf("imports are still under way: %+v", list)
			}
		})
	}
}

func underWay(t *testing.T, s *store.Store) (list []tree.PendingImport) {
	t.Helper()
	if err := testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) (err error) {
		list, err = tx.Imports("", 10)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

var byOperator = &org.Call{Actor: auth.Operator(), RequestID: "req_import", IP: "192.0.2.1", UserAgent: "test"}

// treeRows is an import of n organizations below r: with more than one chunk,
// children of one are in the next. Each tenth is a root.
func treeRows(prefix string, n int) string {
	var b strings.Builder
	b.WriteString("id,parent_id,name,tags\n")
	for i := n - 1; i >= 0; i-- {
		parent := "r"
		if i%10 == 9 {
			parent = ""
		} else if i > 0 {
			parent = fmt.Sprint(prefix, (i-1)/3)
		}
		fmt.Fprintf(&b, "%s%d,%s,Name %d,t;u%d\n", prefix, i, parent, i, i%3)
	}
	return b.String()
}

func importRows(ctx context.Context, s *tree.Service, call *org.Call, rows, parent string) (*tree.ImportResult, audit.Receipt, error) {
	return s.Import(ctx, call, strings.NewReader(rows), tree.ImportOptions{Format: "csv", ParentID: parent})
}

// there counts the organizations with a prefix that exist for everybody.
func there(t *testing.T, s *store.Store, prefix string) int {
	t.Helper()
	n := 0
	if err := testkit.Whole(s).Read(t.Context(), func(tx testkit.Tx) error {
		for q := (org.OrgQuery{Limit: 1000}); ; {
			page, err := tx.Orgs(q)
			if err != nil {
				return err
			}
			for _, o := range page.Orgs {
				if strings.HasPrefix(o.ID, prefix) {
					n++
				}
			}
			if q.After = page.Next; page.Next == nil {
				return nil
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func create(t *testing.T, s *tree.Service, id, parent string) {
	t.Helper()
	var err error
	if parent == "" {
		_, _, err = s.CreateRoot(t.Context(), byOperator, org.Organization{ID: id, Name: id})
	} else {
		_, _, err = s.CreateChild(t.Context(), byOperator, parent, org.Organization{ID: id, Name: id})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Whatever fails in whichever transaction of an import, and wherever the
// process ends, all of its organizations are there in the end or none is, and
// the answer says nothing else.
func TestImportFaults(t *testing.T) {
	const n, chunks = 250, 3 // chunks of 100: one transaction each to stage them, and one to reveal them
	onStores(t, func(t *testing.T, s *store.Store) {
		create(t, importService(t, &watchedStore{Store: s}), "r", "")
		broken := errors.New("the disk is on fire")
		unknown := problem.New(problem.OutcomeUnknown, "Nobody knows.")
		var none, all int
		for i, fault := range []string{"fails", "fails for good", "happens unheard", "happens, and then nothing more", "cancelled"} {
			for at := int64(1); at <= 2*chunks; at++ {
				name := fmt.Sprintf("write %d %s", at, fault)
				prefix := fmt.Sprintf("f%d.%d-", i, at)
				ctx, cancel := context.WithCancel(t.Context())
				w := &watchedStore{Store: s, before: func(k int64, write func() error) error {
					switch {
					case k < at, k > at && (fault == "fails" || fault == "happens unheard"):
						return write()
					case fault == "cancelled":
						cancel()
						return write()
					case k == at && strings.HasPrefix(fault, "happens"):
						if err := write(); err != nil {
							return err
						}
						return unknown
					}
					return broken
				}}
				res, receipt, err := importRows(ctx, importService(t, w), byOperator, treeRows(prefix, n), "")
				cancel()
				before := there(t, s, prefix)
				ended := at == 2*chunks && strings.HasPrefix(fault, "happens") // the answer with the receipt was lost
				if err == nil && (before != n || res.Created != n || res.Roots != n/10 || receipt.Origin == "" && !ended) {
					t.Errorf("%s: answered %+v %v with %d there", name, res, receipt, before)
				}
				// The process starts again.
				if _, err := importService(t, &watchedStore{Store: s}).SettleImports(t.Context(), 0); err != nil {
					t.Fatal(err)
				}
				after := there(t, s, prefix)
				switch {
				case after == n:
					all++
				case after == 0:
					none++
				default:
					t.Errorf("%s: %d of %d are there", name, after, n)
				}
				if err != nil && !problem.Is(err, problem.OutcomeUnknown) && after != 0 {
					t.Errorf("%s: answered %v, and %d are there", name, err, after)
				}
				if at <= chunks && (after != 0 || err == nil || problem.Is(err, problem.OutcomeUnknown)) {
					t.Errorf("%s: answered %v, and %d are there", name, err, after)
				}
				if at > chunks+1 && after == 0 {
					t.Errorf("%s: a decided import was given up", name)
				}
				// Its ids are free again, or taken.
				_, _, err = importRows(t.Context(), importService(t, &watchedStore{Store: s}), byOperator, treeRows(prefix, n), "")
				if (err == nil) != (after == 0) || err != nil && !strings.Contains(problem.From(err).Fields[0].Detail, "is in use") {
					t.Errorf("%s: %d were there, and the same import gives %v", name, after, err)
				}
			}
		}
		t.Logf("none %d times, all %d times", none, all)
		if none < 10 || all < 10 {
			t.Error("the faults do not hit what they should")
		}
	})
}

// pausing returns a service whose import stops before its k-th transaction; go
// on lets it continue and returns what it answers.
func pausing(t *testing.T, s *store.Store, k int64, rows, parent string) (goOn func() error) {
	t.Helper()
	reached, proceed := make(chan struct{}), make(chan struct{})
	w := &watchedStore{Store: s, before: func(n int64, write func() error) error {
		if n == k {
			close(reached)
			<-proceed
		}
		return write()
	}}
	answer := make(chan error, 1)
	service := importService(t, w)
	go func() {
		_, _, err := importRows(t.Context(), service, byOperator, rows, parent)
		answer <- err
	}()
	select {
	case <-reached:
	case err := <-answer:
		t.Fatalf("the import ended early: %v", err)
	}
	return func() error {
		close(proceed)
		return <-answer
	}
}

// belowRows is an import of n organizations in a chain of threes below one.
func belowRows(prefix string, n int) string {
	var b strings.Builder
	b.WriteString("id,parent_id,name\n")
	for i := range n {
		parent := ""
		if i > 0 {
			parent = fmt.Sprint(prefix, (i-1)/3)
		}
		fmt.Fprintf(&b, "%s%d,%s,N\n", prefix, i, parent)
	}
	return b.String()
}

// Rows that wait are not there for anybody: they look like nothing, and their
// ids like any that is taken.
func TestStagedOrganizationsDoNotExist(t *testing.T) {
	onStores(t, func(t *testing.T, s *store.Store) {
		service := importService(t, &watchedStore{Store: s})
		create(t, service, "r", "")
		create(t, service, "p", "r")
		create(t, service, "used", "r")
		for _, k := range []int64{3, 5} { // while rows are staged, and while they are revealed
			prefix := fmt.Sprintf("w%d-", k)
			goOn := pausing(t, s, k, belowRows(prefix, 250), "p")
			id := prefix + "150"
			if k == 3 {
				if n := there(t, s, prefix); n != 0 {
					t.Errorf("%d organizations of an undecided import are there", n)
				}
			} else if n := there(t, s, prefix); n == 0 || n == 250 {
				t.Errorf("%d organizations are there in the middle", n)
			}
			ctx := t.Context()
			for what, err := range map[string]error{
				"find":    second(orgService(t, &watchedStore{Store: s}).Find(ctx, byOperator.Actor, id)),
				"restore": third(service.Restore(ctx, byOperator, id)),
				"delete":  third(service.Delete(ctx, byOperator, id, tree.DeleteOptions{Cascade: true})),
				"update":  third(service.Update(ctx, byOperator, id, tree.OrgUpdate{})),
				"move":    third(service.Move(ctx, byOperator, id, "r")),
				"parent":  third(service.CreateChild(ctx, byOperator, id, org.Organization{ID: "x", Name: "x"})),
			} {
				if !problem.Is(err, problem.NotFound) || err.Error() != org.NotFound().Error() {
					t.Errorf("%s: %v", what, err)
				}
			}
			say := func(id string) (single, row string) {
				_, _, err := service.CreateChild(ctx, byOperator, "p", org.Organization{ID: id, Name: "x"})
				_, _, err2 := importRows(ctx, service, byOperator, "id,name\n"+id+",x\n", "p")
				return strings.ReplaceAll(fmt.Sprint(err, problem.From(err).Fix), id, "ID"), strings.ReplaceAll(fmt.Sprint(problem.From(err2).Code, problem.From(err2).Fields), id, "ID")
			}
			single, row := say(id)
			if wantSingle, wantRow := say("used"); single != wantSingle || row != wantRow || !strings.HasPrefix(single, "id_taken") {
				t.Errorf("a staged id: %s, %s; a taken one: %s, %s", single, row, wantSingle, wantRow)
			}
			if err := goOn(); err != nil {
				t.Error(err)
			}
			if n := there(t, s, prefix); n != 250 {
				t.Errorf("%d of 250 are there", n)
			}
		}
	})
}

func second[A any](_ A, err error) error        { return err }
func third[A, B any](_ A, _ B, err error) error { return err }

// Until an import is decided whatever happens above its rows comes first. From
// then on nobody takes the place away where its rows go.
func TestChangesAboveAnImport(t *testing.T) {
	onStores(t, func(t *testing.T, s *store.Store) {
		service := importService(t, &watchedStore{Store: s})
		create(t, service, "r", "")
		create(t, service, "elsewhere", "r")
		ctx := t.Context()
		name := "renamed"
		for i, tt := range []struct {
			name   string
			change func(parent string) error
			create bool // the import still succeeds
		}{
			{"delete of the parent", func(parent string) error {
				return third(service.Delete(ctx, byOperator, parent, tree.DeleteOptions{}))
			}, false},
			{"delete above the parent", func(parent string) error {
				return third(service.Delete(ctx, byOperator, parent+"-above", tree.DeleteOptions{Cascade: true}))
			}, false},
			{"move of the parent", func(parent string) error { return third(service.Move(ctx, byOperator, parent, "elsewhere")) }, false},
			{"move above the parent", func(parent string) error {
				return third(service.Move(ctx, byOperator, parent+"-above", "elsewhere"))
			}, false},
			{"delete and restore of the parent", func(parent string) error {
				if _, _, err := service.Delete(ctx, byOperator, parent, tree.DeleteOptions{}); err != nil {
					return err
				}
				return third(service.Restore(ctx, byOperator, parent))
			}, true},
			{"another name of the parent", func(parent string) error {
				return third(service.Update(ctx, byOperator, parent, tree.OrgUpdate{Members: []string{"name"}, To: org.Organization{Name: name}}))
			}, true},
		} {
			above, parent, prefix := fmt.Sprintf("p%d-above", i), fmt.Sprintf("p%d", i), fmt.Sprintf("i%d-", i)
			create(t, service, above, "r")
			create(t, service, parent, above)
			goOn := pausing(t, s, 4, belowRows(prefix, 250), parent)
			if err := tt.change(parent); err != nil {
				t.Errorf("%s before the decision: %v", tt.name, err)
			}
			err := goOn()
			n := there(t, s, prefix)
			if tt.create && (err != nil || n != 250) {
				t.Errorf("%s: %v, and %d are there", tt.name, err, n)
			}
			if p := problem.From(err); !tt.create && (p == nil || p.Code != problem.Conflict && p.Code != problem.NotFound || n != 0) {
				t.Errorf("%s: %v, and %d are there", tt.name, err, n)
			}
		}

		create(t, service, "q-above", "r")
		create(t, service, "q", "q-above")
		create(t, service, "q-beside", "q")
		goOn := pausing(t, s, 5, belowRows("d-", 250), "q") // one chunk is there
		for what, err := range map[string]error{
			"delete of the parent":             third(service.Delete(ctx, byOperator, "q", tree.DeleteOptions{Cascade: true})),
			"delete of the root":               third(service.Delete(ctx, byOperator, "r", tree.DeleteOptions{Cascade: true})),
			"move of the parent":               third(service.Move(ctx, byOperator, "q", "r")),
			"move above the parent":            third(service.Move(ctx, byOperator, "q-above", "elsewhere")),
			"delete of an imported one":        third(service.Delete(ctx, byOperator, "d-0", tree.DeleteOptions{Cascade: true})),
			"delete of one that seems a leaf":  third(service.Delete(ctx, byOperator, "d-40", tree.DeleteOptions{})),
			"move of an imported organization": third(service.Move(ctx, byOperator, "d-1", "r")),
		} {
			if p := problem.From(err); p == nil || p.Code != problem.Conflict || !strings.Contains(p.Detail, "being completed") || p.RetryAfter == 0 {
				t.Errorf("%s: %v", what, err)
			}
		}
		for what, change := range []func() error{
			func() error {
				return third(service.Update(ctx, byOperator, "q", tree.OrgUpdate{Members: []string{"name"}, To: org.Organization{Name: name}}))
			},
			func() error { return third(service.Delete(ctx, byOperator, "q-beside", tree.DeleteOptions{})) },
			func() error { return third(service.Restore(ctx, byOperator, "q-beside")) },
			func() error { return third(service.Move(ctx, byOperator, "q-beside", "r")) },
		} {
			if err := change(); err != nil {
				t.Errorf("change %d beside the rows: %v", what, err)
			}
		}
		if err := goOn(); err != nil || there(t, s, "d-") != 250 {
			t.Errorf("%v, and %d are there", err, there(t, s, "d-"))
		}
		if _, _, err := service.Delete(ctx, byOperator, "q", tree.DeleteOptions{Cascade: true}); err != nil {
			t.Error(err)
		}
	})
}

// An import is taken over only from a process that is gone, and then by one
// alone: the first, should it wake up, does nothing more to it.
func TestImportIsTakenOver(t *testing.T) {
	onStores(t, func(t *testing.T, s *store.Store) {
		create(t, importService(t, &watchedStore{Store: s}), "r", "")
		for _, k := range []int64{3, 5} {
			prefix := fmt.Sprintf("o%d-", k)
			goOn := pausing(t, s, k, belowRows(prefix, 250), "r")
			other := importService(t, &watchedStore{Store: s})
			if n, err := other.SettleImports(t.Context(), time.Hour); n != 0 || err != nil || len(underWay(t, s)) != 1 {
				t.Errorf("an import under way was taken over: %d %v", n, err)
			}
			if n, err := other.SettleImports(t.Context(), 0); n != 1 || err != nil {
				t.Errorf("an import that was left was not taken over: %d %v", n, err)
			}
			want := 0
			if k == 5 {
				want = 250
			}
			if n := there(t, s, prefix); n != want {
				t.Errorf("%d are there, want %d", n, want)
			}
			if err := goOn(); (err == nil) != (want > 0) {
				t.Errorf("the first process answers %v with %d there", err, want)
			}
			if n := there(t, s, prefix); n != want {
				t.Errorf("%d are there, want %d", n, want)
			}
		}
	})
}

// Who changes something while a large import is made is answered at once: in
// another tree, and in the one that the import is made in.
func TestChangesDuringAnImport(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	const bound = time.Second
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s := testkit.Start(t, engine)
			op := s.OperatorKey
			s.Must(200, "POST", "/orgs/import", op, "id,parent_id,name\nmine,,Mine\nplace,mine,Place\nbeside,mine,Beside\nother,,Other\n", "Content-Type", "text/csv")
			rows := belowRows("i", 50_000)
			type answer struct {
				*testkit.Answer
				err error
			}
			imported := make(chan answer, 1)
			start := time.Now()
			go func() {
				a, err := s.TryDo("POST", "/orgs/import?parent_id=place", op, rows, "Content-Type", "text/csv")
				imported <- answer{a, err}
			}()
			longest := map[string]time.Duration{}
			changes := 0
			for {
				select {
				case a := <-imported:
					if a.err != nil || a.Status != 200 {
						t.Fatalf("%v %s", a.err, a.Body)
					}
					t.Logf("imported in %v; the longest of %d changes meanwhile took %v", time.Since(start).Round(time.Millisecond), changes, longest)
					if longest["mine"] > bound || longest["other"] > bound || longest["beside"] > bound {
						t.Errorf("changes wait for an import for up to %v", longest)
					}
					return
				default:
				}
				for _, id := range []string{"other", "mine", "beside"} {
					changes++
					sent := time.Now()
					s.Must(200, "PATCH", "/orgs/"+id, op, fmt.Sprintf(`{"description":"change %d"}`, changes))
					longest[id] = max(longest[id], time.Since(sent))
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
}
