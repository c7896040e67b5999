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
	if tiny := Machine(1, 64<<20); tiny[Bytes] != minBytes || large[Bytes] != maxBytes {
		t.Errorf("the bytes are %d and %d", tiny[Bytes], large[Bytes])
	}
	for _, memory := range []int64{256 << 20, 512 << 20, 2 << 30} {
		if b := New(Machine(2, memory)); b.roots.capacity[Bytes]+b.operator.capacity[Bytes]+ownMemory > heap(memory) {
			t.Errorf("of %d MiB %d and %d are for bodies", memory>>20, b.roots.capacity[Bytes]>>20, b.operator.capacity[Bytes]>>20)
		}
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
	t.Setenv("GOMEMLIMIT", "")
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
	file("sys/fs/cgroup/a/memory.high", "2621440\n")
	want(2621440, "of a group below one that is slowed down")
	file("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/c/d\n0::/\n")
	file("sys/fs/cgroup/memory/c/d/memory.limit_in_bytes", "9223372036854771712\n")
	want(3<<20, "of a group of version 1 without a bound")
	file("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "2359296\n")
	want(2359296, "of a group of version 1 below one with a bound")
	file("sys/fs/cgroup/memory/c/d/memory.limit_in_bytes", "2228224\n")
	want(2228224, "of a group of version 1")
	t.Setenv("GOMEMLIMIT", "2MiB")
	debug.SetMemoryLimit(2 << 20)
	want(2<<20, "with GOMEMLIMIT")
}
