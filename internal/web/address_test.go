package web

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	for in, want := range map[string]string{
		"203.0.113.9":               "203.0.113.9",
		" \t203.0.113.9 ":           "203.0.113.9",
		"203.0.113.9:51034":         "203.0.113.9",
		`"203.0.113.9:51034"`:       "203.0.113.9",
		`"203.0.113.9"`:             "203.0.113.9",
		"2001:db8::1":               "2001:db8::1",
		"[2001:db8::1]":             "2001:db8::1",
		"[2001:db8::1]:443":         "2001:db8::1",
		`"[2001:db8::1]:443"`:       "2001:db8::1",
		`"[2001:db8::1]"`:           "2001:db8::1",
		`"2001:db8::1"`:             "2001:db8::1",
		"2001:DB8:0:0:0:0:0:1":      "2001:db8::1",
		"fe80::1%eth0":              "fe80::1",
		"[fe80::1%25eth0]:8080":     "fe80::1",
		"::ffff:203.0.113.9":        "203.0.113.9",
		"[::ffff:203.0.113.9]:1":    "203.0.113.9",
		"::ffff:cb00:7109":          "203.0.113.9",
		"127.0.0.1":                 "127.0.0.1",
		"unknown":                   "",
		`"unknown"`:                 "",
		"_hidden":                   "",
		"_SEVKISEK:4711":            "",
		"":                          "",
		`""`:                        "",
		" ":                         "",
		"-":                         "",
		"0.0.0.0":                   "",
		"[::]:80":                   "",
		"::ffff:0.0.0.0":            "",
		"localhost":                 "",
		"203.0.113":                 "",
		"203.0.113.256":             "",
		"203.0.113.010":             "",
		"203.0.113.9/32":            "",
		"203.0.113.9:":              "",
		"203.0.113.9:http":          "",
		"203.0.113.9:123456":        "",
		"203.0.113.9 198.51.100.1":  "",
		"2001:db8::1]:443":          "",
		"[2001:db8::1":              "",
		"[2001:db8::1]443":          "",
		"[2001:db8::1]:":            "",
		"[[2001:db8::1]]":           "",
		`"203.0.113.9`:              "",
		`'203.0.113.9'`:             "",
		"for=203.0.113.9":           "",
		"unix:":                     "",
		"203.0.113.9\x00":           "",
		strings.Repeat("1", 1<<10):  "",
		strings.Repeat("[", 1<<10):  "",
		strings.Repeat(":", 1<<10):  "",
		strings.Repeat(`"`, 1<<10):  "",
		"2001:db8:0:0:0:0:0:1:443":  "",
		"203.0.113.9, 198.51.100.1": "",
	} {
		ip, ok := ParseAddress(in)
		if ok != (want != "") || AddressText(ip) != want {
			t.Errorf("%q is %q, %v; want %q", in, AddressText(ip), ok, want)
		}
	}
}

// Whose request it is by what arrives: the connection's peer, and what it says
// of the way. An address that is unknown is written as nothing.
func TestClientIP(t *testing.T) {
	s := &Server{trusted: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/28"), netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("2001:db8:1::/64")}}
	for _, tt := range []struct {
		name, peer string
		forwarded  []string
		want       string
	}{
		{"no proxy", "198.51.100.1:4711", nil, "198.51.100.1"},
		{"a peer that is not trusted invents", "198.51.100.1:4711", []string{"203.0.113.9"}, "198.51.100.1"},
		{"a peer that is not trusted invents nobody", "198.51.100.1:4711", []string{"unknown"}, "198.51.100.1"},
		{"IPv6", "[2001:db8::7]:4711", nil, "2001:db8::7"},
		{"a zone", "[fe80::7%eth0]:4711", nil, "fe80::7"},
		{"IPv4 on an IPv6 socket", "[::ffff:198.51.100.1]:4711", nil, "198.51.100.1"},
		{"a peer without an address", "@", []string{"203.0.113.9"}, ""},
		{"a peer without an address or words", "", nil, ""},

		{"one proxy", "10.0.0.1:80", []string{"203.0.113.9"}, "203.0.113.9"},
		{"one proxy on an IPv6 socket", "[::ffff:10.0.0.1]:80", []string{"203.0.113.9"}, "203.0.113.9"},
		{"one that writes ports", "10.0.0.1:80", []string{"203.0.113.9:51034"}, "203.0.113.9"},
		{"one that writes ports of IPv6", "10.0.0.1:80", []string{"[2001:db8::1]:443"}, "2001:db8::1"},
		{"one that quotes", "10.0.0.1:80", []string{`"[2001:db8::1]"`}, "2001:db8::1"},
		{"two proxies", "10.0.0.1:80", []string{"203.0.113.9, 10.0.0.2"}, "203.0.113.9"},
		{"two proxies that write ports", "10.0.0.1:80", []string{"203.0.113.9:1, 10.0.0.2:2"}, "203.0.113.9"},
		{"two proxies in two fields", "10.0.0.1:80", []string{"203.0.113.9", "10.0.0.2"}, "203.0.113.9"},
		{"two fields, the last without proxies", "10.0.0.1:80", []string{"192.0.2.1", "203.0.113.9"}, "203.0.113.9"},
		{"an invention before the client", "10.0.0.1:80", []string{"192.0.2.1, 203.0.113.9, 10.0.0.2"}, "203.0.113.9"},
		{"an unreadable invention before the client", "10.0.0.1:80", []string{"unknown, , 203.0.113.9, 10.0.0.2"}, "203.0.113.9"},
		{"a proxy's address invented before the client", "10.0.0.1:80", []string{"127.0.0.1, 203.0.113.9"}, "203.0.113.9"},

		{"a client that is unknown", "10.0.0.1:80", []string{"unknown"}, ""},
		{"one that is hidden", "10.0.0.1:80", []string{"_hidden"}, ""},
		{"one that is empty", "10.0.0.1:80", []string{""}, ""},
		{"one that is empty before a proxy", "10.0.0.1:80", []string{", 10.0.0.2"}, ""},
		{"one that is empty after another", "10.0.0.1:80", []string{"203.0.113.9,"}, ""},
		{"one that is empty in a second field", "10.0.0.1:80", []string{"203.0.113.9", ""}, ""},
		{"one that is garbage", "10.0.0.1:80", []string{"203.0.113.9, x"}, ""},
		{"one that is unknown to the proxy before", "10.0.0.1:80", []string{"203.0.113.9, unknown, 10.0.0.2"}, ""},
		{"the unspecified address", "10.0.0.1:80", []string{"0.0.0.0"}, ""},
		{"a socket of the proxy's machine", "127.0.0.1:80", []string{"unix:"}, ""},

		{"the proxy's own request", "127.0.0.1:80", nil, "127.0.0.1"},
		{"the proxy's own request to itself", "127.0.0.1:80", []string{"127.0.0.1"}, "127.0.0.1"},
		{"the proxy's own request to itself, twice", "127.0.0.1:80", []string{"127.0.0.1:4711", "::ffff:127.0.0.1"}, "127.0.0.1"},
		{"another proxy as the client", "10.0.0.1:80", []string{"10.0.0.2"}, ""},
		{"another proxy as the client of itself", "10.0.0.1:80", []string{"10.0.0.2, 10.0.0.1"}, ""},
		{"loopback as the client of another machine", "10.0.0.1:80", []string{"127.0.0.1"}, ""},
		{"nothing but proxies", "10.0.0.1:80", []string{"127.0.0.1, 10.0.0.2, 2001:db8:1::7"}, ""},
	} {
		r := &http.Request{RemoteAddr: tt.peer, Header: http.Header{}}
		if tt.forwarded != nil {
			r.Header["X-Forwarded-For"] = tt.forwarded
		}
		if ip, _ := s.origin(r); AddressText(ip) != tt.want {
			got := AddressText(ip)
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// A server that trusts nobody goes by the connection alone.
func TestClientIPWithoutProxies(t *testing.T) {
	s := &Server{}
	for _, forwarded := range []string{"203.0.113.9", "unknown", ""} {
		r := &http.Request{RemoteAddr: "127.0.0.1:4711", Header: http.Header{"X-Forwarded-For": {forwarded}}}
		if ip, trusted := s.origin(r); AddressText(ip) != "127.0.0.1" || trusted {
			t.Errorf("%q: %q, trusted %v", forwarded, ip, trusted)
		}
	}
}
