package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/orgd/orgd/client"
)

var auditColumns = []string{"TIME", "ORGANIZATION", "ACTION", "ACTOR", "TARGET", "CHANGES"}

func auditRow(e *client.AuditEntry) []string {
	actor := e.Actor.Name
	if actor == "" {
		actor = e.Actor.ID
	}
	pointers := make([]string, len(e.Changes))
	for i, ch := range e.Changes {
		pointers[i] = ch.Pointer
	}
	return []string{timeText(e.Timestamp), e.OrgID, e.Action, actor, e.Target.ID, strings.Join(pointers, ",")}
}

// auditFilters adds the flags that select audit entries.
func auditFilters(cmd *cobra.Command, q *client.AuditQuery) {
	fs := cmd.Flags()
	fs.StringVar(&q.Scope, "scope", "", "subtree (default), self, children or descendants")
	complete(cmd, "scope", "subtree", "self", "children", "descendants")
	fs.StringVar(&q.Action, "action", "", "this `action`, such as organization.updated")
	fs.StringVar(&q.Actor, "actor", "", "by the actor with this `id`")
	fs.StringVar(&q.Org, "org", "", "of the organization with this `id`")
}

func auditTailCommand(s *session) *cobra.Command {
	var q client.AuditQuery
	var from string
	var limit int
	cmd := &cobra.Command{
		Use: "tail ORG", Short: "Show the changes of an organization and what is below it as they happen", Args: cobra.ExactArgs(1),
		Long: `Show the changes of an organization and what is below it as they happen, in the
order of the log. It goes on until it is interrupted, and after a lost
connection where that broke off: no change is left out or shown twice.`,
		Example: `  orgd audit tail acme --from 1h`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if q.From, err = parseTime("from", from, time.Now(), -1); err != nil {
				return err
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			n := 0
			for e, err := range c.FollowChildrenAudit(cmd.Context(), args[0], q) {
				if err != nil {
					if cmd.Context().Err() != nil {
						return nil // interrupted
					}
					return err
				}
				if s.json() {
					_, err = fmt.Fprintf(out, "%s\n", e.Raw)
				} else {
					_, err = fmt.Fprintln(out, clean(strings.Join(auditRow(&e), "  ")))
				}
				if n++; err != nil || n == limit {
					return err
				}
			}
			return nil
		},
	}
	auditFilters(cmd, &q)
	cmd.Flags().StringVar(&from, "from", "", "start with the changes since this `time` (2026-11-24T09:30:00Z, 2026-11-24 or 24h), not with those from now on")
	cmd.Flags().IntVar(&limit, "limit", 0, "end after this `number` of changes; 0 for never")
	return cmd
}

func auditEraseCommand(s *session) *cobra.Command {
	var subject, basis string
	var dryRun, yes bool
	cmd := &cobra.Command{
		Use: "erase ORG --subject TEXT --basis TEXT", Short: "Erase what is kept about somebody in the past of an organization and what is below it", Args: cobra.ExactArgs(1),
		Long: `Erase what is kept about somebody, such as a mail address, a name or an IP
address, in the past of an organization and of what is below it: the values in
its audit trail and its access log, the reasons of adjustments, and the addresses
from which keys were used.

Entries and counts stay, and every proof still holds. The basis is kept in the
audit trail; the subject is not. What is in force, such as the name of an
organization, stays and is counted: change it first.

On a terminal it shows how much would be erased and asks; --yes answers.`,
		Example: `  orgd audit erase acme --subject john.doe@example.com --basis "Article 17 GDPR, request 118" --dry-run`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if subject == "" || basis == "" {
				return usageError("give --subject and --basis")
			}
			ask := !yes && !dryRun
			if ask && !isTerminal(cmd.InOrStdin()) {
				return usageError("add --yes to erase without being asked, or --dry-run to see how much that erases")
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if ask {
				e, err := c.EraseSubject(ctx, args[0], subject, basis, true)
				if err != nil {
					return err
				}
				ok, err := confirm(ctx, cmd.InOrStdin(), cmd.ErrOrStderr(), fmt.Sprintf("Erase %s of %s and blank %s for good?",
					plural(e.Erased.AuditValues, "value"), plural(e.Erased.AuditEntries, "change"), plural(e.Erased.AccessEvents, "access event")))
				if err != nil {
					return err
				}
				if !ok {
					return errors.New("nothing was erased")
				}
			}
			e, err := c.EraseSubject(ctx, args[0], subject, basis, dryRun)
			if err != nil {
				return err
			}
			if s.json() {
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n", e.Raw)
				return err
			}
			verb := "erased"
			if e.DryRun {
				verb = "to erase"
			}
			num := func(n int64) string { return strconv.FormatInt(n, 10) }
			return printFields(cmd.OutOrStdout(),
				"values "+verb, num(e.Erased.AuditValues), "in changes", num(e.Erased.AuditEntries), "in accesses", num(e.Erased.AccessEvents),
				"in uses of keys", num(e.Erased.APIKeys),
				"left in organizations", num(e.Remaining.Organizations), "left in keys", num(e.Remaining.APIKeys),
				"left in schemas", num(e.Remaining.CustomizationSchemas), "left in ids of changes", num(e.Remaining.AuditEntries),
				"left in ids of accesses", num(e.Remaining.AccessEvents), "receipt", e.Receipt)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&subject, "subject", "", "what to look for: a mail `address`, a name, an IP address")
	fs.StringVar(&basis, "basis", "", "on which `ground`, without the subject")
	fs.BoolVar(&dryRun, "dry-run", false, "erase nothing and say what would be")
	fs.BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func auditStatementCommand(s *session) *cobra.Command {
	var month, proof string
	cmd := &cobra.Command{
		Use: "statement ROOT --month MONTH", Short: "Write the statement of a closed month, and its proof", Args: cobra.ExactArgs(1),
		Long: `Write the statement of a closed month: what every organization of a root consumed
in it, byte for byte as the audit log commits to it. With --proof it also writes
the proof, which 'orgd audit verify' checks the statement against.`,
		Example: `  orgd audit statement acme --month 2026-10 --proof 2026-10.proof > 2026-10.json
  orgd audit verify 2026-10.proof --key acme.vkey --statement 2026-10.json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if month == "" {
				return usageError("give --month")
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			st, err := c.Statement(cmd.Context(), args[0], month)
			if err != nil {
				return err
			}
			if proof != "" {
				text, err := c.AuditProof(cmd.Context(), args[0], st.EntryID)
				if err != nil {
					return err
				}
				if err := writeFile(proof, func(w io.Writer) error {
					_, err := w.Write(text)
					return err
				}); err != nil {
					return err
				}
			}
			_, err = cmd.OutOrStdout().Write(st.Raw)
			return err
		},
	}
	cmd.Flags().StringVar(&month, "month", "", "a `month` such as 2026-10")
	cmd.Flags().StringVar(&proof, "proof", "", "write the proof to this `file`")
	return cmd
}
