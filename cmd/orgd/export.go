package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/orgd/orgd/client"
	"github.com/orgd/orgd/internal/durable"
)

func exportCommand(s *session) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "export ORG", Short: "Write a subtree as NDJSON that 'orgd import' takes", Args: cobra.ExactArgs(1),
		Long: `Write an organization and all that is below it as NDJSON that 'orgd import'
takes: one object a line with exactly the members of an import, every parent
before its children. The parent of ORG itself is left out, so that the export
can be imported below another organization, or as a root.

API keys, logs and the customization schema are not part of it.`,
		Example: `  orgd export acme --file acme.ndjson`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			var written atomic.Int64
			done := func() {}
			if isTerminal(cmd.ErrOrStderr()) {
				done = showProgress(cmd.ErrOrStderr(), func() string { return "Exported " + plural(written.Load(), "organization") + "…" })
			}
			defer done()
			write := func(w io.Writer) error { return export(cmd.Context(), c, w, args[0], &written) }
			if file == "" || file == "-" {
				return write(cmd.OutOrStdout())
			}
			if err := writeFile(file, write); err != nil {
				return err
			}
			done()
			_, err = fmt.Fprintf(cmd.ErrOrStderr(), "Exported %s to %s.\n", plural(written.Load(), "organization"), file)
			return err
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "`file` to write, which appears only once it is whole; standard output without it")
	return cmd
}

// exportRow is a line of an export.
type exportRow struct {
	ID             string          `json:"id"`
	ParentID       string          `json:"parent_id,omitempty"`
	Name           string          `json:"name"`
	Type           string          `json:"type"`
	Description    string          `json:"description,omitempty"`
	ExternalID     string          `json:"external_id,omitempty"`
	Tags           []string        `json:"tags,omitempty"`
	Customizations json.RawMessage `json:"customizations,omitempty"`
	Locked         []string        `json:"locked,omitempty"`
}

// exportAhead is how many organizations' customizations are fetched at the
// same time. The lists of organizations do not hold what is locked.
const exportAhead = 8

// export writes an organization and its descendants, every parent before its
// children. It fails if they are moved meanwhile in a way that would leave
// the export without a parent or with an organization twice.
func export(ctx context.Context, c *client.Client, w io.Writer, id string, written *atomic.Int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		row exportRow
		err error
	}
	rows := make(chan chan result, exportAhead)
	go func() {
		defer close(rows)
		for o, err := range trees(ctx, c, one(func() (*client.Org, error) { return c.Org(ctx, id) }), 0, false) {
			r := make(chan result, 1)
			select {
			case rows <- r:
			case <-ctx.Done():
				return
			}
			if err != nil {
				r <- result{err: err}
				return
			}
			go func() {
				row, err := newExportRow(ctx, c, &o)
				r <- result{row, err}
			}()
		}
	}()
	out := bufio.NewWriterSize(w, 64<<10)
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	seen := map[string]bool{}
	for r := range rows {
		r := <-r
		if r.err != nil {
			return r.err
		}
		if len(seen) == 0 {
			r.row.ParentID = ""
		} else if !seen[r.row.ParentID] || seen[r.row.ID] {
			return fmt.Errorf("the tree changed while it was being read: %s was moved; export it again", r.row.ID)
		}
		seen[r.row.ID] = true
		if err := encoder.Encode(&r.row); err != nil {
			return err
		}
		written.Add(1)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return out.Flush()
}

func newExportRow(ctx context.Context, c *client.Client, o *client.Org) (exportRow, error) {
	settings, err := c.Customizations(ctx, o.ID)
	if err != nil {
		return exportRow{}, err
	}
	row := exportRow{ID: o.ID, ParentID: o.ParentID, Name: o.Name, Type: o.Type, Description: o.Description,
		ExternalID: o.ExternalID, Tags: o.Tags, Customizations: settings.Customizations, Locked: settings.Locked}
	if string(row.Customizations) == "{}" {
		row.Customizations = nil
	}
	return row, nil
}

// writeFile writes a file whole or not at all: what was there before stays
// until the new content is on disk. Only its owner can read a new file.
func writeFile(path string, write func(io.Writer) error) (err error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return usageError("%s is not a regular file, so it cannot be replaced by one", path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return usageError("%w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	return durable.Replace(f, path)
}
