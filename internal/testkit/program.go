package testkit

import (
	"os"
	"os/exec"
	"testing"
)

// Programs returns the paths of programs that a test needs. Without one of
// them the test is skipped, and with CI=true it fails.
func Programs(t testing.TB, names ...string) []string {
	t.Helper()
	var paths []string
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil && os.Getenv("CI") == "true" {
			t.Fatalf("%s is required: %v", name, err)
		} else if err != nil {
			t.Skipf("%s is not installed", name)
		}
		paths = append(paths, path)
	}
	return paths
}
