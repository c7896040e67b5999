package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/orgd/orgd/client"
)

func usageLimitsCommand(s *session) *cobra.Command {
	return group("limits", "Limits on what an organization and its descendants may consume in a month: list, set, delete",
		limitsListCommand(s), limitsSetCommand(s), limitsDeleteCommand(s))
}

func limitRow(l *client.Limit) []string {
	used := "not visible"
	if l.Used != nil {
		used = l.Used.String()
	}
	return []string{l.OrgID, l.Meter, l.Limit.String(), l.Enforcement, used}
}

var limitColumns = []string{"SET ON", "METER", "LIMIT", "ENFORCEMENT", "USED THIS MONTH"}

func limitsListCommand(s *session) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use: "list ORG", Short: "List the limits that bind an organization, its own and its ancestors'", Args: cobra.ExactArgs(1),
		Example: `  orgd usage limits list acme.eu`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			return list[client.Limit]{
				none:    "No limits.",
				columns: limitColumns,
				row:     limitRow,
				raw:     func(l *client.Limit) json.RawMessage { return l.Raw },
			}.print(cmd, s, c.Limits(cmd.Context(), args[0], client.PageSize(pageSize(limit))), limit)
		},
	}
	limitFlag(cmd, &limit, 0)
	return cmd
}

func limitsSetCommand(s *session) *cobra.Command {
	var soft bool
	var etag string
	cmd := &cobra.Command{
		Use: "set ORG METER LIMIT", Short: "Set a limit", Args: cobra.ExactArgs(3),
		Long: `Bound what an organization and all its descendants consume of a meter in a
calendar month. What would exceed the limit is refused; with --soft the limit is
only shown. It takes a key of an ancestor, or the operator key: nobody lifts its
own limit.`,
		Example: `  orgd usage limits set acme api_calls 1000000
  orgd usage limits set acme.eu storage_used 500 --soft`,
		RunE: func(cmd *cobra.Command, args []string) error {
			enforcement := client.Hard
			if soft {
				enforcement = client.Soft
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			l, err := c.PutLimit(cmd.Context(), args[0], args[1], args[2], enforcement, client.IfMatch(etag))
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if s.json() {
				return printRaw(w, l.Raw)
			}
			tw := newTable(w)
			writeRow(tw, limitColumns)
			writeRow(tw, limitRow(l))
			return tw.Flush()
		},
	}
	cmd.Flags().BoolVar(&soft, "soft", false, "show the limit, and refuse nothing")
	cmd.Flags().StringVar(&etag, "if-match", "", "fail with exit code 5 unless the limit still has this `etag`, which GET /orgs/{org_id}/limits/{meter} answers with")
	return cmd
}

func limitsDeleteCommand(s *session) *cobra.Command {
	var etag string
	cmd := &cobra.Command{
		Use: "delete ORG METER", Short: "Remove a limit", Args: cobra.ExactArgs(2),
		Example: `  orgd usage limits delete acme api_calls`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			if err := c.DeleteLimit(cmd.Context(), args[0], args[1], client.IfMatch(etag)); err != nil {
				return err
			}
			if s.json() {
				return nil
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Removed the limit on %s of %s.\n", clean(args[1]), clean(args[0]))
			return err
		},
	}
	cmd.Flags().StringVar(&etag, "if-match", "", "fail with exit code 5 unless the limit still has this `etag`, which GET /orgs/{org_id}/limits/{meter} answers with")
	return cmd
}
