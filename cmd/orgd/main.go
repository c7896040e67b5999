// Command orgd is the organization layer of a B2B product: a server for a
// tree of organizations, and the command line to work with it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Exit codes of the command line, for scripts.
const (
	exitFailure     = 1 // anything else
	exitUsage       = 2 // the command line is wrong
	exitDenied      = 3 // 401 or 403
	exitNotFound    = 4 // 404
	exitConflict    = 5 // 409 or 412
	exitUnavailable = 6 // the server cannot be reached, or answers 5xx
	exitLimited     = 7 // 429
)

func main() {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup has it
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	defer stop()
	context.AfterFunc(ctx, stop) // the next signal ends the process at once
	if err := newRoot().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "orgd: "+err.Error())
		os.Exit(exitCode(err))
	}
}

// exitError is an error with its exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// message is an error in whole sentences, for people: what is wrong and what
// to do about it.
type message string

func (m message) Error() string { return string(m) }

func messagef(format string, args ...any) error { return message(fmt.Sprintf(format, args...)) }

func exitCode(err error) int {
	var e *exitError
	if errors.As(err, &e) {
		return e.code
	}
	return exitFailure
}

func usageError(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// valuesOf says what a flag takes.
func valuesOf(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "int", "int64":
		return "a whole number"
	case "duration":
		return "a duration such as 90s, 12h or 30d"
	case "bool":
		return "true or false"
	}
	return f.Value.Type()
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "orgd",
		Short: "The organization layer of a B2B product",
		Long: `orgd keeps a tree of organizations and, for each of them, its API keys, tags,
customizations, access log, audit trail and monthly consumption.

  orgd demo     serve a real organization tree, ready to try
  orgd serve    run the server

The commands that work with a server find it at ORGD_URL (by default
` + defaultURL + `) and use the API key in ORGD_KEY.

Exit codes: 0 success, 1 failure, 2 wrong command line, 3 not permitted,
4 not found, 5 conflict, 6 server not available, 7 over a limit.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE:          runGroup,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if bad := new(pflag.InvalidValueError); errors.As(err, &bad) {
			err = fmt.Errorf("%q is not valid for --%s: it takes %s", bad.GetValue(), bad.GetFlag().Name, valuesOf(bad.GetFlag()))
		}
		return usageError("%w\nSee '%s --help'.", err, cmd.CommandPath())
	})
	root.AddGroup(&cobra.Group{ID: "server", Title: "Server:"}, &cobra.Group{ID: "client", Title: "Work with a server:"},
		&cobra.Group{ID: "help", Title: "Help:"})
	root.SetHelpCommandGroupID("help")
	root.SetCompletionCommandGroupID("help")
	root.AddCommand(serveCommand(), demoCommand(), keygenCommand(), versionCommand())
	root.AddCommand(clientCommands()...)
	checkArguments(root)
	return root
}

// version returns the version of this build.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", GroupID: "help", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), "orgd "+version()) },
	}
}
