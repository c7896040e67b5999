package access

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const crashDir = "ORGD_TEST_RECORDER_DIR"

// TestMain lets the test binary be the process that TestKill9 kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		recordUntilKilled(dir)
	}
	os.Exit(m.Run())
}

// recordUntilKilled records events from several goroutines, and writes the id
// of each to standard output after it was recorded.
func recordUntilKilled(dir string) {
	start, err := strconv.Atoi(os.Getenv(crashDir + "_START"))
	if err == nil {
		var r *Recorder
		opts := fast()
		opts.SegmentBytes = 20_000
		opts.BatchSize = 50
		if r, err = OpenRecorder(context.Background(), dir, &fileSink{dir: dir}, opts); err == nil {
			var wg sync.WaitGroup
			for g := range 4 {
				wg.Go(func() {
					for n := start + g; ; n += 4 {
						if err := r.Record(testRecord(n)); err != nil {
							fmt.Fprintln(os.Stderr, err)
							os.Exit(1)
						}
						fmt.Printf("%d\n", n) // one write: standard output is not buffered
					}
				})
			}
			wg.Wait()
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// fileSink is a Sink whose transactions are lines of a file: one write each,
// void unless the line is complete.
type fileSink struct {
	dir string
	mu  sync.Mutex
}

func (s *fileSink) name() string { return filepath.Join(s.dir, "sink") }

// load returns the position, the ids stored and the size of the complete lines.
func (s *fileSink) load() (p Position, ids []string, size int64, err error) {
	b, err := os.ReadFile(s.name())
	if errors.Is(err, os.ErrNotExist) {
		return p, nil, 0, nil
	}
	for line := range strings.Lines(string(b)) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		fields := strings.Fields(line)
		if _, err := fmt.Sscan(fields[0]+" "+fields[1], &p.Segment, &p.Offset); err != nil {
			return p, nil, 0, err
		}
		ids = append(ids, fields[2:]...)
		size += int64(len(line))
	}
	return p, ids, size, err
}

// The directory is never copied, so who has it needs no keeping.
func (s *fileSink) SpoolState(ctx context.Context, id string) (SpoolState, error) {
	p, _, _, err := s.load()
	return SpoolState{Position: p}, err
}

func (s *fileSink) TakeSpool(ctx context.Context, id string, run Run, _ string, _ time.Time) (SpoolState, error) {
	return s.SpoolState(ctx, id)
}

func (s *fileSink) Flush(ctx context.Context, b Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	stored, _, size, err := s.load()
	if err != nil || stored == b.Position {
		return err
	}
	if stored != b.From {
		return errPosition
	}
	line := fmt.Sprint(b.Position.Segment, " ", b.Position.Offset)
	for _, e := range b.Events {
		line += " " + e.ID
	}
	if err := os.Truncate(s.name(), size); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(s.name(), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	return errors.Join(err, f.Close())
}

// What was acknowledged before kill -9 is stored once, and nothing is stored
// twice.
func TestKill9(t *testing.T) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(1, 2))
	acknowledged := map[string]bool{}
	for round := range 8 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashDir+"="+dir, fmt.Sprintf("%s_START=%d", crashDir, round*1_000_000))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for left := rng.IntN(2000) + 1; lines.Scan(); left-- {
			if left == 0 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			acknowledged[lines.Text()] = true
		}
		if err := lines.Err(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
			t.Fatalf("the process was not killed: %v", err)
		}
	}
	sink := &fileSink{dir: dir}
	r := open(t, dir, sink, fast())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := r.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if r.Damaged() != 0 {
		t.Errorf("%d segments are reported damaged", r.Damaged())
	}
	_, ids, _, err := sink.load()
	if err != nil {
		t.Fatal(err)
	}
	stored := map[string]bool{}
	for _, id := range ids {
		if stored[id] {
			t.Errorf("%s is stored twice", id)
		}
		stored[id] = true
	}
	for id := range acknowledged {
		if !stored[id] {
			t.Errorf("%s was acknowledged and is lost", id)
		}
	}
	if len(acknowledged) < 8 {
		t.Errorf("only %d records were acknowledged", len(acknowledged))
	}
}
