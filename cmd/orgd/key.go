package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/orgd/orgd/client"
	"github.com/orgd/orgd/internal/key"
)

func keyCommand(s *session) *cobra.Command {
	cmd := group("key", "API keys: create, list, rotate, revoke",
		keyCreateCommand(s), keyListCommand(s), keyRotateCommand(s), keyRevokeCommand(s))
	s.outputFlag(cmd)
	return cmd
}

// printSecret prints a key that has just got its secret: the secret alone to
// standard output, where a script takes it, the rest to standard error.
func printSecret(cmd *cobra.Command, s *session, k *client.Key, what string) error {
	if s.json() {
		return printRaw(cmd.OutOrStdout(), k.Raw)
	}
	e := cmd.ErrOrStderr()
	fmt.Fprintln(e, what)
	limit := ""
	if k.RateLimit != nil {
		limit = rateText(k.RateLimit)
	}
	if err := printFields(e, "id", k.ID, "organization", k.OrgID, "name", k.Name, "permissions", strings.Join(k.Permissions, ", "),
		"reach", k.Reach, "addresses", strings.Join(k.AllowedCIDRs, ", "), "rate limit", limit, "expires", timeOr(k.ExpiresAt, "never")); err != nil {
		return err
	}
	if k.OldSecret != nil {
		fmt.Fprintf(e, "The old secret, which ends in %s, works until %s.\n", clean(k.OldSecret.Hint), timeText(k.OldSecret.ValidUntil))
	}
	fmt.Fprintln(e, "This is the key. It cannot be shown again: store it now.")
	_, err := fmt.Fprintln(cmd.OutOrStdout(), k.Secret)
	return err
}

func rateText(r *client.RateLimit) string {
	period := (time.Duration(r.PeriodSeconds) * time.Second).String()
	if strings.HasSuffix(period, "m0s") {
		period = strings.TrimSuffix(period, "0s")
	}
	if strings.HasSuffix(period, "h0m") {
		period = strings.TrimSuffix(period, "0m")
	}
	return fmt.Sprintf("%d/%s", r.Requests, period)
}

// parseRate parses a rate limit such as 100/1m.
func parseRate(v string) (*client.RateLimit, error) {
	n, period, ok := strings.Cut(v, "/")
	requests, err := strconv.Atoi(n)
	if period == "s" || period == "m" || period == "h" {
		period = "1" + period
	}
	d, derr := parseDuration(period)
	if !ok || err != nil || derr != nil || requests < 1 || d < time.Second || d%time.Second != 0 {
		return nil, usageError("--rate-limit must be requests per period, such as 100/1m, not %q", v)
	}
	return &client.RateLimit{Requests: requests, PeriodSeconds: int(d / time.Second)}, nil
}

func keyCreateCommand(s *session) *cobra.Command {
	var in client.KeyCreate
	var expires, rate, idempotency string
	cmd := &cobra.Command{
		Use: "create ORG NAME", Short: "Create an API key of an organization, and print it once", Args: cobra.ExactArgs(2),
		Long: `Create an API key of an organization, and print it once: alone on standard
output. A key can only create keys that may do no more than itself, and what no
flag says is as in the creating key. With the operator key it is: the permissions
that read stands for, the subtree, every address, and no end.

Permissions are orgs:read, orgs:write, orgs:delete, customizations:read,
customizations:write, tags:write, access_log:read, access_log:write, audit:read,
audit:erase, consumption:read, consumption:write, keys:read, keys:write and
keys:verify; read, write and admin stand for several of them. Those that start
with app: are your product's own.`,
		Example: `  orgd key create acme CRM --permissions read --expires 90d
  ORGD_KEY=$(orgd key create acme deploy --permissions orgs:read,orgs:write --reach self)`,
		RunE: func(cmd *cobra.Command, args []string) error {
			in.Name = args[1]
			at, err := parseTime("expires", expires, time.Now(), 1)
			if err != nil {
				return err
			}
			if !at.IsZero() {
				at = at.UTC().Truncate(time.Second)
				in.ExpiresAt = &at
			}
			if rate != "" {
				if in.RateLimit, err = parseRate(rate); err != nil {
					return err
				}
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			k, err := c.CreateKey(cmd.Context(), args[0], in, idempotencyOption(idempotency)...)
			if err != nil {
				return err
			}
			return printSecret(cmd, s, k, "Created the API key "+k.ID+".")
		},
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&in.Permissions, "permissions", nil, "what it may do, separated by commas")
	if err := cmd.RegisterFlagCompletionFunc("permissions", completePermissions); err != nil {
		panic(err)
	}
	fs.StringVar(&in.Reach, "reach", "", "subtree or self: whether it reaches the descendants of the organization")
	complete(cmd, "reach", "subtree", "self")
	fs.StringVar(&expires, "expires", "", "`when` it ends: a time, a day, or a duration from now such as 90d")
	fs.StringSliceVar(&in.AllowedCIDRs, "allowed-cidrs", nil, "the networks from which it works, separated by commas")
	fs.StringVar(&rate, "rate-limit", "", "`requests/period` that it may make, such as 100/1m")
	idempotencyFlag(cmd, &idempotency)
	return cmd
}

// completePermissions completes the last of several permissions with commas
// between them.
func completePermissions(_ *cobra.Command, _ []string, given string) ([]string, cobra.ShellCompDirective) {
	before := given[:strings.LastIndexByte(given, ',')+1]
	values := []string{before + key.BundleRead, before + key.BundleWrite, before + key.BundleAdmin}
	for _, p := range key.AllPermissions() {
		values = append(values, before+p)
	}
	return values, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

func keyListCommand(s *session) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use: "list ORG", Short: "List the API keys of an organization", Args: cobra.ExactArgs(1),
		Example: `  orgd key list acme`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			return list[client.Key]{
				none:    "No API keys.",
				columns: []string{"ID", "NAME", "REACH", "PERMISSIONS", "ENDS IN", "EXPIRES", "LAST USED"},
				row: func(k *client.Key) []string {
					return []string{k.ID, k.Name, k.Reach, strings.Join(k.Permissions, ","), k.Hint, timeOr(k.ExpiresAt, "never"), timeOr(k.LastUsedAt, "never")}
				},
				raw: func(k *client.Key) json.RawMessage { return k.Raw },
			}.print(cmd, s, c.Keys(cmd.Context(), args[0], client.PageSize(pageSize(limit))), limit)
		},
	}
	limitFlag(cmd, &limit, 0)
	return cmd
}

func keyRotateCommand(s *session) *cobra.Command {
	var overlap string
	cmd := &cobra.Command{
		Use: "rotate ORG KEY_ID", Short: "Give an API key a new secret, and print it once", Args: cobra.ExactArgs(2),
		Long: `Give an API key a new secret, and print it once: alone on standard output. The
old secret works for the time of --overlap, and 'orgd key list -o json' shows
whether it is still used.`,
		Example: `  orgd key rotate acme key_01jdq3v5m8e7w9x0a1b2c3d4e5 --overlap 7d`,
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := parseDuration(overlap)
			if err != nil || d < 0 || d%time.Second != 0 {
				return usageError("--overlap must be a duration in whole seconds such as 24h or 7d, not %q", overlap)
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			k, err := c.RotateKey(cmd.Context(), args[0], args[1], d)
			if err != nil {
				return err
			}
			return printSecret(cmd, s, k, "Rotated the API key "+k.ID+".")
		},
	}
	cmd.Flags().StringVar(&overlap, "overlap", "24h", "how long the old secret works: a `duration` up to 30d; 0s ends it now")
	return cmd
}

func keyRevokeCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "revoke ORG KEY_ID", Short: "End an API key, at once and for good", Args: cobra.ExactArgs(2),
		Example: `  orgd key revoke acme key_01jdq3v5m8e7w9x0a1b2c3d4e5`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			if err := c.RevokeKey(cmd.Context(), args[0], args[1]); err != nil {
				return err
			}
			if s.json() {
				return printRaw(cmd.OutOrStdout(), json.RawMessage(`{"message":"API key revoked"}`))
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Revoked the API key %s.\n", args[1])
			return err
		},
	}
}
