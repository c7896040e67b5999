package server_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/orgd/orgd/internal/server"
)

// Who may be believed about addresses: proxies, and never everybody.
func TestParseTrustedProxies(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.5":                     "[10.0.0.5/32]",
		"10.0.0.5/8":                   "[10.0.0.0/8]",
		" 10.0.0.0/8 ,fc00::/7":        "[10.0.0.0/8 fc00::/7]",
		"2001:db8::1":                  "[2001:db8::1/128]",
		"::ffff:10.0.0.0/104":          "[10.0.0.0/8]",
		"::ffff:10.0.0.5":              "[10.0.0.5/32]",
		"::ffff:a00:0/104":             "[10.0.0.0/8]",
		"127.0.0.0/8,::1/128":          "[127.0.0.0/8 ::1/128]",
		"":                             "[]",
		"0.0.0.0/0":                    "0.0.0.0/0 is too wide",
		"::/0":                         "::/0 is too wide",
		"::ffff:0.0.0.0/96":            "::ffff:0.0.0.0/96 is too wide",
		"::ffff:0:0/97":                "::ffff:0:0/97 is too wide",
		"10.0.0.0/8,0.0.0.0/0":         "0.0.0.0/0 is too wide",
		"0.0.0.0/1,128.0.0.0/1":        "0.0.0.0/1 is too wide",
		"2000::/3":                     "2000::/3 is too wide",
		"10.0.0.0/7":                   "10.0.0.0/7 is too wide",
		ranges("%d.0.0.0/8", 0, 224):   "holds every IPv4 address",
		ranges("%x00::/8", 0x20, 0x40): "holds every IPv6 address",
		"::ffff:0:0/95":                "not a CIDR",
		"10.0.0.0/33":                  "not a CIDR",
		"everywhere":                   "not a CIDR",
		"10.0.0.1-10.0.0.9":            "not a CIDR",
		"fe80::1%eth0":                 "not a CIDR",
	} {
		var list []string
		if in != "" {
			list = strings.Split(in, ",")
		}
		prefixes, err := server.ParseTrustedProxies(list)
		if strings.HasPrefix(want, "[") {
			if got := fmt.Sprint(prefixes); err != nil || got != want {
				t.Errorf("%s: %s, %v; want %s", in, got, err, want)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", in, err, want)
		} else if !strings.Contains(want, "CIDR") && !(strings.Contains(err.Error(), "is believed about any address") && strings.Contains(err.Error(), "name your proxies' addresses only")) {
			t.Errorf("%s: %v gives no reason, or no fix", in, err)
		}
	}
}

func ranges(format string, from, to int) string {
	var list []string
	for i := from; i < to; i++ {
		list = append(list, fmt.Sprintf(format, i))
	}
	slices.Reverse(list)
	return strings.Join(list, ",")
}
