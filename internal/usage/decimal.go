package usage

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/orgd/orgd/internal/problem"
)

// Decimal is an exact quantity in millionths, between -MaxDecimal and
// MaxDecimal.
type Decimal int64

const (
	// One is the quantity 1.
	One Decimal = 1_000_000
	// MaxDecimal is the largest quantity, 9·10^12. The smallest is -MaxDecimal.
	MaxDecimal = 9_000_000_000_000 * One

	fractionDigits = 6
)

// DecimalRule says in words what ParseDecimal accepts, for error messages.
const DecimalRule = "must be a number between -9000000000000 and 9000000000000 with at most six fractional digits"

// ParseDecimal parses a number in the syntax of JSON (RFC 8259), with or
// without an exponent. The number itself is what counts, not how it is
// written: 1e-6 and 2.50000000 are accepted, and 1e-7 is not. Nothing is ever
// rounded. The error is problem.InvalidBody.
func ParseDecimal(s string) (Decimal, error) {
	negative, digits, exponent, ok := splitNumber(s)
	if !ok {
		return 0, decimalError(s, "is not a number")
	}
	trimmed := strings.TrimRight(digits, "0")
	exponent += len(digits) - len(trimmed)
	trimmed = strings.TrimLeft(trimmed, "0")
	if trimmed == "" {
		return 0, nil
	}
	if len(trimmed)+exponent > 13 {
		return 0, decimalError(s, "is out of range")
	}
	if exponent < -fractionDigits {
		return 0, decimalError(s, "is finer than six fractional digits")
	}
	var d Decimal // at most 19 digits from here on, less than 10^19
	for _, c := range []byte(trimmed) {
		if d > MaxDecimal/10 {
			return 0, decimalError(s, "is out of range")
		}
		d = d*10 + Decimal(c-'0')
	}
	for range exponent + fractionDigits {
		if d > MaxDecimal/10 {
			return 0, decimalError(s, "is out of range")
		}
		d *= 10
	}
	if d > MaxDecimal {
		return 0, decimalError(s, "is out of range")
	}
	if negative {
		d = -d
	}
	return d, nil
}

// splitNumber takes a JSON number apart: its value is ±digits·10^exponent.
// Exponents too large to matter are cut to a size that says as much.
func splitNumber(s string) (negative bool, digits string, exponent int, ok bool) {
	rest, negative := strings.CutPrefix(s, "-")
	whole, rest := cutDigits(rest)
	if whole == "" || len(whole) > 1 && whole[0] == '0' {
		return false, "", 0, false
	}
	digits = whole
	if after, found := strings.CutPrefix(rest, "."); found {
		var fraction string
		fraction, rest = cutDigits(after)
		if fraction == "" {
			return false, "", 0, false
		}
		digits += fraction
		exponent = -len(fraction)
	}
	if rest == "" {
		return negative, digits, exponent, true
	}
	if rest[0] != 'e' && rest[0] != 'E' {
		return false, "", 0, false
	}
	sign := 1
	rest = rest[1:]
	if rest != "" && (rest[0] == '+' || rest[0] == '-') {
		if rest[0] == '-' {
			sign = -1
		}
		rest = rest[1:]
	}
	power, rest := cutDigits(rest)
	if power == "" || rest != "" {
		return false, "", 0, false
	}
	// No request is long enough to make up for an exponent beyond this with
	// digits.
	const huge = 1 << 30
	n, err := strconv.ParseInt(power, 10, 64)
	if err != nil || n > huge {
		n = huge
	}
	return negative, digits, exponent + sign*int(n), true
}

func cutDigits(s string) (digits, rest string) {
	i := 0
	for i < len(s) && '0' <= s[i] && s[i] <= '9' {
		i++
	}
	return s[:i], s[i:]
}

func decimalError(s, reason string) error {
	if len(s) > 40 {
		s = strings.ToValidUTF8(s[:40], "") + "…"
	}
	e := problem.New(problem.InvalidBody, "The quantity %q %s.", s, reason).WithFix("A quantity %s.", DecimalRule)
	e.Fields = []problem.Field{{Detail: reason}}
	return e
}

// Add returns d+e. The error is problem.InvalidBody if the sum is out of
// range.
func (d Decimal) Add(e Decimal) (Decimal, error) {
	sum := d + e
	if e > 0 && sum < d || e < 0 && sum > d || sum > MaxDecimal || sum < -MaxDecimal {
		return 0, problem.New(problem.InvalidBody, "The quantity would take the month's consumption out of range.").
			WithFix("The consumption of a month is between -9000000000000 and 9000000000000.")
	}
	return sum, nil
}

// AppendJSON appends d as a JSON number, without an exponent and without trailing
// zeros.
func (d Decimal) AppendJSON(b []byte) []byte {
	u := uint64(d)
	if d < 0 {
		b = append(b, '-')
		u = -u
	}
	b = strconv.AppendUint(b, u/uint64(One), 10)
	fraction := u % uint64(One)
	if fraction == 0 {
		return b
	}
	b = append(b, '.')
	for unit := uint64(One) / 10; fraction > 0; unit /= 10 {
		b = append(b, byte('0'+fraction/unit))
		fraction %= unit
	}
	return b
}

// String returns d as AppendJSON writes it.
func (d Decimal) String() string { return string(d.AppendJSON(nil)) }

// MarshalJSON returns d as a JSON number.
func (d Decimal) MarshalJSON() ([]byte, error) { return d.AppendJSON(nil), nil }

// UnmarshalJSON accepts a JSON number, or a string that holds one; see
// ParseDecimal. It does not accept null.
func (d *Decimal) UnmarshalJSON(b []byte) error {
	s := string(b)
	if len(b) > 0 && b[0] == '"' {
		if err := json.Unmarshal(b, &s); err != nil {
			return decimalError(string(b), "is not a number")
		}
	}
	v, err := ParseDecimal(s)
	if err != nil {
		return err
	}
	*d = v
	return nil
}
