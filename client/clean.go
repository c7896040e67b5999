package client

import (
	"net/http"
	"net/netip"
	"strings"
)

// unclear reports whether the path of a request, as it was sent, can be read in
// more than one way: net/http has decoded it, a handler may clean or decode it
// again, and then not be where the guard thought. A path that is clear has no
// empty segment and none that is "." or "..", no backslash, no path parameter,
// and nothing encoded that would be one of these or a control character.
func unclear(r *http.Request) bool {
	path := r.URL.EscapedPath()
	if path == "" || path[0] != '/' || strings.Contains(path, "//") || strings.ContainsAny(path, "\\;#") {
		return path != "*"
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return true
		}
	}
	for i := 0; i < len(path); i++ {
		if path[i] == '%' && encodesUnclear(path[i+1:]) {
			return true
		}
	}
	return false
}

// encodesUnclear reports whether what follows a percent sign makes it, decoded
// once or more often, a character that makes a path unclear.
func encodesUnclear(s string) bool {
	for strings.HasPrefix(s, "25") {
		s = s[2:]
	}
	if len(s) < 2 {
		return false
	}
	switch high, low := s[0], s[1]|0x20; {
	case high == '0' || high == '1': // control characters
		return true
	case high == '2':
		return low == 'e' || low == 'f' // . and /
	case high == '3':
		return low == 'b' // ;
	case high == '5':
		return low == 'c' // \
	case high == '7':
		return low == 'f'
	case high|0x20 == 'c':
		return s[1] == '0' || s[1] == '1' // begins no UTF-8, but for who decodes overlong forms
	}
	return false
}

// withoutIdentity returns the request without the header fields by which a
// proxy says whose request it is, however they are written: those of a request
// that comes here are its client's. Programs behind CGI and the like take X_Orgd
// for X-Orgd.
func withoutIdentity(r *http.Request) *http.Request {
	if names := identities(r.Header); names != nil {
		r = r.WithContext(r.Context())
		r.Header = r.Header.Clone()
		for _, name := range names {
			delete(r.Header, name)
		}
	}
	if identities(r.Trailer) != nil {
		r = r.WithContext(r.Context())
		r.Trailer = nil
	}
	return r
}

func identities(h http.Header) (names []string) {
	for name := range h {
		if len(name) > 7 && strings.EqualFold(strings.ReplaceAll(name[:7], "_", "-"), "x-orgd-") {
			names = append(names, name)
		}
	}
	return names
}

// readAddress returns the address of a client without what proxies write
// around it, such as a port; empty if it is none. Then it is unknown: a key that
// is bound to addresses is refused.
func readAddress(s string) string {
	s = strings.Trim(strings.TrimSpace(s), `"`)
	if p, err := netip.ParseAddrPort(s); err == nil {
		return p.Addr().WithZone("").String()
	}
	ip, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	if err != nil {
		return ""
	}
	return ip.WithZone("").String()
}
