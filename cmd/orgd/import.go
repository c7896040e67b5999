package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/orgd/orgd/client"
)

func importCommand(s *session) *cobra.Command {
	var opt client.ImportOptions
	var format, idempotency string
	cmd := &cobra.Command{
		Use: "import FILE", Short: "Create many organizations from a CSV or NDJSON file", Args: cobra.ExactArgs(1),
		Long: `Create many organizations from a CSV or NDJSON file, all of them or none.
FILE is - for standard input.

CSV has a header with the columns id, parent_id, name, type, description,
external_id and tags (separated by semicolons); id and name are required. NDJSON
has one object a line with the same members, tags being an array, and also
customizations and locked. Rows come in any order and may name a parent that
exists already. Rows without one go below --parent; without that they become
roots for the operator, and children of the key's organization otherwise.

Bad rows are printed as FILE:LINE: what is wrong.`,
		Example: `  orgd import customers.csv --dry-run
  orgd import customers.csv
  orgd export acme | ORGD_URL=https://staging.example.com orgd import - --format ndjson --parent copies`,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"csv", "ndjson", "jsonl"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			name, in := args[0], cmd.InOrStdin()
			if format == "" {
				format = strings.TrimPrefix(strings.ToLower(filepath.Ext(name)), ".")
				if format != "csv" && format != "ndjson" && format != "jsonl" {
					return usageError("the name %s does not say what format it has: add --format csv or --format ndjson", name)
				}
			}
			switch format {
			case "csv":
				opt.Format = client.CSV
			case "ndjson", "jsonl":
				opt.Format = client.NDJSON
			default:
				return usageError("--format must be csv or ndjson, not %q", format)
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			if name == "-" {
				name = "stdin"
			} else {
				f, err := os.Open(name)
				if err != nil {
					return usageError("%w", err)
				}
				defer f.Close()
				in = f
			}
			done := func() {}
			if isTerminal(cmd.ErrOrStderr()) {
				opt.Progress, done = showImport(cmd.ErrOrStderr())
			}
			res, err := c.Import(cmd.Context(), in, opt, idempotencyOption(idempotency)...)
			done()
			var answer *client.Error
			if errors.As(err, &answer) && answer.Code == "import_invalid" && len(answer.Errors) > 0 {
				for _, f := range answer.Errors {
					at := name
					if f.Line > 0 {
						at = fmt.Sprintf("%s:%d", name, f.Line)
					}
					if f.Pointer != "" {
						at += ": " + f.Pointer
					}
					fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", at, clean(f.Detail))
				}
				return &exitError{exitFailure, messagef("%s\nThe request's id is %s.", clean(answer.Detail), clean(answer.RequestID))}
			}
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if s.json() {
				return printRaw(w, res.Raw)
			}
			verb := "Created"
			if res.DryRun {
				verb = "Dry run: this would create"
			}
			roots := ""
			if res.Roots > 0 {
				roots = ", of which " + plural(res.Roots, "root")
			}
			_, err = fmt.Fprintf(w, "%s %s%s.\n", verb, plural(res.Created, "organization"), roots)
			return err
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&format, "format", "", "csv or ndjson; otherwise what the name of FILE ends in")
	complete(cmd, "format", "csv", "ndjson")
	fs.StringVar(&opt.ParentID, "parent", "", "`id` of the organization below which rows without a parent go")
	fs.BoolVar(&opt.DryRun, "dry-run", false, "check everything, create nothing")
	idempotencyFlag(cmd, &idempotency)
	s.outputFlag(cmd)
	return cmd
}

// progressInterval is how often progress is drawn.
const progressInterval = 200 * time.Millisecond

// showImport shows the progress of an import: how much has been sent, and
// from then on how long the server has been at work. done ends it.
func showImport(w io.Writer) (progress func(sent, total int64), done func()) {
	var mu sync.Mutex
	var sent, total int64
	var since time.Time
	progress = func(s, t int64) {
		mu.Lock()
		defer mu.Unlock()
		if sent, total = s, t; sent == total {
			since = time.Now()
		}
	}
	done = showProgress(w, func() string {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case total == 0:
			return "Reading…"
		case sent < total:
			const width = 30
			filled := int(width * sent / total)
			return fmt.Sprintf("Sending [%s%s] %s of %s", strings.Repeat("█", filled), strings.Repeat("░", width-filled), mebibytes(sent), mebibytes(total))
		}
		return fmt.Sprintf("Sent %s. The server is at work… %s", mebibytes(total), time.Since(since).Round(100*time.Millisecond))
	})
	return progress, done
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// showProgress draws what line returns again and again until done is called,
// which wipes it out.
func showProgress(w io.Writer, line func() string) (done func()) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(progressInterval)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				fmt.Fprint(w, "\r\x1b[K")
				return
			case <-tick.C:
				fmt.Fprint(w, "\r\x1b[K"+line())
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(stop)
		<-stopped
	})
}
