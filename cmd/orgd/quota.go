package main

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/orgd/orgd/client"
	"github.com/orgd/orgd/internal/org"
)

func quotaCommand(s *session) *cobra.Command {
	cmd := group("quota", "What a customer may use of the server at the same time: show, set, unset",
		quotaShowCommand(s), quotaSetCommand(s), quotaUnsetCommand(s))
	s.outputFlag(cmd)
	return cmd
}

// printQuota prints a quota as a table, with what is used of it.
func printQuota(cmd *cobra.Command, s *session, q *client.Quota) error {
	if s.json() {
		return printRaw(cmd.OutOrStdout(), q.Raw)
	}
	number := func(n *int64) string {
		if n == nil {
			return ""
		}
		return strconv.FormatInt(*n, 10)
	}
	tw := newTable(cmd.OutOrStdout())
	writeRow(tw, []string{"MEMBER", "QUOTA", "DEFAULT", "EFFECTIVE", "USED"})
	for _, m := range org.QuotaMembers() {
		used := ""
		if n, ok := q.Used[m.Name]; ok {
			used = strconv.FormatInt(n, 10)
		}
		writeRow(tw, []string{m.Name, number(q.Set[m.Name]), number(q.Defaults[m.Name]), number(q.Effective[m.Name]), used})
	}
	return tw.Flush()
}

func quotaMemberNames() []string {
	var names []string
	for _, m := range org.QuotaMembers() {
		names = append(names, m.Name)
	}
	return names
}

func quotaShowCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "show ROOT", Short: "Show a quota, the defaults and what is used", Args: cobra.ExactArgs(1),
		Example: `  orgd quota show acme`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			q, err := c.Quota(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printQuota(cmd, s, q)
		},
	}
}

func quotaSetCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "set ROOT MEMBER=NUMBER…", Short: "Set members of a quota, and leave the others", Args: cobra.MinimumNArgs(2),
		Long: `Set members of the quota of a root: ` + strings.Join(quotaMemberNames(), ", ") + `.

It takes the operator key, and binds the next request of any key of the root.`,
		Example: `  orgd quota set acme requests_in_flight=50 streams=20`,
		RunE: func(cmd *cobra.Command, args []string) error {
			set := client.QuotaMembers{}
			for _, arg := range args[1:] {
				name, text, ok := strings.Cut(arg, "=")
				n, err := strconv.ParseInt(text, 10, 64)
				if !ok || err != nil {
					return usageError("%q is not of the form MEMBER=NUMBER, such as streams=20", arg)
				}
				set[name] = &n
			}
			return changeQuota(cmd, s, args[0], set)
		},
	}
}

func quotaUnsetCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "unset ROOT [MEMBER…]", Short: "Give members of a quota their defaults again, or all of it", Args: cobra.MinimumNArgs(1),
		Example: `  orgd quota unset acme streams
  orgd quota unset acme`,
		RunE: func(cmd *cobra.Command, args []string) error {
			set := client.QuotaMembers{}
			for _, name := range args[1:] {
				set[name] = nil
			}
			if len(set) > 0 {
				return changeQuota(cmd, s, args[0], set)
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			q, err := c.DeleteQuota(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printQuota(cmd, s, q)
		},
	}
}

// changeQuota sets some members and leaves the others as they are.
func changeQuota(cmd *cobra.Command, s *session, rootID string, set client.QuotaMembers) error {
	names := quotaMemberNames()
	for name := range set {
		if !slices.Contains(names, name) {
			return usageError("%q is not a member of a quota; these are: %s", name, strings.Join(names, ", "))
		}
	}
	c, err := s.connect()
	if err != nil {
		return err
	}
	q, err := mergeQuota(cmd.Context(), c, rootID, set)
	if err != nil {
		return err
	}
	return printQuota(cmd, s, q)
}

// mergeQuota fails if somebody else changes the quota meanwhile.
func mergeQuota(ctx context.Context, c *client.Client, rootID string, set client.QuotaMembers) (*client.Quota, error) {
	q, err := c.Quota(ctx, rootID)
	if err != nil {
		return nil, err
	}
	for name, n := range set {
		q.Set[name] = n
	}
	return c.PutQuota(ctx, rootID, q.Set, client.IfMatch(q.ETag))
}
