package budget

import (
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
)

func TestMachineScales(t *testing.T) {
	small, large := Machine(1, 256<<20), Machine(32, 256<<30)
	for _, r := range Resources() {
		if small[r] < 1 || large[r] < small[r] {
			t.Errorf("a small machine has %d %s, a large one %d", small[r], r, large[r])
		}
	}
	if small[Bytes] != minBytes || large[Bytes] != maxBytes || Machine(2, 2<<30)[Bytes] != 256<<20 {
		t.Errorf("the bytes are %d, %d and %d", small[Bytes], large[Bytes], Machine(2, 2<<30)[Bytes])
	}
	// The largest body that any call takes fits on the smallest machine.
	if got := New(small).Default()[Bytes]; got < 32<<20 {
		t.Errorf("on a small machine a root has %d bytes", got)
	}
	if small[Expensive] < 2 {
		t.Error("on a small machine one root has all places for expensive work")
	}
}

func TestMemory(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(math.MaxInt64))
	root := t.TempDir()
	file := func(name, text string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := func(n int64, what string) {
		t.Helper()
		if got := memory(root); got != n {
			t.Errorf("%s: %d bytes, want %d", what, got, n)
		}
	}
	want(unknownMemory, "of a machine that does not tell")
	file("proc/meminfo", "MemFree:  1 kB\nMemTotal:       8192 kB\n")
	want(8<<20, "of a machine")
	file("proc/self/cgroup", "1:name=x:/old\n0::/a/b\n")
	file("sys/fs/cgroup/a/b/memory.max", "max\n")
	want(8<<20, "of a group without a bound")
	file("sys/fs/cgroup/a/memory.max", "6291456\n")
	want(6<<20, "of a group below one with a bound")
	file("sys/fs/cgroup/a/b/memory.max", "4194304\n")
	want(4<<20, "of a group with a bound")
	file("sys/fs/cgroup/memory.max", "3145728\n")
	want(3<<20, "of a container")
	debug.SetMemoryLimit(2 << 20)
	want(2<<20, "with GOMEMLIMIT")
}
