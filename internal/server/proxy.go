package server

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/orgd/orgd/internal/auth"
)

// The widest range that can be somebody's own proxies: a private network.
const (
	widestIPv4 = 8 // 10.0.0.0/8
	widestIPv6 = 7 // fc00::/7
)

// unicast holds, for each family, the addresses that a client can have.
var unicast = map[string][]netip.Prefix{
	"IPv4": {netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("128.0.0.0/2"), netip.MustParsePrefix("192.0.0.0/3")},
	"IPv6": {netip.MustParsePrefix("2000::/3")},
}

// ParseTrustedProxies parses the addresses and ranges of Config.TrustedProxies.
// IPv4 ranges that are written as IPv6 are IPv4. A list that could hold clients
// as well as proxies is refused: whoever is in it says what their address is.
func ParseTrustedProxies(list []string) ([]netip.Prefix, error) {
	const fix = "whoever is in it is believed about any address, their own too; name your proxies' addresses only, such as 10.0.0.5 or 10.0.1.0/28"
	var prefixes []netip.Prefix
	for _, s := range list {
		s = strings.TrimSpace(s)
		p, ok := auth.ParseCIDR(s)
		if !ok {
			return nil, fmt.Errorf("%q is not a CIDR such as 10.0.0.0/8", s)
		}
		if p.Bits() < widestIPv4 && p.Addr().Is4() || p.Bits() < widestIPv6 {
			return nil, fmt.Errorf("%s is too wide: %s", s, fix)
		}
		prefixes = append(prefixes, p)
	}
	if len(prefixes) > 0 {
		for family, all := range unicast {
			if len(auth.Exceeding(all, prefixes)) == 0 {
				return nil, fmt.Errorf("the list holds every %s address: %s", family, fix)
			}
		}
	}
	return prefixes, nil
}
