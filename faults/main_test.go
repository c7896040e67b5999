//go:build linux

// Package faults runs orgd as a program on real files and real databases,
// breaks what it stands on, and compares what clients were answered with what
// is there afterwards:
//
//	ORGD_FAULTS=short go test ./faults -count=1 -v
//
// prints a table: what was broken and how often, how many answers clients got,
// how many of those changes were lost or made twice. Every kind has a control,
// in which a guarantee is missing or a client believes what it was not told,
// and which fails unless the checker finds losses there. ORGD_FAULTS=long takes
// about ten times as long. Without ORGD_FAULTS the tests are skipped. It takes
// root, FUSE, loop devices, network namespaces, strace and PostgreSQL.
package faults

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
)

// program is orgd as it was built for these tests.
var program string

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv("ORGD_FAULTS") == "" {
		os.Exit(m.Run())
	}
	// What is mounted here goes with the process, however it ends.
	if os.Getenv("ORGD_FAULTS_INNER") == "" && os.Getuid() == 0 {
		inner := exec.Command(os.Args[0], os.Args[1:]...)
		inner.Env = append(os.Environ(), "ORGD_FAULTS_INNER=1")
		inner.Stdin, inner.Stdout, inner.Stderr = os.Stdin, os.Stdout, os.Stderr
		inner.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		err := inner.Run()
		var ended *exec.ExitError
		if errors.As(err, &ended) {
			os.Exit(ended.ExitCode())
		} else if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "orgd-faults-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if program = os.Getenv("ORGD_FAULTS_PROGRAM"); program == "" {
		program = filepath.Join(dir, "orgd")
		if out, err := exec.Command("go", "build", "-o", program, "../cmd/orgd").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building orgd: %v\n%s", err, out)
			return 1
		}
	}
	code := m.Run()
	printTable()
	return code
}

// rounds is how often a fault is made: so many times in the short form.
func rounds(t *testing.T, short int) int {
	t.Helper()
	switch v := os.Getenv("ORGD_FAULTS"); v {
	case "":
		t.Skip("ORGD_FAULTS=short or ORGD_FAULTS=long runs the faults")
	case "long":
		return 10 * short
	case "short":
	default:
		t.Fatalf("ORGD_FAULTS is short or long, not %q", v)
	}
	return short
}

// row is a row of the table.
type row struct {
	fault  string
	rounds int
	found
	control found
}

var (
	tableMu sync.Mutex
	table   []row
)

// report adds a row to the table, and fails the test if something that was
// answered does not hold, or if the control loses nothing.
func report(t *testing.T, r row) {
	t.Helper()
	tableMu.Lock()
	defer tableMu.Unlock()
	table = append(table, r)
	if r.lost > 0 || r.twice > 0 || r.denied > 0 || r.foreign > 0 || r.unlogged > 0 || r.broken > 0 {
		t.Errorf("%s: %s", r.fault, r.found)
	}
	if r.acknowledged < 100 {
		t.Errorf("%s: only %d changes were acknowledged", r.fault, r.acknowledged)
	}
	if r.control.lost == 0 {
		t.Errorf("%s: the control, in which something must be lost, loses nothing: %s", r.fault, r.control)
	}
}

func printTable() {
	slices.SortFunc(table, func(a, b row) int { return cmp.Compare(a.fault, b.fault) })
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 1, ' ', 0)
	fmt.Fprintln(w, "| fault\t| rounds\t| acknowledged\t| lost\t| twice\t| refused but made\t| outcome unknown (of which made)\t| requests not logged\t| control: lost of\t|")
	fmt.Fprintln(w, "|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|")
	for _, r := range table {
		fmt.Fprintf(w, "| %s\t| %d\t| %d\t| %d\t| %d\t| %d\t| %d (%d)\t| %d\t| %d of %d\t|\n", r.fault, r.rounds, r.acknowledged, r.lost, r.twice, r.denied, r.unknown, r.unknownMade, r.unlogged, r.control.lost, r.control.acknowledged)
	}
	w.Flush()
	fmt.Println(b.String())
}
