//go:build linux

package faults

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// System calls on files fail, the Nth of a thread and then every so many, with
// EIO and ENOSPC in turn. In the control fsync and fdatasync are not made, which
// the process is not told, and the power is cut.
func TestFailingCalls(t *testing.T) {
	strace := testkit.Programs(t, "strace")[0]
	calls := []string{"fsync,fdatasync", "pwrite64", "ftruncate", "openat", "renameat", "write"}
	n := rounds(t, len(calls))
	r := row{fault: "system calls on files that fail, SQLite", rounds: n}
	failing := func(dir, call, what string) *exec.Cmd {
		return exec.Command(strace, append([]string{"-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=" + call, "-e", "inject=" + call + ":" + what, program}, serveArgs(dir, nil)...)...)
	}
	for i := range n {
		call := calls[i%len(calls)]
		dir := filepath.Join(t.TempDir(), "data")
		p := start(t, dir)
		j := newJournal()
		w := makeWorld(t, p, 2, 8)
		p.kill()
		what := fmt.Sprintf("error=%s:when=%d+%d", []string{"EIO", "ENOSPC"}[i%2], 40+rand.IntN(60), 20+rand.IntN(60))
		p, err := tryCommand(t, dir, failing(dir, call, what))
		if err != nil {
			t.Logf("%s %s: it does not start: %s", call, what, tail(err.Error()))
			p = start(t, dir)
		}
		stop := w.load(j, p.at)
		time.Sleep(time.Second)
		p.kill()
		stop()
		p = start(t, dir)
		got := w.check(j, p.url, everything())
		t.Logf("%s %s: %s", call, what, got)
		r.found.add(got)
		for status, count := range j.strange {
			t.Errorf("%s %s: %d answers are %s", call, what, count, status)
		}
		p.kill()
	}
	disk := testkit.NewBlockDisk(t, 512, "ext4", "-E", "nodiscard")
	if err := disk.Mount("ext4", ""); err != nil {
		t.Fatal(err)
	}
	x := &worked{BlockDisk: disk, j: newJournal()}
	dir := filepath.Join(disk.Dir, "data")
	p := start(t, dir)
	x.w = makeWorld(t, p, 2, 8)
	p.kill()
	exec.Command("sync").Run()
	disk.Record()
	x.j.position = disk.Position
	p, err := tryCommand(t, dir, failing(dir, "fsync,fdatasync", "retval=0"))
	if err != nil {
		t.Fatal(err)
	}
	stop := x.w.load(x.j, p.at)
	time.Sleep(time.Second)
	p.kill()
	stop()
	x.ending = disk.Position()
	r.control = x.after(t, x.j, x.ending, 0)
	report(t, r)
}
