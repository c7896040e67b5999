package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/orgd/orgd/client"
)

func usageCommand(s *session) *cobra.Command {
	cmd := group("usage", "Consumption: show, send, adjust, adjustments, meters, limits, give-up-spool", usageShowCommand(s), usageSendCommand(s),
		usageAdjustCommand(s), usageAdjustmentsCommand(s), usageMetersCommand(s), usageLimitsCommand(s), giveUpSpoolCommand(s))
	s.outputFlag(cmd)
	return cmd
}

func monthFlag(cmd *cobra.Command, month *string) {
	cmd.Flags().StringVar(month, "month", "", "a `month` such as 2026-11; this month without it")
}

func usageShowCommand(s *session) *cobra.Command {
	var month, from, to, meter, sort string
	var history, daily, children bool
	var limit int
	cmd := &cobra.Command{
		Use: "show ORG", Short: "Show what an organization and its descendants consumed", Args: cobra.ExactArgs(1),
		Long: `Show what an organization and its descendants consumed: in a month, or in
several (--history), or day by day (--daily), or by the organization's children
(--children).`,
		Example: `  orgd usage show acme --month 2026-10
  orgd usage show acme --history --from 2026-01 --to 2026-12
  orgd usage show acme --children --meter storage_used --sort -total`,
		RunE: func(cmd *cobra.Command, args []string) error {
			given := cmd.Flags().Changed
			switch {
			case history && daily, history && children, daily && children:
				return usageError("give one of --history, --daily and --children")
			case history && given("month"):
				return usageError("--history takes --from and --to, not --month")
			case !history && (given("from") || given("to")):
				return usageError("--from and --to need --history; without it, --month says which month")
			case !children && (given("sort") || given("limit")):
				return usageError("--sort and --limit need --children")
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			switch {
			case history:
				months, err := c.ConsumptionHistory(cmd.Context(), args[0], from, to)
				if err != nil {
					return err
				}
				return printPeriods(w, s, "MONTH", meter, months, func(m *client.Consumption) (string, json.RawMessage, map[string]client.Meter) {
					return m.Month + " (" + m.Status + ")", m.Raw, m.Meters
				})
			case daily:
				days, err := c.DailyConsumption(cmd.Context(), args[0], month)
				if err != nil {
					return err
				}
				return printPeriods(w, s, "DAY", meter, days, func(d *client.DayConsumption) (string, json.RawMessage, map[string]client.Meter) {
					return d.Day, d.Raw, d.Meters
				})
			case children:
				return list[client.ChildConsumption]{
					none:    "No children.",
					columns: []string{"CHILD", "NAME", "METER", "OWN", "DESCENDANTS", "TOTAL", "UNIT"},
					row: func(c *client.ChildConsumption) []string {
						return []string{c.OrgID, c.Name, c.Meter, c.Own.String(), c.Descendants.String(), c.Total.String(), c.Unit}
					},
					raw: func(c *client.ChildConsumption) json.RawMessage { return c.Raw },
				}.print(cmd, s, c.ChildConsumption(cmd.Context(), args[0], month, meter, sort, client.PageSize(pageSize(limit))), limit)
			}
			u, err := c.Consumption(cmd.Context(), args[0], month)
			if err != nil {
				return err
			}
			if _, known := u.Meters[meter]; meter != "" && !known {
				return unknownMeter(meter)
			}
			if s.json() {
				return printRaw(w, u.Raw)
			}
			fmt.Fprintf(w, "%s in %s (%s)\n\n", clean(u.OrgID), clean(u.Month), clean(u.Status))
			tw := newTable(w)
			writeRow(tw, []string{"METER", "OWN", "DESCENDANTS", "TOTAL", "LIMIT", "UNIT"})
			for _, slug := range slices.Sorted(maps.Keys(u.Meters)) {
				if m := u.Meters[slug]; meter == "" || meter == slug {
					limit := ""
					if m.Limit != nil {
						limit = m.Limit.String()
					}
					writeRow(tw, []string{slug, m.Own.String(), m.Descendants.String(), m.Total.String(), limit, m.Unit})
				}
			}
			return tw.Flush()
		},
	}
	monthFlag(cmd, &month)
	fs := cmd.Flags()
	fs.BoolVar(&history, "history", false, "month by month")
	fs.StringVar(&from, "from", "", "with --history: the first `month`")
	fs.StringVar(&to, "to", "", "with --history: the last `month`")
	fs.BoolVar(&daily, "daily", false, "day by day")
	fs.BoolVar(&children, "children", false, "child by child")
	fs.StringVar(&meter, "meter", "", "only this `meter`")
	fs.StringVar(&sort, "sort", "", "with --children: org_id, own, descendants or total; -total for the greatest first")
	complete(cmd, "sort", "org_id", "own", "descendants", "total", "-org_id", "-own", "-descendants", "-total")
	limitFlag(cmd, &limit, 0)
	return cmd
}

func unknownMeter(slug string) error {
	return messagef("%s is not a meter of this root; 'orgd usage meters list ROOT' lists those", clean(slug))
}

// printPeriods prints the meters of several months or days.
func printPeriods[T any](w io.Writer, s *session, title, meter string, periods []T, parts func(*T) (string, json.RawMessage, map[string]client.Meter)) error {
	var raws []json.RawMessage
	tw := newTable(w)
	writeRow(tw, []string{title, "METER", "OWN", "DESCENDANTS", "TOTAL", "UNIT"})
	for i := range periods {
		name, raw, meters := parts(&periods[i])
		if _, known := meters[meter]; meter != "" && !known {
			return unknownMeter(meter)
		}
		raws = append(raws, raw)
		for _, slug := range slices.Sorted(maps.Keys(meters)) {
			if m := meters[slug]; meter == "" || meter == slug {
				writeRow(tw, []string{name, slug, m.Own.String(), m.Descendants.String(), m.Total.String(), m.Unit})
			}
		}
	}
	if !s.json() {
		return tw.Flush()
	}
	b, err := json.Marshal(raws)
	if err != nil {
		return err
	}
	return printRaw(w, b)
}

const (
	// sendBatch is how many events are sent at a time.
	sendBatch = 2000
	// sendAttempts is how often a batch is sent at most. Events that were
	// counted are not counted again.
	sendAttempts = 8
)

func usageSendCommand(s *session) *cobra.Command {
	var e client.UsageEvent
	var quantity, at string
	cmd := &cobra.Command{
		Use: "send ORG [FILE]", Short: "Send usage events: those of an NDJSON file, or one", Args: cobra.RangeArgs(1, 2),
		Long: `Send usage events to be counted for an organization: those of an NDJSON file
(- for standard input), or a single one that the flags describe.

A line of the file is an object with the members id, source, timestamp, meter,
quantity and org_id; id and meter are required. However often an event is sent,
it is counted once, so a transmission that was interrupted is simply repeated.`,
		Example: `  orgd usage send acme events.ndjson
  orgd usage send acme --meter storage_used --quantity 12.5 --id backup-2026-11-25`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			if (len(args) == 2) == (e.Meter != "") {
				return usageError("give a file of events, or one event with --meter")
			}
			sent := &sending{session: s, cmd: cmd, client: c, orgID: args[0]}
			if len(args) == 1 {
				if e.Timestamp, err = parseTime("time", at, time.Now(), -1); err != nil {
					return err
				}
				if e.ID == "" {
					e.ID = rand.Text()
				}
				e.Quantity = json.Number(quantity)
				line, err := json.Marshal(e)
				if err != nil {
					return usageError("--quantity: %q is not a number", quantity)
				}
				if err := sent.batch(line); err != nil {
					return err
				}
				return sent.report()
			}
			name, in := args[1], cmd.InOrStdin()
			if name != "-" {
				f, err := os.Open(name)
				if err != nil {
					return usageError("%w", err)
				}
				defer f.Close()
				in = f
			}
			return sent.file(name, in)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&e.Meter, "meter", "", "send one event, for this `meter`")
	fs.StringVar(&quantity, "quantity", "", "its `quantity`")
	fs.StringVar(&e.ID, "id", "", "its `id`; a random one without it")
	fs.StringVar(&e.Source, "source", "", "its `source`")
	fs.StringVar(&at, "time", "", "its `time`; now without it")
	return cmd
}

// sending is a transmission of events.
type sending struct {
	session  *session
	cmd      *cobra.Command
	client   *client.Client
	orgID    string
	accepted atomic.Int64
	repeated atomic.Int64 // duplicates
}

func (t *sending) file(name string, in io.Reader) error {
	done := func() {}
	if isTerminal(t.cmd.ErrOrStderr()) {
		done = showProgress(t.cmd.ErrOrStderr(), func() string {
			return fmt.Sprintf("Sent %s…", plural(t.accepted.Load()+t.repeated.Load(), "event"))
		})
	}
	err := func() error {
		var lines bytes.Buffer
		n, first := 0, 0
		r := bufio.NewReaderSize(in, 1<<16)
		for number := 1; ; number++ {
			line, err := r.ReadBytes('\n')
			if err != nil && err != io.EOF {
				return err
			}
			if len(bytes.TrimSpace(line)) > 0 {
				n++
			}
			lines.Write(line)
			if n == sendBatch || err == io.EOF && n > 0 {
				if err := t.batch(lines.Bytes()); err != nil {
					return badLines(t.cmd, name, first, err)
				}
				lines.Reset()
				n, first = 0, number
			}
			if err == io.EOF {
				return nil
			}
		}
	}()
	done()
	if err != nil {
		if sent := t.accepted.Load() + t.repeated.Load(); sent > 0 {
			fmt.Fprintf(t.cmd.ErrOrStderr(), "%s before it have been sent. Send the file again when it is correct: they are not counted twice.\n", plural(sent, "event"))
		}
		return err
	}
	return t.report()
}

// batch sends events, one a line.
func (t *sending) batch(lines []byte) error {
	for attempt := 1; ; attempt++ {
		got, err := t.client.SendUsageLines(t.cmd.Context(), t.orgID, lines)
		var answer *client.Error
		switch {
		case err == nil:
			t.accepted.Add(int64(got.Accepted))
			t.repeated.Add(int64(got.Duplicates))
			return nil
		case errors.As(err, &answer) && answer.Status < 500, attempt == sendAttempts, t.cmd.Context().Err() != nil:
			return err
		}
		select {
		case <-time.After(time.Duration(attempt) * time.Second):
		case <-t.cmd.Context().Done():
		}
	}
}

func (t *sending) report() error {
	w := t.cmd.OutOrStdout()
	if t.session.json() {
		_, err := fmt.Fprintf(w, `{"accepted":%d,"duplicates":%d}`+"\n", t.accepted.Load(), t.repeated.Load())
		return err
	}
	_, err := fmt.Fprintf(w, "Counted %s", plural(t.accepted.Load(), "event"))
	if n := t.repeated.Load(); n > 0 {
		fmt.Fprintf(w, "; %s had been counted before", plural(n, "event"))
	}
	fmt.Fprintln(w, ".")
	return err
}

// badLines prints the bad events of a batch that follows the line number
// before of a file.
func badLines(cmd *cobra.Command, name string, before int, err error) error {
	var answer *client.Error
	if !errors.As(err, &answer) || answer.Code != "event_invalid" || len(answer.Errors) == 0 {
		return err
	}
	if name == "-" {
		name = "stdin"
	}
	for _, f := range answer.Errors {
		at := fmt.Sprintf("%s:%d", name, before+f.Line)
		if f.Pointer != "" {
			at += ": " + f.Pointer
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", at, clean(f.Detail))
	}
	return &exitError{exitFailure, messagef("%s\nThe request's id is %s.", clean(answer.Detail), clean(answer.RequestID))}
}

func usageAdjustCommand(s *session) *cobra.Command {
	var in client.AdjustmentCreate
	var idempotency string
	cmd := &cobra.Command{
		Use: "adjust ORG METER QUANTITY", Short: "Correct what an organization consumed", Args: cobra.ExactArgs(3),
		Long: `Add a quantity to what an organization consumed, or take it away if it is
negative (write -- before it). If the month has closed, it is counted in the first
later one that is open, and names the month it is for.`,
		Example: `  orgd usage adjust acme api_calls --reason "Retries of our gateway" --month 2026-10 -- -120`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			if in.Reason == "" {
				return usageError("say why, with --reason")
			}
			in.Meter, in.Quantity = args[1], json.Number(args[2])
			if _, err := json.Marshal(in.Quantity); err != nil {
				return usageError("%q is not a number", args[2])
			}
			a, err := c.Adjust(cmd.Context(), args[0], in, idempotencyOption(idempotency)...)
			if err != nil {
				return err
			}
			if s.json() {
				return printRaw(cmd.OutOrStdout(), a.Raw)
			}
			forMonth := ""
			if a.ForMonth != a.Month {
				forMonth = ", for " + clean(a.ForMonth)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Added %s to %s of %s in %s%s.\n", a.Quantity, clean(a.Meter), clean(a.OrgID), clean(a.Month), forMonth)
			return err
		},
	}
	cmd.Flags().StringVar(&in.Month, "month", "", "the `month` to correct; this month without it")
	cmd.Flags().StringVar(&in.Reason, "reason", "", "why")
	idempotencyFlag(cmd, &idempotency)
	return cmd
}

func usageAdjustmentsCommand(s *session) *cobra.Command {
	var month string
	var limit int
	cmd := &cobra.Command{
		Use: "adjustments ORG", Short: "List the adjustments of an organization, newest month first", Args: cobra.ExactArgs(1),
		Example: `  orgd usage adjustments acme --month 2026-11`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			return list[client.Adjustment]{
				none:    "No adjustments.",
				columns: []string{"MONTH", "FOR", "METER", "QUANTITY", "ORIGIN", "REASON"},
				row: func(a *client.Adjustment) []string {
					return []string{a.Month, a.ForMonth, a.Meter, a.Quantity.String(), a.Origin, a.Reason}
				},
				raw: func(a *client.Adjustment) json.RawMessage { return a.Raw },
			}.print(cmd, s, c.Adjustments(cmd.Context(), args[0], month, client.PageSize(pageSize(limit))), limit)
		},
	}
	cmd.Flags().StringVar(&month, "month", "", "only those that are counted in this `month`")
	limitFlag(cmd, &limit, 50)
	return cmd
}

func usageMetersCommand(s *session) *cobra.Command {
	return group("meters", "What is counted in the tree of a root: list, set, delete",
		metersListCommand(s), metersSetCommand(s), metersDeleteCommand(s))
}

func printMeters(cmd *cobra.Command, meters []client.MeterDefinition) error {
	tw := newTable(cmd.OutOrStdout())
	writeRow(tw, []string{"METER", "AGGREGATION", "UNIT", "EVENT TYPE", "VALUE", "DESCRIPTION"})
	for _, m := range meters {
		writeRow(tw, []string{m.Slug, m.Aggregation, m.Unit, m.EventType, m.Value, m.Description})
	}
	return tw.Flush()
}

func metersListCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "list ROOT", Short: "List the meters of a root", Args: cobra.ExactArgs(1),
		Example: `  orgd usage meters list acme`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			meters, err := c.Meters(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if !s.json() {
				return printMeters(cmd, meters)
			}
			var raws []json.RawMessage
			for _, m := range meters {
				raws = append(raws, m.Raw)
			}
			b, err := json.Marshal(raws)
			if err != nil {
				return err
			}
			return printRaw(cmd.OutOrStdout(), b)
		},
	}
}

func metersSetCommand(s *session) *cobra.Command {
	var in client.MeterPut
	cmd := &cobra.Command{
		Use: "set ROOT METER", Short: "Define a meter, or change it", Args: cobra.ExactArgs(2),
		Example: `  orgd usage meters set acme tokens --unit tokens --event-type llm.request --value /usage/total_tokens`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			if in.Unit == "" {
				return usageError("say what is counted, with --unit")
			}
			m, err := c.PutMeter(cmd.Context(), args[0], args[1], in)
			if err != nil {
				return err
			}
			if s.json() {
				return printRaw(cmd.OutOrStdout(), m.Raw)
			}
			return printMeters(cmd, []client.MeterDefinition{*m})
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&in.Unit, "unit", "", "what is counted, such as calls or GB")
	fs.StringVar(&in.Aggregation, "aggregation", "sum", "sum, count, max or latest")
	complete(cmd, "aggregation", "sum", "count", "max", "latest")
	fs.StringVar(&in.Description, "description", "", "a `sentence` about it")
	fs.StringVar(&in.EventType, "event-type", "", "the `type` of the CloudEvents that it counts; its name without it")
	fs.StringVar(&in.Value, "value", "", "JSON `pointer` into their data, to the quantity (default /quantity)")
	return cmd
}

func metersDeleteCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "delete ROOT METER", Short: "Delete a meter on which nothing has been counted", Args: cobra.ExactArgs(2),
		Example: `  orgd usage meters delete acme tokens`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			if err := c.DeleteMeter(cmd.Context(), args[0], args[1]); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Deleted the meter %s of %s.\n", clean(args[1]), clean(args[0]))
			return err
		},
	}
}
