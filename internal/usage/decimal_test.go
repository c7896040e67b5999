package usage

import (
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/problem"
)

func TestParseDecimal(t *testing.T) {
	for s, want := range map[string]Decimal{
		"0":                                      0,
		"-0":                                     0,
		"0.0e99999999999999999":                  0,
		"1":                                      1_000_000,
		"-1.5":                                   -1_500_000,
		"0.000001":                               1,
		"1e-6":                                   1,
		"10E-7":                                  1,
		"2.50000000":                             2_500_000,
		"1.5e+3":                                 1_500_000_000,
		"12345678.654321":                        12_345_678_654_321,
		"9000000000000":                          MaxDecimal,
		"9e12":                                   MaxDecimal,
		"-9000000000000.000000":                  -MaxDecimal,
		"8999999999999.999999":                   MaxDecimal - 1,
		"0.9e13":                                 MaxDecimal,
		"1" + strings.Repeat("0", 500) + "e-500": One,
	} {
		got, err := ParseDecimal(s)
		if err != nil || got != want {
			t.Errorf("ParseDecimal(%.40q) = %d, %v; want %d", s, got, err, want)
		}
	}
}

func TestParseDecimalRefuses(t *testing.T) {
	for reason, inputs := range map[string][]string{
		"is not a number": {"", "-", "+1", "01", "-01", ".5", "1.", "1.e3", "1e", "1e+", "1e1.5", " 1", "1 ", "1,5", "0x10",
			"NaN", "Infinity", "null", "1_000", "١", "1e5e5", "--1", "1\x00"},
		"is out of range": {"9000000000000.000001", "-9000000000000.000001", "9000000000001", "1e13", "9.000000000000000001e12",
			"1e99999999999999999999", strings.Repeat("9", 1000), "99999999999999999999"},
		"is finer than six fractional digits": {"0.0000001", "1e-7", "1.2345678", "1e-99999999999999999999", "15e-7"},
	} {
		for _, s := range inputs {
			if d, err := ParseDecimal(s); !problem.Is(err, problem.InvalidBody) || !strings.Contains(err.Error(), reason) {
				t.Errorf("ParseDecimal(%.40q) = %d, %v; want an error that says it %s", s, d, err, reason)
			}
		}
	}
}

func decimals() *rapid.Generator[Decimal] {
	return rapid.Custom(func(t *rapid.T) Decimal {
		limit := rapid.SampledFrom([]Decimal{1, 1000, One, 1e12, MaxDecimal}).Draw(t, "limit")
		return Decimal(rapid.Int64Range(-int64(limit), int64(limit)).Draw(t, "millionths"))
	})
}

func TestDecimalReadsWhatItWrites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := decimals().Draw(t, "d")
		b, err := json.Marshal(struct{ A, B any }{d, d.String()})
		if err != nil {
			t.Fatal(err)
		}
		var got struct{ A, B Decimal }
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if got.A != d || got.B != d {
			t.Fatalf("%d became %s and then %v", d, b, got)
		}
		want := new(big.Rat).SetFrac64(int64(d), int64(One))
		value, _ := new(big.Rat).SetString(d.String())
		if value == nil || value.Cmp(want) != 0 {
			t.Fatalf("%d is written %s", d, d)
		}
	})
}

// Every JSON number is either read exactly or refused, as exact arithmetic
// says.
func TestParseDecimalIsExact(t *testing.T) {
	number := rapid.StringMatching(`-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,12})?([eE][+-]?[0-9]{1,2})?`)
	rapid.Check(t, func(t *rapid.T) {
		s := number.Draw(t, "s")
		value, ok := new(big.Rat).SetString(s)
		if !ok {
			t.Fatalf("big.Rat does not read %q", s)
		}
		value.Mul(value, new(big.Rat).SetInt64(int64(One)))
		limit := new(big.Rat).SetInt64(int64(MaxDecimal))
		representable := value.IsInt() && new(big.Rat).Abs(value).Cmp(limit) <= 0
		got, err := ParseDecimal(s)
		if representable != (err == nil) {
			t.Fatalf("ParseDecimal(%q) = %d, %v", s, got, err)
		}
		if err == nil && new(big.Rat).SetInt64(int64(got)).Cmp(value) != 0 {
			t.Fatalf("ParseDecimal(%q) = %d", s, got)
		}
	})
}

func TestDecimalUnmarshalRefuses(t *testing.T) {
	for _, s := range []string{`null`, `true`, `"1`, `""`, `" 1"`, `"abc"`, `[1]`, `{}`, `"\u0031\u0000"`} {
		d := Decimal(7)
		if err := d.UnmarshalJSON([]byte(s)); !problem.Is(err, problem.InvalidBody) || d != 7 {
			t.Errorf("UnmarshalJSON(%s) = %v, value %d", s, err, d)
		}
	}
}

func TestDecimalAdd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := decimals().Draw(t, "a"), decimals().Draw(t, "b")
		got, err := a.Add(b)
		want := new(big.Int).Add(big.NewInt(int64(a)), big.NewInt(int64(b)))
		inRange := want.CmpAbs(big.NewInt(int64(MaxDecimal))) <= 0
		if inRange != (err == nil) || inRange && want.Cmp(big.NewInt(int64(got))) != 0 {
			t.Fatalf("%d + %d = %d, %v", a, b, got, err)
		}
	})
	for _, c := range [][2]Decimal{{MaxDecimal, 1}, {-MaxDecimal, -1}, {MaxDecimal, MaxDecimal}, {-MaxDecimal, -MaxDecimal}} {
		if sum, err := c[0].Add(c[1]); !problem.Is(err, problem.InvalidBody) {
			t.Errorf("%s + %s = %s, %v", c[0], c[1], sum, err)
		}
	}
}

func FuzzParseDecimal(f *testing.F) {
	for _, s := range []string{"0", "-1.5", "1e-6", "9e12", "1.e", "01", "1e99999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDecimal(s)
		if err != nil {
			return
		}
		if !json.Valid([]byte(s)) {
			t.Fatalf("%q is no JSON and was read as %s", s, d)
		}
		if again, err := ParseDecimal(d.String()); err != nil || again != d {
			t.Fatalf("%q was read as %s, then as %s, %v", s, d, again, err)
		}
	})
}

func BenchmarkParseDecimal(b *testing.B) {
	for b.Loop() {
		ParseDecimal("12345.678901")
	}
}

func ExampleDecimal_String() {
	fmt.Println(Decimal(1_500_000), Decimal(-1), 3*One)
	// Output: 1.5 -0.000001 3
}
