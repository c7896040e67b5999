package main

import (
	"errors"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// secretFlags are the flags whose values may hold a secret. Each can be read from
// a file that a variable names: ORGD_DATABASE_FILE for --database.
var secretFlags = []string{"database", "database-direct"}

// secretVariable returns a secret from the environment: from the variable, or from
// the file that the variable with _FILE behind its name names, as containers get
// them. Empty if neither is set.
func secretVariable(name string) (string, error) {
	value, file := os.Getenv(name), os.Getenv(name+"_FILE")
	switch {
	case value != "" && file != "":
		return "", usageError("%s and %s_FILE are both set; set one of them", name, name)
	case file == "":
		return value, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", usageError("the file that %s_FILE names cannot be read: %w", name, err)
	}
	if value = strings.TrimSpace(string(b)); value == "" {
		return "", usageError("the file that %s_FILE names is empty: %s", name, file)
	}
	return value, nil
}

// secretsFromEnvironment sets the flags that may hold a secret and were not given,
// but for some.
func secretsFromEnvironment(fs *pflag.FlagSet, but []string) error {
	var errs []error
	for _, flag := range secretFlags {
		f := fs.Lookup(flag)
		if f == nil || f.Changed || slices.Contains(but, flag) {
			continue
		}
		value, err := secretVariable(variableOf(flag))
		if err == nil && value != "" {
			err = fs.Set(flag, value)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// variableOf returns the environment variable that sets a flag.
func variableOf(flag string) string {
	return "ORGD_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// checkDatabaseURL checks the value of a flag that takes the URL of a database. No
// part of it is in the error: it may hold a password, and a malformed one holds it
// anywhere.
func checkDatabaseURL(flag, value string) error {
	u, err := url.Parse(value)
	switch {
	case strings.Count(value, "@") > 1 || err != nil && strings.Contains(value, "@") || err == nil && u.User == nil && strings.Contains(value, "@"):
		return usageError("--%s is not a URL as it is meant: if the password has one of the characters @ : / ? # %% or a space, write it as %%40, %%3A, %%2F, %%3F, %%23, %%25 or %%20", flag)
	case err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql":
		return usageError("--%s must be a URL such as postgres://user@host/database; leave it out for SQLite", flag)
	}
	return nil
}

// shownURL is a URL for people: without what stands before the last @, where a user
// and a password are, also in a URL that is malformed.
func shownURL(value string) string {
	at := strings.LastIndexByte(value, '@')
	if at < 0 {
		return value
	}
	scheme, _, ok := strings.Cut(value[:at], "://")
	if !ok {
		return "…" + value[at:]
	}
	return scheme + "://…" + value[at:]
}
