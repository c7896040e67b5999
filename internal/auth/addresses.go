package auth

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/problem"
)

const maxCIDRs = 100

// Every address, as prefixes.
var everywhere = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}

// ParseCIDR parses an address range, such as "10.0.0.0/8" or "2001:db8::/32",
// or a single address. The result is canonical: host bits are zero, and IPv4
// addresses that are written as IPv6 are IPv4.
func ParseCIDR(s string) (netip.Prefix, bool) {
	if !strings.Contains(s, "/") {
		ip, err := netip.ParseAddr(s)
		if err != nil || ip.Zone() != "" {
			return netip.Prefix{}, false
		}
		ip = ip.Unmap()
		return netip.PrefixFrom(ip, ip.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, false
	}
	if ip := p.Addr(); ip.Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, false // neither IPv4 nor IPv6
		}
		p = netip.PrefixFrom(ip.Unmap(), p.Bits()-96)
	}
	return p.Masked(), true
}

// ParseCIDRs parses up to 100 address ranges; see ParseCIDR. The result is
// sorted and without repeats. pointer is where the list stands in the request
// body, for errors.
func ParseCIDRs(pointer string, list []string) ([]netip.Prefix, *problem.Error) {
	if len(list) > maxCIDRs {
		return nil, problem.Body(pointer, "must be at most %d address ranges, not %d", maxCIDRs, len(list))
	}
	prefixes := make([]netip.Prefix, 0, len(list))
	var bad []problem.Field
	for i, s := range list {
		p, ok := ParseCIDR(s)
		if !ok {
			bad = append(bad, problem.Field{Pointer: pointer + "/" + strconv.Itoa(i), Detail: "is not an address range: \"" + key.Echo(s) + "\""})
			continue
		}
		prefixes = append(prefixes, p)
	}
	if len(bad) > 0 {
		e := problem.Body(bad[0].Pointer, "%s", bad[0].Detail).
			WithFix("Write ranges like 203.0.113.0/24 or 2001:db8::/32, or single addresses.")
		e.Fields = bad
		return nil, e
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return slices.Compact(prefixes), nil
}

// Contains reports whether ip is in one of the prefixes. No prefixes at all
// stand for every address. IPv4 addresses that are written as IPv6 are IPv4.
func Contains(prefixes []netip.Prefix, ip netip.Addr) bool {
	if len(prefixes) == 0 {
		return true
	}
	ip = ip.Unmap().WithZone("")
	for _, p := range prefixes {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// Exceeding returns the prefixes of a that hold an address that b lacks; none
// if every address of a is in b. No prefixes at all stand for every address.
func Exceeding(a, b []netip.Prefix) []netip.Prefix {
	if len(b) == 0 {
		return nil
	}
	if len(a) == 0 {
		a = everywhere
	}
	var out []netip.Prefix
	for _, p := range a {
		if !covered(p, b) {
			out = append(out, p)
		}
	}
	return out
}

// covered reports whether the prefixes in list together hold all of p.
func covered(p netip.Prefix, list []netip.Prefix) bool {
	inside := list[:0:0] // what lies within p, and so could cover it piece by piece
	for _, q := range list {
		switch {
		case !q.Overlaps(p):
		case q.Bits() <= p.Bits():
			return true
		default:
			inside = append(inside, q)
		}
	}
	if len(inside) == 0 {
		return false
	}
	low, high := halves(p)
	return covered(low, inside) && covered(high, inside)
}

// halves returns the two halves of p, which is not a single address.
func halves(p netip.Prefix) (low, high netip.Prefix) {
	raw := p.Masked().Addr().AsSlice()
	low = netip.PrefixFrom(p.Masked().Addr(), p.Bits()+1)
	raw[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	ip, _ := netip.AddrFromSlice(raw)
	return low, netip.PrefixFrom(ip, p.Bits()+1)
}

func cidrStrings(prefixes []netip.Prefix) []string {
	s := make([]string, len(prefixes))
	for i, p := range prefixes {
		s[i] = p.String()
	}
	return s
}
