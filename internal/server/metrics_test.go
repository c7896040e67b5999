package server_test

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// The metrics that the documentation for operators names are those that there are.
func TestMetricsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "| metric | |\n")
	if table, _, _ = strings.Cut(table, "\n\n"); !ok {
		t.Fatal("docs/operations.md has no table of metrics")
	}
	documented := map[string]bool{}
	for _, row := range strings.Split(table, "\n") {
		names := strings.SplitN(row, "|", 3)[1]
		for _, name := range regexp.MustCompile(`orgd_\w+`).FindAllString(names, -1) {
			documented[name] = true
		}
	}
	made := map[string]bool{}
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`\bName: +"(orgd_\w+)"`).FindAllSubmatch(source, -1) {
			made[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if d, m := slices.Sorted(maps.Keys(documented)), slices.Sorted(maps.Keys(made)); !slices.Equal(d, m) {
		t.Errorf("docs/operations.md has the metrics\n%v\nand there are\n%v", d, m)
	}
}

// What a server does in the background can be watched by its metrics.
func TestBackgroundWorkCanBeWatched(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s := testkit.Start(t, engine)
			soon := []string{"close_months", "settle_imports", "sign_logs"}
			if engine == "postgres" {
				soon = append(soon, "watch_schema", "anchor_logs")
			}
			const name = "orgd_background_last_success_timestamp_seconds"
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
				text := string(s.Must(200, "GET", "/metrics", s.OperatorKey, "").Body)
				if !strings.Contains(text, name+`{job="purge"} 0`+"\n") {
					t.Fatalf("the first purge is a minute after the start:\n%s", text)
				}
				missing := slices.DeleteFunc(slices.Clone(soon), func(job string) bool {
					return regexp.MustCompile(name + `\{job="` + job + `"\} [1-9]`).MatchString(text)
				})
				if len(missing) == 0 {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%v never succeeded:\n%s", missing, text)
				}
			}
		})
	}
}
