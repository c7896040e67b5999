package budget

import (
	"bufio"
	"bytes"
	"math"
	"os"
	"path"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
)

const (
	minBytes = 64 << 20
	maxBytes = 512 << 20
	// unknownMemory is what is assumed of a machine that does not tell.
	unknownMemory = 512 << 20
)

// Machine returns the capacities of a process that may run on so many cores at
// once and use so much memory.
func Machine(cores int, memory int64) Limits {
	n := int64(max(cores, 1))
	return Limits{
		Requests:          min(max(48*n, 96), 4096),
		Bytes:             min(max(memory/8, minBytes), maxBytes),
		Expensive:         max(n, 2),
		Streams:           max(150*n, 200),
		RequestsPerSecond: 1_000_000 * n,
		ChangesPerSecond:  100_000 * n,
	}
}

// ThisMachine returns the capacities of this process.
func ThisMachine() Limits { return Machine(runtime.GOMAXPROCS(0), memory("/")) }

// memory returns how much memory this process may use: the least of what the
// machine has, what its control group may use, and GOMEMLIMIT. The files are
// below root.
func memory(root string) int64 {
	least := int64(math.MaxInt64)
	if n := debug.SetMemoryLimit(-1); n > 0 {
		least = n
	}
	if n := memTotal(root); n > 0 {
		least = min(least, n)
	}
	// A group is bounded by those above it too.
	for group := controlGroup(root); ; group = path.Dir(group) {
		b, err := os.ReadFile(path.Join(root, "sys/fs/cgroup", group, "memory.max"))
		if n, perr := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && perr == nil && n > 0 {
			least = min(least, n)
		}
		if group == "/" {
			break
		}
	}
	if least == math.MaxInt64 {
		return unknownMemory
	}
	return least
}

// controlGroup returns the path of the process's group (version 2), "/" if it
// is not known: in a container that is often where its own group is mounted.
func controlGroup(root string) string {
	b, _ := os.ReadFile(path.Join(root, "proc/self/cgroup"))
	for line := range bytes.Lines(b) {
		if group, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "0::"); ok {
			return path.Clean("/" + group)
		}
	}
	return "/"
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
