package web

import (
	"net/http"
	"net/netip"
	"strings"

	"github.com/orgd/orgd/internal/auth"
)

// ParseAddress reads the address of a client as proxies write it: an IPv4 or
// IPv6 address, which may be quoted, have a port ("203.0.113.9:51034",
// "[2001:db8::1]:443"), stand in brackets, or name a zone. IPv4 addresses that
// are written as IPv6 become IPv4, and zones, which mean something on one
// machine only, are left out. It reports false for anything else: for the names
// "unknown" and "_hidden" of RFC 7239, for the unspecified address, which nobody
// has, and for what is no address at all.
func ParseAddress(s string) (netip.Addr, bool) {
	s = strings.Trim(s, " \t")
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		s = s[1 : len(s)-1]
	}
	port := ""
	if inside, ok := strings.CutPrefix(s, "["); ok {
		if s, port, ok = strings.Cut(inside, "]"); !ok || port != "" && port[0] != ':' {
			return netip.Addr{}, false
		}
	} else if i := strings.IndexByte(s, ':'); i >= 0 && i == strings.LastIndexByte(s, ':') {
		s, port = s[:i], s[i:]
	}
	if port != "" && !validPort(port[1:]) {
		return netip.Addr{}, false
	}
	ip, err := netip.ParseAddr(s)
	if ip = ip.Unmap().WithZone(""); err != nil || ip.IsUnspecified() {
		return netip.Addr{}, false
	}
	return ip, true
}

func validPort(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != "" && len(s) <= 5
}

// AddressText returns an address as logs hold it: nothing for one that is not
// known.
func AddressText(ip netip.Addr) string {
	if !ip.IsValid() {
		return ""
	}
	return ip.String()
}

// peer returns the address from which a request comes straight.
func peer(r *http.Request) (netip.Addr, bool) {
	p, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}, false
	}
	return p.Addr().Unmap().WithZone(""), true
}

func (s *Server) trustsAddr(ip netip.Addr) bool {
	return len(s.trusted) > 0 && auth.Contains(s.trusted, ip)
}

// origin returns the address of the client, the peer's or what a trusted proxy
// says of it, and whether the request comes straight from such a proxy, whose
// headers are believed. The address is not valid if it is unknown: an address that
// is in no prefix, so that whatever an address decides is denied. The address of
// a proxy never stands in for one that it should have named.
//
// X-Forwarded-For lists the way from the client on. Each proxy vouches for the
// address that it adds on the right, so the client is the last address that is
// not a trusted proxy's; whatever stands left of it may be the client's own
// invention. A way on which there are only trusted proxies has no client in it:
// its first address may have been invented too, by whoever can send through
// one of them. Only that the proxy itself has made the request, which it says by
// naming no other, takes nobody's word but its own.
func (s *Server) origin(r *http.Request) (client netip.Addr, trusted bool) {
	from, ok := peer(r)
	if !ok || !s.trustsAddr(from) {
		return from, false
	}
	return s.forwarded(from, r.Header["X-Forwarded-For"]), true
}

// forwarded returns the client that a trusted proxy names, itself if none.
func (s *Server) forwarded(from netip.Addr, fields []string) netip.Addr {
	client := from
	for i := len(fields) - 1; i >= 0; i-- {
		for hops, more := fields[i], true; more; {
			hop := hops
			if at := strings.LastIndexByte(hops, ','); at >= 0 {
				hops, hop = hops[:at], hops[at+1:]
			} else {
				more = false
			}
			ip, ok := ParseAddress(hop)
			if !ok {
				return netip.Addr{}
			}
			if !s.trustsAddr(ip) {
				return ip
			}
			if ip != from {
				client = netip.Addr{}
			}
		}
	}
	return client
}
