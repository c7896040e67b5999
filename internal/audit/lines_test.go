package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"io"
	"strings"
	"testing"
)

// Lines of any length come out as they are, wherever a batch or the reader's
// buffer ends.
func TestLinesOfAnyLength(t *testing.T) {
	for _, length := range []int{1, 1000, 60 << 10, 64 << 10, 64<<10 + 1, 100_000, 160_000, 255 << 10, 300_000, 1 << 20} {
		var want [][]byte
		for i := range 40 {
			want = append(want, []byte(strings.Repeat(string(rune('a'+i%26)), length+i)))
		}
		in := lineReader{r: bufio.NewReaderSize(bytes.NewReader(append(bytes.Join(want, []byte("\n")), '\n')), 64<<10), hash: sha256.New(), line: 1}
		var got [][]byte
		for b := new(batch); b.err == nil; {
			in.fill(b)
			if b.first != int64(len(got))+1 {
				t.Errorf("lines of %d bytes: a batch begins with line %d, after %d lines", length, b.first, len(got))
			}
			start := 0
			for _, end := range b.ends {
				got = append(got, bytes.Clone(b.buf[start:end]))
				start = end + 1
			}
			if b.err != nil && b.err != io.EOF {
				t.Fatal(b.err)
			}
		}
		if len(got) != len(want) {
			t.Errorf("of %d lines of %d bytes come %d", len(want), length, len(got))
			continue
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Errorf("line %d of %d bytes is not what it was", i, len(want[i]))
				break
			}
		}
	}
}
