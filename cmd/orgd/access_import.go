package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/orgd/orgd/client"
	"github.com/orgd/orgd/cmd/orgd/weblog"
	"github.com/orgd/orgd/internal/access"
)

func accessImportCommand(s *session) *cobra.Command {
	im := &webLogImport{}
	var format, pattern string
	cmd := &cobra.Command{
		Use: "import FILE...", Short: "Bring the access logs of web servers in", Args: cobra.MinimumNArgs(1),
		Long: `Bring the access logs of web servers in: Apache's and nginx's Common and Combined
Log Format. FILE may be compressed with gzip; - is standard input.

Lines belong to the organization of --org. With --org-from-path they belong to
the one at or below it whose id is what the first group of the expression
matches in the path of the request; lines that do not match stay with --org.

Running it again adds nothing, in whatever order the lines are: an event is
known by the content of its line, and by its number among lines of the same
content in all the files of one call. So a log that has grown or was rotated can
be imported again as a whole. Name the files of a rotated log in one call: equal
lines that stand in two of them are events of their own then.

Several hosts may write the same line. --source names the host that wrote the
files, and lines of different sources are different events. Use the same name each
time.

The action of an event is the method of the request unless --action names one,
its status DENIED for 401 and 403, FAILURE for other answers from 400 on, and
SUCCESS otherwise, its user the authenticated one or "anonymous". Lines that
cannot be read are printed as FILE:LINE: what is wrong; the others are imported
all the same, and the exit code is 1.

Lines that are older than the root keeps its access log are refused; see 'orgd
access retention'.`,
		Example: `  orgd access import --org acme /var/log/nginx/access.log /var/log/nginx/access.log.*.gz
  orgd access import --org acme --source web-2 web-2/access.log*
  orgd access import --org acme --org-from-path '^/customers/([^/]+)/' access.log`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "combined" && format != "common" {
				return usageError("--format must be combined or common, not %q", format)
			}
			if im.orgID == "" {
				return usageError("--org must name the organization that the lines belong to")
			}
			if pattern != "" {
				expression, err := regexp.Compile(pattern)
				if err != nil {
					return usageError("--org-from-path: %w", err)
				}
				if expression.NumSubexp() < 1 {
					return usageError("--org-from-path must have a group that matches the id, such as '^/customers/([^/]+)/'")
				}
				im.path = expression
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			im.client, im.errors = c, cmd.ErrOrStderr()
			done := func() {}
			if isTerminal(cmd.ErrOrStderr()) {
				done = showProgress(cmd.ErrOrStderr(), im.progress)
				im.errors = nil // the terminal shows the progress; kept until it is done
			}
			im.seen = map[uint64]uint32{}
			for _, name := range args {
				if err = im.file(cmd.Context(), name, cmd.InOrStdin()); err != nil {
					break
				}
			}
			done()
			for _, line := range im.kept {
				fmt.Fprintln(cmd.ErrOrStderr(), line)
			}
			if err != nil {
				if n := im.accepted.Load(); n > 0 {
					fmt.Fprintf(cmd.ErrOrStderr(), "Imported %s before that. Run it again to go on: what is there is not added again.\n", plural(n, "event"))
				}
				return err
			}
			if s.json() {
				err = printRaw(cmd.OutOrStdout(), fmt.Appendf(nil, `{"accepted":%d,"duplicates":%d,"bad_lines":%d}`, im.accepted.Load(), im.duplicates, im.bad))
			} else {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "Imported %s; %s there already.\n", plural(im.accepted.Load(), "event"), were(im.duplicates))
			}
			if err == nil && im.bad > 0 {
				err = messagef("%s could not be imported.", plural(im.bad, "line"))
			}
			return err
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&format, "format", "combined", "combined or common: either takes both")
	complete(cmd, "format", "combined", "common")
	fs.StringVar(&im.orgID, "org", "", "`id` of the organization that the lines belong to")
	fs.StringVar(&pattern, "org-from-path", "", "regular `expression` whose first group matches the id of the organization in a request's path")
	fs.StringVar(&im.source, "source", "", "`name` of the host that wrote the files; equal lines of two sources are two events")
	fs.StringVar(&im.action, "action", "", "the `action` of all events; otherwise the method of the request")
	return cmd
}

func were(n int64) string {
	if n == 1 {
		return "1 was"
	}
	return grouped(n) + " were"
}

// Bounds of an import: how much is sent at once, how many bad lines are
// printed, and after how many that the server refuses it gives up.
const (
	importEvents  = 5000
	importBytes   = 16 << 20
	printedLines  = 100
	refusedLines  = 100
	maxImportPath = 2048
)

// webLogImport is an import of web server logs under way.
type webLogImport struct {
	client *client.Client
	orgID  string
	path   *regexp.Regexp
	action string
	source string

	errors io.Writer // nil to keep what is printed
	kept   []string

	name  string
	files []os.FileInfo     // that were read
	seen  map[uint64]uint32 // hash of a line → how many of its content there were
	batch []client.NewAccessEvent
	lines []int // of the batch
	bytes int

	read, size               atomic.Int64 // of the file
	accepted                 atomic.Int64
	duplicates, bad, refused int64
}

func (im *webLogImport) progress() string {
	text := "Imported " + plural(im.accepted.Load(), "event")
	if size := im.size.Load(); size > 0 {
		text += fmt.Sprintf(", %d%% of the file", min(100, im.read.Load()*100/size))
	}
	return text + "…"
}

// file imports one file.
func (im *webLogImport) file(ctx context.Context, name string, stdin io.Reader) error {
	in := stdin
	im.name = "stdin"
	im.read.Store(0)
	im.size.Store(0)
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return usageError("%w", err)
		}
		defer f.Close()
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			// Its lines would count twice.
			if slices.ContainsFunc(im.files, func(other os.FileInfo) bool { return os.SameFile(info, other) }) {
				return usageError("%s is given twice", name)
			}
			im.files = append(im.files, info)
			im.size.Store(info.Size())
		}
		in, im.name = f, name
	}
	b := bufio.NewReaderSize(&countingReader{in, &im.read}, 256<<10)
	in = b
	if magic, _ := b.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(b)
		if err != nil {
			return fmt.Errorf("%s: %w", im.name, err)
		}
		defer z.Close()
		in = z
	}
	for line, err := range weblog.Lines(in) {
		var bad *weblog.Error
		switch {
		case errors.As(err, &bad):
			im.report(bad.Line, bad.Reason)
			continue
		case err != nil:
			return fmt.Errorf("%s: %w", im.name, err)
		}
		im.add(&line)
		if len(im.batch) == importEvents || im.bytes > importBytes {
			if err := im.send(ctx); err != nil {
				return err
			}
		}
	}
	return im.send(ctx)
}

type countingReader struct {
	r io.Reader
	n *atomic.Int64
}

func (r *countingReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.n.Add(int64(n))
	return n, err
}

// report says what is wrong with a line.
func (im *webLogImport) report(line int, reason string) {
	im.bad++
	text := fmt.Sprintf("%s:%d: %s", im.name, line, clean(reason))
	if im.bad == printedLines+1 {
		text = "There are more lines that cannot be imported."
	} else if im.bad > printedLines {
		return
	}
	if im.errors == nil {
		im.kept = append(im.kept, text)
		return
	}
	fmt.Fprintln(im.errors, text)
}

var lineIDs = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// lineID returns the id of the nth event of a source with the same line.
func lineID(source, raw string, n uint32) string {
	h := sha256.New()
	if source != "" {
		of := sha256.Sum256([]byte(source))
		h.Write(of[:])
	}
	io.WriteString(h, raw)
	h.Write(binary.BigEndian.AppendUint32([]byte{0}, n))
	return "log_" + lineIDs.EncodeToString(h.Sum(nil)[:20])
}

// add adds the event of a line to the batch.
func (im *webLogImport) add(l *weblog.Line) {
	sum := sha256.Sum256([]byte(l.Raw))
	content := binary.BigEndian.Uint64(sum[:])
	im.seen[content]++
	e := client.NewAccessEvent{ID: lineID(im.source, l.Raw, im.seen[content]), Timestamp: l.Time, User: cutText(l.User, 256), Action: im.action,
		Status: access.Success, UserAgent: cutText(l.UserAgent, 512), Method: cutText(l.Method, 32), Path: cutText(l.Path, maxImportPath)}
	if e.User == "" {
		e.User = "anonymous"
	}
	if e.Action == "" {
		if e.Action = l.Method; e.Action == "" {
			e.Action = "REQUEST"
		}
		e.Action = cutText(e.Action, 64)
	}
	switch {
	case l.Status == 401 || l.Status == 403:
		e.Status = access.Denied
	case l.Status >= 400:
		e.Status = access.Failure
	}
	if ip, err := netip.ParseAddr(l.IP); err == nil {
		e.IP = ip.WithZone("").String()
	}
	if im.path != nil {
		if m := im.path.FindStringSubmatch(l.Path); m != nil {
			e.OrgID = m[1]
		}
	}
	im.batch = append(im.batch, e)
	im.lines = append(im.lines, l.Line)
	im.bytes += len(l.Raw) + 200
}

// cutText makes text one that an event may hold.
func cutText(s string, n int) string {
	s = clean(s)
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return s
}

// send sends the batch. Lines that the server refuses are reported, and the
// others sent without them.
func (im *webLogImport) send(ctx context.Context) error {
	for len(im.batch) > 0 {
		got, err := im.client.SendAccessEvents(ctx, im.orgID, im.batch)
		var answer *client.Error
		if errors.As(err, &answer) && answer.Code == "event_invalid" {
			if err := im.drop(answer); err != nil {
				return err
			}
			continue
		} else if err != nil {
			return err
		}
		im.accepted.Add(got.Accepted)
		im.duplicates += got.Duplicates
		break
	}
	im.batch, im.lines, im.bytes = im.batch[:0], im.lines[:0], 0
	return nil
}

// drop takes the events that the server refuses out of the batch.
func (im *webLogImport) drop(answer *client.Error) error {
	gone := map[int]bool{}
	for _, f := range answer.Errors {
		if f.Index == nil || *f.Index >= len(im.batch) || gone[*f.Index] {
			continue
		}
		gone[*f.Index] = true
		im.report(im.lines[*f.Index], strings.TrimPrefix(f.Pointer, "/")+" "+f.Detail)
	}
	if im.refused += int64(len(gone)); len(gone) == 0 || im.refused >= refusedLines {
		return answer
	}
	kept := 0
	for i := range im.batch {
		if !gone[i] {
			im.batch[kept], im.lines[kept] = im.batch[i], im.lines[i]
			kept++
		}
	}
	im.batch, im.lines = im.batch[:kept], im.lines[:kept]
	return nil
}
