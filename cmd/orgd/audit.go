package main

import (
	"encoding/json"

	"github.com/spf13/cobra"

	"github.com/orgd/orgd/client"
)

func auditCommand(s *session) *cobra.Command {
	cmd := group("audit", "Audit trail: list, tail, erase, statement, verify, export, checkpoint, proof, key, new-epoch, rotate-key", auditListCommand(s), auditTailCommand(s), auditEraseCommand(s), auditStatementCommand(s),
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
			columns: auditColumns,
			row:     auditRow,
			raw:     func(e *client.AuditEntry) json.RawMessage { return e.Raw },
		}.print(cmd, s, c.ChildrenAudit(cmd.Context(), args[0], q, client.PageSize(pageSize(limit))), limit)
	}
	auditFilters(cmd, &q)
	limitFlag(cmd, &limit, 50)
	return cmd
}
