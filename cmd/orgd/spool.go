package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func giveUpSpoolCommand(s *session) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "give-up-spool ID", Short: "Close months without the requests of a server that is lost", Args: cobra.ExactArgs(1),
		Long: `Close months without the requests of a server that is lost.

A month is closed once every server that has used the database since has stored
what it had recorded before the end of the month. A server that was killed may
have left requests in its spool: start it again, and it stores them. If its spool
is gone, the operator gives it up, and says why. The server's log and
/service_status name the spools that months wait for.

If the spool turns up after all, its requests are stored then, as adjustments in
the months that are open.`,
		Example: `  orgd usage give-up-spool spool_06h2kwazrsrase05yk5wz0h26w --reason 'the disk of node 3 is broken'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return usageError("--reason must say why")
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			if err := c.GiveUpSpool(cmd.Context(), args[0], reason); err != nil {
				return err
			}
			if s.json() {
				return printRaw(cmd.OutOrStdout(), []byte(`{"message":"Spool given up"}`))
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Gave up the spool %s.\n", clean(args[0]))
			return err
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why; it is kept with the spool")
	return cmd
}
