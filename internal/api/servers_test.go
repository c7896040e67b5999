package api_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/orgd/orgd/internal/testkit"
)

// What is left out where several servers answer is a test of this package.
func TestOneProcessNamesTests(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	for name := range testkit.OneProcess {
		if !strings.Contains(all.String(), "\nfunc "+name+"(t *testing.T) {") {
			t.Errorf("there is no %s", name)
		}
	}
}
