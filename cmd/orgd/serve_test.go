package main

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// Every flag of serve and demo can be set in the environment, but for those of
// a demo that say where a server's data is; what is given on the command line
// goes before it, and an empty variable is none.
func TestFlagsFromEnvironment(t *testing.T) {
	values := map[string]string{"string": "x", "duration": "1h0m0s", "int64": "7", "int": "7", "bool": "true", "stringSlice": "[10.0.0.0/8,::1/128]", "stringArray": "[x]"}
	given := map[string]string{"stringSlice": "10.0.0.0/8,::1/128", "stringArray": "x"}
	n := 0
	serveCommand().Flags().VisitAll(func(f *pflag.Flag) {
		want, ok := values[f.Value.Type()]
		if !ok {
			t.Errorf("--%s has the type %s, which this test does not know", f.Name, f.Value.Type())
			return
		}
		in := want
		if g, ok := given[f.Value.Type()]; ok {
			in = g
		}
		name := "ORGD_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		for _, command := range []string{"serve", "demo"} {
			cmd := serveCommand()
			if command == "demo" {
				cmd = demoCommand()
			}
			flag := cmd.Flags().Lookup(f.Name)
			if flag == nil {
				t.Errorf("%s does not take --%s", command, f.Name)
				continue
			}
			before, want := flag.Value.String(), want
			t.Setenv(name, "")
			if err := cmd.PreRunE(cmd, nil); err != nil || flag.Value.String() != before {
				t.Errorf("%s with an empty %s has --%s=%s: %v", command, name, f.Name, flag.Value, err)
			}
			if command == "demo" && slices.Contains([]string{"data-dir", "database", "audit-anchor", "witness"}, f.Name) {
				want = before
			}
			t.Setenv(name, in)
			if err := cmd.PreRunE(cmd, nil); err != nil || flag.Value.String() != want {
				t.Errorf("%s with %s=%s has --%s=%s: %v", command, name, in, f.Name, flag.Value, err)
			}
			n++
		}
		t.Setenv(name, "")
	})
	if n < 18 {
		t.Errorf("only %d flags were found", n)
	}
	t.Setenv("ORGD_LISTEN", "127.0.0.1:1")
	cmd := serveCommand()
	if err := cmd.ParseFlags([]string{"--listen", "127.0.0.1:2"}); err != nil {
		t.Fatal(err)
	}
	if err := fromEnvironment(cmd.Flags()); err != nil || cmd.Flags().Lookup("listen").Value.String() != "127.0.0.1:2" {
		t.Errorf("--listen=127.0.0.1:2 with ORGD_LISTEN is %s: %v", cmd.Flags().Lookup("listen").Value, err)
	}
}

// A server says at its start where each of its listeners is, before it says
// that it listens; and they are there.
func TestServeNamesItsListeners(t *testing.T) {
	p := startProcess(t, t.TempDir(), "--forward-auth-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
	status := func(url string) int {
		t.Helper()
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for line, want := range map[string]int{
		`msg="listening for proxies alone" forward_auth=(\S+)`:                 401,
		`msg="listening for operators alone" metrics=(\S+)`:                    200,
		`msg="listening for operators alone" metrics=\S+ service_status=(\S+)`: 200,
	} {
		m := regexp.MustCompile(line).FindStringSubmatch(p.log.String())
		if m == nil {
			t.Errorf("no line matches %s:\n%s", line, p.log)
			continue
		}
		at, err := url.Parse(m[1])
		if err != nil {
			t.Fatal(err)
		}
		if got := status(m[1]); got != want {
			t.Errorf("%s answers with %d, want %d", m[1], got, want)
		}
		if got := status(p.url + at.Path); got != 404 {
			t.Errorf("%s answers with %d where clients come in", p.url+at.Path, got)
		}
	}
}
