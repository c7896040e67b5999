package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/orgd/orgd/client"
)

func accessCommand(s *session) *cobra.Command {
	cmd := group("access", "Access log: list, tail, import, export, retention",
		accessListCommand(s), accessTailCommand(s), accessImportCommand(s), accessExportCommand(s), accessRetentionCommand(s))
	s.outputFlag(cmd)
	return cmd
}

// periodFlags adds --from and --to. The function it returns gives their
// values.
func periodFlags(cmd *cobra.Command) func() (from, to time.Time, err error) {
	var f, t string
	cmd.Flags().StringVar(&f, "from", "", "from this `time` on: a time, a day, or a duration ago such as 24h")
	cmd.Flags().StringVar(&t, "to", "", "before this `time`")
	return func() (from, to time.Time, err error) {
		now := time.Now()
		if from, err = parseTime("from", f, now, -1); err == nil {
			to, err = parseTime("to", t, now, -1)
		}
		return from, to, err
	}
}

func accessListCommand(s *session) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use: "list ORG", Short: "List who accessed an organization, newest first", Args: cobra.ExactArgs(1),
		Example: `  orgd access list acme --subtree --status denied --from 24h`,
	}
	filters, period := accessFilters(cmd), periodFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		q := filters()
		if q.From, q.To, err = period(); err != nil {
			return err
		}
		c, err := s.connect()
		if err != nil {
			return err
		}
		return list[client.AccessEvent]{
			none:    "No access.",
			columns: []string{"TIME", "ORGANIZATION", "USER", "ACTION", "STATUS", "ADDRESS", "REQUEST"},
			row: func(e *client.AccessEvent) []string {
				return []string{timeText(e.Timestamp), e.OrgID, e.User, e.Action, e.Status, e.IP, strings.TrimSpace(e.Method + " " + e.Path)}
			},
			raw: func(e *client.AccessEvent) json.RawMessage { return e.Raw },
		}.print(cmd, s, c.AccessLog(cmd.Context(), args[0], q, client.PageSize(pageSize(limit))), limit)
	}
	limitFlag(cmd, &limit, 50)
	return cmd
}

// accessFilters adds the flags that select access events. The function that
// it returns gives their query.
func accessFilters(cmd *cobra.Command) func() client.AccessQuery {
	var q client.AccessQuery
	var subtree bool
	fs := cmd.Flags()
	fs.BoolVar(&subtree, "subtree", false, "also what is below the organization")
	fs.StringVar(&q.User, "user", "", "by this `user`, which is the name of the key")
	fs.StringVar(&q.Action, "action", "", "this `action`, such as GET_ORG")
	fs.StringVar(&q.Status, "status", "", "success, failure or denied")
	complete(cmd, "status", "success", "failure", "denied")
	fs.StringVar(&q.IP, "ip", "", "from this `address`")
	fs.StringVar(&q.APIKeyID, "api-key-id", "", "with the API key of this `id`")
	return func() client.AccessQuery {
		if subtree {
			q.Scope = "subtree"
		}
		q.Status = strings.ToUpper(q.Status)
		return q
	}
}

func accessTailCommand(s *session) *cobra.Command {
	var last int
	cmd := &cobra.Command{
		Use: "tail ORG", Short: "Print who accesses an organization, as it happens", Args: cobra.ExactArgs(1),
		Long: `Print the last accesses to an organization and then every further one as it
happens, until interrupted. A lost connection is opened again, and nothing is
left out or printed twice. With --output json there is one object a line.`,
		Example: `  orgd access tail acme --subtree --status denied`,
	}
	filters := accessFilters(cmd)
	cmd.Flags().IntVarP(&last, "lines", "n", 10, "how many of the last accesses to begin with")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q := filters()
		c, err := s.connect()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancelCause(cmd.Context())
		defer cancel(nil)
		w := cmd.OutOrStdout()
		printed := map[string]bool{}
		show := func(e *client.AccessEvent) error {
			if s.json() {
				return printRaw(w, e.Raw)
			}
			_, err := fmt.Fprintf(w, "%s  %s  %s  %s  %s  %s  %s\n", timeText(e.Timestamp), e.OrgID, clean(e.User), clean(e.Action), e.Status,
				orDash(e.IP), clean(strings.TrimSpace(e.Method+" "+e.Path)))
			return err
		}
		// The stream is opened before the last events are read, so that
		// nothing falls between; what both give is printed once.
		first := true
		opened := func() {
			if !first {
				return
			}
			first = false
			var before []client.AccessEvent
			if last > 0 {
				for e, err := range c.AccessLog(ctx, args[0], q, client.PageSize(min(last, 1000))) {
					if err != nil {
						cancel(err)
						return
					}
					if before = append(before, e); len(before) == last {
						break
					}
				}
			}
			for _, e := range slices.Backward(before) {
				printed[e.ID] = true
				if err := show(&e); err != nil {
					cancel(err)
					return
				}
			}
		}
		for e, err := range c.FollowAccessLog(ctx, args[0], q, client.FollowOptions{Opened: opened}) {
			if err != nil {
				if cmd.Context().Err() != nil {
					return nil // interrupted
				}
				return err
			}
			if printed[e.ID] {
				delete(printed, e.ID)
				continue
			}
			if err := show(&e); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

func orDash(v string) string {
	if v == "" {
		return "-"
	}
	return clean(v)
}

func accessExportCommand(s *session) *cobra.Command {
	var format, output string
	cmd := &cobra.Command{
		Use: "export ORG", Short: "Write the access log as CSV or NDJSON", Args: cobra.ExactArgs(1),
		Example: `  orgd access export acme --subtree --from 2026-10-01 --to 2026-11-01 --file october.csv`,
	}
	filters, period := accessFilters(cmd), periodFlags(cmd)
	fs := cmd.Flags()
	fs.StringVar(&format, "format", "", "csv or ndjson; otherwise what the name of the file ends in, or ndjson")
	complete(cmd, "format", "csv", "ndjson")
	fs.StringVar(&output, "file", "", "`file` to write, which appears only once it is whole; standard output without it")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		q := filters()
		if q.From, q.To, err = period(); err != nil {
			return err
		}
		if format == "" {
			format = "ndjson"
			if strings.EqualFold(filepath.Ext(output), ".csv") {
				format = "csv"
			}
		}
		media, ok := map[string]string{"csv": client.CSV, "ndjson": client.NDJSON}[format]
		if !ok {
			return usageError("--format must be csv or ndjson, not %q", format)
		}
		c, err := s.connect()
		if err != nil {
			return err
		}
		var written atomic.Int64
		done := func() {}
		if isTerminal(cmd.ErrOrStderr()) && output != "" {
			done = showProgress(cmd.ErrOrStderr(), func() string { return "Exported " + mebibytes(written.Load()) + "…" })
		}
		defer done()
		write := func(w io.Writer) error {
			return c.ExportAccessLog(cmd.Context(), args[0], q, media, &countingWriter{w, &written})
		}
		if output == "" || output == "-" {
			return write(cmd.OutOrStdout())
		}
		if err := writeFile(output, write); err != nil {
			return err
		}
		done()
		_, err = fmt.Fprintf(cmd.ErrOrStderr(), "Exported %s to %s.\n", mebibytes(written.Load()), output)
		return err
	}
	return cmd
}

type countingWriter struct {
	w io.Writer
	n *atomic.Int64
}

func (w *countingWriter) Write(b []byte) (int, error) {
	n, err := w.w.Write(b)
	w.n.Add(int64(n))
	return n, err
}

func accessRetentionCommand(s *session) *cobra.Command {
	var days int
	cmd := &cobra.Command{
		Use: "retention ROOT", Short: "Show or set for how many days a root keeps its access log", Args: cobra.ExactArgs(1),
		Example: `  orgd access retention acme
  orgd access retention acme --days 90`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			var r *client.AccessRetention
			if cmd.Flags().Changed("days") {
				r, err = c.PutAccessRetention(cmd.Context(), args[0], days)
			} else {
				r, err = c.AccessRetention(cmd.Context(), args[0])
			}
			if err != nil {
				return err
			}
			if s.json() {
				return printRaw(cmd.OutOrStdout(), r.Raw)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s keeps its access log for %s.\n", r.OrgID, plural(int64(r.Days), "day"))
			return err
		},
	}
	cmd.Flags().IntVar(&days, "days", 0, "keep events for so many `days`; older ones are gone at once")
	return cmd
}
