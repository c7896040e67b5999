package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/orgd/orgd/client"
	"github.com/orgd/orgd/internal/durable"
)

func auditCheckpointCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "checkpoint ORG", Short: "Print the signed checkpoint of the audit log", Args: cobra.ExactArgs(1),
		Long: `Print the last signed checkpoint of the audit log that an organization's changes
are in. Whoever keeps it can show later, with 'orgd audit verify --checkpoint',
that no entry before it was altered or removed.`,
		Example: `  orgd audit checkpoint acme > acme.checkpoint`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			b, err := c.AuditCheckpoint(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(b)
			return err
		},
	}
}

func auditKeyCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "key ORG", Short: "Print the verifier key of the audit log", Args: cobra.ExactArgs(1),
		Long: `Print the public key that signs the audit log that an organization's changes are
in. Get it once, keep it, and compare it on another way: what 'orgd audit
verify' says is worth as much as the key that it is given.`,
		Example: `  orgd audit key acme > acme.vkey`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			vkey, err := c.AuditKey(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), vkey)
			return err
		},
	}
}

func auditProofCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "proof ORG ENTRY", Short: "Print an audit entry with the proof that it is in the log", Args: cobra.ExactArgs(2),
		Example: `  orgd audit proof acme aud_01jdq3v5m8e7w9x0a1b2c3d4e5 > entry.proof
  orgd audit verify entry.proof --key acme.vkey`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			b, err := c.AuditProof(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(b)
			return err
		},
	}
}

func auditExportCommand(s *session) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "export ROOT", Short: "Write all that a verifier needs of a root's audit log", Args: cobra.ExactArgs(1),
		Long: `Write the audit log of a root organization as NDJSON: every entry, up to a
signed checkpoint. 'orgd audit verify' checks it without the server.

If --file exists, it goes on after its last entry.`,
		Example: `  orgd audit export acme --file acme.audit
  orgd audit verify acme.audit --key acme.vkey`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.connect()
			if err != nil {
				return err
			}
			if file == "" {
				return c.AuditExport(cmd.Context(), args[0], 0, 0, cmd.OutOrStdout())
			}
			n, err := exportAudit(cmd, c, args[0], file)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.ErrOrStderr(), "Wrote %s to %s.\n", counted(n, "entry", "entries"), file)
			return err
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "`file` to write, or to go on with; standard output without it")
	return cmd
}

func counted(n int64, one, many string) string {
	if n == 1 {
		return grouped(n) + " " + one
	}
	return grouped(n) + " " + many
}

// exportAudit appends to a file of exports what has come since. If that fails
// the file is as before.
func exportAudit(cmd *cobra.Command, c *client.Client, rootID, path string) (entries int64, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, usageError("%w", err)
	}
	defer f.Close()
	at, before, end, err := exportEnd(f)
	if err != nil {
		return 0, usageError("%s: %w", path, err)
	}
	// What stands behind the last whole export was cut short.
	if err := errors.Join(f.Truncate(end), seekTo(f, end)); err != nil {
		return 0, err
	}
	if err := c.AuditExport(cmd.Context(), rootID, at.Epoch, at.Seq, f); err != nil {
		return 0, errors.Join(err, f.Truncate(end))
	}
	if err := durable.Sync(f); err != nil {
		return 0, err
	}
	_, after, newEnd, err := exportEnd(f)
	if err == nil && newEnd == end {
		err = errors.New("the export was cut short")
	}
	if err != nil {
		return 0, errors.Join(err, f.Truncate(end))
	}
	if after == before && end > 0 {
		return 0, f.Truncate(end) // nothing has come
	}
	return after - before, nil
}

func seekTo(f *os.File, offset int64) error {
	_, err := f.Seek(offset, io.SeekStart)
	return err
}

// place is where an entry is in a log.
type place struct{ Epoch, Seq int64 }

// exportEnd returns the place after the last entry of the whole exports in f,
// how many entries they have, and where in the file they end.
func exportEnd(f *os.File) (next place, entries, end int64, err error) {
	if err := seekTo(f, 0); err != nil {
		return next, 0, 0, err
	}
	in := bufio.NewReaderSize(f, 1<<20)
	var offset, seen int64
	var last []byte
	for n := 1; ; n++ {
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			return next, entries, end, nil
		}
		if err != nil {
			return next, entries, end, err
		}
		offset += int64(len(line))
		switch {
		case bytes.HasPrefix(line, []byte(`{"leaf":`)):
			last = append(last[:0], line...)
			seen++
		case bytes.HasPrefix(line, []byte(`{"end":`)):
			end, entries = offset, seen
			if last != nil {
				var entry struct{ Leaf place }
				if err := json.Unmarshal(last, &entry); err != nil {
					return next, entries, end, fmt.Errorf("it is not an export of an audit log")
				}
				next = place{entry.Leaf.Epoch, entry.Leaf.Seq + 1}
			}
		case n == 1 && !bytes.HasPrefix(line, []byte(`{"export":`)):
			return next, entries, end, fmt.Errorf("it is not an export of an audit log")
		}
	}
}

func auditNewEpochCommand(s *session) *cobra.Command {
	var reason string
	var dryRun bool
	cmd := &cobra.Command{
		Use: "new-epoch [ROOT...]", Short: "Let audit logs go on after a restored backup or a lost seed",
		Long: `List the audit logs that the server does not sign, because the database lacks
what was signed of them before, or the server their key, and open a new epoch of
each: it begins with an entry that holds the last signed checkpoint, what is left,
and the reason. A log that the database does not have at all is given up.

A log that is signed, but of which a witness claims to know another history, is
not in the list: whether the witness is right is yours to find out. Name its root
to open a new epoch of it all the same.

A log that is not signed because the seed of its keys was lost goes on in the same
way, with a key of the newest seed that the server has: hand out what 'orgd audit
key' prints then.

Do that only after you have restored an old backup on purpose, or if no copy of
the seed is left. Everybody who checks the log will see it.`,
		Example: `  orgd audit new-epoch --dry-run
  orgd audit new-epoch --reason "The backup of 24 November was restored after the disk failed."`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !dryRun && reason == "" {
				return usageError("--reason must say why; --dry-run shows which logs need it")
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			refused, err := c.RefusedAuditLogs(cmd.Context())
			if err != nil {
				return err
			}
			wanted, listed := map[string]bool{}, map[string]bool{}
			for _, id := range args {
				wanted[id] = true
			}
			n := 0
			for _, l := range refused {
				if len(args) > 0 && !wanted[l.RootID] {
					continue
				}
				n++
				listed[l.RootID] = true
				done := l.Detail
				switch {
				case dryRun:
				case l.Missing:
					if err := c.AbandonAuditLog(cmd.Context(), l.LogID, reason); err != nil {
						return err
					}
					done = "Given up: " + l.LogID
				default:
					e, err := c.OpenAuditEpoch(cmd.Context(), l.RootID, reason)
					if err != nil {
						return err
					}
					done = "Goes on as " + e.Origin
				}
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", clean(l.RootID), clean(done)); err != nil {
					return err
				}
			}
			// A log that is signed and that a witness disputes takes a new epoch only
			// if it is named.
			for _, id := range args {
				if dryRun || listed[id] {
					continue
				}
				listed[id] = true
				e, err := c.OpenAuditEpoch(cmd.Context(), id, reason)
				if err != nil {
					return err
				}
				n++
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: Goes on as %s\n", clean(id), clean(e.Origin)); err != nil {
					return err
				}
			}
			if n == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "No audit log needs a new epoch.")
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why; it becomes part of the log")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only list the logs")
	return cmd
}

func auditRotateKeyCommand(s *session) *cobra.Command {
	var overlap string
	cmd := &cobra.Command{
		Use: "rotate-key ROOT", Short: "Let another key sign the audit log of a root", Args: cobra.ExactArgs(1),
		Long: `Let another key sign the audit log of a root, and print its verifier key. The
rotation is an entry of the log that both keys have signed: whoever has the old
verifier key can trust the new one. Both sign until the overlap ends.

The new key is derived from the newest seed in the server's audit.key. To part
with a seed that may have become known, first append a new one to that file, as
'orgd keygen --audit' makes it, and restart the server.`,
		Example: `  orgd audit rotate-key acme --overlap 30d`,
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := parseDuration(overlap)
			if err != nil || d < 0 || d%time.Second != 0 {
				return usageError("--overlap must be whole seconds, such as 24h or 7d, not %q", overlap)
			}
			c, err := s.connect()
			if err != nil {
				return err
			}
			r, err := c.RotateAuditKey(cmd.Context(), args[0], d)
			if err != nil {
				return err
			}
			if s.json() {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", r.Raw)
				return err
			}
			return printFields(cmd.OutOrStdout(), "key", r.Key, "old key ends", timeText(r.OldKeyEndsAt))
		},
	}
	cmd.Flags().StringVar(&overlap, "overlap", "7d", "how long the old key signs too: a `duration` such as 7d")
	return cmd
}

// readArgument returns what a file holds, or the text itself if there is no
// such file and it looks like one that is meant.
func readArgument(v string, meant func(string) bool) (string, error) {
	b, err := os.ReadFile(v)
	if errors.Is(err, fs.ErrNotExist) && meant(v) {
		return v, nil
	}
	return string(b), err
}
