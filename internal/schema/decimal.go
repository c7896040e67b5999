package schema

import (
	"math"
	"math/big"
	"math/bits"
	"strconv"
	"strings"
)

// decimal is a JSON number, exactly: ±0.digits × 10^exp. The digits neither
// start nor end with a zero; zero has none.
type decimal struct {
	negative bool
	digits   string
	exp      int
}

// maxExp bounds exponents, so that sums of them do not overflow. No number that
// a double can hold comes near to it.
const maxExp = 1 << 40

// parseDecimal parses a valid JSON number.
func parseDecimal(s string) decimal {
	var d decimal
	s, d.negative = strings.CutPrefix(s, "-")
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		exp, err := strconv.Atoi(strings.TrimPrefix(s[i+1:], "+"))
		if err != nil { // out of range
			exp = maxExp
			if s[i+1] == '-' {
				exp = -maxExp
			}
		}
		d.exp, s = max(-maxExp, min(exp, maxExp)), s[:i]
	}
	whole, fraction, _ := strings.Cut(s, ".")
	d.exp += len(whole)
	digits := whole + fraction
	d.digits = strings.TrimLeft(digits, "0")
	d.exp -= len(digits) - len(d.digits)
	d.digits = strings.TrimRight(d.digits, "0")
	if d.digits == "" {
		return decimal{}
	}
	return d
}

// append appends a text that equal numbers have in common.
func (d decimal) append(b []byte) []byte {
	if d.negative {
		b = append(b, '-')
	}
	b = append(b, d.digits...)
	b = append(b, 'e')
	return strconv.AppendInt(b, int64(d.exp), 10)
}

func (d decimal) isInteger() bool { return len(d.digits) <= max(d.exp, 0) }

// sign returns -1, 0 or 1.
func (d decimal) sign() int {
	switch {
	case d.digits == "":
		return 0
	case d.negative:
		return -1
	}
	return 1
}

func (d decimal) cmp(e decimal) int {
	if c := d.sign() - e.sign(); c != 0 || d.digits == "" {
		return c
	}
	c := d.exp - e.exp
	if c == 0 {
		c = strings.Compare(d.digits, e.digits)
	}
	return c * d.sign()
}

// clamped returns the value of a non-negative integer, or the greatest int.
func (d decimal) clamped() int {
	if d.exp > 18 {
		return math.MaxInt
	}
	n := 0
	for i := range d.exp {
		n *= 10
		if i < len(d.digits) {
			n += int(d.digits[i] - '0')
		}
	}
	return n
}

// divisor is a number that others are to be multiples of.
type divisor struct {
	digits *big.Int
	exp    int // of the last digit
	words  int
}

func newDivisor(d decimal) *divisor {
	n, _ := new(big.Int).SetString(d.digits, 10)
	return &divisor{n, d.exp - len(d.digits), len(n.Bits())}
}

// divides reports whether d is a multiple of v. It charges for the long
// division before it makes it.
func (v *divisor) divides(d decimal, charge func(steps int)) bool {
	if d.digits == "" {
		return true
	}
	shift := d.exp - len(d.digits) - v.exp
	if shift < 0 {
		// The last digit of d is not 0 and is worth less than that of v.
		return false
	}
	words := len(d.digits)/19 + 1
	charge(10 + words*words/8 + words*v.words/8 + bits.Len(uint(shift))*(v.words*v.words/8+1))
	n, _ := new(big.Int).SetString(d.digits, 10)
	n.Mod(n, v.digits)
	scale := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(shift)), v.digits)
	return n.Mul(n, scale).Mod(n, v.digits).Sign() == 0
}
