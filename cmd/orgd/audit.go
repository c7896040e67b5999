package main

import (
	"encoding/json"
	"strings"

	"github.com/spf13/cobra"

	"github.com/orgd/orgd/client"
)

func auditCommand(s *session) *cobra.Command {
	cmd := group("audit", "Audit trail: list, verify, export, checkpoint, proof, key, new-epoch, rotate-key", auditListCommand(s),
		auditVerifyCommand(s), auditExportCommand(s), auditCheckpointCommand(s), auditProofCommand(s), auditKeyCommand(s),
		auditNewEpochCommand(s), auditRotateKeyCommand(s))
	s.outputFlag(cmd)
	return cmd
}

func auditListCommand(s *session) *cobra.Command {
	var q client.AuditQuery
	var limit int
	cmd := &cobra.Command{
		Use: "list ORG", Short: "List the changes of an organization and what is below it, newest first", Args: cobra.ExactArgs(1),
		Example: `  orgd audit list acme --from 7d --action organization.deleted`,
	}
	period := periodFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if q.From, q.To, err = period(); err != nil {
			return err
		}
		c, err := s.connect()
		if err != nil {
			return err
		}
		return list[client.AuditEntry]{
			none:    "No changes.",
			columns: []string{"TIME", "ORGANIZATION", "ACTION", "ACTOR", "TARGET", "CHANGES"},
			row: func(e *client.AuditEntry) []string {
				actor := e.Actor.Name
				if actor == "" {
					actor = e.Actor.ID
				}
				pointers := make([]string, len(e.Changes))
				for i, ch := range e.Changes {
					pointers[i] = ch.Pointer
				}
				return []string{timeText(e.Timestamp), e.OrgID, e.Action, actor, e.Target.ID, strings.Join(pointers, ",")}
			},
			raw: func(e *client.AuditEntry) json.RawMessage { return e.Raw },
		}.print(cmd, s, c.ChildrenAudit(cmd.Context(), args[0], q, client.PageSize(pageSize(limit))), limit)
	}
	fs := cmd.Flags()
	fs.StringVar(&q.Scope, "scope", "", "subtree (default), self, children or descendants")
	fs.StringVar(&q.Action, "action", "", "this `action`, such as organization.updated")
	fs.StringVar(&q.Actor, "actor", "", "by the actor with this `id`")
	fs.StringVar(&q.Org, "org", "", "of the organization with this `id`")
	limitFlag(cmd, &limit, 50)
	return cmd
}
