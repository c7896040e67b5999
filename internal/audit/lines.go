package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"hash"
	"io"
	"runtime"
	"sync"
)

const (
	batchSize = 256 << 10
	maxLine   = MaxLeaf + MaxValues + 64
)

// batch is a run of lines of an export. One goroutine reads batches, several
// check the lines of a batch on their own, and the caller of run takes the
// results in order.
type batch struct {
	buf   []byte
	ends  []int // where each line ends, without its newline
	first int64 // number of the first line
	items []item
	sums  []Hash // for each end line, in order: the hash of what precedes it
	err   error  // that ended the reading, behind the lines
	ready chan struct{}
}

// run reads r to its end or to the first line after which nothing can be
// checked. It returns an error only if r does.
func (v *verifier) run(r io.Reader) error {
	workers := runtime.GOMAXPROCS(0)
	inFlight := 2*workers + 2
	free := make(chan *batch, inFlight)
	for range inFlight {
		free <- &batch{ready: make(chan struct{}, 1)}
	}
	work := make(chan *batch, inFlight)
	ordered := make(chan *batch, inFlight)
	stop := make(chan struct{})

	var running sync.WaitGroup
	running.Go(func() {
		defer close(work)
		defer close(ordered)
		in := lineReader{r: bufio.NewReaderSize(r, 64<<10), hash: sha256.New(), line: 1}
		for {
			var b *batch
			select {
			case b = <-free:
			case <-stop:
				return
			}
			in.fill(b)
			err := b.err
			work <- b
			ordered <- b
			if err != nil {
				return
			}
		}
	})
	for range workers {
		running.Go(func() {
			var c entryChecker
			for b := range work {
				c.batch(b)
				b.ready <- struct{}{}
			}
		})
	}

	var readErr error
	on := true
	for b := range ordered {
		<-b.ready
		for i := range b.items {
			if on && !v.line(&b.items[i], b.first+int64(i)) {
				on = false
				close(stop)
			}
		}
		if on && b.err != nil && b.err != io.EOF {
			readErr = b.err
		}
		if v.expect.Progress != nil && on {
			v.expect.Progress(v.report.Entries)
		}
		free <- b
	}
	running.Wait()
	return readErr
}

// lineReader cuts an export into lines.
type lineReader struct {
	r    *bufio.Reader
	hash hash.Hash // of the lines since the last end line
	line int64
}

// fill reads the next lines into b. A last line without its newline is kept,
// and marked by an end beyond what was read.
func (in *lineReader) fill(b *batch) {
	b.buf, b.ends, b.sums, b.items, b.first, b.err = b.buf[:0], b.ends[:0], b.sums[:0], b.items[:0], in.line, nil
	start := 0
	for len(b.buf) < batchSize || start < len(b.buf) { // a batch ends with a line
		part, err := in.r.ReadSlice('\n')
		b.buf = append(b.buf, part...)
		if err == bufio.ErrBufferFull && len(b.buf)-start <= maxLine {
			continue
		}
		if err != nil {
			if len(b.buf) > start && (err == io.EOF || err == bufio.ErrBufferFull) {
				b.ends = append(b.ends, len(b.buf)+1)
			}
			// A line without end makes no sense of what may follow it.
			if b.err = err; err == bufio.ErrBufferFull {
				b.err = io.EOF
			}
			return
		}
		line := b.buf[start:]
		if bytes.HasPrefix(line, endPrefix) {
			b.sums = append(b.sums, Hash(in.hash.Sum(nil)))
			in.hash.Reset()
		} else {
			in.hash.Write(line)
		}
		b.ends = append(b.ends, len(b.buf)-1)
		start = len(b.buf)
		in.line++
	}
}

var (
	headerPrefix     = []byte(`{"export":`)
	checkpointPrefix = []byte(`{"checkpoint":`)
	endPrefix        = []byte(`{"end":`)
)

// batch checks each line of b on its own.
func (c *entryChecker) batch(b *batch) {
	start, sums := 0, b.sums
	for _, end := range b.ends {
		b.items = append(b.items, item{})
		it := &b.items[len(b.items)-1]
		if end > len(b.buf) {
			*it = item{kind: kindBroken, check: CheckTransfer, detail: "the line is cut short, or too long"}
			break
		}
		line := b.buf[start:end]
		start = end + 1
		switch {
		case bytes.HasPrefix(line, headerPrefix):
			*it = item{kind: kindHeader, text: line}
		case bytes.HasPrefix(line, checkpointPrefix):
			*it = item{kind: kindCheckpoint, text: line}
		case bytes.HasPrefix(line, endPrefix):
			*it = item{kind: kindEnd, text: line, sum: sums[0]}
			sums = sums[1:]
		default:
			c.check(line, it)
		}
	}
}
