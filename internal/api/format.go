package api

import (
	"bufio"
	"context"
	"encoding/csv"
	"errors"
	"io"
	"math"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/web"
)

// Formats of logs and consumption.
const (
	formatJSON   = "json"
	formatCSV    = "csv"
	formatNDJSON = "ndjson"
)

// format returns the format that the request asks for: the format parameter,
// else what the Accept header prefers.
func (q *query) format() string {
	if f := q.oneOf("format", "", formatJSON, formatCSV, formatNDJSON); f != "" {
		return f
	}
	return accepted(q.r.Header["Accept"])
}

// accepted returns the format that an Accept header prefers (RFC 9110, section
// 12.5.1), and JSON if it takes none. Each format has the weight of the range
// that fits it most closely, and the greatest weight wins. Of equal ones the
// first in the header wins; a range with * is for JSON first, and text/* comes
// after all others. A weight that is not a number from 0 to 1 counts as 1:
// whoever names a format wants it.
func accepted(header []string) string {
	formats := [...]struct{ name, kind, subtype string }{
		{formatJSON, "application", "json"}, {formatCSV, "text", "csv"}, {formatNDJSON, "application", "x-ndjson"},
	}
	type fit struct {
		closeness, place int
		weight           float64
	}
	var fits [len(formats)]fit
	for place, part := range strings.Split(strings.Join(header, ","), ",") {
		mediaType, params, err := mime.ParseMediaType(part)
		if err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter) {
			continue
		}
		weight, err := strconv.ParseFloat(params["q"], 64)
		if err != nil || !(weight >= 0 && weight <= 1) {
			weight = 1
		}
		if mediaType == "text/*" {
			place = math.MaxInt
		}
		for i, f := range formats {
			closeness := slices.Index([]string{"*/*", f.kind + "/*", f.kind + "/" + f.subtype}, mediaType) + 1
			if closeness > fits[i].closeness {
				fits[i] = fit{closeness, place, weight}
			}
		}
	}
	best := 0
	for i, f := range fits {
		if f.weight > fits[best].weight || f.weight == fits[best].weight && f.weight > 0 && f.place < fits[best].place {
			best = i
		}
	}
	return formats[best].name
}

// streamPage is how many rows a stream reads at a time.
const streamPage = 500

// table answers with the rows of a list that has pages: with one page and the
// link to the next if the request has a limit or a cursor, else with all rows.
func table[T any](a *API, q *query, format string, columns []string, fetch func(ctx context.Context, n int) ([]T, []string, error), row func(*T) []string, appendJSON func([]byte, *T) []byte) (*web.Response, error) {
	if !q.paged() {
		return stream(q, format, columns, fetch, row, appendJSON), nil
	}
	rows, next, err := fetch(q.r.Context(), q.limit())
	if err != nil {
		return nil, err
	}
	return a.next(q, stream(q, format, columns, all(rows), row, appendJSON), next), nil
}

// paged reports whether the request asks for one page, and not for all rows.
func (q *query) paged() bool { return q.values.Has("limit") || q.values.Has("cursor") }

// stream answers with all rows that fetch returns, page after page, in
// constant memory. fetch is called until it returns no next position. It has
// returned before anything of its page is written, and before each call the
// request is checked again: a stream ends, and the client sees that it was cut
// off, when the request may not be made any more.
func stream[T any](q *query, format string, columns []string, fetch func(ctx context.Context, n int) ([]T, []string, error), row func(*T) []string, appendJSON func([]byte, *T) []byte) *web.Response {
	ctx := q.r.Watched()
	resp := &web.Response{Status: http.StatusOK, ContentType: "text/csv; charset=utf-8; header=present"}
	if format == formatNDJSON {
		resp.ContentType = "application/x-ndjson"
	}
	resp.Stream = func(w io.Writer) error {
		out := bufio.NewWriterSize(w, 64<<10)
		cw := csv.NewWriter(out)
		cw.UseCRLF = true
		if format == formatCSV {
			if err := cw.Write(columns); err != nil {
				return err
			}
		}
		var buf []byte
		for first := true; ; first = false {
			if !first {
				if err := org.GoOn(ctx); err != nil {
					return err
				}
			}
			rows, next, err := fetch(ctx, streamPage)
			if err != nil {
				return err
			}
			for i := range rows {
				if format == formatCSV {
					if err := cw.Write(neutral(row(&rows[i]))); err != nil {
						return err
					}
					continue
				}
				buf = append(appendJSON(buf[:0], &rows[i]), '\n')
				if _, err := out.Write(buf); err != nil {
					return err
				}
			}
			if next == nil {
				break
			}
		}
		cw.Flush()
		if err := cw.Error(); err != nil {
			return err
		}
		return out.Flush()
	}
	return resp
}

// neutral keeps spreadsheets from running text cells as formulas: such a cell
// gets a leading apostrophe. Numbers stay as they are.
func neutral(cells []string) []string {
	for i, c := range cells {
		if c == "" {
			continue
		}
		switch c[0] {
		case '=', '+', '@', '\t', '\r':
			cells[i] = "'" + c
		case '-':
			if strings.Trim(c, "-.0123456789") != "" {
				cells[i] = "'" + c
			}
		}
	}
	return cells
}
