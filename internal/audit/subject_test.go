package audit

import (
	"strings"
	"testing"
	"testing/quick"
)

func subject(t testing.TB, text string) Subject {
	t.Helper()
	s, p := NewSubject(text)
	if p != nil {
		t.Fatal(p)
	}
	return s
}

func TestSubject(t *testing.T) {
	for _, test := range []struct {
		subject string
		in, out []string
	}{
		{"John.Doe@example.com", []string{"john.doe@example.com", "John Doe <JOHN.DOE@EXAMPLE.COM>", "see john.doe@example.com.", "user_john.doe@example.com", "xjohn.doe@example.com john.doe@example.com"},
			[]string{"", "john", "xjohn.doe@example.com", "john.doe@example.community", "john.doe@examplecom"}},
		{"10.0.0.1", []string{"10.0.0.1", "10.0.0.1/32", "[10.0.0.1]:80"}, []string{"10.0.0.12", "110.0.0.1", "10.0.0.2"}},
		{"  Zoë ", []string{"zoë", "ZOË Smith"}, []string{"zoëlla", "zoe"}},
		{"张伟明", []string{"张伟明", "张伟明先生"}, []string{"张伟"}},
		{"李明", []string{"李明", "u=李明;", "李明华"}, []string{"李 明", "明李"}},
		{"Bø", []string{"bø", "Erik BØ"}, []string{"bøe", "Bo"}},
		{"+49 170", []string{"tel +49 170 5"}, []string{"+49 1705"}},
	} {
		s := subject(t, test.subject)
		for _, text := range test.in {
			if !s.In(text) {
				t.Errorf("%q is not found in %q", test.subject, text)
			}
			if needle := s.Needle(); !strings.Contains(strings.ToLower(text), needle) {
				t.Errorf("the needle %q of %q is not in %q", needle, test.subject, text)
			}
		}
		for _, text := range test.out {
			if s.In(text) {
				t.Errorf("%q is found in %q", test.subject, text)
			}
		}
	}
	if got := subject(t, `say "hello" to J\u00fcrgen`).Needle(); got != "hello" && got != "u00fcrgen" {
		t.Errorf("needle %q", got)
	}
	for _, bad := range []string{"", "ab", "  a  ", "ø", "李 ", "\xff\xfe", "\xffabc", strings.Repeat("x", MaxSubject+1)} {
		if _, p := NewSubject(bad); p == nil {
			t.Errorf("the subject %q was accepted", bad)
		}
	}
	if err := quick.Check(func(before, after string) bool {
		return subject(t, "#jane#").In(before + "#JANE#" + after)
	}, nil); err != nil {
		t.Error(err)
	}
}
