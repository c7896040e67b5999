package testkit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BlockDisk is a disk of which every write and every flush is known. It is a
// loop device over a file that this process serves by FUSE, so that a real file
// system is on it, whose writes arrive here as it makes them and in its order.
type BlockDisk struct {
	// Dir is where the file system is mounted.
	Dir string

	t      testing.TB
	file   string // the disk's content, as the loop device sees it
	fuse   int
	device string

	mu      sync.Mutex
	content sectors
	base    sectors // the content before the first record
	records []blockRecord
	record  bool
	writes  int // since the disk records
	fail    func(write int) error
}

// blockRecord is one write, or a flush if it has no data.
type blockRecord struct {
	offset int64
	data   []byte
	at     time.Time
}

// sectors is the content of a disk in parts of partSize, of which those that were
// never written are nil.
type sectors [][]byte

const partSize = 64 << 10

func (s sectors) size() int64 { return int64(len(s)) * partSize }

func (s sectors) read(b []byte, offset int64) {
	for n := 0; len(b) > 0; b, offset = b[n:], offset+int64(n) {
		part, from := s[offset/partSize], offset%partSize
		n = min(len(b), int(partSize-from))
		if part == nil {
			clear(b[:n])
		} else {
			copy(b[:n], part[from:])
		}
	}
}

func (s sectors) write(b []byte, offset int64) {
	for n := 0; len(b) > 0; b, offset = b[n:], offset+int64(n) {
		part, from := &s[offset/partSize], offset%partSize
		if *part == nil {
			*part = make([]byte, partSize)
		}
		n = copy((*part)[from:], b)
	}
}

func (s sectors) clone() sectors {
	out := make(sectors, len(s))
	for i, part := range s {
		if part != nil {
			out[i] = append([]byte(nil), part...)
		}
	}
	return out
}

const (
	fuseMaxWrite = 128 << 10
	fuseBuffer   = fuseMaxWrite + 4096
)

// NewBlockDisk makes a disk with an empty file system: a type and options of
// mkfs, such as "ext4", "-b", "4096". It takes root, FUSE and loop devices:
// without them the test is skipped, and with CI=true it fails.
func NewBlockDisk(t testing.TB, sizeMiB int, mkfs ...string) *BlockDisk {
	t.Helper()
	d := openBlockDisk(t, make(sectors, sizeMiB<<20/partSize))
	args := append(append([]string{"-q"}, mkfs[1:]...), d.device)
	if out, err := exec.Command("mkfs."+mkfs[0], args...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.%s: %v\n%s", mkfs[0], err, out)
	}
	return d
}

func openBlockDisk(t testing.TB, content sectors) *BlockDisk {
	t.Helper()
	d := &BlockDisk{t: t, content: content, fuse: -1}
	if err := d.open(); err != nil {
		d.Close()
		if os.Getenv("CI") == "true" {
			t.Fatalf("making a disk: %v", err)
		}
		t.Skipf("making a disk: %v", err)
	}
	t.Cleanup(d.Close)
	return d
}

func (d *BlockDisk) open() (err error) {
	dir := d.t.TempDir()
	d.Dir, d.file = filepath.Join(dir, "mounted"), filepath.Join(dir, "disk")
	if err := errors.Join(os.Mkdir(d.Dir, 0o700), os.WriteFile(d.file, nil, 0o600)); err != nil {
		return err
	}
	if d.fuse, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("/dev/fuse: %w", err)
	}
	if err := unix.Mount("orgd", d.file, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=100000,user_id=0,group_id=0,allow_other", d.fuse)); err != nil {
		return fmt.Errorf("mounting by FUSE: %w", err)
	}
	go d.serve(d.fuse)
	out, err := exec.Command("losetup", "--find", "--show", d.file).CombinedOutput()
	if err != nil {
		return fmt.Errorf("losetup: %w: %s", err, out)
	}
	d.device = strings.TrimSpace(string(out))
	// A loop device takes a write for whole of which FUSE has refused a part, so
	// each must fit into one of FUSE's.
	limit := filepath.Join("/sys/block", filepath.Base(d.device), "queue/max_sectors_kb")
	if err := os.WriteFile(limit, []byte("64"), 0o600); err != nil {
		return fmt.Errorf("limiting the size of writes: %w", err)
	}
	return nil
}

// Mount mounts the file system of a type with options, such as "barrier=0".
func (d *BlockDisk) Mount(kind, options string) error {
	return unix.Mount(d.device, d.Dir, kind, unix.MS_NOATIME, options)
}

// Unmount unmounts the file system. Nothing may use it any more.
func (d *BlockDisk) Unmount() error { return unix.Unmount(d.Dir, 0) }

// Close takes the disk away, with the file system on it.
func (d *BlockDisk) Close() {
	d.FailWrites(nil)
	if d.device != "" {
		unix.Unmount(d.Dir, unix.MNT_DETACH)
		exec.Command("losetup", "--detach", d.device).Run()
		d.device = ""
	}
	if d.fuse >= 0 {
		unix.Unmount(d.file, unix.MNT_DETACH)
		d.fuse = -1
	}
}

// Record forgets what was written so far, of which nothing will be lost, and
// notes from here on what is written.
func (d *BlockDisk) Record() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.base, d.records, d.record, d.writes = d.content.clone(), nil, true, 0
}

// Position is how many writes and flushes have been recorded.
func (d *BlockDisk) Position() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.records)
}

// TimeOf returns when the record at a position was made.
func (d *BlockDisk) TimeOf(position int) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	if position >= len(d.records) {
		return time.Now()
	}
	return d.records[position].at
}

// FailWrites asks fail about every write, by its number since Record. A write
// for which it returns an error does not reach the disk.
func (d *BlockDisk) FailWrites(fail func(write int) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = fail
}

// Cut returns a disk as a power cut at a position leaves it: with what was
// flushed before, and with any part of what was written since, in pieces of
// 4 KiB, of which each is there with the probability kept.
func (d *BlockDisk) Cut(position int, kept float64, r *rand.Rand) *BlockDisk {
	d.t.Helper()
	d.mu.Lock()
	image, records := d.base.clone(), d.records[:position]
	d.mu.Unlock()
	flushed := 0
	for i, w := range records {
		if w.data == nil {
			flushed = i
		}
	}
	for i, w := range records {
		for from := 0; from < len(w.data); from += 4096 {
			if i < flushed || r.Float64() < kept {
				image.write(w.data[from:min(from+4096, len(w.data))], w.offset+int64(from))
			}
		}
	}
	return openBlockDisk(d.t, image)
}

// The operations of FUSE that a file needs.
const (
	fuseForget      = 2
	fuseGetattr     = 3
	fuseSetattr     = 4
	fuseOpen        = 14
	fuseRead        = 15
	fuseWrite       = 16
	fuseRelease     = 18
	fuseFsync       = 20
	fuseFlush       = 25
	fuseInit        = 26
	fuseInterrupt   = 36
	fuseDestroy     = 38
	fuseBatchForget = 42
)

// serve answers the kernel until the file is unmounted.
func (d *BlockDisk) serve(fd int) {
	defer unix.Close(fd)
	in := make([]byte, fuseBuffer)
	for {
		n, err := unix.Read(fd, in)
		if err == unix.EINTR || err == unix.EAGAIN || err == unix.ENOENT {
			continue
		}
		if err != nil || n < 40 {
			return
		}
		op := binary.LittleEndian.Uint32(in[4:])
		if op == fuseForget || op == fuseBatchForget || op == fuseInterrupt {
			continue
		}
		body, errno := d.answer(op, in[40:n])
		out := make([]byte, 16, 16+len(body))
		if errno == 0 {
			out = append(out, body...)
		}
		binary.LittleEndian.PutUint32(out, uint32(len(out)))
		binary.LittleEndian.PutUint32(out[4:], uint32(-int32(errno)))
		copy(out[8:16], in[8:16])
		unix.Write(fd, out)
		if op == fuseDestroy {
			return
		}
	}
}

func (d *BlockDisk) answer(op uint32, in []byte) ([]byte, unix.Errno) {
	le := binary.LittleEndian
	switch op {
	case fuseInit:
		out := make([]byte, 64)
		le.PutUint32(out, 7)
		le.PutUint32(out[4:], 31)
		le.PutUint32(out[12:], 1<<5|1<<22) // writes of many pages
		le.PutUint16(out[16:], 16)
		le.PutUint16(out[18:], 12)
		le.PutUint32(out[20:], fuseMaxWrite)
		le.PutUint32(out[24:], 1)
		le.PutUint16(out[28:], fuseMaxWrite/4096)
		return out, 0
	case fuseGetattr, fuseSetattr:
		out := make([]byte, 104)
		le.PutUint64(out[16:], 1)
		le.PutUint64(out[24:], uint64(d.content.size()))
		le.PutUint64(out[32:], uint64(d.content.size()/512))
		le.PutUint32(out[76:], unix.S_IFREG|0o600)
		le.PutUint32(out[80:], 1)
		le.PutUint32(out[96:], 4096)
		return out, 0
	case fuseOpen:
		out := make([]byte, 16)
		out[8] = 1 // past the page cache
		return out, 0
	case fuseRead:
		offset, size := int64(le.Uint64(in[8:])), int64(le.Uint32(in[16:]))
		d.mu.Lock()
		defer d.mu.Unlock()
		out := make([]byte, max(0, min(size, d.content.size()-offset)))
		d.content.read(out, offset)
		return out, 0
	case fuseWrite:
		return d.write(int64(le.Uint64(in[8:])), in[40:40+le.Uint32(in[16:])])
	case fuseFsync:
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.record {
			d.records = append(d.records, blockRecord{at: time.Now()})
		}
		return nil, 0
	case fuseRelease, fuseFlush, fuseDestroy:
		return nil, 0
	}
	return nil, unix.ENOSYS
}

func (d *BlockDisk) write(offset int64, data []byte) ([]byte, unix.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if offset+int64(len(data)) > d.content.size() {
		return nil, unix.ENOSPC
	}
	if d.record {
		d.writes++
		if d.fail != nil && d.fail(d.writes) != nil {
			return nil, unix.EIO
		}
		d.records = append(d.records, blockRecord{offset, append([]byte(nil), data...), time.Now()})
	}
	d.content.write(data, offset)
	out := make([]byte, 8)
	binary.LittleEndian.PutUint32(out, uint32(len(data)))
	return out, 0
}
