package budget

import (
	"bufio"
	"bytes"
	"math"
	"os"
	"path"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
)

const (
	minBytes = 32 << 20
	maxBytes = 2 << 30
	// unknownMemory is what is assumed of a machine that does not tell.
	unknownMemory = 512 << 20
	// ownMemory is what a process needs besides bodies, answers and what these
	// become: itself, the database's caches, connections and small requests.
	ownMemory = 64 << 20
)

// heap returns how much of the memory that a process may use Go may take before
// it collects garbage by all means. The rest is for what Go does not count: the
// memory of SQLite, stacks of the system, and pages of files.
func heap(memory int64) int64 { return memory / 5 * 4 }

// Machine returns the capacities of a process that may run on so many cores at
// once and use so much memory. Bytes and the half of it that the operator has to
// itself fit into what the process has no other use for.
func Machine(cores int, memory int64) Limits {
	n := int64(max(cores, 1))
	return Limits{
		Requests:          min(max(48*n, 96), 4096),
		Bytes:             min(max((heap(memory)-ownMemory)*2/3, minBytes), maxBytes),
		Expensive:         max(n, 2),
		Streams:           max(150*n, 200),
		RequestsPerSecond: 1_000_000 * n,
		ChangesPerSecond:  100_000 * n,
	}
}

// ThisMachine returns the capacities of this process.
func ThisMachine() Limits { return Machine(runtime.GOMAXPROCS(0), memory("/")) }

// BoundHeap has Go keep within the memory that this process may use, unless
// GOMEMLIMIT says how much that is. It returns the bound.
func BoundHeap() int64 {
	bound := debug.SetMemoryLimit(-1)
	if os.Getenv("GOMEMLIMIT") == "" {
		bound = heap(memory("/"))
		debug.SetMemoryLimit(bound)
	}
	return bound
}

// memory returns how much memory this process may use: the least of what the
// machine has, what its control group may use, and GOMEMLIMIT. The files are
// below root.
func memory(root string) int64 {
	least := int64(math.MaxInt64)
	if os.Getenv("GOMEMLIMIT") != "" {
		least = debug.SetMemoryLimit(-1)
	}
	if n := memTotal(root); n > 0 {
		least = min(least, n)
	}
	unified, v1 := controlGroups(root)
	for _, in := range []struct {
		hierarchy, group string
		files            []string
	}{
		{"sys/fs/cgroup", unified, []string{"memory.max", "memory.high"}},
		{"sys/fs/cgroup/memory", v1, []string{"memory.limit_in_bytes"}},
	} {
		// A group is bounded by those above it too.
		for group := in.group; ; group = path.Dir(group) {
			for _, file := range in.files {
				b, err := os.ReadFile(path.Join(root, in.hierarchy, group, file))
				if n, perr := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && perr == nil && n > 0 {
					least = min(least, n)
				}
			}
			if group == "/" {
				break
			}
		}
	}
	if least == math.MaxInt64 {
		return unknownMemory
	}
	return least
}

// controlGroups returns the paths of the process's group of version 2, and of
// that of version 1 that bounds memory; "/" for one that is not known: in a
// container that is often where its own group is mounted.
func controlGroups(root string) (unified, v1 string) {
	unified, v1 = "/", "/"
	b, _ := os.ReadFile(path.Join(root, "proc/self/cgroup"))
	for line := range bytes.Lines(b) {
		number, rest, _ := strings.Cut(strings.TrimSpace(string(line)), ":")
		controllers, group, ok := strings.Cut(rest, ":")
		switch {
		case !ok:
		case number == "0" && controllers == "":
			unified = path.Clean("/" + group)
		case slices.Contains(strings.Split(controllers, ","), "memory"):
			v1 = path.Clean("/" + group)
		}
	}
	return unified, v1
}

func memTotal(root string) int64 {
	f, err := os.Open(path.Join(root, "proc/meminfo"))
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "MemTotal:"); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return n << 10
		}
	}
	return 0
}
