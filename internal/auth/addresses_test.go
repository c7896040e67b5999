package auth

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestParseCIDR(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"10.0.0.0/8", "10.0.0.0/8"},
		{"10.1.2.3/8", "10.0.0.0/8"},
		{"203.0.113.7", "203.0.113.7/32"},
		{"2001:DB8::/32", "2001:db8::/32"},
		{"2001:db8::1", "2001:db8::1/128"},
		{"::ffff:203.0.113.7", "203.0.113.7/32"},
		{"::ffff:203.0.113.0/120", "203.0.113.0/24"},
		{"::ffff:0.0.0.0/96", "0.0.0.0/0"},
		{"0.0.0.0/0", "0.0.0.0/0"},
		{"::/0", "::/0"},

		{"::ffff:1.2.3.4/80", ""},
		{"", ""},
		{"10.0.0.0/33", ""},
		{"10.0.0.0/-1", ""},
		{"10.0.0.0/08", ""},
		{"10.0.0/8", ""},
		{"fe80::1%eth0", ""},
		{"localhost", ""},
		{" 10.0.0.1", ""},
	} {
		got, ok := ParseCIDR(tt.in)
		if ok != (tt.want != "") || ok && got.String() != tt.want {
			t.Errorf("ParseCIDR(%q) = %v, %t; want %q", tt.in, got, ok, tt.want)
		}
	}
}

func TestParseCIDRs(t *testing.T) {
	got, err := ParseCIDRs("/allowed_cidrs", []string{"::1", "10.0.0.9/8", "10.0.0.0/8", "1.2.3.4"})
	if want := []string{"1.2.3.4/32", "10.0.0.0/8", "::1/128"}; err != nil || !slices.Equal(cidrStrings(got), want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	_, err = ParseCIDRs("/allowed_cidrs", []string{"nowhere", "1.2.3.4", "1.2.3.4/99"})
	if err == nil || len(err.Fields) != 2 || err.Fields[0].Pointer != "/allowed_cidrs/0" || err.Fields[1].Pointer != "/allowed_cidrs/2" {
		t.Errorf("not every bad range is named: %+v", err)
	}
	if _, err := ParseCIDRs("/allowed_cidrs", slices.Repeat([]string{"1.2.3.4"}, 101)); err == nil {
		t.Error("101 ranges are accepted")
	}
}

func FuzzParseCIDR(f *testing.F) {
	f.Add("10.0.0.0/8")
	f.Add("::ffff:1.2.3.4/97")
	f.Fuzz(func(t *testing.T, s string) {
		p, ok := ParseCIDR(s)
		if !ok {
			return
		}
		if again, ok := ParseCIDR(p.String()); !ok || again != p {
			t.Errorf("%q is not canonical: it gives %v, and that gives %v", s, p, again)
		}
	})
}

func TestContains(t *testing.T) {
	list, _ := ParseCIDRs("", []string{"10.0.0.0/8", "2001:db8::/32"})
	for ip, want := range map[string]bool{
		"10.255.0.1": true, "::ffff:10.0.0.1": true, "2001:db8::5": true, "2001:db8::5%eth0": true,
		"11.0.0.1": false, "2001:db9::": false, "::10.0.0.1": false,
	} {
		if got := Contains(list, netip.MustParseAddr(ip)); got != want {
			t.Errorf("Contains(%v, %s) = %t", list, ip, got)
		}
		if !Contains(nil, netip.MustParseAddr(ip)) {
			t.Errorf("no ranges do not contain %s", ip)
		}
	}
}

func prefixes(cidrs ...string) (list []netip.Prefix) {
	for _, s := range cidrs {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

func TestExceeding(t *testing.T) {
	for _, tt := range []struct {
		name string
		a, b []netip.Prefix
		want []string
	}{
		{"everything in everything", nil, nil, nil},
		{"something in everything", prefixes("10.0.0.0/8"), nil, nil},
		{"everything in something", nil, prefixes("10.0.0.0/8"), []string{"0.0.0.0/0", "::/0"}},
		{"everything in all of IPv4", nil, prefixes("0.0.0.0/0"), []string{"::/0"}},
		{"everything in both halves of it", nil, prefixes("0.0.0.0/0", "::/0"), nil},
		{"narrower", prefixes("10.1.0.0/16", "10.2.3.4/32"), prefixes("10.0.0.0/8"), nil},
		{"wider", prefixes("10.0.0.0/8"), prefixes("10.1.0.0/16"), []string{"10.0.0.0/8"}},
		{"covered by two halves", prefixes("10.0.0.0/8"), prefixes("10.0.0.0/9", "10.128.0.0/9"), nil},
		{"covered but for one address", prefixes("10.0.0.0/30"), prefixes("10.0.0.0/31", "10.0.0.2/32"), []string{"10.0.0.0/30"}},
		{"the other family", prefixes("::/96"), prefixes("0.0.0.0/0"), []string{"::/96"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := cidrStrings(Exceeding(tt.a, tt.b)); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// Exceeding agrees with asking Contains about every address of a small range.
func TestExceedingAgreesWithContains(t *testing.T) {
	draw := func(t *rapid.T, label string) []netip.Prefix {
		return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) netip.Prefix {
			ip := netip.AddrFrom4([4]byte{10, 0, 0, rapid.ByteRange(0, 31).Draw(t, "last byte")})
			return netip.PrefixFrom(ip, rapid.IntRange(27, 32).Draw(t, "bits")).Masked()
		}), 1, 6).Draw(t, label)
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := draw(t, "a"), draw(t, "b")
		var beyond bool
		for i := range 32 {
			ip := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			beyond = beyond || Contains(a, ip) && !Contains(b, ip)
		}
		if got := len(Exceeding(a, b)) > 0; got != beyond {
			t.Errorf("Exceeding(%v, %v) says %t, Contains says %t", a, b, got, beyond)
		}
	})
}
