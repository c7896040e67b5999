package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/problem"
)

// verifyFlags say what a verifier knows from elsewhere.
type verifyFlags struct {
	keys, witnesses, checkpoints, receipts, statements []string
}

func auditVerifyCommand(s *session) *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use: "verify FILE [OTHER]", Short: "Check an export or a proof, without the server", Args: cobra.RangeArgs(1, 2),
		Long: `Check an export of an audit log ('orgd audit export'), or the proof of one entry
('orgd audit proof'), against the log's verifier key and whatever else was kept:
checkpoints, receipts, statements of closed months. FILE may be - for standard
input. No server and no database is needed.

With two exports of the same log it checks both, and where they part.

Exit code 0 means that everything held.`,
		Example: `  orgd audit verify acme.audit --key acme.vkey
  orgd audit verify acme.audit --key acme.vkey --checkpoint last-year.checkpoint --receipts receipts.txt
  orgd audit verify entry.proof --key acme.vkey
  orgd audit verify mine.audit theirs.audit --key acme.vkey`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if s.output != "table" && s.output != "json" {
				return usageError("--output must be table or json, not %q", s.output)
			}
			if len(f.keys) == 0 {
				return usageError("name the verifier key of the log with --key; 'orgd audit key ROOT' prints it")
			}
			expect, err := f.expect()
			if err != nil {
				return inputError(err)
			}
			if len(args) == 2 {
				return compareExports(cmd, s, args, expect)
			}
			return verifyFile(cmd, s, args[0], expect)
		},
	}
	cmd.ValidArgsFunction = nil
	fs := cmd.Flags()
	fs.StringArrayVar(&f.keys, "key", nil, "verifier `key` of the log, or a file that holds it; needed")
	fs.StringArrayVar(&f.witnesses, "witness", nil, "verifier `key` of a witness, or a file that holds it")
	fs.StringArrayVar(&f.checkpoints, "checkpoint", nil, "`file` with a checkpoint that was kept")
	fs.StringArrayVar(&f.receipts, "receipts", nil, "`file` with receipts, one a line")
	fs.StringArrayVar(&f.statements, "statement", nil, "`file` with the statement of a closed month")
	return cmd
}

// expect reads the files that the flags name.
func (f *verifyFlags) expect() (audit.Expect, error) {
	var e audit.Expect
	isKey := func(s string) bool { return strings.Count(s, "+") >= 2 }
	for _, v := range f.keys {
		text, err := readArgument(v, isKey)
		if err != nil {
			return e, err
		}
		e.Keys = append(e.Keys, strings.Fields(text)...)
	}
	for _, v := range f.witnesses {
		text, err := readArgument(v, isKey)
		if err != nil {
			return e, err
		}
		e.Witnesses = append(e.Witnesses, strings.Fields(text)...)
	}
	for _, v := range f.checkpoints {
		b, err := os.ReadFile(v)
		if err != nil {
			return e, err
		}
		e.Checkpoints = append(e.Checkpoints, b)
	}
	for _, v := range f.statements {
		b, err := os.ReadFile(v)
		if err != nil {
			return e, err
		}
		e.Statements = append(e.Statements, b)
	}
	for _, v := range f.receipts {
		b, err := os.ReadFile(v)
		if err != nil {
			return e, err
		}
		for line := range strings.Lines(string(b)) {
			// A line may be the whole header field.
			if i := strings.Index(line, ":"); i >= 0 && strings.EqualFold(strings.TrimSpace(line[:i]), "Orgd-Audit-Receipt") {
				line = line[i+1:]
			}
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			r, err := audit.ParseReceipt(line)
			if err != nil {
				return e, fmt.Errorf("%s: %w", v, err)
			}
			e.Receipts = append(e.Receipts, r)
		}
	}
	return e, nil
}

// errNotHeld is the error of a check that found something wrong, which has
// been printed.
var errNotHeld = errors.New("not everything held: see above")

// inputError is the error of a check that could not be made with what was
// given to it.
func inputError(err error) error {
	var p *problem.Error
	if !errors.As(err, &p) {
		return usageError("%w", err)
	}
	text := p.Detail
	if p.Fix != "" {
		text += "\n" + p.Fix
	}
	return usageError("%w", message(text))
}

func openInput(cmd *cobra.Command, path string) (io.ReadCloser, error) {
	if path == "-" {
		return io.NopCloser(cmd.InOrStdin()), nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, usageError("%w", err)
	}
	return f, nil
}

// proofStart is how the proof of one entry begins (C2SP tlog-proof).
const proofStart = "c2sp.org/tlog-proof@"

func verifyFile(cmd *cobra.Command, s *session, path string, expect audit.Expect) error {
	f, err := openInput(cmd, path)
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 1<<16)
	start, err := in.Peek(len(proofStart))
	if err != nil && err != io.EOF {
		return err
	}
	var report *audit.Report
	if string(start) == proofStart {
		var text []byte
		if text, err = io.ReadAll(in); err == nil {
			report, err = audit.VerifyProof(text, expect)
		}
	} else {
		done := verifyProgress(cmd, &expect)
		report, err = audit.Verify(in, expect)
		done()
	}
	if err != nil {
		return inputError(err)
	}
	if s.json() {
		err = printJSON(cmd.OutOrStdout(), report)
	} else {
		err = printReport(cmd.OutOrStdout(), path, report)
	}
	if err == nil && !report.OK() {
		err = errNotHeld
	}
	return err
}

func compareExports(cmd *cobra.Command, s *session, paths []string, expect audit.Expect) error {
	var in [2]io.ReadCloser
	for i, path := range paths {
		var err error
		if in[i], err = openInput(cmd, path); err != nil {
			return err
		}
		defer in[i].Close()
	}
	done := verifyProgress(cmd, &expect)
	c, err := audit.Compare(in[0], in[1], expect)
	done()
	if err != nil {
		return inputError(err)
	}
	if s.json() {
		err = printJSON(cmd.OutOrStdout(), c)
	} else {
		out := cmd.OutOrStdout()
		err = errors.Join(printReport(out, paths[0], c.First), printReport(out, paths[1], c.Second))
		if c.Differs {
			fmt.Fprintf(out, "FAILED: the first %s are the same; entry %d of epoch %d is not.\n", counted(c.Common, "entry", "entries"), c.Seq, c.Epoch)
		} else {
			fmt.Fprintf(out, "%s are the same; nothing contradicts.\n", counted(c.Common, "entry", "entries"))
		}
	}
	if err == nil && !c.OK() {
		err = errNotHeld
	}
	return err
}

// verifyProgress shows how many entries have been checked, on a terminal.
func verifyProgress(cmd *cobra.Command, expect *audit.Expect) (done func()) {
	if !isTerminal(cmd.ErrOrStderr()) {
		return func() {}
	}
	var checked atomic.Int64
	expect.Progress = checked.Store
	return showProgress(cmd.ErrOrStderr(), func() string { return "Checked " + counted(checked.Load(), "entry", "entries") + "…" })
}

func printJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

// printReport says what was checked, how much of it, and what did not hold.
func printReport(w io.Writer, path string, r *audit.Report) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: the log %s of %s\n", clean(path), clean(r.LogID), clean(r.RootID))
	fmt.Fprintf(&b, "  %s checked, up to size %s of epoch %d\n", counted(r.Entries, "entry", "entries"), grouped(r.Size), r.Epoch)
	fmt.Fprintf(&b, "  %s match their commitments, %s erased\n", counted(r.Values, "value", "values"), grouped(r.Erased))
	for _, c := range r.Checkpoints {
		kept, by := "", ""
		if c.Kept {
			kept = ", which was kept"
		}
		if len(c.Witnesses) > 0 {
			by = ", cosigned by " + strings.Join(c.Witnesses, ", ")
		}
		fmt.Fprintf(&b, "  checkpoint of size %s%s: signed, and the entries are its%s\n", grouped(c.Size), kept, clean(by))
	}
	if r.Receipts > 0 {
		fmt.Fprintf(&b, "  %s held\n", plural(int64(r.Receipts), "receipt"))
	}
	if r.Statements > 0 {
		fmt.Fprintf(&b, "  %s found\n", plural(int64(r.Statements), "statement"))
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "  note: %s\n", clean(n))
	}
	for _, f := range r.Failures {
		b.WriteString("FAILED (" + string(f.Check) + ")")
		if f.Seq >= 0 {
			fmt.Fprintf(&b, " entry %d", f.Seq)
			if f.Epoch > 0 {
				fmt.Fprintf(&b, " of epoch %d", f.Epoch)
			}
		}
		if f.Line > 0 {
			fmt.Fprintf(&b, " in line %d", f.Line)
		}
		fmt.Fprintf(&b, ": %s\n", clean(f.Detail))
	}
	if r.OK() {
		b.WriteString("Everything held.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}
