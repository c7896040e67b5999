package api

import (
	"net/url"
	"path"
	"regexp"
	"strings"
	"testing"
)

// A path that is not elsewhere stays where it is, whoever cleans it: as it came
// or decoded once or twice, with backslashes as slashes, and without path
// parameters.
func FuzzElsewhere(f *testing.F) {
	for _, p := range []string{"/", "/orders/1.2", "/a/../b", "/a/%2e%2e/b", "/a/..;/b", "/a/..%3bx=y/b", "/a/%252e%252e%252f/b", `/a\..\b`, "/a%5c..%5cb", "//a", "/a%2f%2fb", "/%zz/%", "/a/;x/b", "/%00", "/%c0%ae", "/...", "/..a/b..", "/%25%32%65%25%32%65/x", "/.%00./x", "/a/.;%2f"} {
		f.Add(p)
	}
	parameters := regexp.MustCompile(`;[^/]*`)
	f.Fuzz(func(t *testing.T, p string) {
		if !strings.HasPrefix(p, "/") || elsewhere(p, true) {
			return
		}
		reading := p
		for range decodings + 1 {
			for _, r := range []string{reading, strings.ReplaceAll(reading, `\`, "/")} {
				for _, r := range []string{r, parameters.ReplaceAllString(r, "")} {
					// Without its parameters a segment may be empty.
					if cleaned := path.Clean(r); cleaned != "/" && cleaned != strings.TrimSuffix(r, "/") && !strings.Contains(r, "//") {
						t.Errorf("%q, read as %q, is %q when it is cleaned", p, r, cleaned)
					}
					if strings.Contains(r+"/", "/../") || strings.Contains(r+"/", "/./") {
						t.Errorf("%q, read as %q, has a dot segment", p, r)
					}
				}
			}
			decoded, err := url.PathUnescape(reading)
			if err != nil {
				return
			}
			reading = decoded
		}
	})
}
