package main

import (
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"
)

func usageCommand(s *session) *cobra.Command {
	cmd := group("usage", "Consumption: show, limits", usageShowCommand(s), usageLimitsCommand(s))
	s.outputFlag(cmd)
	return cmd
}

func usageShowCommand(s *session) *cobra.Command {
	var month string
	cmd := &cobra.Command{
		Use: "show ORG", Short: "Show what an organization and its descendants consumed in a month", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			u, err := c.Consumption(cmd.Context(), args[0], month)
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if s.json() {
				return printRaw(w, u.Raw)
			}
			fmt.Fprintf(w, "%s in %s (%s)\n\n", clean(u.OrgID), clean(u.Month), clean(u.Status))
			tw := newTable(w)
			writeRow(tw, []string{"METER", "OWN", "DESCENDANTS", "TOTAL", "LIMIT", "UNIT"})
			for _, slug := range slices.Sorted(maps.Keys(u.Meters)) {
				m := u.Meters[slug]
				limit := ""
				if m.Limit != nil {
					limit = m.Limit.String()
				}
				writeRow(tw, []string{slug, m.Own.String(), m.Descendants.String(), m.Total.String(), limit, m.Unit})
			}
			return tw.Flush()
		},
	}
	cmd.Flags().StringVar(&month, "month", "", "a `month` such as 2026-11; this month without it")
	return cmd
}
