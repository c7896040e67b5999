package main

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/orgd/orgd/client"
)

func accessCommand(s *session) *cobra.Command {
	cmd := group("access", "Access log: list", accessListCommand(s))
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
	var q client.AccessQuery
	var subtree bool
	var limit int
	cmd := &cobra.Command{
		Use: "list ORG", Short: "List who accessed an organization, newest first", Args: cobra.ExactArgs(1),
		Example: `  orgd access list acme --subtree --status denied --from 24h`,
	}
	period := periodFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if q.From, q.To, err = period(); err != nil {
			return err
		}
		if subtree {
			q.Scope = "subtree"
		}
		q.Status = strings.ToUpper(q.Status)
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
	fs := cmd.Flags()
	fs.BoolVar(&subtree, "subtree", false, "also what is below the organization")
	fs.StringVar(&q.User, "user", "", "by this `user`, which is the name of the key")
	fs.StringVar(&q.Action, "action", "", "this `action`, such as GET_ORG")
	fs.StringVar(&q.Status, "status", "", "success, failure or denied")
	fs.StringVar(&q.IP, "ip", "", "from this `address`")
	fs.StringVar(&q.APIKeyID, "api-key-id", "", "with the API key of this `id`")
	limitFlag(cmd, &limit, 50)
	return cmd
}
