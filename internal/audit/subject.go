package audit

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/orgd/orgd/internal/problem"
)

// Lengths of a subject, in characters. Of two that are not both ASCII a whole
// name may consist; two of ASCII are in too much else.
const (
	MinSubject      = 3
	minSubjectOther = 2
	MaxSubject      = 320
)

// Subject is a text that names somebody, such as a mail address, a user's
// name or an IP address, and is looked for in order to be erased.
type Subject struct {
	text  string // in lower case
	first bool   // whether its first character joins with one before it
	last  bool   // and its last with one after it
}

// NewSubject returns the subject with that text, without the space around it.
func NewSubject(text string) (Subject, *problem.Error) {
	valid := utf8.ValidString(text)
	text = strings.ToLower(strings.TrimSpace(text))
	n := utf8.RuneCountInString(text)
	ascii := n == len(text)
	if !valid || n > MaxSubject || n < minSubjectOther || n < MinSubject && ascii {
		return Subject{}, problem.Body("/subject", "must be a text of %d to %d characters, or of %d that are not both ASCII",
			MinSubject, MaxSubject, minSubjectOther)
	}
	first, _ := utf8.DecodeRuneInString(text)
	last, _ := utf8.DecodeLastRuneInString(text)
	return Subject{text, joins(first), joins(last)}, nil
}

// joins reports whether two such characters beside each other belong to one
// word or number. Scripts without capitals are often written without space
// between words: there, any occurrence counts.
func joins(r rune) bool { return unicode.IsDigit(r) || unicode.IsLower(r) || unicode.IsUpper(r) }

// In reports whether s holds the subject, without regard to case, and not just
// as a part of a longer word or number: 10.0.0.1 is not in 10.0.0.12, and
// ann@example.com not in joann@example.com.
func (s Subject) In(text string) bool {
	if len(text) < len(s.text)/3 { // lower case can be a third as long
		return false
	}
	text = strings.ToLower(text)
	for from := 0; ; {
		i := strings.Index(text[from:], s.text)
		if i < 0 {
			return false
		}
		i += from
		before, _ := utf8.DecodeLastRuneInString(text[:i])
		after, _ := utf8.DecodeRuneInString(text[i+len(s.text):])
		if !(s.first && joins(before)) && !(s.last && joins(after)) {
			return true
		}
		_, size := utf8.DecodeRuneInString(text[i:])
		from = i + size
	}
}

// Needle returns a part of the subject in lower case that every text which
// holds it contains as plain ASCII, in JSON too, apart from the case of its
// letters; empty if there is none. A database can look for it.
func (s Subject) Needle() string {
	best, start := "", 0
	for i := 0; i <= len(s.text); i++ {
		if i < len(s.text) && s.text[i] > ' ' && s.text[i] <= '~' && !strings.ContainsRune(`"\<>&`, rune(s.text[i])) {
			continue
		}
		if i-start > len(best) {
			best = s.text[start:i]
		}
		start = i + 1
	}
	return best
}
