package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/text/width"
)

// tableBlock is how many rows of a table are aligned together: a long list
// appears as it arrives.
const tableBlock = 1000

// list is how the elements of a list are printed.
type list[T any] struct {
	none    string // what to say of an empty list
	columns []string
	row     func(*T) []string
	raw     func(*T) json.RawMessage
}

// print prints the elements, at most limit of them unless it is 0: as a
// table, or as one JSON array.
func (l list[T]) print(cmd *cobra.Command, s *session, elements iter.Seq2[T, error], limit int) error {
	out := bufio.NewWriter(cmd.OutOrStdout())
	tw := newTable(out)
	n := 0
	for v, err := range elements {
		if err != nil {
			tw.Flush()
			out.Flush()
			return err
		}
		switch {
		case s.json() && n == 0:
			out.WriteString("[\n")
		case s.json():
			out.WriteString(",\n")
		case n == 0:
			writeRow(tw, l.columns)
		}
		if s.json() {
			out.Write(l.raw(&v))
		} else {
			writeRow(tw, l.row(&v))
		}
		if n++; n == limit {
			break
		}
		if n%tableBlock == 0 {
			tw.Flush()
		}
	}
	tw.Flush()
	switch {
	case s.json() && n == 0:
		out.WriteString("[]\n")
	case s.json():
		out.WriteString("\n]\n")
	case n == 0:
		fmt.Fprintln(cmd.ErrOrStderr(), l.none)
	}
	return out.Flush()
}

// pageSize returns how many elements to ask for at a time.
func pageSize(limit int) int {
	if limit > 0 && limit < 1000 {
		return limit
	}
	return 1000
}

func limitFlag(cmd *cobra.Command, limit *int, otherwise int) {
	cmd.Flags().IntVar(limit, "limit", otherwise, "how many to print at most; 0 for all")
}

// table aligns rows in columns. What is written appears with Flush.
type table struct {
	w    io.Writer
	rows [][]string
}

func newTable(w io.Writer) *table { return &table{w: w} }

func writeRow(t *table, cells []string) {
	row := make([]string, len(cells))
	for i, c := range cells {
		if c == "" {
			c = "-"
		}
		row[i] = clean(c)
	}
	t.rows = append(t.rows, row)
}

// Flush writes the rows since the last Flush, aligned with each other.
func (t *table) Flush() error {
	var widths []int
	for _, row := range t.rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], displayWidth(c))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		for i, c := range row {
			b.WriteString(c)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-displayWidth(c)+2))
			}
		}
		b.WriteByte('\n')
	}
	t.rows = t.rows[:0]
	_, err := io.WriteString(t.w, b.String())
	return err
}

// displayWidth returns how many columns a terminal gives to s (Unicode
// Standard Annex 11).
func displayWidth(s string) int {
	n := 0
	for _, r := range s {
		switch width.LookupRune(r).Kind() {
		case width.EastAsianWide, width.EastAsianFullwidth:
			n += 2
		default:
			if !unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf) {
				n++
			}
		}
	}
	return n
}

// printFields prints names and values in turn, one pair a line; a pair
// without a value is left out.
func printFields(w io.Writer, pairs ...string) error {
	tw := newTable(w)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			writeRow(tw, pairs[i:i+2])
		}
	}
	return tw.Flush()
}

// printRaw prints what the API answered.
func printRaw(w io.Writer, raw json.RawMessage) error {
	_, err := fmt.Fprintf(w, "%s\n", raw)
	return err
}

// clean makes text from a server harmless for a terminal: characters that
// control it, or that change the direction of writing, are replaced.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029' {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// plural returns a number with its noun: "1 organization", "12,345 organizations".
func plural(n int64, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return grouped(n) + " " + noun
}

// grouped writes n with commas between groups of three digits.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func timeText(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// timeOr is timeText for a time that may be absent.
func timeOr(t *time.Time, otherwise string) string {
	if t == nil {
		return otherwise
	}
	return timeText(*t)
}
