package orgd_test

import (
	"cmp"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/orgd/orgd/"

// allowed lists, for each package, the packages of this module that it may
// import: surface → domain → store, and never back. A package that is missing
// here fails the test, so that a new one gets its place in the house.
var allowed = map[string][]string{
	"api":                 {},
	"client":              {},
	"internal/problem":    {},
	"internal/ident":      {},
	"internal/durable":    {},
	"internal/seal":       {},
	"internal/schema":     {"internal/problem"},
	"internal/key":        {"internal/problem"},
	"internal/auth":       {"internal/problem", "internal/key"},
	"internal/audit":      {"internal/problem", "internal/ident"},
	"internal/usage":      {"internal/problem"},
	"internal/budget":     {},
	"internal/background": {},
	"internal/access":     {"internal/durable", "internal/problem", "internal/ident", "internal/usage"},
	"internal/settings":   {"internal/problem", "internal/schema", "internal/budget"},
	"internal/org":        {"internal/problem", "internal/settings", "internal/ident", "internal/key", "internal/auth", "internal/audit", "internal/usage", "internal/access"},
	"internal/tree":       {"internal/problem", "internal/settings", "internal/ident", "internal/key", "internal/auth", "internal/audit", "internal/usage", "internal/org"},
	"internal/trail":      {"internal/problem", "internal/settings", "internal/ident", "internal/key", "internal/auth", "internal/audit", "internal/usage", "internal/access", "internal/org"},
	"internal/evidence":   {"internal/problem", "internal/key", "internal/auth", "internal/audit", "internal/org"},
	"internal/metering":   {"internal/problem", "internal/ident", "internal/auth", "internal/key", "internal/audit", "internal/usage", "internal/access", "internal/org"},
	"internal/store":      {"internal/durable", "internal/problem", "internal/org", "internal/tree", "internal/trail", "internal/evidence", "internal/metering", "internal/key", "internal/audit", "internal/usage", "internal/access"},
	"internal/web":        {"internal/seal", "internal/problem", "internal/ident", "internal/key", "internal/auth", "internal/audit", "internal/usage", "internal/access", "internal/org", "internal/metering", "internal/budget", "internal/background"},
	"internal/openapi":    {"internal/problem"},
	"internal/api":        {"api", "internal/openapi", "internal/seal", "internal/problem", "internal/ident", "internal/key", "internal/auth", "internal/audit", "internal/usage", "internal/access", "internal/org", "internal/tree", "internal/trail", "internal/evidence", "internal/metering", "internal/budget", "internal/web"},
	"internal/server":     {"internal/durable", "internal/problem", "internal/ident", "internal/key", "internal/auth", "internal/audit", "internal/usage", "internal/access", "internal/org", "internal/tree", "internal/trail", "internal/evidence", "internal/metering", "internal/budget", "internal/background", "internal/web", "internal/api", "internal/store"},
	"cmd/orgd/weblog":     {},
	"cmd/orgd":            {"cmd/orgd/weblog", "internal/durable", "client", "internal/problem", "internal/key", "internal/auth", "internal/audit", "internal/access", "internal/usage", "internal/org", "internal/tree", "internal/metering", "internal/server"},
	"bench":               {"internal/key", "internal/auth", "internal/audit", "internal/access", "internal/usage", "internal/org", "internal/tree", "internal/metering", "internal/server", "internal/store"},

	// Only tests import these.
	"internal/testkit":                   {"api", "internal/key", "internal/audit", "internal/usage", "internal/access", "internal/settings", "internal/org", "internal/tree", "internal/trail", "internal/evidence", "internal/metering", "internal/store", "internal/server"},
	"internal/store/storetest":           {"internal/problem", "internal/ident", "internal/key", "internal/audit", "internal/usage", "internal/access", "internal/org", "internal/tree", "internal/trail", "internal/evidence", "internal/metering", "internal/store", "internal/testkit"},
	"internal/store/storetest/usagetest": {"internal/access", "internal/metering", "internal/org", "internal/usage", "internal/audit", "internal/store", "internal/testkit", "internal/store/storetest"},
}

// only lists packages that know a thing that no other may know.
var only = map[string][]string{
	"database/sql": {"internal/store", "internal/testkit"},
	"net/http":     {"internal/web", "internal/api", "internal/server", "internal/testkit", "client", "cmd/orgd", "bench"},
}

func TestImportsGoOneWay(t *testing.T) {
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == "node_modules" || strings.HasPrefix(d.Name(), ".") && path != ".") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		pkg := filepath.ToSlash(filepath.Dir(path))
		may, ok := allowed[pkg]
		if !ok && !seen[pkg] {
			t.Errorf("the package %s has no place in the table of allowed imports", pkg)
		}
		seen[pkg] = true
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			imported, _ := strconv.Unquote(spec.Path.Value)
			if own, ok := strings.CutPrefix(imported, module); ok && !slices.Contains(may, own) {
				t.Errorf("%s imports %s, which %s may not", path, own, pkg)
			}
			if who, ok := only[imported]; ok && !slices.Contains(who, pkg) {
				t.Errorf("%s imports %s, which only %s may", path, imported, strings.Join(who, ", "))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range allowed {
		if !seen[pkg] {
			t.Errorf("the table names %s, which does not exist", pkg)
		}
	}
}

// Files that must be there after a loss of power are made in one way.
func TestFilesAreMadeInOneWay(t *testing.T) {
	made := []string{"os.Rename", "os.Link", "os.Mkdir", "os.MkdirAll", "os.WriteFile", "os.Create", "os.OpenFile", "durable.SyncDir"}
	may := map[string][]string{
		"internal/durable/durable.go":  made,
		"internal/access/spool.go":     {"os.Rename"},       // a segment, whose name is synced with its records
		"internal/access/flush.go":     {"os.Link"},         // a damaged segment, beside its own name
		"internal/store/disk.go":       {"os.OpenFile"},     // of a file that is there
		"internal/store/disk_linux.go": {"os.OpenFile"},     // to read
		"internal/store/sqlite.go":     {"durable.SyncDir"}, // of the files that SQLite makes
		"cmd/orgd/audit_log.go":        {"os.OpenFile"},     // of what the user names, whose mode stays
	}
	for _, dir := range []string{"internal", "cmd"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() && (d.Name() == "testdata" || d.Name() == "testkit") {
				return cmp.Or(err, filepath.SkipDir)
			}
			if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return nil
			}
			b, err := os.ReadFile(path)
			for _, name := range made {
				if strings.Contains(string(b), name+"(") || strings.Contains(string(b), name+",") {
					if !slices.Contains(may[filepath.ToSlash(path)], name) {
						t.Errorf("%s calls %s; internal/durable makes files", path, name)
					}
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// What would not fit on a few screens is more than one room.
func TestRoomsStaySmall(t *testing.T) {
	const most = 4000
	large := []string{"internal/api", "internal/store", "cmd/orgd"} // one call, table or command beside the other
	for pkg := range allowed {
		lines := 0
		for _, file := range sources(t, pkg) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			lines += strings.Count(string(b), "\n")
		}
		if lines > most && !slices.Contains(large, pkg) {
			t.Errorf("%s has %d lines, more than %d: cut it where few ties lead across", pkg, lines, most)
		}
	}
}

// An interface of the domain is what one room needs. Whoever needs more than this is
// more than one room, or asks for what it does not use.
func TestInterfacesStaySmall(t *testing.T) {
	const most = 30
	declared := map[string]*ast.InterfaceType{} // by package and name
	for pkg := range allowed {
		if !strings.HasPrefix(pkg, "internal/") || slices.Contains([]string{"internal/testkit", "internal/store/storetest"}, pkg) {
			continue
		}
		for _, path := range sources(t, pkg) {
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if spec, ok := n.(*ast.TypeSpec); ok {
					if i, ok := spec.Type.(*ast.InterfaceType); ok {
						declared[filepath.Base(pkg)+"."+spec.Name.Name] = i
					}
				}
				return true
			})
		}
	}
	var methods func(pkg string, i *ast.InterfaceType) map[string]bool
	methods = func(pkg string, i *ast.InterfaceType) map[string]bool {
		all := map[string]bool{}
		for _, f := range i.Methods.List {
			for _, name := range f.Names {
				all[name.Name] = true
			}
			if len(f.Names) > 0 {
				continue
			}
			embedded := f.Type
			if generic, ok := embedded.(*ast.IndexListExpr); ok {
				embedded = generic.X
			}
			of, name := pkg, ""
			switch e := embedded.(type) {
			case *ast.Ident:
				name = e.Name
			case *ast.SelectorExpr:
				of, name = e.X.(*ast.Ident).Name, e.Sel.Name
			}
			if inner := declared[of+"."+name]; inner != nil {
				maps.Copy(all, methods(of, inner))
			}
		}
		return all
	}
	if len(declared) < 20 {
		t.Fatalf("only %d interfaces were found", len(declared))
	}
	for name, i := range declared {
		pkg, _, _ := strings.Cut(name, ".")
		if n := len(methods(pkg, i)); n > most {
			t.Errorf("%s has %d methods, more than %d", name, n, most)
		}
	}
}

// sources returns the files of a package that are no tests.
func sources(t *testing.T, pkg string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(pkg, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, "_test.go") })
}
