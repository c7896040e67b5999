//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/orgd/orgd/internal/testkit"
)

// traced is what a process did to its disk, one system call a line.
type traced []string

// last returns the last line that has all of the texts, -1 for none.
func (tr traced) last(texts ...string) int {
	at := -1
lines:
	for i, line := range tr {
		for _, text := range texts {
			if !strings.Contains(line, text) {
				continue lines
			}
		}
		at = i
	}
	return at
}

// wantDurable checks that a file or directory and its name were synced, after the
// last time it was made or renamed.
func (tr traced) wantDurable(t *testing.T, path string) {
	t.Helper()
	synced := func(path string) int { return tr.last("sync(", "<"+path+">") }
	named := max(tr.last("openat(", `"`+path+`"`, "O_CREAT"), tr.last("rename", `"`+path+`")`), tr.last("mkdir", `"`+path+`"`))
	if info, err := os.Stat(path); err != nil {
		t.Error(err)
	} else if file := max(synced(path), synced(path+".new")); !info.IsDir() && file < 0 {
		t.Errorf("%s is not synced", path)
	}
	if dir := synced(filepath.Dir(path)); dir < 0 || dir < named {
		t.Errorf("the name of %s is not durable: made in line %d, its directory synced in %d", path, named, dir)
	}
}

// What a start makes, or finds, is on the disk under its name before the server
// says that it listens: on both databases, on the first start and on one that finds
// what a process has left that was ended before it had synced.
func TestAStartIsDurable(t *testing.T) {
	strace := testkit.Programs(t, "strace")[0]
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "above", "data")
			args := []string{"serve", "--data-dir", dir, "--listen", "127.0.0.1:0"}
			if engine == "postgres" {
				args = append(args, "--database", testkit.Postgres(t))
			}
			for _, start := range []string{"first", "second"} {
				log := filepath.Join(t.TempDir(), "trace")
				cmd := exec.Command(strace, append([]string{"-f", "-y", "-qq", "-s", "4096", "-o", log,
					"-e", "trace=openat,mkdir,mkdirat,rename,renameat,renameat2,fsync,fdatasync,write", orgdProgram(t)}, args...)...)
				p := startCommand(t, dir, cmd)
				b, err := os.ReadFile(log)
				if err != nil {
					t.Fatal(err)
				}
				// The process that is traced, which strace does not outlive.
				var pid int
				if _, err := fmt.Sscan(string(b), &pid); err != nil {
					t.Fatal(err)
				}
				if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				<-p.ended
				if b, err = os.ReadFile(log); err != nil {
					t.Fatal(err)
				}
				lines := traced(strings.Split(string(b), "\n"))
				listening := lines.last("write(2", "orgd is listening")
				if listening < 0 {
					t.Fatalf("%s start: the trace of %d lines lacks that it listens", start, len(lines))
				}
				before := lines[:listening]
				paths := []string{dir}
				for _, name := range []string{"operator.key", "audit.key", "audit.anchor", "spool", "spool/spool.id", "spool/spool.run", "spool/spool.lock"} {
					paths = append(paths, filepath.Join(dir, name))
				}
				if start == "first" {
					paths = append(paths, filepath.Dir(dir))
				}
				for _, path := range paths {
					before.wantDurable(t, path)
				}
			}
		})
	}
}
