package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/orgd/orgd/client"
)

const defaultURL = "http://127.0.0.1:8080"

// session is how the commands that work with a server reach it.
type session struct {
	url, key, keyFile string
	output            string // "table" or "json"
}

// clientCommands returns the commands that work with a server.
func clientCommands() []*cobra.Command {
	var commands []*cobra.Command
	for _, f := range []func(*session) *cobra.Command{
		orgCommand, keyCommand, importCommand, exportCommand, accessCommand, auditCommand, usageCommand, quotaCommand,
	} {
		s := &session{}
		cmd := f(s)
		cmd.GroupID = "client"
		fs := cmd.PersistentFlags()
		fs.StringVar(&s.url, "url", "", "`URL` of the server (ORGD_URL; default "+defaultURL+")")
		fs.StringVar(&s.key, "key", "", "API `key`; other users of this machine can see it, better use ORGD_KEY or --key-file")
		fs.StringVar(&s.keyFile, "key-file", "", "`file` that holds the API key (ORGD_KEY_FILE)")
		s.prepare(cmd)
		commands = append(commands, cmd)
	}
	return commands
}

// prepare makes every error of cmd and the commands below it one that tells
// the user what to do, with its exit code.
func (s *session) prepare(cmd *cobra.Command) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if err := checkEmpty(cmd, args); err != nil {
				return err
			}
			return s.explain(run(cmd, args))
		}
	}
	if cmd.ValidArgsFunction == nil {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, below := range cmd.Commands() {
		s.prepare(below)
	}
}

// mayBeEmpty marks the flags to which an empty value is a value. That of any
// other is a variable that is not set, and must not count as a flag that is
// left out: a key would get more permissions than it was meant to have.
const mayBeEmpty = "may be empty"

// checkEmpty returns an error if an argument or the value of a flag is empty.
func checkEmpty(cmd *cobra.Command, args []string) (err error) {
	if i := slices.Index(args, ""); i >= 0 {
		return usageError("argument %d is empty\nUsage: %s", i+1, cmd.UseLine())
	}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		value := f.Value.String()
		if list, ok := f.Value.(pflag.SliceValue); ok {
			value = strings.Join(list.GetSlice(), "")
		}
		if _, may := f.Annotations[mayBeEmpty]; value == "" && !may && err == nil {
			err = usageError("--%s must not be empty; give it a value, or leave it out", f.Name)
		}
	})
	return err
}

// checkArguments makes a wrong number of arguments of cmd and the commands
// below it an error of usage.
func checkArguments(cmd *cobra.Command) {
	if args := cmd.Args; args != nil {
		cmd.Args = func(cmd *cobra.Command, given []string) error {
			if args(cmd, given) != nil {
				return usageError("wrong number of arguments: %d\nUsage: %s", len(given), cmd.UseLine())
			}
			return nil
		}
	}
	for _, below := range cmd.Commands() {
		checkArguments(below)
	}
}

// group returns a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: runGroup}
	cmd.AddCommand(commands...)
	return cmd
}

// runGroup is what a command does that only holds others: without arguments
// it shows its help, and any argument is the name of a command that is not
// there.
func runGroup(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	cmd.SuggestionsMinimumDistance = 2
	hint := ""
	if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
		hint = "\nDid you mean " + strings.Join(similar, " or ") + "?"
	}
	return usageError("%q is not a command of '%s'.%s\nSee '%s --help'.", args[0], cmd.CommandPath(), hint, cmd.CommandPath())
}

// outputFlag adds the flag that chooses between tables and JSON.
func (s *session) outputFlag(cmd *cobra.Command) {
	cmd.PersistentFlags().StringVarP(&s.output, "output", "o", "table", "table or json: what the API answers, lists as one array")
	complete(cmd, "output", "table", "json")
}

// complete lets the shell complete the values of a flag.
func complete(cmd *cobra.Command, flag string, values ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err)
	}
}

func (s *session) json() bool { return s.output == "json" }

// connect returns a client of the server.
func (s *session) connect() (*client.Client, error) {
	if s.output != "" && s.output != "table" && s.output != "json" {
		return nil, usageError("--output must be table or json, not %q", s.output)
	}
	if s.url == "" {
		s.url = os.Getenv("ORGD_URL")
	}
	if s.url == "" {
		s.url = defaultURL
	}
	if u, err := url.Parse(s.url); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" {
		return nil, usageError("%q is not the URL of a server; one looks like %s", shownURL(s.url), defaultURL)
	} else if strings.Count(s.url, "@") > 1 || u.User == nil && strings.Contains(s.url, "@") {
		return nil, usageError("%q is not the URL of a server: there is an @ where none belongs; in a password write it as %%40", shownURL(s.url))
	}
	key, err := s.readKey()
	if err != nil {
		return nil, err
	}
	return client.New(s.url, key, client.WithUserAgent("orgd/"+version()+" (command line)")), nil
}

// readKey returns the API key: flags go before the environment.
func (s *session) readKey() (string, error) {
	key, file := s.key, s.keyFile
	if key != "" && file != "" {
		return "", usageError("give --key or --key-file, not both")
	}
	if key == "" && file == "" {
		var err error
		if key, err = secretVariable("ORGD_KEY"); err != nil {
			return "", err
		}
	}
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return "", usageError("the key file cannot be read: %w", err)
		}
		key = string(b)
	}
	if key = strings.TrimSpace(key); key == "" {
		return "", &exitError{exitDenied, message(`no API key is set.
Set the environment variable ORGD_KEY to a key, or name a file that holds one
with --key-file. The operator key of a new server is in the file operator.key in
its data directory.`)}
	}
	if strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", usageError("the API key holds characters that no key has; is it the right file?")
	}
	return key, nil
}

// explain turns an error of a call into one for people, with its exit code.
func (s *session) explain(err error) error {
	var known *exitError
	if err == nil || errors.As(err, &known) {
		return err
	}
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted")
	}
	var answer *client.Error
	if errors.As(err, &answer) {
		return &exitError{statusCode(answer.Status), errors.New(describe(answer))}
	}
	var failed *url.Error
	if !errors.As(err, &failed) {
		return err
	}
	var dns *net.DNSError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		err = messagef("no server answers at %s: the connection was refused.\nStart one with 'orgd serve', or name another with --url or ORGD_URL.", shownURL(s.url))
	case errors.As(err, &dns):
		err = messagef("no server answers at %s: the host %s is not known.\nName another with --url or ORGD_URL.", shownURL(s.url), dns.Name)
	case failed.Timeout():
		err = fmt.Errorf("the server at %s does not answer in time: %w", shownURL(s.url), failed.Err)
	default:
		err = fmt.Errorf("the server at %s cannot be reached: %w", shownURL(s.url), failed.Err)
	}
	return &exitError{exitUnavailable, err}
}

// statusCode returns the exit code for an HTTP status.
func statusCode(status int) int {
	switch {
	case status == 401 || status == 403:
		return exitDenied
	case status == 404:
		return exitNotFound
	case status == 409 || status == 412:
		return exitConflict
	case status == 429:
		return exitLimited
	case status >= 500:
		return exitUnavailable
	}
	return exitFailure
}

// describe says what went wrong, what to do about it, and the request's id.
func describe(e *client.Error) string {
	var b strings.Builder
	b.WriteString(clean(e.Detail))
	if len(e.Errors) > 1 {
		for _, f := range e.Errors {
			fmt.Fprintf(&b, "\n  %s: %s", clean(f.Pointer+f.Parameter), clean(f.Detail))
		}
	}
	fix := e.Fix
	switch e.Code {
	case "has_descendants":
		fix = "Add --cascade to delete what is below it too, or --dry-run to see how much that is."
	case "unauthorized":
		fix = "Check the key in ORGD_KEY or the key file: it may be mistyped, expired or revoked, or belong to another server."
	}
	if fix != "" {
		b.WriteString("\n" + clean(fix))
	}
	if e.RequestID != "" {
		b.WriteString("\nThe request's id is " + clean(e.RequestID) + ".")
	}
	return b.String()
}

// isTerminal reports whether v is a file that a person looks at or types
// into.
func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

// confirm asks a question and reports whether the answer is yes.
func confirm(ctx context.Context, in io.Reader, out io.Writer, question string) (bool, error) {
	fmt.Fprint(out, question+" [y/N] ")
	answer := make(chan string, 1)
	go func() {
		var line []byte
		for b := make([]byte, 1); ; {
			n, err := in.Read(b)
			if n == 1 && b[0] != '\n' {
				line = append(line, b[0])
			} else if n == 1 || err != nil {
				answer <- strings.ToLower(strings.TrimSpace(string(line)))
				return
			}
		}
	}()
	select {
	case a := <-answer:
		return a == "y" || a == "yes", nil
	case <-ctx.Done():
		fmt.Fprintln(out)
		return false, ctx.Err()
	}
}

// jsonArgument returns a JSON object that is given on the command line, or in
// a file as @FILE.
func jsonArgument(flag, v string) (json.RawMessage, error) {
	if file, ok := strings.CutPrefix(v, "@"); ok {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, usageError("--%s: %w", flag, err)
		}
		v = string(b)
	}
	if !json.Valid([]byte(v)) || !strings.HasPrefix(strings.TrimSpace(v), "{") {
		return nil, usageError("--%s must be a JSON object such as '{\"locale\": \"en\"}', or @FILE", flag)
	}
	return json.RawMessage(v), nil
}

// parseDuration is time.ParseDuration with days: 90d.
func parseDuration(v string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(v, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 && n < 36500 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	return time.ParseDuration(v)
}

// parseTime parses a time, a day in UTC, or a duration, which is counted from
// now in the given direction. The result is the zero time, which stands for
// none, only if v is empty.
func parseTime(flag, v string, now time.Time, direction time.Duration) (time.Time, error) {
	if v == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339Nano, time.DateOnly} {
		if t, err := time.Parse(layout, v); err == nil && !t.IsZero() {
			return t, nil
		}
	}
	if d, err := parseDuration(v); err == nil && d >= 0 {
		return now.Add(direction * d), nil
	}
	return time.Time{}, usageError("--%s must be a time (2026-11-24T09:30:00Z), a day (2026-11-24) or a duration (24h, 7d), not %q", flag, v)
}
