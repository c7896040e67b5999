package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/orgd/orgd/client"
)

func orgCommand(s *session) *cobra.Command {
	cmd := group("org", "Organizations: get, list, tree, create, update, move, delete, restore",
		orgGetCommand(s), orgListCommand(s), orgTreeCommand(s), orgCreateCommand(s), orgUpdateCommand(s),
		orgMoveCommand(s), orgDeleteCommand(s), orgRestoreCommand(s))
	s.outputFlag(cmd)
	return cmd
}

// printOrg prints one organization.
func printOrg(cmd *cobra.Command, s *session, o *client.Org) error {
	w := cmd.OutOrStdout()
	if s.json() {
		return printRaw(w, o.Raw)
	}
	customizations := string(o.Customizations)
	if customizations == "{}" {
		customizations = ""
	}
	return printFields(w, "id", o.ID, "name", o.Name, "type", o.Type, "description", o.Description,
		"path", strings.Join(o.Path, " / "), "external id", o.ExternalID, "tags", strings.Join(o.Tags, ", "),
		"customizations", customizations, "created", timeText(o.CreatedAt), "updated", timeText(o.UpdatedAt), "etag", o.ETag)
}

var orgs = list[client.Org]{
	none:    "No organizations.",
	columns: []string{"ID", "NAME", "TYPE", "PARENT", "TAGS", "UPDATED"},
	row: func(o *client.Org) []string {
		return []string{o.ID, o.Name, o.Type, o.ParentID, strings.Join(o.Tags, ","), timeText(o.UpdatedAt)}
	},
	raw: func(o *client.Org) json.RawMessage { return o.Raw },
}

func orgGetCommand(s *session) *cobra.Command {
	var asOf string
	cmd := &cobra.Command{
		Use: "get ORG", Short: "Show an organization", Args: cobra.ExactArgs(1),
		Example: `  orgd org get acme
  orgd org get acme --as-of 7d`,
		RunE: func(cmd *cobra.Command, args []string) error {
			at, err := parseTime("as-of", asOf, time.Now(), -1)
			if err != nil {
				return err
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			o, err := c.Org(cmd.Context(), args[0], client.AsOf(at))
			if err != nil {
				return err
			}
			return printOrg(cmd, s, o)
		},
	}
	asOfFlag(cmd, &asOf)
	return cmd
}

func asOfFlag(cmd *cobra.Command, asOf *string) {
	cmd.Flags().StringVar(asOf, "as-of", "", "as it was at this `time`: a time, a day, or a duration ago such as 24h")
}

func orgListCommand(s *session) *cobra.Command {
	var q client.OrgQuery
	var recursive bool
	var depth, limit int
	var asOf string
	cmd := &cobra.Command{
		Use: "list [ORG]", Short: "List the children of an organization, or find organizations", Args: cobra.MaximumNArgs(1),
		Long: `List the children of an organization, or find organizations.

With ORG it lists the children, or with --recursive all descendants, every
parent before its children. Without ORG it lists all organizations that the key
can see and that the other flags select.`,
		Example: `  orgd org list acme
  orgd org list acme --recursive --depth 2
  orgd org list acme --recursive --as-of 2026-11-01
  orgd org list --name rel --tag on-call`,
		RunE: func(cmd *cobra.Command, args []string) error {
			search := q != client.OrgQuery{}
			if len(args) == 1 && search {
				return usageError("--name, --tag, --external-id and --roots find organizations anywhere: leave ORG out")
			}
			if len(args) == 0 && (recursive || depth != 0) {
				return usageError("--recursive and --depth need an organization to start at")
			}
			if depth < 0 || limit < 0 {
				return usageError("--depth and --limit cannot be negative")
			}
			at, err := parseTime("as-of", asOf, time.Now(), -1)
			if err != nil {
				return err
			}
			if !at.IsZero() && (len(args) == 0 || !recursive && depth == 0) {
				return usageError("--as-of lists the descendants that an organization had: give ORG, and --recursive or --depth")
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			found := c.Search(cmd.Context(), q, client.PageSize(pageSize(limit)))
			if len(args) == 1 {
				found = c.Children(cmd.Context(), args[0], client.PageSize(pageSize(limit)))
				if recursive || depth > 0 {
					found = c.Descendants(cmd.Context(), args[0], depth, client.PageSize(pageSize(limit)), client.AsOf(at))
				}
			}
			return orgs.print(cmd, s, found, limit)
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&recursive, "recursive", "r", false, "list all descendants")
	fs.IntVar(&depth, "depth", 0, "list descendants down to this `level` below ORG; 1 is the children")
	fs.BoolVar(&q.Roots, "roots", false, "find roots only")
	fs.StringVar(&q.Name, "name", "", "find names that start with this `prefix`, in any case")
	fs.StringVar(&q.Tag, "tag", "", "find organizations with this `tag`")
	fs.StringVar(&q.ExternalID, "external-id", "", "find the organizations with this external `id`")
	asOfFlag(cmd, &asOf)
	limitFlag(cmd, &limit, 0)
	return cmd
}

func idempotencyFlag(cmd *cobra.Command, key *string) {
	cmd.Flags().StringVar(key, "idempotency-key", "", "repeating the command with the same `key` within 24 hours changes nothing more")
}

func idempotencyOption(key string) []client.CallOption {
	if key == "" {
		return nil
	}
	return []client.CallOption{client.IdempotencyKey(key)}
}

func ifMatchFlag(cmd *cobra.Command, etag *string) {
	cmd.Flags().StringVar(etag, "if-match", "", "fail with exit code 5 unless the organization still has this `etag`, which 'orgd org get' shows")
}

func orgCreateCommand(s *session) *cobra.Command {
	var in client.OrgCreate
	var customizations, idempotency string
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create an organization", Args: cobra.ExactArgs(1),
		Long: "Create an organization: a child with --parent, a root without it. A root takes the operator key.",
		Example: `  orgd org create "Acme Inc." --id acme
  orgd org create Sales --parent acme --type group --tags emea,on-call`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			in.Name = args[0]
			if customizations != "" {
				if in.Customizations, err = jsonArgument("customizations", customizations); err != nil {
					return err
				}
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			o, err := c.CreateOrg(cmd.Context(), in, idempotencyOption(idempotency)...)
			if err != nil {
				return err
			}
			return printOrg(cmd, s, o)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&in.ParentID, "parent", "", "`id` of the parent")
	fs.StringVar(&in.ID, "id", "", "`id` of the new organization; the server makes one without it")
	fs.StringVar(&in.Type, "type", "", "organization, group or user")
	complete(cmd, "type", "organization", "group", "user")
	fs.StringVar(&in.Description, "description", "", "what it is")
	fs.StringVar(&in.ExternalID, "external-id", "", "its `id` in another system")
	fs.StringSliceVar(&in.Tags, "tags", nil, "tags, separated by commas")
	fs.StringVar(&customizations, "customizations", "", "its own customizations: a JSON `object`, or @FILE")
	idempotencyFlag(cmd, &idempotency)
	return cmd
}

func orgUpdateCommand(s *session) *cobra.Command {
	var name, description, externalID, customizations, etag string
	var tags []string
	cmd := &cobra.Command{
		Use: "update ORG", Short: "Change an organization", Args: cobra.ExactArgs(1),
		Long: `Change an organization. What no flag names stays as it is.`,
		Example: `  orgd org update acme --name "Acme Inc." --external-id ""
  orgd org update acme --customizations '{"locale": "de", "branding": {"color": null}}'`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			var in client.OrgUpdate
			fs := cmd.Flags()
			if fs.Changed("name") {
				in.Name = &name
			}
			if fs.Changed("description") {
				in.Description = &description
			}
			if fs.Changed("external-id") {
				in.ExternalID = &externalID
			}
			if fs.Changed("tags") {
				in.Tags = &tags
			}
			if fs.Changed("customizations") {
				if in.Customizations, err = jsonArgument("customizations", customizations); err != nil {
					return err
				}
			}
			if in.Name == nil && in.Description == nil && in.ExternalID == nil && in.Tags == nil && in.Customizations == nil {
				return usageError("nothing to change; see '%s --help' for the flags that say what", cmd.CommandPath())
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			o, err := c.UpdateOrg(cmd.Context(), args[0], in, client.IfMatch(etag))
			if err != nil {
				return err
			}
			return printOrg(cmd, s, o)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&name, "name", "", "its `name`")
	fs.StringVar(&description, "description", "", "what it is; \"\" removes it")
	fs.StringVar(&externalID, "external-id", "", "its `id` in another system; \"\" removes it")
	fs.StringSliceVar(&tags, "tags", nil, "all its tags, separated by commas; \"\" removes them")
	fs.StringVar(&customizations, "customizations", "", "a JSON `object`, or @FILE, to merge into its own customizations; null removes a member")
	for _, name := range []string{"description", "external-id", "tags"} {
		fs.Lookup(name).Annotations = map[string][]string{mayBeEmpty: nil}
	}
	ifMatchFlag(cmd, &etag)
	return cmd
}

func orgMoveCommand(s *session) *cobra.Command {
	var dryRun bool
	var etag string
	cmd := &cobra.Command{
		Use: "move ORG NEW_PARENT", Short: "Move an organization, with all that is below it", Args: cobra.ExactArgs(2),
		Example: `  orgd org move acme.eu acme.holding --dry-run
  orgd org move acme.eu acme.holding`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			if !dryRun {
				o, err := c.Move(cmd.Context(), args[0], args[1], client.IfMatch(etag))
				if err != nil {
					return err
				}
				return printOrg(cmd, s, o)
			}
			p, err := c.PreviewMove(cmd.Context(), args[0], args[1], client.IfMatch(etag))
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if s.json() {
				return printRaw(w, p.Raw)
			}
			fmt.Fprintln(w, "Dry run: nothing was moved.")
			fields := []string{"old path", strings.Join(p.Path.Old, " / "), "new path", strings.Join(p.Path.New, " / "),
				"moves", plural(p.Organizations, "organization")}
			for _, ch := range p.Settings {
				fields = append(fields, "setting "+ch.Pointer, valueText(ch.Old)+" → "+valueText(ch.New))
			}
			for _, k := range p.Keys.Gain {
				fields = append(fields, "gains reach", fmt.Sprintf("%s (%s) of %s", k.ID, k.Name, k.OrgID))
			}
			for _, k := range p.Keys.Lose {
				fields = append(fields, "loses reach", fmt.Sprintf("%s (%s) of %s", k.ID, k.Name, k.OrgID))
			}
			for _, l := range p.Limits.Gain {
				fields = append(fields, "gains limit", fmt.Sprintf("%s of %s on %s (%s)", l.Limit, l.Meter, l.OrgID, l.Enforcement))
			}
			for _, l := range p.Limits.Lose {
				fields = append(fields, "loses limit", fmt.Sprintf("%s of %s on %s (%s)", l.Limit, l.Meter, l.OrgID, l.Enforcement))
			}
			return printFields(w, fields...)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would change: paths, inherited settings, keys that gain or lose reach, limits that begin or cease to bind")
	ifMatchFlag(cmd, &etag)
	return cmd
}

func valueText(v json.RawMessage) string {
	if v == nil {
		return "none"
	}
	return string(v)
}

func orgDeleteCommand(s *session) *cobra.Command {
	var opt client.DeleteOptions
	var yes bool
	var etag string
	cmd := &cobra.Command{
		Use: "delete ORG", Short: "Delete an organization; it can be restored for a while", Args: cobra.ExactArgs(1),
		Long: `Delete an organization. Its keys stop working at once, and it can be restored
with 'orgd org restore' until the restore window of the server ends, 30 days by
default. What is below it is deleted too with --cascade; without it an
organization that has descendants is not deleted.

On a terminal it shows how much would be deleted and asks; --yes answers.`,
		Example: `  orgd org delete acme.eu --cascade --dry-run
  orgd org delete acme.eu --cascade`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, id := cmd.Context(), args[0]
			ask := !yes && !opt.DryRun
			if ask && !isTerminal(cmd.InOrStdin()) {
				return usageError("add --yes to delete %s without being asked, or --dry-run to see what that deletes", id)
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			if ask {
				d, err := c.DeleteOrg(ctx, id, client.DeleteOptions{Cascade: opt.Cascade, DryRun: true}, client.IfMatch(etag))
				if err != nil {
					return err
				}
				if d.Organizations > 1 && !opt.Cascade {
					return &exitError{exitConflict, messagef("%s has %s below it.\nAdd --cascade to delete them too.", id, plural(d.Organizations-1, "organization"))}
				}
				ok, err := confirm(ctx, cmd.InOrStdin(), cmd.ErrOrStderr(), fmt.Sprintf("Delete %s: %s and %s?",
					id, plural(d.Organizations, "organization"), plural(d.APIKeys, "API key")))
				if err != nil {
					return err
				}
				if !ok {
					return fmt.Errorf("%s was not deleted", id)
				}
			}
			d, err := c.DeleteOrg(ctx, id, opt, client.IfMatch(etag))
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if s.json() {
				return printRaw(w, d.Raw)
			}
			amount := plural(d.Organizations, "organization") + " and " + plural(d.APIKeys, "API key")
			if d.DryRun && d.Organizations > 1 && !opt.Cascade {
				_, err = fmt.Fprintf(w, "Dry run: %s has %s below it and would not be deleted.\nWith --cascade, deleting it would delete %s.\n",
					id, plural(d.Organizations-1, "organization"), amount)
				return err
			}
			if d.DryRun {
				_, err = fmt.Fprintf(w, "Dry run: deleting %s would delete %s.\n", id, amount)
				return err
			}
			_, err = fmt.Fprintf(w, "Deleted %s: %s.\nUntil %s it can be brought back: orgd org restore %s\n", id, amount, timeText(d.RestorableUntil), id)
			return err
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&opt.Cascade, "cascade", false, "delete what is below it too")
	fs.BoolVar(&opt.DryRun, "dry-run", false, "delete nothing, show how much it would be")
	fs.BoolVarP(&yes, "yes", "y", false, "do not ask")
	ifMatchFlag(cmd, &etag)
	return cmd
}

func orgRestoreCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "restore ORG", Short: "Bring back a deleted organization, with all that was deleted with it", Args: cobra.ExactArgs(1),
		Example: `  orgd org restore acme.eu`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			o, err := c.Restore(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printOrg(cmd, s, o)
		},
	}
}
