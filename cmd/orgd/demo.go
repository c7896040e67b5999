package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/durable"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/tree"
)

// kubernetesOrg is the organization hierarchy that the Kubernetes project
// publishes on GitHub: 825 organizations and teams below 8 roots. The slashes in
// nine of its team names are hyphens in their ids.
//
//go:embed kubernetes-org.csv
var kubernetesOrg []byte

// Organizations of the demo that its examples use.
const (
	demoRoot   = "kubernetes"
	demoParent = "kubernetes.sig-release"
	demoChild  = "kubernetes.release-engineering"
)

func demoCommand() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:     "demo",
		Short:   "Serve a real organization tree, ready to try",
		GroupID: "server",
		Args:    cobra.NoArgs,
		Long: `Serve a real organization tree, ready to try: the 825 organizations and teams
of the Kubernetes project, with API keys, customizations at several levels and
some changes in the audit trail. It prints a curl line for each call.

The data goes to a new temporary directory, which is removed in the end, unless
--data-dir is given; then the next start finds it again. It takes the flags of
'orgd serve'.

It leaves servers alone: it heeds none of the variables that lead to their data
and keys (ORGD_DATA_DIR, ORGD_DATABASE, ORGD_AUDIT_ANCHOR, ORGD_WITNESS,
ORGD_OPERATOR_KEY, ORGD_AUDIT_KEY), and refuses a directory or a database that
holds other data than a demo's.`,
		Example: `  orgd demo
  orgd demo --listen 127.0.0.1:8081 --data-dir ./demo-data`,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			return fromEnvironment(cmd.Flags(), "data-dir", "database", "audit-anchor", "witness")
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("database") && !cmd.Flags().Changed("data-dir") {
				return usageError("--database needs --data-dir in a demo: the keys to what is in the database are kept there")
			}
			if !cmd.Flags().Changed("log-level") {
				f.logLevel = "warn"
			}
			if !cmd.Flags().Changed("data-dir") {
				dir, err := os.MkdirTemp("", "orgd-demo-")
				if err != nil {
					return err
				}
				defer os.RemoveAll(dir)
				f.dataDir = dir
			}
			if err := claimDir(f.dataDir); err != nil {
				return err
			}
			err := f.run(cmd.Context(), func(s *server.Server, url string) error {
				token, err := loadDemo(cmd.Context(), s, f.dataDir)
				if err != nil {
					return fmt.Errorf("the demo could not be loaded: %w", err)
				}
				printDemo(cmd.OutOrStdout(), url, token, filepath.Join(f.dataDir, "operator.key"))
				return nil
			})
			if errors.Is(err, server.ErrNotDemo) {
				return messagef("%s: it is left as it is.\nName an empty database, or leave --database and --data-dir out to try orgd in a temporary directory.", server.ErrNotDemo)
			}
			return err
		},
	}
	f.demo = true
	f.add(cmd.Flags())
	cmd.Flags().Lookup("data-dir").DefValue = "a new temporary directory"
	return cmd
}

// claimDir makes an empty directory a demo's, which the file demo.key in it
// says. It refuses one that has other things and is not a demo's.
func claimDir(dir string) error {
	path := filepath.Join(dir, "demo.key")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := durable.MkdirAll(dir); err != nil {
		return fmt.Errorf("the data directory cannot be made: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return messagef("%s has other things than a demo in it: it is left as it is.\nName a new directory with --data-dir, or leave it out to try orgd in a temporary one.", dir)
	}
	return durable.Write(path, nil)
}

// loadDemo loads the demo into a server unless it is there already, and
// returns a key of demoRoot.
func loadDemo(ctx context.Context, s *server.Server, dataDir string) (token string, err error) {
	path := filepath.Join(dataDir, "demo.key")
	if b, err := os.ReadFile(path); len(b) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return strings.TrimSpace(string(b)), err
	}
	call := &org.Call{Actor: auth.Operator(), RequestID: "demo", IP: "127.0.0.1", UserAgent: "orgd demo"}
	_, _, err = s.Tree.Import(ctx, call, bytes.NewReader(kubernetesOrg), tree.ImportOptions{Format: "csv"})
	if err != nil && !taken(err) {
		return "", err
	}
	if err == nil {
		if err := changeDemo(ctx, s, call); err != nil {
			return "", err
		}
	}
	k, _, err := s.Tree.CreateKey(ctx, call, demoRoot, auth.Request{Name: "Demo key", Permissions: []string{"admin"}})
	if err != nil {
		return "", err
	}
	return k.Secret, durable.Write(path, []byte(k.Secret+"\n"))
}

// taken reports whether an import failed because its organizations are there
// already: the database, unlike the data directory, has seen a demo before.
func taken(err error) bool {
	p := problem.From(err)
	return p.Code == problem.ImportInvalid && len(p.Fields) > 0 && strings.Contains(p.Fields[0].Detail, "in use")
}

// changeDemo makes the changes that give the demo customizations, keys and a
// history.
func changeDemo(ctx context.Context, s *server.Server, call *org.Call) error {
	locked := []string{"/security/require_mfa"}
	settings := []struct {
		id     string
		values string
		locked *[]string
	}{
		{demoRoot, `{"branding":{"logo_url":"https://kubernetes.io/images/kubernetes.png","color":"#326ce5"},"security":{"require_mfa":true},"locale":"en"}`, &locked},
		{demoParent, `{"branding":{"color":"#7a4dd8"},"release":{"cadence_weeks":15}}`, nil},
		{demoChild, `{"release":{"channel":"stable"}}`, nil},
	}
	for _, c := range settings {
		if _, _, err := s.Tree.PutCustomizations(ctx, call, c.id, tree.SettingsPut{Values: jsontext.Value(c.values), Locked: c.locked}); err != nil {
			return err
		}
	}
	if _, _, err := s.Tree.CreateKey(ctx, call, demoParent, auth.Request{Name: "SIG Release read-only", Permissions: []string{"read"},
		RateLimit: &key.RateLimit{Requests: 100, PeriodSeconds: 60}}); err != nil {
		return err
	}
	description, tags := "Builds and publishes the releases", []string{"releases", "on-call"}
	if _, _, err := s.Tree.Update(ctx, call, demoChild, tree.OrgUpdate{Members: []string{"description", "tags"}, To: org.Organization{Description: description, Tags: tags}}); err != nil {
		return err
	}
	_, _, err := s.Tree.PutTag(ctx, call, demoRoot, "cncf")
	return err
}

func printDemo(w io.Writer, url, token, operatorKeyFile string) {
	fmt.Fprintf(w, `
orgd is serving the Kubernetes project's organizations at %[1]s
Its API is described at %[1]s/docs. Stop it with Ctrl-C.

Paste this into another terminal:

export ORGD_URL=%[1]s
export ORGD_KEY=%[2]s
export AUTH="Authorization: Bearer $ORGD_KEY"

# Retrieve an organization
curl -s -H "$AUTH" $ORGD_URL/orgs/%[3]s
# Update it
curl -s -H "$AUTH" -H 'Content-Type: application/json' -X PATCH -d '{"name": "Release Engineering"}' $ORGD_URL/orgs/%[4]s
# Its customizations, and where each value in effect comes from
curl -s -H "$AUTH" "$ORGD_URL/orgs/%[4]s/customizations?explain=true"
# Update the customizations
curl -s -H "$AUTH" -H 'Content-Type: application/json' -X PUT -d '{"customizations": {"release": {"channel": "beta"}}}' $ORGD_URL/orgs/%[4]s/customizations
# What deleting a subtree would remove; then delete it, and bring it back
curl -s -H "$AUTH" -X DELETE "$ORGD_URL/orgs/%[5]s?dry_run=true"
curl -s -H "$AUTH" -X DELETE "$ORGD_URL/orgs/%[5]s?cascade=true"
curl -s -H "$AUTH" -X POST $ORGD_URL/orgs/%[5]s/restore
# The access log, the audit trail and the consumption of the month
curl -s -H "$AUTH" "$ORGD_URL/orgs/%[4]s/access_log?limit=3"
curl -s -H "$AUTH" "$ORGD_URL/orgs/%[3]s/children_audit?limit=3"
curl -s -H "$AUTH" $ORGD_URL/orgs/%[3]s/consumption

The operator key, which spans all roots, is in %[6]s
`, url, token, demoRoot, demoChild, demoParent, operatorKeyFile)
}
